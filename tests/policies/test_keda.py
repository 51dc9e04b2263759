"""KEDA's rules as a table: waking, sleeping, what an answer counts as, the fallback.

What kedacore/keda answers at commit 8b4f083ca8 (`controllers/keda/hpa.go`,
`pkg/fallback/fallback.go`, `pkg/scaling/executor/scale_scaledobjects.go`,
`pkg/scalers/prometheus_scaler.go`), and the HPA of Kubernetes 1.36.2 behind it.
"""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from policies import build_policy, empty_memory
from policies.keda import KedaRule
from policies.keda_spec import Fallback, FallbackBehavior, KedaConfig
from policies.rule import RuleResult
from tests.policies.test_contract import observations
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation, ObservationArrays
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(0, 100))
REPLICAS = KNOBS.column("replicas")
T20 = KedaConfig(threshold=20.0, metric="in_flight", downscale_stabilization_s=0.0)
F6 = replace(T20, fallback=Fallback(6, failures=3))


def fleet(
    n: int | None, query: float | None, *, ready: int | None = None, at_s: float = 0.0
) -> Observation:
    """n replicas that exist, and what the query answers."""
    return Observation(
        at_s=at_s,
        window_s=15.0,
        age_s=1.0,
        settings=KnobSettings() if n is None else KnobSettings(replicas=n),
        in_flight=query,
        status_replicas=None if n is None else float(n),
        ready_replicas=None if n is None else float(n if ready is None else ready),
    )


def unread(n: int, *, ready: int | None = None) -> Observation:
    """Prometheus does not answer; Kubernetes does."""
    return replace(fleet(n, None, ready=ready), age_s=None)


def run(config: KedaConfig, *observations: Observation) -> RuleResult:
    """The last answer of a run, one tick every 15 s unless the observations say when."""
    rule = KedaRule(config)
    memory = empty_memory(rule, 1)
    for tick, now in enumerate(observations):
        seen = now if now.at_s else replace(now, at_s=15.0 * tick)
        result = rule.decide(ObservationArrays.of(KNOBS, seen), memory)
        memory = result.memory
    return result


def asked(config: KedaConfig, *observations: Observation) -> float:
    return float(run(config, *observations).settings[0, REPLICAS])


# The trigger and the HPA behind it ------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "query", "replicas"),
    [
        pytest.param(4, 130.0, 7, id="1 130 / 80 is 1.625, up from 6.5"),
        pytest.param(4, 86.0, 4, id="the HPA's tolerance"),
        # Without behavior one step goes to 2n or 4, whichever is more: the older path of HPA.
        pytest.param(4, 1000.0, 8, id="no behavior, so at most double"),
        pytest.param(1, 1000.0, 4, id="no behavior, so at most 4 from 1"),
    ],
)
def test_the_hpa_behind_it_decides_between_one_and_many(n, query, replicas):
    assert asked(T20, fleet(n, query)) == replicas


@pytest.mark.parametrize(
    ("n", "gauge", "replicas"),
    [(10, 11, 10), (10, 12, 12), (9, 10, 10), (10, 9, 10), (10, 8, 8), (20, 22, 20), (20, 23, 23)],
)
def test_10_a_gauge_of_wanted_replicas_passes_through_the_tolerance(n, gauge, replicas):
    assert asked(replace(T20, threshold=1.0), fleet(n, float(gauge))) == replicas


@pytest.mark.parametrize(
    ("activation", "query", "active"),
    [
        pytest.param(0.0, 0.0, False, id="2 zero is not above zero"),
        pytest.param(0.0, 1.0, True, id="2 one is"),
        pytest.param(5.0, 5.0, False, id="2 at the threshold is not above it"),
    ],
)
def test_it_wakes_only_above_the_activation_threshold(activation, query, active):
    config = replace(T20, activation=activation)
    answer = asked(config, fleet(0, query))
    assert answer == 1 if active else np.isnan(answer)


@pytest.mark.parametrize(("least", "replicas"), [(0, 1), (3, 3)], ids=["3 from 0", "3 from min"])
def test_it_wakes_to_the_fewest_replicas_and_at_least_one(least, replicas):
    assert asked(replace(T20, min_replicas=least), fleet(0, 500.0)) == replicas


def test_someone_s_zero_is_lifted_to_the_fewest_replicas_without_any_load():
    # Naive: a plain HPA leaves a 0 set by hand alone for ever.
    assert asked(replace(T20, min_replicas=3), fleet(0, 0.0)) == 3
    assert asked(replace(T20, min_replicas=3), fleet(2, 0.0)) == 3


# Sleeping -------------------------------------------------------------------------------------


def quiet_for(seconds: float, config: KedaConfig = T20, n: int = 4) -> float:
    """What KEDA asks for so long after it last looked and saw the trigger active."""
    return asked(config, fleet(n, 20.0, at_s=1000.0), fleet(n, 0.0, at_s=1000.0 + seconds))


@pytest.mark.parametrize(
    ("seconds", "replicas"),
    [
        # 4, or what the HPA itself makes of no load: its minimum of 1.
        pytest.param(299.0, 1, id="4 the cool-down holds"),
        pytest.param(301.0, 0, id="4 it is over"),
        # Looks lie a little more than their interval apart: an age of exactly 300 s does not exist.
        pytest.param(300.0, 0, id="exactly over is over"),
    ],
)
def test_it_sleeps_once_the_cool_down_is_over(seconds, replicas):
    assert quiet_for(seconds) == replicas


def test_it_never_sleeps_with_a_minimum_unless_idle():
    assert quiet_for(1000.0, replace(T20, min_replicas=2)) == 2
    assert quiet_for(1000.0, replace(T20, min_replicas=2, idle=True)) == 0


def test_an_idle_fleet_stays_at_zero_and_wakes_to_its_minimum():
    idle = replace(T20, min_replicas=3, idle=True)
    assert np.isnan(asked(idle, fleet(0, 0.0)))
    assert asked(idle, fleet(0, 1.0)) == 3
    assert asked(idle, fleet(2, 100.0)) == 3


def test_a_fleet_never_seen_active_sleeps_without_a_cool_down():
    # Naive: 300 s from the first look. KEDA takes it for a fleet that others scaled.
    assert asked(T20, fleet(4, 0.0)) == 0


def test_keda_looks_every_polling_interval_while_the_hpa_looks_at_every_sync():
    asleep = fleet(0, 0.0, at_s=1000.0)
    assert np.isnan(asked(T20, asleep, fleet(0, 50.0, at_s=1015.0)))
    assert asked(T20, asleep, fleet(0, 50.0, at_s=1030.0)) == 1
    busy = fleet(4, 80.0, at_s=1000.0)
    assert asked(T20, busy, fleet(4, 130.0, at_s=1015.0)) == 7


def test_what_it_saw_active_between_two_looks_does_not_count():
    looked = fleet(4, 20.0, at_s=1000.0)
    between = fleet(4, 20.0, at_s=1015.0)
    assert asked(T20, looked, between, fleet(4, 0.0, at_s=1300.0)) == 0


# Missing data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [None, float("inf"), float("nan")], ids=["empty", "inf", "nan"])
def test_what_is_no_number_counts_as_no_load(query):
    now = fleet(4, query)
    active = fleet(4, 80.0)
    assert asked(T20, active, now) == 1  # scaled down by a metric that vanished
    assert asked(replace(T20, ignore_null=False), active, now) == pytest.approx(np.nan, nan_ok=True)


def test_a_failed_query_is_not_no_load():
    active = fleet(4, 80.0)
    assert np.isnan(asked(T20, active, unread(4)))
    assert np.isnan(asked(T20, *[active, *[unread(4)] * 40]))  # and it does not sleep


def test_a_query_of_two_parts_is_empty_when_one_of_them_is():
    config = replace(T20, metric="running+queue_depth")
    now = replace(fleet(4, None), running=100.0, queue_depth=30.0)
    assert asked(config, now) == 7
    half = run(config, now, replace(now, queue_depth=None))
    assert half.settings[0, REPLICAS] == 1
    assert "no value for running + queue_depth, which counts as 0" in half.why(0)


# Fallback -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "replicas"),
    [(3, None), (4, 6), (5, 6)],
    ids=["5 the error passes", "5 one more", "and on"],
)
def test_so_many_failures_in_a_row_are_passed_on_then_the_fallback_stands_in(failures, replicas):
    answer = asked(F6, fleet(4, 80.0), *[unread(4)] * failures)
    assert np.isnan(answer) if replicas is None else answer == replicas


def test_an_answer_between_begins_the_count_again():
    busy = fleet(4, 80.0)
    assert np.isnan(asked(F6, busy, *[unread(4)] * 3, busy, *[unread(4)] * 3))


FIXED = KedaConfig(5.0, "in_flight", "Value", fallback=Fallback(10, 0))


@pytest.mark.parametrize(
    ("config", "n", "ready", "replicas"),
    [
        pytest.param(replace(F6, fallback=Fallback(6, 0)), 4, 4, 6, id="6 120 over 4 is 1.5"),
        pytest.param(replace(F6, fallback=Fallback(6, 0)), 6, 6, 6, id="6 on target"),
        # Naive: the fallback count itself. It goes through the HPA, whose tolerance swallows it.
        pytest.param(replace(F6, fallback=Fallback(11, 0)), 10, 10, 10, id="7 swallowed upwards"),
        pytest.param(replace(F6, fallback=Fallback(10, 0)), 11, 11, 11, id="7 swallowed downwards"),
        pytest.param(FIXED, 9, 3, 10, id="8 Value: 16.666 / 5 x 3 is 9.9996"),
    ],
)  # fmt: skip
def test_the_fallback_is_a_metric_that_the_hpa_still_judges(config, n, ready, replicas):
    seen = replace(unread(n, ready=ready), status_replicas=float(n))
    assert asked(config, seen) == replicas


@pytest.mark.parametrize(
    ("behavior", "n", "replicas"),
    [
        ("static", 9, 6),
        ("currentReplicas", 9, 9),
        ("currentReplicasIfHigher", 9, 9),
        ("currentReplicasIfLower", 9, 6),
        ("currentReplicasIfHigher", 4, 6),
        ("currentReplicasIfLower", 4, 4),
    ],
)
def test_9_the_fallback_count_by_behavior(behavior: FallbackBehavior, n, replicas):
    assert asked(replace(T20, fallback=Fallback(6, 0, behavior)), unread(n)) == replicas


def test_there_is_no_fallback_from_zero_or_without_a_ready_replica():
    config = replace(T20, fallback=Fallback(6, 0))
    assert np.isnan(asked(config, unread(0)))
    assert np.isnan(asked(config, unread(4, ready=0)))


def test_a_fallback_of_zero_lets_it_sleep():
    assert asked(replace(T20, fallback=Fallback(0, 0)), unread(4)) == 0


# The rest -------------------------------------------------------------------------------------


def test_need_and_raw_are_those_of_the_hpa():
    result = run(T20, fleet(4, 130.0))
    assert (result.need[0], result.raw[0]) == (6.5, 7)
    woken = run(T20, fleet(0, 130.0))
    assert woken.raw[0] == 1


@pytest.mark.parametrize(
    ("config", "observations", "words"),
    [
        (T20, [fleet(4, 130.0)], "in_flight 130 over 4 replicas is 32.5 each, target 20: 7"),
        (T20, [fleet(4, None)], "no value for in_flight, which counts as 0: never seen active, asleep at 0"),
        (T20, [fleet(4, 80.0), fleet(4, None)], "no value for in_flight, which counts as 0; in_flight 0 over 4 replicas is 0 each, target 20: 0, at least 1 allowed"),
        (T20, [fleet(4, 20.0), fleet(4, 0.0), fleet(4, 0.0)], "in_flight 0 over 4 replicas is 0 each, target 20: 0, at least 1 allowed; not active for 30 s, 0 after 300 s"),
        (T20, [fleet(4, 20.0), *[fleet(4, 0.0)] * 20], "in_flight 0 is not above 0: for 300 s or more, asleep at 0"),
        (T20, [fleet(0, 0.0)], "in_flight 0 is not above 0: 0"),
        (T20, [fleet(0, 0.0), fleet(0, 8.0)], "in_flight 8 is above 0: 0 until the next look"),
        (T20, [fleet(0, 0.0), fleet(0, 8.0), fleet(0, 8.0)], "in_flight 8 is above 0: woken at 1"),
        (replace(T20, min_replicas=3), [fleet(0, 0.0)], "in_flight 0 is not above 0: at least 3"),
        (T20, [fleet(4, 80.0), unread(4)], "no value for in_flight; not read for 1 sync, and there is no fallback"),
        (F6, [unread(4), unread(4)], "no value for in_flight; not read for 2 syncs, fallback after 3"),
        (F6, [unread(4)] * 4, "in_flight not read for 4 syncs, so as if 6 were needed (fallback); in_flight 120 over 4 replicas is 30 each, target 20: 6"),
        (F6, [unread(4, ready=0)] * 4, "no value for in_flight; not read for 4 syncs, and no fallback without a ready replica"),
        (T20, [fleet(None, 80.0)], "the replicas in force are not known"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)  # fmt: skip
def test_it_tells_what_it_read_and_who_decided(config, observations, words):
    assert run(config, *observations).why(0) == words


@given(now=observations)
@settings(max_examples=60, deadline=None)
def test_it_has_a_word_for_anything_it_may_see(now):
    for config in (F6, replace(F6, ignore_null=False), FIXED):
        said = run(config, now).why(0)
        assert said
        assert "nan" not in said


def test_it_does_not_write_into_the_memory_it_was_given():
    rule = KedaRule(F6)
    memory = empty_memory(rule, 1)
    rule.decide(ObservationArrays.of(KNOBS, fleet(4, 130.0)), memory)
    assert np.isnan(memory).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": 0}, "keda: threshold is 0.0; expected a number above 0"),
        ({"metric": "runing"}, "keda: 'runing' is no metric of type External; did you mean 'running'"),
        ({"metric": "running+"}, "keda: '' is no metric of type External; known: qps"),
        ({"min_replicas": 5, "max_replicas": 4}, "keda: min_replicas 5 is above max_replicas 4"),
        ({"max_replicas": 500}, r"keda: max_replicas 500 is outside 0\.\.100, the range of the knob"),
        ({"idle_replicas": 0}, "keda: idle_replicas needs a min_replicas above 0 to return to"),
        ({"idle_replicas": 1, "min_replicas": 2}, "keda: idle_replicas is not 0, the only count"),
        ({"cooldown_s": -1}, r"keda: polling_s is 30\.0 and cooldown_s is -1\.0"),
        ({"fallback_replicas": 3, "fallback_failures": -1}, "3 replicas after -1 failures"),
        ({"null_values": "keep"}, "keda: null_values is 'keep'; expected one of zero, error"),
        ({"treshold": 3}, "keda: unknown option 'treshold'; did you mean 'threshold'"),
    ],
)  # fmt: skip
def test_refuses_what_keda_cannot_be_told(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_policy("keda", options, KNOBS, tick_s=15.0)


def test_by_default_a_replica_s_threshold_is_a_share_of_its_full_batch():
    knobs = knob_space(replicas=(1, 8), batch_size=(1, 200))
    rule = build_policy("keda", {}, knobs, tick_s=15.0).rule
    assert isinstance(rule, KedaRule)
    assert rule.config.threshold == 140.0
    assert rule.config.metric == "running+queue_depth"
    assert rule.config.min_replicas == 1
