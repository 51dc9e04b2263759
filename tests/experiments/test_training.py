"""What training takes from the sweep of its base rule."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from envs.reward import RewardWeights
from experiments.sweep import Point, Sweep
from experiments.training import miss_price
from tests.envs import worlds

TRACE = worlds.trace(3600.0)
HOURS = TRACE.last_arrival_s / 3600


def curve(replicas: list[float], missed: list[float]) -> Sweep:
    """A sweep whose points held so many replicas and missed such a share of requests."""
    figures = [
        SimpleNamespace(slo_attainment=1 - miss, replica_hours=held * HOURS)
        for held, miss in zip(replicas, missed, strict=True)
    ]
    points = tuple(Point(float(i), f) for i, f in enumerate(figures))  # type: ignore[arg-type]
    return Sweep("hpa", "target", "tokens/s", 0.99, points, points[0], True)


@pytest.mark.parametrize(("rate", "reference"), [(0.5, 10.0), (2.0, 4.0)])
def test_a_miss_costs_what_the_rule_pays_for_the_last_one_it_avoids(
    rate: float, reference: float
) -> None:
    held = np.linspace(8, 12, 6)
    missed = 0.02 * np.exp(-rate * (held - 9))
    # d replicas / d missed at half of the allowed 1 %, in reference fleets.
    expected = 1 / (rate * 0.005) / reference
    price = miss_price(curve(list(held), list(missed)), TRACE, reference)
    assert price == pytest.approx(expected, rel=1e-3)


def test_collapsed_fleets_and_perfect_ones_say_nothing_about_the_price() -> None:
    held, missed = [9.0, 10.0, 11.0], [0.03, 0.01, 0.004]
    price = miss_price(curve(held, missed), TRACE, 10.0)
    with_others = curve([2.0, 3.0, *held, 20.0], [0.9, 0.4, *missed, 0.0])
    assert miss_price(with_others, TRACE, 10.0) == price


@pytest.mark.parametrize(
    "sweep",
    [
        None,
        curve([9.0, 10.0], [0.02, 0.01]),
        curve([9.0, 10.0, 11.0], [0.01, 0.02, 0.03]),
    ],
    ids=["no sweep", "two points", "misses that rise with the cost"],
)
def test_without_a_usable_curve_the_default_holds(sweep: Sweep | None) -> None:
    assert miss_price(sweep, TRACE, 10.0) == RewardWeights.stability
