"""Cost at equal attainment: what a curve of points costs where it serves as well as another."""

from __future__ import annotations

from collections.abc import Iterable


def cost_at(points: Iterable[tuple[float, float]], attainment: float) -> float | None:
    """Cost at which a curve of (attainment, cost) reaches an attainment; None where it never does.

    Linear between the two nearest points of the lower envelope (no other point serves better for
    less); the cheapest point's cost where all of them attain more.
    """
    envelope: list[tuple[float, float]] = []
    for served, cost in sorted(points, key=lambda point: (point[1], -point[0])):
        if not envelope or served > envelope[-1][0]:
            envelope.append((served, cost))
    for place, (served, cost) in enumerate(envelope):
        if served >= attainment:
            if place == 0:
                return cost
            below, cheaper = envelope[place - 1]
            return cheaper + (cost - cheaper) * (attainment - below) / (served - below)
    return None
