"""Curves of cost against attainment: what of them is worth having, what lies between points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

P = TypeVar("P")

Pair = tuple[float, float]
"""(attainment, cost)."""


def envelope(points: Iterable[P], pair: Callable[[P], Pair]) -> list[P]:
    """The points worth having, cheapest first: no other one serves as well for less."""
    useful: list[P] = []
    best = float("-inf")
    for point in sorted(points, key=lambda point: (pair(point)[1], -pair(point)[0])):
        if pair(point)[0] > best:
            useful.append(point)
            best = pair(point)[0]
    return useful


def cost_at(points: Iterable[Pair], attainment: float) -> float | None:
    """Cost at which a curve reaches an attainment; None where it never does.

    Linear between the two nearest points of the envelope; the cheapest point's cost where all of
    them attain more.
    """
    useful = envelope(points, lambda point: point)
    for place, (served, cost) in enumerate(useful):
        if served >= attainment:
            if place == 0:
                return cost
            below, cheaper = useful[place - 1]
            return cheaper + (cost - cheaper) * (attainment - below) / (served - below)
    return None
