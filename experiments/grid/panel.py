"""Many comparisons as one: a row per scenario first, then what holds over all of them.

Means over scenarios hide the one that burns, so the rows come first. What is said over all of them
is an interquartile mean with a stratified bootstrap (Agarwal et al., Deep Reinforcement Learning at
the Edge of the Statistical Precipice, NeurIPS 2021): seeds are drawn anew within each scenario. A
second interval draws whole scenarios, because other loads are a larger question than other draws.
Performance profiles are Dolan and More's (Benchmarking optimization software with performance
profiles, Mathematical Programming 91, 2002): a run that misses the goal never counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.curve import cost_at
from experiments.result import Floats
from experiments.statistics import Interval
from experiments.summary import Figures
from experiments.sweep import REPLICAS, Point

RESAMPLES = 2000
MIN_SCENARIOS = 5
"""With fewer scenarios, drawing them anew says nothing."""
RATIOS = np.geomspace(1.0, 3.0, 101)
"""Costs, in those of the cheapest, at which profiles are drawn."""


@dataclass(frozen=True)
class Case:
    """One scenario and the `summary.json` of its comparison."""

    label: str
    summary: Mapping[str, Any]

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(self.summary["policies"])

    def values(self, policy: str, figure: str) -> Floats:
        """`(seeds,)` one figure of each run; NaN where it has none."""
        runs = self.summary["policies"][policy]["per_seed"]
        return np.array([_number(run[figure]) for run in runs])


@dataclass(frozen=True)
class Aggregate:
    """One figure over all scenarios."""

    iqm: float
    """Interquartile mean over all runs."""
    ci95: Interval | None
    """Other draws of the same scenarios; None for one seed."""
    ci95_scenarios: Interval | None
    """Other scenarios like these; None for too few."""
    worst: str
    """Label of the scenario in which the policy does worst."""
    worst_value: float


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the middle half along the last axis; a quarter is cut off at either end, rounded
    down to whole values."""
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    cut = n // 4
    middle: NDArray[np.float64] = ordered[..., cut : n - cut].mean(axis=-1)
    return middle


def aggregate(
    runs: Mapping[str, Floats], *, worst: Callable[[Floats], int], resamples: int = RESAMPLES
) -> Aggregate:
    """One figure of one policy over all scenarios.

    Args:
        runs: label of the scenario -> `(seeds,)`; as many seeds in each.
        worst: from the means of the scenarios to the place of the worst.
    """
    table = np.stack(list(runs.values()))
    rng = np.random.default_rng(0)
    scenarios, seeds = table.shape
    ci95 = over_scenarios = None
    if seeds > 1:
        drawn = rng.integers(0, seeds, (resamples, scenarios, seeds))
        ci95 = _bounds(table[np.arange(scenarios)[:, None], drawn])
    if scenarios >= MIN_SCENARIOS:
        over_scenarios = _bounds(table[rng.integers(0, scenarios, (resamples, scenarios))])
    means = table.mean(axis=1)
    place = worst(means)
    return Aggregate(
        float(interquartile_mean(table.ravel())),
        ci95,
        over_scenarios,
        list(runs)[place],
        float(means[place]),
    )


def _bounds(drawn: NDArray[np.float64]) -> Interval | None:
    """95 % bounds of the interquartile mean over `(resamples, scenarios, seeds)`."""
    found = interquartile_mean(drawn.reshape(len(drawn), -1))
    if not np.isfinite(found).all():
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def relative_cost(case: Case, policy: str, baseline: str) -> Floats:
    """`(seeds,)` GPU hours over the baseline's of the same seed."""
    return case.values(policy, "gpu_hours") / case.values(baseline, "gpu_hours")


def cost_ratios(case: Case, policies: Sequence[str], goal: float) -> dict[str, Floats]:
    """Policy -> `(seeds,)` GPU hours over those of the cheapest policy that reaches the goal with
    that seed; infinite where the policy itself misses it. NaN where every policy does."""
    costs = {
        policy: np.where(
            case.values(policy, "slo_attainment") >= goal,
            case.values(policy, "gpu_hours"),
            math.inf,
        )
        for policy in policies
    }
    best = np.min(list(costs.values()), axis=0)
    best = np.where(np.isfinite(best), best, np.nan)
    return {policy: cost / best for policy, cost in costs.items()}


def performance_profile(ratios: Sequence[Floats], at: Floats = RATIOS) -> Floats:
    """`(len(at),)` share of the runs whose cost is within each ratio of the cheapest.

    Runs in which no policy reaches the goal are left out; NaN where none is left.
    """
    every = np.concatenate(ratios)
    known = every[~np.isnan(every)]
    if len(known) == 0:
        return np.full(len(at), np.nan)
    # A policy that is the cheapest has a ratio of exactly 1.
    return np.array([(known <= ratio).mean() for ratio in at])


def equal_attainment(case: Case, goal: float) -> dict[str, float]:
    """Policy -> GPU hours at which its curve in this scenario reaches an attainment; policies
    whose curve never does are left out."""
    found = {}
    for policy, curve in case.summary["tuning"]["curves"].items():
        points = [_point(point) for point in curve["points"]]
        cost = cost_at(points, goal, whole_fleets=curve["option"] == REPLICAS)
        if cost is not None:
            found[policy] = cost
    return found


def _point(point: Mapping[str, Any]) -> Point:
    """A point of a curve from `summary.json`; of its setting nothing is used."""
    figures = {each.name: point.get(each.name, math.nan) for each in fields(Figures)}
    return Point(math.nan, Figures(**figures))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
