"""The oracles' frontiers, and how far a policy is from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from experiments.curve import cost_at
from experiments.digest import RunDigest
from experiments.oracles.runner import PlannedFleet
from experiments.summary import Figures
from experiments.sweep import Point, Sweep
from policies import OptionValue
from policies.oracle import Plan

CLAIRVOYANT = "oracle-b"
"""Knows the load, and is bound by cold starts, which it knows in distribution only, and drains."""
INSTANT = "oracle-a"
"""The same with replicas that serve at once and at full speed: what a shorter cold start could
save, and no goal for a policy."""


@dataclass(frozen=True, eq=False)
class OraclePoint:
    """One plan and its runs in the simulator."""

    price_gpu_s: float
    """GPU-seconds that the plan would pay to serve one more request in time."""
    plan: Plan
    runs: tuple[RunDigest, ...]
    """One per seed, in the order of the seeds; of oracle A the first seed only."""

    @property
    def figures(self) -> Figures:
        """Means over the seeds."""
        rows = [asdict(run.figures) for run in self.runs]
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        # The mean of counts is no count, and Figures calls them whole.
        return Figures(**means)  # type: ignore[arg-type]

    @property
    def attainment(self) -> float:
        """Share of requests (0-1) that met every objective, mean over the seeds."""
        return self.figures.slo_attainment

    @property
    def gpu_hours(self) -> float:
        """Mean over the seeds."""
        return self.figures.gpu_hours


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

    def curve(self, name: str, goal: float) -> Sweep:
        """The same as what a swept rule shows: points, and the one for a goal."""
        points = tuple(Point(point.price_gpu_s, point.figures) for point in self.points)
        found = self.reaching(goal)
        chosen = points[self.points.index(found.point)]
        unit = "GPU-seconds per request in time"
        return Sweep(name, "price_gpu_s", unit, goal, points, chosen, found.reached)


@dataclass(frozen=True)
class Oracles:
    """What nobody can beat by much on one load.

    Both know the whole load. Their plans are feasible and simulated, so that each is an upper bound
    of what the best plan of its kind costs.
    """

    goals: tuple[float, ...]
    """Attainments (0-1) that plans were sought for, rising."""
    goal: float
    """The one that policies are tuned for."""
    seeds: tuple[int, ...]
    tick_s: float
    """Seconds between two counts of a plan."""
    frontiers: Mapping[str, Frontier]
    """INSTANT and CLAIRVOYANT -> its plans."""

    def outcomes(self, name: str) -> tuple[OracleOutcome, ...]:
        """Of one oracle, by goal."""
        return tuple(self.frontiers[name].reaching(goal) for goal in self.goals)

    def curves(self) -> dict[str, Sweep]:
        """Oracle -> cost against attainment."""
        return {name: own.curve(name, self.goal) for name, own in self.frontiers.items()}

    def plans(self) -> dict[str, PlannedFleet]:
        """Oracle -> its plan for the goal that policies are tuned for."""
        points = {name: own.reaching(self.goal).point for name, own in self.frontiers.items()}
        return {
            name: PlannedFleet(point.plan.wanted, name == INSTANT, point.price_gpu_s)
            for name, point in points.items()
        }

    def options(self) -> dict[str, dict[str, OptionValue]]:
        """Oracle -> options of its job, which say which plan it is."""
        return {name: plan.options for name, plan in self.plans().items()}


def regret(attainment: float, gpu_hours: float, oracles: Oracles) -> float | None:
    """What a policy costs over what oracle B does at the same attainment: 1.1 is 10 % more.

    Between two plans the line between them counts. None where no plan attains as much, or all
    attain more.
    """
    curve = oracles.curves()[CLAIRVOYANT].points
    if attainment < min(point.figures.slo_attainment for point in curve):
        return None
    least = cost_at(curve, attainment)
    return None if least is None or least <= 0 else gpu_hours / least


def oracles_summary(oracles: Oracles) -> dict[str, object]:
    """The part of `summary.json`: each oracle's plans for the goals, and its frontier."""
    return {
        name: {
            "goals": [
                {
                    "goal": outcome.goal,
                    "reached": outcome.reached,
                    **_point(outcome.point),
                    "replicas": _changes(outcome.point.plan, oracles.tick_s),
                }
                for outcome in oracles.outcomes(name)
            ],
            "points": [_point(point) for point in frontier.points],
        }
        for name, frontier in oracles.frontiers.items()
    }


def _point(point: OraclePoint) -> dict[str, object]:
    return {
        "slo_attainment": point.attainment,
        "gpu_hours": point.gpu_hours,
        "price_gpu_s": point.price_gpu_s,
        "per_seed": [
            {
                "seed": run.seed,
                "slo_attainment": run.figures.slo_attainment,
                "gpu_hours": run.figures.gpu_hours,
            }
            for run in point.runs
        ],
    }


def _changes(plan: Plan, tick_s: float) -> list[tuple[float, int]]:
    """(s, replicas wanted from then on), where the count changes."""
    ticks = [0, *(np.flatnonzero(np.diff(plan.wanted)) + 1).tolist()]
    return [(tick * tick_s, int(plan.wanted[tick])) for tick in ticks]
