"""A live target over real sockets: what is read, what is written, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.live.contract_engine import ContractEngine
from tests.live.fake_engine import FakeEngine
from tests.live.stand_ins import Collector, MemoryPool, member, trouble
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Proposal, Receipt, Source
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import ReplicaObservation, ReplicaState
from tuner.engines.engine import Capability, EngineState, KnobState, Replica
from tuner.knobs import knob_space
from tuner.live.cluster import LAPSE_S, LiveCluster
from tuner.live.metrics.measured import Measured
from tuner.live.steering.in_force import most_common

TTL_S = 180.0
TICK_S = 15.0


class Target:
    """A cluster with its parts at hand, and time that a test moves."""

    def __init__(self, engines: int, stack: ExitStack, move: tuple[str, ...], **options: object):
        self.clock = VirtualClock(1000.0)
        self.engines = [
            stack.enter_context(FakeEngine(name=f"r{i}", seconds=0.0)) for i in range(engines)
        ]
        members = {f"r{i}": member(f"r{i}", engine) for i, engine in enumerate(self.engines)}
        self.pool = MemoryPool(members, wanted=engines)
        self.collector = Collector()
        self.adapter = ContractEngine(timeout_s=0.5)
        self.cluster = self.controller(self.adapter, move, **options)
        stack.callback(self.adapter.http.close)
        stack.callback(self.cluster.close)

    def controller(
        self, adapter: ContractEngine, move: tuple[str, ...], **options: object
    ) -> LiveCluster:
        """A controller of this target, as after a start."""
        defaults: dict[str, object] = {"ttl_s": TTL_S, "concurrency": 8, "call_s": 0.5}
        return LiveCluster(
            self.pool,
            adapter,
            self.collector,
            knob_space(),
            self.clock,
            move=move,
            **{**defaults, **options},  # type: ignore[arg-type]
        )

    def passes(self, seconds: float = TICK_S) -> None:
        self.clock.sleep_until(self.clock.now_s() + seconds)
        for engine in self.engines:
            engine.now_s += seconds

    def tick(self, source: Source = Source.POLICY, **target: int) -> Receipt:
        observation = self.cluster.observe()
        decision = decided(observation.at_s, observation.settings, source, **target)
        receipt = self.cluster.apply(decision)
        self.passes()
        return receipt


def decided(
    at_s: float, settings: KnobSettings, source: Source = Source.POLICY, **target: int
) -> Decision:
    return Decision(at_s, None, None, settings, KnobSettings(target), source)


def reasons(faults: tuple[Fault, ...]) -> list[tuple[FaultReason, str | None]]:
    return [(fault.reason, fault.knob) for fault in faults]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def target(stack: ExitStack) -> Target:
    return Target(2, stack, ("batch_size", "replicas", "warmup_requests"))


# Reading


def test_settings_in_force_are_what_replicas_and_pool_say(target):
    observation = target.cluster.observe()
    assert dict(observation.settings) == {
        "batch_size": 32,
        "threads": 4,
        "replicas": 2,
        "warmup_requests": 0,
    }
    assert observation.faults == ()


def test_measurements_pass_through_and_counts_come_from_the_pool(target):
    target.pool.members["r9"] = replace(
        target.pool.members["r1"], name="r9", state=ReplicaState.WARMING, replica=None
    )
    target.pool.members["r8"] = replace(
        target.pool.members["r1"], name="r8", state=ReplicaState.DRAINING
    )
    fault = Fault("prometheus", FaultReason.NO_SERIES, "no gpu_util")
    target.collector.measured = Measured(
        {"qps": 3.0}, 2.0, {"qps": 2.0}, ("qps",), (fault,), {"r0": {"running": 5.0}}
    )
    observation = target.cluster.observe()
    assert (observation.qps, observation.age_s, observation.ages_s) == (3.0, 2.0, {"qps": 2.0})
    assert (observation.estimates, observation.faults) == (("qps",), (fault,))
    counts = ("ready_replicas", "starting_replicas", "draining_replicas", "status_replicas")
    assert [getattr(observation, name) for name in counts] == [2.0, 1.0, 1.0, 3.0]
    assert observation.replicas[0] == ReplicaObservation("r0", ReplicaState.READY, 100.0, 5.0)
    assert [r.state for r in observation.replicas] == ["ready", "ready", "warming", "draining"]
    assert target.collector.asked == [("r0", "r1", "r9", "r8")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([8, 8, 32], 8), ([32, 32, 8], 32), ([32, 8], 8), ([16], 16)],
    ids=["most", "most, though larger", "a tie takes the smaller", "one"],
)
def test_what_most_replicas_report_is_in_force(values, expected):
    assert most_common(values) == expected


def test_disagreement_is_one_fault(target):
    target.engines[1].restart(batch_size=16)
    observation = target.cluster.observe()
    assert observation.settings["batch_size"] == 16
    assert reasons(observation.faults) == [(FaultReason.CONFLICT, "batch_size")]
    assert "16 on 1, 32 on 1" in observation.faults[0].sentence


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("hang", FaultReason.TIMED_OUT),
        ("closed", FaultReason.BAD_ANSWER),
        ("error", FaultReason.SERVER_ERROR),
        ("garbage", FaultReason.BAD_ANSWER),
    ],
)
def test_an_engine_in_trouble_is_a_fault_and_is_not_written_to(target, wrong, reason):
    target.engines[0].trouble = wrong
    observation = target.cluster.observe()
    assert reasons(observation.faults) == [(reason, None)]
    assert observation.settings["batch_size"] == 32
    receipt = target.cluster.apply(decided(1000.0, observation.settings, batch_size=16))
    assert receipt.applied == {"batch_size": 16}
    assert reasons(receipt.faults) == [(reason, None)]
    assert (target.engines[0].patches, target.engines[1].batch_size) == ([], 16)


def test_settings_of_engines_that_all_fail_are_absent_and_the_trouble_is_one_sentence(target):
    for engine in target.engines:
        engine.trouble = "error"
    observation = target.cluster.observe()
    assert dict(observation.settings) == {"replicas": 2, "warmup_requests": 0}
    (fault,) = observation.faults
    assert (fault.where, fault.reason) == ("replicas", FaultReason.SERVER_ERROR)
    assert fault.sentence.startswith("2 replicas (r0, r1), for example: r0: GET /v1/runtime_config")


def test_without_the_pool_replicas_are_unknown_and_the_last_members_are_still_read(target):
    target.cluster.observe()
    target.pool.look_fault = trouble("kubernetes", FaultReason.TIMED_OUT)
    observation = target.cluster.observe()
    assert "replicas" not in observation.settings
    assert observation.settings["batch_size"] == 32
    assert (observation.ready_replicas, observation.replicas) == (None, ())
    assert reasons(observation.faults) == [(FaultReason.TIMED_OUT, None)]


def test_a_paused_engine_that_counts_as_ready_is_a_fault(target):
    target.engines[0].paused = True
    (fault,) = target.cluster.observe().faults
    assert (fault.where, fault.reason) == ("r0", FaultReason.NOT_READY)
    assert "paused" in fault.sentence


def test_a_hung_replica_is_not_asked_again_while_the_first_call_hangs(stack):
    target = Target(1, stack, ("batch_size",))
    slow = ContractEngine(timeout_s=30.0)
    stack.callback(slow.http.close)
    target.cluster = target.controller(slow, ("batch_size",), concurrency=2, call_s=0.0)
    stack.callback(target.cluster.close)
    target.engines[0].trouble = "hang"
    assert "gave no run-time configuration" in target.cluster.observe().faults[0].sentence
    assert "has not come back" in target.cluster.observe().faults[0].sentence
    target.engines[0].over.set()


# Writing


def test_only_what_differs_and_may_move_is_written(target):
    receipt = target.tick(batch_size=16, threads=8, replicas=2, warmup_requests=0)
    assert receipt.applied == {"batch_size": 16}
    assert receipt.faults == ()
    assert [engine.batch_size for engine in target.engines] == [16, 16]
    assert [body["knobs"] for engine in target.engines for body in engine.patches] == [
        {"batch_size": 16}
    ] * 2
    assert target.pool.asked == []


def test_replicas_and_warm_up_go_through_the_pool(target):
    receipt = target.tick(replicas=3, warmup_requests=7)
    assert receipt.applied == {"replicas": 3, "warmup_requests": 7}
    assert (target.pool.wanted, target.pool.warmups) == (3, 7)


def test_hot_knobs_are_written_before_the_number_of_replicas(target):
    seen: list[list[int]] = []
    scale = target.pool.scale
    target.pool.scale = lambda replicas, state: (  # type: ignore[method-assign]
        seen.append([engine.batch_size for engine in target.engines]) or scale(replicas, state)
    )
    target.tick(replicas=3, batch_size=8)
    assert seen == [[8, 8]]


def test_a_value_is_renewed_every_tick_and_outlives_its_time(target):
    target.tick(batch_size=16)
    for _ in range(20):
        receipt = target.tick(batch_size=16)
        assert (receipt.applied, receipt.faults) == ({}, ())
    assert 20 * TICK_S > TTL_S
    assert [engine.batch_size for engine in target.engines] == [16, 16]


def test_without_us_the_engine_goes_back_by_itself_and_is_set_anew_without_a_word(target):
    target.tick(batch_size=16)
    target.passes(TTL_S)
    assert target.engines[0].batch_size == 32
    receipt = target.tick(batch_size=16)
    assert (receipt.applied, receipt.faults) == ({"batch_size": 16}, ())


def test_what_stands_at_its_base_is_not_renewed(target):
    target.tick(batch_size=16)
    target.tick(batch_size=32)
    before = len(target.engines[0].patches)
    target.tick(batch_size=32)
    assert len(target.engines[0].patches) == before


def test_a_hold_writes_nothing_and_renews(target):
    target.tick(batch_size=16)
    assert 20 * TICK_S < LAPSE_S
    for _ in range(20):
        receipt = target.tick(Source.HOLD, batch_size=8, replicas=5)
        assert receipt.applied == {}
    assert [engine.batch_size for engine in target.engines] == [16, 16]
    assert target.pool.asked == []


@pytest.mark.parametrize("source", [Source.HOLD, Source.FALLBACK])
def test_values_run_out_once_the_policy_has_been_out_for_long(target, source):
    target.tick(batch_size=16)
    in_force = []
    for _ in range(int((LAPSE_S + TTL_S) / TICK_S) + 2):
        in_force.append([engine.batch_size for engine in target.engines])
        # What a fallback says that leaves the knob alone: the value in force.
        target.tick(source, batch_size=in_force[-1][0])
    assert in_force[int(LAPSE_S / TICK_S)] == [16, 16]
    assert [engine.batch_size for engine in target.engines] == [32, 32]
    target.tick(batch_size=16)
    assert [engine.batch_size for engine in target.engines] == [16, 16]


def test_what_the_fallback_asks_for_itself_does_not_run_out(target):
    fallback = Proposal({"batch_size": 24.0})
    for _ in range(int((LAPSE_S + TTL_S) / TICK_S) + 2):
        now = target.cluster.observe()
        asked = KnobSettings(batch_size=24)
        decision = Decision(now.at_s, None, fallback, now.settings, asked, Source.FALLBACK)
        target.cluster.apply(decision)
        target.passes()
    assert [engine.batch_size for engine in target.engines] == [24, 24]


def test_a_knob_that_is_left_out_is_renewed_too(target):
    target.tick(batch_size=16)
    for _ in range(20):
        target.tick()
    assert target.engines[0].batch_size == 16


def test_a_replica_that_became_ready_is_set_in_its_first_tick(target, stack):
    target.tick(batch_size=16)
    late = stack.enter_context(FakeEngine(name="late"))
    target.pool.members["late"] = member("late", late)
    receipt = target.tick(batch_size=16)
    assert late.batch_size == 16
    assert (receipt.applied, receipt.faults) == ({"batch_size": 16}, ())


def test_a_replica_that_restarted_is_set_anew(target):
    target.tick(batch_size=16)
    target.engines[1].restart()
    receipt = target.tick(batch_size=16)
    assert target.engines[1].batch_size == 16
    assert receipt.faults == ()


def test_a_restarted_controller_renews_what_it_finds(target):
    target.tick(batch_size=16)
    target.cluster = target.controller(target.adapter, ("batch_size",))
    for _ in range(20):
        target.tick(batch_size=16)
    assert target.engines[0].batch_size == 16
    target.cluster.close()


@pytest.mark.parametrize("asked", [64, 0], ids=["above the ceiling", "below one"])
def test_a_value_outside_the_engines_range_is_not_sent(target, asked):
    receipt = target.tick(batch_size=asked)
    assert reasons(receipt.faults) == [(FaultReason.INVALID, "batch_size")]
    assert "1..32" in receipt.faults[0].sentence
    assert target.engines[0].patches == []


def test_never_no_replica(target):
    receipt = target.tick(replicas=0)
    assert reasons(receipt.faults) == [(FaultReason.INVALID, "replicas")]
    assert target.pool.asked == []


def test_a_knob_that_cannot_be_moved_is_said_once(stack):
    target = Target(2, stack, ("threads", "batch_size"))
    (fault,) = target.tick(threads=8, batch_size=16).faults
    assert (fault.reason, fault.knob) == (FaultReason.NOT_MOVABLE, "threads")
    assert "2 replicas" in fault.sentence
    assert target.tick(threads=8, batch_size=8).faults == ()
    assert target.engines[0].batch_size == 8


def test_nothing_is_written_twice_on_one_look(target):
    observation = target.cluster.observe()
    decision = decided(1000.0, observation.settings, replicas=3)
    target.cluster.apply(decision)
    receipt = target.cluster.apply(decision)
    assert reasons(receipt.faults) == [(FaultReason.REFUSED, None)]
    assert target.pool.asked == [3]


# Faults of writing


def test_a_lost_answer_is_read_back_and_not_sent_again(target):
    target.engines[0].trouble = "lost answer"
    receipt = target.tick(batch_size=16)
    assert receipt.applied == {"batch_size": 16}
    assert receipt.faults == ()
    target.engines[0].trouble = ""
    assert target.tick(batch_size=16).faults == ()
    changes = [line for line in target.engines[0].changes if dict(line.before) != dict(line.after)]
    assert len(changes) == 1


def test_after_a_lost_answer_nothing_is_sent_until_it_can_be_read_back(target):
    observation = target.cluster.observe()
    target.engines[0].trouble = "closed"
    receipt = target.cluster.apply(decided(1000.0, observation.settings, batch_size=16))
    assert reasons(receipt.faults) == [(FaultReason.OUTCOME_UNKNOWN, "batch_size")]
    target.engines[0].trouble = "error"
    target.tick(batch_size=16)
    assert len(target.engines[0].patches) == 1


def test_a_replica_killed_within_a_tick_is_told_and_the_others_are_set(target):
    observation = target.cluster.observe()
    target.engines[0].close()
    target.engines[0].trouble = "closed"
    receipt = target.cluster.apply(decided(1000.0, observation.settings, batch_size=16))
    assert receipt.applied == {"batch_size": 16}
    assert reasons(receipt.faults) == [(FaultReason.OUTCOME_UNKNOWN, "batch_size")]
    assert target.engines[1].batch_size == 16


def test_a_replica_that_moved_since_the_look_is_a_conflict_and_the_next_tick_decides(target):
    observation = target.cluster.observe()
    target.engines[0].restart()
    receipt = target.cluster.apply(decided(1000.0, observation.settings, batch_size=16))
    assert reasons(receipt.faults) == [(FaultReason.CONFLICT, "batch_size")]
    assert target.engines[0].batch_size == 32
    target.tick(batch_size=16)
    assert target.engines[0].batch_size == 16


def test_a_replica_that_asks_to_wait_is_left_alone_so_long(target):
    target.engines[0].trouble = "slow down"
    target.tick(batch_size=16)
    assert len(target.engines[0].patches) == 1
    target.engines[0].trouble = ""
    for _ in range(2):
        receipt = target.tick(batch_size=16)
        assert reasons(receipt.faults) == [(FaultReason.RATE_LIMITED, "batch_size")]
    assert len(target.engines[0].patches) == 1
    assert target.tick(batch_size=16).faults == ()
    assert target.engines[0].batch_size == 16


def test_an_orchestrator_that_asks_to_wait_is_left_alone_so_long(target):
    target.pool.scale_fault = trouble("kubernetes", FaultReason.RATE_LIMITED, retry_after_s=20.0)
    target.tick(replicas=3)
    target.pool.scale_fault = None
    assert reasons(target.tick(replicas=3).faults) == [(FaultReason.RATE_LIMITED, "replicas")]
    assert target.pool.asked == [3]
    assert target.tick(replicas=3).applied == {"replicas": 3}


@pytest.mark.parametrize("done", [True, False], ids=["it was done", "it was not done"])
def test_a_scale_with_unknown_outcome_is_settled_by_the_next_look(target, done):
    target.pool.scale_fault = trouble("kubernetes", FaultReason.OUTCOME_UNKNOWN, knob="replicas")
    target.pool.scale_is_done = done
    receipt = target.tick(replicas=3)
    assert (receipt.applied, reasons(receipt.faults)) == (
        {},
        [(FaultReason.OUTCOME_UNKNOWN, "replicas")],
    )
    target.pool.scale_fault = None
    receipt = target.tick(replicas=3)
    assert receipt.faults == ()
    assert target.pool.asked == ([3] if done else [3, 3])


def test_a_scale_that_lost_the_race_is_a_conflict(target):
    observation = target.cluster.observe()
    target.pool.someone_sets(5)
    receipt = target.cluster.apply(decided(1000.0, observation.settings, replicas=3))
    assert reasons(receipt.faults) == [(FaultReason.CONFLICT, "replicas")]
    assert target.pool.wanted == 5


# Other writers


def test_after_someone_else_set_the_replicas_they_are_left_alone_for_a_while(target):
    target.tick(replicas=3)
    target.pool.someone_sets(6)
    receipt = target.tick(replicas=4, batch_size=16)
    assert receipt.applied == {"batch_size": 16}
    (fault,) = receipt.faults
    assert (fault.reason, fault.knob) == (FaultReason.CONFLICT, "replicas")
    assert fault.sentence.startswith("someone else set replicas from 3 to 6")
    for _ in range(59):
        target.tick(replicas=4)
    assert target.pool.wanted == 6
    target.tick(replicas=4)
    assert target.pool.wanted == 4


def test_a_hot_knob_that_someone_else_turned_is_left_alone_and_ours_are_renewed(target):
    target.tick(batch_size=16)
    someone = ContractEngine()
    place = target.pool.members["r0"].replica
    someone.set(place, KnobSettings(batch_size=4), someone.read(place), ttl_s=60.0, reason="hand")
    receipt = target.tick(batch_size=8)
    assert receipt.applied == {}
    assert receipt.faults[0].sentence.startswith(
        "someone else set batch_size on r0 from 16 to 4; it is left alone for 900 s"
    )
    for _ in range(20):
        target.tick(batch_size=8)
    # The stranger's value has ended by itself; ours, next to it, was renewed all the while.
    assert [engine.batch_size for engine in target.engines] == [32, 16]
    someone.http.close()


# Leaving


def test_release_brings_hot_knobs_back_and_leaves_the_replicas(target):
    target.tick(batch_size=16, replicas=3, warmup_requests=9)
    receipt = target.cluster.release()
    assert receipt.applied == {"batch_size": 32, "warmup_requests": 0}
    assert receipt.faults == ()
    assert [engine.batch_size for engine in target.engines] == [32, 32]
    assert (target.pool.wanted, target.pool.warmups) == (3, 0)


def test_release_says_which_replica_did_not_follow(target):
    target.tick(batch_size=16)
    target.engines[1].trouble = "error"
    receipt = target.cluster.release()
    assert [fault.where for fault in receipt.faults] == ["r1"]
    assert target.engines[0].batch_size == 32


def test_what_somebody_else_set_is_not_given_back(target):
    target.tick(batch_size=16)
    someone = ContractEngine()
    places = [target.pool.members[name].replica for name in ("r0", "r1")]
    someone.set(
        places[0], KnobSettings(batch_size=4), someone.read(places[0]), ttl_s=600.0, reason="hand"
    )
    target.tick(batch_size=16)
    receipt = target.cluster.release()
    someone.http.close()
    assert receipt.applied == {"batch_size": 32}
    assert [engine.batch_size for engine in target.engines] == [4, 32]


def test_what_somebody_else_set_after_the_last_tick_is_not_given_back(target):
    target.tick(batch_size=16)
    someone = ContractEngine()
    place = target.pool.members["r0"].replica
    someone.set(place, KnobSettings(batch_size=4), someone.read(place), ttl_s=600.0, reason="hand")
    target.cluster.release()
    someone.http.close()
    assert [engine.batch_size for engine in target.engines] == [4, 32]


def test_a_knob_that_is_not_ours_to_move_is_not_given_back(stack):
    target = Target(1, stack, ("replicas", "batch_size"))
    adapter = Asked()
    stack.callback(adapter.http.close)
    cluster = target.controller(adapter, ("batch_size",))
    stack.callback(cluster.close)
    observation = cluster.observe()
    cluster.apply(decided(observation.at_s, observation.settings, batch_size=16))
    adapter.beside = {"max_num_batched_tokens": KnobState(512, 1, 4096, "hot", 1024, 60.0)}
    cluster.observe()
    cluster.release()
    assert [sorted(knobs) for knobs in adapter.released] == [["batch_size"]]


class Asked(ContractEngine):
    """An engine with knobs beside ours, which notes what it was to give back."""

    def __init__(self) -> None:
        super().__init__()
        self.beside: dict[str, KnobState] = {}
        self.released: list[tuple[str, ...]] = []

    def read(self, replica: Replica) -> EngineState:
        state = super().read(replica)
        return replace(state, knobs={**state.knobs, **self.beside})

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        self.released.append(tuple(seen.knobs))
        return super().release(replica, seen)


# Beside another controller


class FencedPool(MemoryPool):
    """A pool that may say that another controller writes here."""

    other: str = ""

    def require(self) -> None:
        if self.other:
            sentence = f"the Lease is held by '{self.other}'"
            raise FaultError(Fault("kubernetes", FaultReason.REFUSED, sentence))


def test_without_the_lease_no_engine_is_written_renewed_or_given_back(target):
    pool = FencedPool(target.pool.members, wanted=2)
    target.pool = target.cluster._pool = pool
    target.tick(batch_size=16)
    changes = [len(engine.patches) for engine in target.engines]
    pool.other = "tuner-b"
    for source in (Source.POLICY, Source.FALLBACK, Source.HOLD):
        receipt = target.tick(source, batch_size=8, replicas=4, warmup_requests=3)
        assert receipt.applied == {}
        assert [fault.sentence for fault in receipt.faults] == ["the Lease is held by 'tuner-b'"]
    assert target.cluster.release().applied == {}
    assert [len(engine.patches) for engine in target.engines] == changes
    assert (pool.asked, pool.warmups) == ([], 0)


def test_who_gets_the_lease_back_does_not_take_the_other_for_a_stranger(target):
    pool = FencedPool(target.pool.members, wanted=2)
    target.pool = target.cluster._pool = pool
    target.tick(batch_size=16, replicas=3)
    pool.other = "tuner-b"
    other = target.controller(target.adapter, ("batch_size", "replicas"))
    pool.other = ""
    seen = other.observe()
    other.apply(decided(seen.at_s, seen.settings, batch_size=8, replicas=4))
    pool.other = "tuner-b"
    target.tick(batch_size=16)
    pool.other = ""
    receipt = target.tick(batch_size=24, replicas=5)
    assert (receipt.applied, receipt.faults) == ({"batch_size": 24, "replicas": 5}, ())
    other.close()


def test_while_the_orchestrator_is_silent_values_are_renewed_and_none_is_changed(target):
    target.tick(batch_size=16)
    target.pool.look_fault = trouble("kubernetes", FaultReason.TIMED_OUT)
    for _ in range(20):
        receipt = target.tick(batch_size=8, warmup_requests=3)
        assert (receipt.applied, receipt.faults) == ({}, ())
    assert [engine.batch_size for engine in target.engines] == [16, 16]
    assert target.pool.warmups == 0


def test_waiting_times_do_not_grow_when_the_clock_is_set_back(target):
    target.tick(batch_size=16, replicas=3)
    target.engines[0].trouble = "slow down"
    target.pool.someone_sets(6)
    target.tick(batch_size=8, replicas=4)
    target.engines[0].trouble = ""
    target.clock._now_s -= 3600.0
    for _ in range(4):
        target.tick(batch_size=8, replicas=4)
    assert [engine.batch_size for engine in target.engines] == [8, 8]
    for _ in range(60):
        target.tick(batch_size=8, replicas=4)
    assert target.pool.wanted == 4


def test_replicas_that_are_gone_are_forgotten(target):
    for number in range(3):
        target.engines[0].trouble = "slow down"
        target.tick(batch_size=16 + number)
        target.pool.members[f"new-{number}"] = replace(
            target.pool.members.pop(next(iter(target.pool.members))), name=f"new-{number}"
        )
        target.engines[0].trouble = ""
    target.tick(batch_size=16)
    assert set(target.cluster._not_before) <= set(target.pool.members) | {"pool"}


def test_closing_lets_go_of_everything(target):
    closed: list[str] = []
    target.cluster._closers = (lambda: closed.append("engine"),)
    target.cluster.close()
    assert (target.pool.closed, target.collector.closed, closed) == (True, True, ["engine"])


# Telling


class Telling(ContractEngine):
    """An engine that says of which replica it was asked."""

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        return (Capability("batch_size", True, "hot", replica.serving_url, replica.name),)


def test_one_ready_replica_tells_what_can_be_moved(stack):
    target = Target(2, stack, ("batch_size",))
    adapter = Telling()
    stack.callback(adapter.http.close)
    cluster = target.controller(adapter, ("batch_size",))
    stack.callback(cluster.close)
    starting = replace(target.pool.members["r0"], state=ReplicaState.STARTING)
    target.pool.members["r0"] = starting
    assert [found.sentence for found in cluster.capabilities()] == ["r1"]
    target.pool.members["r1"] = replace(starting, name="r1")
    assert cluster.capabilities() == ()
