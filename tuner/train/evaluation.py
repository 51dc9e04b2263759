"""How good a policy is: without exploration, on scenarios that repeat from one look to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.vector_env import VectorServingEnv
from tuner.core.protocols import FloatArray
from tuner.data.bundles import Score
from tuner.train.sb3_vec_env import RewardMap, warmed_up

Act = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""Features `(n, features)` to actions `(n, knobs)`."""

RESAMPLES = 4000
"""Draws of the bootstrap; they settle a 95 % bound to about a fiftieth of its width."""


@dataclass(frozen=True)
class Evaluation:
    """One policy over n scenarios, as columns."""

    rewards: FloatArray
    """`(ticks, n)`."""
    met: FloatArray
    """`(n,)` requests that met every objective."""
    missed: FloatArray
    """`(n,)` requests that missed one."""
    replicas: FloatArray
    """`(n,)` mean replicas held."""

    @property
    def reward(self) -> FloatArray:
        """`(n,)` mean per tick."""
        mean: FloatArray = self.rewards.mean(axis=0)
        return mean

    @property
    def score(self) -> Score:
        """Means over the scenarios; attainment over their requests."""
        decided = max(float((self.met + self.missed).sum()), 1.0)
        return Score(
            reward=float(self.reward.mean()),
            attainment=float(self.met.sum()) / decided,
            replicas=float(self.replicas.mean()),
        )


def base_rule(env: VectorServingEnv) -> Act:
    """Action 0 everywhere: what the base rule's need says, with factor 1."""
    knobs = len(env.codec.knobs.specs)

    def act(features: NDArray[np.float32]) -> NDArray[np.floating]:
        return np.zeros((len(features), knobs), dtype=np.float32)

    return act


def evaluate(env: VectorServingEnv, act: Act, seed: int, warm_up_ticks: int) -> Evaluation:
    """Run every target through the first episode of `seed`.

    The base rule runs the first `warm_up_ticks`, so that all policies begin with the same fleet.
    """
    ticks, n = env.config.episode_ticks - warm_up_ticks, env.num_envs
    rewards = np.zeros((ticks, n))
    met, missed, held_s = (np.zeros(n) for _ in range(3))
    features, _ = env.reset(seed=seed)
    features = warmed_up(env, features, warm_up_ticks)
    for tick in range(ticks):
        action = np.asarray(act(features), dtype=np.float64)
        features, rewards[tick], _, _, infos = env.step(action)
        met += infos["met"]
        missed += infos["missed"]
        held_s += infos["replica_s"]
    return Evaluation(
        rewards=rewards,
        met=met,
        missed=missed,
        replicas=held_s / (ticks * env.config.tick_s),
    )


def paired_ci95(difference: FloatArray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean of paired differences, 95 %."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def reward_map(base: Evaluation, gamma: float) -> RewardMap:
    """Rewards of about zero mean and returns of about unit spread, as the base rule earns them.

    Measured once, before training, and kept: a running scale would change what is learned under
    way, and would have to be restored to the bit by a resume.
    """
    shift = float(base.rewards.mean())
    returns = np.zeros_like(base.rewards)
    following = np.zeros(base.rewards.shape[1])
    for tick in reversed(range(len(returns))):
        following = returns[tick] = base.rewards[tick] - shift + gamma * following
    # A load so light that nothing ever varies leaves the rewards as they are.
    spread = float(returns.std())
    return RewardMap(shift=shift, scale=1 / spread if spread > 0 else 1.0)
