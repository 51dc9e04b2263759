"""What a fleet will be asked for one cold start ahead, from what it was asked for so far.

Three rates are followed: requests, prompt tokens and output tokens per second. Each has an
exponential mean over a minute and one over ten. Such a mean lags behind a steady rise by about its
length, so the two tell the rise, and a rise that goes on is forecast exactly. Rates as they are
seen would answer a jump half a minute earlier; but where a scale-down waits for the most that was
asked for, every crest of their noise is paid for as long.

Output tokens follow requests by minutes, because long answers take minutes. What a request meant in
output tokens over the last ten minutes turns requests to come into output tokens to come; the
larger of this and of the output tokens' own forecast is taken.

A day that is remembered has a word too: how the rates went on from this hour on the day before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1

import numpy as np

from tuner.core.protocols import BoolArray, FloatArray, IntArray

RATES = ("qps", "prompt_tokens_per_s", "output_tokens_per_s")
"""Fields of an observation that are forecast: the columns of every array of rates here."""
QPS, PROMPT, OUTPUT = range(len(RATES))

FAST_S = 60.0
"""Length of the mean that is the level, s."""
MEAN_S = 600.0
"""Length of the mean, s: about a cold start, the time that a trend has to hold for. On three jumps
of the DeepSeek-R1 day, with a trend of 1, half of it cost 7 % more replica-hours and saved a fifth
of the misses; twice of it cost 5 % less and missed three times as many."""
GROWTH = 2.0
"""Most that a rate is forecast to grow by, as a factor: a rise is believed for one doubling."""
DAY_S, BIN_S = 86_400.0, 900.0
BINS = int(DAY_S / BIN_S)
"""Of a day: a quarter of an hour, so that a bin holds many looks and is no longer than a ramp."""


@dataclass(frozen=True)
class State:
    """What is remembered of n targets: views into the memory, written in place; NaN if empty."""

    at_s: FloatArray
    """`(n, 1)` time of the last rates, s."""
    level: FloatArray
    """`(n, 3)` means of the rates over FAST_S."""
    mean: FloatArray
    """`(n, 3)` means of the rates over MEAN_S."""
    bin: FloatArray
    """`(n, 2)` the bin that runs, counted from time 0, and how many rates it has seen; `(n, 0)`
    without a season."""
    sums: FloatArray
    """`(n, 3)` of the rates that the bin has seen; `(n, 0)`."""
    day: FloatArray
    """`(n, BINS x 3)` means of the bins of the day, each as it was when it last ended; `(n, 0)`."""


@dataclass(frozen=True)
class Forecast:
    """Forecasts for n targets."""

    horizon_s: float
    """How far ahead, s."""
    tick_s: float
    """Seconds between two looks."""
    trend: float
    """Share (0-1) of the rise that is taken to go on up to the horizon."""
    season: float
    """Weight (0-1) of the day before beside the trend; 0: no day is remembered."""

    @property
    def memory_size(self) -> int:
        """Numbers per target."""
        return 7 + (5 + 3 * BINS if self.season else 0)

    def views(self, memory: FloatArray) -> State:
        """`memory (n, memory_size)` as named parts that share its storage."""
        return State(*np.split(memory, [1, 4, 7, 9, 12], axis=1))

    def see(self, state: State, at_s: FloatArray, rates: FloatArray) -> BoolArray:
        """Take rates into the state; a target of which one is not measured stays as it is.

        Args:
            state: of n targets, written.
            at_s: `(n,)` s.
            rates: `(n, 3)` in the order of RATES.
        Returns:
            `(n,)` where all three are measured.
        """
        known = np.asarray(np.isfinite(rates).all(axis=1))
        first = np.isnan(state.at_s)
        for mean, length_s in ((state.level, FAST_S), (state.mean, MEAN_S)):
            share = -np.expm1((state.at_s - at_s[:, None]) / length_s)
            moved = np.where(first, rates, mean + share * (rates - mean))
            mean[known] = moved[known]
        state.at_s[known, 0] = at_s[known]
        if self.season:
            _remember(state, at_s, np.where(known[:, None], rates, 0.0), known)
        return known

    def ahead(self, state: State, at_s: FloatArray) -> FloatArray:
        """`(n, 3)` rates at the horizon; NaN where none was ever seen."""
        level, mean = state.level, state.mean
        lag_s, mean_lag_s = self._lag_s(FAST_S), self._lag_s(MEAN_S)
        rise = (level - mean) / (mean_lag_s - lag_s)
        coming = level + self.trend * rise * (lag_s + self.horizon_s)
        if self.season:
            day_before = level * self._went_on(state, at_s)
            weighed = coming + self.season * (day_before - coming)
            coming = np.where(np.isnan(day_before), coming, weighed)
        coming = np.clip(coming, 0.0, GROWTH * level)
        length = mean[:, OUTPUT] / np.maximum(mean[:, QPS], TINY)
        coming[:, OUTPUT] = np.maximum(coming[:, OUTPUT], coming[:, QPS] * length)
        return coming

    def _lag_s(self, length_s: float) -> float:
        """How far an exponential mean of ticks is behind a steady rise."""
        return self.tick_s / expm1(self.tick_s / length_s)

    def _went_on(self, state: State, at_s: FloatArray) -> FloatArray:
        """`(n, 3)` rates at this hour plus the horizon over those of this hour, the day before;
        NaN where either was not seen."""
        here = _means(state, _bin(at_s))
        there = _means(state, _bin(at_s + self.horizon_s))
        ratio: FloatArray = there / np.where(here > 0, here, np.nan)
        return ratio


TINY = 1e-9
"""Stands for no requests/s below a fraction."""


def _bin(at_s: FloatArray) -> FloatArray:
    """`(n,)` bins since time 0."""
    whole: FloatArray = np.floor(at_s / BIN_S)
    return whole


def _places(bins: FloatArray) -> IntArray:
    """`(n, 3)` columns of `State.day` of these bins."""
    place: IntArray = np.mod(bins, BINS).astype(np.int64)
    return 3 * place[:, None] + np.arange(3)


def _means(state: State, bins: FloatArray) -> FloatArray:
    """`(n, 3)` what is remembered of these bins."""
    means: FloatArray = np.take_along_axis(state.day, _places(bins), axis=1)
    return means


def _remember(state: State, at_s: FloatArray, rates: FloatArray, known: BoolArray) -> None:
    """Count the rates into the bin that runs; one that ended goes into the day."""
    current = _bin(at_s)
    over = known & (state.bin[:, 0] != current)
    ended = np.flatnonzero(over & ~np.isnan(state.bin[:, 0]))
    columns = _places(state.bin[ended, 0])
    state.day[ended[:, None], columns] = state.sums[ended] / state.bin[ended, 1:]
    state.bin[over] = np.stack([current, np.zeros_like(current)], axis=1)[over]
    state.sums[over] = 0.0
    state.bin[known, 1] += 1.0
    state.sums[known] += rates[known]
