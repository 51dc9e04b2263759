"""Ray Serve's default autoscaling as a table: the count, the factors, the delays.

What ray-project/ray answers at commit 00590c456b (`python/ray/serve/autoscaling_policy.py`).
"""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from policies import build_policy, empty_memory
from policies.ray_serve import RayServeConfig, RayServeRule
from policies.rule import RuleResult
from tests.policies.test_contract import KNOBS as FROM_ONE
from tests.policies.test_contract import observations
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation, ObservationArrays
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(0, 100))
REPLICAS = KNOBS.column("replicas")
TICK_S = 10.0
DEFAULT = RayServeConfig()
AT_ONCE = replace(DEFAULT, upscale_delay_s=0.0, downscale_delay_s=0.0)


def fleet(n: int | None, total: float | None, *, ready: int | None = -1) -> Observation:
    ready = n if ready == -1 else ready
    return Observation(
        at_s=0.0,
        window_s=TICK_S,
        settings=KnobSettings() if n is None else KnobSettings(replicas=n),
        in_flight=total,
        ready_replicas=None if ready is None else float(ready),
    )


def run(config: RayServeConfig, *seen: Observation) -> list[RuleResult]:
    rule = RayServeRule(config)
    memory, results = empty_memory(rule, 1), []
    for tick, now in enumerate(seen):
        arrays = ObservationArrays.of(KNOBS, replace(now, at_s=500.0 + TICK_S * tick))
        results.append(rule.decide(arrays, memory))
        memory = results[-1].memory
    return results


def asked(config: RayServeConfig, *seen: Observation) -> list[float]:
    return [float(result.settings[0, REPLICAS]) for result in run(config, *seen)]


# The count -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "n", "total", "replicas"),
    [
        pytest.param(AT_ONCE, 3, 12, 6, id="1"),
        pytest.param(AT_ONCE, 4, 5, 3, id="2 2.5 rounded up"),
        # Naive: ceil(4 - 0.75) is 4 for ever.
        pytest.param(replace(AT_ONCE, downscaling_factor=0.5), 4, 5, 3, id="3 stuck goes down by 1"),
        pytest.param(replace(AT_ONCE, upscaling_factor=0.5), 3, 12, 5, id="4 half of the way"),
        # Naive: a dead band, as HPA has one.
        pytest.param(AT_ONCE, 10, 20.1, 11, id="5 half a percent above is one more"),
        pytest.param(AT_ONCE, 10, 20, 10, id="5 on target"),
        pytest.param(AT_ONCE, 10, 19, 10, id="5 a part of a replica below"),
        pytest.param(AT_ONCE, 10, 18, 9, id="5 a whole one below"),
    ],
)  # fmt: skip
def test_open_requests_over_the_target_rounded_up(config, n, total, replicas):
    assert asked(config, fleet(n, total)) == [replicas]


def test_factors_count_from_ready_replicas_and_the_wait_from_those_in_force():
    half = replace(AT_ONCE, upscaling_factor=0.5)
    assert asked(half, fleet(6, 24, ready=3)) == [8]  # ceil(3 + 4.5), not ceil(6 + 3)
    # 6 asked and 6 in force agree, although 3 are ready: no wait begins.
    assert asked(DEFAULT, *[fleet(6, 12, ready=3)] * 8) == [6] * 8


def test_with_none_ready_the_first_step_comes_at_once():
    assert asked(DEFAULT, fleet(0, 3.0)) == [1]
    assert asked(replace(DEFAULT, upscaling_factor=2.5), fleet(0, 3.0)) == [3]
    assert asked(DEFAULT, fleet(0, 0.0)) == [0]
    assert asked(DEFAULT, fleet(7, 50.0, ready=0)) == [7]


# The delays ------------------------------------------------------------------------------------


def test_up_after_thirty_seconds_down_after_ten_minutes():
    assert asked(DEFAULT, *[fleet(3, 12.0)] * 4) == [3, 3, 3, 6]
    down = asked(DEFAULT, *[fleet(4, 5.0)] * 61)
    assert down == [4] * 60 + [3]


def test_what_is_applied_is_the_newest_count_not_the_first():
    loads = [12.0, 14.0, 16.0, 40.0]
    short = replace(DEFAULT, look_back_s=10.0)
    assert asked(short, *[fleet(3, load) for load in loads]) == [3, 3, 3, 20]


def test_one_tick_of_agreement_begins_the_wait_again():
    short = replace(DEFAULT, look_back_s=10.0)
    seen = [fleet(3, load) for load in (12, 12, 6, 12, 12, 12, 12)]
    assert asked(short, *seen) == [3, 3, 3, 3, 3, 3, 6]


def test_a_turn_begins_the_wait_again():
    short = replace(DEFAULT, look_back_s=10.0)
    seen = [fleet(3, load) for load in (12, 12, 2, 12, 12, 12, 12)]
    assert asked(short, *seen) == [3, 3, 3, 3, 3, 3, 6]


def test_a_count_that_was_followed_waits_anew_for_the_next_one():
    up = [fleet(3, 12.0)] * 4 + [fleet(6, 16.0)] * 5
    short = replace(DEFAULT, look_back_s=10.0)
    assert asked(short, *up) == [3, 3, 3, 6, 6, 6, 6, 8, 8]


def test_a_count_that_was_narrowed_or_not_followed_goes_on_to_be_asked_for():
    # Naive: another 30 s for the rest, ten minutes on the way down.
    assert asked(DEFAULT, *[fleet(3, 12.0)] * 4, fleet(5, 12.0), fleet(6, 12.0)) == [
        3,
        3,
        3,
        *[6] * 3,
    ]
    assert asked(DEFAULT, *[fleet(3, 12.0)] * 8) == [3, 3, 3, *[6] * 5]
    # Until it is less than what is there: that is another way, and waits.
    assert asked(DEFAULT, *[fleet(3, 12.0)] * 4, *[fleet(8, 12.0)] * 3)[-3:] == [8, 8, 8]


def test_zero_is_reached_only_from_one():
    assert asked(AT_ONCE, fleet(5, 0.0)) == [1]
    assert asked(AT_ONCE, fleet(1, 0.0)) == [0]


# What is counted -------------------------------------------------------------------------------


def test_the_load_is_the_mean_of_the_last_half_minute():
    last = run(AT_ONCE, *[fleet(3, load) for load in (900, 6, 12, 18)])[-1]
    assert last.need[0] == 6.0
    assert last.raw[0] == 6.0


def test_no_sample_counts_as_no_request():
    # Naive: hold. Ray has dropped the reports by then, and sums what is left.
    results = run(AT_ONCE, fleet(3, 12.0), *[fleet(3, None)] * 3)
    assert results[2].raw[0] == 6
    assert results[3].settings[0, REPLICAS] == 1
    assert (
        results[3].why(0)
        == "no sample for 30 s, which counts as 0 open requests, target 2 each: 0, at least 1 allowed"
    )


def test_an_unseen_fleet_is_left_alone():
    for now in (fleet(None, 12.0, ready=3), fleet(3, 12.0, ready=None)):
        result = run(AT_ONCE, now)[0]
        assert np.isnan(result.settings).all()
        assert np.isnan(result.need[0])


def test_an_unseen_fleet_does_not_end_the_wait():
    seen = [fleet(3, 12.0), fleet(None, 12.0, ready=3), fleet(3, 12.0), fleet(3, 12.0)]
    assert asked(DEFAULT, *seen)[-1] == 6


def test_the_range_of_the_knob_has_the_last_word():
    policy = build_policy("ray-serve", {"upscale_delay_s": 0}, FROM_ONE, tick_s=TICK_S)
    history = History(FROM_ONE)
    assert policy.propose(history.observed(fleet(3, 5000.0))).settings == {"replicas": 100.0}
    assert policy.propose(history.observed(fleet(1, 0.0))).settings == {"replicas": 1.0}
    assert policy.propose(history.observed(fleet(120, 0.0, ready=0))).settings == {
        "replicas": 100.0
    }


# Words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ([fleet(3, 12.0)] * 2, "12 open requests over 30 s, target 2 each: 6, held at 3 until it has lasted 30 s (10 s so far)"),
        ([fleet(3, 12.0)] * 4, "12 open requests over 30 s, target 2 each: 6"),
        ([fleet(6, 12.0)], "12 open requests over 30 s, target 2 each: 6"),
        ([fleet(3, 900.0)] * 4, "900 open requests over 30 s, target 2 each: 450, at most 100 allowed"),
        ([fleet(0, 3.0)], "3 open requests over 30 s, none ready: 1"),
        ([fleet(None, 3.0, ready=2)], "the replicas in force are not known"),
        ([fleet(3, 3.0, ready=None)], "ready replicas are not known"),
    ],
    ids=["waits", "applied", "agrees", "bound", "cold", "no n", "no ready"],
)  # fmt: skip
def test_it_tells_the_load_and_what_it_waits_for(seen, words):
    assert run(DEFAULT, *seen)[-1].why(0) == words


@given(now=observations)
@settings(max_examples=60, deadline=None)
def test_it_has_a_word_for_anything_it_may_see(now):
    policy = build_policy("ray-serve", {}, FROM_ONE, tick_s=TICK_S)
    said = policy.propose(History(FROM_ONE).observed(now)).why
    assert said
    assert "nan" not in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": -2}, "ray-serve: target is -2; expected above 0"),
        ({"upscale_delay_s": -1}, "ray-serve: upscale_delay_s is -1 s; expected 0 to 3,600"),
        ({"look_back_s": 0}, "ray-serve: look_back_s is 0 s; expected 1 to 3,600"),
        ({"downscaling_factor": 0}, "ray-serve: downscaling_factor is 0; expected above 0"),
        ({"min_replicas": 1}, "ray-serve: unknown option 'min_replicas'"),
    ],
)
def test_refuses_what_ray_cannot_be_told(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_policy("ray-serve", options, KNOBS, tick_s=TICK_S)
