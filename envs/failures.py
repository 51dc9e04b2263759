"""What is wrong with a simulated fleet from its start, drawn from its seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.config import FailureConfig
from envs.draws import child_seeds, uniform
from envs.simulator.fleet import EnvFactors
from tuner.core.protocols import FloatArray

_FAILURES = 1 << 62
"""Place under a fleet's seed; far from the looks, which are numbered from 0."""
_IS_SLOW, _SLOW_SLOT, _SLOW = range(3)


def with_failures(
    factors: EnvFactors,
    config: FailureConfig,
    seeds: NDArray[np.uint64],
    replicas: FloatArray,
) -> EnvFactors:
    """The factors of k fleets, and what is wrong with each from the start, by its own seed.

    Args:
        factors: k entries.
        seeds: `(k,)` of the fleets.
        replicas: `(k,)` ready replicas at the start; the slow slot is one of theirs.
    """
    under = child_seeds(seeds, _FAILURES)
    slow = (uniform(under, _IS_SLOW) < config.slow_replica) & (replicas >= 1)
    slot = np.floor(uniform(under, _SLOW_SLOT) * replicas).astype(np.int64)
    low, high = config.slow
    return replace(
        factors,
        slow_slot=np.where(slow, slot, -1),
        slow=np.where(slow, low + uniform(under, _SLOW) * (high - low), 1.0),
    )
