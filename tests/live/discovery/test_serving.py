"""Which Deployments are taken for LLM serving, and what their autoscalers read as."""

from __future__ import annotations

import pytest

from policies import build_policy
from tests.kube import objects
from tuner.knobs import knob_space
from tuner.live.discovery.autoscaler import (
    autoscaler_of_hpa,
    autoscaler_of_scaled_object,
    field_of,
    quantity,
)
from tuner.live.discovery.serving import SIGNS, engine_of_page, serving_of


def one(
    image: str,
    words: tuple[str, ...] = (),
    command: tuple[str, ...] = (),
    gpus: int = 8,
    port: int = 0,
):
    thing = objects.deployment(image=image, args=words, gpus=gpus)
    container = thing["spec"]["template"]["spec"]["containers"][0]
    container["command"] = list(command)
    container["ports"] = [{"containerPort": port}] if port else []
    return serving_of(thing)


CASES = [
    pytest.param(
        {"image": "vllm/vllm-openai:v0.33.0"},
        ("--model", "deepseek-ai/DeepSeek-R1", "--max-num-seqs=256"),
        ("vllm", "deepseek-ai/DeepSeek-R1", 8000, 256),
        id="vllm",
    ),
    pytest.param(
        {"image": "mirror.example/base:1", "command": ("vllm", "serve", "deepseek-ai/DeepSeek-V3")},
        ("--port", "9000"),
        ("vllm", "deepseek-ai/DeepSeek-V3", 9000, None),
        id="vllm by its command",
    ),
    pytest.param(
        {"image": "base:1", "command": ("sh", "-c", "vllm serve m --max-num-seqs 64")},
        (),
        ("vllm", "m", 8000, 64),
        id="vllm in a shell line",
    ),
    pytest.param(
        {"image": "lmsysorg/sglang:v0.5.23"},
        ("--model-path", "deepseek-ai/DeepSeek-R1", "--max-running-requests", "128"),
        ("sglang", "deepseek-ai/DeepSeek-R1", 30000, 128),
        id="sglang",
    ),
    pytest.param(
        {"image": "base:1", "command": ("python3", "-m", "sglang.launch_server"), "port": 8080},
        ("--served-model-name=r1", "--model-path=/models/r1"),
        ("sglang", "r1", 8080, None),
        id="sglang by its command",
    ),
    pytest.param(
        {"image": "nvcr.io/nvidia/tritonserver:25.10-trtllm-python-py3"},
        ("tritonserver", "--model-repository=/models"),
        ("triton", "", 8000, None),
        id="triton with the tensorrt-llm backend",
    ),
    pytest.param(
        {"image": "nvcr.io/nvidia/tensorrt-llm/release:1.2"},
        ("trtllm-serve", "m", "--max_batch_size", "64"),
        ("tensorrt-llm", "", 8000, 64),
        id="tensorrt-llm",
    ),
    pytest.param(
        {"image": "openmmlab/lmdeploy:v0.10"}, (), ("lmdeploy", "", 23333, None), id="lmdeploy"
    ),
    pytest.param(
        {"image": "secret/engine:7", "gpus": 4}, (), (None, "", None, None), id="only GPUs"
    ),
]


@pytest.mark.parametrize(("settings", "words", "expected"), CASES)
def test_a_deployment_that_serves_is_known_by_its_manifest(settings, words, expected):
    found = one(words=words, **settings)
    assert (found.engine, found.model, found.port, found.ceiling) == expected
    assert found.evidence


@pytest.mark.parametrize(
    "image",
    ["nginx:1.29", "lmcache/vllm-router:1", "sglang-router:0.3", "ghcr.io/x/vllm-gateway:2"],
)
def test_what_stands_in_front_of_engines_is_none(image):
    assert one(image, ("--model", "m"), gpus=0) is None


def test_gpus_of_every_container_count():
    thing = objects.deployment(gpus=8)
    containers = thing["spec"]["template"]["spec"]["containers"]
    containers.append({"name": "mig", "resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}})
    found = serving_of(thing)
    assert found is not None
    assert found.gpus == 9


@pytest.mark.parametrize("kind", SIGNS)
def test_a_metrics_page_gives_its_engine_away(kind):
    page = f'# TYPE x gauge\n{SIGNS[kind].running}{{model_name="r1"}} 3.0\n'
    assert engine_of_page(page) == kind


def test_a_page_of_something_else_is_no_engine():
    assert engine_of_page("process_cpu_seconds_total 1\n# vllm:num_requests_running 3\n") is None


def pods_metric(name: str, target: str) -> objects.Json:
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": name},
            "target": {"type": "AverageValue", "averageValue": target},
        },
    }


def external(name: str, *, average: str = "", value: str = "") -> objects.Json:
    target = {"averageValue": average} if average else {"value": value}
    return {"type": "External", "external": {"metric": {"name": name}, "target": target}}


CPU = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
}
METRICS = [
    pytest.param(
        pods_metric("vllm:num_requests_waiting", "5"),
        ("queue_depth", "Pods", "AverageValue", 5.0),
        id="queue of each pod",
    ),
    pytest.param(
        pods_metric("vllm_generation_tokens_per_second", "1500"),
        ("output_tokens_per_s", "External", "AverageValue", 1500.0),
        id="a rate of each pod is the fleet's, shared out",
    ),
    pytest.param(
        external("llm_qps", value="12k"), ("qps", "External", "Value", 12_000.0), id="fleet rate"
    ),
    pytest.param(
        pods_metric("vllm:kv_cache_usage_perc", "800m"),
        ("kv_cache_usage", "Pods", "AverageValue", 0.8),
        id="a ratio in thousandths",
    ),
    pytest.param(
        pods_metric("DCGM_FI_DEV_GPU_UTIL", "80"),
        ("gpu_util", "External", "Value", 0.8),
        id="percent become a share, and a mean stays one",
    ),
]


@pytest.mark.parametrize(("metric", "expected"), METRICS)
def test_an_hpa_becomes_options_that_our_rule_takes(metric, expected):
    found = autoscaler_of_hpa(objects.hpa(low=2, high=12, metrics=(metric,)))
    options = dict(found.options)
    keys = ("metric", "type", "target_type", "target")
    assert tuple(options[key] for key in keys) == expected
    assert (options["min_replicas"], options["max_replicas"]) == (2, 12)
    assert build_policy("hpa", options, knob_space(replicas=(2, 12)), tick_s=15.0).name == "hpa"


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        pytest.param(CPU, "CPU and memory", id="cpu"),
        pytest.param(external("my_magic", average="3"), "no field that we know", id="unknown name"),
        pytest.param(external("llm_qps", average="3Ti"), "target is odd", id="odd unit"),
        pytest.param(external("gpu_util", average="80"), "shared out", id="mean shared out"),
    ],
)
def test_what_cannot_be_read_is_said_and_not_guessed(metric, why):
    found = autoscaler_of_hpa(objects.hpa(metrics=(metric,)))
    assert found.options == {}
    assert why in found.left_out[0]
    assert (found.low, found.high) == (2, 12)


def test_the_first_readable_metric_counts_and_the_others_are_told():
    metrics = (CPU, pods_metric("queue_depth", "4"), external("qps", value="9"))
    found = autoscaler_of_hpa(objects.hpa(metrics=metrics, behavior={"scaleDown": {}}))
    assert found.options["metric"] == "queue_depth"
    assert found.options["behavior"] == "default"
    assert [line.split(":")[0] for line in found.left_out] == [
        "metric cpu of type Resource",
        "metric qps",
        "its `behavior` is read as Kubernetes' defaults; windows and limits of its own are not "
        "taken over",
    ]


def test_a_scaled_object_gives_its_bounds_and_never_zero():
    thing = objects.scaled_object()
    thing["spec"] |= {"minReplicaCount": 0, "maxReplicaCount": 9, "triggers": [{"type": "cron"}]}
    found = autoscaler_of_scaled_object(thing)
    assert (found.low, found.high, dict(found.options)) == (1, 9, {})
    assert "cron" in found.left_out[0]


@pytest.mark.parametrize(
    ("text", "number"), [("5", 5.0), ("250m", 0.25), ("1k", 1e3), ("2Ki", 2048.0), ("x", None)]
)
def test_quantities_are_read_as_kubernetes_writes_them(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("sglang:num_queue_reqs", "queue_depth"),
        ("vllm:num_requests_running", "running"),
        ("router_requests_per_second", "qps"),
        ("frontend_inflight", "in_flight"),
        ("cpu_temperature", None),
    ],
)
def test_names_of_metrics_speak_of_fields(name, field):
    assert field_of(name) == field
