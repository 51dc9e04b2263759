"""One look at everything: what is measured, and what stays absent when a source fails."""

from __future__ import annotations

import json
import re
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from urllib.parse import parse_qs, urlparse

import pytest

from tests.live.engine_page import VLLM, Answer, EnginePage, member, serving
from tests.live.metrics.test_nvml import BUSY, IDLE, Driver
from tuner.config import (
    BusinessConfig,
    EngineConfig,
    GpuConfig,
    ProbeConfig,
    PrometheusConfig,
    ScrapeConfig,
    TargetConfig,
    TrafficConfig,
)
from tuner.core.clock import VirtualClock
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultReason
from tuner.core.observation import FIELD_NAMES
from tuner.engines.engine import Replica
from tuner.live.metrics.collector import Collector, connect_collector

CLOCK = VirtualClock(1000.0)


def target(**sections: object) -> TargetConfig:
    return TargetConfig(name="r1", policy="hpa", engine=EngineConfig("vllm"), **sections)  # type: ignore[arg-type]


def collector(**sections: object) -> Collector:
    return connect_collector(target(**sections), VLLM, CLOCK)


class FakePrometheus:
    """Keeps samples by series and answers range and instant questions about them."""

    def __init__(self) -> None:
        self.series: list[tuple[dict[str, str], list[tuple[float, float]]]] = []
        self.numbers: dict[str, str] = {}
        self.asked: list[str] = []
        self.asked_at: list[float] = []

    def add(self, name: str, samples: list[tuple[float, float]], **labels: str) -> None:
        self.series.append(({"__name__": name, **labels}, samples))

    def __call__(self, path, headers) -> Answer:
        asked = parse_qs(urlparse(path).query)
        query, at_s = asked["query"][0], float(asked["time"][0])
        self.asked.append(query)
        self.asked_at.append(at_s)
        if query in self.numbers:
            result = [{"metric": {}, "value": [at_s, self.numbers[query]]}]
            return Answer(json.dumps({"data": {"result": result}}).encode())
        names = set(re.search(r'__name__=~"([^"]*)"', query)[1].split("|"))
        wanted = dict(re.findall(r', (\w+)="([^"]*)"', query))
        window_s = int(re.search(r"\[(\d+)ms\]", query)[1]) / 1000
        result = [
            {
                "metric": labels,
                "values": [[t, repr(v)] for t, v in samples if at_s - window_s <= t <= at_s],
            }
            for labels, samples in self.series
            if labels["__name__"] in names and wanted.items() <= labels.items()
        ]
        return Answer(json.dumps({"data": {"result": result}}).encode())


def rising(rate: float, offset_s: float = 0.0) -> list[tuple[float, float]]:
    """Scraped every 15 s from 940 to 1060 on, and rising all along."""
    return [(940.0 + offset_s + t, 500.0 + rate * t) for t in range(0, 121, 15)]


def fleet() -> FakePrometheus:
    """Two replicas that make 100 and 50 tokens/s, a gateway, cards, and a stranger."""
    server = FakePrometheus()
    for pod, rate in (("r1-a", 100.0), ("r1-b", 50.0), ("other-x", 1e6)):
        labels = {"pod": pod, "app": "r1", "instance": f"{pod}:8000", "job": "llm"}
        server.add("vllm:generation_tokens_total", rising(rate), **labels)
        server.add("vllm:num_requests_running", [(t, 8.0) for t, _ in rising(1)], **labels)
        server.add(
            "vllm:request_success_total", rising(rate / 50), finished_reason="stop", **labels
        )
    server.add("gateway_sent_total", rising(7.0, -2.0), route="r1", instance="gw:1", job="gw")
    server.add("gateway_open", [(998.0, 21.0)], route="r1", instance="gw:1", job="gw")
    for card, percent in ((0, 90.0), (1, 70.0)):
        server.add("DCGM_FI_DEV_GPU_UTIL", [(995.0, percent)], gpu=str(card), ns="llm")
    server.numbers["sum(sales)"] = "12.5"
    return server


EVERYTHING = {
    "traffic": TrafficConfig("gateway_sent_total", "gateway_open", {"route": "r1"}),
    "gpu": GpuConfig("dcgm", {"ns": "llm"}),
    "business": BusinessConfig("sum(sales)"),
}
MEMBERS = [member("r1-a"), member("r1-b")]


def test_a_look_measures_engines_gateway_cards_and_business_each_with_its_age():
    server = fleet()
    with serving(server) as url:
        collecting = collector(prometheus=PrometheusConfig(url, {"app": "r1"}), **EVERYTHING)
        seen = collecting.collect(MEMBERS, at_s=1000.0)
        collecting.close()
    assert seen.faults == ()
    assert seen.values["output_tokens_per_s"] == pytest.approx(150.0)
    assert seen.values["qps"] == pytest.approx(7.0)
    assert seen.values["in_flight"] == 21.0
    assert seen.values["gpu_util"] == pytest.approx(0.8)
    assert seen.values["business"] == 12.5
    assert seen.values["running"] == 16.0
    assert seen.estimates == ()
    assert set(seen.values) <= set(FIELD_NAMES)
    assert dict(seen.replicas) == {"r1-a": {"running": 8.0}, "r1-b": {"running": 8.0}}
    assert seen.age_s == 0.0
    assert (seen.ages_s["in_flight"], seen.ages_s["gpu_util"]) == (2.0, 5.0)
    # One batch: a question per source.
    assert len(server.asked) == 4


def test_a_replica_that_left_within_the_window_counts_for_what_it_did():
    server = fleet()
    with serving(server) as url:
        collecting = collector(prometheus=PrometheusConfig(url, {"app": "r1"}))
        collecting.collect(MEMBERS, at_s=985.0)
        seen = collecting.collect(MEMBERS[:1], at_s=1000.0)
        # It may have worked until shortly before the look that missed it, at 1000 s.
        meanwhile = collecting.collect(MEMBERS[:1], at_s=1046.0)
        later = collecting.collect(MEMBERS[:1], at_s=1061.0)
        collecting.close()
    assert seen.values["output_tokens_per_s"] == pytest.approx(150.0)
    assert meanwhile.values["output_tokens_per_s"] == pytest.approx(150.0)
    # It runs nothing any more.
    assert seen.values["running"] == 8.0
    assert later.values["output_tokens_per_s"] == pytest.approx(100.0)


def test_series_of_nobody_we_know_are_a_fault_that_names_both_sides():
    with serving(fleet()) as url:
        collecting = collector(prometheus=PrometheusConfig(url))
        seen = collecting.collect([member("10.0.0.7:8000")], at_s=1000.0)
        collecting.close()
    assert not seen.values
    (fault,) = seen.faults
    assert fault.reason is FaultReason.NO_SERIES
    for word in ("'r1-a'", "'10.0.0.7:8000'", "replica_label"):
        assert word in fault.sentence


def test_a_replica_without_samples_is_named_once_it_had_the_time_to_be_scraped():
    server = fleet()
    with serving(server) as url:
        collecting = collector(prometheus=PrometheusConfig(url, {"app": "r1"}))
        first = collecting.collect(MEMBERS, at_s=940.0)
        fresh = collecting.collect([*MEMBERS, member("r1-new")], at_s=941.0)
        late = collecting.collect([*MEMBERS, member("r1-new")], at_s=1001.0)
        starting = [*MEMBERS, member("r1-new", state="starting")]
        young = collecting.collect(starting, at_s=1002.0)
        collecting.close()
    assert first.faults == fresh.faults == young.faults == ()
    (fault,) = late.faults
    assert (fault.where, fault.reason) == ("r1-new", FaultReason.NO_SERIES)
    assert late.values["output_tokens_per_s"] == pytest.approx(150.0)


TROUBLES = {
    "HTML": (lambda path, headers: Answer(b"<html>"), FaultReason.BAD_ANSWER),
    "wrong JSON": (lambda path, headers: Answer(b'{"hello": 1}'), FaultReason.BAD_ANSWER),
    "empty": (
        lambda path, headers: Answer(b'{"data": {"result": []}}'),
        FaultReason.NO_SERIES,
    ),
    "401": (lambda path, headers: Answer(b"", 401), FaultReason.UNAUTHORIZED),
    "403": (lambda path, headers: Answer(b"", 403), FaultReason.FORBIDDEN),
    "500": (lambda path, headers: Answer(b"", 500), FaultReason.SERVER_ERROR),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_server_in_trouble_leaves_every_field_absent_and_says_why(trouble):
    answer, reason = TROUBLES[trouble]
    with serving(answer) as url:
        collecting = collector(prometheus=PrometheusConfig(url), **EVERYTHING)
        seen = collecting.collect(MEMBERS, at_s=1000.0)
        collecting.close()
    assert not seen.values
    assert seen.age_s is None
    assert {fault.reason for fault in seen.faults} == {reason}
    assert len(seen.faults) == 4


def test_a_server_that_is_down_is_asked_once_per_look():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    collecting = collector(prometheus=PrometheusConfig(f"http://127.0.0.1:{port}"), **EVERYTHING)
    seen = collecting.collect(MEMBERS, at_s=1000.0)
    collecting.close()
    assert not seen.values
    assert seen.faults[0].reason is FaultReason.UNREACHABLE
    assert all("was not asked for" in fault.sentence for fault in seen.faults[1:])


def test_a_server_that_hangs_costs_one_time_out_whatever_is_asked_of_it():
    release, asked = Event(), []

    def hang(path, headers):
        asked.append(path)
        release.wait(60)

    with serving(hang) as url:
        collecting = collector(prometheus=PrometheusConfig(url, timeout_s=0.2), **EVERYTHING)
        began_s = time.monotonic()
        seen = collecting.collect(MEMBERS, at_s=1000.0)
        took_s = time.monotonic() - began_s
        release.set()
        collecting.close()
    assert {fault.reason for fault in seen.faults} == {FaultReason.TIMED_OUT}
    assert len(asked) == 1
    assert took_s < 20.0  # four times 60 s without time-outs


def test_scraped_pages_and_a_client_page_give_measured_arrivals_under_overload():
    engine, sent = EnginePage(), [0]

    def answer(path, headers):
        if path == "/client":
            return Answer(f"client_sent_total {sent[0]}\nclient_open 70\n".encode())
        return Answer(engine.text().encode())

    with serving(answer) as url:
        traffic = TrafficConfig("client_sent_total", "client_open", url=f"{url}/client")
        measured = collector(scrape=ScrapeConfig(10.0), traffic=traffic)
        estimated = collector(scrape=ScrapeConfig(10.0))
        for look in range(4):
            at_s = 1000.0 + 15.0 * look
            found = [one.collect([member("r0", url)], at_s=at_s) for one in (measured, estimated)]
            # 2 of 5 requests/s end, the others queue.
            sent[0] += 75
            engine.waiting.inc(45)
            for _ in range(30):
                engine.finish()
        measured.close()
        estimated.close()
    for seen in found:
        assert seen.faults == ()
        assert seen.values["qps"] == pytest.approx(5.0)
        assert seen.values["output_tokens_per_s"] == pytest.approx(2.0 * 16)
    assert (found[0].values["in_flight"], found[1].values["in_flight"]) == (70.0, 135.0)
    assert found[0].estimates == ()
    assert set(found[1].estimates) == {"qps", "in_flight"}


def test_a_client_page_that_breaks_leaves_the_estimate_and_a_fault():
    engine = EnginePage()

    def answer(path, headers):
        return Answer(b"", 500) if path == "/client" else Answer(engine.text().encode())

    with serving(answer) as url:
        traffic = TrafficConfig("client_sent_total", url=f"{url}/client")
        collecting = collector(scrape=ScrapeConfig(10.0), traffic=traffic)
        for at_s in (1000.0, 1015.0):
            seen = collecting.collect([member("r0", url)], at_s=at_s)
            for _ in range(30):
                engine.finish()
        collecting.close()
    assert seen.values["qps"] == pytest.approx(2.0)
    assert "qps" in seen.estimates
    (fault,) = seen.faults
    assert (fault.where, fault.reason) == ("traffic", FaultReason.SERVER_ERROR)


def test_cards_that_cannot_be_read_take_nothing_from_the_engines(monkeypatch):
    Driver().install(monkeypatch)
    engine = EnginePage()
    engine.running.set(3)
    with serving(lambda path, headers: Answer(engine.text().encode())) as url:
        collecting = collector(scrape=ScrapeConfig(10.0), gpu=GpuConfig("nvml"))
        seen = collecting.collect([member("r0", url)], at_s=1000.0)
        collecting.close()
    assert seen.values["running"] == 3.0
    assert "gpu_util" not in seen.values
    assert [fault.where for fault in seen.faults] == ["nvml"]


def test_the_cards_of_this_node_stand_beside_scraped_pages(monkeypatch):
    Driver(BUSY, IDLE).install(monkeypatch)
    with serving(lambda path, headers: Answer(EnginePage().text().encode())) as url:
        collecting = collector(scrape=ScrapeConfig(10.0), gpu=GpuConfig("nvml", indices=(0,)))
        seen = collecting.collect([member("r0", url)], at_s=1000.0)
        collecting.close()
    assert seen.values["gpu_util"] == pytest.approx(0.97)
    assert seen.ages_s["gpu_util"] == 0.0


class Completing:
    """The part of an engine that a probe needs."""

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        return 0.125


def test_the_newest_probe_comes_with_what_was_measured():
    page = EnginePage().text().encode()
    config = replace(target(scrape=ScrapeConfig(10.0)), probe=ProbeConfig(every_s=60.0))
    with ExitStack() as parts:
        url = parts.enter_context(serving(lambda path, headers: Answer(page)))
        collecting = connect_collector(config, VLLM, CLOCK, engine=Completing())  # type: ignore[arg-type]
        parts.callback(collecting.close)
        at_s, deadline_s = 1000.0, time.monotonic() + 20.0
        while (seen := collecting.collect([member("r0", url)], at_s=at_s)).probed is None:
            at_s += 15.0
            assert time.monotonic() < deadline_s
    assert (seen.probed.replica, seen.probed.latency_s) == ("r0", 0.125)
    assert seen.faults == ()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "neither is there"),
        ({"scrape": ScrapeConfig(), "prometheus": PrometheusConfig("http://x")}, "both are there"),
        ({"scrape": ScrapeConfig(), "business": BusinessConfig("a")}, "business needs prometheus"),
        ({"scrape": ScrapeConfig(), "gpu": GpuConfig("dcgm")}, "gpu.source dcgm needs"),
        ({"scrape": ScrapeConfig(), "traffic": TrafficConfig("a")}, "traffic without a url"),
        ({"scrape": ScrapeConfig(), "probe": ProbeConfig()}, "probe needs the engine"),
    ],
)
def test_sources_that_cannot_be_are_refused_with_the_target_s_name(sections, words):
    with pytest.raises(ConfigError, match=words) as error:
        collector(**sections)
    assert "target r1" in str(error.value)
