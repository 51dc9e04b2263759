"""The tick, the run of ticks, and the replay of what was recorded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice

import pytest

from tests.control import golden
from tests.envs import worlds
from tuner.control.loop import borders, ticks
from tuner.control.replay import read_records, replay, write_records
from tuner.core.audit import MemoryAudit
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Proposal, Receipt
from tuner.core.errors import InputError
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.guardrails import default_guardrails
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 10))


@dataclass
class Pool:
    """A pool that obeys at once and whose load grows; its metrics vanish now and then."""

    clock: VirtualClock
    replicas: int = 4
    applied: list[Decision] = field(default_factory=list)
    slow_s: float = 0.0

    def observe(self) -> Observation:
        at_s = self.clock.now_s()
        self.clock.sleep_until(at_s + self.slow_s)
        observation = Observation(
            at_s=at_s,
            window_s=15.0,
            age_s=1.0,
            settings=KnobSettings(replicas=self.replicas),
            qps=at_s / 15.0,
            output_tokens_per_s=at_s,
            in_flight=1.0,
            ready_replicas=float(self.replicas),
        )
        return replace(observation, qps=None) if int(at_s) % 60 == 30 else observation

    def apply(self, decision: Decision) -> Receipt:
        self.applied.append(decision)
        self.replicas = decision.target.get("replicas", self.replicas)
        return Receipt(self.clock.now_s(), decision.target)


@dataclass(frozen=True)
class Counts:
    """Proposes one more than it has proposed before; raises at its fifth proposal."""

    name: str = "counts"

    def propose(self, history: History) -> Proposal:
        count = history.memory[0] + 1 if history.memory else 5.0
        if len(history.observations) == 5:
            raise RuntimeError("five")
        return Proposal({"replicas": count}, memory=(count,))


def run(n: int, pool: Pool | None = None) -> tuple[Pool, MemoryAudit]:
    clock = VirtualClock(0.0)
    pool = pool or Pool(clock)
    audit = MemoryAudit()
    loop = ticks(
        pool,
        pool.clock,
        History(KNOBS),
        Counts(),
        default_guardrails(),
        Counts("fallback"),
        audit,
        "test",
        every_s=15.0,
    )
    list(islice(loop, n))
    return pool, audit


def test_each_decision_is_recorded_before_and_after_it_is_applied():
    pool, audit = run(8)
    assert audit.decisions == pool.applied
    assert [record.observation.at_s for record in audit.records] == [15.0 * i for i in range(8)]
    assert all(record.receipt is not None for record in audit.records)


def test_an_intent_stands_even_when_applying_fails():
    class Broken(Pool):
        def apply(self, decision: Decision) -> Receipt:
            raise OSError("the API server is gone")

    clock = VirtualClock(0.0)
    audit = MemoryAudit()
    loop = ticks(
        Broken(clock),
        clock,
        History(KNOBS),
        Counts(),
        default_guardrails(),
        Counts(),
        audit,
        "test",
        every_s=15.0,
    )
    with pytest.raises(OSError, match="gone"):
        next(loop)
    assert audit.records[0].receipt is None


def test_a_slow_tick_is_followed_by_the_next_border_not_by_a_burst():
    _, audit = run(3, Pool(VirtualClock(0.0), slow_s=40.0))
    assert [record.observation.at_s for record in audit.records] == [0.0, 45.0, 90.0]


class SetBack(VirtualClock):
    """Set back by an hour while the third tick runs; notes every sleep."""

    def __init__(self) -> None:
        super().__init__(10_000.0)
        self.slept_s: list[float] = []

    def sleep_until(self, at_s: float) -> None:
        self.slept_s.append(at_s - self.now_s())
        super().sleep_until(at_s)


def test_a_clock_that_is_set_back_delays_no_tick():
    clock = SetBack()
    ticking = borders(clock, 15.0)
    at_s = []
    for number in range(6):
        at_s.append(next(ticking))
        if number == 2:
            clock._now_s -= 3600.0
    assert clock.slept_s == [15.0] * 5
    assert at_s == [10_000.0, 10_015.0, 10_030.0, 6445.0, 6460.0, 6475.0]


def test_a_recorded_tick_list_gives_the_same_decisions_again(tmp_path):
    _, audit = run(30)
    sources = {decision.source for decision in audit.decisions}
    assert len(sources) > 1, "the recording should show policy and fallback deciding"
    path = tmp_path / "ticks.jsonl"
    write_records(audit.records, path)
    recorded = read_records(path)
    again = replay(recorded, KNOBS, Counts(), default_guardrails(), Counts("fallback"))
    assert [r.to_json()["decision"] for r in again] == [r["decision"] for r in recorded]


def test_replay_is_refused_writes():
    _, audit = run(2)
    again = replay(
        [r.to_json() for r in audit.records], KNOBS, Counts(), default_guardrails(), Counts()
    )
    assert all(record.receipt.faults for record in again)


def test_a_broken_recording_is_named_with_its_line(tmp_path):
    path = tmp_path / "ticks.jsonl"
    path.write_text('{"mode": "shadow"}\n{"mode": \n')
    with pytest.raises(InputError, match=r"ticks\.jsonl: line 2 is not JSON"):
        read_records(path)


def test_the_golden_trace_gives_the_decisions_that_are_recorded_with_it():
    recorded = read_records(golden.FILE)
    again = replay(
        recorded, worlds.knobs(), golden.policy(), default_guardrails(), golden.fallback()
    )
    assert len(again) == golden.TICKS
    for mine, theirs in zip(again, recorded, strict=True):
        decision, was = mine.to_json()["decision"], theirs["decision"]
        # Settings and reasons to the letter; what policies remember is arithmetic on floats, whose
        # last bits are the processor's.
        assert {k: v for k, v in decision.items() if k not in _REMEMBERING} == {
            k: v for k, v in was.items() if k not in _REMEMBERING
        }
        for key in _REMEMBERING:
            assert _memory(decision[key]) == pytest.approx(_memory(was[key]), nan_ok=True)


_REMEMBERING = ("proposal", "fallback")


def _memory(proposal: dict | None) -> list[float]:
    if proposal is None:
        return []
    return [float("nan") if value is None else value for value in proposal["memory"]]
