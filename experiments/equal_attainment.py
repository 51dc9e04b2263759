"""What each policy would cost at the same attainment, read from its curve."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.comparison import Comparison, PolicyOutcome
from experiments.curve import envelope, sweep_cost_at
from experiments.sweep import Sweep
from experiments.workbench import STATIC, STATIC_BEST

LEVELS = (0.99, 0.995)
"""Attainments that such fleets promise; the comparison's own goal stands beside them."""


@dataclass(frozen=True)
class EqualCost:
    """GPU hours of one policy at one attainment."""

    gpu_hours: float | None
    """None where no setting that was tried gets there."""
    at_most: bool
    """The cheapest that was tried attains more than that."""


def levels(comparison: Comparison) -> tuple[float, ...]:
    """Attainments to read the curves at, ascending."""
    return tuple(sorted({comparison.config.sweep.goal, *LEVELS}))


def equal_costs(comparison: Comparison) -> dict[str, tuple[EqualCost, ...]]:
    """Policy -> its cost at each of the levels."""
    return {
        outcome.name: tuple(_cost(comparison, outcome, level) for level in levels(comparison))
        for outcome in comparison.policies
    }


def curve_of(comparison: Comparison, policy: str) -> Sweep | None:
    """Every setting of a policy that was tried on the compared load; None where it was one.

    Both fixed fleets have one curve: they differ in which of its points was chosen.
    """
    return comparison.tuning.curves.get(STATIC if policy == STATIC_BEST else policy)


def _cost(comparison: Comparison, outcome: PolicyOutcome, level: float) -> EqualCost:
    """By the policy's curve; where it was run with one setting, by that one."""
    curve = curve_of(comparison, outcome.name)
    if curve is not None:
        cheapest = envelope(curve.points)[0].figures.slo_attainment
        return EqualCost(sweep_cost_at(curve, level), cheapest > level)
    served = outcome.mean("slo_attainment")
    return EqualCost(outcome.mean("gpu_hours") if served >= level else None, served > level)
