"""What is drawn at the start of an episode, as a function of its seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.config import EnvConfig
from envs.draws import child_seeds, uniform
from tuner.core.protocols import FloatArray
from tuner.core.trace import Trace

# Places of an episode's draws under its seed.
_START, _KEEP, _REPLICAS, _FLEET = range(4)


@dataclass(frozen=True)
class EpisodeDraws:
    """The starts of k episodes, as columns."""

    start_s: FloatArray
    """`(k,)` place in the trace, s."""
    keep: FloatArray
    """`(k,)` share (0-1] of the trace's requests."""
    replicas: FloatArray
    """`(k,)` ready replicas, whole numbers."""
    seeds: NDArray[np.uint64]
    """`(k,)` of everything random inside the episode."""

    @classmethod
    def of(cls, config: EnvConfig, trace: Trace, seeds: NDArray[np.uint64]) -> EpisodeDraws:
        """Draw the starts; an episode longer than the trace begins at its start.

        Episodes begin where the load does: a part of a longer trace keeps that trace's clock.
        """
        span_s = config.tick_s * (config.episode_ticks + 1)
        first_s = np.floor(trace.arrival_s[0] / config.tick_s) * config.tick_s
        latest_s = max(first_s, trace.last_arrival_s - span_s)
        low, high = config.start_replicas
        keep_low, keep_high = config.keep
        return cls(
            start_s=first_s + uniform(seeds, _START) * (latest_s - first_s),
            keep=keep_low + uniform(seeds, _KEEP) * (keep_high - keep_low),
            replicas=low + np.floor(uniform(seeds, _REPLICAS) * (high - low + 1)),
            seeds=child_seeds(seeds, _FLEET),
        )


def episode_seeds(
    seed: int, rows: NDArray[np.intp], episodes: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """`(k,)` seeds that depend on (seed, environment, episode) only."""
    roots = child_seeds(np.full(len(rows), seed, dtype=np.uint64), rows.astype(np.int64))
    return child_seeds(roots, episodes)
