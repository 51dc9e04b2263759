"""The probe: one small request on a period, in its own thread, never in a tick's way."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

from tests.live.engine_page import member
from tuner.config import ProbeConfig
from tuner.core.clock import VirtualClock
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.engines.engine import Replica
from tuner.live.metrics.probe import Probe, Probed


class Engine:
    """Answers as told, and keeps whom it asked."""

    def __init__(self, answer: Callable[[Replica], float]) -> None:
        self.asked: list[tuple[str, int]] = []
        self._answer = answer

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        self.asked.append((replica.name, output_tokens))
        return self._answer(replica)


def replica(name: str) -> Replica:
    found = member(name).replica
    assert found is not None
    return found


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def probing(engine: Engine, **config: float) -> Probe:
    return Probe(engine, ProbeConfig(**config), VirtualClock(500.0))  # type: ignore[arg-type]


def test_a_probe_gives_latency_and_life_and_goes_round():
    engine = Engine(lambda one: 0.25)
    probe = probing(engine, every_s=0.01, output_tokens=4)
    assert probe.last() is None
    probe.aim([replica("a"), replica("b")])
    until(lambda: len(engine.asked) >= 4)
    probe.close()
    last = probe.last()
    assert last is not None
    assert (last.latency_s, last.at_s, last.live) == (0.25, 500.0, True)
    assert [name for name, _ in engine.asked[:4]] == ["a", "b", "a", "b"]
    assert engine.asked[0][1] == 4


def test_a_replica_that_refuses_is_a_fault_without_latency():
    fault = Fault("a", FaultReason.SERVER_ERROR, "a: answered 500")

    def refuse(one: Replica) -> float:
        raise FaultError(fault)

    probe = probing(Engine(refuse), every_s=60.0)
    probe.aim([replica("a")])
    until(probe.last)
    probe.close()
    assert probe.last() == Probed("a", 500.0, None, fault)


def test_a_mistake_of_an_adapter_is_a_fault_and_the_next_probe_comes():
    def stumble(one: Replica) -> float:
        raise KeyError("choices")

    engine = Engine(stumble)
    probe = probing(engine, every_s=0.01)
    probe.aim([replica("a")])
    until(lambda: len(engine.asked) > 1)
    probe.close()
    last = probe.last()
    assert last is not None
    assert last.fault is not None
    assert "KeyError" in last.fault.sentence


def test_a_probe_beyond_its_time_out_has_failed():
    probe = probing(Engine(lambda one: 31.0), every_s=60.0, timeout_s=30.0)
    probe.aim([replica("a")])
    until(probe.last)
    probe.close()
    last = probe.last()
    assert last is not None
    assert last.fault is not None
    assert last.fault.reason is FaultReason.TIMED_OUT


def test_a_request_that_hangs_holds_nobody_up_and_becomes_overdue():
    release = Event()

    def hang(one: Replica) -> float:
        release.wait(60)
        return 0.1

    engine = Engine(hang)
    probe = probing(engine, every_s=0.01, timeout_s=0.01)
    probe.aim([replica("a")])
    until(lambda: engine.asked)
    assert probe.last() is None
    until(probe.overdue_s)
    probe.aim([])
    # Nobody to ask: nothing is overdue.
    assert probe.overdue_s() is None
    release.set()
    probe.close()


def test_nobody_to_ask_means_no_request():
    engine = Engine(lambda one: 0.1)
    probe = probing(engine, every_s=0.01)
    probe.aim([])
    probe.aim([replica("a")])
    until(lambda: engine.asked)
    assert engine.asked[0][0] == "a"
    probe.close()
