"""Requests simulated per CPU second on a fixed number of replicas."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from envs.simulator import ROUTERS, Fleet, FleetSettings
from experiments.bench.options import Figures, check_positive
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile, read_trace

OVERTIME_S = 3600.0
"""Requests that have not ended so long after the last arrival do not count."""


def simulate_once(fleet: Fleet, settings: FleetSettings, until_s: float) -> int:
    """Run the whole trace in one go; how many requests ended."""
    fleet.reset(slice(None), start_s=0.0, seeds=np.zeros(1, np.uint64), settings=settings)
    fleet.advance(until_s)
    window = fleet.window()
    return int(window.finished[0] + window.rejected[0])


def measure_simulator(
    trace: Trace, profile: ServingProfile, *, replicas: int, router: str, repeat: int
) -> Figures:
    """Requests simulated per CPU second on a fixed number of replicas."""
    fleet = Fleet(trace, profile, seeds=np.zeros(1, np.uint64), slots=replicas, router=router)
    settings = FleetSettings.usual(profile, replicas)
    until_s = trace.last_arrival_s + OVERTIME_S
    ended = simulate_once(fleet, settings, until_s)
    cpu_s = []
    for _ in range(repeat):
        before_s = time.process_time()
        simulate_once(fleet, settings, until_s)
        cpu_s.append(time.process_time() - before_s)
    return {
        "requests_per_cpu_s": ended / statistics.median(cpu_s),
        "requests": ended,
        "cpu_s": cpu_s,
        "config": {
            "trace": trace.name,
            "trace_requests": len(trace),
            "profile": profile.name,
            "scheduler": profile.scheduler,
            "replicas": replicas,
            "batch_size": profile.limits.batch_size_max,
            "router": router,
            "repeat": repeat,
        },
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", required=True, help="Parquet file")
    parser.add_argument("--profile", required=True, help="built-in name or YAML file")
    parser.add_argument("--replicas", type=int, default=4, help="replicas that serve (4)")
    parser.add_argument("--router", choices=ROUTERS, default="round_robin", help="(round_robin)")
    parser.add_argument("--repeat", type=int, default=5, help="measured runs (5)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "repeat")
    return measure_simulator(
        read_trace(options.trace),
        load_profile(options.profile),
        replicas=options.replicas,
        router=options.router,
        repeat=options.repeat,
    )
