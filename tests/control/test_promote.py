"""May it act? Each gate alone, the evidence behind them, and records that fit or do not."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.control import logs
from tuner.config import EngineConfig, PromotionConfig, TargetConfig
from tuner.control import promote
from tuner.control.audit_store import AuditStore, Promotion, PromotionKind
from tuner.control.promote import (
    Evidence,
    Predicted,
    Prediction,
    SeenTick,
    Watch,
    check_active,
    gates,
    seen_in_shadow,
    seen_of_others,
    watched,
)
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Reason, Source, Verdict
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation

TARGET = TargetConfig(name="r1", policy="hpa", engine=EngineConfig(kind="vllm"))
NOW_S = 1_795_000_000.0


@pytest.fixture
def store(tmp_path: Path):
    opened = AuditStore.open(logs.url_of(tmp_path))
    yield opened
    opened.close()


# Gates -------------------------------------------------------------------------------------

GOOD_WATCH = Watch(
    decisions=11_520,
    hours=48.0,
    gaps=0,
    first_at_s=0.0,
    last_at_s=172_800.0,
    moves=100,
    tripped=20,
    trip_episodes=8,
    read_faults=576,
    write_faults=0,
    open=0,
    qps_low=2.0,
    qps_high=3.0,
)
GOOD_PREDICTION = Prediction(
    profile="small",
    rule="hpa",
    seeds=5,
    requests=1000,
    hours=48.0,
    rule_gpu_hours=100.0,
    policy_gpu_hours=90.0,
    rule_attainment=0.99,
    policy_attainment=0.99,
    gain=Predicted(0.1, (0.0, 0.2)),
    attainment=Predicted(0.0, (-0.005, 0.005)),
)
GOOD = Evidence(GOOD_WATCH, GOOD_PREDICTION)


def test_evidence_exactly_on_every_bar_passes():
    found = gates(GOOD, PromotionConfig())
    assert all(gate.holds for gate in found), [gate.reason for gate in found]
    assert [gate.reason for gate in found] == [""] * 7
    assert {gate.name for gate in found} == {field.name for field in fields(PromotionConfig)} - {
        "profile",
        "seeds",
    }


def with_watch(**changes: object) -> Evidence:
    return replace(GOOD, watch=replace(GOOD_WATCH, **changes))


def with_prediction(**changes: object) -> Evidence:
    return replace(GOOD, prediction=replace(GOOD_PREDICTION, **changes))


@pytest.mark.parametrize(
    ("evidence", "label", "found", "reason"),
    [
        # 8 episodes in 48 h are 4 a day; in fewer hours they would be more, so they go as well.
        (
            with_watch(hours=47.94, trip_episodes=7),
            "watched in shadow",
            "47.94 h",
            "needed at least 48 h; go on watching",
        ),
        (with_watch(qps_high=2.99), "high over low load", "×1.5", "a flat load proves little"),
        (with_watch(qps_low=None, qps_high=None), "high over low load", "unknown", "unknown"),
        (with_watch(trip_episodes=9), "trips a day", "4.5", "needed at most 4"),
        (with_watch(read_faults=577), "reading faults, of ticks", "5.01 %", "at most 5 %"),
        (with_watch(write_faults=5760), "writing faults, of ticks", "50 %", "at most 5 %"),
        (
            with_prediction(gain=Predicted(0.1, (-0.001, 0.2))),
            "GPU hours saved",
            "10 % (−0.1 to 20)",
            "the lower end must reach 0 %",
        ),
        # The mean says yes, one seed says nothing about chance.
        (
            with_prediction(gain=Predicted(0.1, None)),
            "GPU hours saved",
            "10 %",
            "set promotion.seeds to 2 or more",
        ),
        (
            with_prediction(attainment=Predicted(0.0, (-0.0051, 0.01))),
            "SLO attainment gained",
            "0 points (−0.51 to 1)",
            "the lower end must reach −0.5 points",
        ),
    ],
    ids=[
        *("hours", "flat load", "load unknown", "trips", "reading", "writing"),
        *("gain may be chance", "one seed", "attainment"),
    ],
)
def test_each_gate_can_fail_alone(evidence, label, found, reason):
    failed = [gate for gate in gates(evidence, PromotionConfig()) if not gate.holds]
    assert [gate.label for gate in failed] == [label]
    assert failed[0].found == found
    assert reason in failed[0].reason


def test_without_a_prediction_what_it_would_show_is_not_assumed():
    found = gates(Evidence(GOOD_WATCH, None, "there is no profile"), PromotionConfig())
    failed = {gate.name: gate.reason for gate in found if not gate.holds}
    assert set(failed) == {"min_gain", "max_attainment_loss"}
    assert all("there is no profile" in reason for reason in failed.values())


def test_no_decision_passes_no_gate_that_looks_at_decisions():
    nothing = Evidence(watched((), tick_s=15.0), None, "no load")
    assert [gate.holds for gate in gates(nothing, PromotionConfig())] == [False] * 7


def test_load_from_nothing_is_an_endless_span():
    watch = replace(GOOD_WATCH, qps_low=0.0)
    assert watch.load_span == math.inf
    (span,) = [g for g in gates(Evidence(watch, None), PromotionConfig()) if "load" in g.label]
    assert span.holds
    assert span.found == "endless"


# What was watched --------------------------------------------------------------------------


def tick(at_s: float, **changes: object) -> SeenTick:
    made = SeenTick(
        at_s=at_s,
        settings=KnobSettings(replicas=2),
        qps=1.0,
        prompt_tokens_per_s=10.0,
        output_tokens_per_s=20.0,
        moved=False,
        tripped=False,
        read_fault=False,
        write_fault=False,
        open=False,
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("times", "hours", "gaps"),
    [
        ([], 0.0, 0),
        ([100.0], 15 / 3600, 0),
        ([0.0, 15.0, 30.0], 45 / 3600, 0),
        # Late by twice its period: slow, but it watched.
        ([0.0, 45.0], 60 / 3600, 0),
        # A night without a controller counts one tick, not a night.
        ([0.0, 15.0, 40_000.0, 40_015.0], 60 / 3600, 1),
        # A sandbox that began anew: its clock was set back.
        ([900.0, 915.0, 10.0, 25.0], 60 / 3600, 1),
    ],
    ids=["none", "one", "steady", "slow", "a gap", "clock set back"],
)
def test_hours_are_those_that_somebody_watched(times, hours, gaps):
    watch = watched([tick(at) for at in times], tick_s=15.0)
    assert watch.hours == pytest.approx(hours)
    assert watch.gaps == gaps


def test_trips_are_counted_as_episodes_and_a_gap_ends_one():
    tripped = [False, True, True, False, True, True, True]
    times = [0.0, 15.0, 30.0, 45.0, 60.0, 9000.0, 9015.0]
    ticks = [tick(at, tripped=trip) for at, trip in zip(times, tripped, strict=True)]
    watch = watched(ticks, tick_s=15.0)
    assert (watch.tripped, watch.trip_episodes) == (5, 3)
    assert watched([tick(0.0, tripped=True)], tick_s=15.0).trip_episodes == 1


def test_first_looks_after_a_start_are_no_trips_and_anything_more_is():
    first = {"tripped": True, "first_look": True}
    table = [
        ([{}, first, {}, first, first, {}], 0, "restarts"),
        ([first], 0, "the very first"),
        ([first, first, first], 1, "rates that never come"),
        ([first, {"tripped": True}], 1, "another cause follows"),
        ([{"tripped": True}, first], 1, "another cause comes first"),
        ([{"tripped": True}, {}, first], 1, "one of each"),
        ([], 0, "none"),
    ]
    for changes, episodes, name in table:
        ticks = [tick(15.0 * i, **change) for i, change in enumerate(changes)]
        assert watched(ticks, tick_s=15.0).trip_episodes == episodes, name


@pytest.mark.parametrize(
    ("fields", "first_look"),
    [
        pytest.param({}, True, id="only rates are missing"),
        pytest.param({"in_flight": None}, False, id="more is missing"),
        pytest.param({"qps": 1.0, "output_tokens_per_s": 9.0}, False, id="nothing is missing"),
        pytest.param({"age_s": None}, False, id="no sample at all"),
        pytest.param(
            {"faults": (Fault("scrape", FaultReason.UNREACHABLE, "no answer"),)},
            False,
            id="a fault is the cause",
        ),
    ],
)
def test_a_first_look_is_told_by_what_was_measured(store, fields, first_look):
    seen = Observation(
        **{
            "at_s": NOW_S,
            "window_s": 15.0,
            "settings": KnobSettings(replicas=2),
            "age_s": 1.0,
            "in_flight": 2.0,
            "ready_replicas": 2.0,
            **fields,
        }
    )
    decision = Decision(
        at_s=NOW_S,
        proposal=None,
        fallback=None,
        settings=KnobSettings(replicas=2),
        target=KnobSettings(replicas=2),
        source=Source.FALLBACK,
        verdicts=(Verdict("stale_metrics", Reason.MetricsMissing, "no value"),),
    )
    for verdicts, expected in (
        (decision.verdicts, first_look),
        ((*decision.verdicts, Verdict("policy_failure", Reason.PolicyRaised, "raised")), False),
        ((), False),
    ):
        writer = store.writer("r1", identity=logs.IDENTITY)
        writer.intent("shadow", seen, replace(decision, verdicts=verdicts))
        (stored,) = store.decisions("r1", last=1)
        assert SeenTick.of(stored).first_look is expected


@pytest.mark.parametrize(
    ("hours", "episodes", "found", "holds"),
    [
        (1 / 60, 1, "1 in 1 min", True),
        (6.5, 5, "5 in 6.5 h", False),
        (23.99, 4, "4 in 23.99 h", True),
        (24.0, 4, "4", True),
        (48.0, 9, "4.5", False),
    ],
)
def test_below_a_day_trips_are_counted_and_no_rate_is_made_of_them(hours, episodes, found, holds):
    config = PromotionConfig(max_trips_per_day=4.0)
    held = gates(with_watch(hours=hours, trip_episodes=episodes), config)
    (gate,) = [gate for gate in held if gate.name == "max_trips_per_day"]
    assert (gate.found, gate.holds) == (found, holds)
    assert (found in gate.reason) is not holds


def test_the_range_of_load_is_that_of_minutes_not_of_ticks():
    # Ticks swing between 0 and 2, every five minutes are 1.
    noisy = [tick(15.0 * i, qps=2.0 * (i % 2)) for i in range(200)]
    assert watched(noisy, tick_s=15.0).load_span == pytest.approx(1.0)
    # Ten blocks of 1..10 requests/s: numpy's linear 10th and 90th percentile are 1.9 and 9.1.
    rising = [tick(15.0 * i, qps=1.0 + i // 20) for i in range(200)]
    watch = watched(rising, tick_s=15.0)
    assert (watch.qps_low, watch.qps_high) == (pytest.approx(1.9), pytest.approx(9.1))


def test_faults_moves_and_crashes_are_counted():
    ticks = [
        tick(0.0, moved=True, read_fault=True),
        tick(15.0, write_fault=True),
        tick(30.0, open=True, moved=True),
    ]
    watch = watched(ticks, tick_s=15.0)
    assert (watch.moves, watch.read_faults, watch.write_faults, watch.open) == (2, 1, 1, 1)
    assert watch.read_fault_share == pytest.approx(1 / 3)


def test_only_this_policy_under_this_configuration_in_shadow_is_evidence(store):
    mine = logs.IDENTITY
    others = (replace(mine, policy_digest="x"), replace(mine, config_digest="y"))
    for identity in (mine, *others):
        logs.shadow(store, "r1", 20, identity=identity)
    logs.shadow(store, "r2", 20)
    ticks = seen_in_shadow(store, TARGET, mine)
    assert len(ticks) == 20
    assert seen_of_others(store, TARGET, len(ticks)) == 40
    assert ticks[0].settings["replicas"] == 2
    assert seen_in_shadow(store, replace(TARGET, name="r3"), mine) == ()
    assert seen_of_others(store, replace(TARGET, name="r3"), 0) == 0


def test_decisions_of_long_ago_are_no_evidence(store, monkeypatch):
    logs.shadow(store, "r1", 20)
    monkeypatch.setattr(promote, "MEMORY_S", 15.0 * 5)
    assert len(seen_in_shadow(store, TARGET, logs.IDENTITY)) == 5


# Records -----------------------------------------------------------------------------------


def promoted(store: AuditStore, **identity: object) -> Promotion:
    clock = VirtualClock(NOW_S)
    who = replace(logs.IDENTITY, **identity)
    return promote.promote(store, "r1", who, GOOD, gates(GOOD, PromotionConfig()), clock=clock)


def test_what_was_promoted_may_act_and_its_evidence_is_kept(store):
    made = promoted(store)
    check_active(store, TARGET, logs.IDENTITY)
    stored = store.promotion("r1")
    assert replace(stored, evidence=None) == replace(made, evidence=None)
    assert stored.evidence == json.loads(json.dumps(made.evidence))
    assert stored.evidence["evidence"]["watch"]["decisions"] == 11_520
    assert len(stored.evidence["gates"]) == 7
    assert "@" in made.who
    assert made.at_s == NOW_S


def test_the_authority_and_the_version_are_not_part_of_what_was_promoted(store):
    promoted(store)
    check_active(store, TARGET, replace(logs.IDENTITY, authority="none", version="9"))


@pytest.mark.parametrize(
    ("act", "identity", "message"),
    [
        (lambda store: None, {}, "nobody has promoted it"),
        (
            lambda store: promote.demote(store, "r1", reason="too slow", clock=VirtualClock(NOW_S)),
            {},
            r"demoted it on 2026-11-18 11:06 UTC \(too slow\)",
        ),
        (promoted, {"policy_digest": "e" * 64}, r"another policy, hpa; now it is hpa \(eeee"),
        (promoted, {"policy": "other"}, "another policy, hpa; now it is other"),
        (promoted, {"config_digest": "f" * 64}, "another configuration, c{12}; now it is f{12}"),
    ],
    ids=["nobody", "demoted", "another bundle", "another rule", "another configuration"],
)
def test_nothing_acts_without_a_record_that_fits(store, act, identity, message):
    act(store)
    with pytest.raises(ConfigError, match=message) as told:
        check_active(store, TARGET, replace(logs.IDENTITY, **identity))
    assert "target 'r1' may not act" in str(told.value)
    assert "--without-evidence REASON" in str(told.value)


def test_a_record_of_another_target_lets_nobody_act(store):
    promoted(store)
    with pytest.raises(ConfigError, match="nobody has promoted it"):
        check_active(store, replace(TARGET, name="r2"), logs.IDENTITY)


def test_the_latest_word_wins(store):
    promoted(store)
    promote.demote(store, "r1", clock=VirtualClock(NOW_S - 1000.0))  # whatever the clocks say
    with pytest.raises(ConfigError, match="demoted"):
        check_active(store, TARGET, logs.IDENTITY)
    promote.record_without_evidence(store, TARGET, logs.IDENTITY, " drill ")
    check_active(store, TARGET, logs.IDENTITY)
    latest = store.promotion("r1")
    assert latest.kind is PromotionKind.WITHOUT_EVIDENCE
    assert latest.reason == "drill"


def test_acting_without_evidence_takes_a_reason(store):
    with pytest.raises(ConfigError, match="say why"):
        promote.record_without_evidence(store, TARGET, logs.IDENTITY, "  ")
    assert store.promotion("r1") is None


def test_what_fails_a_gate_cannot_be_promoted(store):
    evidence = with_watch(hours=1.0)
    with pytest.raises(ValueError, match="watched in shadow"):
        promote.promote(store, "r1", logs.IDENTITY, evidence, gates(evidence, PromotionConfig()))
    assert store.promotion("r1") is None


def test_a_user_without_a_name_is_told_by_number(monkeypatch):
    monkeypatch.setattr(promote.getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("uid")))
    assert promote.who().startswith("uid-")
