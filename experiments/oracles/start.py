"""The cold start as a plan sees it: known in distribution, not in its draws."""

from __future__ import annotations

import math

import numpy as np

from experiments.result import Floats
from policies.oracle import Start
from tuner.core.profile import ServingProfile, Startup

DRAWS = 4000
"""Starts that stand for the distribution."""
TRUNCATION = 3.0
"""The simulator cuts a stage's draw at so many standard deviations."""


def start_of(profile: ServingProfile, tick_s: float, replica_qps: float) -> Start:
    """How replicas of a profile start, without warm-up requests.

    Args:
        profile: its `startup`; without one replicas start at once.
        tick_s: seconds of a tick.
        replica_qps: requests/s that one replica gets: how fast it gets through its ramp.
    """
    if profile.startup is None:
        return Start.after(0)
    # A replica that gets ready within a tick is counted from the next one on.
    ready = np.ceil(start_draws_s(profile.startup) / tick_s).astype(np.int64)
    shortest = int(ready.min())
    ramp = _ramp(profile.startup, tick_s, replica_qps)
    lacks = np.append(ramp, 0.0)
    after = np.arange(int(ready.max()) - shortest + len(ramp))
    age = after[:, None] - (ready - shortest)
    absent = np.where(age < 0, 1.0, lacks[np.clip(age, 0, len(ramp))]).mean(axis=1)
    return Start(shortest, absent)


def start_draws_s(startup: Startup) -> Floats:
    """`(DRAWS,)` s, durations of cold starts; always the same draws."""
    rng = np.random.default_rng(0)
    stages = startup.stages
    total = np.zeros(DRAWS)
    for stage in (stages.schedule, stages.image, stages.weights, stages.compile):
        draws = rng.standard_normal(2 * DRAWS)
        kept = draws[np.abs(draws) <= TRUNCATION][:DRAWS]
        total += stage.median_s * np.exp(stage.spread * kept)
    return total


def _ramp(startup: Startup, tick_s: float, replica_qps: float) -> Floats:
    """`(ticks,)` share of its speed that a new replica lacks, by ticks since it got ready."""
    lacks = [
        np.full(math.ceil(requests / replica_qps / tick_s), 1.0 - speed)
        for requests, speed in startup.ramp
    ]
    return np.concatenate([np.zeros(0), *lacks])
