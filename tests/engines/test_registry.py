"""What every engine adapter must do, over ENGINES: a new one is covered by its line there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.engines.fakes import FAKES, FakeEngine, FakeServer, Trouble
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import ENGINES, Engine, EngineHttp, EngineState, Replica
from tuner.knobs import KNOBS

MOVING = {"vllm": "batch_size", "sglang": "batch_size", "triton": "batch_size"}
"""Engines with a knob that moves while they run, and that knob."""

moving = pytest.mark.parametrize("kind", MOVING)


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def fake(kind: str) -> Iterator[FakeEngine]:
    found = FAKES[kind]()
    yield found
    found.close()


@pytest.fixture
def engine(kind: str) -> Iterator[Engine]:
    with EngineHttp(timeout_s=10.0) as http:
        yield ENGINES[kind](http)


@pytest.fixture
def knob(kind: str) -> str:
    return MOVING[kind]


def servers(fake: FakeEngine) -> list[FakeServer]:
    control = getattr(fake, "control", None)
    return [fake.server] if control is None else [fake.server, control]


def writes(fake: FakeEngine) -> int:
    """Requests that change something: completions, questions and dry runs do not."""
    harmless = ("/v1/completions", "/infer", "/index")
    return sum(
        not request.path.endswith(harmless) and not request.json.get("dry_run")
        for server in servers(fake)
        for request in server.writes()
    )


def put(engine: Engine, replica: Replica, knob: str, value: int) -> EngineState:
    seen = engine.read(replica)
    wanted = KnobSettings({knob: value})
    return engine.set(replica, wanted, seen, ttl_s=60.0, reason="tested")


def test_every_engine_has_a_fake():
    assert list(FAKES) == list(ENGINES)


def test_it_says_its_name_and_whether_it_was_ever_run(kind, engine):
    assert engine.name == kind
    assert engine.standing in ("verified", "from documentation")


def test_a_healthy_replica_lives_and_is_ready(engine, fake):
    health = engine.health(fake.replica)
    assert (health.live, health.ready, health.why) == (True, True, "")


def test_a_dead_replica_is_a_health_and_not_an_error(engine, fake):
    fake.close()
    health = engine.health(fake.replica)
    assert (health.live, health.ready) == (False, False)
    assert "replica-0" in health.why


def test_a_hung_replica_is_a_health_and_not_an_error(kind, fake):
    for method, path in list(fake.server.routes):
        fake.server.always(method, path, Trouble("hangs"))
    with EngineHttp(timeout_s=0.2) as http:
        assert not ENGINES[kind](http).health(fake.replica).ready


def test_a_completion_takes_time_and_reaches_the_engine(engine, fake):
    assert engine.complete(fake.replica, output_tokens=2) > 0
    asked = [r for r in fake.server.writes() if r.path.endswith(("/completions", "/infer"))]
    assert len(asked) == 1


def test_a_completion_of_a_model_that_is_named_asks_for_that_one(engine, fake):
    replica = replace(fake.replica, model="nobody-s")
    with pytest.raises(FaultError) as caught:
        engine.complete(replica)
    assert caught.value.fault.reason is FaultReason.NOT_FOUND


def test_the_probe_answers_for_every_knob_once(engine, fake):
    found = engine.capabilities(fake.replica)
    assert [capability.knob for capability in found] == list(KNOBS)
    for capability in found:
        assert capability.route
        assert capability.sentence
        if capability.applied in ("hot", "reload"):
            assert capability.movable
        if capability.applied == "restart":
            assert not capability.movable
            assert "rolling restart" in capability.sentence


def test_what_the_probe_calls_movable_is_read_with_a_range(engine, fake):
    state = engine.read(fake.replica)
    for capability in engine.capabilities(fake.replica):
        if capability.applied in ("hot", "reload"):
            knob = state.knobs[capability.knob]
            assert knob.low <= knob.value <= knob.high
            assert knob.applied == capability.applied


def test_looking_changes_nothing(engine, fake, kind):
    before = engine.read(fake.replica)
    engine.health(fake.replica)
    engine.capabilities(fake.replica)
    engine.complete(fake.replica)
    assert engine.read(fake.replica) == before


@moving
def test_a_value_is_set_and_read_back(engine, fake, knob):
    state = put(engine, fake.replica, knob, 5)
    assert state.knobs[knob].value == 5
    assert engine.read(fake.replica).knobs[knob].value == 5


@moving
def test_setting_the_value_in_force_is_fine(engine, fake, knob):
    put(engine, fake.replica, knob, 5)
    assert put(engine, fake.replica, knob, 5).knobs[knob].value == 5


@moving
def test_release_brings_the_value_of_the_start_back(engine, fake, knob):
    before = engine.read(fake.replica).knobs[knob].value
    state = engine.release(fake.replica, put(engine, fake.replica, knob, 5))
    assert state.knobs[knob].value == before
    assert engine.read(fake.replica).knobs[knob].value == before


@moving
@pytest.mark.parametrize("value", [0, -3, 10**7])
def test_a_value_out_of_range_is_invalid_and_not_sent(engine, fake, knob, value):
    with pytest.raises(FaultError) as caught:
        put(engine, fake.replica, knob, value)
    assert caught.value.fault.reason is FaultReason.INVALID
    assert caught.value.fault.knob == knob
    assert writes(fake) == 0


@pytest.mark.parametrize("other", ["replicas", "warmup_requests"])
def test_a_knob_that_is_not_the_engine_s_is_not_movable_and_not_sent(engine, fake, other):
    with pytest.raises(FaultError) as caught:
        put(engine, fake.replica, other, 3)
    assert caught.value.fault.reason is FaultReason.NOT_MOVABLE
    assert caught.value.fault.knob == other
    assert writes(fake) == 0


@moving
def test_all_or_nothing(engine, fake, knob):
    before = engine.read(fake.replica)
    wanted = KnobSettings({knob: 5, "warmup_requests": 3})
    with pytest.raises(FaultError):
        engine.set(fake.replica, wanted, before, ttl_s=60.0, reason="tested")
    assert engine.read(fake.replica) == before


@moving
def test_a_value_that_moved_since_it_was_read_is_a_conflict(engine, fake, knob):
    seen = engine.read(fake.replica)
    put(engine, fake.replica, knob, 5)
    with pytest.raises(FaultError) as caught:
        engine.set(fake.replica, KnobSettings({knob: 6}), seen, ttl_s=60.0, reason="late")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert caught.value.fault.knob == knob
    assert engine.read(fake.replica).knobs[knob].value == 5


def on_every_write(fake: FakeEngine, trouble: Trouble) -> None:
    for server in servers(fake):
        for method, path in list(server.routes):
            if method == "PATCH" or path.endswith(("/load", "/set_internal_state")):
                server.always(method, path, trouble)


@moving
def test_a_lost_answer_to_a_change_that_was_made_is_no_fault(engine, fake, knob):
    on_every_write(fake, Trouble("lost"))
    assert put(engine, fake.replica, knob, 5).knobs[knob].value == 5
    assert writes(fake) == 1


@moving
def test_a_lost_answer_that_reading_back_does_not_settle_is_unknown(engine, fake, knob):
    on_every_write(fake, Trouble("lost", done=False))
    with pytest.raises(FaultError) as caught:
        put(engine, fake.replica, knob, 5)
    assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert caught.value.fault.knob == knob
    assert writes(fake) == 1, "never repeated blindly"


CALLS: dict[str, Callable[[Engine, Replica], object]] = {
    "complete": lambda engine, replica: engine.complete(replica),
    "read": lambda engine, replica: engine.read(replica),
    "capabilities": lambda engine, replica: engine.capabilities(replica),
}
TROUBLES = {
    "garbage": (Trouble.says(200, b"<html>"), {FaultReason.BAD_ANSWER}),
    "an empty list": (Trouble.says(200, []), {FaultReason.BAD_ANSWER}),
    "an empty object": (Trouble.says(200, {}), {FaultReason.BAD_ANSWER}),
    "400": (Trouble.says(400), {FaultReason.INVALID}),
    "401": (Trouble.says(401), {FaultReason.UNAUTHORIZED}),
    "403": (Trouble.says(403), {FaultReason.FORBIDDEN}),
    "404": (Trouble.says(404), {FaultReason.NOT_FOUND}),
    "409": (Trouble.says(409), {FaultReason.CONFLICT}),
    "422": (Trouble.says(422), {FaultReason.INVALID}),
    "428": (Trouble.says(428), {FaultReason.INVALID}),
    "429": (Trouble.says(429), {FaultReason.RATE_LIMITED}),
    "500": (Trouble.says(500), {FaultReason.SERVER_ERROR}),
    "501": (Trouble.says(501), {FaultReason.NOT_MOVABLE}),
    "503": (Trouble.says(503), {FaultReason.NOT_READY}),
    "cut off": (Trouble("broken"), {FaultReason.BAD_ANSWER}),
    "lost": (Trouble("lost"), {FaultReason.BAD_ANSWER, FaultReason.UNREACHABLE}),
    "not http": (Trouble("not http"), {FaultReason.BAD_ANSWER}),
}


def fault_of(call: str, engine: Engine, fake: FakeEngine) -> FaultError | None:
    try:
        CALLS[call](engine, fake.replica)
    except FaultError as caught:
        return caught
    return None


@pytest.mark.parametrize(("trouble", "reasons"), TROUBLES.values(), ids=TROUBLES)
@pytest.mark.parametrize("call", CALLS)
def test_every_trouble_is_one_fault_with_its_reason_or_an_answer(
    engine, fake, call, trouble, reasons
):
    for server in servers(fake):
        for method, path in list(server.routes):
            server.always(method, path, trouble)
    found = fault_of(call, engine, fake)
    if found is None:  # what needs no answer, and what an answer of "no" settles
        assert call != "complete"
        return
    assert found.fault.reason in reasons
    assert found.fault.where == "replica-0"
    assert str(found).startswith("replica-0: ")


@moving
@pytest.mark.parametrize(("trouble", "reasons"), TROUBLES.values(), ids=TROUBLES)
def test_every_trouble_of_a_change_names_its_knob(engine, fake, knob, trouble, reasons):
    seen = engine.read(fake.replica)
    for server in servers(fake):
        for method, path in list(server.routes):
            server.always(method, path, trouble)
    with pytest.raises(FaultError) as caught:
        engine.set(fake.replica, KnobSettings({knob: 5}), seen, ttl_s=60.0, reason="tested")
    assert caught.value.fault.knob == knob
    assert caught.value.fault.reason in {*reasons, FaultReason.OUTCOME_UNKNOWN}
    assert writes(fake) <= 1


@pytest.mark.parametrize("call", CALLS)
def test_a_replica_that_is_gone_is_unreachable(engine, fake, call):
    fake.close()
    found = fault_of(call, engine, fake)
    if found is None:
        assert engine.name in ("lmdeploy", "tensorrt-llm"), "only these need not ask"
        return
    assert found.fault.reason is FaultReason.UNREACHABLE
