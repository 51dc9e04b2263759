"""How far the world of an episode may lie from its profile and trace.

A policy that has only met one simulator learns that simulator's mistakes. So training draws each
episode's world from around the calibrated one (domain randomisation; Tobin et al., arXiv
1703.06907), and evaluation and comparison never do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

_FACTORS = ("cold_start", "output_tokens", "prefix_hits")
LARGEST = 100.0
"""A world that far from the profile is a slip of the pen."""


@dataclass(frozen=True)
class RandomiseConfig:
    """Widths of what is drawn once per episode, from the episode's seed alone. A slow replica and
    crashes are `FailureConfig`'s, which runs outside of training have as well."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    enabled: bool = False
    """Whether training draws at all; False: every world is the profile and the trace."""
    step_time: float = 0.075
    """Sigma of the log of a factor on the seconds of every iteration; its median is 1. The spread
    that good calibrations leave is 5 to 10 %."""
    prefill: float = 0.1
    """The same for the terms of prompt tokens."""
    kv: float = 0.1
    """The same for the term of KV tokens."""
    cold_start: tuple[float, float] = (0.5, 3.0)
    """Range of a factor on the seconds of every cold start, even in its log: the same image starts
    in minutes from a warm node and in three times as long from a cold registry."""
    output_tokens: tuple[float, float] = (0.8, 1.2)
    """Range of a factor on every request's output tokens, even."""
    prefix_hits: tuple[float, float] = (0.5, 1.0)
    """Range of a factor on every request's prefix hits, even; the trace tells what an endless cache
    would hold."""
    scrape_lag_s: tuple[float, float] = (0.0, 30.0)
    """Range of the seconds by which metrics are older than they have to be, even."""
    scrape_loss: tuple[float, float] = (0.0, 0.05)
    """Range of the chance (0-1) that metrics are lost, even; takes the place of the environment's
    own."""

    def mistakes(self) -> Iterator[str]:
        """One sentence, from the name of the field on, for each value out of its range."""
        for name in ("step_time", "prefill", "kv"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} is {getattr(self, name)}; expected a sigma of 0 to 1"
        for name in _FACTORS:
            yield from self._range(name, 0.0 if name == "prefix_hits" else 1 / LARGEST, LARGEST)
        yield from self._range("scrape_lag_s", 0.0, 3600.0)
        yield from self._range("scrape_loss", 0.0, math.nextafter(1.0, 0.0))

    def _range(self, name: str, least: float, most: float) -> Iterator[str]:
        low, high = getattr(self, name)
        if not least <= low <= high <= most:
            yield f"{name} is {low}..{high}; expected {least:g} <= low <= high <= {most:g}"
