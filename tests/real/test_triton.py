"""The Triton adapter against a real server: `make proof-triton`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.real.triton_server import TritonServer
from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines import EngineHttp, EngineState
from tuner.engines.openai import address
from tuner.engines.triton import METRICS, Triton, with_knobs
from tuner.knobs import KNOBS

pytestmark = pytest.mark.skipif(
    os.environ.get("TUNER_TRITON") != "1",
    reason="TUNER_TRITON is not 1: the real Triton is an optional job (make proof-triton)",
)
CLIENTS = 12
REQUESTS = 8
"""Per client: enough to fill batches above every cap that is tried."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(tmp_path_factory.mktemp("triton")) as running:
        yield running


@pytest.fixture
def http() -> Iterator[EngineHttp]:
    with EngineHttp(timeout_s=30.0) as client:
        yield client


@pytest.fixture
def engine(http: EngineHttp, server: TritonServer) -> Iterator[Triton]:
    adapter = Triton(http)
    yield adapter
    adapter.release(server.replica, adapter.read(server.replica))


def put(engine: Triton, server: TritonServer, **knobs: int) -> EngineState:
    seen = engine.read(server.replica)
    wanted = KnobSettings(knobs)
    return engine.set(server.replica, wanted, seen, ttl_s=None, reason="tested")


def load(engine: Triton, server: TritonServer) -> None:
    """A closed loop of clients; raises if any request fails."""

    def client(_: int) -> None:
        for _ in range(REQUESTS):
            engine.complete(server.replica)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))


def counted(server: TritonServer, name: str) -> float:
    found = re.search(rf'^{name}\{{model="tiny",version="1"\}} (\S+)$', server.page(), flags=re.M)
    return float(found.group(1)) if found else 0.0


def test_a_healthy_server_is_live_ready_and_infers(engine, server):
    health = engine.health(server.replica)
    assert (health.live, health.ready, health.why) == (True, True, "")
    assert engine.complete(server.replica) > 0


def test_the_probe_finds_both_knobs_movable_and_changes_nothing(engine, server):
    before = engine.read(server.replica)
    found = engine.capabilities(server.replica)
    assert [capability.knob for capability in found] == list(KNOBS)
    assert {c.knob: c.applied for c in found if c.movable} == {
        "batch_size": "reload",
        "threads": "hot",
        "replicas": "scale",
        "warmup_requests": "client",
    }
    assert engine.read(server.replica) == before
    assert (before.version, before.knobs["batch_size"].value) == ("2.51.0", 8)


def test_a_server_without_explicit_control_says_why_nothing_moves(http, tmp_path: Path):
    with TritonServer(tmp_path, explicit=False) as server:
        engine = Triton(http)
        found = {c.knob: c for c in engine.capabilities(server.replica)}
        assert not found["batch_size"].movable
        assert "explicit model load / unload is not allowed" in found["batch_size"].sentence
        with pytest.raises(FaultError) as caught:
            put(engine, server, batch_size=2)
        assert caught.value.fault.reason is FaultReason.NOT_READY


def test_a_lower_batch_size_is_kept_by_a_server_that_is_fed(engine, server):
    assert put(engine, server, batch_size=2).knobs["batch_size"].value == 2
    inferences, executions = (
        counted(server, name) for name in ("nv_inference_count", "nv_inference_exec_count")
    )
    load(engine, server)
    inferences = counted(server, "nv_inference_count") - inferences
    executions = counted(server, "nv_inference_exec_count") - executions
    assert inferences == CLIENTS * REQUESTS
    assert 1 < inferences / executions <= 2, "above 1 it was fed, above 2 the cap was not kept"


def test_release_brings_the_repository_s_configuration_back(engine, server, http):
    url = address(server.replica, "/v2/models/tiny/config")
    before = http.get("triton-0", url).mapping()
    put(engine, server, batch_size=2, threads=2)
    engine.release(server.replica, engine.read(server.replica))
    assert http.get("triton-0", url).mapping() == before


def test_instances_come_and_go_without_a_failed_request(engine, server):
    during(engine, server, lambda: put(engine, server, threads=2))
    assert engine.read(server.replica).knobs["threads"].value == 2
    during(engine, server, lambda: put(engine, server, threads=1))
    assert engine.read(server.replica).knobs["threads"].value == 1


def test_a_reload_fails_no_request(engine, server):
    during(engine, server, lambda: put(engine, server, batch_size=4))
    assert engine.read(server.replica).knobs["batch_size"].value == 4


def during(engine: Triton, server: TritonServer, change: Callable[[], object]) -> None:
    """Make a change while requests go on; raises if any fails."""
    done, begun = Event(), Event()

    def client(_: int) -> int:
        served = 0
        while not done.is_set() or served == 0:
            engine.complete(server.replica)
            begun.set()
            served += 1
        return served

    with ThreadPoolExecutor(4) as clients:
        results = [clients.submit(client, i) for i in range(4)]
        assert begun.wait(30.0)
        try:
            change()
        finally:
            done.set()
        assert all(result.result() > 0 for result in results)


def test_a_refused_load_leaves_the_old_model_serving(engine, server, http):
    replica = server.replica
    config = http.get("triton-0", address(replica, "/v2/models/tiny/config")).mapping()
    wrong = with_knobs({**config, "max_batch_size": 2}, KnobSettings(threads=1))
    with pytest.raises(FaultError) as caught:
        engine._load(replica, "tiny", {"parameters": {"config": json.dumps(wrong)}})
    assert caught.value.fault.reason is FaultReason.SERVER_ERROR
    assert "the old model goes on serving" in str(caught.value)
    assert engine.read(replica).knobs["batch_size"].value == 8
    assert engine.complete(replica) > 0


def test_every_series_of_the_table_stands_on_the_page(engine, server):
    engine.complete(server.replica)
    page = server.page()
    for series in (*METRICS.finished, METRICS.waiting, METRICS.e2e_p99_s):
        assert series is not None
        labels = "".join(rf'(?=[^}}\n]*{k}="{v}")' for k, v in series.labels.items())
        assert re.search(rf"^{series.name}\{{{labels}[^}}\n]*\}} ", page, flags=re.M), series.name
    for series in METRICS.failed:
        assert re.search(rf"^# TYPE {series.name} counter$", page, flags=re.M)
