"""The same trace in our simulator and in others, one after the other in one run, as ratios.

Peer: DynoSim, the Rust replay of NVIDIA's `ai-dynamo-runtime` (its vLLM mode, round robin, its own
step times), out of an environment that `make peers` makes. Both get the same requests, replicas,
KV blocks, batch cap and chunk budget. Both hold their replicas; in the controlled runs something
outside is asked every tick.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.simulator import Fleet, FleetSettings
from experiments.bench.load import trace_or_poisson
from experiments.bench.options import Figures, check_positive
from experiments.bench.simulator import OVERTIME_S, measure_simulator
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile

HASH_TOKENS = 512
"""Prompt tokens of one hashed block in a Mooncake trace."""
LONGEST_S = 3600.0
"""A peer that has not ended by then is stopped."""


def write_mooncake(trace: Trace, path: Path) -> None:
    """The trace as Mooncake's JSON lines (kvcache-ai/Mooncake, FAST25-release); no two requests
    share a block, so nothing can be cached."""
    blocks = 0
    with open(path, "w", encoding="utf-8") as out:
        for arrival_s, prompt, output in zip(
            trace.arrival_s.tolist(),
            trace.prompt_tokens.tolist(),
            trace.output_tokens.tolist(),
            strict=True,
        ):
            own = math.ceil(prompt / HASH_TOKENS)
            row = {
                "timestamp": arrival_s * 1e3,
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(blocks, blocks + own)),
            }
            blocks += own
            out.write(json.dumps(row) + "\n")


def run_dynosim(
    python: Path,
    trace: Trace,
    profile: ServingProfile,
    *,
    replicas: int,
    tick_s: float,
    repeat: int,
) -> Mapping[str, Any]:
    """What `experiments/bench/dynosim.py` measured.

    Raises:
        InputError: there is no such interpreter, or it came to no figures; with its last words.
    """
    if not python.is_file():
        raise InputError(f"{python} does not exist; make the peers' environment with `make peers`")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_mooncake(trace, path)
        asked = {
            "trace": str(path),
            "hash_tokens": HASH_TOKENS,
            "block_tokens": profile.kv.block_tokens,
            "blocks": profile.kv.blocks,
            "batch_size": profile.limits.batch_size_max,
            "chunk_tokens": profile.limits.chunk_tokens,
            "replicas": replicas,
            "tick_s": tick_s,
            "repeat": repeat,
        }
        script = Path(__file__).with_name("dynosim.py")
        done = subprocess.run(
            [str(python), str(script), json.dumps(asked)],
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_S,
            # Nothing of ours on its path, and one thread: CPU seconds are compared.
            env={**os.environ, "PYTHONPATH": "", "TOKIO_WORKER_THREADS": "1"},
        )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"DynoSim came to no figures: {last}")
    # It logs to its standard output, too: the figures are the last line.
    figures: Mapping[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return figures


def controlled(
    trace: Trace, profile: ServingProfile, *, replicas: int, tick_s: float
) -> tuple[int, float]:
    """Control steps up to the last arrival, and CPU seconds of the whole trace, in our simulator,
    read and steered every tick."""
    fleet = Fleet(
        trace, profile, seeds=np.zeros(1, np.uint64), slots=replicas, router="round_robin"
    )
    one = np.ones(1, np.int64)
    settings = FleetSettings(replicas * one, profile.limits.batch_size_max * one, one, 0 * one)
    fleet.reset(slice(None), start_s=0.0, seeds=np.zeros(1, np.uint64), settings=settings)
    before_s = time.process_time()
    ticks_s = np.arange(tick_s, trace.last_arrival_s, tick_s)
    for at_s in ticks_s:
        fleet.advance(at_s)
        fleet.window()
        fleet.gauges()
        fleet.apply(settings)
    fleet.advance(trace.last_arrival_s + OVERTIME_S)
    return len(ticks_s), time.process_time() - before_s


def measure_peers(
    trace: Trace,
    profile: ServingProfile,
    *,
    python: Path,
    replicas: int,
    tick_s: float,
    repeat: int,
) -> Figures:
    """Requests and control steps per CPU second of both, and the ratios."""
    ours = measure_simulator(trace, profile, replicas=replicas, router="round_robin", repeat=repeat)
    runs = [controlled(trace, profile, replicas=replicas, tick_s=tick_s) for _ in range(repeat)]
    our_step_rate = runs[0][0] / statistics.median(cpu_s for _, cpu_s in runs)
    peer = run_dynosim(python, trace, profile, replicas=replicas, tick_s=tick_s, repeat=repeat)
    our_rate = float(str(ours["requests_per_cpu_s"]))
    rate = _rate(peer, "requests", "cpu_s")
    step_rate = _rate(peer, "control_steps", "controlled_cpu_s")
    return {
        "tuner": {"requests_per_cpu_s": our_rate, "control_steps_per_cpu_s": our_step_rate},
        "dynosim": {"requests_per_cpu_s": rate, "control_steps_per_cpu_s": step_rate, **peer},
        "ratio": {"requests": our_rate / rate, "control_steps": our_step_rate / step_rate},
        "config": {
            "trace": trace.name,
            "trace_requests": len(trace),
            "profile": profile.name,
            "scheduler": profile.scheduler,
            "replicas": replicas,
            "tick_s": tick_s,
            "repeat": repeat,
        },
    }


def _rate(peer: Mapping[str, Any], count: str, seconds: str) -> float:
    return float(peer[count]) / statistics.median(map(float, peer[seconds]))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", help="Parquet file (generated: Poisson, 12 requests/s, 14 min)")
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--replicas", type=int, default=4, help="replicas that serve (4)")
    parser.add_argument("--tick", type=float, default=15.0, help="seconds of a control step (15)")
    parser.add_argument("--repeat", type=int, default=5, help="measured runs (5)")
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(".venv-peers/bin/python"),
        help="interpreter of the peers' environment (.venv-peers/bin/python)",
    )


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "repeat", "tick")
    return measure_peers(
        trace_or_poisson(options.trace, qps=12.0, hours=10_000 / 12 / 3600),
        load_profile(options.profile),
        python=options.python,
        replicas=options.replicas,
        tick_s=options.tick,
        repeat=options.repeat,
    )
