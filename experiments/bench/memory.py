"""Bytes of one simulated environment: at its start, and with every slot of every batch taken.

The trace and the profile's tables are shared by all environments and left out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from envs.config import ScrapeConfig
from envs.simulator import Fleet, FleetSettings
from experiments.bench.load import poisson_load
from experiments.bench.options import Figures, check_positive
from tuner.core.profile import ServingProfile
from tuner.data import load_profile

ENVS = 16
"""Measured together; what they share would otherwise count with one."""


def measure_memory(profile: ServingProfile, *, replicas: int, batch_size: int) -> Figures:
    """Bytes per environment, metrics source included."""
    limits = replace(profile.limits, batch_size_max=batch_size, batch_size_oom=None)
    profile = replace(profile, limits=limits)
    in_flight = replicas * batch_size
    load = poisson_load(1000.0 * in_flight, 4.0 * in_flight / (1000.0 * in_flight), 0)
    seeds = np.arange(ENVS, dtype=np.uint64)
    fleet = Fleet(load, profile, seeds=seeds, slots=replicas, scrape=ScrapeConfig())
    at_start = fleet.memory_bytes()
    one = np.ones(ENVS, np.int64)
    settings = FleetSettings(replicas * one, batch_size * one, one, 0 * one)
    # So many clients in a closed loop: each slot of each batch holds one of their requests.
    fleet.reset(slice(None), start_s=0.0, seeds=seeds, settings=settings, clients=in_flight)
    fleet.advance(1.0)
    seen = fleet.gauges()
    return {
        "bytes_at_start": at_start / ENVS,
        "bytes_full": fleet.memory_bytes() / ENVS,
        "kib_full": fleet.memory_bytes() / ENVS / 1024,
        "in_flight": int(seen.in_flight[0]),
        "config": {"profile": profile.name, "replicas": replicas, "batch_size": batch_size},
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="reference-affine", help="(reference-affine)")
    parser.add_argument("--replicas", type=int, default=8, help="slots of an environment (8)")
    parser.add_argument("--batch-size", type=int, default=128, help="cap of a replica (128)")


def measure(options: argparse.Namespace) -> Figures:
    check_positive(options, "replicas", "batch_size")
    return measure_memory(
        load_profile(options.profile), replicas=options.replicas, batch_size=options.batch_size
    )
