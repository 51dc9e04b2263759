"""`tuner init` against a fake cluster and a real Prometheus: found, assumed, missing; never guessed
in silence."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from typer.main import get_command

from tests.kube import objects
from tests.kube.fake_api import FakeApi, Trouble
from tests.live.engine_page import Answer, EnginePage, serving
from tests.real.prometheus import Prometheus, Scrape
from tuner.cli import app
from tuner.config.file import load_config
from tuner.core.errors import ConfigError, InputError
from tuner.live.discovery.prometheus_search import Server, asked

QUEUE = {
    "type": "Pods",
    "pods": {
        "metric": {"name": "vllm:num_requests_waiting"},
        "target": {"type": "AverageValue", "averageValue": "5"},
    },
}


@pytest.fixture
def api(tmp_path, monkeypatch) -> Iterator[FakeApi]:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    web = objects.deployment("web", labels={"app": "web"}, image="nginx:1", gpus=0)
    with FakeApi(objects=[objects.deployment(), web]) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        yield api


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "tuner.yaml"


def init(out: Path, *more: str) -> Result:
    return CliRunner().invoke(get_command(app), ["init", "--out", str(out), *more])


def refusal(result: Result) -> str:
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def findings(out: Path, *more: str) -> list[str]:
    result = init(out, "--json", *more)
    assert result.exit_code == 0, result.output + repr(result.exception)
    data = json.loads(result.stdout)
    return [f"{each['kind']} {each['about']}: {each['sentence']}" for each in data["findings"]]


def test_finds_the_deployment_that_serves_and_writes_a_file_that_is_taken(api, out):
    lines = findings(out)
    (target,) = load_config(out).targets
    assert target.name == "r1"
    assert target.engine.kind == "vllm"
    assert target.engine.model == "deepseek-ai/DeepSeek-R1"
    assert target.kubernetes is not None
    assert (target.kubernetes.namespace, target.kubernetes.deployment) == ("llm", "r1")
    assert target.kubernetes.serving_port == 8000
    assert target.knobs["batch_size"].high == 256
    assert target.scrape is not None
    assert target.move == ("replicas",)
    assert any(line.startswith("found deployment: llm/r1: image vllm") for line in lines)
    assert any(line.startswith("missing prometheus: none found") for line in lines)
    assert any(line.startswith("assumed knobs.replicas: 1 to 4") for line in lines)
    assert any(line.startswith("assumed fallback") for line in lines)


def test_every_finding_stands_in_the_file_too(api, out):
    text_of_findings = [line.partition(": ")[2] for line in findings(out)]
    text = out.read_text()
    assert all(sentence in text for sentence in text_of_findings)


def test_reads_the_hpa_as_the_fallback_and_warns_of_active_mode(api, out):
    api.put(objects.hpa(low=3, high=9, metrics=(QUEUE,)))
    lines = findings(out)
    (target,) = load_config(out).targets
    assert dict(target.fallback_options) == {
        "metric": "queue_depth",
        "type": "Pods",
        "target_type": "AverageValue",
        "target": 5,
        "min_replicas": 3,
        "max_replicas": 9,
    }
    assert (target.knobs["replicas"].low, target.knobs["replicas"].high) == (3, 9)
    assert any(line.startswith("missing active mode: refused as long as HPA") for line in lines)


def test_takes_the_bounds_of_a_scaled_object_before_the_hpa_that_keda_made(api, out):
    scaled = objects.scaled_object()
    scaled["spec"] |= {"minReplicaCount": 2, "maxReplicaCount": 7}
    api.put(scaled)
    api.put(objects.hpa("keda-hpa-r1", low=2, high=99))
    lines = findings(out)
    (target,) = load_config(out).targets
    assert (target.knobs["replicas"].low, target.knobs["replicas"].high) == (2, 7)
    assert any("ScaledObject 'r1-scaled'" in line for line in lines)


def test_takes_port_and_map_of_run_time_control_where_the_pod_has_them(api, out):
    thing = objects.deployment()
    spec = thing["spec"]["template"]["spec"]
    spec["containers"][0]["ports"].append({"name": "tuner-control", "containerPort": 8009})
    spec["containers"][0]["volumeMounts"] = [{"name": "w", "mountPath": "/etc/tuner-warmup"}]
    spec["volumes"] = [{"name": "w", "configMap": {"name": "tuner-warmup"}}]
    api.put(thing)
    findings(out)
    (target,) = load_config(out).targets
    assert target.kubernetes is not None
    assert target.kubernetes.control_port == 8009
    assert target.kubernetes.warmup_configmap == "tuner-warmup"
    assert target.move == ("replicas", "batch_size")


def test_for_the_cluster_it_takes_the_volume_and_the_lease_of_the_manifests(api, out):
    findings(out, "--in-cluster")
    config = load_config(out)
    shipped = load_config(Path(__file__).parents[2] / "deploy/manifests/base/tuner.yaml")
    assert config.audit == shipped.audit
    assert config.server == shipped.server
    (target,), (theirs,) = config.targets, shipped.targets
    assert target.kubernetes is not None
    assert theirs.kubernetes is not None
    assert target.kubernetes.lease == theirs.kubernetes.lease


def test_of_several_it_names_all_and_asks_nobody_where_there_is_no_terminal(api, out):
    api.put(objects.deployment("v3", labels={"app": "v3"}, image="lmsysorg/sglang:v1"))
    sentence = refusal(init(out))
    assert "llm/r1" in sentence
    assert "llm/v3" in sentence
    assert "--deployment" in sentence
    assert not out.exists()
    findings(out, "--deployment", "v3")
    assert load_config(out).targets[0].engine.kind == "sglang"


def test_of_several_it_asks_whoever_sits_at_the_terminal(api, out):
    api.put(objects.deployment("v3", labels={"app": "v3"}, image="lmsysorg/sglang:v1"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner.cli", "init", "--out", str(out)],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    os.close(theirs)
    # A number that is not on the list first: it is asked again.
    os.write(ours, b"9\n2\n")
    said = b""
    with suppress(OSError):  # the terminal is gone when the command ends
        while chunk := os.read(ours, 4096):
            said += chunk
    os.close(ours)
    assert process.wait(60) == 0, said
    assert b"expected 1 to 2" in said
    assert load_config(out).targets[0].name == "v3"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["--deployment", "r2"], "no Deployment 'r2'", id="no such deployment"),
        pytest.param(["--namespace", "LLM"], "--namespace is 'LLM'", id="namespace in capitals"),
        pytest.param(["--deployment", "r_1"], "--deployment is 'r_1'", id="no deployment's name"),
        pytest.param(["--engine", "vlm"], "expected one of triton, sglang", id="no such engine"),
        pytest.param(["--prometheus", "prom:9090"], "expected one such as", id="no address"),
        pytest.param(
            ["--prometheus", "http://me:secret@prom:9090"], "without a password", id="password"
        ),
        pytest.param(["--deployment", "web"], "--engine", id="nothing says which engine"),
        pytest.param(["--namespace", "empty"], "looks like LLM serving", id="nothing there"),
        pytest.param(["--context", "prod"], "context 'prod'", id="no such context"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_written(api, out, more, said):
    sentence = refusal(init(out, *more))
    assert said in sentence
    assert "secret" not in sentence
    assert not out.exists()


def test_never_writes_over_a_file_unless_told_to(api, out):
    out.write_text("mine")
    assert "--force" in refusal(init(out))
    assert out.read_text() == "mine"
    findings(out, "--force")
    assert load_config(out).targets[0].name == "r1"


def test_a_folder_that_only_looks_writable_is_a_sentence(api):
    result = init(Path("/proc/tuner.yaml"))
    assert isinstance(result.exception, InputError)
    assert "/proc" in str(result.exception)


def test_a_named_deployment_without_signs_takes_the_engine_that_is_named(api, out):
    findings(out, "--deployment", "web", "--engine", "vllm")
    assert load_config(out).targets[0].engine.kind == "vllm"


def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_works_without_a_cluster_by_flags_alone(tmp_path, monkeypatch, out):
    no_cluster(tmp_path, monkeypatch)
    lines = findings(out, "--namespace", "llm", "--deployment", "r1", "--engine", "sglang")
    (target,) = load_config(out).targets
    assert target.engine.kind == "sglang"
    assert target.kubernetes is not None
    assert target.kubernetes.serving_port == 30000
    assert any("went by the flags alone" in line for line in lines)


def test_tritons_metrics_page_is_looked_for_on_its_own_port(api, out):
    args = ("tritonserver", "--metrics-port", "9002")
    api.put(objects.deployment(image="nvcr.io/nvidia/tritonserver:25.10", args=args))
    findings(out)
    (target,) = load_config(out).targets
    assert target.kubernetes is not None
    assert target.kubernetes.metrics_port == 9002


@pytest.mark.parametrize(("engine", "port"), [("triton", 8002), ("vllm", None)])
def test_the_metrics_port_is_that_of_the_engine_that_was_named(
    tmp_path, monkeypatch, out, engine, port
):
    no_cluster(tmp_path, monkeypatch)
    findings(out, "--namespace", "llm", "--deployment", "r1", "--engine", engine)
    (target,) = load_config(out).targets
    assert target.kubernetes is not None
    assert target.kubernetes.metrics_port == port


def test_a_flag_that_makes_no_good_file_is_told_and_leaves_nothing(tmp_path, monkeypatch, out):
    no_cluster(tmp_path, monkeypatch)
    flags = ("--namespace", "'llm'", "--deployment", "r1", "--engine", "vllm")
    assert refusal(init(out, *flags)).startswith("--namespace is ")
    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_and_without_flags_it_says_what_to_give(tmp_path, monkeypatch, out):
    no_cluster(tmp_path, monkeypatch)
    assert "--deployment and --engine" in refusal(init(out))


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble("status", 401),
        Trouble("status", 500),
        Trouble("garbage"),
        Trouble("drop"),
    ],
    ids=lambda trouble: f"{trouble.kind} {trouble.status}",
)
def test_a_cluster_in_trouble_is_a_sentence(api, out, trouble):
    trouble.resource = "deployments"
    api.trouble(trouble)
    assert "kubernetes: GET /apis/apps/v1/deployments" in refusal(init(out))
    assert not out.exists()


def test_who_may_not_list_the_whole_cluster_is_told_to_name_a_namespace(api, out):
    api.trouble(Trouble("status", 403, verb="list", resource="deployments"))
    assert "--namespace" in refusal(init(out))


@pytest.mark.parametrize("resource", ["horizontalpodautoscalers", "pods", "services"])
def test_what_may_not_be_read_is_told_and_the_rest_goes_on(api, out, resource):
    api.trouble(Trouble("status", 403, verb="list", resource=resource, times=9))
    lines = findings(out)
    assert any(line.startswith("missing") and f"/{resource}" in line for line in lines)
    assert load_config(out).targets[0].name == "r1"


def test_finds_prometheus_among_the_services_and_says_that_it_did_not_answer(api, out):
    for name in ("prom-alertmanager", "prometheus-node-exporter", "kube-prometheus-operator"):
        api.put(objects.service(name, 9093))
    api.put(objects.service("prometheus-operated", 9090))
    api.put(objects.service("kube-prometheus-stack-prometheus", 9090))
    lines = findings(out)
    (target,) = load_config(out).targets
    assert target.prometheus is not None
    assert target.prometheus.url == "http://kube-prometheus-stack-prometheus.monitoring:9090"
    assert any("did not answer from here" in line for line in lines)
    assert any("prometheus-operated looks like one too" in line for line in lines)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(b"<html>", 200), id="no JSON"),
        pytest.param(Answer(b"{}", 200), id="other JSON"),
        pytest.param(Answer(b"", 500), id="500"),
        pytest.param(None, id="hangs up"),
    ],
)
def test_what_is_no_prometheus_is_trouble_and_no_traceback(answer):
    with serving(lambda path, headers: answer) as url:
        server = asked(Server(url, "test"), ["up"])
    assert server.version is None
    assert server.trouble


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory) -> Iterator[Prometheus]:
    """A real server that has seen a vLLM pod of r1, one of another Deployment, and its GPU."""
    page, other = EnginePage(), EnginePage()
    card = b'DCGM_FI_DEV_GPU_UTIL{gpu="0",exported_pod="r1-7d9f-abcde"} 81\n'
    with (
        serving(lambda path, headers: Answer(page.text().encode())) as mine,
        serving(lambda path, headers: Answer(other.text().encode())) as theirs,
        serving(lambda path, headers: Answer(card)) as dcgm,
    ):
        scrapes = [
            Scrape(mine.removeprefix("http://"), {"namespace": "llm", "pod": "r1-7d9f-abcde"}),
            Scrape(theirs.removeprefix("http://"), {"namespace": "llm", "pod": "r2-7d9f-abcde"}),
            Scrape(dcgm.removeprefix("http://"), {"namespace": "llm"}),
        ]
        folder = tmp_path_factory.mktemp("prometheus")
        with Prometheus(folder, scrapes, interval_s=0.5) as prometheus:
            queries = ["vllm:num_requests_running", "DCGM_FI_DEV_GPU_UTIL"]
            deadline_s = time.monotonic() + 30
            while len(asked(Server(prometheus.url, "test"), queries).series) < 3:
                assert time.monotonic() < deadline_s, "nothing was scraped"
            yield prometheus


def test_asks_a_real_prometheus_for_the_series_of_this_deployment(api, out, prometheus):
    lines = findings(out, "--prometheus", prometheus.url)
    (target,) = load_config(out).targets
    assert target.prometheus is not None
    assert target.prometheus.url == prometheus.url
    assert dict(target.prometheus.selector) == {"namespace": "llm"}
    assert target.prometheus.replica_label == "pod"
    assert target.gpu is not None
    assert dict(target.gpu.selector) == {"namespace": "llm"}
    assert any("vllm:num_requests_running of 1 pod, by label pod" in line for line in lines)
    assert any("answers, version 2." in line for line in lines)


def test_says_when_a_real_prometheus_knows_nothing_of_the_deployment(api, out, prometheus):
    api.put(objects.deployment("v3", labels={"app": "v3"}))
    lines = findings(out, "--prometheus", prometheus.url, "--deployment", "v3")
    assert any(line.startswith("missing series: no engine series of a pod") for line in lines)


def test_the_series_know_the_engine_better_than_the_image_does(api, out, prometheus):
    api.put(objects.deployment("r1", image="our/own-engine:7", args=()))
    findings(out, "--prometheus", prometheus.url)
    assert load_config(out).targets[0].engine.kind == "vllm"
