"""The health of several replicas: what counts while an answer is awaited."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from time import monotonic

import pytest

from tests.live.contract_engine import ContractEngine
from tuner.engines.engine import Health, Replica
from tuner.live.processes.health_watch import HealthWatch

PLACE = Replica("r0", "http://127.0.0.1:1", "http://127.0.0.1:1")


class Stalling(ContractEngine):
    """Healthy, until a call does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled = False
        self.over = Event()

    def health(self, replica: Replica) -> Health:
        if self.stalled:
            self.over.wait(30.0)
        return Health(live=True, ready=True)


@pytest.fixture
def engine() -> Iterator[Stalling]:
    engine = Stalling()
    yield engine
    engine.over.set()
    engine.http.close()


def test_a_replica_whose_health_call_never_comes_back_stops_counting_as_ready(engine):
    watch = HealthWatch(engine, 2, oldest_s=0.3)
    assert watch.look({"r0": PLACE}, wait_s=10.0)["r0"].ready
    engine.stalled = True
    assert watch.look({"r0": PLACE}, wait_s=0.0)["r0"].ready
    ends_s = monotonic() + 10.0
    while watch.look({"r0": PLACE}, wait_s=0.05)["r0"].ready:
        assert monotonic() < ends_s
    why = watch.look({"r0": PLACE}, wait_s=0.0)["r0"].why
    assert why.startswith("its health call has not come back; the last answer is")
    watch.close()


def test_a_replica_that_is_vouched_for_counts_as_ready_while_its_first_answer_is_late(engine):
    engine.stalled = True
    watch = HealthWatch(engine, 2, oldest_s=0.3)
    watch.vouch("r0")
    assert watch.look({"r0": PLACE}, wait_s=0.0)["r0"].ready
    ends_s = monotonic() + 10.0
    while watch.look({"r0": PLACE}, wait_s=0.05)["r0"].ready:
        assert monotonic() < ends_s
    watch.close()


def test_a_replica_that_has_never_answered_is_absent(engine):
    engine.stalled = True
    watch = HealthWatch(engine, 2)
    assert watch.look({"r0": PLACE}, wait_s=0.05) == {}
    watch.close()
