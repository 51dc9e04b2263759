"""The plugin in the real vLLM: what is asked for is what the scheduler does.

Nothing here asserts a speed, a latency or how soon something happens: the engine shares its cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import httpx
import pytest

from tests.real import model
from tests.real.controller import DEADLINE_S, reach
from tests.real.vllm_server import PLUGIN, VllmServer

PATH = "/v1/runtime_config"
ROLLBACK = PATH + "/rollback"
CEILING = 32
CLIENTS = 12


@pytest.fixture(autouse=True)
def _as_found(vllm: VllmServer) -> Iterator[None]:
    """Each test finds the start-up values and leaves them behind."""
    yield
    restore = {"knobs": {"batch_size": CEILING, "max_num_batched_tokens": tokens_ceiling(vllm)}}
    assert change(vllm, restore).status_code == 200


def state(vllm: VllmServer) -> dict[str, Any]:
    answer = vllm.control()
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def tokens_ceiling(vllm: VllmServer) -> int:
    ceiling: int = state(vllm)["knobs"]["max_num_batched_tokens"]["max"]
    return ceiling


def change(vllm: VllmServer, body: object, tag: str | None = None) -> httpx.Response:
    return vllm.control("PATCH", body=body, tag=tag or vllm.control().headers["ETag"])


@contextmanager
def closed_loop(vllm: VllmServer, clients: int) -> Iterator[list[int]]:
    """Clients that each send one request after the other; the list counts their good answers."""
    over = threading.Event()
    done: list[int] = []

    def client(number: int) -> None:
        while not over.is_set():
            answer = vllm.complete(tokens=32, prompt=f"ka lo mi {number}")
            done.append(answer["usage"]["completion_tokens"])

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            yield done
        finally:
            over.set()
            for each in running:
                each.result()


def test_the_engine_says_what_it_is_and_what_can_be_moved(vllm):
    body = state(vllm)
    assert (body["contract"], body["engine"], body["model"]) == ("1", "vllm", model.NAME)
    assert body["engine_version"] == vllm.serving("GET", "/version").json()["version"]
    knobs = {name: (k["min"], k["max"], k["actuation"]) for name, k in body["knobs"].items()}
    assert knobs["batch_size"] == (1, CEILING, "hot")
    assert knobs["max_num_batched_tokens"][0] == model.LONGEST
    assert knobs["threads"][2] == "unsupported"
    assert (body["max_num_running_seqs"], body["max_num_seqs"]) == (CEILING, CEILING)


REFUSED = {
    "above the ceiling": ({"knobs": {"batch_size": CEILING + 1}}, 400),
    "zero": ({"knobs": {"batch_size": 0}}, 400),
    "not an integer": ({"knobs": {"batch_size": 2.5}}, 400),
    "unknown": ({"knobs": {"max_num_seqs": 4}}, 400),
    "tokens below the longest prompt": ({"knobs": {"max_num_batched_tokens": 64}}, 400),
    "good and bad": ({"knobs": {"batch_size": 4, "max_num_batched_tokens": 1}}, 400),
    "needs a restart": ({"knobs": {"threads": 2}}, 501),
}


@pytest.mark.parametrize(("body", "status"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_and_never_clamped(vllm, body, status):
    before = state(vllm)
    assert change(vllm, body).status_code == status
    after = state(vllm)
    assert after["revision"] == before["revision"]
    assert after["knobs"]["batch_size"]["value"] == CEILING


def test_a_set_is_read_back_from_the_scheduler(vllm):
    before = state(vllm)
    wanted = {"batch_size": 5, "max_num_batched_tokens": 777}
    answer = change(vllm, {"knobs": wanted})
    assert answer.json()["applied"] == wanted
    after = state(vllm)
    assert {name: after["knobs"][name]["value"] for name in wanted} == wanted
    assert after["revision"] == before["revision"] + 1
    assert vllm.complete(tokens=4)["usage"]["completion_tokens"] == 4


def test_a_stale_tag_a_missing_tag_and_a_dry_run_change_nothing(vllm):
    tag = vllm.control().headers["ETag"]
    body = {"knobs": {"batch_size": 7}}
    assert vllm.control("PATCH", body=body).status_code == 428
    assert change(vllm, {**body, "dry_run": True}, tag).status_code == 200
    assert vllm.control().headers["ETag"] == tag
    assert change(vllm, body, tag).status_code == 200
    late = change(vllm, {"knobs": {"batch_size": 3}}, tag)
    assert (late.status_code, late.json()["state"]["knobs"]["batch_size"]["value"]) == (409, 7)


def test_rollback_brings_the_values_before(vllm):
    change(vllm, {"knobs": {"batch_size": 6}})
    change(vllm, {"knobs": {"batch_size": 3}})
    answer = vllm.control("POST", ROLLBACK, tag=vllm.control().headers["ETag"])
    assert answer.json()["applied"] == {"batch_size": 6}
    assert state(vllm)["knobs"]["batch_size"]["value"] == 6


def test_running_stays_at_or_below_the_cap_while_more_want_to_run(vllm):
    def counts() -> tuple[int, int]:
        body = state(vllm)
        return body["running"], body["waiting"]

    fed = 0
    with closed_loop(vllm, CLIENTS) as done:
        for cap in (4, 2):
            change(vllm, {"knobs": {"batch_size": cap}})
            reach(lambda cap=cap: counts()[0] <= cap, f"drain-down to {cap}")
            for _ in range(10):
                running, waiting = counts()
                assert running <= cap
                assert vllm.gauge("vllm:num_requests_running") <= cap
                fed += running == cap and waiting > 0
            answered = len(done)
            reach(lambda n=answered: len(done) > n, f"requests finish at cap {cap}")
    assert fed > 0, "the engine was never full: nothing was shown"
    assert set(done) == {32}


def test_a_temporary_value_ends_by_itself_without_a_call(vllm):
    def returned() -> bool:
        lines = [line for line in vllm.log.read_text().splitlines() if '"source": "ttl"' in line]
        audits = [json.loads(line[line.index("{") :]) for line in lines[seen:]]
        return any((a["to"], a["result"]) == ({"batch_size": CEILING}, "applied") for a in audits)

    seen = vllm.log.read_text().count('"source": "ttl"')
    answer = change(vllm, {"knobs": {"batch_size": 3}, "ttl_s": 1.5, "reason": "test"})
    assert answer.json()["expires_in_s"] == 1.5
    reach(returned, "the log tells of the way back")  # the engine is not called meanwhile
    knob = state(vllm)["knobs"]["batch_size"]
    assert (knob["value"], knob["previous"], knob["source"]) == (CEILING, 3, "ttl")


def test_renewing_keeps_a_temporary_value_and_its_revision(vllm):
    body = {"knobs": {"batch_size": 3}, "ttl_s": 60}
    revision = change(vllm, body).json()["revision"]
    assert change(vllm, body).json()["revision"] == revision
    knob = state(vllm)["knobs"]["batch_size"]
    assert (knob["value"], knob["base"]) == (3, CEILING)
    assert 0 < knob["expires_in_s"] <= 60


def test_a_paused_engine_says_so_and_is_not_changed(vllm):
    assert vllm.serving("POST", "/pause?mode=keep").status_code == 200
    try:
        assert state(vllm)["paused"] is True
        assert change(vllm, {"knobs": {"batch_size": 3}}).status_code == 503
        assert vllm.serving("GET", "/health").status_code == 200
    finally:
        assert vllm.serving("POST", "/resume").status_code == 200
    body = state(vllm)
    assert (body["paused"], body["knobs"]["batch_size"]["value"]) == (False, CEILING)


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong", 403)], ids=["none", "wrong"])
def test_without_the_token_nothing_is_told_or_changed(vllm, token, status):
    tag = vllm.control().headers["ETag"]
    body = {"knobs": {"batch_size": 3}}
    assert vllm.control(token=token).status_code == status
    assert vllm.control("PATCH", body=body, tag=tag, token=token).status_code == status
    assert vllm.control().headers["ETag"] == tag


@pytest.mark.parametrize("method", ["GET", "PATCH", "POST"])
@pytest.mark.parametrize("path", [PATH, ROLLBACK])
def test_the_serving_port_knows_nothing_of_run_time_control(vllm, method, path):
    assert vllm.serving(method, path).status_code == 404


def test_the_control_port_serves_nothing_else(vllm):
    for path in ("/metrics", "/v1/models", "/pause", "/health"):
        assert vllm.control(path=path).status_code == 404


def test_another_vllm_is_refused_with_a_sentence(engine_launch):
    program = "import vllm; vllm.__version__ = '9.9.9'; import tuner_vllm.middleware"
    result = subprocess.run(
        [engine_launch.command[0], "-c", program],
        env={**os.environ, "PYTHONPATH": str(PLUGIN)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode != 0
    assert "vLLM 9.9.9 found, tested with 0.32.0" in result.stderr.splitlines()[-1]


def _names() -> dict[str, Any]:
    """Every series that tuner's adapter looks for, by its field."""
    adapter = pytest.importorskip("tuner.engines.vllm", reason="the adapter is not in this tree")
    found: dict[str, Any] = {}
    for field in fields(adapter.METRICS):
        value = getattr(adapter.METRICS, field.name)
        several = value if isinstance(value, tuple) else (value,)
        found.update({f"{field.name}: {s.name}": s for s in several if hasattr(s, "labels")})
    return found


def test_every_series_of_the_adapter_is_on_the_page(vllm):
    names = _names()
    page = vllm.serving("GET", "/metrics").text
    # Before the first use a labelled counter has no sample: its family is declared all the same.
    declared = set(re.findall(r"^# TYPE (\S+) ", page, flags=re.M))
    samples = {re.split(r"[{ ]", line, maxsplit=1)[0] for line in page.splitlines()}
    for field, series in names.items():
        histogram = f"{series.name}_bucket" in samples
        counted = {series.name, series.name.removesuffix("_total")} & declared
        assert histogram or counted, f"{field} is not on the page"
        for label in series.labels:
            lines = [x for x in page.splitlines() if x.startswith(series.name + "{")]
            assert all(f'{label}="' in line for line in lines), f"{field}: no label {label}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vllm:num_requests_running", "gauge"),
        ("vllm:num_requests_waiting", "gauge"),
        ("vllm:kv_cache_usage_perc", "gauge"),
        ("vllm:request_success_total", "counter"),
        ("vllm:prompt_tokens_total", "counter"),
        ("vllm:generation_tokens_total", "counter"),
        ("vllm:num_preemptions_total", "counter"),
        ("vllm:time_to_first_token_seconds", "histogram"),
        ("vllm:request_time_per_output_token_seconds", "histogram"),
        ("vllm:e2e_request_latency_seconds", "histogram"),
        ("vllm:engine_sleep_state", "gauge"),
    ],
)
def test_the_page_has_the_types_that_the_fields_are_computed_from(vllm, name, kind):
    page = vllm.serving("GET", "/metrics").text
    assert f"# TYPE {name} {kind}" in page


def test_tokens_and_requests_on_the_page_are_those_that_the_client_counted(vllm):
    def counters() -> list[float]:
        names = ("request_success_total", "prompt_tokens_total", "generation_tokens_total")
        return [vllm.gauge(f"vllm:{name}") for name in names]

    before = counters()
    usage = [vllm.complete(tokens=n)["usage"] for n in (1, 5, 9)]
    wanted = [
        before[0] + 3,
        before[1] + sum(each["prompt_tokens"] for each in usage),
        before[2] + 15,
    ]
    reach(lambda: counters() == wanted, f"counters at {wanted}")
