"""What one look at a large target costs: `python -m experiments.bench collector`.

The pages come from another process on this machine over real sockets
(`experiments.bench.fake_fleet`): a page of vLLM's shape for each replica, or one answer of a
Prometheus server about all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

from experiments.bench.fake_fleet import (
    NOW_S,
    PAGE_BYTES,
    SCRAPE_S,
    SCRAPES,
    wanted_samples,
)
from experiments.bench.options import Figures, check_positive
from experiments.bench.tick_cost import served
from tuner.config import EngineConfig, PrometheusConfig, ScrapeConfig, TargetConfig
from tuner.core.clock import VirtualClock
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Replica
from tuner.engines.vllm import METRICS
from tuner.live.metrics.collector import connect_collector
from tuner.live.metrics.fields import wanted_names
from tuner.live.pool import Member


def target_of(source: str, url: str) -> TargetConfig:
    """A target that is watched one way or the other."""
    prometheus = PrometheusConfig(url, timeout_s=60.0) if source == "prometheus" else None
    scrape = ScrapeConfig(timeout_s=60.0) if source == "scrape" else None
    engine = EngineConfig("vllm")
    return TargetConfig("bench", "static", engine, prometheus=prometheus, scrape=scrape)


def measure_collector(*, source: str, replicas: int, repeat: int) -> Figures:
    """CPU and wall seconds of one look, after the looks that fill the window."""
    with served(replicas) as url:
        places = {f"r-{index}": f"{url}/{index}" for index in range(replicas)}
        members = [
            Member(name, ReplicaState.READY, 1e4, Replica(name, place, place))
            for name, place in places.items()
        ]
        collector = connect_collector(target_of(source, url), METRICS, VirtualClock(NOW_S))
        cpu_s, wall_s = [], []
        for look in range(SCRAPES + repeat):
            at_s = NOW_S + (SCRAPE_S * look if source == "scrape" else 0.0)
            cpu_before_s, wall_before_s = time.process_time(), time.perf_counter()
            seen = collector.collect(members, at_s=at_s)
            cpu_s.append(time.process_time() - cpu_before_s)
            wall_s.append(time.perf_counter() - wall_before_s)
        collector.close()
    return {
        "cpu_s": statistics.median(cpu_s[SCRAPES:]),
        "wall_s": statistics.median(wall_s[SCRAPES:]),
        "wall_s_of_each": wall_s[SCRAPES:],
        "fields": len(seen.values),
        "replicas_seen": len(seen.replicas),
        "faults": len(seen.faults),
        "config": {
            "source": source,
            "replicas": replicas,
            "wanted_samples_of_a_page": len(wanted_samples(METRICS)),
            "names": len(wanted_names(METRICS)),
            "page_bytes": PAGE_BYTES,
            "repeat": repeat,
        },
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    parser.add_argument("--source", choices=("scrape", "prometheus"), default="scrape")
    parser.add_argument("--replicas", type=int, default=200, help="pages (200)")
    parser.add_argument("--repeat", type=int, default=5, help="measured looks (5)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "repeat")
    return measure_collector(
        source=options.source, replicas=options.replicas, repeat=options.repeat
    )
