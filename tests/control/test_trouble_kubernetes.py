"""The whole controller over real sockets on a cluster whose API server is in trouble."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.files import target, write
from tests.control.whole import FREE, Ended
from tests.kube import objects
from tests.kube.fake_api import FakeApi, Trouble
from tests.live.fake_engine import FakeEngine
from tuner.config import TargetConfig
from tuner.config.file import load_config
from tuner.control.assembly import Reach, plan_of
from tuner.control.audit_store import AuditStore, Promotion, PromotionKind
from tuner.control.logs import logger_to
from tuner.control.metrics import ControllerMetrics
from tuner.control.service import RunningCluster, TargetLoop
from tuner.core.clock import Clock, WallClock
from tuner.core.observation import Observation
from tuner.live.connect import connect

TICKS = 2


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fleet = [objects.deployment(replicas=1), objects.pod("r1-a", ip="127.0.0.1"), objects.lease()]
    with FakeApi(objects=fleet) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        yield api


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


def wants_two(engine: FakeEngine, **section: Any) -> dict[str, Any]:
    """A target on which everybody wants two replicas and batches of 16."""
    return {
        "processes": ...,
        "kubernetes": {
            "namespace": "llm",
            "deployment": "r1",
            "serving_port": port(engine.url),
            "control_port": port(engine.control_url),
            "timeout_s": 0.3,
            **section,
        },
        "policy_options": {"replicas": 2, "batch_size": 16},
        "fallback": "static",
        "fallback_options": {"replicas": 2, "batch_size": 16},
        "knobs": {"replicas": {"low": 1, "high": 4}, "batch_size": {"low": 1, "high": 64}},
        "move": ["replicas", "batch_size"],
    }


def replicas(api: FakeApi) -> int:
    return int(api.find("deployments", "r1")["spec"]["replicas"])


TROUBLES = [
    pytest.param(Trouble("status", 401), "Unauthorized", id="401"),
    pytest.param(Trouble("status", 403), "Forbidden", id="403"),
    pytest.param(Trouble("status", 404), "NotFound", id="404"),
    pytest.param(Trouble("status", 409), "Conflict", id="409"),
    pytest.param(Trouble("status", 429, retry_after_s=60), "RateLimited", id="429"),
    pytest.param(Trouble("status", 500), "ServerError", id="500"),
    pytest.param(Trouble("hang"), "TimedOut", id="hang"),
    pytest.param(Trouble("trickle"), "TimedOut", id="trickle"),
    pytest.param(Trouble("garbage"), "BadAnswer", id="no JSON"),
]


def test_on_a_healthy_cluster_it_scales_sets_and_gives_back(
    tmp_path: Path, api: FakeApi, engine: FakeEngine
) -> None:
    ended = Ended(tmp_path, [engine], **wants_two(engine))
    assert ended.went_well()
    assert (replicas(api), engine.batch_size) == (2, 32)
    assert [body["reason"] for body in engine.patches if not body.get("dry_run")] == [
        "decision",
        "renewal",
        "release",
    ]


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
def test_where_the_pods_cannot_be_read_nothing_is_changed(
    tmp_path: Path, api: FakeApi, engine: FakeEngine, trouble: Trouble, reason: str
) -> None:
    # The look of the capability probe is one of them.
    api.trouble(replace(trouble, verb="list", resource="pods", times=TICKS + 2))
    ended = Ended(tmp_path, [engine], ticks=TICKS, **wants_two(engine))
    assert ended.went_well()
    assert (replicas(api), engine.batch_size) == (1, 32)
    assert api.calls_of("patch") == []
    assert ended.nothing_was_written()
    assert len(ended.decisions) == TICKS
    assert ended.faults("read", reason, "kubernetes") == TICKS
    assert "kubernetes: GET /api/v1/namespaces/llm/pods" in ended.sentences


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
def test_where_the_replicas_cannot_be_written_they_stay_and_it_is_told(
    tmp_path: Path, api: FakeApi, engine: FakeEngine, trouble: Trouble, reason: str
) -> None:
    api.trouble(replace(trouble, verb="patch", resource="deployments/scale", times=99))
    ended = Ended(tmp_path, [engine], ticks=TICKS, **wants_two(engine))
    assert ended.went_well()
    assert replicas(api) == 1
    found = {"TimedOut": "OutcomeUnknown", "ServerError": "OutcomeUnknown"}.get(reason, reason)
    found = "OutcomeUnknown" if reason == "BadAnswer" else found
    assert ended.faults("write", found, "kubernetes") > 0
    assert 'tuner_actuations_total{knob="replicas",outcome="applied"' not in ended.page
    # A conflict under the same number of replicas is tried once more, with the new version.
    most = {"Conflict": 2 * TICKS, "RateLimited": 1}.get(reason, TICKS)
    assert len(api.calls_of("patch")) <= most


@pytest.mark.parametrize("kind", ["drop_after", "hang_after"])
def test_a_scale_whose_answer_is_lost_is_read_back_and_sent_once(
    tmp_path: Path, api: FakeApi, engine: FakeEngine, kind: Any
) -> None:
    api.trouble(Trouble(kind, verb="patch", resource="deployments/scale", times=99))
    ended = Ended(tmp_path, [engine], ticks=TICKS, **wants_two(engine))
    assert ended.went_well()
    assert replicas(api) == 2
    assert len(api.calls_of("patch")) == 1


def test_without_the_lease_neither_replicas_nor_engines_are_written(
    tmp_path: Path, api: FakeApi, engine: FakeEngine
) -> None:
    held = objects.lease()
    held["spec"] = {
        "holderIdentity": "tuner-b",
        "renewTime": "2026-11-20T10:00:00.000001Z",
        "leaseDurationSeconds": 60,
    }
    api.put(held)
    ended = Ended(tmp_path, [engine], ticks=TICKS, **wants_two(engine, lease="tuner"))
    assert ended.went_well()
    assert (replicas(api), engine.batch_size) == (1, 32)
    assert ended.nothing_was_written()
    assert ended.faults("write", "Refused", "kubernetes") == TICKS
    assert "is held by 'tuner-b'" in ended.sentences
    assert api.find("leases", "tuner")["spec"]["holderIdentity"] == "tuner-b"


def test_a_target_that_is_demoted_while_it_runs_is_watched_with_the_rights_it_has(
    tmp_path: Path, api: FakeApi, engine: FakeEngine
) -> None:
    role = Path(__file__).parents[2] / "deploy/manifests/active/role.yaml"
    api.rules = yaml.safe_load(role.read_text(encoding="utf-8"))["rules"]
    api.put(objects.config_map())
    section = {"engine": {"kind": "vllm", "timeout_s": 2.0}, "tick_s": 0.1}
    wanted = {**wants_two(engine, lease="tuner"), **section, "prometheus": ..., "scrape": {}}
    wanted |= {"policy": "static"}
    config = load_config(write(tmp_path, target(**wanted), server=FREE))
    store, output = AuditStore.open(config.audit), io.StringIO()
    log, metrics = logger_to(output), ControllerMetrics()

    def connected(one: TargetConfig, clock: Clock, writes: bool) -> RunningCluster:
        assert writes
        cluster = connect(one, clock, writes=True)
        observe = cluster.observe

        def observe_and_be_demoted() -> Observation:
            store.add_promotion(
                Promotion("r1", 1.0, PromotionKind.DEMOTED, None, None, None, "ann@desk", "0")
            )
            return observe()

        cluster.observe = observe_and_be_demoted  # type: ignore[method-assign]
        return cluster

    reach = Reach(connected, lambda one, clock: connect(one, clock, writes=False, demoted=True))
    plan = plan_of(config.targets[0], "active", reach, store, WallClock(), log)
    TargetLoop(plan, metrics, log).run(threading.Event(), ticks=3)
    modes = [stored.record.mode for stored in store.decisions("r1")]
    store.close()
    assert modes == ["active", "shadow", "shadow"], output.getvalue()
    assert (replicas(api), engine.batch_size) == (2, 32)
    assert len(api.calls_of("patch")) == 1
    assert api.find("leases", "tuner")["spec"]["holderIdentity"] == ""
