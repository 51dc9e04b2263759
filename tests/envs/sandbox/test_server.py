"""The sandbox over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from envs.sandbox import SandboxCluster, SandboxServer
from envs.simulator import E2E_BOUNDS_S, TPOT_BOUNDS_S, TTFT_BOUNDS_S
from tests.envs import worlds
from tests.envs.sandbox.small import EPOCH_S, World
from tuner.core.clock import ScaledClock, WallClock
from tuner.core.errors import ConfigError

VLLM: dict[str, tuple[str, set[str]]] = {
    "vllm:num_requests_running": ("gauge", set()),
    "vllm:num_requests_waiting": ("gauge", set()),
    "vllm:engine_sleep_state": ("gauge", {"sleep_state"}),
    "vllm:kv_cache_usage_perc": ("gauge", set()),
    "vllm:num_preemptions": ("counter", set()),
    "vllm:prompt_tokens": ("counter", set()),
    "vllm:generation_tokens": ("counter", set()),
    "vllm:request_success": ("counter", {"finished_reason"}),
    "vllm:admission_rejections": ("counter", {"reason"}),
    "vllm:request_prompt_tokens": ("histogram", {"le"}),
    "vllm:request_generation_tokens": ("histogram", {"le"}),
    "vllm:time_to_first_token_seconds": ("histogram", {"le"}),
    "vllm:inter_token_latency_seconds": ("histogram", {"le"}),
    "vllm:request_time_per_output_token_seconds": ("histogram", {"le"}),
    "vllm:e2e_request_latency_seconds": ("histogram", {"le"}),
}
"""Family -> type and labels besides engine and model_name, as on a page of vLLM 0.32."""


class Served:
    """A small world behind a server, and a client."""

    def __init__(self, **options: Any) -> None:
        self.world = World(**options)
        self.server = SandboxServer(self.world.cluster)
        self.http = httpx.Client(base_url=self.server.url, timeout=10.0, trust_env=False)

    def __enter__(self) -> Served:
        self.server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        self.server.__exit__(*error)

    def at(self, seconds: float) -> None:
        self.world.clock.sleep_until(EPOCH_S + seconds)

    def families(self, path: str) -> dict[str, Metric]:
        answer = self.http.get(path)
        assert answer.status_code == 200
        return {f.name: f for f in text_string_to_metric_families(answer.text)}

    def value(self, path: str, name: str) -> float:
        """Sum over a name's samples."""
        return sum(
            sample.value
            for family in self.families(path).values()
            for sample in family.samples
            if sample.name == name
        )

    def scale(self, replicas: int) -> httpx.Response:
        etag = self.http.get("/pool").headers["ETag"]
        return self.http.put("/pool", json={"replicas": replicas}, headers={"If-Match": etag})

    def names(self) -> list[str]:
        return [member["name"] for member in self.http.get("/pool").json()["members"]]


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


def test_a_replicas_page_has_vllms_names_types_and_labels(served):
    served.at(120.0)
    families = served.families("/replicas/replica-0/metrics")
    assert {name: family.type for name, family in families.items()} == {
        name: kind for name, (kind, _) in VLLM.items()
    }
    for name, (kind, more) in VLLM.items():
        for sample in families[name].samples:
            labels = set(sample.labels) - {"engine", "model_name"}
            bucket = sample.name.endswith("_bucket")
            assert labels == (more if kind != "histogram" or bucket else set()), sample
            assert sample.labels["model_name"] == "small"


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("vllm:time_to_first_token_seconds", TTFT_BOUNDS_S),
        ("vllm:inter_token_latency_seconds", TPOT_BOUNDS_S),
        ("vllm:request_time_per_output_token_seconds", TPOT_BOUNDS_S),
        ("vllm:e2e_request_latency_seconds", E2E_BOUNDS_S),
    ],
)
def test_buckets_are_vllms_and_add_up(served, name, bounds):
    served.at(300.0)
    samples = served.families("/replicas/replica-0/metrics")[name].samples
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    assert [float(one.labels["le"]) for one in buckets] == [*bounds.tolist(), np.inf]
    counts = [one.value for one in buckets]
    assert counts == sorted(counts)
    (count,) = (one.value for one in samples if one.name.endswith("_count"))
    assert counts[-1] == count > 0


def test_pages_of_all_replicas_sum_up_to_the_client_side(served):
    served.at(300.0)
    served.scale(5)
    served.at(500.0)
    pages = [f"/replicas/{name}/metrics" for name in served.names()]
    for mine, theirs in {
        "vllm:request_success_total": "tuner_load_finished_total",
        "vllm:generation_tokens_total": "tuner_load_output_tokens_total",
        "vllm:prompt_tokens_total": "tuner_load_prompt_tokens_total",
    }.items():
        total = sum(served.value(page, mine) for page in pages)
        assert total == served.value("/traffic/metrics", theirs) > 0
        assert served.value("/metrics", mine) == total
    in_flight = served.value("/traffic/metrics", "tuner_load_in_flight")
    held = [
        served.value("/metrics", f"vllm:num_requests_{state}") for state in ("running", "waiting")
    ]
    assert sum(held) == in_flight


def test_the_whole_page_tells_replicas_apart_by_pod(served):
    served.at(60.0)
    families = served.families("/metrics")
    pods = [sample.labels["pod"] for sample in families["vllm:num_requests_running"].samples]
    assert pods == ["replica-0", "replica-1", "replica-2"]
    assert "tuner_load_requests" in families


def test_arrivals_count_the_trace(served):
    served.at(200.0)
    arrived = int(np.sum(worlds.trace().arrival_s <= 200.0))
    assert served.value("/traffic/metrics", "tuner_load_requests_total") == arrived


@pytest.mark.parametrize("speed", [1.0, 10.0, 200.0])
def test_simulated_time_runs_so_many_times_as_fast_as_the_wall_clock(speed):
    arrival_s = worlds.trace().arrival_s
    epoch_s = WallClock().now_s()
    clock = ScaledClock(speed, epoch_s)
    cluster = SandboxCluster(worlds.trace(), worlds.PROFILE, clock, replicas=3)
    with SandboxServer(cluster) as server, httpx.Client(trust_env=False) as http:
        for _ in range(5):
            earliest_s = epoch_s + (WallClock().now_s() - epoch_s) * speed - cluster.epoch_s
            page = http.get(f"{server.url}/traffic/metrics").text
            latest_s = epoch_s + (WallClock().now_s() - epoch_s) * speed - cluster.epoch_s
            families = {f.name: f for f in text_string_to_metric_families(page)}
            arrived = families["tuner_load_requests"].samples[0].value
            # However slow this machine is: what had arrived before the question and after it.
            assert np.sum(arrival_s <= earliest_s) <= arrived <= np.sum(arrival_s <= latest_s)


def test_the_pool_tells_replicas_their_state_and_age(served):
    served.at(30.0)
    served.scale(4)
    served.at(35.0)
    pool = served.http.get("/pool").json()
    assert pool["wanted"] == 4
    assert [member["state"] for member in pool["members"]] == ["ready"] * 3 + ["starting"]
    assert [round(member["age_s"], 6) for member in pool["members"]] == [35, 35, 35, 5]
    assert pool["members"][0]["url"] == f"{served.server.url}/replicas/replica-0"


def test_a_write_on_an_old_look_is_409_and_changes_nothing(served):
    old = served.http.get("/pool").headers["ETag"]
    assert served.scale(4).status_code == 200
    answer = served.http.put("/pool", json={"replicas": 6}, headers={"If-Match": old})
    assert answer.status_code == 409
    assert answer.json()["state"]["wanted"] == 4
    assert served.http.get("/pool").json()["wanted"] == 4


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        pytest.param({"replicas": 4}, {}, 428, "If-Match is missing", id="no If-Match"),
        pytest.param({"replicas": 0}, {"If-Match": '"1"'}, 400, "expected 1 to 6", id="none"),
        pytest.param({"replicas": 99}, {"If-Match": '"1"'}, 400, "expected 1 to 6", id="too many"),
        pytest.param({"replicas": 1.5}, {"If-Match": '"1"'}, 400, "whole number", id="a fraction"),
        pytest.param({"replicas": True}, {"If-Match": '"1"'}, 400, "whole number", id="a boolean"),
        pytest.param({"count": 4}, {"If-Match": '"1"'}, 400, "whole number", id="another key"),
        pytest.param([4], {"If-Match": '"1"'}, 400, "not a JSON object", id="a list"),
    ],
)
def test_a_write_that_cannot_be_is_refused(served, body, headers, status, sentence):
    answer = served.http.put("/pool", json=body, headers=headers)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]
    assert served.http.get("/pool").json()["wanted"] == 3


def test_warm_up_requests_hold_for_the_next_replica(served):
    assert served.http.get("/pool/warmup").json() == {"requests": 0}
    assert served.http.put("/pool/warmup", json={"requests": 40}).json() == {"requests": 40}
    served.scale(4)
    states = set()
    for step in range(1, 300):
        served.at(step * 0.5)
        states |= {member["state"] for member in served.http.get("/pool").json()["members"]}
    assert states == {"starting", "warming", "ready"}


def test_a_starting_replica_answers_503_and_an_unknown_one_404(served):
    served.scale(4)
    assert served.http.get("/replicas/replica-3/health").status_code == 503
    assert "starting" in served.http.get("/replicas/replica-3/metrics").json()["error"]
    assert served.http.get("/replicas/replica-9/health").status_code == 404
    served.at(200.0)
    assert served.http.get("/replicas/replica-3/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/version", {"version": "sandbox"}),
        ("/is_paused", {"is_paused": False}),
        ("/is_sleeping", {"is_sleeping": False}),
    ],
)
def test_a_ready_replica_answers_like_an_engine(served, path, expected):
    assert served.http.get("/replicas/replica-0" + path).json() == expected
    models = served.http.get("/replicas/replica-0/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["small"]


def test_a_completion_proves_life_and_is_no_load(served):
    before = served.value("/replicas/replica-0/metrics", "vllm:request_success_total")
    body = {"model": "small", "prompt": [3, 4, 5], "max_tokens": 4}
    answer = served.http.post("/replicas/replica-0/v1/completions", json=body).json()
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert answer["choices"][0]["text"]
    stream = served.http.post("/replicas/replica-0/v1/completions", json={**body, "stream": True})
    events = [line[6:] for line in stream.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert sum(bool(json.loads(event)["choices"]) for event in events[:-1]) == 4
    after = served.value("/replicas/replica-0/metrics", "vllm:request_success_total")
    assert after == before


def patch(served: Served, name: str, value: int, **more: object) -> httpx.Response:
    url = f"/replicas/{name}/v1/runtime_config"
    etag = served.http.get(url).headers["ETag"]
    body = {"knobs": {"batch_size": value}, **more}
    return served.http.patch(url, json=body, headers={"If-Match": etag})


def test_a_batch_size_is_in_force_once_every_ready_replica_has_it(served):
    cluster = served.world.cluster
    served.at(10.0)
    for name, in_force in (("replica-0", 32), ("replica-1", 32), ("replica-2", 2)):
        assert patch(served, name, 2).status_code == 200
        assert cluster.batch_size == in_force
    served.at(200.0)
    running = [
        served.value(f"/replicas/{name}/metrics", "vllm:num_requests_running")
        for name in served.names()
    ]
    assert max(running) <= 2
    # Fed: without requests waiting the cap would prove nothing.
    assert served.value("/metrics", "vllm:num_requests_waiting") > 0


def test_a_new_replica_has_the_value_it_was_started_with_until_it_is_written_to(served):
    for name in served.names():
        patch(served, name, 8)
    served.scale(4)
    served.at(200.0)
    state = served.http.get("/replicas/replica-3/v1/runtime_config").json()
    assert state["knobs"]["batch_size"]["value"] == 32
    assert served.world.cluster.batch_size == 8


def test_a_temporary_value_ends_by_itself_in_simulated_time(served):
    for name in served.names():
        assert patch(served, name, 4, ttl_s=60.0).json()["applied"] == {"batch_size": 4}
    served.at(59.0)
    assert served.http.get("/healthz").status_code == 200
    assert served.world.cluster.batch_size == 4
    served.at(61.0)
    assert served.http.get("/healthz").status_code == 200  # anybody's look lets time pass
    assert served.world.cluster.batch_size == 32
    state = served.http.get("/replicas/replica-0/v1/runtime_config").json()
    assert state["knobs"]["batch_size"]["source"] == "ttl"


def test_a_batch_size_out_of_range_is_refused_and_never_clamped(served):
    answer = patch(served, "replica-0", 33)
    assert answer.status_code == 400
    assert "outside 1..32" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/replicas/replica-0/nothing", 404),
        ("POST", "/pool", 405),
        ("POST", "/metrics", 405),
        ("PUT", "/replicas/replica-0/metrics", 405),
        ("POST", "/replicas/replica-0/v1/completions", 400),
    ],
)
def test_what_there_is_not_is_said(served, method, path, status):
    answer = served.http.request(method, path, content=b"{}" if method != "GET" else b"")
    assert answer.status_code == status
    assert answer.json()["error"]


def test_a_body_without_a_length_is_refused_and_the_server_goes_on(served):
    answer = served.http.put("/pool", content=iter([b"{}"]))  # chunked
    assert answer.status_code == 411
    assert served.http.get("/healthz").status_code == 200


def test_a_port_that_is_taken_is_one_sentence(served):
    with pytest.raises(ConfigError, match=f"--port {served.server.port}: .*name another one"):
        SandboxServer(World().cluster, port=served.server.port)
