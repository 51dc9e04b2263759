"""Timetable: how many replicas at which time of a period, as a person writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tuner.core.protocols import FloatArray, IntArray


@dataclass(frozen=True)
class Timetable:
    """A step function of time that repeats: a count holds until the next one begins."""

    starts_s: tuple[float, ...]
    """Ascending, each within [0, period_s): seconds into the period."""
    counts: tuple[float, ...]
    """One per start, >= 0."""
    period_s: float
    """> 0; a day or a week."""

    @cached_property
    def _starts(self) -> FloatArray:
        return np.array(self.starts_s)

    @cached_property
    def _counts(self) -> FloatArray:
        return np.array(self.counts)

    def now(self, at_s: FloatArray) -> IntArray:
        """`(n,)` which of the counts holds at these times, s since a period began."""
        # Before the first start the last one of the period before still holds: place -1.
        begun = self._starts.searchsorted(at_s % self.period_s, side="right")
        place: IntArray = (begun - 1) % len(self.counts)
        return place

    def soon(self, at_s: FloatArray, within_s: float) -> IntArray:
        """`(n,)` which is the largest count that holds at these times or begins in the `within_s`
        after them; of equal ones the one that holds."""
        gap_s = (self._starts[None, :] - at_s[:, None]) % self.period_s
        now = self.now(at_s)
        begins = np.where(gap_s <= within_s, self._counts[None, :], -np.inf)
        largest: IntArray = begins.argmax(axis=1)
        rows = np.arange(len(now))
        soon: IntArray = np.where(begins[rows, largest] > self._counts[now], largest, now)
        return soon
