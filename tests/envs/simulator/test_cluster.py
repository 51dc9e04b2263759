"""The simulated cluster's two views of one look: an observation, and columns."""

from __future__ import annotations

import copy
from dataclasses import astuple, replace

import numpy as np
import pytest

from envs.config import ScrapeConfig
from envs.simulator.cluster import SimulatedCluster
from tests.envs import worlds
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Source
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation, ObservationArrays

KNOBS = worlds.knobs()
WANTED = (4, 4, 1, 6, 6, 2, 5, 5)


@pytest.fixture(scope="module")
def looks() -> list[tuple[Observation, ObservationArrays]]:
    """Looks at a fleet that grows and shrinks, so that it has gaps among its slots, each with the
    columns that a policy would have been given then."""
    clock = VirtualClock(worlds.TICK_S)
    cluster = SimulatedCluster(
        worlds.trace(),
        worlds.PROFILE,
        KNOBS,
        clock,
        initial=KnobSettings(replicas=3),
        seed=2,
        scrape=ScrapeConfig(outage=0.2),
    )
    seen = []
    for wanted in WANTED * 4:
        now = cluster.observe()
        seen.append((now, ObservationArrays.of(KNOBS, now)))
        target = KnobSettings(replicas=wanted)
        cluster.apply(Decision(now.at_s, None, None, now.settings, target, Source.POLICY))
        clock.sleep_until(now.at_s + worlds.TICK_S)
    return seen


def test_the_columns_are_those_that_the_observation_itself_gives(looks):
    for now, arrays in looks:
        made = ObservationArrays.of(KNOBS, replace(now))
        assert made is not arrays
        assert arrays.settings.tolist() == made.settings.tolist()
        for one, other in (
            (arrays.at_s, made.at_s),
            (arrays.age_s, made.age_s),
            (arrays.values, made.values),
            *zip(vars(arrays.replicas).values(), vars(made.replicas).values(), strict=True),
        ):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_columns_are_read_only(looks):
    _, arrays = looks[-1]
    with pytest.raises(ValueError, match="read-only"):
        arrays.values[0, 0] = 1.0


def test_replicas_are_read_like_a_tuple(looks):
    for now, _ in looks:
        same = tuple(now.replicas)
        assert now.replicas == same
        assert same == now.replicas
        assert now.replicas != (*same, same[0])
        assert len(now.replicas) == len(same)
        assert now.replicas[-1] == same[-1]
        assert now.replicas[1:] == same[1:]
        assert repr(now.replicas) == repr(same)
        assert copy.deepcopy(now) == now
        assert Observation.from_json(now.to_json()) == now


def test_replicas_keep_the_names_of_their_slots(looks):
    names = [[replica.name for replica in now.replicas] for now, _ in looks]
    assert names[0] == ["replica-0", "replica-1", "replica-2"]
    gone = [one for one in names if one != [f"replica-{place}" for place in range(len(one))]]
    assert gone, "no look found a free slot among taken ones"


def test_a_look_without_an_answer_has_replicas_without_numbers(looks):
    silent = [now for now, _ in looks if now.age_s is None]
    assert silent
    for now in silent:
        assert now.qps is None
        assert all(set(astuple(replica)[3:]) == {None} for replica in now.replicas)


def test_replicas_are_billed_up_to_the_last_arrival_however_often_one_looks():
    clock = VirtualClock(worlds.TICK_S)
    load = worlds.trace(seconds=60.0)
    end_s = load.last_arrival_s
    cluster = SimulatedCluster(
        load,
        worlds.PROFILE,
        KNOBS,
        clock,
        initial=KnobSettings(replicas=2),
        seed=2,
        scrape=ScrapeConfig(outage=0.5),
    )
    billed_s = {15.0: 30.0, 45.0: 60.0, end_s + 15.0: 2 * (end_s - 45.0), 600.0: 0.0}
    for at_s, expected_s in billed_s.items():
        clock.sleep_until(at_s)
        assert cluster.observe().at_s == at_s
        assert cluster.billed_s == pytest.approx(expected_s)
        assert cluster.observe().at_s == at_s
        assert cluster.billed_s == 0.0
