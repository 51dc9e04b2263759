"""Triton: the whole configuration, preferred sizes along with it, and a 500 that is a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.engines.fakes import FakeContract, FakeKnob, FakeServer, FakeTriton, Trouble
from tests.engines.fakes.triton import MODEL
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import Capability, Engine, EngineHttp, EngineState
from tuner.engines.triton import BASE, Triton, restored, with_knobs

LOAD = f"/v2/repository/models/{MODEL}/load"
TWO = KnobSettings(batch_size=2)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with EngineHttp(timeout_s=10.0) as http:
        yield Triton(http)


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    found = FakeTriton()
    yield found
    found.close()


def put(engine: Engine, fake: FakeTriton, wanted: KnobSettings = TWO) -> EngineState:
    seen = engine.read(fake.replica)
    return engine.set(fake.replica, wanted, seen, ttl_s=60.0, reason="tested")


def refused(engine: Engine, fake: FakeTriton, wanted: KnobSettings = TWO) -> FaultError:
    with pytest.raises(FaultError) as caught:
        put(engine, fake, wanted)
    assert caught.value.fault.knob in wanted
    return caught.value


def test_reads_batch_size_and_instances_off_the_configuration_in_force(engine, fake):
    state = engine.read(fake.replica)
    assert (state.engine, state.version, state.model) == ("triton", "2.51.0", MODEL)
    assert (state.knobs["batch_size"].value, state.knobs["batch_size"].applied) == (8, "reload")
    assert (state.knobs["threads"].value, state.knobs["threads"].applied) == (1, "hot")
    assert (state.revision, state.ttl) == (None, False)


def test_sends_the_whole_configuration_with_smaller_preferred_sizes(engine, fake):
    assert put(engine, fake).knobs["batch_size"].value == 2
    sent = json.loads(fake.loads[0]["parameters"]["config"])
    assert sent["max_batch_size"] == 2
    assert sent["dynamic_batching"]["preferred_batch_size"] == [2]
    assert sent["parameters"]["kept"] == fake.repository["parameters"]["kept"]
    assert len(fake.loads) == 1


def test_moves_both_knobs_in_one_load(engine, fake):
    state = put(engine, fake, KnobSettings(batch_size=4, threads=3))
    assert (state.knobs["batch_size"].value, state.knobs["threads"].value) == (4, 3)
    assert len(fake.loads) == 1


PREFERRED = [
    # preferred sizes of a model that starts with 8, the steps, and what is preferred then
    ([4, 8], [2], [2]),
    ([4, 8], [6], [4, 6]),
    ([4, 8], [16], [4, 16]),
    ([4], [16], [4]),
    ([4, 8], [2, 8], [4, 8]),  # cut from step to step it would stay at batches of 2
    ([4, 8], [2, 6], [4, 6]),
]


@pytest.mark.parametrize(("preferred", "steps", "after"), PREFERRED)
def test_preferred_sizes_follow_the_batch_size(preferred, steps, after):
    batching = {"preferred_batch_size": preferred, "max_queue_delay_microseconds": 9}
    start = {"max_batch_size": 8, "dynamic_batching": batching, "parameters": {}}
    config = start
    for step in steps:
        config = with_knobs(config, KnobSettings(batch_size=step))
    assert config["max_batch_size"] == steps[-1]
    assert config["dynamic_batching"] == {**batching, "preferred_batch_size": after}
    assert start["max_batch_size"] == 8, "the configuration read is left as it is"
    assert restored(config) == start


@pytest.mark.parametrize("batching", [None, {}, {"preferred_batch_size": []}])
def test_a_model_without_preferred_sizes_gets_none(batching):
    config = {"max_batch_size": 8, **({} if batching is None else {"dynamic_batching": batching})}
    changed = with_knobs(config, TWO)
    del changed["parameters"]
    assert changed == {**config, "max_batch_size": 2}


def test_what_was_never_changed_is_restored_as_it_is():
    config = {"max_batch_size": 8, "parameters": {"mine": {"string_value": "1"}}}
    assert restored(config) == config


def test_a_load_that_is_refused_leaves_the_old_model_and_says_so(engine, fake):
    fake.server.trouble("POST", LOAD, Trouble.says(500, {"error": "failed to load 'deepseek'"}))
    found = refused(engine, fake)
    assert found.fault.reason is FaultReason.SERVER_ERROR
    assert "failed to load" in str(found)
    assert "the old model goes on serving" in str(found)
    assert fake.config == fake.repository


def test_an_agreement_without_effect_is_a_refusal(engine, fake):
    fake.obeys = False
    assert refused(engine, fake).fault.reason is FaultReason.REFUSED


def test_a_lost_answer_is_settled_by_reading_back(engine, fake):
    fake.server.trouble("POST", LOAD, Trouble("lost"))
    assert put(engine, fake).knobs["batch_size"].value == 2
    assert len(fake.loads) == 1


def test_a_load_that_is_still_under_way_is_unknown(fake):
    fake.server.trouble("POST", LOAD, Trouble("hangs", done=False))
    with EngineHttp(timeout_s=10.0) as http:
        found = refused(Triton(http, load_timeout_s=0.2), fake)
    assert found.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert "no answer within 0.2 s" in str(found)
    assert len(fake.server.asked("POST", LOAD)) == 1


def test_a_configuration_that_moved_since_is_a_conflict(engine, fake):
    seen = engine.read(fake.replica)
    fake.config["max_batch_size"] = 4
    with pytest.raises(FaultError) as caught:
        engine.set(fake.replica, TWO, seen, ttl_s=None, reason="late")
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert fake.loads == []


@pytest.mark.parametrize("wanted", [{"batch_size": 0}, {"threads": 0}, {"batch_size": 10**6}])
def test_values_outside_the_range_are_refused_unsent(engine, fake, wanted):
    assert refused(engine, fake, KnobSettings(wanted)).fault.reason is FaultReason.INVALID
    assert fake.loads == []


def test_release_brings_back_what_the_first_change_wrote_down(engine, fake):
    put(engine, fake)
    state = put(engine, fake, KnobSettings(batch_size=4, threads=3))
    assert (state.knobs["batch_size"].base, state.knobs["threads"].base) == (8, 1)
    state = engine.release(fake.replica, state)
    assert (state.knobs["batch_size"].value, state.knobs["threads"].value) == (8, 1)
    assert fake.config == fake.repository


def test_release_of_an_untouched_model_loads_nothing(engine, fake):
    seen = engine.read(fake.replica)
    assert engine.release(fake.replica, seen) is seen
    assert fake.loads == []


ODD = {
    "a note that is no JSON": {"parameters": {BASE: {"string_value": "{"}}},
    "a note of another kind": {"parameters": {BASE: {"string_value": "[1]"}}},
    "a note without numbers": {"parameters": {BASE: {"string_value": '{"max_batch_size": "8"}'}}},
    "parameters that are a list": {"parameters": [1]},
    "a list for a note": {"parameters": {BASE: [1]}},
    "sizes that are words": {"dynamic_batching": {"preferred_batch_size": ["8"]}},
    "batching that is a number": {"dynamic_batching": 3},
    "no groups": {"instance_group": []},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_an_odd_configuration_is_no_traceback(engine, fake, change):
    fake.config.update(change)
    fake.repository.update(change)
    assert put(engine, fake).knobs["batch_size"].value == 2
    state = engine.release(fake.replica, engine.read(fake.replica))
    assert state.knobs["batch_size"].value == 8


WRONG = {
    "a batch that is a word": {"max_batch_size": "8"},
    "groups that are a number": {"instance_group": 3},
    "a count that is a word": {"instance_group": [{"count": "1"}]},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_configuration_without_numbers_is_a_bad_answer(engine, fake, change):
    fake.config.update(change)
    with pytest.raises(FaultError) as caught:
        engine.read(fake.replica)
    assert caught.value.fault.reason is FaultReason.BAD_ANSWER


# The probe.


def capabilities(engine: Engine, fake: FakeTriton) -> tuple[Capability, Capability]:
    found = {c.knob: c for c in engine.capabilities(fake.replica)}
    return found["batch_size"], found["threads"]


def test_the_probe_loads_nothing(engine, fake):
    batch, threads = capabilities(engine, fake)
    assert (batch.movable, batch.applied) == (True, "reload")
    assert (threads.movable, threads.applied) == (True, "hot")
    assert "both copies in memory" in batch.sentence
    assert fake.loads == []


def test_the_probe_tells_a_server_that_does_not_load_on_demand(engine):
    fake = FakeTriton(explicit=False)
    try:
        found = capabilities(engine, fake)
        moved = refused(engine, fake)
    finally:
        fake.close()
    for capability in found:
        assert not capability.movable
        assert "--model-control-mode=explicit" in capability.sentence
    assert moved.fault.reason is FaultReason.NOT_READY


def test_a_model_that_takes_no_batches_has_none_to_move(engine):
    fake = FakeTriton(batch=0)
    try:
        batch, threads = capabilities(engine, fake)
        assert engine.read(fake.replica).knobs["batch_size"].applied == "unsupported"
    finally:
        fake.close()
    assert not batch.movable
    assert "max_batch_size is 0" in batch.sentence
    assert threads.movable


def test_several_instance_groups_are_nobody_s_to_move(engine, fake):
    fake.config["instance_group"] = [{"count": 1}, {"count": 2}]
    _, threads = capabilities(engine, fake)
    assert not threads.movable
    assert "exactly one instance group" in threads.sentence
    assert engine.read(fake.replica).knobs["threads"].value == 3


# Health and inference.


@pytest.mark.parametrize(
    ("flag", "live"), [("live", False), ("ready", True), ("model_ready", True)]
)
def test_ready_means_server_and_model(engine, fake, flag, live):
    assert engine.health(fake.replica).ready
    setattr(fake, flag, False)
    health = engine.health(fake.replica)
    assert (health.live, health.ready) == (live, False)


def test_infers_on_zeros_in_the_shape_of_the_model(engine, fake):
    assert engine.complete(fake.replica) > 0
    assert fake.inferences == [
        {"inputs": [{"name": "IDS", "datatype": "INT64", "shape": [1, 1], "data": [0]}]}
    ]


TENSORS = [
    ({"datatype": "BYTES", "shape": [-1, 1]}, [1, 1], [""]),
    ({"datatype": "FP32", "shape": [2, 3]}, [2, 3], [0.0] * 6),
    ({"datatype": "BOOL", "shape": [-1]}, [1], [False]),
    ({"datatype": "INT32", "shape": []}, [], [0]),
]


@pytest.mark.parametrize(("tensor", "shape", "data"), TENSORS, ids=lambda v: str(v))
def test_every_type_has_a_zero(engine, fake, tensor, shape, data):
    metadata = {"name": MODEL, "inputs": [{"name": "X", **tensor}]}
    fake.server.always("GET", f"/v2/models/{MODEL}", Trouble.says(200, metadata))
    engine.complete(fake.replica)
    sent = fake.inferences[0]["inputs"][0]
    assert (sent["shape"], sent["data"]) == (shape, data)


@pytest.mark.parametrize("outputs", [[], [{"name": "OUT", "data": []}], [{"name": "OUT"}]])
def test_a_200_with_empty_output_is_no_completion(engine, fake, outputs):
    url = f"/v2/models/{MODEL}/infer"
    fake.server.always("POST", url, Trouble.says(200, {"outputs": outputs}))
    with pytest.raises(FaultError) as caught:
        engine.complete(fake.replica)
    assert caught.value.fault.reason is FaultReason.BAD_ANSWER
    assert "numpy 2" in str(caught.value)


def test_a_sidecar_with_the_contract_is_used_where_there_is_one(engine, fake):
    sidecar = FakeServer()
    knobs = {"batch_size": FakeKnob(8, 8, 1, "reload"), "threads": FakeKnob(1, 4)}
    contract = FakeContract("triton", knobs)
    contract.serve_on(sidecar)
    replica = replace(fake.replica, control_url=sidecar.url)
    try:
        state = engine.set(replica, TWO, engine.read(replica), ttl_s=60.0, reason="tested")
        assert (state.knobs["batch_size"].value, state.ttl) == (2, True)
        found = {c.knob: c.movable for c in engine.capabilities(replica)}
        assert found["batch_size"]
        assert found["threads"]
        assert engine.release(replica, state).knobs["batch_size"].value == 8
        contract.draining = True
        assert "draining" in engine.health(replica).why
    finally:
        sidecar.close()
    assert fake.loads == []
