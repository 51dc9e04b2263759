"""What a curve of cost against attainment says between and beside its points."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.sweep import REPLICAS, Point, Sweep


def cost_at(
    points: Sequence[Point], attainment: float, *, whole_fleets: bool = False
) -> float | None:
    """GPU hours at which a curve reaches an attainment; None where it never does.

    Linear between the two nearest points of the `envelope`; the cheapest point's cost where every
    point attains more.

    Args:
        points: the curve.
        attainment: share of requests (0-1) that meet every objective.
        whole_fleets: each point is a fixed count of replicas, and between two of them there is
            none: the cost is that of the cheapest point that attains as much.
    """
    useful = [(p.figures.slo_attainment, p.figures.gpu_hours) for p in envelope(points)]
    for place, (served, cost) in enumerate(useful):
        if served >= attainment:
            if place == 0 or whole_fleets:
                return cost
            below, cheaper = useful[place - 1]
            return cheaper + (cost - cheaper) * (attainment - below) / (served - below)
    return None


def sweep_cost_at(sweep: Sweep, attainment: float) -> float | None:
    """GPU hours at which a rule reaches an attainment, see `cost_at`."""
    return cost_at(sweep.points, attainment, whole_fleets=sweep.option == REPLICAS)


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points worth having, cheapest first: no other one serves as well for less."""
    useful: list[Point] = []
    for point in sorted(points, key=lambda p: (p.figures.gpu_hours, -p.figures.slo_attainment)):
        if not useful or point.figures.slo_attainment > useful[-1].figures.slo_attainment:
            useful.append(point)
    return useful
