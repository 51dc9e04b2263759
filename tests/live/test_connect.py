"""From a section of tuner.yaml to a cluster, over real sockets."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic

import httpx
import pytest

from tests.live.fake_engine import FakeEngine
from tuner.config import (
    EndpointConfig,
    EngineConfig,
    KnobRange,
    ProcessesConfig,
    PrometheusConfig,
    SandboxConfig,
    ScrapeConfig,
    TargetConfig,
)
from tuner.core.clock import WallClock
from tuner.core.decision import Decision, Source
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.live.cluster import LiveCluster
from tuner.live.connect import connect
from tuner.live.processes.started import mark_of
from tuner.live.shadow import Shadow


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeEngine(name=f"e{i}")) for i in range(2)]


@pytest.fixture
def target(engines: list[FakeEngine]) -> TargetConfig:
    return TargetConfig(
        name="r1",
        policy="static",
        engine=EngineConfig(kind="vllm", timeout_s=5.0),
        scrape=ScrapeConfig(),
        processes=ProcessesConfig(
            endpoints=tuple(
                EndpointConfig(f"e{i}", engine.url, engine.control_url)
                for i, engine in enumerate(engines)
            )
        ),
        knobs={"batch_size": KnobRange(1, 64), "replicas": KnobRange(1, 8)},
        move=("batch_size",),
    )


def decision(settings: KnobSettings, **target: int) -> Decision:
    return Decision(0.0, None, None, settings, KnobSettings(target), Source.POLICY)


def test_an_active_cluster_observes_and_moves(target, engines):
    httpx.post(f"{engines[0].url}/v1/completions", json={}).raise_for_status()
    cluster = connect(target, WallClock(), writes=True)
    assert isinstance(cluster, LiveCluster)
    try:
        observation = cluster.observe()
        assert observation.settings == {"batch_size": 32, "replicas": 2, "threads": 4}
        assert (observation.ready_replicas, observation.running) == (2.0, 0.0)
        assert [replica.name for replica in observation.replicas] == ["e0", "e1"]
        receipt = cluster.apply(decision(observation.settings, batch_size=16))
        assert (receipt.applied, receipt.faults) == ({"batch_size": 16}, ())
        assert [engine.batch_size for engine in engines] == [16, 16]
        cluster.release()
        assert [engine.batch_size for engine in engines] == [32, 32]
    finally:
        cluster.close()


def test_without_writes_it_is_a_shadow(target, engines):
    cluster = connect(target, WallClock(), writes=False)
    assert isinstance(cluster, Shadow)
    try:
        settings = cluster.observe().settings
        receipt = cluster.apply(decision(settings, batch_size=16, replicas=4))
        assert [(f.reason, f.knob) for f in receipt.faults] == [(FaultReason.SHADOW, "batch_size")]
        cluster.release()
        assert [engine.patches for engine in engines] == [[], []]
    finally:
        cluster.close()


def test_secrets_reach_the_engine_and_nothing_else(target, engines, tmp_path, caplog):
    (tmp_path / "token").write_text(" s3cret\n")
    configured = replace(target, engine=replace(target.engine, token_file=str(tmp_path / "token")))
    cluster = connect(configured, WallClock(), writes=True)
    try:
        cluster.observe()
    finally:
        cluster.close()
    assert engines[0].tokens == {"Bearer s3cret"}
    assert "s3cret" not in caplog.text + repr(cluster) + repr(configured)


def no_source(target: TargetConfig) -> TargetConfig:
    return replace(target, scrape=None)


def two_sources(target: TargetConfig) -> TargetConfig:
    return replace(target, prometheus=PrometheusConfig("http://127.0.0.1:9090"))


def no_pool(target: TargetConfig) -> TargetConfig:
    return replace(target, processes=None)


def two_pools(target: TargetConfig) -> TargetConfig:
    return replace(target, sandbox=SandboxConfig("http://127.0.0.1:1"))


def unknown_engine(target: TargetConfig) -> TargetConfig:
    return replace(target, engine=replace(target.engine, kind="vlm"))


def unknown_knob(target: TargetConfig) -> TargetConfig:
    return replace(target, knobs={"batchsize": KnobRange(1, 2)})


def empty_range(target: TargetConfig) -> TargetConfig:
    return replace(target, knobs={"batch_size": KnobRange(8, 2)})


def no_token_file(target: TargetConfig) -> TargetConfig:
    return replace(target, engine=replace(target.engine, token_file="/no/such/token"))


def empty_key_file(target: TargetConfig) -> TargetConfig:
    return replace(target, engine=replace(target.engine, api_key_file="/dev/null"))


def no_replica(target: TargetConfig) -> TargetConfig:
    return replace(target, processes=ProcessesConfig(endpoints=()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (no_source, "expected one of prometheus, scrape; found none of them"),
        (two_sources, "expected one of prometheus, scrape; found prometheus and scrape"),
        (no_pool, "expected one of kubernetes, processes, sandbox; found none of them"),
        (two_pools, "found processes and sandbox"),
        (unknown_engine, "engine.kind 'vlm' is unknown; did you mean 'vllm'?"),
        (unknown_knob, "knobs.batchsize is not a known knob"),
        (empty_range, "low 8 is above high 2"),
        (no_token_file, "engine.token_file: /no/such/token cannot be read"),
        (empty_key_file, "engine.api_key_file: /dev/null is empty"),
        (no_replica, "there is no replica"),
    ],
)
def test_a_section_that_cannot_work_is_refused_with_a_sentence(target, change, sentence):
    with pytest.raises(ConfigError) as refused:
        connect(change(target), WallClock(), writes=True)
    assert sentence in str(refused.value)


def test_an_orchestrator_that_refuses_leaves_nothing_open(target, tmp_path):
    refused = replace(target.processes, command=("no-such-engine", "{port}"))
    before = _open_files()
    with pytest.raises(ConfigError, match="not a program"):
        connect(replace(target, processes=refused), WallClock(), writes=True)
    assert _open_files() <= before


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_one_two_one_through_decisions(target, engines, tmp_path):
    """Replicas are started, set like the others as soon as they are ready, and drained again."""
    root = Path(__file__).parents[2]
    fake = str(root / "tests/live/fake_engine.py")
    processes = ProcessesConfig(
        endpoints=target.processes.endpoints[:1],
        command=(sys.executable, fake, "--port", "{port}", "--control-port", "{control_port}"),
        environment={"PYTHONPATH": str(root)},
        state_dir=str(tmp_path / "state"),
    )
    moving = replace(target, processes=processes, move=("batch_size", "replicas"))
    cluster = connect(moving, WallClock(), writes=True)

    def tick(**wanted: int) -> Observation:
        observation = cluster.observe()
        receipt = cluster.apply(decision(observation.settings, **wanted))
        faults = [fault for fault in receipt.faults if fault.reason is FaultReason.CONFLICT]
        assert faults == []
        return observation

    def tick_until(**wanted: int) -> Observation:
        pause, ends_s = Event(), monotonic() + 60.0
        while True:
            seen = tick(**wanted)
            settled = seen.ready_replicas == len(seen.replicas) == wanted["replicas"]
            if settled and seen.settings.get("batch_size") == wanted["batch_size"]:
                return seen
            assert monotonic() < ends_s, seen
            pause.wait(0.1)

    try:
        tick(batch_size=16, replicas=2)
        tick_until(batch_size=16, replicas=2)
        both = tick(batch_size=16, replicas=2)
        assert (both.settings["replicas"], both.faults) == (2, ())
        last = tick_until(batch_size=8, replicas=1)
        assert last.settings == {
            "batch_size": 8,
            "replicas": 1,
            "threads": 4,
            "warmup_requests": 0,
        }
    finally:
        for process in json.loads((tmp_path / "state/processes.json").read_text())["processes"]:
            if mark_of(process["pid"]) == process["mark"]:
                os.killpg(process["pid"], signal.SIGKILL)
        cluster.close()
