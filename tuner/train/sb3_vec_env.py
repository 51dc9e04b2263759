"""stable-baselines3's face of the vector environment, without a loop over its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

_NOTHING: dict[str, Any] = {}
"""The info of a target that goes on; one object for all of them, never written to."""


@dataclass(frozen=True)
class RewardMap:
    """A linear change of the reward that makes it easy to learn and no other policy best."""

    shift: float = 0.0
    """Subtracted first; episodes never terminate, so every policy loses the same by it."""
    scale: float = 1.0
    """Multiplied then, > 0."""


@dataclass
class Tally:
    """What happened since the last look, summed over targets."""

    steps: int = 0
    reward: float = 0.0
    """Before RewardMap."""
    met: float = 0.0
    missed: float = 0.0
    replica_s: float = 0.0

    def add(self, reward: NDArray[np.float64], infos: dict[str, Any]) -> None:
        self.steps += len(reward)
        self.reward += float(reward.sum())
        self.met += float(infos["met"].sum())
        self.missed += float(infos["missed"].sum())
        self.replica_s += float(infos["replica_s"].sum())

    @property
    def attainment(self) -> float:
        """Share (0-1) of the requests decided so far that met every objective; NaN before one."""
        decided = self.met + self.missed
        return self.met / decided if decided else float("nan")


def warmed_up(
    env: VectorEnv[Any, Any, Any], features: NDArray[np.float32], ticks: int
) -> NDArray[np.float32]:
    """What is seen after so many ticks of action 0: of the base rule alone."""
    shape = env.single_action_space.shape
    assert shape is not None
    still = np.zeros((env.num_envs, *shape), dtype=np.float32)
    for _ in range(ticks):
        features, *_ = env.step(still)
    return features


class Sb3VecEnv(VecEnv):
    """Shows a gymnasium vector environment to stable-baselines3.

    Only the action columns that can move are shown, as -1..1; the others are filled with 0. An
    episode that ends by time is told with its last observation, so that its value is bootstrapped.

    Args:
        env: with SAME_STEP autoreset and infos `met`, `missed`, `replica_s` as arrays.
        rewards: how rewards are shown.
        warm_up_ticks: ticks after a reset that action 0 runs and nobody sees.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        rewards: RewardMap | None = None,
        warm_up_ticks: int = 0,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset mode is {mode}; expected SAME_STEP")
        space = env.single_action_space
        assert isinstance(space, Box)
        self._moves = np.flatnonzero(space.high > space.low)
        shown = Box(-1.0, 1.0, (len(self._moves),), np.float32)
        self.env = env  # first: the base class asks it for its render mode
        super().__init__(env.num_envs, env.single_observation_space, shown)
        self.rewards = rewards or RewardMap()
        self._warm_up_ticks = warm_up_ticks
        self.tally = Tally()
        self._actions = np.zeros((env.num_envs, *space.shape), dtype=np.float32)
        self._pending_seed: int | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed of the next reset; the environment spreads it over its targets."""
        self._pending_seed = seed
        return [seed] * self.num_envs

    def reset(self) -> VecEnvObs:
        observation, _ = self.env.reset(seed=self._pending_seed)
        self._pending_seed = None
        return warmed_up(self.env, observation, self._warm_up_ticks)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        self._actions[:, self._moves] = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, gained, terminated, truncated, infos = self.env.step(self._actions)
        self.tally.add(gained, infos)
        shown = ((gained - self.rewards.shift) * self.rewards.scale).astype(np.float32)
        done = terminated | truncated
        told = [_NOTHING] * self.num_envs
        for row in np.flatnonzero(done):
            told[row] = {
                "terminal_observation": infos["final_obs"][row],
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return observation, shown, done, told

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("targets of a vector environment have no attributes of their own")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        raise NotImplementedError("targets of a vector environment have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
