"""How sure a figure is: intervals over seeds, and over the load's own ups and downs.

Two intervals, because they answer two questions:

- `seeds_interval`: another draw of cold starts and jitter on the *same* load. Student's t over the
  runs, mean ± t(0.975, n - 1) s / sqrt(n). Policies run the same seeds, so differences are taken
  seed by seed first, and what a seed does to all of them cancels.
- `load_interval`: another load *like* this one. Decisive surges are few, and every seed meets the
  same ones, so the interval over seeds alone says too much. The run is cut into blocks of time,
  blocks are drawn with replacement, and the figure is computed anew from each draw: the
  non-overlapping block bootstrap (Carlstein, Annals of Statistics 14(3), 1986) with percentile
  bounds (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Seeds are
  pooled in each block, and every policy gets the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.result import Floats, Ints, RunResult
from tuner.core.slo import Slo

Interval = tuple[float, float]

MIN_BLOCKS = 8
"""With fewer blocks the bootstrap has too few distinct draws to mean anything: no interval."""

# Quantiles t(0.975, df) for df = 1..30: any textbook's table, e.g. NIST/SEMATECH e-Handbook of
# Statistical Methods, 1.3.6.7.2.
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_Z_975 = 1.959964


def t_975(df: int) -> float:
    """The 97.5 % point of Student's t with `df` >= 1 degrees of freedom.

    From the table up to 30; beyond it by the first terms of the Cornish-Fisher expansion
    (Abramowitz and Stegun 26.7.5), right to four digits there.

    Raises:
        ValueError: df < 1.
    """
    if df < 1:
        raise ValueError(f"degrees of freedom are {df}; expected at least 1")
    if df <= len(_T_975):
        return _T_975[df - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def seeds_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean over runs; None for one run, or where a run has no value."""
    n = len(values)
    if n < 2 or not all(math.isfinite(value) for value in values):
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_975(n - 1) * math.sqrt(variance / n)
    return mean - half, mean + half


BIN_RATIO = 1.01
"""Latencies are binned by 1 %, far finer than any interval of them."""
_LOWEST_S = 1e-4
_BINS = 2400
"""From 0.1 ms to 2.6 million seconds; what lies outside falls into the outermost bins."""
LATENCIES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, eq=False)
class Blocks:
    """A run, or several runs on one load, cut into blocks of equal length by time of arrival."""

    requests: Ints
    """`(blocks,)` arrivals."""
    met: Ints
    """`(blocks,)` of them, those that met every objective."""
    span_s: Floats
    """`(blocks,)` seconds."""
    gpu_hours: Floats
    """`(blocks,)` GPU hours held."""
    replica_hours: Floats
    """`(blocks,)`."""
    latencies: Ints
    """`(3, blocks, bins)` finished requests by latency, in the order of LATENCIES."""

    def __len__(self) -> int:
        return len(self.requests)


def blocks_of(result: RunResult, slo: Slo, block_s: float) -> Blocks:
    """One run in blocks of about `block_s` seconds: the span divided into whole blocks."""
    requests, span_s = result.requests, result.span_s
    n = max(1, round(span_s / block_s))
    borders = np.linspace(0.0, span_s, n + 1)
    block = _block(requests.arrival_s, borders)
    finished = requests.finished
    many = finished & (requests.output_tokens > 1)
    latencies = np.stack(
        [
            _histogram(block[finished], requests.ttft_s[finished], n),
            _histogram(block[many], requests.tpot_s[many], n),
            _histogram(block[finished], requests.e2e_s[finished], n),
        ]
    )
    share = _cost_shares(result, borders)
    return Blocks(
        requests=np.bincount(block, minlength=n),
        met=np.bincount(block[requests.met(slo)], minlength=n),
        span_s=np.diff(borders),
        gpu_hours=share * result.gpu_hours,
        replica_hours=share * result.replica_hours,
        latencies=latencies,
    )


def pool(runs: Sequence[Blocks]) -> Blocks:
    """Several runs on one load as one: requests of all, cost and time per run."""
    return Blocks(
        requests=np.sum([run.requests for run in runs], axis=0),
        met=np.sum([run.met for run in runs], axis=0),
        span_s=np.sum([run.span_s for run in runs], axis=0),
        gpu_hours=np.mean([run.gpu_hours for run in runs], axis=0),
        replica_hours=np.mean([run.replica_hours for run in runs], axis=0),
        latencies=np.sum([run.latencies for run in runs], axis=0),
    )


def draw_blocks(blocks: int, resamples: int) -> Ints:
    """`(resamples, blocks)` how often each block is drawn; always the same draws."""
    rng = np.random.default_rng(0)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)


def bootstrap(blocks: Blocks, draws: Ints) -> dict[str, Floats]:
    """Metric -> `(resamples,)` its value in each draw."""
    # In floats, because only they have a fast matrix product; counts are exact up to 2^53.
    weights = draws.astype(np.float64)
    requests, met = weights @ blocks.requests, weights @ blocks.met
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "slo_attainment": met / requests,
            "goodput_qps": met / (weights @ blocks.span_s),
        }
    values["gpu_hours"] = weights @ blocks.gpu_hours
    values["replica_hours"] = weights @ blocks.replica_hours
    for name, histogram in zip(LATENCIES, blocks.latencies, strict=True):
        cumulated = np.cumsum(weights @ histogram.astype(np.float64), axis=1)
        for percent in (50, 99):
            values[f"{name}_p{percent}_s"] = _binned_percentile(cumulated, percent / 100)
    return values


def load_interval(values: Floats) -> Interval | None:
    """95 % percentile bounds of bootstrapped values; None where a draw has no value."""
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _block(at_s: Floats, borders: Floats) -> Ints:
    """Block of each moment; the last border belongs to the last block."""
    block = np.searchsorted(borders, at_s, side="right") - 1
    return np.clip(block, 0, len(borders) - 2).astype(np.int64)


def _cost_shares(result: RunResult, borders: Floats) -> Floats:
    """`(blocks,)` share of the cost held in each block, from the replicas seen at the ticks."""
    ticks, n = result.ticks, len(borders) - 1
    inside = ticks.at_s <= borders[-1]
    held = ticks.ready_replicas + ticks.starting_replicas + ticks.draining_replicas
    held_s = (held * ticks.length_s)[inside]
    middle_s = (ticks.at_s - ticks.length_s / 2)[inside]
    cost = np.bincount(_block(middle_s, borders), weights=held_s, minlength=n)
    total = cost.sum()
    return cost / total if total > 0 else np.full(n, 1 / n)


def _histogram(block: Ints, seconds: Floats, blocks: int) -> Ints:
    """`(blocks, bins)` counts."""
    floor = np.maximum(seconds, _LOWEST_S)
    bins = (np.log(floor / _LOWEST_S) / math.log(BIN_RATIO)).astype(np.int64)
    place = block * _BINS + np.minimum(bins, _BINS - 1)
    return np.bincount(place, minlength=blocks * _BINS).reshape(blocks, _BINS)


def _binned_percentile(cumulated: Floats, share: float) -> Floats:
    """`(rows,)` middle of the bin that holds the percentile; NaN in a row without values."""
    total = cumulated[:, -1]
    place = (cumulated >= np.maximum(share * total, 1)[:, None]).argmax(axis=1)
    middle = _LOWEST_S * BIN_RATIO ** (place + 0.5)
    return np.where(total > 0, middle, np.nan)
