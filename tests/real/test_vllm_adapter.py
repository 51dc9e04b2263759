"""The vLLM adapter against the real engine with the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from tests.real.vllm_server import VllmServer
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import EngineHttp, EngineState, Replica
from tuner.engines.vllm import Vllm
from tuner.knobs import KNOBS


@pytest.fixture
def engine(vllm: VllmServer) -> Iterator[Vllm]:
    with EngineHttp(timeout_s=60.0, token=vllm.token) as http:
        adapter = Vllm(http)
        yield adapter
        adapter.release(replica_of(vllm), adapter.read(replica_of(vllm)))


def replica_of(vllm: VllmServer) -> Replica:
    return Replica("vllm-0", vllm.url, vllm.control_url)


def put(engine: Vllm, vllm: VllmServer, value: int) -> EngineState:
    replica = replica_of(vllm)
    wanted = KnobSettings(batch_size=value)
    return engine.set(replica, wanted, engine.read(replica), ttl_s=300.0, reason="tested")


def test_a_running_engine_is_ready_and_completes(engine, vllm):
    health = engine.health(replica_of(vllm))
    assert (health.live, health.ready, health.why) == (True, True, "")
    assert engine.complete(replica_of(vllm), output_tokens=3) > 0


def test_the_probe_finds_the_plugin_and_changes_nothing(engine, vllm):
    replica = replica_of(vllm)
    before = engine.read(replica)
    found = {c.knob: c for c in engine.capabilities(replica)}
    assert list(found) == list(KNOBS)
    assert (found["batch_size"].movable, found["batch_size"].applied) == (True, "hot")
    assert found["batch_size"].sentence.startswith("1..32 while it runs")
    assert not found["threads"].movable
    after = engine.read(replica)
    assert (after.instance, after.revision) == (before.instance, before.revision)


def test_a_temporary_cap_is_read_back_and_released(engine, vllm):
    replica = replica_of(vllm)
    state = put(engine, vllm, 4)
    knob = state.knobs["batch_size"]
    assert (knob.value, knob.base, knob.high) == (4, 32, 32)
    assert knob.expires_in_s is not None
    assert 0 < knob.expires_in_s <= 300
    renewed = put(engine, vllm, 4)
    assert renewed.revision == state.revision
    released = engine.release(replica, renewed).knobs["batch_size"]
    assert (released.value, released.expires_in_s) == (32, None)


@pytest.mark.parametrize("value", [0, 33])
def test_a_cap_out_of_range_is_refused(engine, vllm, value):
    with pytest.raises(FaultError) as caught:
        put(engine, vllm, value)
    assert caught.value.fault.reason is FaultReason.INVALID


def test_a_change_that_was_overtaken_is_a_conflict(engine, vllm):
    replica = replica_of(vllm)
    seen = engine.read(replica)
    put(engine, vllm, 8)
    with pytest.raises(FaultError) as caught:
        engine.set(replica, KnobSettings(batch_size=4), seen, ttl_s=300.0, reason="late")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert engine.read(replica).knobs["batch_size"].value == 8


def test_a_wrong_token_reads_nothing_and_says_so(vllm):
    with EngineHttp(timeout_s=60.0, token="wrong") as http:
        engine = Vllm(http)
        with pytest.raises(FaultError) as caught:
            engine.read(replica_of(vllm))
        assert engine.health(replica_of(vllm)).ready
    assert caught.value.fault.reason is FaultReason.FORBIDDEN


@pytest.mark.parametrize("control", [True, False], ids=["by the contract", "by the dev routes"])
@pytest.mark.parametrize(
    ("begin", "end", "word"),
    [("/pause?mode=keep", "/resume", "paused"), ("/sleep?level=1", "/wake_up", "asleep")],
)
def test_pause_and_sleep_show_although_health_says_200(engine, vllm, begin, end, word, control):
    replica = replica_of(vllm)
    replica = replica if control else replace(replica, control_url="")
    httpx.post(vllm.url + begin, timeout=60.0).raise_for_status()
    try:
        assert httpx.get(vllm.url + "/health", timeout=60.0).status_code == 200
        health = engine.health(replica)
    finally:
        httpx.post(vllm.url + end, timeout=60.0).raise_for_status()
    assert (health.live, health.ready) == (True, False)
    assert word in health.why
    assert engine.health(replica).ready
    assert engine.complete(replica) > 0
