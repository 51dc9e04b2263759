"""SGLang: its 200 may be a refusal, its ranks may disagree, and its top level does not follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engines.fakes import FakeContract, FakeKnob, FakeServer, FakeSglang, Trouble
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import Capability, Engine, EngineHttp, EngineState
from tuner.engines.sglang import Sglang

SET = "/set_internal_state"
EIGHT = KnobSettings(batch_size=8)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with EngineHttp(timeout_s=10.0) as http:
        yield Sglang(http)


@pytest.fixture
def fake() -> Iterator[FakeSglang]:
    found = FakeSglang(ranks=2)
    yield found
    found.close()


def put(engine: Engine, fake: FakeSglang, wanted: KnobSettings = EIGHT) -> EngineState:
    seen = engine.read(fake.replica)
    return engine.set(fake.replica, wanted, seen, ttl_s=60.0, reason="tested")


def refused(engine: Engine, fake: FakeSglang) -> FaultError:
    with pytest.raises(FaultError) as caught:
        put(engine, fake)
    assert caught.value.fault.knob == "batch_size"
    return caught.value


def test_moves_the_cap_of_every_scheduler(engine, fake):
    state = put(engine, fake)
    assert fake.caps == [8, 8]
    assert (state.knobs["batch_size"].value, state.ttl) == (8, False)
    assert [r.json for r in fake.server.writes()] == [
        {"server_args": {"pp_max_micro_batch_size": 8}}
    ]


def test_reads_range_and_base_off_the_start_up_figures_and_the_value_off_the_schedulers(
    engine, fake
):
    fake.caps = [8, 8]
    knob = engine.read(fake.replica).knobs["batch_size"]
    assert (knob.value, knob.low, knob.high, knob.base) == (8, 1, 32, 32)


def test_a_ceiling_per_rank_counts_where_it_is_named(engine, fake):
    fake.extra["internal_states"] = [
        {"pp_max_micro_batch_size": 8, "effective_max_running_requests_per_dp": 16}
    ]
    assert engine.read(fake.replica).knobs["batch_size"].high == 16


def test_a_cap_given_at_start_is_the_base(engine, fake):
    fake.extra["pp_max_micro_batch_size"] = 24
    put(engine, fake)
    engine.release(fake.replica, engine.read(fake.replica))
    assert fake.caps == [24, 24]


def test_a_200_with_false_is_a_refusal(engine, fake):
    fake.refusing = {0, 1}
    found = refused(engine, fake)
    assert found.fault.reason is FaultReason.REFUSED
    assert "[false, false]" in str(found)
    assert fake.caps == [32, 32]


def test_a_200_with_one_false_is_a_refusal_and_the_others_go_back(engine, fake):
    fake.refusing = {1}
    found = refused(engine, fake)
    assert found.fault.reason is FaultReason.REFUSED
    assert "[true, false]" in str(found)
    assert fake.caps == [32, 32]
    assert len(fake.server.writes()) == 2


def test_ranks_that_could_not_be_put_back_are_told(engine, fake):
    fake.refusing = {1}
    handler = fake.server.routes["POST", SET]

    def once(request):
        answer = handler(request)
        fake.server.always("POST", SET, Trouble.says(500))
        return answer

    fake.server.on("POST", SET, once)
    found = refused(engine, fake)
    assert found.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert "could not be put back" in str(found)
    assert "disagree on pp_max_micro_batch_size: 8, 32" in str(found)


def test_a_rank_that_agrees_and_does_nothing_is_found_out(engine, fake):
    fake.deaf = {1}
    found = refused(engine, fake)
    assert "disagree on pp_max_micro_batch_size: 8, 32" in str(found)


def test_ranks_that_disagree_read_as_the_largest_and_can_be_brought_together(engine, fake):
    fake.caps = [8, 16]
    assert engine.read(fake.replica).knobs["batch_size"].value == 16
    put(engine, fake)
    assert fake.caps == [8, 8]


@pytest.mark.parametrize("body", [b"[]", b"true", b"[1]", b"{}", b"<html>"])
def test_an_answer_that_is_no_list_of_booleans_is_read_back(engine, fake, body):
    fake.server.trouble("POST", SET, Trouble.says(200, body))
    found = refused(engine, fake)
    assert found.fault.reason is FaultReason.BAD_ANSWER
    assert "reading back shows batch_size 32, not 8" in str(found)
    assert len(fake.server.writes()) == 1


def test_a_lost_answer_is_settled_by_reading_back(engine, fake):
    fake.server.trouble("POST", SET, Trouble("lost"))
    assert put(engine, fake).knobs["batch_size"].value == 8
    assert len(fake.server.writes()) == 1


def test_a_lost_answer_that_shows_nothing_is_unknown(engine, fake):
    fake.server.trouble("POST", SET, Trouble("lost", done=False))
    assert refused(engine, fake).fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert len(fake.server.writes()) == 1


def test_a_cap_that_moved_since_is_a_conflict(engine, fake):
    seen = engine.read(fake.replica)
    fake.caps = [4, 4]
    with pytest.raises(FaultError) as caught:
        engine.set(fake.replica, EIGHT, seen, ttl_s=None, reason="late")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert fake.server.writes() == []


def batch_size(engine: Engine, fake: FakeSglang) -> Capability:
    found = {c.knob: c for c in engine.capabilities(fake.replica)}
    assert "--tokenizer-worker-num" in found["threads"].route
    return found["batch_size"]


def test_the_probe_sends_the_value_in_force(engine, fake):
    fake.caps = [8, 8]
    found = batch_size(engine, fake)
    assert (found.movable, found.applied, found.route) == (True, "hot", "POST /set_internal_state")
    assert "1..32" in found.sentence
    assert "ttl: unsupported" in found.sentence
    assert fake.caps == [8, 8]
    assert fake.server.writes()[0].json == {"server_args": {"pp_max_micro_batch_size": 8}}


def test_the_probe_believes_a_refusal(engine, fake):
    fake.refusing = {0, 1}
    found = batch_size(engine, fake)
    assert not found.movable
    assert "--max-running-requests" in found.route


def test_pipeline_stages_make_the_cap_immovable(engine):
    fake = FakeSglang(stages=2)
    try:
        found = batch_size(engine, fake)
        assert fake.server.writes() == []
        with pytest.raises(FaultError) as caught:
            put(engine, fake)
    finally:
        fake.close()
    assert not found.movable
    assert "pp_size is 2" in found.sentence
    assert caught.value.fault.reason is FaultReason.NOT_MOVABLE


NO_FIGURES = {
    "no cap": {"internal_states": [{"pp_max_micro_batch_size": None}]},
    "no schedulers": {"internal_states": []},
    "no ceiling": {"max_running_requests": None},
}


@pytest.mark.parametrize("extra", NO_FIGURES.values(), ids=NO_FIGURES)
def test_without_figures_nothing_is_sent(engine, fake, extra):
    fake.extra.update(extra)
    found = batch_size(engine, fake)
    assert not found.movable
    assert "/server_info names no" in found.sentence
    assert fake.server.writes() == []


def test_the_probe_warns_of_metrics_that_count_twice(engine, fake):
    fake.extra["enable_metrics_for_all_schedulers"] = True
    found = batch_size(engine, fake)
    assert found.movable
    assert "count twice" in found.sentence


def test_the_admin_key_goes_to_control_and_the_api_key_elsewhere():
    fake = FakeSglang(api_key="key", admin_key="admin")
    try:
        with EngineHttp(timeout_s=10.0, token="admin", api_key="key") as http:
            put(Sglang(http), fake)
        with EngineHttp(timeout_s=10.0, api_key="key") as http:
            assert not batch_size(Sglang(http), fake).movable
    finally:
        fake.close()
    assert fake.caps == [8]


def test_ready_is_asked_for_and_older_releases_by_health(engine, fake):
    fake.starting = True
    health = engine.health(fake.replica)
    assert (health.live, health.ready) == (True, False)
    fake.server.always("GET", "/ready", Trouble.says(404))
    assert engine.health(fake.replica).ready
    assert len(fake.server.asked("GET", "/health")) == 1


def test_a_sidecar_with_the_contract_is_used_where_there_is_one(engine, fake):
    sidecar = FakeServer()
    contract = FakeContract("sglang", {"batch_size": FakeKnob(32, 32)})
    contract.serve_on(sidecar)
    replica = replace(fake.replica, control_url=sidecar.url)
    try:
        seen = engine.read(replica)
        state = engine.set(replica, EIGHT, seen, ttl_s=60.0, reason="tested")
        assert (state.knobs["batch_size"].value, state.ttl) == (8, True)
        assert {c.knob: c for c in engine.capabilities(replica)}["batch_size"].movable
        assert engine.release(replica, state).knobs["batch_size"].value == 32
        contract.paused = True
        assert "paused" in engine.health(replica).why
    finally:
        sidecar.close()
    assert engine.health(replica).ready, "a sidecar that is away says nothing"
    assert fake.server.writes() == []
