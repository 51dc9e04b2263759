"""One option of a rule, tried over its range: what each further GPU hour buys.

Every point is kept: together they are the curve of cost against attainment that a policy has to
beat. So the count of static is found, the target of the rule that training begins from, and the
curve of any rule over its dial. Of the settings that reach the goal the cheapest is taken. All
points run one seed, which is none of those that policies are compared on; the points of a round do
not depend on the number of processes, so neither does the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.config import SweepConfig
from experiments.readable import brief, figure, percent
from experiments.summary import Figures
from policies import Parameter

REPLICAS = "replicas"
"""Option of static: a whole fleet, of which there is nothing in between."""
SEED = 0
"""Seed of every point; comparisons start at FIRST_SEED."""
FIRST_SEED = 1

AT_END = "at the end of the range that was tried"
BELOW_GOAL = "below the goal"

Try = Callable[[Sequence[float]], Sequence[Figures]]
"""Runs the policy once with each of these values, in this order."""


@dataclass(frozen=True)
class Point:
    """One setting of a rule, tried once."""

    value: float
    figures: Figures


@dataclass(frozen=True)
class Sweep:
    """What was tried for one rule, and what was taken."""

    policy: str
    option: str
    """Option of the policy that was swept."""
    unit: str
    goal: float
    points: tuple[Point, ...]
    """In the order of the value."""
    chosen: Point
    reached: bool
    """Whether the chosen point reaches the goal; else it is the one with the best attainment."""
    trace: str = ""
    """Name of the trace that it was tried on; empty where there is but one."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of the setting, in words."""
        return (AT_END,) if self.at_end else ()

    @property
    def at_end(self) -> bool:
        """Whether the chosen value lies at an end of what was tried; below one replica there is
        nothing to try."""
        return at_end(self.chosen.value, [point.value for point in self.points]) and not (
            self.option == "replicas" and self.chosen.value == 1
        )

    def setting(self, value: float) -> str:
        """A value in words: `static with 12 replicas`, `hpa with target 696 output tokens/s`.

        The option is named unless its unit is its name; a unit is, where it is a word.
        """
        if self.option == self.unit:
            return f"{self.policy} with {brief(value)} {self.unit.removesuffix('s' * (value == 1))}"
        unit = f" {self.unit}" if self.unit not in ("", "0-1") else ""
        return f"{self.policy} with {self.option} {brief(value)}{unit}"

    @property
    def sentence(self) -> str:
        """What was chosen and why, in words."""
        figures, goal = self.chosen.figures, percent(self.goal)
        reaches = (
            f"{figure('slo_attainment', figures.slo_attainment)} for "
            f"{figure('gpu_hours', figures.gpu_hours)} GPU hours"
        )
        tried = f"{len(self.points)} tried" + (f" on {self.trace}" if self.trace else "")
        end = f" ({'; '.join(self.remarks)})" if self.remarks else ""
        if self.reached:
            return (
                f"{self.setting(self.chosen.value)}{end} is the cheapest of {tried} "
                f"that meets the objectives for {goal} of the requests: {reaches}"
            )
        return (
            f"None of {tried} meets the objectives for {goal} of the requests; "
            f"{self.setting(self.chosen.value)}{end} comes closest: {reaches}, {BELOW_GOAL}"
        )


def sweep_static(attempt: Try, config: SweepConfig, max_replicas: int) -> Sweep:
    """The cheapest replica count that reaches the goal.

    More replicas serve better, so the least count that does is narrowed down by quarters of the
    remaining range; then its neighbours are tried, which shows the knee and guards the choice
    against a single lucky run.
    """
    tried = _Tried(attempt)
    if config.static_counts:
        tried.all(config.static_counts)
    else:
        low, high = 0, max_replicas
        while high - low > 1:
            step = (high - low) / 4
            tried.all(sorted({max(low + 1, round(low + step * quarter)) for quarter in (1, 2, 3)}))
            low, high = _bracket(tried.points, config.goal, max_replicas)
        tried.all([count for count in range(high - 2, high + 3) if 1 <= count <= max_replicas])
    return _choose("static", REPLICAS, "replicas", tried.points, config.goal)


def _bracket(points: Sequence[Point], goal: float, most: int) -> tuple[int, int]:
    """The largest count below which all fail, and the least that may do."""
    good = [int(point.value) for point in points if point.figures.slo_attainment >= goal]
    high = min(good, default=most)
    bad = [int(point.value) for point in points if point.value < high]
    return max(bad, default=0), high


GRID = 1.25
"""Ratio of neighbouring targets: one replica more or less in a fleet of four to five."""
GRID_BELOW, GRID_ABOVE = 3, 5
"""Steps of the grid to either side of the load of one replica of the best static fleet. That fleet
is sized for the day's peak, so its mean load lies below what a replica can carry at peak."""
EXTENSIONS = 3
"""Most times that the grid grows by three steps while its best point lies at its edge."""


def sweep_hpa(attempt: Try, config: SweepConfig, around: float) -> Sweep:
    """The target of hpa that reaches the goal at the least cost.

    Args:
        attempt: runs hpa with targets in output tokens/s per replica.
        around: where to begin: output tokens/s of one replica of the best static fleet.
    """
    tried = _Tried(attempt)
    if config.hpa_targets:
        tried.all(config.hpa_targets)
        return _choose("hpa", "target", _HPA_UNIT, tried.points, config.goal)
    first, last = -GRID_BELOW, GRID_ABOVE
    tried.all([rounded(around * GRID**step) for step in range(first, last + 1)])
    for _ in range(EXTENSIONS):
        best = _choose("hpa", "target", _HPA_UNIT, tried.points, config.goal)
        if not best.reached:
            steps, first = range(first - 3, first), first - 3
        elif best.chosen.value == tried.points[-1].value:
            steps, last = range(last + 1, last + 4), last + 3
        else:
            break
        tried.all([rounded(around * GRID**step) for step in steps])
    best = _choose("hpa", "target", _HPA_UNIT, tried.points, config.goal)
    beyond = [point.value for point in tried.points if point.value > best.chosen.value]
    if best.reached and beyond:
        step = (beyond[0] / best.chosen.value) ** 0.25
        tried.all([rounded(best.chosen.value * step**quarter) for quarter in (1, 2, 3)])
    return _choose("hpa", "target", _HPA_UNIT, tried.points, config.goal)


_HPA_UNIT = "output tokens/s per replica"


CURVE = 3
"""Points of a curve to either side of the tuned value."""


def curve_values(dial: Parameter, tuned: float) -> list[float]:
    """Values of a rule's dial to try around the tuned one, which is among them, in order.

    They lie close together near it, where costs are compared, and reach to both ends of the range,
    where the rule wastes or fails; where it is an end itself, all lie on the other side.
    """
    ends = [end for end in (min(dial.low, tuned), max(dial.high, tuned)) if end != tuned]
    steps = 2 * CURVE // max(len(ends), 1)
    values = {tuned}
    for end in ends:
        for step in range(1, steps + 1):
            value = towards(tuned, end, (step / steps) ** 2, dial.log)
            shown = float(round(value)) if dial.whole else rounded(value)
            values.add(min(max(shown, min(end, tuned)), max(end, tuned)))
    return sorted(values)


def at_end(chosen: float, tried: Sequence[float]) -> bool:
    """Whether a value is the least or the greatest of several that were tried."""
    return min(tried) < max(tried) and chosen in (min(tried), max(tried))


def towards(start: float, end: float, share: float, log: bool) -> float:
    """The value at a share (0-1) of the way, by ratio where that is what counts."""
    if log:
        return start * float((end / start) ** share)
    return start + (end - start) * share


def curve_of(policy: str, dial: Parameter, points: Sequence[Point], goal: float) -> Sweep:
    """The curve of a rule over its dial, points in the order of the value."""
    return _choose(policy, dial.name, dial.unit, points, goal)


class _Tried:
    """Points tried so far; a value is never tried twice."""

    def __init__(self, attempt: Try) -> None:
        self._attempt = attempt
        self._found: dict[float, Figures] = {}

    def all(self, values: Sequence[float]) -> None:
        new = [value for value in dict.fromkeys(values) if value not in self._found]
        self._found.update(zip(new, self._attempt(new), strict=True))

    @property
    def points(self) -> list[Point]:
        return [Point(value, self._found[value]) for value in sorted(self._found)]


def _choose(policy: str, option: str, unit: str, points: Sequence[Point], goal: float) -> Sweep:
    """The cheapest point that reaches the goal, else the one with the best attainment.

    Of equal ones the better served, then the smaller value.
    """
    good = [point for point in points if point.figures.slo_attainment >= goal]
    if good:
        chosen = min(good, key=lambda p: (p.figures.gpu_hours, -p.figures.slo_attainment))
    else:
        chosen = min(points, key=lambda p: (-p.figures.slo_attainment, p.figures.gpu_hours))
    return Sweep(policy, option, unit, goal, tuple(points), chosen, bool(good))


def rounded(value: float) -> float:
    """To three digits: what a person would write into a file."""
    if value == 0:
        return 0.0
    return round(value, 2 - math.floor(math.log10(abs(value))))
