"""Client and server side of the run-time configuration contract understand each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engines.fakes.server import Answer, FakeServer, Request
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import EngineHttp, Replica, RuntimeConfig
from tuner.engines.contract import PATH, ROLLBACK, Contract, Knob, Status

EIGHT = KnobSettings(batch_size=8)


class Served:
    """The real contract behind a socket; its engine is a dictionary, its clock goes by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.values: dict[str, int] = {}
        self.status = Status(running=3, waiting=1)
        knobs = {
            "batch_size": Knob(32, 1, 32, "sequences"),
            "threads": Knob(1, 1, 1, "workers", "unsupported"),
        }
        self.contract = Contract(
            knobs,
            self.values.update,
            lambda: self.status,
            engine="vllm",
            engine_version="0.32.0",
            model="tiny",
            token=lambda: "the token",
            clock=lambda: self.now_s,
        )
        self.server = FakeServer()
        for method, path in (("GET", PATH), ("PATCH", PATH), ("POST", ROLLBACK)):
            self.server.on(method, path, self.handle)
        self.replica = Replica("pod-1", "http://127.0.0.1:9", self.server.url)

    def handle(self, request: Request) -> Answer:
        answer = self.contract.handle(request.method, request.path, request.headers, request.body)
        return Answer(answer.status, answer.encoded(), answer.headers)


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.server.close()


@pytest.fixture
def config() -> Iterator[RuntimeConfig]:
    with EngineHttp(timeout_s=10.0, token="the token") as http:
        yield RuntimeConfig(http, native=False)


def test_a_temporary_value_is_set_renewed_and_returns(served, config):
    seen = config.read(served.replica)
    assert (seen.running, seen.waiting, seen.ttl) == (3, 1, True)
    config.check(served.replica, EIGHT, seen)
    state = config.set(served.replica, EIGHT, seen, ttl_s=60.0, reason="tested")
    assert (state.knobs["batch_size"].value, state.knobs["batch_size"].expires_in_s) == (8, 60.0)
    served.now_s = 40.0
    again = config.set(served.replica, EIGHT, state, ttl_s=60.0, reason="tested")
    assert (again.revision, again.knobs["batch_size"].expires_in_s) == (state.revision, 60.0)
    served.now_s = 101.0
    assert config.read(served.replica).knobs["batch_size"].value == 32
    assert served.values == {"batch_size": 32}


def test_release_and_rollback_go_back(served, config):
    seen = config.read(served.replica)
    state = config.set(served.replica, EIGHT, seen, ttl_s=60.0, reason="tested")
    served.now_s = 10.0
    state = config.release(served.replica, state)
    assert (state.knobs["batch_size"].value, state.knobs["batch_size"].expires_in_s) == (32, None)
    served.now_s = 20.0
    assert config.rollback(served.replica, state).knobs["batch_size"].value == 8


def test_refusals_arrive_as_what_they_are(served, config):
    seen = config.read(served.replica)
    stale = replace(seen, revision=7)
    with pytest.raises(FaultError) as caught:
        config.set(served.replica, EIGHT, stale, ttl_s=60.0, reason="late")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    state = config.set(served.replica, EIGHT, seen, ttl_s=60.0, reason="tested")
    with pytest.raises(FaultError) as caught:
        config.set(served.replica, KnobSettings(batch_size=4), state, ttl_s=60.0, reason="soon")
    assert caught.value.fault.reason is FaultReason.RATE_LIMITED
    assert caught.value.retry_after_s == 1.0
    served.status = Status(paused=True)
    with pytest.raises(FaultError) as caught:
        config.set(served.replica, KnobSettings(batch_size=4), state, ttl_s=60.0, reason="paused")
    assert caught.value.fault.reason is FaultReason.NOT_READY
    assert served.values == {"batch_size": 8}
