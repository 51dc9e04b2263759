"""The oracles' frontiers, and how far a policy is from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.curves import cost_at
from experiments.oracles.fleet import FleetRun
from policies.oracle import Plan


@dataclass(frozen=True, eq=False)
class OraclePoint:
    """One plan and its runs in the simulator."""

    price_gpu_s: float
    """GPU-seconds that the plan would pay to serve one more request in time."""
    plan: Plan
    runs: tuple[FleetRun, ...]
    """One per seed, in the order of the seeds."""

    @property
    def attainment(self) -> float:
        """Share of requests (0-1) that met every objective, mean over the seeds."""
        return float(np.mean([run.attainment for run in self.runs]))

    @property
    def gpu_hours(self) -> float:
        """Mean over the seeds."""
        return float(np.mean([run.gpu_hours for run in self.runs]))


@dataclass(frozen=True)
class OracleOutcome:
    """The cheapest plan found that reaches a goal."""

    goal: float
    """Share of requests (0-1)."""
    point: OraclePoint
    reached: bool
    """Whether it does; else it is the plan with the best attainment."""


@dataclass(frozen=True)
class Frontier:
    """Every plan tried of one oracle, all of them simulated."""

    points: tuple[OraclePoint, ...]
    """In the order of the price."""

    def reaching(self, goal: float) -> OracleOutcome:
        """The cheapest plan that reaches an attainment, else the one that comes closest."""
        good = [point for point in self.points if point.attainment >= goal]
        if good:
            return OracleOutcome(goal, min(good, key=lambda point: point.gpu_hours), True)
        return OracleOutcome(goal, max(self.points, key=lambda point: point.attainment), False)

    def cost_at(self, attainment: float) -> float | None:
        """GPU hours at an attainment, between two plans on the line between them; None beyond the
        best and below the worst plan."""
        if attainment < min(point.attainment for point in self.points):
            return None
        pairs = [(point.attainment, point.gpu_hours) for point in self.points]
        return cost_at(pairs, attainment)


@dataclass(frozen=True)
class Oracles:
    """What nobody can beat by much on one load.

    Both know the whole load. Their plans are feasible and simulated, so that each is an upper bound
    of what the best plan of its kind costs.
    """

    goals: tuple[float, ...]
    """Attainments (0-1) that plans were sought for, rising."""
    seeds: tuple[int, ...]
    tick_s: float
    """Seconds between two counts of a plan."""
    initial_replicas: int
    clairvoyant: Frontier
    """Oracle B: bound by cold starts, which it knows in distribution only, and by drains."""
    instant: Frontier
    """Oracle A: new replicas serve at once and at full speed; first seed only. No goal for a
    policy, but what a shorter cold start could save."""

    def outcomes(self, frontier: Frontier) -> tuple[OracleOutcome, ...]:
        """By goal."""
        return tuple(frontier.reaching(goal) for goal in self.goals)


def regret(attainment: float, gpu_hours: float, oracles: Oracles) -> float | None:
    """What a policy costs over what oracle B does at the same attainment: 1.1 is 10 % more.

    None where no plan attains as much, or all attain more.
    """
    least = oracles.clairvoyant.cost_at(attainment)
    return None if least is None or least <= 0 else gpu_hours / least


def oracles_summary(oracles: Oracles) -> dict[str, object]:
    """The part of `summary.json`: goals and frontiers, and the plans that reach the goals."""
    return {
        "initial_replicas": oracles.initial_replicas,
        "tick_s": oracles.tick_s,
        "clairvoyant": _frontier(oracles, oracles.clairvoyant),
        "instant": _frontier(oracles, oracles.instant),
    }


def _frontier(oracles: Oracles, frontier: Frontier) -> dict[str, object]:
    return {
        "goals": [
            {
                "goal": outcome.goal,
                "reached": outcome.reached,
                **_point(outcome.point),
                "replicas": _changes(outcome.point.plan.wanted, oracles.tick_s),
            }
            for outcome in oracles.outcomes(frontier)
        ],
        "points": [_point(point) for point in frontier.points],
    }


def _point(point: OraclePoint) -> dict[str, object]:
    return {
        "slo_attainment": point.attainment,
        "gpu_hours": point.gpu_hours,
        "price_gpu_s": point.price_gpu_s,
        "per_seed": [
            {"seed": run.seed, "slo_attainment": run.attainment, "gpu_hours": run.gpu_hours}
            for run in point.runs
        ],
    }


def _changes(wanted: Sequence[int], tick_s: float) -> list[tuple[float, int]]:
    """(s, replicas wanted from then on), where the count changes."""
    counts = np.asarray(wanted)
    ticks = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist()]
    return [(tick * tick_s, int(counts[tick])) for tick in ticks]
