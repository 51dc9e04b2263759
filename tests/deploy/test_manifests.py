"""The shipped manifests fit the schemas, agree with each other, and give no right too many."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.rbac_table import KNOWN, NAMELESS
from tests.kube import objects
from tests.kube.fake_api import REVIEWS, FakeApi
from tuner.config import PrometheusConfig, TargetConfig
from tuner.config.file import load_config
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Source
from tuner.core.knobs import KnobSettings
from tuner.live.connect import connect
from tuner.live.kubernetes.pool import WARMUP_KEY
from tuner.live.kubernetes.rights import READING

Json = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = DEPLOY / "manifests"
MODES = ("shadow", "active")
OLDEST, NEWEST = "1.28", "1.36"
"""Kubernetes versions that the manifests are held against."""


def documents(path: Path) -> list[Json]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def kustomized(folder: Path) -> list[Json]:
    """The objects of a kustomization, generated ones under their plain names."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[Json] = []
    for resource in plan.get("resources", []):
        path = (folder / resource).resolve()
        found += kustomized(path) if path.is_dir() else documents(path)
    for generated in plan.get("configMapGenerator", []):
        data = dict(each.split("=", 1) for each in generated.get("literals", []))
        data |= {name: (folder / name).read_text() for name in generated.get("files", [])}
        found.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": generated["name"], "namespace": plan.get("namespace", "llm")},
                "data": data,
            }
        )
    return found


OVERLAYS = {name: kustomized(MANIFESTS / name) for name in (*MODES, "serving-sample")}
EVERY = [
    pytest.param(each, id=f"{overlay}-{each['kind']}-{each['metadata']['name']}")
    for overlay, things in OVERLAYS.items()
    for each in things
]


def one(mode: str, kind: str, name: str = "tuner") -> Json:
    (found,) = (
        each for each in OVERLAYS[mode] if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def pod_spec(mode: str) -> Json:
    spec: Json = one(mode, "Deployment")["spec"]["template"]["spec"]
    return spec


def target() -> TargetConfig:
    (only,) = load_config(MANIFESTS / "base" / "tuner.yaml").targets
    return only


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("thing", EVERY)
def test_every_object_fits_its_schema_strictly(thing, version):
    kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("thing", EVERY)
def test_nothing_is_cluster_wide(thing):
    assert not thing["kind"].startswith("Cluster")
    assert thing["metadata"]["namespace"] == "llm"


def test_the_schemas_do_catch_a_misspelt_field():
    broken = one("shadow", "Service") | {"spec": {"selectors": {}, "ports": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_the_same_objects(overlay):
    result = subprocess.run(
        ["kubectl", "kustomize", MANIFESTS / overlay],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    made = sorted(each["kind"] for each in yaml.safe_load_all(result.stdout))
    assert made == sorted(each["kind"] for each in OVERLAYS[overlay])


def rights(role: Json) -> Iterator[tuple[str, str, str, str]]:
    """(verb, group, resource, name), one each; the name is empty where none is given."""
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames", [""]):
                        yield verb, group, resource, name


@pytest.mark.parametrize("mode", MODES)
def test_every_right_is_one_that_kubernetes_knows(mode):
    for verb, group, resource, name in rights(one(mode, "Role")):
        assert verb in KNOWN[group, resource], (verb, resource)
        assert not (name and verb in NAMELESS), f"{verb} {resource} cannot be limited to {name}"
        assert name or verb in NAMELESS, f"{verb} {resource} is about one object: name it"


def test_shadow_can_write_nothing():
    assert {verb for verb, *_ in rights(one("shadow", "Role"))} <= READING


def whole_job(target: TargetConfig, *, writes: bool) -> None:
    """Everything that the controller does with a cluster, from its start to its end."""
    clock = VirtualClock(1_800_000_000.0)
    cluster = connect(target, clock, writes=writes)
    seen = cluster.observe()
    wanted = KnobSettings(replicas=3, warmup_requests=32)
    decision = Decision(clock.now_s(), None, None, seen.settings, wanted, Source.POLICY)
    receipt = cluster.apply(decision)
    assert receipt.applied == (wanted if writes else KnobSettings())
    cluster.observe()
    cluster.release()
    cluster.close()


@pytest.mark.parametrize("mode", MODES)
def test_the_role_is_what_the_controller_calls_no_more_and_no_less(mode, tmp_path, monkeypatch):
    role = one(mode, "Role")
    things = [
        objects.deployment(),
        # Without an address: which engine runs in it is not the matter here.
        objects.pod("r1-a", ip=None, ready=False, running=False),
        one(mode, "Lease"),
        one(mode, "ConfigMap", "tuner-warmup"),
    ]
    # No metrics: nothing listens on this port, and the cluster does its part all the same.
    here = replace(target(), prometheus=PrometheusConfig("http://127.0.0.1:9", timeout_s=1.0))
    with FakeApi(rules=role["rules"], objects=things) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        whole_job(here, writes=mode == "active")
        assert len(api.every("events")) == (1 if mode == "active" else 0)
    called = {
        (call.verb, call.group, call.resource, "" if call.verb in NAMELESS else call.name)
        for call in api.calls
        if call.resource not in REVIEWS
    }
    assert {call.status for call in api.calls} <= {200, 201}
    assert called == set(rights(role))
    assert {call.namespace for call in api.calls if call.resource not in REVIEWS} == {"llm"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_meet_their_labels(overlay):
    for thing in OVERLAYS[overlay]:
        if thing["kind"] == "Deployment":
            labels = thing["spec"]["template"]["metadata"]["labels"]
            assert thing["spec"]["selector"]["matchLabels"].items() <= labels.items()
    if overlay in MODES:
        labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
        assert one(overlay, "Service")["spec"]["selector"].items() <= labels.items()
        policy = one(overlay, "NetworkPolicy")["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("mode", MODES)
def test_the_controller_runs_with_nothing_it_does_not_need(mode):
    pod = pod_spec(mode)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    tokens = [
        source["serviceAccountToken"]
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
    assert [token["path"] for token in tokens] == ["token"]
    assert one(mode, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("mode", MODES)
def test_the_audit_outlives_the_pod(mode):
    path = MANIFESTS / "base" / "tuner.yaml"
    audit = yaml.safe_load(path.read_text())["audit"]
    pod = pod_spec(mode)
    mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    folder = str(Path(audit.removeprefix("sqlite:///")).parent)
    claim = volumes[mounts[folder]]["persistentVolumeClaim"]["claimName"]
    assert one(mode, "PersistentVolumeClaim", claim)["spec"]["resources"]["requests"]["storage"]


@pytest.mark.parametrize("mode", MODES)
def test_the_names_agree(mode):
    config = target().kubernetes
    assert config is not None
    account = one(mode, "ServiceAccount")["metadata"]["name"]
    binding = one(mode, "RoleBinding")
    assert pod_spec(mode)["serviceAccountName"] == account
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "llm"}]
    assert binding["roleRef"]["name"] == one(mode, "Role")["metadata"]["name"]
    names = {resource: name for _, _, resource, name in rights(one(mode, "Role")) if name}
    lease = {"leases": config.lease} if mode == "active" else {}
    assert names == {
        "deployments/scale": config.deployment,
        "configmaps": config.warmup_configmap,
        **lease,
    }
    assert one(mode, "Lease", config.lease or "")
    assert one(mode, "ConfigMap", config.warmup_configmap or "")["data"][WARMUP_KEY].isdigit()
    assert one(mode, "ConfigMap", "tuner-mode")["data"] == {"mode": mode}
    for thing in OVERLAYS[mode]:
        assert thing["metadata"]["namespace"] == config.namespace


@pytest.mark.parametrize("mode", MODES)
def test_everything_that_the_pod_mounts_is_there(mode):
    made = {(each["kind"], each["metadata"]["name"]) for each in OVERLAYS[mode]}
    for volume in pod_spec(mode)["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in made
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made


@pytest.mark.parametrize("mode", MODES)
def test_the_ports_agree(mode):
    path = MANIFESTS / "base" / "tuner.yaml"
    port = yaml.safe_load(path.read_text())["server"]["port"]
    container = pod_spec(mode)["containers"][0]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"metrics": port}
    for probe, where in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": where, "port": "metrics"}
    assert [each["port"] for each in one(mode, "Service")["spec"]["ports"]] == [port]
    policy = one(mode, "NetworkPolicy")["spec"]
    assert [each["port"] for rule in policy["ingress"] for each in rule["ports"]] == [port]
    out = {each["port"] for rule in policy["egress"] for each in rule["ports"]}
    config = target()
    assert config.kubernetes is not None
    assert config.prometheus is not None
    assert config.kubernetes.serving_port in out
    assert int(config.prometheus.url.rpartition(":")[2]) in out


def test_the_serving_sample_leaves_its_replicas_to_the_controller():
    deployment = one("serving-sample", "Deployment", "r1")
    assert "replicas" not in deployment["spec"]
    config = target().kubernetes
    assert config is not None
    assert deployment["metadata"]["name"] == config.deployment
    engine, warmup = deployment["spec"]["template"]["spec"]["containers"]
    assert engine["ports"][0]["containerPort"] == config.serving_port
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    maps = {each["configMap"]["name"] for each in volumes if "configMap" in each}
    assert config.warmup_configmap in maps
    assert ("ConfigMap", "tuner-warmup-script") in {
        (each["kind"], each["metadata"]["name"]) for each in OVERLAYS["serving-sample"]
    }
    assert warmup["readinessProbe"]["exec"]["command"][-1] == "/var/run/tuner-warmup/warm"
