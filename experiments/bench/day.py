"""DeepSeek's published day: its own fleet's load and its own node counts, request by request.

The load is `deepseek-r1-day` at 1.94 million output tokens/s in the mean (168 billion a day), the
nodes are those of the published chart (deepseek-ai/open-infra-index@56d8685, day 6): up to 278 of
eight H800. A node that the chart adds serves at once, one that it takes away drains. Requests are
drawn part by part while the part before is simulated, so memory does not grow with the day.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from rich.console import Console

from envs.simulator import Fleet, FleetSettings, Window
from envs.simulator.buckets import BOUNDS, BUCKETS, FIRST_BUCKET, TPOT, TTFT
from envs.workloads.deepseek_r1_day import NODES, output_tokens_per_request, parts
from experiments.bench.options import Figures, check_positive
from experiments.bench.simulator import OVERTIME_S
from experiments.progress import run_progress
from tuner.core.histograms import histogram_quantile
from tuner.core.profile import ServingProfile
from tuner.core.protocols import IntArray
from tuner.core.trace import Trace
from tuner.data import load_profile

OUTPUT_TOKENS_PER_S = 168e9 / 86_400
"""Published: 168 billion output tokens in 24 hours."""
SLOTS = 300
"""278 nodes, and those that drain."""
PART_HOURS = 0.25
"""Drawn at once: about a million requests."""
PROFILE = "deepseek-v3-8xh800"


def measure_day(
    profile: ServingProfile, *, tokens_per_s: float, hours: float, router: str, seed: int
) -> Figures:
    """Wall and CPU seconds, memory, and what became of the requests."""
    # Nodes are held ready ahead of the chart's steps by whoever drew it.
    profile = replace(profile, startup=None)
    qps = tokens_per_s / output_tokens_per_request()
    before_wall_s, before_cpu_s = time.perf_counter(), time.process_time()
    drawn = _ahead(parts(hours, seed, qps, part_hours=PART_HOURS))
    part = next(drawn)
    fleet = Fleet(part, profile, seeds=np.array([seed], np.uint64), slots=SLOTS, router=router)
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=np.array([seed], np.uint64),
        settings=FleetSettings.usual(profile, NODES[0][1]),
    )
    sums: list[Window] = []
    deepest = 0
    counted = _Counted()
    with run_progress(Console(stderr=True)) as watch:
        while True:
            watch("the day", min(part.last_arrival_s / (hours * 3600), 0.999))
            for at_s, nodes in _steps(part):
                fleet.advance(at_s)
                fleet.apply(FleetSettings.usual(profile, nodes))
            fleet.advance(part.last_arrival_s)
            sums.append(fleet.window())
            counted.look(fleet.counters().counts[0])
            deepest = max(deepest, int(fleet.gauges().queue_depth[0]))
            following = next(drawn, None)
            if following is None:
                break
            part = following
            fleet.follow_with(part)
        fleet.advance(part.last_arrival_s + OVERTIME_S)
        sums.append(fleet.window())
        counted.look(fleet.counters().counts[0])
        watch("the day", 1.0)
    wall_s, cpu_s = time.perf_counter() - before_wall_s, time.process_time() - before_cpu_s
    arrivals, finished, rejected, tokens = (
        sum(int(getattr(one, name)[0]) for one in sums)
        for name in ("arrivals", "finished", "rejected", "output_tokens")
    )
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "requests": arrivals,
        "finished": finished,
        "rejected": rejected,
        "preemptions": sum(int(one.preemptions[0]) for one in sums),
        "requests_per_cpu_s": arrivals / cpu_s,
        "simulated_over_real_time": hours * 3600 / wall_s,
        "output_tokens_per_s": tokens / (hours * 3600),
        "deepest_queue": deepest,
        **_quantiles("ttft", TTFT, counted.total),
        **_quantiles("tpot", TPOT, counted.total),
        "config": {
            "profile": profile.name,
            "scheduler": profile.scheduler,
            "requests_per_s": qps,
            "hours": hours,
            "router": router,
            "seed": seed,
        },
    }


def _ahead(traces: Iterator[Trace]) -> Iterator[Trace]:
    """The same, each drawn while the one before is in use."""
    with ThreadPoolExecutor(1) as executor:
        coming = executor.submit(next, traces, None)
        while (trace := coming.result()) is not None:
            coming = executor.submit(next, traces, None)
            yield trace


def _steps(part: Trace) -> Iterator[tuple[float, int]]:
    """Changes of the chart within the part."""
    for hour, nodes in NODES[1:]:
        if part.arrival_s[0] <= hour * 3600 < part.last_arrival_s:
            yield hour * 3600, nodes


class _Counted:
    """Histograms of the whole day, though a node that leaves takes its counters with it: what a
    slot counted in a part in which it ended is left out."""

    def __init__(self) -> None:
        self.total = np.zeros(BUCKETS, np.int64)
        self._before: IntArray | None = None

    def look(self, counts: IntArray) -> None:
        """Add what each slot, `(slots, BUCKETS)`, has counted since the last look."""
        if self._before is None:
            self._before = np.zeros_like(counts)
        risen = counts - self._before
        goes_on = (risen >= 0).all(axis=1)
        self.total += risen[goes_on].sum(axis=0)
        self._before = counts


def _quantiles(name: str, kind: int, counts: IntArray) -> dict[str, float]:
    first, bounds = FIRST_BUCKET[kind], BOUNDS[kind]
    of_kind = counts[None, first : first + len(bounds) + 1]
    return {
        f"{name}_p{round(100 * q)}_s": float(histogram_quantile(q, bounds, of_kind)[0])
        for q in (0.5, 0.99)
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default=PROFILE, help=f"({PROFILE})")
    parser.add_argument(
        "--tokens", type=float, default=OUTPUT_TOKENS_PER_S, help="output tokens/s in the mean"
    )
    parser.add_argument("--hours", type=float, default=24.0, help="from midnight on (24)")
    parser.add_argument("--router", default="least_loaded", help="(least_loaded)")
    parser.add_argument("--seed", type=int, default=0, help="of the load (0)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "tokens")
    return measure_day(
        load_profile(options.profile),
        tokens_per_s=options.tokens,
        hours=options.hours,
        router=options.router,
        seed=options.seed,
    )
