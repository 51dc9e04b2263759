"""The whole of the operating half against real servers: vLLM, Prometheus, the commands.

A real vLLM serves a DeepSeek-V3 of random weights on this machine's CPU, a real Prometheus scrapes
it, `tuner load` is the client. Nothing here asserts a speed: the engine shares its cores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.policies import bundles
from tests.ports import free_port
from tests.real.controller import Running, reach, running, tuner
from tests.real.prometheus import Prometheus, Scrape
from tests.real.test_plugin import closed_loop
from tests.real.vllm_server import READY_S, Launch, VllmServer, tail
from tuner.control.audit_store import AuditStore, StoredDecision
from tuner.core.faults import FaultReason
from tuner.core.observation import Observation, ReplicaState
from tuner.core.trace import Trace
from tuner.data.traces import write_trace
from tuner.live.processes.started import Started, kill_all

ENGINE = "engine-1"
QPS = 4.0
PROMPT_TOKENS, OUTPUT_TOKENS = 24, 12
SECONDS = 600
TICKS, TICK_S, WINDOW_S = 8, 5.0, 30.0
MOST_LATE = 2
"""Ticks at which crowded cores may keep an answer back; what is really missing is so at each."""
SCRAPE_S = 2.0
CEILING = 32


@dataclass(frozen=True)
class World:
    """One engine, one Prometheus, and the folder that everything is written to."""

    folder: Path
    engine: VllmServer
    launch: Launch
    prometheus: Prometheus
    load_port: int
    trace: Path

    def config(self, name: str, policy: str, options: dict[str, object], **changes: Any) -> Path:
        """A tuner.yaml for this engine."""
        target = {
            "name": "tiny",
            "policy": policy,
            "policy_options": options,
            "fallback": "static",
            "fallback_options": {"replicas": 1},
            "engine": {"kind": "vllm", "token_file": str(self.launch.token_file), "ttl_s": 60.0},
            "prometheus": {"url": self.prometheus.url, "selector": {"app": "tiny"}},
            "traffic": {
                "arrivals": "tuner_load_requests_total",
                "in_flight": "tuner_load_in_flight",
                "selector": {"app": "client"},
            },
            "processes": self.processes(name),
            "tick_s": TICK_S,
            "window_s": WINDOW_S,
            "knobs": {
                "replicas": {"low": 1, "high": 2},
                "batch_size": {"low": 1, "high": CEILING},
            },
            **changes,
        }
        path = self.folder / f"{name}.yaml"
        whole = {
            "schema": "tuner.config/1",
            "targets": [target],
            "audit": f"sqlite:///{self.folder / name}.db",
            "server": {"port": 0},
        }
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        return path

    def asked(self, query: str, *, at_s: float | None = None) -> float:
        """What Prometheus itself says; NaN where it has nothing."""
        at = {} if at_s is None else {"time": at_s}
        url = f"{self.prometheus.url}/api/v1/query"
        answer = httpx.get(url, params={"query": query, **at}, timeout=60.0)
        result = answer.json()["data"]["result"]
        return float(result[0]["value"][1]) if result else math.nan

    def quantile(self, family: str, q: float, *, at_s: float) -> float:
        """What Prometheus makes of the engine's buckets, over the controller's window."""
        rise = f"sum by (le) (increase({family}_bucket{{app='tiny'}}[{WINDOW_S:g}s]))"
        return self.asked(f"histogram_quantile({q}, {rise})", at_s=at_s)

    def rate(self, series: str, *, at_s: float) -> float:
        """What Prometheus makes of a counter of the engine's, over the controller's window."""
        return self.asked(f"sum(rate({series}{{app='tiny'}}[{WINDOW_S:g}s]))", at_s=at_s)

    def processes(self, name: str) -> dict[str, object]:
        """The engine that runs already, and how to start one more like it."""
        return {
            "endpoints": [
                {"name": ENGINE, "url": self.engine.url, "control_url": self.engine.control_url}
            ],
            "command": list(self.launch.command),
            "environment": dict(self.launch.environment),
            "state_dir": str(self.state(name)),
            "endpoints_file": str(self.endpoints(name)),
        }

    def state(self, name: str) -> Path:
        """Where a controller of this name keeps notes and logs of the engines it starts."""
        return self.folder / f"{name}-processes"

    def endpoints(self, name: str) -> Path:
        """Addresses that take traffic, as the controller keeps them."""
        return self.folder / f"{name}-endpoints.json"

    def end_engines(self, name: str) -> None:
        """End what a controller of this name has started and nobody has stopped."""
        notes = self.state(name) / "processes.json"
        for process in json.loads(notes.read_text())["processes"] if notes.exists() else ():
            kill_all(Started.from_json(process))

    def logs(self) -> dict[str, str]:
        """What a failed test shows: engines that controllers started, and where load went."""
        engines = sorted(self.folder.glob("*-processes/engine-*.log"))
        texts = sorted([*self.folder.glob("*-endpoints.json"), *self.folder.glob("*/summary.json")])
        return {
            **{f"{log.name}, started by the controller": tail(log) for log in engines},
            **{str(text.relative_to(self.folder)): text.read_text()[-1500:] for text in texts},
        }

    def sent(self) -> float:
        """Requests that the client says it has sent; 0 while its page is not there."""
        return on_page(f"http://127.0.0.1:{self.load_port}", "tuner_load_requests_total")

    def batch_size(self) -> int:
        value: int = self.engine.control().json()["knobs"]["batch_size"]["value"]
        return value

    def revision(self) -> tuple[str, int]:
        body = self.engine.control().json()
        return body["instance_id"], body["revision"]

    def load(self, name: str, *more: object) -> tuple[object, ...]:
        """Arguments of `tuner load` at an even pace."""
        return ("load", "--trace", self.trace, "--out", self.folder / name, "--json", *more)


@pytest.fixture(scope="module")
def world(
    vllm: VllmServer, engine_launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("live")
    load_port = free_port()
    count = int(QPS * SECONDS)
    trace = Trace(
        np.arange(count) / QPS,
        np.full(count, PROMPT_TOKENS, np.int32),
        np.full(count, OUTPUT_TOKENS, np.int32),
    )
    write_trace(trace, folder / "even.parquet")
    scrapes = [
        Scrape(vllm.url.removeprefix("http://"), {"app": "tiny", "pod": ENGINE}),
        Scrape(f"127.0.0.1:{load_port}", {"app": "client"}),
    ]
    with Prometheus(folder / "prometheus", scrapes, interval_s=SCRAPE_S) as prometheus:
        yield World(folder, vllm, engine_launch, prometheus, load_port, folder / "even.parquet")


@dataclass(frozen=True)
class Shadowed:
    """What less than a minute in shadow left behind."""

    config: Path
    decisions: list[StoredDecision]
    client: dict[str, Any]
    """Summary of the load."""
    rows: dict[str, np.ndarray]
    """The client's requests."""
    revisions: tuple[tuple[str, int], tuple[str, int]]
    page: str
    """The engine's page at the end."""

    @property
    def seen(self) -> list[Observation]:
        return [each.record.observation for each in self.decisions]

    def mean(self, field: str) -> float:
        return float(np.mean([getattr(one, field) for one in self.seen]))


@pytest.fixture(scope="module")
def shadow(world: World) -> Shadowed:
    """A bundle in shadow under even load, then everything at rest."""
    bundle = bundles.write(world.folder)
    knobs = {"replicas": {"low": 1, "high": 6}, "batch_size": {"low": 1, "high": CEILING}}
    knobs["threads"] = {"low": 4, "high": 4}
    config = world.config("shadow", str(bundle), {}, knobs=knobs)
    before = world.revision()
    arguments = world.load("steady", "--url", world.engine.url, "--metrics-port", world.load_port)
    with running(*arguments, cwd=world.folder) as load:
        reach(lambda: world.sent() > QPS * (WINDOW_S + 5), "the client fills the window", load)
        run = ("run", "--config", config, "--mode", "shadow", "--ticks", TICKS)
        done = tuner(*run, cwd=world.folder)
        assert done.status == 0, done
        page = world.engine.serving("GET", "/metrics").text
    store = AuditStore.open(f"sqlite:///{world.folder / 'shadow.db'}")
    decisions = store.decisions("tiny", last=100)
    store.close()
    return Shadowed(
        config=config,
        decisions=sorted(decisions, key=lambda one: one.id),
        client=json.loads((world.folder / "steady" / "summary.json").read_text()),
        rows={
            name: column.to_numpy()
            for name, column in zip(*_columns(world.folder / "steady"), strict=True)
        },
        revisions=(before, world.revision()),
        page=page,
    )


def _columns(folder: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(folder / "requests.parquet")
    return table.column_names, list(table.columns)


def test_shadow_decides_at_every_tick_and_writes_nothing(shadow):
    assert len(shadow.decisions) == TICKS
    assert {each.record.mode for each in shadow.decisions} == {"shadow"}
    before, after = shadow.revisions
    assert after == before
    for each in shadow.decisions:
        receipt = each.record.receipt
        assert receipt is not None
        assert not receipt.applied
        assert {fault.reason for fault in receipt.faults} <= {FaultReason.SHADOW}


def test_the_policy_decides_because_nothing_is_missing(shadow):
    faults = [fault.sentence for one in shadow.seen for fault in one.faults]
    whole = [
        each
        for each in shadow.decisions
        if each.record.observation.ready_replicas == 1 and not each.record.observation.faults
    ]
    assert len(whole) >= TICKS - MOST_LATE, faults
    assert {str(each.decision.source) for each in whole} == {"policy"}
    for one in (each.record.observation for each in whole):
        assert one.settings["batch_size"] == CEILING
        assert one.settings["replicas"] == one.ready_replicas == 1
        assert one.age_s is not None
        assert one.age_s < WINDOW_S
        assert set(one.ages_s) >= {"qps", "output_tokens_per_s", "running"}


def test_arrivals_are_seen_within_five_percent_of_what_the_client_sent(shadow):
    assert set(shadow.client["failed"]) <= {"interrupted"}  # by the end of the test, not before
    assert "qps" not in {name for one in shadow.seen for name in one.estimates}
    assert shadow.mean("qps") == pytest.approx(QPS, rel=0.05)
    for one in shadow.seen:  # a client that was kept waiting catches up in the next window
        assert one.qps == pytest.approx(QPS, rel=0.15)


@pytest.mark.parametrize(
    ("field", "series", "tokens"),
    [
        ("prompt_tokens_per_s", "vllm:prompt_tokens_total", PROMPT_TOKENS),
        ("output_tokens_per_s", "vllm:generation_tokens_total", OUTPUT_TOKENS),
    ],
)
def test_token_rates_are_those_that_prometheus_names(world, shadow, field, series, tokens):
    theirs = float(np.mean([world.rate(series, at_s=one.at_s) for one in shadow.seen]))
    assert shadow.mean(field) == pytest.approx(theirs, rel=0.02)
    # What was asked for, as far as the engine keeps up.
    assert shadow.mean(field) == pytest.approx(QPS * tokens, rel=0.1)


QUANTILES = [
    ("ttft_p50_s", "vllm:time_to_first_token_seconds", 0.5),
    ("ttft_p95_s", "vllm:time_to_first_token_seconds", 0.95),
    ("ttft_p99_s", "vllm:time_to_first_token_seconds", 0.99),
    ("tpot_p50_s", "vllm:request_time_per_output_token_seconds", 0.5),
    ("tpot_p99_s", "vllm:request_time_per_output_token_seconds", 0.99),
    ("e2e_p99_s", "vllm:e2e_request_latency_seconds", 0.99),
]


@pytest.mark.parametrize(("field", "family", "q"), QUANTILES, ids=[row[0] for row in QUANTILES])
def test_latency_quantiles_lie_in_the_bucket_that_prometheus_names(world, shadow, field, family, q):
    bounds = bucket_bounds(shadow.page, family)
    for one in shadow.seen:
        # A scrape that was under way at the tick is stored with an earlier time: seen only now.
        theirs = [world.quantile(family, q, at_s=one.at_s - late) for late in (0.0, SCRAPE_S)]
        low, high = np.sort(np.searchsorted(bounds, theirs))
        ours = getattr(one, field)
        assert low <= np.searchsorted(bounds, ours) <= high, (ours, theirs)


@pytest.mark.parametrize(
    ("field", "column", "family"),
    [
        ("ttft_p50_s", "ttft_s", "vllm:time_to_first_token_seconds"),
        ("tpot_p50_s", "tpot_s", "vllm:request_time_per_output_token_seconds"),
    ],
)
def test_the_client_is_never_faster_than_what_the_engine_tells(shadow, field, column, family):
    # No more can be said: on crowded cores the client also sees its own delays.
    bounds = [0.0, *bucket_bounds(shadow.page, family)]
    ours = min(getattr(one, field) for one in shadow.seen)
    floor = bounds[max(int(np.searchsorted(bounds, ours)) - 1, 0)]
    assert float(np.nanmedian(shadow.rows[column])) >= floor


def bucket_bounds(page: str, family: str) -> list[float]:
    """Upper bounds of a histogram's buckets, but for +Inf."""
    for metric in text_string_to_metric_families(page):
        if metric.name == family:
            found = {float(s.labels["le"]) for s in metric.samples if s.name.endswith("_bucket")}
            return sorted(bound for bound in found if math.isfinite(bound))
    raise LookupError(f"{family} is not on the page")


def test_what_was_decided_can_be_asked_for(world, shadow):
    said = tuner("explain", "--config", shadow.config, "--last", 3, cwd=world.folder)
    assert said.status == 0, said
    assert said.out.count("policy") >= 3
    status = tuner("status", "--config", shadow.config, "--json", cwd=world.folder).json()
    assert "tiny" in json.dumps(status)


def test_a_minute_of_evidence_does_not_promote(world, shadow):
    said = tuner("promote", "--config", shadow.config, cwd=world.folder)
    assert said.status == 1, said
    assert "hours" in said.out + said.err
    refused = tuner("run", "--config", shadow.config, "--mode", "active", cwd=world.folder)
    assert refused.status == 2, refused
    assert "promote" in refused.err


def test_config_check_proves_that_every_needed_field_has_a_series(world, shadow):
    said = tuner("config", "check", shadow.config, "--live", cwd=world.folder)
    assert "output_tokens_per_s" in said.out, said


def test_active_moves_the_batch_size_and_gives_it_back(world):
    cap = 3
    config = world.config(
        "active", "static", {"replicas": 1, "batch_size": cap}, move=["batch_size"], traffic=None
    )
    arguments = ("run", "--config", config, "--mode", "active", "--without-evidence", "this test")
    with running(*arguments, cwd=world.folder) as controller:
        reach(lambda: world.batch_size() == cap, "the cap is in force", controller)
        fed = False
        with closed_loop(world.engine, 12):
            reach(lambda: world.engine.gauge("vllm:num_requests_running") <= cap, "drained down")
            for _ in range(40):
                assert world.engine.gauge("vllm:num_requests_running") <= cap
                fed = fed or world.engine.gauge("vllm:num_requests_waiting") > 0
            assert fed, "the engine was never full: nothing is proved"
        stopped = controller.stop()
    assert stopped.status == 0, stopped
    assert world.batch_size() == CEILING


@pytest.fixture
def scaled(world: World) -> Iterator[str]:
    """Name of the controllers that change the number of replicas; ends what they leave behind."""
    name = "scaled"
    yield name
    world.end_engines(name)


def test_replicas_go_from_one_to_two_and_back_with_no_failed_request(world, scaled):
    endpoints, base = world.endpoints(scaled), world.engine.url

    def second() -> str | None:
        """The engine that the controller has started, once it takes traffic."""
        return next((url for url in addresses(endpoints) if url != base), None)

    with ExitStack() as stack:
        with scaling(world, scaled, 2) as up:
            url = reach(second, "two serve", up, timeout_s=READY_S)
            client = world.load("moving", "--endpoints", endpoints)
            load = stack.enter_context(running(*client, cwd=world.folder))
            reach(lambda: finished(url) > 20, "the second one serves", load, up)
        with scaling(world, scaled, 1) as down:
            reach(lambda: addresses(endpoints) == [base], "one is left to send to", load, down)
            reach(lambda: not answers(url), "the second one has left", load, down)
            before = finished(base)
            reach(lambda: finished(base) > before + 20, "the first one serves on", load, down)
    store = AuditStore.open(f"sqlite:///{world.folder / scaled}.db")
    observations = [each.record.observation for each in store.decisions("tiny", last=1000)]
    store.close()
    states = {replica.state for one in observations for replica in one.replicas}
    assert {ReplicaState.STARTING, ReplicaState.READY} <= states
    summary = json.loads((world.folder / "moving" / "summary.json").read_text())
    assert summary["finished"] > 20
    assert set(summary["failed"]) <= {"interrupted"}, summary


COUNTERS = (
    "vllm:request_success_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
)


def test_a_recording_holds_what_the_counters_count_across_restarts(world, shadow):
    totals = scraped(world)
    world.prometheus.stop()
    try:
        world.engine.stop()
    finally:
        world.prometheus.start()
    world.engine.start()
    world.engine.wait_ready()
    for _ in range(5):
        world.engine.complete(tokens=7)
    again = scraped(world)
    ended, prompt, output = (totals[name] + again[name] for name in COUNTERS)
    out = world.folder / "telemetry.parquet"
    arguments = ("record", "--config", shadow.config, "--since", "2h", "--out", out, "--json")

    def complete() -> bool:
        """Recorded up to the last whole window; asked again, the recording is gone on with."""
        recorded = tuner(*arguments, cwd=world.folder).json()["totals"]
        finished = recorded["requests_finished"] + recorded["requests_failed"]
        found = (finished, recorded["prompt_tokens"], recorded["output_tokens"])
        assert all(one <= all_ for one, all_ in zip(found, (ended, prompt, output), strict=True))
        return found == (ended, prompt, output)

    reach(complete, "the recording holds what the counters count")


@contextmanager
def scaling(world: World, name: str, replicas: int) -> Iterator[Running]:
    """An active controller that wants so many replicas."""
    config = world.config(
        name,
        "static",
        {"replicas": replicas, "warmup_requests": 3},
        prometheus=None,
        scrape={},
        traffic=None,
        move=["replicas", "warmup_requests"],
    )
    arguments = ("run", "--config", config, "--mode", "active", "--without-evidence", "this test")
    with running(*arguments, cwd=world.folder) as controller:
        yield controller


def scraped(world: World) -> dict[str, float]:
    """The engine's counters once Prometheus has them all."""
    found: dict[str, float] = {}

    def there() -> bool:
        found.update({name: world.engine.gauge(name) for name in COUNTERS})
        return all(world.asked(f"sum({name})") == value for name, value in found.items())

    reach(there, "Prometheus has seen the last values")
    return found


def addresses(endpoints: Path) -> list[str]:
    if not endpoints.exists():
        return []
    urls: list[str] = json.loads(endpoints.read_text())
    return urls


def finished(url: str) -> float:
    """Requests that an engine has finished; 0 while it does not say."""
    return on_page(url, "vllm:request_success_total")


def on_page(url: str, name: str) -> float:
    """Sum of a counter over its labels; 0 where nobody answers."""
    try:
        page = httpx.get(f"{url}/metrics", timeout=30.0).text
    except httpx.HTTPError:
        return 0.0
    lines = [line for line in page.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def answers(url: str) -> bool:
    """Whether somebody listens there; one who is slow does."""
    try:
        httpx.get(f"{url}/health", timeout=30.0)
    except httpx.TimeoutException:
        return True
    except httpx.TransportError:
        return False
    return True
