"""What is drawn at the start of an episode, as a function of its seed alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs.config import EnvConfig
from envs.draws import child_seeds, normal, uniform
from envs.randomise import RandomiseConfig
from envs.simulator.fleet import EnvFactors
from tuner.core.protocols import FloatArray
from tuner.core.trace import Trace

# Places of an episode's draws under its seed.
_START, _KEEP, _REPLICAS, _FLEET, _WORLD = range(5)
# Places of what sets its world apart, under a seed of their own: one more changes no other draw.
_STEP_TIME, _PREFILL, _KV, _COLD_START, _OUTPUT, _HITS, _LAG, _LOSS = range(8)


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
    factors: EnvFactors
    """What sets their worlds apart; ones without randomisation."""
    scrape_lag_s: FloatArray
    """`(k,)` seconds that metrics come late."""
    scrape_loss: FloatArray
    """`(k,)` chance (0-1) that metrics are lost."""

    @classmethod
    def of(cls, config: EnvConfig, trace: Trace, seeds: NDArray[np.uint64]) -> EpisodeDraws:
        """Draw the starts; an episode longer than the trace begins at its start.

        Episodes begin where the load does: a part of a longer trace keeps that trace's clock.
        """
        span_s = config.tick_s * (config.episode_ticks + 1)
        first_s = np.floor(trace.arrival_s[0] / config.tick_s) * config.tick_s
        latest_s = max(first_s, trace.last_arrival_s - span_s)
        low, high = config.start_replicas
        worlds = child_seeds(seeds, _WORLD)
        widths = config.randomise
        drawn = widths.enabled
        return cls(
            start_s=first_s + uniform(seeds, _START) * (latest_s - first_s),
            keep=_even(seeds, _KEEP, config.keep),
            replicas=low + np.floor(uniform(seeds, _REPLICAS) * (high - low + 1)),
            seeds=child_seeds(seeds, _FLEET),
            factors=_factors(widths, worlds) if drawn else EnvFactors.none(len(seeds)),
            scrape_lag_s=_even(
                worlds, _LAG, widths.scrape_lag_s if drawn else (config.scrape.lag_s,) * 2
            ),
            scrape_loss=_even(
                worlds, _LOSS, widths.scrape_loss if drawn else (config.scrape.loss,) * 2
            ),
        )


def _factors(widths: RandomiseConfig, seeds: NDArray[np.uint64]) -> EnvFactors:
    """Worlds around profile and trace."""
    return replace(
        EnvFactors.none(len(seeds)),
        step_time=np.exp(widths.step_time * normal(seeds, _STEP_TIME)),
        prefill=np.exp(widths.prefill * normal(seeds, _PREFILL)),
        kv=np.exp(widths.kv * normal(seeds, _KV)),
        cold_start=np.exp(_even(seeds, _COLD_START, np.log(widths.cold_start))),
        output_tokens=_even(seeds, _OUTPUT, widths.output_tokens),
        prefix_hits=_even(seeds, _HITS, widths.prefix_hits),
    )


def _even(
    seeds: NDArray[np.uint64], place: int, ends: tuple[float, float] | FloatArray
) -> FloatArray:
    """`(k,)` numbers between two ends, all equally likely."""
    low, high = ends
    return np.asarray(low + uniform(seeds, place) * (high - low))


def episode_seeds(
    seed: int, rows: NDArray[np.intp], episodes: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """`(k,)` seeds that depend on (seed, environment, episode) only."""
    roots = child_seeds(np.full(len(rows), seed, dtype=np.uint64), rows.astype(np.int64))
    return child_seeds(roots, episodes)
