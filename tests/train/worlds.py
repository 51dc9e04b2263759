"""Training in seconds: the small world of the environment, and a toy with a known answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from tests.envs import worlds
from tuner.core.decision import Guardrails
from tuner.data.bundles import BaseRule, Code, Manifest
from tuner.guardrails import Bounds, MaxDelta, PolicyFailure, StaleMetrics
from tuner.train.config import PpoConfig, TrainConfig, ValidationConfig
from tuner.train.ppo import Inputs, train

CONFIG = TrainConfig(
    base=BaseRule("hpa", {"target": 150.0}),
    ppo=PpoConfig(
        steps=8 * 16 * 8, envs=8, rollout_ticks=16, minibatch_size=64, epochs=2, hidden=(16, 16)
    ),
    env=worlds.config(episode_ticks=24),
    warm_up_ticks=4,
    validation=ValidationConfig(scenarios=3, confirm_scenarios=3, every_updates=4, share=0.3),
)


def inputs(seconds: float = 4000.0) -> Inputs:
    return Inputs(
        trace=worlds.trace(seconds),
        profile=worlds.PROFILE,
        knobs=worlds.knobs(),
        guardrails=Guardrails((PolicyFailure(), StaleMetrics()), (Bounds(), MaxDelta())),
        code=Code(commit=None, versions={}),
    )


def config(**ppo: Any) -> TrainConfig:
    return replace(CONFIG, ppo=replace(CONFIG.ppo, **ppo))


def trained(out: Path, what: TrainConfig = CONFIG, **options: Any) -> Manifest:
    return train(inputs(), what, out, **options)


class Echo(VectorEnv[Any, Any, Any]):
    """Three targets with episodes of 3, 4 and 5 ticks.

    The observation is (target, tick); the reward is the first action.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - gymnasium's own form

    def __init__(self) -> None:
        self.num_envs = 3
        self.single_observation_space = Box(0.0, 10.0, (2,), np.float32)
        self.single_action_space = Box(
            np.array([0, -1, 0, -1], np.float32), np.array([0, 1, 0, 1], np.float32)
        )
        self.seeds: list[int | None] = []
        self.actions: list[np.ndarray] = []

    def _seen(self) -> np.ndarray:
        return np.stack([np.arange(3), self._tick], axis=1).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.seeds.append(seed)
        self._tick = np.zeros(3, dtype=np.int64)
        return self._seen(), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.actions.append(actions.copy())
        self._tick += 1
        seen = self._seen()
        ended = self._tick >= np.array([3, 4, 5])
        infos: dict[str, Any] = {
            "met": np.full(3, 9.0),
            "missed": np.full(3, 1.0),
            "replica_s": np.full(3, 30.0),
        }
        if ended.any():
            infos |= {"final_obs": seen, "_final_obs": ended}
            self._tick[ended] = 0
        gained = actions[:, 1].astype(np.float64)
        return self._seen(), gained, np.zeros(3, dtype=bool), ended, infos
