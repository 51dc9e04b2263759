"""Steps per CPU second of PPO end to end."""

from __future__ import annotations

import argparse

import numpy as np

from envs.config import EnvConfig
from experiments.bench.env import TICK_S
from experiments.bench.load import trace_or_poisson
from experiments.bench.options import Figures, check_positive
from experiments.run import target_knobs
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile
from tuner.data.bundles import BaseRule, Code
from tuner.guardrails import default_guardrails
from tuner.train.config import PpoConfig, TrainConfig
from tuner.train.ppo import Inputs
from tuner.train.throughput import throughput


def measure_train(
    trace: Trace, profile: ServingProfile, *, replicas: int, config: TrainConfig, updates: int
) -> Figures:
    """Steps per CPU second of PPO end to end: simulation, guardrails, network and updates."""
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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", help="Parquet file (generated: Poisson, 10 requests/s)")
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--replicas", type=int, default=8, help="replicas at the mean load (8)")
    parser.add_argument("--envs", type=int, default=256, help="environments (256)")
    parser.add_argument("--updates", type=int, default=3, help="measured updates (3)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "envs", "updates")
    trace = trace_or_poisson(options.trace)
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
