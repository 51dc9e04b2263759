"""Environment steps per CPU second on fleets that stay at a size."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from envs.config import EnvConfig
from envs.reward import RewardScale
from envs.vector_env import VectorServingEnv
from experiments.bench.load import trace_or_poisson
from experiments.bench.options import Figures, check_positive
from experiments.run import target_knobs
from policies import build_policy
from policies.codec import Codec, CodecConfig
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.guardrails import default_guardrails

TICK_S = 15.0
WARM_UP_TICKS = 8
"""Ticks that fill the fleets and compile what is not compiled yet."""


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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", help="Parquet file (generated: Poisson, 10 requests/s)")
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--replicas", type=int, default=8, help="replicas that serve (8)")
    parser.add_argument("--envs", type=int, default=256, help="environments (256)")
    parser.add_argument("--ticks", type=int, default=40, help="ticks of a measured run (40)")
    parser.add_argument("--repeat", type=int, default=5, help="measured runs (5)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "envs", "ticks", "repeat")
    trace = trace_or_poisson(options.trace)
    return measure_env(
        trace,
        load_profile(options.profile),
        replicas=options.replicas,
        envs=options.envs,
        ticks=options.ticks,
        repeat=options.repeat,
    )
