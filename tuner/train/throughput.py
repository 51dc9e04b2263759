"""How fast training is: environment steps per CPU second, end to end and of the updates alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from tuner.train.config import TrainConfig
from tuner.train.ppo import Inputs, Place, Run


@dataclass(frozen=True)
class Throughput:
    """CPU time of this process, s, over some updates with their rollouts."""

    steps: int
    """Environment steps."""
    cpu_s: float
    """In all."""
    update_cpu_s: float
    """Of the gradient steps."""


def throughput(inputs: Inputs, config: TrainConfig, updates: int, threads: int = 1) -> Throughput:
    """Train for so many updates after one that warms up; nothing is written."""
    torch.set_num_threads(1)
    run = Run.prepare(inputs, config, Place(Path("unused")), threads)
    model = run.model(run.face())
    model.set_logger(Logger(None, []))
    model.learn(run.update_steps)
    stamps = _Stamps()
    before_s = time.process_time()
    model.learn(updates * run.update_steps, callback=stamps, reset_num_timesteps=False)
    cpu_s = time.process_time() - before_s
    return Throughput(updates * run.update_steps, cpu_s, cpu_s - stamps.rollouts_s)


class _Stamps(BaseCallback):
    """Adds up the CPU time of rollouts; what remains is updates."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts_s = 0.0
        self._began_s = 0.0

    def _on_rollout_start(self) -> None:
        self._began_s = time.process_time()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts_s += time.process_time() - self._began_s
