"""Warm-up over real sockets: every request is sent once, and the gate opens in any case."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from tests.live.contract_engine import ContractEngine
from tests.live.fake_engine import FakeEngine
from tuner.core.faults import FaultReason
from tuner.engines.engine import Replica
from tuner.live.processes.warmup import WarmUp, warm_up


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def adapter() -> Iterator[ContractEngine]:
    adapter = ContractEngine()
    yield adapter
    adapter.http.close()


def place(engine: FakeEngine) -> Replica:
    return Replica("r0", engine.url, engine.control_url)


def test_sends_as_many_requests_as_asked_and_no_more_at_once_than_allowed(engine, adapter):
    result = warm_up(adapter, place(engine), 25, deadline_s=60.0, stop=Event(), concurrency=3)
    assert result == WarmUp(25, None)
    assert engine.load.finished == engine.completions == 25
    assert engine.load.most_running <= 3


def test_without_requests_it_is_over_at_once(engine, adapter):
    assert warm_up(adapter, place(engine), 0, deadline_s=60.0, stop=Event()) == WarmUp(0, None)
    assert engine.completions == 0


def test_the_gate_opens_when_the_time_is_up(engine, adapter):
    engine.load.hold.set()
    result = warm_up(adapter, place(engine), 8, deadline_s=0.3, stop=Event())
    assert result.done == 0
    assert result.fault is not None
    assert (result.fault.where, result.fault.reason) == ("r0", FaultReason.TIMED_OUT)
    assert "takes traffic with 0 of 8 warm-up requests answered: 0.3 s were over" in (
        result.fault.sentence
    )


def test_failing_requests_are_not_repeated_and_open_the_gate(engine, adapter):
    engine.refuses_completions = True
    result = warm_up(adapter, place(engine), 5, deadline_s=60.0, stop=Event())
    assert (result.done, engine.completions) == (0, 5)
    assert result.fault is not None
    assert result.fault.reason is FaultReason.SERVER_ERROR
    assert "r0: POST /v1/completions answered 500" in result.fault.sentence


def test_it_stops_when_told_to(engine, adapter):
    engine.load.hold.set()
    stop = Event()
    stop.set()
    assert warm_up(adapter, place(engine), 5, deadline_s=60.0, stop=stop).fault is None
