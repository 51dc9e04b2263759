"""Where training can be taken up again: a file of tensors and plain values, whole or absent.

A checkpoint belongs to training. The controller never reads one, and even here nothing pickled is
executed: it is loaded with `weights_only`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tuner.core.errors import ConfigError
from tuner.data.bundles import Score, Section
from tuner.data.files import replacing
from tuner.train.sb3_vec_env import RewardMap

SCHEMA = "tuner.checkpoint/1"
FILE = "checkpoint.pt"

State = Mapping[str, Any]
"""A PyTorch state_dict."""


@dataclass(frozen=True)
class Candidate:
    """The best trained network so far."""

    step: int
    score: Score
    """On the validation scenarios."""
    network: State


@dataclass(frozen=True)
class Checkpoint:
    """Training after a whole number of updates.

    Random states are not in it: each stretch of updates draws its own from the seed and the number
    of updates before it, and begins new episodes.
    """

    inputs: Section
    """What the run was started with: configuration and digests; a resume must bring the same."""
    updates: int
    steps: int
    gradient_updates: int
    """stable-baselines3's own count, for its log."""
    network: State
    optimizer: State
    rewards: RewardMap
    base: Score
    """The base rule on the validation scenarios."""
    best: Candidate | None


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a reader sees the old one or the new one."""
    best = checkpoint.best
    content = {
        "schema": SCHEMA,
        "inputs": json.dumps(checkpoint.inputs),
        "updates": checkpoint.updates,
        "steps": checkpoint.steps,
        "gradient_updates": checkpoint.gradient_updates,
        "network": dict(checkpoint.network),
        "optimizer": dict(checkpoint.optimizer),
        "rewards": asdict(checkpoint.rewards),
        "base": asdict(checkpoint.base),
        "best": None
        if best is None
        else {"step": best.step, "score": asdict(best.score), "network": dict(best.network)},
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ConfigError: it is absent, damaged, or of another version of tuner.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, so there is nothing to resume; drop --resume")
    try:
        content = torch.load(path, weights_only=True)
        schema = content["schema"]
    except Exception as error:  # zip, pickle and key errors alike: the file is not ours
        raise ConfigError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); remove its folder "
            "and train anew"
        ) from error
    if schema != SCHEMA:
        raise ConfigError(
            f"{path}: schema is {schema!r}; expected {SCHEMA!r}, so remove its folder and train "
            "anew"
        )
    best = content["best"]
    return Checkpoint(
        inputs=json.loads(content["inputs"]),
        updates=content["updates"],
        steps=content["steps"],
        gradient_updates=content["gradient_updates"],
        network=content["network"],
        optimizer=content["optimizer"],
        rewards=RewardMap(**content["rewards"]),
        base=Score(**content["base"]),
        best=None
        if best is None
        else Candidate(best["step"], Score(**best["score"]), best["network"]),
    )


def check_same_run(path: Path, found: Section, wanted: Section) -> None:
    """Refuse to go on with other settings than those the checkpoint was made with.

    The number of steps may grow or shrink.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    before, now = _flat(found), _flat(wanted)
    for key in sorted(before.keys() | now.keys()):
        if key != "config.ppo.steps" and before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} was written with {key} = {before.get(key)!r}, this run has "
                f"{now.get(key)!r}; resume with the same settings, or train anew in another place"
            )


def _flat(section: object, path: str = "") -> dict[str, object]:
    if not isinstance(section, Mapping):
        return {path: section}
    flat: dict[str, object] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{path}.{key}" if path else str(key))
    return flat
