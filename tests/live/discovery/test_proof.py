"""The live proof: a fake cluster, a real page, a real adapter; each gap is a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tests.engines.fakes.server import Answer
from tests.engines.fakes.vllm import FakeVllm
from tests.kube import objects
from tests.kube.fake_api import FakeApi, Trouble
from tests.live.engine_page import EnginePage
from tuner.config import (
    EngineConfig,
    KubernetesConfig,
    PrometheusConfig,
    ScrapeConfig,
    TargetConfig,
)
from tuner.core.observation import FIELD_NAMES
from tuner.live.discovery.proof import ProofRow, live_proof


@pytest.fixture
def engine() -> Iterator[FakeVllm]:
    engine = FakeVllm()
    page = EnginePage()

    def metrics(request: object) -> Answer:
        # Something has happened between any two looks.
        page.finish()
        return Answer(200, page.text().encode())

    engine.server.on("GET", "/metrics", metrics)
    yield engine
    engine.close()


@pytest.fixture
def api(tmp_path, monkeypatch) -> Iterator[FakeApi]:
    things = [objects.deployment(replicas=1), objects.pod("r1-a", ip="127.0.0.1")]
    with FakeApi(objects=things) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        yield api


@pytest.fixture
def target(engine) -> TargetConfig:
    return TargetConfig(
        name="r1",
        policy="hpa",
        fallback_options={"metric": "queue_depth", "target": 5},
        engine=EngineConfig(kind="vllm", timeout_s=2.0),
        kubernetes=KubernetesConfig(
            namespace="llm",
            deployment="r1",
            serving_port=urlsplit(engine.server.url).port or 0,
            control_port=urlsplit(engine.control.url).port,
            timeout_s=1.0,
        ),
        scrape=ScrapeConfig(),
        tick_s=0.2,
        move=("replicas", "batch_size"),
    )


def proof(target: TargetConfig) -> dict[str, ProofRow]:
    rows = live_proof(target)
    assert len({row.field for row in rows}) == len(rows)
    assert all(row.sentence for row in rows)
    return {row.field: row for row in rows}


def test_every_field_of_the_observation_has_a_row(api, target):
    rows = proof(target)
    assert set(FIELD_NAMES) <= set(rows)
    assert rows["running"].found
    assert (rows["running"].value, rows["running"].unit) == (0.0, "requests")
    assert rows["running"].age_s is not None
    assert rows["output_tokens_per_s"].found
    assert rows["ttft_p50_s"].found


def test_an_estimate_says_that_it_is_one(api, target):
    row = proof(target)["qps"]
    assert row.found
    assert "estimate" in row.sentence


def test_what_is_not_configured_says_how_to(api, target):
    rows = proof(target)
    assert (rows["business"].found, rows["business"].needed) == (False, False)
    assert "business.query" in rows["business"].sentence
    assert "`gpu`" in rows["gpu_util"].sentence


def test_what_the_rule_the_guardrails_and_the_moves_rest_on_is_needed(api, target):
    needed = {name for name, row in proof(target).items() if row.needed}
    assert needed == {
        "rights",
        "replicas",
        "engine",
        "qps",
        "output_tokens_per_s",
        "in_flight",
        "ready_replicas",
        "queue_depth",
        "knob.batch_size",
    }


def test_the_engine_says_which_knobs_it_lets_move(api, target):
    rows = proof(target)
    assert rows["engine"].found
    assert rows["knob.batch_size"].found
    assert not rows["knob.threads"].found


def test_an_account_that_may_do_everything_fits_active_and_not_shadow(api, target):
    row = proof(target)["rights"]
    assert row.found
    assert row.sentence.startswith("fit active mode; not shadow: kubernetes: shadow must not be")


def test_an_account_without_rights_fits_no_mode(api, target):
    api.rules = []
    rows = proof(target)
    assert not rows["rights"].found
    assert "list pods" in rows["rights"].sentence
    assert not rows["replicas"].found
    assert rows["replicas"].needed


def test_the_lease_of_a_running_controller_is_left_alone(api, target):
    api.put(objects.lease())
    assert target.kubernetes is not None
    rows = proof(replace(target, kubernetes=replace(target.kubernetes, lease="tuner")))
    assert rows["rights"].sentence.startswith("fit active mode")
    assert [call for call in api.calls if call.resource == "leases"] == []


def test_nothing_is_written(api, target, engine):
    proof(target)
    assert api.calls_of("patch", "update") == []
    # The adapter may ask by a dry run what it could do.
    patches = [request for request in engine.control.requests if request.method == "PATCH"]
    assert all("dry_run" in str(request.json) + request.path for request in patches)
    assert engine.cap == engine.ceiling


@pytest.mark.parametrize("kind", ["hang", "garbage", "drop"])
def test_a_cluster_in_trouble_is_rows_and_no_traceback(api, target, kind):
    api.trouble(Trouble(kind, times=99))
    rows = proof(target)
    assert not rows["rights"].found
    assert not rows["replicas"].found


def test_without_a_ready_replica_there_is_nobody_to_ask(api, target):
    api.put(objects.pod("r1-a", ip=None, ready=False, running=False))
    rows = proof(target)
    assert not rows["engine"].found
    assert not rows["replicas"].found
    assert not rows["running"].found


def test_a_prometheus_that_is_not_there_is_told_for_every_field(api, target):
    target = replace(
        target, scrape=None, prometheus=PrometheusConfig("http://127.0.0.1:9", timeout_s=0.5)
    )
    rows = proof(target)
    assert not rows["qps"].found
    assert "prometheus" in rows["qps"].sentence
    assert rows["engine"].found
