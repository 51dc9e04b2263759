"""What is wrong with a tuner.yaml, all of it at once, each with its key path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.files import target, write
from tests.policies import bundles
from tuner.config.file import load_config
from tuner.config.mistakes import deployment_mistake, namespace_mistake
from tuner.core.errors import ConfigError

ENDPOINT = {"name": "a", "url": "http://127.0.0.1:8000"}
POD: dict[str, Any] = {"namespace": "l", "deployment": "d", "control_port": 8001}
HERE: dict[str, Any] = {"kubernetes": ...}
SCRAPED: dict[str, Any] = {"prometheus": ..., "scrape": {}}


def complaints(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


TARGET_CASES: list[tuple[str, dict[str, Any], str]] = [
    ("name with a space", {"name": "my model"}, "name is 'my model'; expected 1 to 63 letters"),
    ("engine", {"engine": {"kind": "vlm"}}, "engine.kind is 'vlm'; did you mean 'vllm'?"),
    ("no source", {"prometheus": ...}, "prometheus is missing, and so is scrape"),
    ("two sources", {"scrape": {}}, "prometheus stands beside scrape; expected exactly one"),
    ("no place", {"kubernetes": ...}, "kubernetes is missing, and so is processes or sandbox"),
    (
        "two places",
        {"sandbox": {"url": "http://127.0.0.1:1"}},
        "kubernetes stands beside sandbox; expected exactly one",
    ),
    ("tick", {"tick_s": 0.001}, "tick_s is 0.001; expected at least 0.1"),
    ("window", {"window_s": 5}, "window_s is 5; expected at least tick_s (15)"),
    (
        "life of a hot value",
        {"engine": {"kind": "vllm", "ttl_s": 30}},
        "engine.ttl_s is 30; expected above 2 x tick_s (30)",
    ),
    ("objective", {"slo": {"ttft_s": -1}}, "slo.ttft_s is -1; expected above 0"),
    (
        "no scheme",
        {"prometheus": {"url": "prometheus:9090"}},
        "prometheus.url is 'prometheus:9090'; expected http:// or https:// with a host",
    ),
    (
        "port beyond",
        {"prometheus": {"url": "http://prometheus:99999"}},
        "prometheus.url is no address that can be read",
    ),
    (
        "replica label",
        {"prometheus": {"url": "http://p", "replica_label": "a-b"}},
        "prometheus.replica_label is 'a-b'; expected a label's name",
    ),
    (
        "selector",
        {"prometheus": {"url": "http://p", "selector": {"a-b": "c"}}},
        "prometheus.selector.a-b is no name of a label",
    ),
    (
        "traffic page beside Prometheus",
        {"traffic": {"arrivals": "sent_total", "url": "http://gateway:80/metrics"}},
        "traffic.url stands beside prometheus",
    ),
    (
        "traffic without a page",
        {**SCRAPED, "traffic": {"arrivals": "sent_total"}},
        "traffic.url is missing; with scrape, name the page",
    ),
    (
        "no metric",
        {"traffic": {"arrivals": "rate(sent_total[1m])"}},
        "traffic.arrivals is 'rate(sent_total[1m])'; expected the name of a metric",
    ),
    ("dcgm", {**SCRAPED, "gpu": {"source": "dcgm"}}, "gpu.source is dcgm, which is read from"),
    (
        "cards of dcgm",
        {"gpu": {"source": "dcgm", "indices": [0]}},
        "gpu.indices are for nvml",
    ),
    (
        "labels of nvml",
        {"gpu": {"source": "nvml", "selector": {"a": "b"}}},
        "gpu.selector is for dcgm",
    ),
    ("cards", {"gpu": {"source": "nvml", "indices": [0, 0]}}, "gpu.indices is [0, 0]"),
    ("business", {**SCRAPED, "business": {"query": "x"}}, "business needs prometheus"),
    ("probe", {"probe": {"output_tokens": 0}}, "probe.output_tokens is 0; expected at least 1"),
    (
        "port",
        {"kubernetes": {**POD, "serving_port": 0}},
        "kubernetes.serving_port is 0; expected 1 to 65535",
    ),
    (
        "namespace in capitals",
        {"kubernetes": {**POD, "namespace": "LLM"}},
        "kubernetes.namespace is 'LLM'; expected 1 to 63 lower-case letters, digits and dashes",
    ),
    (
        "namespace with a dot",
        {"kubernetes": {**POD, "namespace": "a.b"}},
        "kubernetes.namespace is 'a.b'",
    ),
    (
        "long namespace",
        {"kubernetes": {**POD, "namespace": 64 * "n"}},
        f"kubernetes.namespace is '{64 * 'n'}'",
    ),
    (
        "deployment with a line below",
        {"kubernetes": {**POD, "deployment": "r1_a"}},
        "kubernetes.deployment is 'r1_a'; expected 1 to 253 lower-case letters, digits, dashes",
    ),
    (
        "deployment that ends in a dash",
        {"kubernetes": {**POD, "deployment": "r1-"}},
        "kubernetes.deployment is 'r1-'",
    ),
    (
        "deployment with an empty part",
        {"kubernetes": {**POD, "deployment": "r1..a"}},
        "kubernetes.deployment is 'r1..a'",
    ),
    (
        "long deployment",
        {"kubernetes": {**POD, "deployment": 254 * "d"}},
        f"kubernetes.deployment is '{254 * 'd'}'",
    ),
    (
        "metrics port",
        {"kubernetes": {**POD, "metrics_port": 70000}},
        "kubernetes.metrics_port is 70000; expected 1 to 65535",
    ),
    (
        "metrics address",
        {
            **HERE,
            "processes": {
                "endpoints": [{"name": "a", "url": "http://a:1", "metrics_url": "a:2"}],
            },
            "move": [],
        },
        "processes.endpoints[0].metrics_url is 'a:2'",
    ),
    (
        "lease shorter than its renewal",
        {"kubernetes": {**POD, "lease": "tuner", "lease_s": 30}},
        "kubernetes.lease_s is 30; expected 45 or more, 3 ticks",
    ),
    (
        "no engines at all",
        {**HERE, "processes": {"endpoints": []}, "move": []},
        "processes.endpoints is empty, and there is no command",
    ),
    (
        "endpoint twice",
        {**HERE, "processes": {"endpoints": [ENDPOINT, ENDPOINT]}, "move": []},
        "processes.endpoints[1].name is 'a' for the second time",
    ),
    (
        "endpoint with a path",
        {**HERE, "processes": {"endpoints": [{"name": "a", "url": "http://h/v1"}]}, "move": []},
        "processes.endpoints[0].url is 'http://h/v1'; expected no path",
    ),
    (
        "command without port",
        {**HERE, "processes": {"endpoints": [ENDPOINT], "command": ["vllm"]}},
        "processes.command has no {port}",
    ),
    (
        "speed",
        {**HERE, "sandbox": {"url": "http://127.0.0.1:1", "speed": 0}},
        "sandbox.speed is 0; expected above 0",
    ),
    (
        "knob",
        {"knobs": {"batchsize": {"low": 1, "high": 2}}},
        "knobs.batchsize is not a known knob; did you mean 'batch_size'?",
    ),
    (
        "range",
        {"knobs": {"batch_size": {"low": 256, "high": 128}}},
        "knobs.batch_size.low is 256, above high (128)",
    ),
    (
        "no replicas",
        {"knobs": {"replicas": {"low": 0, "high": 8}}},
        "knobs.replicas.low is 0; expected at least 1",
    ),
    ("step of no knob", {"steps": {"replica": {}}}, "steps.replica is not a known knob"),
    (
        "step",
        {"steps": {"replicas": {"up": -1}}},
        "steps.replicas.up is -1; expected at least 0",
    ),
    ("move no knob", {"move": ["replica"]}, "move[0] is 'replica', which is no knob; did you mean"),
    ("move twice", {"move": ["replicas", "replicas"]}, "move[1] is 'replicas' for the second time"),
    ("move threads", {"move": ["threads"]}, "move[0] is 'threads', which vllm reads at its start"),
    (
        "move of what is only watched",
        {"engine": {"kind": "lmdeploy"}},
        "move[1] is 'batch_size', but lmdeploy can only be watched",
    ),
    (
        "move without control port",
        {"kubernetes": {"namespace": "l", "deployment": "d"}},
        "move[1] is 'batch_size', but kubernetes.control_port is not set",
    ),
    (
        "move replicas without command",
        {**HERE, "processes": {"endpoints": [ENDPOINT]}},
        "move[0] is 'replicas', but processes.command is empty",
    ),
    ("move warm-up", {"move": ["warmup_requests"]}, "kubernetes.warmup_configmap is not set"),
    ("policy", {"policy": "hpaa"}, "policy: policy 'hpaa' is unknown; did you mean 'hpa'?"),
    (
        "option",
        {"policy_options": {"traget": 1}},
        "policy: hpa: unknown option 'traget'; did you mean 'target'?",
    ),
    (
        "option of the fallback",
        {"fallback": "static", "fallback_options": {"replicas": 99}},
        "fallback: static: replicas 99 is outside 1..8",
    ),
    (
        "no bundle",
        {"policy": "bundles/r1-1.0.0", "policy_options": ...},
        "does not exist; expected a bundle",
    ),
    ("evidence", {"promotion": {"max_fault_share": 5}}, "promotion.max_fault_share is 5; expected"),
    ("profile", {"promotion": {"profile": "r1"}}, "promotion.profile: profile 'r1' is not built"),
]


@pytest.mark.parametrize(
    ("changes", "sentence"), [case[1:] for case in TARGET_CASES], ids=[c[0] for c in TARGET_CASES]
)
def test_a_mistake_in_a_target_is_told_with_its_path_and_nothing_else(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    (line,) = complaints(write(tmp_path, target(**changes)))
    assert line.startswith("targets[0].")
    assert sentence in line


@pytest.mark.parametrize(
    ("top", "sentence"),
    [
        ({"targets": []}, "targets is empty; expected at least one"),
        ({"targets": [target(), target()]}, "targets[1].name is 'r1', as of targets[0]"),
        ({"server": {"port": 70000}}, "server.port is 70000; expected 0 to 65535"),
        ({"server": {"host": ""}}, "server.host is empty"),
        ({"audit": "mysql://u:hunter2@h/d"}, "audit begins with 'mysql'; expected a SQLAlchemy"),
        ({"audit": "tuner.db"}, "audit begins with 'tuner.db'"),
        ({"schema": "tuner.config/9"}, "schema is 'tuner.config/9'; expected one of"),
    ],
    ids=["no target", "same name", "port", "host", "database", "no URL", "schema"],
)
def test_a_mistake_in_the_file_is_told_with_its_path(
    tmp_path: Path, top: dict[str, Any], sentence: str
) -> None:
    (line,) = complaints(write(tmp_path, **top))
    assert sentence in line
    assert "hunter2" not in line


def test_every_mistake_of_every_kind_comes_at_once(tmp_path: Path) -> None:
    spoilt = target(
        tikc_s=5,
        window_s="long",
        move=["replicas", "gears"],
        engine={"kind": "sglnag"},
        policy_options={"target": "much"},
        knobs={"replicas": {"low": 9, "high": 8}},
    )
    path = write(tmp_path, spoilt, target(name="r2", prometheus={"ulr": "http://p"}), audit="x")
    told = complaints(path)
    assert sorted(line.split(" ")[0].rstrip(":") for line in told) == sorted(
        [
            "targets[0].tikc_s",
            "targets[0].window_s",
            "targets[0].move[1]",
            "targets[0].engine.kind",
            "targets[0].knobs.replicas.low",
            "targets[1].prometheus.ulr",
            "targets[1].prometheus.url",
            "audit",
        ]
    )
    assert any("tikc_s is not a known key; did you mean 'tick_s'?" in line for line in told)


def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    spoilt = target(prometheus={"url": "http://user:hunter2@prometheus:9090"})
    (line,) = complaints(write(tmp_path, spoilt))
    assert "prometheus.url holds a user or password" in line
    assert "hunter2" not in line


def test_a_bundle_that_does_not_fit_the_ranges_is_refused_before_any_tick(tmp_path: Path) -> None:
    bundles.write(tmp_path)
    fits = {
        "replicas": {"low": 1, "high": 6},
        "batch_size": {"low": 1, "high": 32},
        "threads": {"low": 4, "high": 4},
    }
    good = target(policy="small-1.2.3", policy_options=..., knobs=fits)
    assert load_config(write(tmp_path, good)).targets[0].policy == str(tmp_path / "small-1.2.3")
    wide = {**fits, "replicas": {"low": 1, "high": 60}}
    (line,) = complaints(write(tmp_path, {**good, "knobs": wide}))
    assert "knob replicas was trained for 1..6, but this target allows 1..60" in line


def test_a_bundle_takes_no_options(tmp_path: Path) -> None:
    bundles.write(tmp_path)
    (line,) = complaints(write(tmp_path, target(policy="small-1.2.3")))
    assert "unknown option 'target'" in line


@pytest.mark.parametrize("name", ["a", "0", "r1", "a-b", 63 * "n"])
def test_a_name_that_kubernetes_takes_is_taken(name):
    assert namespace_mistake(name) == deployment_mistake(name) == ""


@pytest.mark.parametrize("name", ["r1.v2", 253 * "d"])
def test_a_deployment_may_have_dots_and_a_longer_name(name):
    assert deployment_mistake(name) == ""
    assert namespace_mistake(name) != ""
