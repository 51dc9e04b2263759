"""A tick of the controller over served pages, in a process that loads nothing else."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from experiments.bench.options import Figures, check_positive
from tuner.core.errors import ConfigError, InputError


def measure_tick(*, targets: int, replicas: int, ticks: int, repeat: int, policy: str) -> Figures:
    """Time and memory of the controller over served pages, in a process that loads nothing else.

    Raises:
        InputError: it did not come to figures; with what it said last.
    """
    options = {"targets": targets, "replicas": replicas, "ticks": ticks, "repeat": repeat}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "experiments.bench.tick_cost", *words, "--policy", policy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"the ticks could not be measured: {last}")
    figures: Figures = json.loads(done.stdout)
    return figures


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--targets", type=int, default=50, help="targets in one process (50)")
    parser.add_argument("--replicas", type=int, default=200, help="replicas altogether (200)")
    parser.add_argument("--ticks", type=int, default=5, help="measured ticks of each target (5)")
    parser.add_argument("--repeat", type=int, default=500, help="measured decisions (500)")
    parser.add_argument("--policy", default="hpa", help="whose decision is measured (hpa)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "targets", "ticks", "repeat")
    if options.replicas < options.targets:
        raise ConfigError(
            f"--replicas is {options.replicas}; expected at least one for each of "
            f"{options.targets} targets"
        )
    return measure_tick(
        targets=options.targets,
        replicas=options.replicas,
        ticks=options.ticks,
        repeat=options.repeat,
        policy=options.policy,
    )
