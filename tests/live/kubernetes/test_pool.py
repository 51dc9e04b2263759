"""KubernetesPool against the fake API server: real sockets, kept state, all kinds of trouble."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml

from tests.kube import objects
from tests.kube.fake_api import FakeApi, Json, Trouble
from tuner.config import KubernetesConfig
from tuner.core.clock import VirtualClock
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.live.kubernetes.api import unix_s
from tuner.live.kubernetes.objects import replicas_of
from tuner.live.kubernetes.pool import KubernetesPool
from tuner.live.pool import PoolState

NOW = "2026-11-20T10:05:00Z"
CONFIG = KubernetesConfig(
    namespace="llm",
    deployment="r1",
    control_port=8009,
    warmup_configmap="tuner-warmup",
    timeout_s=1.0,
)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi(objects=objects.fleet()) as api:
        yield api


@pytest.fixture
def pool(api, tmp_path, monkeypatch) -> Iterator[KubernetesPool]:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    pool = KubernetesPool(CONFIG, clock=VirtualClock(unix_s(NOW)), model="r1")
    yield pool
    pool.close()


def replicas(api: FakeApi) -> int:
    return int(api.find("deployments", "r1")["spec"]["replicas"])


def writes(api: FakeApi) -> list[str]:
    return [f"{call.verb} {call.resource}" for call in api.calls_of("patch", "update", "delete")]


class TestLooking:
    def test_sees_replicas_members_and_version(self, api, pool):
        seen = pool.look()
        assert seen.wanted == 2
        assert [member.name for member in seen.members] == ["r1-a", "r1-b"]
        assert seen.version == api.find("deployments", "r1")["metadata"]["resourceVersion"]

    def test_knows_where_each_replica_answers(self, pool):
        first = pool.look().members[0].replica
        assert first is not None
        assert first.serving_url == "http://10.0.0.1:8000"
        assert first.control_url == "http://10.0.0.1:8009"
        assert first.model == "r1"
        assert first.page("/metrics") == "http://10.0.0.1:8000/metrics"

    def test_knows_a_metrics_port_of_its_own(self, api, tmp_path, monkeypatch):
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        config = replace(CONFIG, metrics_port=8002)
        pool = KubernetesPool(config, clock=VirtualClock(unix_s(NOW)), model="r1")
        first = pool.look().members[0].replica
        pool.close()
        assert first is not None
        assert first.page("/metrics") == "http://10.0.0.1:8002/metrics"

    def test_brackets_an_address_of_the_newer_kind(self, api, pool):
        api.put(objects.pod("r1-a", ip="fd00::7"))
        first = pool.look().members[0].replica
        assert first is not None
        assert first.serving_url == "http://[fd00::7]:8000"

    @pytest.mark.parametrize(
        ("pod", "state"),
        [
            pytest.param({"node": None, "ip": None, "ready": False}, "pending", id="unscheduled"),
            pytest.param(
                {"running": False, "ready": False, "phase": "Pending"}, "starting", id="pulling"
            ),
            pytest.param({"ready": False}, "warming", id="running and not ready"),
            pytest.param({}, "ready", id="ready"),
            pytest.param({"leaving": True}, "draining", id="leaving, and still ready"),
            pytest.param({"leaving": True, "ready": False}, "draining", id="leaving"),
        ],
    )
    def test_tells_where_a_pod_stands(self, api, pool, pod, state):
        api.put(objects.pod("r1-a", **pod))
        assert pool.look().members[0].state is ReplicaState(state)

    def test_calls_a_running_pod_starting_where_nothing_warms_up(self, api, tmp_path, monkeypatch):
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        api.put(objects.pod("r1-a", ready=False))
        config = replace(CONFIG, warmup_configmap=None)
        pool = KubernetesPool(config, clock=VirtualClock(unix_s(NOW)), model="")
        assert pool.look().members[0].state is ReplicaState.STARTING
        pool.close()

    @pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
    def test_leaves_out_a_pod_that_has_ended(self, api, pool, phase):
        api.put(objects.pod("r1-a", phase=phase, ready=False))
        assert [member.name for member in pool.look().members] == ["r1-b"]

    def test_counts_age_on_its_own_clock_and_never_below_zero(self, api, pool):
        api.put(objects.pod("r1-a", created="2026-11-20T10:04:30Z"))
        api.put(objects.pod("r1-b", created="2026-11-20T10:05:03Z"))
        assert [member.age_s for member in pool.look().members] == [30.0, 0.0]

    def test_reads_left_out_replicas_as_none_wanted(self, api, pool):
        api.scale_by_hand("r1", 0)
        assert pool.look().wanted == 0

    @pytest.mark.parametrize("found", ["two", -1, True, 1.5, {"a": 1}])
    def test_calls_replicas_that_are_no_number_a_bad_answer(self, found):
        with pytest.raises(FaultError, match="expected a whole number") as caught:
            replicas_of({"metadata": {"name": "r1"}, "spec": {"replicas": found}})
        assert caught.value.fault.reason is FaultReason.BAD_ANSWER

    def test_lists_two_hundred_pods_in_one_call(self, api, pool):
        for number in range(200):
            api.put(objects.pod(f"r1-{number:03}"))
        api.calls.clear()
        assert len(pool.look().members) == 202
        assert [call.verb for call in api.calls] == ["get", "list"]


class TestScaling:
    def test_asks_for_replicas_under_its_own_name_and_reads_back(self, api, pool):
        assert pool.scale(3, pool.look()) == 3
        assert replicas(api) == 3
        (patch,) = api.calls_of("patch")
        assert (patch.resource, patch.manager) == ("deployments/scale", "tuner")
        assert api.calls[-1].verb == "get"
        owners = api.find("deployments", "r1")["metadata"]["managedFields"]
        assert owners == [{"manager": "tuner", "operation": "Update", "subresource": "scale"}]

    @pytest.mark.parametrize("wanted", [0, -1])
    def test_never_asks_for_no_replicas(self, api, pool, wanted):
        seen = pool.look()
        with pytest.raises(FaultError) as caught:
            pool.scale(wanted, seen)
        assert caught.value.fault.reason is FaultReason.INVALID
        assert caught.value.fault.knob == "replicas"
        assert writes(api) == []

    def test_gives_way_to_whoever_wrote_in_between(self, api, pool):
        seen = pool.look()
        api.scale_by_hand("r1", 7)
        with pytest.raises(FaultError) as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is FaultReason.CONFLICT
        assert "7 do now" in caught.value.fault.sentence
        assert replicas(api) == 7

    def test_a_new_version_with_the_same_replicas_is_no_conflict(self, api, pool):
        seen = pool.look()
        deployment = api.find("deployments", "r1")
        deployment["status"] = {"readyReplicas": 2}
        api.put(deployment)
        assert pool.scale(3, seen) == 3

    @pytest.mark.parametrize(
        "kind", [objects.hpa, objects.scaled_object], ids=["HPA", "ScaledObject"]
    )
    def test_stops_before_writing_beside_an_autoscaler_that_came_later(self, api, pool, kind):
        seen = pool.look()
        api.put(kind())
        with pytest.raises(FaultError, match="TargetManagedByHPA") as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is FaultReason.REFUSED
        assert writes(api) == []

    def test_an_autoscaler_of_another_deployment_is_none_of_its_business(self, api, pool):
        api.put(objects.hpa(target="other"))
        assert pool.scale(3, pool.look()) == 3


STATUSES = [
    pytest.param(Trouble("status", 401), FaultReason.UNAUTHORIZED, id="401"),
    pytest.param(Trouble("status", 403), FaultReason.FORBIDDEN, id="403"),
    pytest.param(Trouble("status", 404), FaultReason.NOT_FOUND, id="404"),
    pytest.param(Trouble("status", 429, retry_after_s=7), FaultReason.RATE_LIMITED, id="429"),
    pytest.param(Trouble("status", 400), FaultReason.INVALID, id="400"),
    pytest.param(Trouble("status", 422), FaultReason.INVALID, id="422"),
    pytest.param(
        Trouble("status", 422, message="the server rejected our request due to an error"),
        FaultReason.CONFLICT,
        id="422 of a failed test",
    ),
    pytest.param(
        Trouble("status", 403, message="ValidatingAdmissionPolicy 'tuner' denied request"),
        FaultReason.REFUSED,
        id="403 of a policy",
    ),
    pytest.param(
        Trouble("status", 422, message="ValidatingAdmissionPolicy 'tuner' denied request"),
        FaultReason.REFUSED,
        id="422 of a policy",
    ),
]
OUTAGES = [
    pytest.param(Trouble("status", 500), FaultReason.SERVER_ERROR, id="500"),
    pytest.param(Trouble("status", 503), FaultReason.SERVER_ERROR, id="503"),
    pytest.param(Trouble("hang"), FaultReason.TIMED_OUT, id="hang"),
    pytest.param(Trouble("trickle"), FaultReason.TIMED_OUT, id="trickle"),
    pytest.param(Trouble("garbage"), FaultReason.BAD_ANSWER, id="garbage"),
    pytest.param(Trouble("drop"), FaultReason.BAD_ANSWER, id="dropped"),
]


class TestTrouble:
    @pytest.mark.parametrize(("trouble", "reason"), [*STATUSES, *OUTAGES])
    @pytest.mark.parametrize(
        ("verb", "resource"), [("get", "deployments/scale"), ("list", "pods")], ids=str
    )
    def test_of_reading_is_a_fault_with_its_reason(
        self, api, pool, trouble, reason, verb, resource
    ):
        api.trouble(replace(trouble, verb=verb, resource=resource))
        with pytest.raises(FaultError) as caught:
            pool.look()
        assert caught.value.fault.reason is reason
        assert caught.value.fault.where == "kubernetes"
        assert resource.split("/")[0] in caught.value.fault.sentence
        assert caught.value.retry_after_s == trouble.retry_after_s
        # Nothing lingers: the next look is whole.
        assert len(pool.look().members) == 2

    @pytest.mark.parametrize(
        ("trouble", "reason"), [case for case in STATUSES if case.id != "422 of a failed test"]
    )
    def test_of_writing_leaves_the_replicas_alone(self, api, pool, trouble, reason):
        seen = pool.look()
        api.trouble(replace(trouble, verb="patch"))
        with pytest.raises(FaultError) as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is reason
        assert caught.value.fault.knob == "replicas"
        assert writes(api) == ["patch deployments/scale"]
        assert replicas(api) == 2

    @pytest.mark.parametrize(("trouble", "reason"), OUTAGES)
    def test_a_write_without_an_answer_is_never_repeated(self, api, pool, trouble, reason):
        seen = pool.look()
        api.trouble(replace(trouble, verb="patch", times=9))
        with pytest.raises(FaultError) as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN
        assert writes(api) == ["patch deployments/scale"]

    @pytest.mark.parametrize("kind", ["drop_after", "hang_after"])
    def test_a_write_whose_answer_was_lost_is_settled_by_reading(self, api, pool, kind):
        seen = pool.look()
        api.trouble(Trouble(kind, verb="patch"))
        assert pool.scale(3, seen) == 3
        assert writes(api) == ["patch deployments/scale"]

    def test_a_lost_answer_that_cannot_be_read_back_is_unknown(self, api, pool):
        seen = pool.look()
        api.trouble(Trouble("drop_after", verb="patch"))
        api.trouble(Trouble("status", 500, verb="get", resource="deployments/scale"))
        with pytest.raises(FaultError) as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN
        assert writes(api) == ["patch deployments/scale"]

    def test_an_accepted_write_that_cannot_be_read_back_is_unknown(self, api, pool):
        seen = pool.look()
        api.trouble(Trouble("hang", verb="get", resource="deployments/scale"))
        with pytest.raises(FaultError) as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN

    @pytest.mark.parametrize("resource", ["horizontalpodautoscalers", "scaledobjects"])
    @pytest.mark.parametrize(("trouble", "reason"), [STATUSES[1], *OUTAGES])
    def test_nothing_is_written_when_nobody_says_who_else_writes(
        self, api, pool, trouble, reason, resource
    ):
        seen = pool.look()
        api.trouble(replace(trouble, verb="list", resource=resource))
        with pytest.raises(FaultError) as caught:
            pool.scale(3, seen)
        assert caught.value.fault.reason is reason
        assert writes(api) == []

    def test_a_server_that_is_gone_is_unreachable(self, tmp_path, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with FakeApi() as api:
                path = api.kubeconfig(tmp_path)
            config = yaml.safe_load(path.read_text())
            port = taken.getsockname()[1]
            config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{port}"
            path.write_text(yaml.safe_dump(config))
            monkeypatch.setenv("KUBECONFIG", str(path))
            pool = KubernetesPool(CONFIG, clock=VirtualClock(), model="")
            with pytest.raises(FaultError) as caught:
                pool.look()
        assert caught.value.fault.reason is FaultReason.UNREACHABLE

    def test_a_wrong_token_is_refused_by_the_server_and_never_shown(
        self, api, tmp_path, monkeypatch
    ):
        path = api.kubeconfig(tmp_path, token="a-secret-that-is-wrong")
        monkeypatch.setenv("KUBECONFIG", str(path))
        pool = KubernetesPool(CONFIG, clock=VirtualClock(), model="")
        with pytest.raises(FaultError) as caught:
            pool.look()
        assert caught.value.fault.reason is FaultReason.UNAUTHORIZED
        assert "a-secret" not in f"{caught.value} {pool!r} {vars(pool)!r}"

    def test_a_selector_that_is_missing_is_not_every_pod(self, api, pool, monkeypatch):
        deployment = api.find("deployments", "r1")
        deployment["spec"]["selector"]["matchLabels"] = {}
        api.put(deployment)
        with pytest.raises(FaultError) as caught:
            pool.look()
        assert caught.value.fault.reason is FaultReason.BAD_ANSWER


class TestWarmUp:
    def test_is_written_as_text_and_read_back(self, api, pool):
        pool.set_warmup(32)
        assert api.find("configmaps", "tuner-warmup")["data"] == {"warmup_requests": "32"}
        assert pool.warmup() == 32
        assert [call.manager for call in api.calls_of("patch")] == ["tuner"]

    def test_is_nothing_where_the_map_does_not_say(self, api, pool):
        api.put(objects.config_map(data={"other": "x"}))
        assert pool.warmup() == 0

    def test_that_is_no_number_is_a_fault(self, api, pool):
        api.put(objects.config_map(data={"warmup_requests": "lots"}))
        with pytest.raises(FaultError, match="'lots'"):
            pool.warmup()

    @pytest.mark.parametrize("kind", ["drop_after", "hang_after"])
    def test_with_a_lost_answer_is_settled_by_reading(self, api, pool, kind):
        api.trouble(Trouble(kind, verb="patch"))
        pool.set_warmup(32)
        assert writes(api) == ["patch configmaps"]

    @pytest.mark.parametrize(("trouble", "reason"), OUTAGES)
    def test_that_did_not_arrive_is_unknown(self, api, pool, trouble, reason):
        api.trouble(replace(trouble, verb="patch", times=9))
        with pytest.raises(FaultError) as caught:
            pool.set_warmup(32)
        assert caught.value.fault.reason is FaultReason.OUTCOME_UNKNOWN
        assert caught.value.fault.knob == "warmup_requests"
        assert writes(api) == ["patch configmaps"]

    def test_without_a_map_cannot_be_moved(self, api, tmp_path, monkeypatch):
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        config = replace(CONFIG, warmup_configmap=None)
        pool = KubernetesPool(config, clock=VirtualClock(), model="")
        assert pool.warmup() is None
        with pytest.raises(FaultError) as caught:
            pool.set_warmup(4)
        assert caught.value.fault.reason is FaultReason.NOT_MOVABLE


class TestNotes:
    def test_become_events_on_the_deployment(self, api, pool):
        pool.note("r1-17", "replicas 2 -> 3: queue grew")
        (event,) = api.every("events")
        assert event["regarding"]["name"] == "r1"
        assert "replicas 2 -> 3" in event["note"]
        assert "r1-17" in event["note"]
        # A whole second on the clock, and a fraction in the event all the same.
        assert event["eventTime"] == "2026-11-20T10:05:00.000001Z"

    def test_that_are_too_long_are_cut_and_keep_the_decision(self, api, pool):
        pool.note("r1-17", "ü" * 5000)
        (event,) = api.every("events")
        assert event["note"].endswith("(decision r1-17)")

    @pytest.mark.parametrize(("trouble", "reason"), [STATUSES[1], *OUTAGES])
    def test_that_fail_hurt_nobody(self, api, pool, trouble, reason):
        api.trouble(replace(trouble, verb="create", resource="events"))
        pool.note("r1-17", "replicas 2 -> 3")
        assert api.every("events") == []
        assert pool.look().wanted == 2


READ_RULES: list[Json] = [
    {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    {"apiGroups": ["autoscaling"], "resources": ["*"], "verbs": ["list"]},
    {"apiGroups": ["keda.sh"], "resources": ["scaledobjects"], "verbs": ["list"]},
]
WRITE_RULES: list[Json] = [
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]},
]


class TestChecking:
    @pytest.mark.parametrize("writes", [False, True], ids=["shadow", "active"])
    def test_passes_with_the_rights_of_the_mode(self, api, pool, writes):
        api.rules = [*READ_RULES, *(WRITE_RULES if writes else [])]
        pool.check(writes=writes)
        assert [call.resource for call in api.calls_of("patch", "update")] == []

    @pytest.mark.parametrize("missing", range(len(READ_RULES)), ids=str)
    @pytest.mark.parametrize("writes", [False, True], ids=["shadow", "active"])
    def test_names_a_right_that_is_missing(self, api, pool, missing, writes):
        rule = READ_RULES[missing]
        api.rules = [each for each in [*READ_RULES, *WRITE_RULES] if each is not rule]
        resource = rule["resources"][0].replace("*", "horizontalpodautoscalers")
        with pytest.raises(ConfigError) as caught:
            pool.check(writes=writes)
        assert f"{rule['verbs'][0]} {resource}" in str(caught.value)
        assert "deploy/manifests/" in str(caught.value)

    def test_active_without_the_right_to_write_is_refused(self, api, pool):
        api.rules = list(READ_RULES)
        with pytest.raises(ConfigError, match="patch deployments/scale"):
            pool.check(writes=True)

    @pytest.mark.parametrize(
        "rule",
        [
            pytest.param(WRITE_RULES[1], id="scale"),
            pytest.param(WRITE_RULES[2], id="configmap"),
            pytest.param(
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]}, id="pods"
            ),
            pytest.param(
                {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
                id="eviction",
            ),
            pytest.param(
                {
                    "apiGroups": ["coordination.k8s.io"],
                    "resources": ["leases"],
                    "verbs": ["update"],
                },
                id="somebody else's lease",
            ),
            pytest.param({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, id="everything"),
        ],
    )
    def test_shadow_refuses_to_run_with_a_right_to_write(self, api, pool, rule):
        api.rules = [*READ_RULES, rule]
        with pytest.raises(ConfigError, match="shadow must not be able to write") as caught:
            pool.check(writes=False)
        assert rule["verbs"][0] in str(caught.value)

    @pytest.mark.parametrize(
        "rule",
        [
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
            {
                "apiGroups": ["authentication.k8s.io"],
                "resources": ["selfsubjectreviews"],
                "verbs": ["create"],
            },
            {
                "apiGroups": ["project.openshift.io"],
                "resources": ["projectrequests"],
                "verbs": ["create"],
            },
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]},
        ],
        ids=["events", "who am I", "foreign", "reading"],
    )
    def test_shadow_may_keep_what_harms_nobody(self, api, pool, rule):
        api.rules = [*READ_RULES, rule]
        pool.check(writes=False)

    @pytest.mark.parametrize(
        ("thing", "name"),
        [(objects.hpa(), "HPA 'r1-hpa'"), (objects.scaled_object(), "ScaledObject 'r1-scaled'")],
        ids=["HPA", "ScaledObject"],
    )
    def test_active_refuses_a_target_that_has_an_autoscaler(self, api, pool, thing, name):
        api.put(thing)
        with pytest.raises(ConfigError, match="TargetManagedByHPA") as caught:
            pool.check(writes=True)
        assert name in str(caught.value)

    def test_shadow_watches_a_target_that_has_an_autoscaler_and_says_so(self, api, pool, caplog):
        api.rules = list(READ_RULES)
        api.put(objects.hpa())
        pool.check(writes=False)
        assert "TargetManagedByHPA" in caplog.text

    def test_a_cluster_without_keda_is_fine(self, api, pool):
        api.keda = False
        pool.check(writes=True)

    def test_a_deployment_that_is_not_there_is_a_mistake_in_the_file(self, api, pool):
        api.remove("deployments", "r1")
        with pytest.raises(ConfigError, match="no Deployment 'r1'"):
            pool.check(writes=True)

    @pytest.mark.parametrize(("trouble", "reason"), OUTAGES)
    def test_a_server_without_an_answer_is_a_fault_not_a_mistake(self, api, pool, trouble, reason):
        api.trouble(replace(trouble, verb="create", resource="selfsubjectaccessreviews"))
        with pytest.raises(FaultError) as caught:
            pool.check(writes=True)
        assert caught.value.fault.reason is reason


class TestConnecting:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(None, id="no file"),
            pytest.param("", id="empty"),
            pytest.param("contexts: [", id="no YAML"),
            pytest.param("- 1", id="a list"),
            pytest.param("apiVersion: v1\nkind: Config\n", id="no context"),
        ],
    )
    def test_says_what_is_wrong_with_a_kubeconfig(self, tmp_path, monkeypatch, content):
        path = tmp_path / "config"
        if content is not None:
            path.write_text(content)
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(ConfigError, match="kubeconfig"):
            KubernetesPool(CONFIG, clock=VirtualClock(), model="")

    def test_names_a_context_that_is_not_there(self, api, tmp_path, monkeypatch):
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        with pytest.raises(ConfigError, match="context 'prod'"):
            KubernetesPool(replace(CONFIG, context="prod"), clock=VirtualClock(), model="")


def test_a_version_that_nobody_saw_is_never_written_over(api, pool):
    with pytest.raises(FaultError) as caught:
        pool.scale(3, PoolState(wanted=2, members=()))
    assert caught.value.fault.reason is FaultReason.INVALID
    assert writes(api) == []
