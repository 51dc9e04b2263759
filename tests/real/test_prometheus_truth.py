"""A real Prometheus in between: what the collector sees is what the engines did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.engine_page import VLLM, member, serving
from tests.real.controller import reach
from tests.real.live_engine import LiveEngine
from tests.real.prometheus import Prometheus, Scrape
from tuner.config import EngineConfig, PrometheusConfig, TargetConfig
from tuner.core.clock import WallClock
from tuner.live.metrics.collector import connect_collector

RATES = {"r0": 40.0, "r1": 20.0}
"""Requests/s that each engine finishes."""
INTERVAL_S = 1.0
"""Also a scrape's time-out: long enough for crowded cores."""
SCRAPES, RESTART = 12, 7


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[tuple[Prometheus, dict[str, LiveEngine]]]:
    """Two engines, one of which restarts, scraped so often that the window is full."""
    engines = {"r0": LiveEngine(RATES["r0"], None), "r1": LiveEngine(RATES["r1"], RESTART)}
    with ExitStack() as parts:
        scrapes = []
        for name, engine in engines.items():
            url = parts.enter_context(serving(engine))
            scrapes.append(Scrape(url.removeprefix("http://"), {"pod": name, "app": "r1"}))
        folder = tmp_path_factory.mktemp("prometheus")
        server = parts.enter_context(Prometheus(folder, scrapes, interval_s=INTERVAL_S))
        reach(lambda: min(e.scrapes for e in engines.values()) >= SCRAPES, "a full window")
        yield server, engines


def test_rates_quantiles_and_gauges_are_the_engines_own(watched):
    server, _ = watched
    config = TargetConfig(
        name="r1",
        policy="hpa",
        engine=EngineConfig("vllm"),
        prometheus=PrometheusConfig(server.url, {"app": "r1"}, timeout_s=20.0),
        window_s=10.0,
    )
    clock = WallClock()
    collecting = connect_collector(config, VLLM, clock)
    seen = collecting.collect([member("r0"), member("r1")], at_s=clock.now_s())
    collecting.close()
    assert seen.faults == ()
    requests_per_s = sum(RATES.values())
    # The restart lies inside the window; without care for it r1's rate is negative. Five percent:
    # a page that comes 0.5 s late on crowded cores has counted on meanwhile.
    assert seen.values["output_tokens_per_s"] == pytest.approx(requests_per_s * 16, rel=0.05)
    assert seen.values["prompt_tokens_per_s"] == pytest.approx(requests_per_s * 24, rel=0.05)
    assert seen.values["qps"] == pytest.approx(requests_per_s, rel=0.05)
    assert "qps" in seen.estimates
    assert seen.values["running"] == 10.0
    assert seen.values["error_rate"] == 0.0
    # Within the bucket of the true quantile.
    assert 0.04 < seen.values["ttft_p50_s"] <= 0.06
    assert 0.1 < seen.values["ttft_p95_s"] <= 0.25
    assert 0.01 < seen.values["tpot_p50_s"] <= 0.025
    assert 0.3 < seen.values["e2e_p99_s"] <= 0.5
    assert seen.age_s is not None
    assert 0.0 <= seen.age_s < 10.0
