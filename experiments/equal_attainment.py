"""What each policy would cost at the same attainment, read from its curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.comparison import Comparison
from experiments.curve import cost_at
from experiments.oracles import CLAIRVOYANT
from experiments.sweep import Point

LEVELS = (0.99, 0.995)
"""Attainments that such fleets promise; the comparison's own goal stands beside them."""


@dataclass(frozen=True)
class EqualCost:
    """GPU hours of one policy at one attainment."""

    gpu_hours: float | None
    """None where no setting that was tried gets there."""
    regret: float | None
    """Ratio to the oracle's cost at the same attainment, minus 1; None without both."""
    at_most: bool
    """The policy has no curve: it was run with one setting, which serves at least as well."""


def levels(comparison: Comparison) -> tuple[float, ...]:
    """Attainments to read the curves at, ascending."""
    return tuple(sorted({comparison.config.sweep.goal, *LEVELS}))


def equal_costs(comparison: Comparison) -> dict[str, tuple[EqualCost, ...]]:
    """Policy -> its cost at each of the levels."""
    least = [_cost(comparison, CLAIRVOYANT, level)[0] for level in levels(comparison)]
    table = {}
    for outcome in comparison.policies:
        costs = []
        for level, bound in zip(levels(comparison), least, strict=True):
            cost, at_most = _cost(comparison, outcome.name, level)
            regret = None
            if cost is not None and bound is not None and bound > 0:
                regret = cost / bound - 1
            costs.append(EqualCost(cost, regret, at_most))
        table[outcome.name] = tuple(costs)
    return table


def curve_of(comparison: Comparison, policy: str) -> Sequence[Point] | None:
    """Every setting of a policy that was tried on the compared load; None where it was one."""
    sweep = comparison.tuning.curves.get(policy)
    return None if sweep is None else sweep.points


def _cost(comparison: Comparison, policy: str, level: float) -> tuple[float | None, bool]:
    curve = curve_of(comparison, policy)
    if curve is not None:
        return cost_at(curve, level), False
    for outcome in comparison.policies:
        if outcome.name == policy and outcome.mean("slo_attainment") >= level:
            return outcome.mean("gpu_hours"), True
    return None, True
