"""Shadow: everything is seen, nothing can be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.contract_engine import ContractEngine
from tests.live.fake_engine import FakeEngine
from tests.live.stand_ins import Collector, MemoryPool, member
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Source
from tuner.core.faults import FaultReason
from tuner.core.knobs import KnobSettings
from tuner.knobs import knob_space
from tuner.live.cluster import LiveCluster
from tuner.live.metrics.measured import Measured
from tuner.live.shadow import Shadow

MOVE = ("batch_size", "replicas", "threads", "warmup_requests")


class WrittenToError(AssertionError):
    """A write got through."""


class ReadPool(MemoryPool):
    """A pool that bears no write."""

    def scale(self, *args: object, **options: object) -> int:
        raise WrittenToError("scale")

    def set_warmup(self, requests: int) -> None:
        raise WrittenToError("set_warmup")


class ReadEngine(ContractEngine):
    """An engine that bears no write."""

    def set(self, *args: object, **options: object):  # type: ignore[no-untyped-def, override]
        raise WrittenToError("set")

    def release(self, *args: object, **options: object):  # type: ignore[no-untyped-def, override]
        raise WrittenToError("release")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[LiveCluster]:
    with ExitStack() as stack:
        adapter = ReadEngine()
        stack.callback(adapter.http.close)
        cluster = LiveCluster(
            ReadPool({"r0": member("r0", engine)}),
            adapter,
            Collector(Measured({"qps": 2.0}, age_s=1.0)),
            knob_space(),
            VirtualClock(50.0),
            move=MOVE,
            ttl_s=180.0,
            concurrency=2,
        )
        stack.callback(cluster.close)
        yield cluster


def decision(settings: KnobSettings, **target: int) -> Decision:
    return Decision(50.0, None, None, settings, KnobSettings(target), Source.POLICY)


def test_everything_is_seen_and_nothing_is_written(live, engine):
    shadow = Shadow(live)
    observation = shadow.observe()
    assert (observation.qps, observation.settings["batch_size"]) == (2.0, 32)
    receipt = shadow.apply(
        decision(observation.settings, batch_size=16, replicas=4, warmup_requests=9, threads=4)
    )
    assert receipt.applied == {}
    assert {fault.reason for fault in receipt.faults} == {FaultReason.SHADOW}
    assert [(fault.knob, fault.sentence) for fault in receipt.faults] == [
        ("batch_size", "shadow: batch_size 32 -> 16 is not written"),
        ("replicas", "shadow: replicas 1 -> 4 is not written"),
        ("warmup_requests", "shadow: warmup_requests 0 -> 9 is not written"),
    ]
    released = shadow.release()
    assert (released.at_s, released.applied, released.faults) == (50.0, {}, ())
    assert engine.patches == []


def test_the_same_decision_would_have_been_written_without_the_shadow(live):
    settings = live.observe().settings
    with pytest.raises(WrittenToError):
        live.apply(decision(settings, replicas=4))


def test_only_what_an_active_controller_would_write_is_told(live):
    shadow = Shadow(live, move=("replicas",))
    settings = shadow.observe().settings
    receipt = shadow.apply(decision(settings, batch_size=16, replicas=4))
    assert [fault.knob for fault in receipt.faults] == ["replicas"]


def test_a_decision_that_changes_nothing_is_no_fault(live):
    shadow = Shadow(live)
    settings = shadow.observe().settings
    assert shadow.apply(decision(settings, replicas=1)).faults == ()


def test_a_shadow_holds_no_cluster_pool_or_engine(live):
    shadow = Shadow(live)
    assert not any(
        isinstance(value, LiveCluster | MemoryPool | ContractEngine)
        for value in vars(shadow).values()
    )
    assert {name for name in dir(shadow) if not name.startswith("_")} == {
        "observe",
        "apply",
        "release",
        "close",
    }
