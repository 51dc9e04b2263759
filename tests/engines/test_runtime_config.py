"""The client of the contract: what it sends, what it believes, and what it never does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engines.fakes import FakeContract, FakeKnob, FakeServer, FakeVllm, Trouble
from tests.engines.fakes.contract import PATH
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import EngineHttp, EngineState, Replica, RuntimeConfig

EIGHT = KnobSettings(batch_size=8)


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    engine = FakeVllm()
    yield engine
    engine.close()


@pytest.fixture
def config() -> Iterator[RuntimeConfig]:
    with EngineHttp(timeout_s=10.0) as http:
        yield RuntimeConfig(http, reload_wait_s=0.0)


def put(
    config: RuntimeConfig,
    fake: FakeVllm,
    wanted: KnobSettings = EIGHT,
    *,
    ttl_s: float | None = 60.0,
) -> EngineState:
    seen = config.read(fake.replica)
    return config.set(fake.replica, wanted, seen, ttl_s=ttl_s, reason="tested")


def refused(config: RuntimeConfig, fake: FakeVllm, **options: float | None) -> FaultError:
    with pytest.raises(FaultError) as caught:
        put(config, fake, **options)
    assert caught.value.fault.knob == "batch_size"
    return caught.value


def patches(fake: FakeVllm) -> list[object]:
    return [request.json for request in fake.control.asked("PATCH", PATH)]


def test_reads_every_field_of_the_contract(config, fake):
    fake.contract.running, fake.contract.waiting = 3, 4
    fake.contract.draining = True
    state = config.read(fake.replica)
    assert (state.engine, state.version, state.model) == ("vllm", "0.0.0", "tiny")
    assert (state.instance, state.revision) == ("instance-1", 1)
    assert (state.paused, state.sleeping, state.draining) == (False, False, True)
    assert (state.running, state.waiting, state.ttl) == (3, 4, True)
    knob = state.knobs["batch_size"]
    assert (knob.value, knob.low, knob.high, knob.applied, knob.base) == (32, 1, 32, "hot", 32)
    assert knob.expires_in_s is None
    assert state.knobs["threads"].applied == "restart"


def test_sets_a_temporary_value_that_returns_by_itself(config, fake):
    state = put(config, fake, ttl_s=60.0)
    knob = state.knobs["batch_size"]
    assert (knob.value, knob.base, knob.expires_in_s) == (8, 32, 60.0)
    assert (state.revision, fake.cap) == (2, 8)
    fake.contract.now_s = 61.0
    assert config.read(fake.replica).knobs["batch_size"].value == 32


def test_setting_the_same_again_renews_and_leaves_the_revision(config, fake):
    put(config, fake)
    fake.contract.now_s = 40.0
    state = put(config, fake)
    assert (state.revision, state.knobs["batch_size"].expires_in_s) == (2, 60.0)
    first, second = patches(fake)
    assert first["request_id"] != second["request_id"]


def test_a_value_without_time_to_live_stays(config, fake):
    put(config, fake, ttl_s=None)
    assert "ttl_s" not in patches(fake)[0]
    fake.contract.now_s = 1e9
    assert config.read(fake.replica).knobs["batch_size"].base == 8


def test_a_change_says_what_it_saw_and_why(config, fake):
    put(config, fake)
    request = fake.control.asked("PATCH", PATH)[0]
    assert request.headers["if-match"] == '"instance-1:1"'
    assert request.json["reason"] == "tested"


@pytest.mark.parametrize("value", [0, -1, 33])
def test_a_value_outside_the_range_is_refused_and_never_clamped(config, fake, value):
    with pytest.raises(FaultError) as caught:
        put(config, fake, KnobSettings(batch_size=value))
    assert caught.value.fault.reason is FaultReason.INVALID
    assert f"batch_size {value} is outside 1..32" in str(caught.value)
    assert patches(fake) == []


@pytest.mark.parametrize("knob", ["threads", "warmup_requests"])
def test_what_is_not_hot_is_refused_and_nothing_is_sent(config, fake, knob):
    with pytest.raises(FaultError) as caught:
        put(config, fake, KnobSettings({"batch_size": 8, knob: 1}))
    assert caught.value.fault.reason is FaultReason.NOT_MOVABLE
    assert caught.value.fault.knob == knob
    assert patches(fake) == []


def test_wanting_nothing_sends_nothing(config, fake):
    seen = config.read(fake.replica)
    assert config.set(fake.replica, KnobSettings(), seen, ttl_s=1.0, reason="") is seen
    assert patches(fake) == []


def test_a_replica_that_moved_since_is_a_conflict(config, fake):
    seen = config.read(fake.replica)
    put(config, fake, KnobSettings(batch_size=4))
    with pytest.raises(FaultError) as caught:
        config.set(fake.replica, EIGHT, seen, ttl_s=1.0, reason="late")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert fake.cap == 4


REFUSALS = [
    (400, FaultReason.INVALID),
    (401, FaultReason.UNAUTHORIZED),
    (403, FaultReason.FORBIDDEN),
    (404, FaultReason.NOT_FOUND),
    (409, FaultReason.CONFLICT),
    (428, FaultReason.INVALID),
    (429, FaultReason.RATE_LIMITED),
    (501, FaultReason.NOT_MOVABLE),
    (503, FaultReason.NOT_READY),
]


@pytest.mark.parametrize(("status", "reason"), REFUSALS, ids=lambda value: str(value))
def test_a_refusal_is_told_as_it_is_and_not_repeated(config, fake, status, reason):
    fake.control.trouble("PATCH", PATH, Trouble.says(status, {"error": "no"}, Retry_After="5"))
    found = refused(config, fake)
    assert found.fault.reason is reason
    assert found.retry_after_s == 5.0
    assert len(patches(fake)) == 1
    assert len(fake.control.asked("GET", PATH)) == 1, "a plain refusal needs no reading back"


ANSWERS = {
    "lost": Trouble("lost"),
    "cut off": Trouble("broken"),
    "not http": Trouble("not http"),
}


@pytest.mark.parametrize("trouble", ANSWERS.values(), ids=ANSWERS)
def test_a_lost_answer_is_settled_by_reading_back(config, fake, trouble):
    fake.control.trouble("PATCH", PATH, trouble)
    assert put(config, fake).knobs["batch_size"].value == 8
    assert len(patches(fake)) == 1


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_lost_answer_that_shows_nothing_is_unknown_and_not_repeated(config, fake, kind):
    fake.control.trouble("PATCH", PATH, replace(ANSWERS[kind], done=False))
    found = refused(config, fake)
    assert found.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert "reading back shows batch_size 32, not 8" in str(found)
    assert len(patches(fake)) == 1


def test_a_lost_answer_is_unknown_when_reading_back_fails_too(config, fake):
    seen = config.read(fake.replica)
    fake.control.trouble("PATCH", PATH, Trouble("lost"))
    fake.control.always("GET", PATH, Trouble.says(500))
    with pytest.raises(FaultError) as caught:
        config.set(fake.replica, EIGHT, seen, ttl_s=60.0, reason="")
    assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert len(patches(fake)) == 1


def test_a_hung_change_is_settled_by_reading_back(fake):
    with EngineHttp(timeout_s=1.0) as http:
        config = RuntimeConfig(http)
        fake.control.trouble("PATCH", PATH, Trouble("hangs"))
        assert put(config, fake).knobs["batch_size"].value == 8
    assert len(patches(fake)) == 1


def test_an_answer_without_sense_is_settled_by_reading_back(config, fake):
    fake.control.trouble("PATCH", PATH, Trouble.says(200, b"<html>"))
    found = refused(config, fake)
    assert found.fault.reason is FaultReason.REFUSED
    assert fake.cap == 32


@pytest.mark.parametrize(("status", "applied"), [(500, True), (500, False), (502, False)])
def test_a_server_error_is_read_back_before_anybody_speaks_of_failure(
    config, fake, status, applied
):
    if applied:
        handler = fake.control.routes["PATCH", PATH]

        def applies_and_breaks(request):
            return replace(handler(request), status=status)

        fake.control.on("PATCH", PATH, applies_and_breaks)
        assert put(config, fake).knobs["batch_size"].value == 8
    else:
        fake.control.trouble("PATCH", PATH, Trouble.says(status))
        assert refused(config, fake).fault.reason is FaultReason.SERVER_ERROR
    assert len(patches(fake)) == 1


def test_an_agreement_without_effect_is_a_refusal(config, fake):
    fake.contract.obeys = False
    found = refused(config, fake)
    assert found.fault.reason is FaultReason.REFUSED
    assert "batch_size is 32 after it agreed to 8" in str(found)


def test_an_engine_that_restarts_meanwhile_is_a_conflict(config, fake):
    handler = fake.control.routes["PATCH", PATH]

    def restarts(request):
        answer = handler(request)
        fake.contract.restart()
        return answer

    fake.control.on("PATCH", PATH, restarts)
    assert refused(config, fake).fault.reason is FaultReason.CONFLICT


def test_a_paused_engine_is_not_ready_for_a_change(config, fake):
    fake.pause()
    assert refused(config, fake).fault.reason is FaultReason.NOT_READY


def test_a_reload_is_waited_for(fake):
    fake.contract.reloads = True
    handler = fake.control.routes["GET", PATH]

    def done_at_the_second_look(request):
        answer = handler(request)
        if patches(fake):
            fake.contract.finish_reload()
        return answer

    fake.control.on("GET", PATH, done_at_the_second_look)
    with EngineHttp(timeout_s=10.0) as http:
        state = put(RuntimeConfig(http), fake)
    assert state.knobs["batch_size"].value == 8
    assert len(patches(fake)) == 1


def test_a_reload_that_does_not_end_in_time_is_unknown(config, fake):
    fake.contract.reloads = True
    found = refused(config, fake)
    assert found.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert len(patches(fake)) == 1


def test_a_dry_run_changes_nothing_and_meets_every_check(config, fake):
    seen = config.read(fake.replica)
    config.check(fake.replica, EIGHT, seen)
    assert fake.cap == 32
    assert patches(fake)[0]["dry_run"] is True
    with pytest.raises(FaultError) as caught:
        config.check(fake.replica, EIGHT, replace(seen, revision=0))
    assert caught.value.fault.reason is FaultReason.CONFLICT


def test_rolls_back_to_the_values_before(config, fake):
    state = config.rollback(fake.replica, put(config, fake))
    assert (state.knobs["batch_size"].value, state.revision) == (32, 3)


def test_release_goes_back_to_the_base_and_ends_the_clock(config, fake):
    state = config.release(fake.replica, put(config, fake))
    assert (state.knobs["batch_size"].value, state.knobs["batch_size"].expires_in_s) == (32, None)


def test_release_ends_the_clock_of_a_value_that_is_its_own_base(config, fake):
    seen = put(config, fake, KnobSettings(batch_size=32))
    assert seen.knobs["batch_size"].expires_in_s == 60.0
    assert config.release(fake.replica, seen).knobs["batch_size"].expires_in_s is None


def test_release_of_an_untouched_engine_sends_nothing(config, fake):
    seen = config.read(fake.replica)
    assert config.release(fake.replica, seen) is seen
    assert patches(fake) == []


def test_release_waits_as_told_and_asks_once_more(config, fake):
    seen = put(config, fake)
    fake.control.trouble("PATCH", PATH, Trouble.says(429, b"", Retry_After="0"))
    assert config.release(fake.replica, seen).knobs["batch_size"].value == 32
    fake.control.trouble("PATCH", PATH, *[Trouble.says(429, b"", Retry_After="0")] * 2)
    with pytest.raises(FaultError) as caught:
        config.release(fake.replica, put(config, fake))
    assert caught.value.fault.reason is FaultReason.RATE_LIMITED


def test_release_does_not_wait_longer_than_a_call_may_last(config, fake):
    seen = put(config, fake)
    fake.control.trouble("PATCH", PATH, Trouble.says(429, b"", Retry_After="3600"))
    with pytest.raises(FaultError):
        config.release(fake.replica, seen)
    assert len(patches(fake)) == 2


WRONG = {
    "another contract": {"contract": "2"},
    "no revision": {"revision": None},
    "a revision that is none": {"revision": True},
    "no instance": {"instance_id": None},
    "no flag": {"paused": None},
    "knobs that are none": {"knobs": []},
    "a knob that is none": {"knobs": {"batch_size": 3}},
    "a value that is none": {"knobs": {"batch_size": {"value": "8", "actuation": "hot"}}},
    "an unknown actuation": {"knobs": {"batch_size": {"value": 8, "actuation": "magic"}}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_an_answer_that_breaks_the_contract_is_a_bad_answer(config, fake, change):
    fake.control.always("GET", PATH, Trouble.says(200, {**fake.contract.state(), **change}))
    with pytest.raises(FaultError) as caught:
        config.read(fake.replica)
    assert caught.value.fault.reason is FaultReason.BAD_ANSWER


# The native endpoint.


@pytest.fixture
def native() -> Iterator[FakeVllm]:
    engine = FakeVllm(config="native")
    yield engine
    engine.close()


def test_a_native_endpoint_is_read_and_set_without_revision_and_ttl(config, native):
    state = put(config, native)
    assert (state.revision, state.instance, state.ttl) == (None, None, False)
    assert (state.knobs["batch_size"].value, state.knobs["batch_size"].base) == (8, 32)
    assert [r.json for r in native.server.writes()] == [{"max_num_running_seqs": 8}]


def test_the_native_endpoint_is_preferred_to_the_contract(config, native):
    native.contract.serve_on(native.control)
    put(config, native)
    assert native.cap == 8
    assert native.control.requests == []


def test_a_native_endpoint_is_read_anew_before_it_is_written(config, native):
    seen = config.read(native.replica)
    native.cap = 16
    with pytest.raises(FaultError) as caught:
        config.set(native.replica, EIGHT, seen, ttl_s=None, reason="")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert native.server.writes() == []


def test_a_native_endpoint_that_does_not_obey_is_found_out(config, native):
    native.obeys = False
    assert refused(config, native).fault.reason is FaultReason.REFUSED


def test_a_native_endpoint_that_loses_its_answer_is_read_back(config, native):
    native.server.trouble("PATCH", PATH, Trouble("lost"), Trouble("lost", done=False))
    assert put(config, native).knobs["batch_size"].value == 8
    with pytest.raises(FaultError) as caught:
        put(config, native, KnobSettings(batch_size=4))
    assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert len(native.server.writes()) == 2


def test_a_native_endpoint_returns_to_its_ceiling(config, native):
    put(config, native)
    config.release(native.replica, config.read(native.replica))
    assert native.cap == 32


def test_a_native_endpoint_without_a_ceiling_is_only_read(config, native):
    native.server.always("GET", PATH, Trouble.says(200, {"max_num_running_seqs": 8}))
    state = config.read(native.replica)
    assert (state.knobs["batch_size"].value, state.knobs["batch_size"].applied) == (
        8,
        "unsupported",
    )


def test_a_native_endpoint_has_no_rollback_and_no_dry_run(config, native):
    seen = config.read(native.replica)
    config.check(native.replica, EIGHT, seen)
    assert native.server.writes() == []
    with pytest.raises(FaultError) as caught:
        config.rollback(native.replica, seen)
    assert caught.value.fault.reason is FaultReason.NOT_MOVABLE


# Which address, and whose secret.


def test_no_endpoint_at_all_is_not_found(config):
    engine = FakeVllm(config="none")
    try:
        with pytest.raises(FaultError) as caught:
            config.read(engine.replica)
    finally:
        engine.close()
    assert caught.value.fault.reason is FaultReason.NOT_FOUND


def test_an_answer_of_another_kind_is_a_bad_answer(config, fake):
    fake.control.always("GET", PATH, Trouble.says(200, {"hello": 1}))
    with pytest.raises(FaultError) as caught:
        config.read(fake.replica)
    assert caught.value.fault.reason is FaultReason.BAD_ANSWER
    assert "hello" in str(caught.value)


def test_a_contract_on_the_serving_port_is_left_to_the_sidecar(config, fake):
    window = FakeContract("vllm", {"batch_size": FakeKnob(32, 32)})
    window.instance = "window"
    window.serve_on(fake.server)
    put(config, fake)
    assert fake.server.writes() == []
    with pytest.raises(FaultError):
        config.read(replace(fake.replica, control_url=""))


def test_a_contract_on_the_serving_port_is_used_where_that_is_the_control_address(config, fake):
    fake.contract.serve_on(fake.server)
    replica = replace(fake.replica, control_url=fake.server.url + "/")
    state = config.set(replica, EIGHT, config.read(replica), ttl_s=1.0, reason="")
    assert state.knobs["batch_size"].value == 8
    assert len(fake.server.asked("GET", PATH)) == 2


def test_the_token_goes_to_control_and_the_key_to_serving():
    engine = FakeVllm(api_key="the-key", token="the-token")
    try:
        with EngineHttp(timeout_s=10.0, token="the-token", api_key="the-key") as http:
            put(RuntimeConfig(http), engine)
        assert {r.bearer for r in engine.control.requests} == {"the-token"}
        assert {r.bearer for r in engine.server.requests} == {"the-key"}
    finally:
        engine.close()


SECRETS = {
    "none": (None, FaultReason.UNAUTHORIZED),
    "wrong": ("wrong", FaultReason.FORBIDDEN),
}


@pytest.mark.parametrize(("token", "reason"), SECRETS.values(), ids=SECRETS)
def test_a_token_that_does_not_fit_is_said(token, reason):
    engine = FakeVllm(token="right")
    try:
        with EngineHttp(timeout_s=10.0, token=token) as http, pytest.raises(FaultError) as caught:
            RuntimeConfig(http).read(engine.replica)
    finally:
        engine.close()
    assert caught.value.fault.reason is reason


def test_native_behind_the_same_address_takes_the_key_where_the_token_fails():
    engine = FakeVllm(config="native", api_key="the-key")
    replica = replace(engine.replica, control_url=engine.server.url)
    try:
        with EngineHttp(timeout_s=10.0, token="the-token", api_key="the-key") as http:
            config = RuntimeConfig(http)
            config.set(replica, EIGHT, config.read(replica), ttl_s=None, reason="")
    finally:
        engine.close()
    assert engine.cap == 8


def test_a_path_before_the_endpoint_is_kept(config):
    server = FakeServer()
    contract = FakeContract("vllm", {"batch_size": FakeKnob(32, 32)})
    server.on("GET", f"/replica-3{PATH}", contract.get)
    try:
        replica = Replica("r", f"{server.url}/replica-3", f"{server.url}/replica-3")
        assert config.read(replica).revision == 1
    finally:
        server.close()
