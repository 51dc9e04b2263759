"""The reward: stability of the service against its cost, and an optional business signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tuner.core.protocols import FloatArray


@dataclass(frozen=True)
class RewardWeights:
    """How much one unit of each term is worth. Every term is dimensionless."""

    stability: float = 8.0
    """Per share of a mean tick's requests that missed an objective. With 8, one percent of missed
    requests costs as much as 8 % of the reference fleet: on the DeepSeek-R1 day the frontier of
    fixed counts trades about so at 99 % attainment, so the optimum lies near there."""
    resources: float = 1.0
    """Per reference fleet held through the tick, starting and draining replicas included."""
    business: float = 0.0
    """Per unit of the business signal, in the unit that its source gives."""


@dataclass(frozen=True)
class Outcome:
    """What one tick brought to n targets."""

    arrivals: FloatArray
    """`(n,)` requests that arrived."""
    finished: FloatArray
    """`(n,)` requests answered to the end."""
    met: FloatArray
    """`(n,)` finished requests that met every objective."""
    missed: FloatArray
    """`(n,)` requests that missed an objective, were rejected or failed, each once, when first
    known."""
    replica_s: FloatArray
    """`(n,)` s of replicas held, ready or not."""
    business: FloatArray
    """`(n,)` the business signal; NaN where there is none."""


@dataclass(frozen=True)
class RewardScale:
    """What the terms are relative to; fixed for a training run, so that episodes compare."""

    requests_per_tick: float
    """Mean requests per tick of the training trace, > 0."""
    reference_replicas: float
    """Replicas of the reference fleet, > 0: the best fixed count of the training trace."""
    tick_s: float
    """Seconds of one tick."""


def reward(outcome: Outcome, weights: RewardWeights, scale: RewardScale) -> FloatArray:
    """`(n,)` reward of one tick, at most 0 without a business signal.

    - stability x missed / requests_per_tick
    - resources x replica_s / (reference_replicas x tick_s)
    + business x business signal
    """
    missed = outcome.missed / scale.requests_per_tick
    held = outcome.replica_s / (scale.reference_replicas * scale.tick_s)
    gain = np.where(np.isnan(outcome.business), 0.0, outcome.business)
    return -weights.stability * missed - weights.resources * held + weights.business * gain
