"""Knative's autoscaler as a table: stable window, panic, limits of one tick, missing data.

What knative/serving answers at commit 98e5ef90aa (`pkg/autoscaler/scaling/autoscaler.go`).
"""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from policies import build_policy, empty_memory
from policies.kpa import KpaConfig, KpaRule, begin
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
TICK_S = 2.0
T70 = KpaConfig(target=70.0)

# Rows: averages in, replicas out ---------------------------------------------------------------


class Averages:
    """A rule that is handed its averages, as the rows of the table are."""

    def __init__(self, config: KpaConfig = T70) -> None:
        self.rule = KpaRule(config)
        self.memory = empty_memory(self.rule, 1)

    def starts(self, at_s: float, ready: float) -> Averages:
        begin(self.memory, np.array([at_s]), np.array([ready]))
        return self

    def wants(self, at_s: float, ready: float, stable: float, panic: float) -> float:
        given = [np.array([x]) for x in (at_s, ready, stable, panic)]
        wish = self.rule.wish(*given, self.memory)
        self.memory[0, 1:3] = wish.panic_at_s[0], wish.panic_most[0]
        return float(wish.wanted[0])


@pytest.mark.parametrize(
    ("ready", "stable", "panic", "replicas"),
    [
        pytest.param(3, 200, 250, 3, id="1 4 over 3 is no panic"),
        # Naive: 2, from the stable window alone.
        pytest.param(2, 120, 300, 5, id="2 5 over 2 is a panic"),
        pytest.param(10, 70, 70, 5, id="5 half of the ready ones in one tick"),
        pytest.param(0, 10, 10, 1, id="7 counted from 1 where none is ready"),
        pytest.param(0, 0, 0, 0, id="7 nothing to do"),
        pytest.param(5, 10, 10, 2, id="half rounded down"),
        # 2 replicas asked over 1 ready is 2.0: at the threshold it is a panic.
        pytest.param(1, 70, 140, 2, id="the threshold itself is a panic"),
    ],
)
def test_two_averages_make_a_count(ready, stable, panic, replicas):
    assert Averages().wants(0.0, ready, stable, panic) == replicas


def test_3_and_4_a_panic_never_goes_down_and_ends_after_a_stable_window_without_cause():
    table = Averages()
    assert table.wants(0.0, 2, 120, 300) == 5
    assert table.wants(2.0, 2, 130, 140) == 5
    later = Averages()
    later.memory = table.memory.copy()
    assert table.wants(60.0, 5, 100, 100) == 5
    assert later.wants(62.0, 5, 100, 100) == 2


def test_more_cause_extends_a_panic_and_raises_what_it_keeps():
    table = Averages()
    assert table.wants(0.0, 2, 120, 300) == 5
    assert table.wants(30.0, 2, 130, 700) == 10
    assert table.wants(62.0, 5, 100, 100) == 10
    assert table.wants(92.0, 10, 100, 100) == 5


def test_6_an_autoscaler_that_starts_on_several_replicas_keeps_them_for_a_stable_window():
    table = Averages().starts(0.0, 4)
    assert [table.wants(at_s, 4, 0, 0) for at_s in (2.0, 60.0, 62.0)] == [4, 4, 2]
    assert Averages().starts(0.0, 1).wants(2.0, 1, 0, 0) == 0


def test_one_tick_goes_up_by_at_most_its_rate():
    assert Averages(replace(T70, max_scale_up_rate=1.5)).wants(0.0, 3, 0, 7000) == 5
    assert Averages().wants(0.0, 1, 0, 70_000) == 1000


# The whole rule: samples in --------------------------------------------------------------------


def fleet(
    ready: int | None, load: float | None, at_s: float = 0.0, **fields: object
) -> Observation:
    return Observation(
        at_s=at_s,
        window_s=TICK_S,
        settings=KnobSettings(replicas=ready or 0),
        in_flight=load,
        ready_replicas=None if ready is None else float(ready),
        **fields,
    )  # fmt: skip


def run(config: KpaConfig, *seen: Observation, tick_s: float = TICK_S) -> list[RuleResult]:
    rule = KpaRule(config)
    memory, results = empty_memory(rule, 1), []
    for tick, now in enumerate(seen):
        arrays = ObservationArrays.of(KNOBS, replace(now, at_s=1000.0 + tick_s * tick))
        results.append(rule.decide(arrays, memory))
        memory = results[-1].memory
    return results


def asked(config: KpaConfig, *seen: Observation) -> list[float]:
    return [float(result.settings[0, REPLICAS]) for result in run(config, *seen)]


def test_the_averages_are_those_of_a_minute_and_of_six_seconds():
    last = run(T70, *[fleet(9, 100.0)] * 27, *[fleet(9, 310.0)] * 3)[-1]
    # 27 samples of 100 and 3 of 310: 121. Naive windows that hold 61 s or 7 s mix in more.
    assert last.need[0] == pytest.approx(310 / 70)  # it began in a panic: the larger one counts
    assert (
        last.why(0)
        == "panic: 121 open requests over 60 s, 310 over 6 s, target 70 each: 5, 9 while the panic lasts"
    )
    calm = run(T70, *[fleet(1, 50.0)] * 40)[-1]
    assert calm.need[0] == pytest.approx(50 / 70)


def test_samples_of_a_minute_ago_are_outside():
    last = run(T70, fleet(1, 3100.0), *[fleet(1, 10.0)] * 30)[-1]
    assert "10 open requests over 60 s" in last.why(0)


def test_a_tick_longer_than_the_panic_window_leaves_it_the_newest_sample():
    config = replace(T70, tick_s=15.0)
    last = run(config, *[fleet(3, 140.0)] * 5, fleet(3, 500.0), tick_s=15.0)[-1]
    assert "230 open requests over 60 s, 500 over 6 s" in last.why(0)


def test_without_any_data_nothing_changes():
    results = run(T70, *[fleet(1, 140.0)] * 3, *[fleet(1, None)] * 31)
    assert results[20].settings[0, REPLICAS] == 2  # old samples still speak
    assert np.isnan(results[-1].settings[0, REPLICAS])
    assert results[-1].why(0) == "open requests not measured for 60 s"
    assert np.isnan(asked(T70, fleet(None, 140.0))).all()


def test_the_panic_window_without_data_reads_as_zero():
    last = run(T70, *[fleet(1, 150.0)] * 3, *[fleet(1, None)] * 4)[-1]
    assert last.why(0).startswith("panic: 150 open requests over 60 s, 0 over 6 s")


def test_concurrency_is_what_a_gateway_sees_else_what_the_engines_hold():
    inside = fleet(1, None, running=60.0, queue_depth=80.0)
    assert asked(T70, inside) == [2]
    assert asked(T70, replace(inside, in_flight=220.0)) == [4]
    assert np.isnan(asked(T70, fleet(1, None, running=60.0)))


def test_rps_counts_arrivals():
    assert asked(replace(T70, metric="rps", target=2.0), fleet(2, 500.0, qps=5.0)) == [3]


def test_outside_a_panic_it_halves_every_tick():
    counts, ready = [], 16
    rule, memory = KpaRule(T70), empty_memory(KpaRule(T70), 1)
    memory[:, 0] = 1.0  # begun long ago
    for tick in range(5):
        now = ObservationArrays.of(KNOBS, fleet(ready, 10.0, at_s=TICK_S * tick))
        result = rule.decide(now, memory)
        memory, ready = result.memory, int(result.settings[0, REPLICAS])
        counts.append(ready)
    assert counts == [8, 4, 2, 1, 1]


def test_the_delay_keeps_the_largest_count_of_its_time():
    config = replace(T70, scale_down_delay_s=20.0, stable_window_s=6.0, panic_threshold=10.0)
    falling = [fleet(1, 140.0)] * 3 + [fleet(1, 10.0)] * 14
    without = asked(replace(config, scale_down_delay_s=0.0), *falling)
    with_delay = asked(config, *falling)
    assert without[3:7] == [2, 1, 1, 1]
    # 2 was last wanted at the fourth tick: it counts for nine ticks more, not for ten.
    assert with_delay[:13] == [2] * 13
    assert with_delay[13] == 1
    assert run(config, *falling)[8].why(0).endswith(": 1, held at 2 by the delay of 20 s")


def test_zero_waits_for_the_grace_period():
    counts = asked(T70, *[fleet(1, 0.0)] * 17)
    assert counts == [1] * 15 + [0] * 2
    assert run(T70, fleet(1, 0.0))[0].why(0).endswith(": 0, 1 until 0 is wanted for 30 s")


def test_a_request_begins_the_grace_period_again():
    counts = asked(T70, *[fleet(1, 0.0)] * 10, fleet(1, 70.0), *[fleet(1, 0.0)] * 45)
    # The request stays in the average for 30 ticks, and 0 is then wanted for 15 more.
    assert counts == [1] * 55 + [0]


def test_the_range_of_the_knob_has_the_last_word():
    policy = build_policy("kpa", {"target": 70}, FROM_ONE, tick_s=TICK_S)
    history = History(FROM_ONE)
    none = policy.propose(history.observed(fleet(1, 0.0)))
    assert none.settings == {"replicas": 1.0}
    most = policy.propose(history.observed(fleet(1, 70_000.0)))
    assert most.settings == {"replicas": 100.0}
    assert most.why.endswith(": 1000, at most 100 allowed")


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ([fleet(1, 50.0)], "50 open requests over 60 s, target 70 each: 1"),
        ([fleet(2, 300.0)], "panic: 300 open requests over 60 s, 300 over 6 s, target 70 each: 5"),
        ([fleet(None, 50.0)], "ready replicas are not known"),
        ([fleet(1, None)], "open requests not measured for 60 s"),
    ],
)
def test_it_tells_its_averages_and_what_held_the_count(seen, words):
    assert run(T70, *seen)[-1].why(0) == words


def test_it_tells_the_limits_of_one_tick():
    rule, memory = KpaRule(T70), empty_memory(KpaRule(T70), 1)
    memory[:, 0] = 1.0
    now = ObservationArrays.of(KNOBS, fleet(10, 70.0))
    assert rule.decide(now, memory).why(0).endswith("each: 5, the least in one tick from 10 ready")
    slow = KpaRule(replace(T70, max_scale_up_rate=1.5))
    now = ObservationArrays.of(KNOBS, fleet(1, 700.0))
    assert (
        slow.decide(now, empty_memory(slow, 1))
        .why(0)
        .endswith("each: 2, the most in one tick from 1 ready")
    )


@given(now=observations)
@settings(max_examples=60, deadline=None)
def test_it_has_a_word_for_anything_it_may_see(now):
    said = build_policy("kpa", {}, FROM_ONE, tick_s=TICK_S).propose(History(FROM_ONE).observed(now))
    assert said.why
    assert "nan" not in said.why


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": 0}, "kpa: target is 0; expected above 0"),
        ({"metric": "cpu"}, "kpa: metric is 'cpu'; expected one of concurrency, rps"),
        ({"stable_window_s": 5}, "kpa: stable_window_s is 5 s; expected 6 to 3,600"),
        ({"panic_window_s": 90}, "kpa: panic_window_s is 90, longer than stable_window_s 60"),
        ({"panic_threshold": 1}, "kpa: panic_threshold is 1; expected above 1"),
        ({"max_scale_down_rate": 0.5}, r"kpa: max_scale_down_rate is 0\.5; expected above 1"),
        ({"scale_down_delay_s": 7200}, "kpa: scale_down_delay_s is 7,200 s; expected 0 to 3,600"),
        ({"delay": 3}, "kpa: unknown option 'delay'"),
    ],
)
def test_refuses_what_knative_cannot_be_told(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_policy("kpa", options, KNOBS, tick_s=TICK_S)


def test_by_default_a_replica_s_target_is_a_share_of_what_it_can_take():
    knobs = knob_space(replicas=(1, 8), batch_size=(1, 100))
    for options, target in (({}, 70.0), ({"metric": "rps"}, 140.0)):
        rule = build_policy("kpa", options, knobs, tick_s=TICK_S).rule
        assert isinstance(rule, KpaRule)
        assert rule.config.target == target
