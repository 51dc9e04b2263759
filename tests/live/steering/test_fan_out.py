"""Phases of calls: slow ones are left alone and hold up nobody."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from tests.live.stand_ins import trouble
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.live.steering.fan_out import FanOut, Silence
from tuner.live.steering.many_faults import joined

SHORT_S = 0.1
LONG_S = 60.0


@pytest.fixture
def gate() -> Iterator[Event]:
    gate = Event()
    yield gate
    gate.set()


@pytest.fixture
def fan_out() -> Iterator[FanOut]:
    fan_out = FanOut(1, "test")
    yield fan_out
    fan_out.close()


def broken() -> int:
    raise KeyError("knobs")


def refused() -> int:
    raise trouble("b", FaultReason.REFUSED)


def test_answers_and_faults_come_back_by_name(fan_out):
    answers = fan_out.each({"a": lambda: 1, "b": refused}, timeout_s=LONG_S)
    assert answers["a"] == 1
    assert isinstance(answers["b"], FaultError)
    assert answers["b"].fault.reason is FaultReason.REFUSED


def test_a_mistake_in_one_call_is_a_fault_of_its_name(fan_out):
    answers = fan_out.each({"a": broken, "b": lambda: 2}, timeout_s=LONG_S)
    assert isinstance(answers["a"], FaultError)
    assert (answers["a"].fault.where, answers["a"].fault.reason) == ("a", FaultReason.BAD_ANSWER)
    assert "KeyError" in answers["a"].fault.sentence
    assert answers["b"] == 2


def test_what_is_late_is_busy_until_it_is_back_and_what_was_not_sent_never_runs(fan_out, gate):
    ran: list[str] = []

    def slow() -> str:
        gate.wait()
        return "slow"

    calls = {"slow": slow, "queued": lambda: ran.append("queued")}
    answers = fan_out.each(calls, timeout_s=SHORT_S)
    assert answers == {"slow": Silence.LATE, "queued": Silence.UNSENT}
    again = fan_out.start({"slow": lambda: ran.append("again")}, timeout_s=SHORT_S)
    assert fan_out.gather(again) == {"slow": Silence.BUSY}
    gate.set()
    assert fan_out.each({"other": lambda: "other"}, timeout_s=LONG_S) == {"other": "other"}
    assert fan_out.each({"slow": lambda: "fast"}, timeout_s=LONG_S) == {"slow": "fast"}
    assert ran == []


# Many faults


def fault(
    where: str, reason: FaultReason = FaultReason.TIMED_OUT, knob: str | None = None
) -> Fault:
    return Fault(where, reason, f"{where} says so", knob)


REPLICAS = ("r1", "r2", "r3", "r4", "r5")


@pytest.mark.parametrize(
    ("faults", "sentences"),
    [
        ([], []),
        ([fault("r1")], ["r1 says so"]),
        ([fault("r1"), fault("r1")], ["r1 says so", "r1 says so"]),
        (
            [fault("r1"), fault("api"), fault("r2")],
            ["2 replicas (r1, r2), for example: r1 says so", "api says so"],
        ),
        (
            [fault(name) for name in REPLICAS],
            ["5 replicas (r1, r2, r3 and 2 more), for example: r1 says so"],
        ),
        (
            [fault("r1"), fault("r2", FaultReason.CONFLICT), fault("r3", knob="threads")],
            ["r1 says so", "r2 says so", "r3 says so"],
        ),
        ([fault("a"), fault("b")], ["a says so", "b says so"]),
    ],
    ids=[
        "none",
        "one",
        "one replica twice",
        "two replicas, and something else in between",
        "more than are named",
        "other reasons and knobs",
        "not replicas",
    ],
)
def test_the_same_trouble_on_many_replicas_is_one_sentence(faults, sentences):
    assert [f.sentence for f in joined(faults, REPLICAS)] == sentences
