"""What a rule remembers over a window: numbers with their times, in a fixed number of places.

**Ages.** A controller keeps an entry while it is younger than its window. Its rounds lie a little
more than their period apart, so an entry exactly k periods old never exists there; on our exact
grid of ticks an age equal to a window therefore counts as outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from tuner.core.protocols import BoolArray, FloatArray, IntArray

GRID_SLACK_S = 1e-3
"""An age this close to a window is on its edge: at 1.7e9 s since the epoch a float64 resolves
2.4e-7 s, and a grid of k * 0.1 s drifts by more. Real rounds jitter by 10 ms."""


def places(window_s: float, period_s: float) -> int:
    """Places for the entries younger than the window at one per period, one more for an entry that
    a rule begins with, one more for calls that jitter."""
    return ceil(window_s / period_s) + 2


@dataclass(frozen=True)
class Entries:
    """Numbers with the time of each, `(n, places)`; NaN in an empty place, the first ones fill
    first."""

    at_s: FloatArray
    value: FloatArray

    def younger(self, at_s: FloatArray, window_s: float) -> BoolArray:
        """`(n, places)` where an entry lies inside the window that ends at `at_s`."""
        inside: BoolArray = at_s[:, None] - self.at_s < window_s - GRID_SLACK_S
        return inside

    def largest(self, at_s: FloatArray, window_s: float, value: FloatArray) -> FloatArray:
        """`(n,)` the largest of `value` and the entries inside the window."""
        inside = np.where(self.younger(at_s, window_s), self.value, -np.inf)
        largest: FloatArray = np.maximum(value, inside.max(axis=1))
        return largest

    def smallest(self, at_s: FloatArray, window_s: float, value: FloatArray) -> FloatArray:
        """`(n,)` the smallest of `value` and the entries inside the window."""
        inside = np.where(self.younger(at_s, window_s), self.value, np.inf)
        smallest: FloatArray = np.minimum(value, inside.min(axis=1))
        return smallest

    def total(self, at_s: FloatArray, window_s: float) -> FloatArray:
        """`(n,)` the sum of the entries inside the window."""
        inside = np.where(self.younger(at_s, window_s), self.value, 0.0)
        total: FloatArray = inside.sum(axis=1)
        return total

    def mean(self, at_s: FloatArray, window_s: float) -> FloatArray:
        """`(n,)` the mean of the entries inside the window; NaN where there is none."""
        inside = self.younger(at_s, window_s)
        count = inside.sum(axis=1)
        total = np.where(inside, self.value, 0.0).sum(axis=1)
        mean: FloatArray = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        return mean

    def put(self, rows: BoolArray, place: IntArray, at_s: FloatArray, value: FloatArray) -> None:
        """Write one entry into `place` of each of these rows."""
        chosen = np.flatnonzero(rows)
        self.at_s[chosen, place[chosen]] = at_s[chosen]
        self.value[chosen, place[chosen]] = value[chosen]

    def oldest(self) -> IntArray:
        """`(n,)` the first empty place, else the place of the oldest entry."""
        oldest: IntArray = np.where(np.isnan(self.at_s), -np.inf, self.at_s).argmin(axis=1)
        return oldest

    def add(self, rows: BoolArray, at_s: FloatArray, value: FloatArray) -> None:
        """Write one entry into each of these rows, over the oldest one."""
        self.put(rows, self.oldest(), at_s, value)
