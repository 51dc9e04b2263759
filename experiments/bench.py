"""How fast the parts are: `python -m experiments.bench PART ...` prints one JSON object.

Rates are per second of this process' CPU time, the median of the repeats after one run that warms
up compiler and caches. On a shared machine compare rates of one run with each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from envs.config import EnvConfig
from envs.reward import RewardScale
from envs.simulator import ROUTERS, Fleet, FleetSettings
from envs.vector_env import VectorServingEnv
from experiments.run import target_knobs
from policies import build_policy
from policies.codec import Codec, CodecConfig
from tuner.core.errors import ConfigError, InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile, read_trace
from tuner.data.bundles import BaseRule, Code
from tuner.guardrails import default_guardrails

if TYPE_CHECKING:
    from tuner.train.config import TrainConfig

EXIT_INPUT = 2
TICK_S = 15.0
WARM_UP_TICKS = 8
"""Ticks that fill the fleets and compile what is not compiled yet."""
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
    _check_positive(options, "replicas", "repeat")
    return measure_simulator(
        read_trace(options.trace),
        load_profile(options.profile),
        replicas=options.replicas,
        router=options.router,
        repeat=options.repeat,
    )


def poisson_load(qps: float, seconds: float, seed: int) -> Trace:
    """Poisson arrivals with the lengths of the reference workload: lognormal prompts (median 400,
    sigma 0.8, 16..3000 tokens) and outputs (median 150, sigma 0.7, 4..1000 tokens)."""
    rng = np.random.default_rng(seed)
    count = int(qps * seconds)
    prompts = rng.lognormal(np.log(400), 0.8, count).clip(16, 3000)
    outputs = rng.lognormal(np.log(150), 0.7, count).clip(4, 1000)
    return Trace(
        arrival_s=np.cumsum(rng.exponential(1 / qps, count)),
        prompt_tokens=prompts.astype(np.int32),
        output_tokens=outputs.astype(np.int32),
        name=f"poisson, {qps:g} requests/s, seed {seed}",
    )


def fixed_fleet(
    trace: Trace, profile: ServingProfile, *, replicas: int, envs: int, tick_s: float, seed: int
) -> VectorServingEnv:
    """Environments whose fleets stay at so many replicas, with all that a training step has:
    observations, features, base rule, fallback and guardrails."""
    knobs = target_knobs(profile, max_replicas=replicas)
    options = {"target": 1e9, "min_replicas": replicas}
    rule = build_policy("hpa", options, knobs, tick_s=tick_s).rule
    config = EnvConfig(
        tick_s=tick_s,
        episode_ticks=240,
        start_replicas=(replicas, replicas),
        keep=(1.0, 1.0),
        reference_replicas=float(replicas),
    )
    return VectorServingEnv(
        trace,
        profile,
        Codec(knobs, rule, CodecConfig(move=()), profile.unmodelled_knobs()),
        n_envs=envs,
        guardrails=default_guardrails(),
        fallback=rule,
        config=config,
        scale=RewardScale(tick_s * len(trace) / trace.last_arrival_s, replicas, tick_s),
        seed=seed,
        slots=replicas,
    )


def measure_env(
    trace: Trace, profile: ServingProfile, *, replicas: int, envs: int, ticks: int, repeat: int
) -> Figures:
    """Environment steps per CPU second on fleets that stay at so many replicas."""
    env = fixed_fleet(trace, profile, replicas=replicas, envs=envs, tick_s=TICK_S, seed=0)
    env.reset()
    actions = np.zeros((envs, len(env.codec.knobs.specs)))
    for _ in range(WARM_UP_TICKS):
        env.step(actions)
    rates = []
    for _ in range(repeat):
        before_s = time.process_time()
        for _ in range(ticks):
            _, _, _, _, infos = env.step(actions)
        rates.append(envs * ticks / (time.process_time() - before_s))
    return {
        "env_steps_per_cpu_s": statistics.median(rates),
        "rates": rates,
        "replicas_held": float(infos["replica_s"].mean() / TICK_S),
        "config": {
            "trace": trace.name,
            "requests_per_s": len(trace) / trace.last_arrival_s,
            "profile": profile.name,
            "replicas": replicas,
            "envs": envs,
            "tick_s": TICK_S,
            "ticks": ticks,
            "repeat": repeat,
        },
    }


def _add_env_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", help="Parquet file (generated: Poisson, 10 requests/s)")
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--replicas", type=int, default=8, help="replicas that serve (8)")
    parser.add_argument("--envs", type=int, default=256, help="environments (256)")
    parser.add_argument("--ticks", type=int, default=40, help="ticks of a measured run (40)")
    parser.add_argument("--repeat", type=int, default=5, help="measured runs (5)")


def _measure_env(options: argparse.Namespace) -> Figures:
    _check_positive(options, "replicas", "envs", "ticks", "repeat")
    trace = read_trace(options.trace) if options.trace else poisson_load(10.0, 12 * 3600.0, 0)
    return measure_env(
        trace,
        load_profile(options.profile),
        replicas=options.replicas,
        envs=options.envs,
        ticks=options.ticks,
        repeat=options.repeat,
    )


def measure_train(
    trace: Trace, profile: ServingProfile, *, replicas: int, config: TrainConfig, updates: int
) -> Figures:
    """Steps per CPU second of PPO end to end: simulation, guardrails, network and updates."""
    # Imported here: the other parts do not need PyTorch.
    from tuner.train.ppo import Inputs
    from tuner.train.throughput import throughput

    inputs = Inputs(
        trace=trace,
        profile=profile,
        knobs=target_knobs(profile, max_replicas=2 * replicas),
        guardrails=default_guardrails(),
        code=Code(commit=None, versions={}),
    )
    found = throughput(inputs, config, updates)
    return {
        "steps_per_cpu_s": found.steps / found.cpu_s,
        "update_steps_per_cpu_s": found.steps / found.update_cpu_s,
        "update_share": found.update_cpu_s / found.cpu_s,
        "steps": found.steps,
        "cpu_s": found.cpu_s,
        "config": {
            "trace": trace.name,
            "requests_per_s": len(trace) / trace.last_arrival_s,
            "profile": profile.name,
            "replicas": replicas,
            "updates": updates,
            **config.section,
        },
    }


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", help="Parquet file (generated: Poisson, 10 requests/s)")
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--replicas", type=int, default=8, help="replicas at the mean load (8)")
    parser.add_argument("--envs", type=int, default=256, help="environments (256)")
    parser.add_argument("--updates", type=int, default=3, help="measured updates (3)")


def _measure_train(options: argparse.Namespace) -> Figures:
    from tuner.train.config import PpoConfig, TrainConfig

    _check_positive(options, "replicas", "envs", "updates")
    trace = read_trace(options.trace) if options.trace else poisson_load(10.0, 12 * 3600.0, 0)
    tokens_per_s = float(trace.output_tokens.sum(dtype=np.int64)) / trace.last_arrival_s
    config = TrainConfig(
        base=BaseRule("hpa", {"target": tokens_per_s / options.replicas}),
        ppo=PpoConfig(envs=options.envs),
        env=EnvConfig(tick_s=TICK_S, start_replicas=(options.replicas, options.replicas)),
    )
    profile = load_profile(options.profile)
    return measure_train(
        trace, profile, replicas=options.replicas, config=config, updates=options.updates
    )


def _add_collector_options(parser: argparse.ArgumentParser) -> None:
    from experiments.bench_collector import add_options

    add_options(parser)


def _measure_collector(options: argparse.Namespace) -> Figures:
    # Imported here: the other parts need no network.
    from experiments.bench_collector import measure_collector

    _check_positive(options, "replicas", "repeat")
    return measure_collector(
        source=options.source, replicas=options.replicas, repeat=options.repeat
    )


def measure_tick(*, targets: int, replicas: int, ticks: int, repeat: int, policy: str) -> Figures:
    """Time and memory of the controller over served pages, in a process that loads nothing else.

    Raises:
        InputError: it did not come to figures; with what it said last.
    """
    options = {"targets": targets, "replicas": replicas, "ticks": ticks, "repeat": repeat}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "experiments.tick_cost", *words, "--policy", policy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"the ticks could not be measured: {last}")
    figures: Figures = json.loads(done.stdout)
    return figures


def _add_tick_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--targets", type=int, default=50, help="targets in one process (50)")
    parser.add_argument("--replicas", type=int, default=200, help="replicas altogether (200)")
    parser.add_argument("--ticks", type=int, default=5, help="measured ticks of each target (5)")
    parser.add_argument("--repeat", type=int, default=500, help="measured decisions (500)")
    parser.add_argument("--policy", default="hpa", help="whose decision is measured (hpa)")


def _measure_tick(options: argparse.Namespace) -> Figures:
    _check_positive(options, "targets", "ticks", "repeat")
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


def _check_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; expected at least 1")


BENCHES: dict[str, Bench] = {
    "simulator": Bench(
        "requests simulated per CPU second", _add_simulator_options, _measure_simulator
    ),
    "env": Bench("environment steps per CPU second", _add_env_options, _measure_env),
    "collector": Bench(
        "seconds of one look at many replicas", _add_collector_options, _measure_collector
    ),
    "tick": Bench("a tick of the controller over HTTP", _add_tick_options, _measure_tick),
    "train": Bench("PPO steps per CPU second, end to end", _add_train_options, _measure_train),
}

if __name__ == "__main__":
    sys.exit(main())
