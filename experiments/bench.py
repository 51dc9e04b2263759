"""How fast the parts are: `python -m experiments.bench PART ...` prints one JSON object.

Rates are per second of this process' CPU time, the median of the repeats after one run that warms
up compiler and caches. On a shared machine compare rates of one run with each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.simulator import ROUTERS, Fleet, FleetSettings
from tuner.core.errors import ConfigError, InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile, read_trace

EXIT_INPUT = 2
OVERTIME_S = 3600.0
"""Requests that have not ended so long after the last arrival do not count."""

Figures = dict[str, object]


@dataclass(frozen=True)
class Bench:
    """A part that can be measured."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[argparse.Namespace], Figures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the part named by the arguments; 0, or 2 and one sentence on bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, bench in BENCHES.items():
        bench.add_options(parts.add_parser(name, help=bench.help))
    options = parser.parse_args(arguments)
    try:
        figures = BENCHES[options.part].measure(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    print(json.dumps(figures, indent=2))
    return 0


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
    one = np.ones(1, np.int64)
    settings = FleetSettings(
        replicas=replicas * one,
        batch_size=profile.limits.batch_size_max * one,
        threads=(profile.frontend.cores if profile.frontend else 1) * one,
        warmup_requests=0 * one,
    )
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


def _add_simulator_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", required=True, help="Parquet file")
    parser.add_argument("--profile", required=True, help="built-in name or YAML file")
    parser.add_argument("--replicas", type=int, default=4, help="replicas that serve (4)")
    parser.add_argument("--router", choices=ROUTERS, default="round_robin", help="(round_robin)")
    parser.add_argument("--repeat", type=int, default=5, help="measured runs (5)")


def _measure_simulator(options: argparse.Namespace) -> Figures:
    for name in ("replicas", "repeat"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; expected at least 1")
    return measure_simulator(
        read_trace(options.trace),
        load_profile(options.profile),
        replicas=options.replicas,
        router=options.router,
        repeat=options.repeat,
    )


BENCHES: dict[str, Bench] = {
    "simulator": Bench(
        "requests simulated per CPU second", _add_simulator_options, _measure_simulator
    ),
}

if __name__ == "__main__":
    sys.exit(main())
