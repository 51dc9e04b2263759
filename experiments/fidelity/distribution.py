"""How far the distributions of latency lie apart: ratios with block-bootstrap intervals.

Both sides serve the same requests (paired replay), so the same blocks are drawn for both, and what
the load does to both cancels. Non-overlapping blocks of time (Carlstein, Annals of Statistics
14(3), 1986), percentile bounds (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments.fidelity.runs import Latencies
from experiments.result import Floats, Ints
from experiments.statistics import Interval, draw_blocks, load_interval

STATISTICS: tuple[tuple[str, float | None], ...] = (
    ("mean", None),
    ("p50", 0.50),
    ("p90", 0.90),
    ("p95", 0.95),
    ("p99", 0.99),
)
"""Name and share of a statistic; None is the mean."""
BLOCKS = 40
"""Blocks of a run: each long beside a request, and many enough to draw from."""
RESAMPLES = 500
"""Draws of the bootstrap; their bounds move by less than the digits that are shown."""


@dataclass(frozen=True)
class Ratio:
    """One statistic of one latency, simulated over reference."""

    latency: str
    statistic: str
    reference_s: float
    simulated_s: float
    error: float
    """Relative, > 0: too slow."""
    ci95: Interval | None
    """Of the error, over blocks of the load."""


@dataclass(frozen=True)
class Distance:
    """Two runs of one load."""

    ratios: tuple[Ratio, ...]
    wasserstein: dict[str, float]
    """Latency -> Wasserstein-1 distance over the reference's median."""
    per_request: dict[str, float]
    """Latency -> mean absolute relative error of single requests; for information only."""

    def error(self, latency: str, statistic: str) -> float:
        """Relative error of one statistic."""
        for ratio in self.ratios:
            if (ratio.latency, ratio.statistic) == (latency, statistic):
                return ratio.error
        raise KeyError((latency, statistic))


def distance(reference: Latencies, simulated: Latencies, *, resamples: int = RESAMPLES) -> Distance:
    """How far two runs of the same requests lie apart.

    Args:
        resamples: draws of the bootstrap.
    """
    block = _blocks(reference.arrival_s)
    draws = draw_blocks(BLOCKS, resamples)
    ratios: list[Ratio] = []
    wasserstein: dict[str, float] = {}
    per_request: dict[str, float] = {}
    for name, true_s in reference.columns().items():
        own_s = simulated.columns()[name]
        known = np.isfinite(true_s) & np.isfinite(own_s)
        true_s, own_s, blocks = true_s[known], own_s[known], block[known]
        ratios.extend(_ratios(name, true_s, own_s, blocks, draws))
        apart_s = np.abs(np.sort(own_s) - np.sort(true_s)).mean()
        wasserstein[name] = float(apart_s / np.median(true_s))
        per_request[name] = float(np.abs(own_s / true_s - 1).mean())
    return Distance(tuple(ratios), wasserstein, per_request)


def _blocks(arrival_s: Floats) -> Ints:
    """`(requests,)` block of each request: equal spans of time."""
    share = arrival_s / max(float(arrival_s[-1]), 1e-9)
    return np.minimum((share * BLOCKS).astype(np.int64), BLOCKS - 1)


def _ratios(name: str, true_s: Floats, own_s: Floats, block: Ints, draws: Ints) -> Iterator[Ratio]:
    true, own = _resampled(true_s, block, draws), _resampled(own_s, block, draws)
    for statistic, share in STATISTICS:
        at_true, at_own = _statistic(true_s, share), _statistic(own_s, share)
        yield Ratio(
            latency=name,
            statistic=statistic,
            reference_s=at_true,
            simulated_s=at_own,
            error=at_own / at_true - 1,
            ci95=load_interval(own[statistic] / true[statistic] - 1),
        )


def _statistic(seconds: Floats, share: float | None) -> float:
    return float(seconds.mean() if share is None else np.quantile(seconds, share))


def _resampled(seconds: Floats, block: Ints, draws: Ints) -> dict[str, Floats]:
    """Statistic -> `(resamples,)` its value in each draw of blocks."""
    order = np.argsort(seconds, kind="stable")
    rising_s, block = seconds[order], block[order]
    found = {name: np.empty(len(draws)) for name, _ in STATISTICS}
    for number, counts in enumerate(draws):
        weights = np.cumsum(counts[block])
        for name, share in STATISTICS:
            if share is None:
                value = float(rising_s @ counts[block]) / weights[-1]
            else:
                value = rising_s[np.searchsorted(weights, share * weights[-1])]
            found[name][number] = value
    return found
