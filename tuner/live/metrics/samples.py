"""Raw samples of a window: what every metrics source gives, and all that the field code reads.

Prometheus hands out raw samples for a range selector, a scraped page is one sample of each series:
both become the same thing, so that a field means the same whichever source it came from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tuner.core.faults import Fault
from tuner.core.protocols import FloatArray
from tuner.live.pool import Member


@dataclass(frozen=True, eq=False)
class SampleSeries:
    """One series of one replica within a window."""

    name: str
    """As on the page: `vllm:prompt_tokens_total`, `vllm:time_to_first_token_seconds_bucket`."""
    labels: Mapping[str, str]
    replica: str
    """Name of the member it belongs to; empty where it belongs to none (gateway, business)."""
    at_s: FloatArray
    """`(samples,)` Unix s, rising."""
    values: FloatArray
    """`(samples,)`."""


class SampleSource(Protocol):
    """A place to get samples from."""

    @property
    def name(self) -> str: ...

    @property
    def missed(self) -> tuple[Fault, ...]:
        """What the last look could not read, beside what it did."""

    def samples(
        self, names: Collection[str], members: Sequence[Member], *, at_s: float, window_s: float
    ) -> list[SampleSeries]:
        """Every series with one of these names, samples of (at_s - window_s, at_s].

        Raises:
            FaultError: the source gave nothing that can be used.
        """

    def close(self) -> None: ...
