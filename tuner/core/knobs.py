"""Knobs: what can be turned, within which range, and how settings travel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import ConfigError

Applied = Literal["hot", "reload", "restart", "client", "scale"]
"""How a change reaches the engine, cheapest first: over HTTP while it runs; by reloading the
model; by a rolling restart; by what the client side sends; by the number of replicas."""


@dataclass(frozen=True)
class KnobSpec:
    """One knob with the range a target allows."""

    name: str
    unit: str
    low: int
    """Smallest allowed value."""
    high: int
    """Largest allowed value."""
    default: int
    """Value of a fleet nobody has tuned."""
    applied: Applied
    meaning: str

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"knobs.{self.name}: low {self.low} is above high {self.high}")
        if not self.low <= self.default <= self.high:
            raise ConfigError(
                f"knobs.{self.name}: default {self.default} is outside {self.low}..{self.high}"
            )

    def bounded(self, low: int, high: int) -> KnobSpec:
        """The same knob with another range; its default moves to the nearest allowed value."""
        return replace(self, low=low, high=high, default=min(max(self.default, low), high))


class KnobSettings(Mapping[str, int]):
    """Knob name -> absolute value; immutable and hashable.

    A knob that is absent is not known where settings were observed, and left alone where they are
    wanted.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, int] | None = None, **knobs: int) -> None:
        self._values: dict[str, int] = {**(values or {}), **knobs}

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._values.items()) or "(none)"

    def with_(self, **knobs: int) -> KnobSettings:
        """These settings with some knobs changed."""
        return KnobSettings({**self._values, **knobs})


@dataclass(frozen=True)
class KnobSpace:
    """The knobs of one target in a fixed order: the columns of every settings array."""

    specs: tuple[KnobSpec, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @cached_property
    def low(self) -> NDArray[np.float64]:
        """`(knobs,)` smallest allowed values; read-only."""
        return _frozen([spec.low for spec in self.specs])

    @cached_property
    def high(self) -> NDArray[np.float64]:
        """`(knobs,)` largest allowed values; read-only."""
        return _frozen([spec.high for spec in self.specs])

    def column(self, name: str) -> int:
        """Column of a knob in settings arrays.

        Raises:
            ConfigError: if the space has no such knob.
        """
        try:
            return self.names.index(name)
        except ValueError:
            known = ", ".join(self.names)
            raise ConfigError(f"knob '{name}' is not known here; known knobs: {known}") from None

    def __getitem__(self, name: str) -> KnobSpec:
        return self.specs[self.column(name)]

    def defaults(self) -> KnobSettings:
        return KnobSettings({spec.name: spec.default for spec in self.specs})

    def row(self, settings: Mapping[str, float]) -> NDArray[np.float64]:
        """`(knobs,)` float64, NaN for a knob that `settings` does not name."""
        return np.array([settings.get(name, np.nan) for name in self.names], dtype=np.float64)

    def settings(self, row: Sequence[float] | NDArray[np.float64]) -> KnobSettings:
        """The inverse of `row`; NaN leaves the knob out."""
        values = row.tolist() if isinstance(row, np.ndarray) else row
        return KnobSettings(
            {
                name: int(value)
                for name, value in zip(self.names, values, strict=True)
                if not math.isnan(value)
            }
        )


def _frozen(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array
