"""What the next interval brings, from the ones before it: the load predictors of NVIDIA Dynamo.

ai-dynamo 1.6.1, dynamo/planner/core/load/predictors.py, over n series. Zeros before the first load
are skipped, what is not a number counts as 0, and no forecast is below 0.

Its default there fits an ARIMA model whose order pmdarima searches; that library is no dependency
here, and its search is not repeated: `ar` is one model of the family, ARIMA(2, 1, 0). `prophet` is
not here either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tuner.core.protocols import BoolArray, FloatArray

MIN_POINTS = 5
"""With fewer, the last one is the forecast."""
AR_WINDOW = 50
"""Points that `ar` remembers; two and a half hours of the planner's intervals."""


class Predictor(Protocol):
    """A forecast for n series, each a row of numbers; NaN in all of them: nothing seen yet."""

    @property
    def size(self) -> int:
        """Numbers per series."""

    def added(self, state: FloatArray, value: FloatArray) -> FloatArray:
        """`(n, size)` after one more interval with `(n,)` values."""

    def forecast(self, state: FloatArray) -> FloatArray:
        """`(n,)` of the next interval, >= 0; 0 where nothing was seen."""


@dataclass(frozen=True)
class Constant:
    """As the last interval."""

    size: int = 1

    def added(self, state: FloatArray, value: FloatArray) -> FloatArray:
        counts, value = _counts(np.isnan(state[:, 0]), value)
        return np.where(counts, value, state[:, 0]).reshape(-1, 1)

    def forecast(self, state: FloatArray) -> FloatArray:
        return np.where(np.isnan(state[:, 0]), 0.0, state[:, 0])


@dataclass(frozen=True)
class Kalman:
    """A level and a trend, filtered: x += v every interval, both with noise."""

    q_level: float = 1.0
    """Variance that the level gains per interval."""
    q_trend: float = 0.1
    r: float = 10.0
    """Variance of a measurement."""
    p0: float = 1000.0
    """Variance of level and trend at the first point."""
    size: int = 7
    """Points so far, the last one, level, trend; variance of the level, covariance, variance of the
    trend."""

    def added(self, state: FloatArray, value: FloatArray) -> FloatArray:
        first = np.isnan(state[:, 0])
        counts, value = _counts(first, value)
        points, _, level, trend, p, c, v = np.nan_to_num(state).T
        # One step ahead, then what was measured.
        level, p, c, v = level + trend, p + 2 * c + v + self.q_level, c + v, v + self.q_trend
        gain, drag = p / (p + self.r), c / (p + self.r)
        error = value - level
        after = np.stack(
            [
                points + 1,
                value,
                level + gain * error,
                trend + drag * error,
                (1 - gain) * p,
                (1 - gain) * c,
                v - drag * c,
            ],
            axis=1,
        )
        zero = np.zeros_like(value)
        start = np.stack([zero + 1, value, value, zero, zero + self.p0, zero, zero + self.p0], 1)
        after = np.where(first[:, None], start, after)
        return np.where(counts[:, None], after, state)

    def forecast(self, state: FloatArray) -> FloatArray:
        points, last, level, trend = np.nan_to_num(state[:, :4]).T
        return np.asarray(np.where(points < MIN_POINTS, last, np.maximum(level + trend, 0.0)))


@dataclass(frozen=True)
class Ar:
    """The last value and a change, which an autoregression makes of the two changes before it.

    Its two coefficients by the autocorrelation method (Yule and Walker: the changes outside of the
    window count as 0), so the model is stable whatever it is fitted to.
    """

    size: int = AR_WINDOW
    """Newest last."""

    def added(self, state: FloatArray, value: FloatArray) -> FloatArray:
        counts, value = _counts(np.isnan(state[:, -1]), value)
        after = np.concatenate([state[:, 1:], value[:, None]], axis=1)
        return np.where(counts[:, None], after, state)

    def forecast(self, state: FloatArray) -> FloatArray:
        last = np.nan_to_num(state[:, -1])
        change = np.nan_to_num(np.diff(state, axis=1))
        r0, r1, r2 = (
            (change[:, lag:] * change[:, : change.shape[1] - lag]).sum(axis=1) for lag in range(3)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = r0 * r0 - r1 * r1
            first, second = r1 * (r0 - r2) / scale, (r0 * r2 - r1 * r1) / scale
        moved = last + first * change[:, -1] + second * change[:, -2]
        known = np.isfinite(state).sum(axis=1) >= MIN_POINTS
        # Without any change there is nothing to fit.
        return np.where(known & np.isfinite(moved), np.maximum(moved, 0.0), last)


PREDICTORS: dict[str, Callable[[], Predictor]] = {"ar": Ar, "constant": Constant, "kalman": Kalman}


def _counts(empty: BoolArray, value: FloatArray) -> tuple[BoolArray, FloatArray]:
    """Which values are a point of their series, and the values as they count."""
    value = np.where(np.isfinite(value), value, 0.0)
    return ~(empty & (value == 0)), value
