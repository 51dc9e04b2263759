"""What every guardrail must do, over the registries: a new one is covered by its line there."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.core.decision import Reason, Tick
from tuner.core.observation import FIELDS, ObservationArrays, ReplicaArrays
from tuner.guardrails import LIMITS, TRIPS, default_guardrails
from tuner.knobs import knob_space

KNOBS = knob_space()


def tick(n: int, fill: float) -> Tick:
    """n targets whose every number is `fill`."""
    shape = (n, len(KNOBS.specs))
    return Tick(
        now=ObservationArrays(
            knobs=KNOBS,
            at_s=np.zeros(n),
            age_s=np.full(n, fill),
            values=np.full((n, len(FIELDS)), fill),
            settings=np.full(shape, fill),
            replicas=ReplicaArrays.of(()),
        ),
        proposed=np.full(shape, fill),
        fault=np.full(n, Reason.PolicyRaised, dtype=np.int64),
        fault_detail=("RuntimeError: boom",) * n,
    )


@pytest.mark.parametrize("fill", [np.nan, 0.0, 1e9], ids=["missing", "zero", "huge"])
@pytest.mark.parametrize("name", TRIPS)
def test_trip_answers_a_known_reason_for_each_target(name, fill):
    trip = TRIPS[name]()
    codes = trip.check(tick(3, fill))
    assert codes.shape == (3,)
    for row, code in enumerate(codes):
        if code:
            assert trip.explain(Reason(code), tick(3, fill), row)
    assert trip.name == name


@pytest.mark.parametrize("fill", [np.nan, 0.0, 1e9], ids=["missing", "zero", "huge"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("name", LIMITS)
def test_limit_gives_an_interval_for_each_knob(name, fallback, fill):
    limit = LIMITS[name]()
    low, high = limit.interval(tick(3, fill), np.full(3, fallback))
    assert low.shape == high.shape == (3, len(KNOBS.specs))
    assert not (low > high).any()
    assert limit.explain(tick(3, 5.0), 0, 0, 9.0, 7.0)
    assert limit.name == name


def test_defaults_hold_every_guardrail_once():
    guardrails = default_guardrails()
    assert [trip.name for trip in guardrails.trips] == list(TRIPS)
    assert [limit.name for limit in guardrails.limits] == list(LIMITS)
