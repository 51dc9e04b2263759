"""vLLM: what its health hides, and what the probe says of its knobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.fakes import FakeVllm, Trouble
from tests.engines.fakes.contract import PATH
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import Capability, Engine, EngineHttp
from tuner.engines.vllm import Vllm


@pytest.fixture
def http() -> Iterator[EngineHttp]:
    with EngineHttp(timeout_s=10.0) as client:
        yield client


@pytest.fixture
def engine(http: EngineHttp) -> Engine:
    return Vllm(http)


@pytest.fixture(
    params=[("contract", True), ("contract", False), ("native", True), ("none", True)],
    ids=["contract, dev mode", "contract", "native, dev mode", "nothing, dev mode"],
)
def fake(request: pytest.FixtureRequest) -> Iterator[FakeVllm]:
    config, dev_mode = request.param
    found = FakeVllm(config=config, dev_mode=dev_mode)
    yield found
    found.close()


@pytest.mark.parametrize(("what", "word"), [("pause", "paused"), ("sleep", "asleep")])
def test_a_health_of_200_does_not_hide_pause_and_sleep(engine, fake, what, word):
    assert engine.health(fake.replica).ready
    getattr(fake, what)()
    health = engine.health(fake.replica)
    assert (health.live, health.ready) == (True, False)
    assert word in health.why
    state = engine.read(fake.replica)
    assert (state.paused, state.sleeping) == (True, what == "sleep")


def test_without_dev_routes_sleep_is_read_off_the_metrics_page(engine):
    fake = FakeVllm(config="none", dev_mode=False)
    try:
        assert engine.health(fake.replica).ready
        fake.sleeping = True
        assert "asleep" in engine.health(fake.replica).why
    finally:
        fake.close()


def test_draining_is_not_ready(engine):
    fake = FakeVllm()
    fake.contract.draining = True
    try:
        assert "draining" in engine.health(fake.replica).why
    finally:
        fake.close()


def test_a_dead_engine_core_is_not_live(engine, fake):
    fake.dead = True
    health = engine.health(fake.replica)
    assert (health.live, health.ready) == (False, False)
    assert "503" in health.why


def test_a_control_port_that_is_shut_does_not_make_it_unready(engine):
    fake = FakeVllm()
    fake.control.close()
    try:
        assert engine.health(fake.replica).ready
        with pytest.raises(FaultError) as caught:
            engine.read(fake.replica)
    finally:
        fake.close()
    assert caught.value.fault.reason is FaultReason.UNREACHABLE


def test_a_state_that_cannot_be_told_is_not_ready(engine):
    fake = FakeVllm(config="none")
    fake.server.always("GET", "/is_paused", Trouble.says(200, {"is_paused": "yes"}))
    try:
        health = engine.health(fake.replica)
    finally:
        fake.close()
    assert (health.live, health.ready) == (True, False)
    assert "is_paused 'yes'" in health.why


def test_a_model_that_dies_at_the_first_request_passes_health_and_fails_a_completion(engine, fake):
    fake.broken_model = True
    assert engine.health(fake.replica).ready
    with pytest.raises(FaultError) as caught:
        engine.complete(fake.replica)
    assert caught.value.fault.reason is FaultReason.SERVER_ERROR
    assert "mat1 and mat2" in str(caught.value)


def test_an_answer_without_a_token_is_no_completion(engine, fake):
    fake.mute = True
    with pytest.raises(FaultError) as caught:
        engine.complete(fake.replica)
    assert caught.value.fault.reason is FaultReason.BAD_ANSWER


def batch_size(engine: Engine, fake: FakeVllm) -> Capability:
    found = {c.knob: c for c in engine.capabilities(fake.replica)}
    assert found["threads"].applied == "restart"
    assert "--api-server-count" in found["threads"].route
    assert found["replicas"].applied == "scale"
    assert found["warmup_requests"].applied == "client"
    return found["batch_size"]


WORDS = {
    "contract": (True, "hot", "PATCH /v1/runtime_config", "1..32 while it runs; temporary"),
    "native": (True, "hot", "PATCH /v1/runtime_config", "ttl: unsupported"),
    "none": (False, "restart", "--max-num-active-seqs", "deploy/vllm_plugin"),
}


@pytest.mark.parametrize("config", WORDS)
def test_the_probe_says_how_the_batch_size_moves(engine, config):
    fake = FakeVllm(config=config)
    try:
        found = batch_size(engine, fake)
    finally:
        fake.close()
    movable, applied, route, sentence = WORDS[config]
    assert (found.movable, found.applied) == (movable, applied)
    assert route in found.route
    assert sentence in found.sentence


def test_the_probe_changes_nothing(engine, fake):
    engine.capabilities(fake.replica)
    assert fake.cap == 32
    assert all(request.json["dry_run"] for request in fake.control.writes())
    assert fake.server.writes() == []


def test_the_probe_names_a_token_that_may_read_and_not_write(engine):
    fake = FakeVllm()
    fake.control.always("PATCH", PATH, Trouble.says(403, {"error": "read only"}))
    try:
        found = batch_size(engine, fake)
    finally:
        fake.close()
    assert not found.movable
    assert "read only" in found.sentence


def test_the_probe_names_a_missing_token(engine):
    fake = FakeVllm(token="secret")
    try:
        found = batch_size(engine, fake)
    finally:
        fake.close()
    assert not found.movable
    assert "engine.token_file" in found.sentence


def test_a_pause_at_the_start_does_not_make_a_knob_unmovable(engine):
    fake = FakeVllm()
    fake.pause()
    try:
        found = batch_size(engine, fake)
    finally:
        fake.close()
    assert found.movable
    assert "not just now" in found.sentence


@pytest.mark.parametrize("status", [500, 503])
def test_a_probe_without_an_answer_is_no_verdict(engine, status):
    fake = FakeVllm()
    fake.control.always("GET", PATH, Trouble.says(status))
    try:
        with pytest.raises(FaultError):
            engine.capabilities(fake.replica)
    finally:
        fake.close()


def test_a_change_that_was_made_is_no_fault_where_pause_cannot_be_told(engine):
    fake = FakeVllm(config="native")
    try:
        seen = engine.read(fake.replica)
        fake.server.always("GET", "/is_paused", Trouble.says(500))
        wanted = KnobSettings(batch_size=8)
        state = engine.set(fake.replica, wanted, seen, ttl_s=None, reason="tested")
        assert state.knobs["batch_size"].value == 8
        assert engine.release(fake.replica, state).knobs["batch_size"].value == 32
    finally:
        fake.close()


def test_today_s_engine_without_a_plugin_has_no_knobs_and_is_read_without_a_fault(engine):
    fake = FakeVllm(config="none")
    try:
        state = engine.read(fake.replica)
        assert state.knobs == {}
        with pytest.raises(FaultError) as caught:
            engine.set(fake.replica, KnobSettings(batch_size=8), state, ttl_s=None, reason="tested")
    finally:
        fake.close()
    assert caught.value.fault.reason is FaultReason.NOT_MOVABLE
