"""Seconds until the simulator has run its first tick, without and with its cache on disk.

Each start is a process of its own, imports included: what a command waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from experiments.bench.options import Figures
from tuner.core.errors import InputError
from tuner.data import load_profile

_FIRST_TICK = """
import json, sys, time
before_wall_s, before_cpu_s = time.perf_counter(), time.process_time()
import numpy as np
from experiments.bench.env import fixed_fleet
from experiments.bench.load import poisson_load
from tuner.data import load_profile
load = poisson_load(10.0, 600.0, 0)
env = fixed_fleet(load, load_profile(sys.argv[1]), replicas=8, envs=1, tick_s=15.0, seed=0)
env.reset()
env.step(np.zeros((1, len(env.codec.knobs.specs))))
wall_s, cpu_s = time.perf_counter() - before_wall_s, time.process_time() - before_cpu_s
print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}))
"""


def first_tick(profile: str, cache: str) -> dict[str, float]:
    """Wall and CPU seconds of one fresh process up to the end of its first tick."""
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_TICK, profile],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"the simulator did not start: {last}")
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def measure_start(profile: str) -> Figures:
    """The first start of a machine and the second."""
    load_profile(profile)
    with tempfile.TemporaryDirectory() as cache:
        cold, cached = first_tick(profile, cache), first_tick(profile, cache)
    return {"cold": cold, "cached": cached, "config": {"profile": profile}}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")


def measure(options: argparse.Namespace) -> Figures:
    return measure_start(options.profile)
