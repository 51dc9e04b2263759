"""Where episodes come from: the trace in two parts, and environments over each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from envs.config import EnvConfig
from envs.reward import RewardScale
from envs.vector_env import VectorServingEnv
from policies.codec import Codec
from policies.rule import Rule
from tuner.core.decision import Guardrails
from tuner.core.errors import TraceError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.train.config import TrainConfig

DAY_S = 86_400.0
ENOUGH_DAYS = 4
"""Days from which on the end of a trace is like the rest; a part of one day is another time of it,
and the best network there is the best at that hour."""
HELD_OUT = 0.25
"""Share of such a trace that is held out."""
LEAST_TICKS = 20
"""Shortest part of a trace, in ticks, that an episode can be made of."""


@dataclass(frozen=True)
class Scenarios:
    """Episodes of one purpose: a part of the load, and all that it is served with."""

    trace: Trace
    profile: ServingProfile
    codec: Codec
    guardrails: Guardrails
    fallback: Rule
    config: EnvConfig
    scale: RewardScale
    threads: int = 1

    def env(self, n: int) -> VectorServingEnv:
        """n targets, each in episodes of its own."""
        return VectorServingEnv(
            self.trace,
            self.profile,
            self.codec,
            n_envs=n,
            guardrails=self.guardrails,
            fallback=self.fallback,
            config=self.config,
            scale=self.scale,
            threads=self.threads,
        )

    def on(self, trace: Trace) -> Scenarios:
        """The same on another part; episodes are no longer than it is.

        Raises:
            TraceError: it is too short to make episodes of.
        """
        ticks = episode_ticks(trace, self.config)
        return replace(self, trace=trace, config=replace(self.config, episode_ticks=ticks))


def episode_ticks(trace: Trace, config: EnvConfig) -> int:
    """Ticks of an episode on this load: as configured, at most what it holds.

    Raises:
        TraceError: it holds fewer than LEAST_TICKS.
    """
    span_s = trace.last_arrival_s - float(trace.arrival_s[0])
    ticks = int(span_s / config.tick_s) - 1
    if ticks < LEAST_TICKS:
        raise TraceError(
            f"{trace.name} spans {span_s:.0f} s; expected at least "
            f"{(LEAST_TICKS + 1) * config.tick_s:.0f} s to make episodes of"
        )
    return min(ticks, config.episode_ticks)


def parts(trace: Trace, config: TrainConfig) -> tuple[Trace, Trace]:
    """What is trained on, and what is validated on; the whole twice where nothing is held out.

    Raises:
        TraceError: a part is too short to make episodes of.
    """
    share = config.validation.share
    if share is None:
        span_s = trace.last_arrival_s - float(trace.arrival_s[0])
        share = HELD_OUT if span_s >= ENOUGH_DAYS * DAY_S else 0.0
    learn, hold_out = split(trace, share)
    for part in (learn, hold_out):
        ticks = episode_ticks(part, config.env)
        if ticks < config.warm_up_ticks + LEAST_TICKS:
            raise TraceError(
                f"{part.name} gives episodes of {ticks} ticks; expected at least "
                f"{config.warm_up_ticks + LEAST_TICKS}, warm_up_ticks and {LEAST_TICKS} more"
            )
    return learn, hold_out


def split(trace: Trace, share: float) -> tuple[Trace, Trace]:
    """The trace up to its last `share`, and the rest; the whole twice where share is 0.

    Cut in time and not at random: neighbouring minutes know each other's load.

    Raises:
        TraceError: one of the parts would hold no request.
    """
    if share == 0:
        return trace, trace
    first_s = float(trace.arrival_s[0])
    cut_s = first_s + (trace.last_arrival_s - first_s) * (1 - share)
    row = int(np.searchsorted(trace.arrival_s, cut_s))
    # With the clock they had: the time of day stays right.
    return (
        replace(trace, name=f"{trace.name} (training part)").take(slice(0, row)),
        replace(trace, name=f"{trace.name} (validation part)").take(slice(row, None)),
    )


def reward_scale(trace: Trace, config: EnvConfig) -> RewardScale:
    """What rewards are relative to: the mean tick of the training load."""
    span_s = max(trace.last_arrival_s - float(trace.arrival_s[0]), config.tick_s)
    return RewardScale(
        requests_per_tick=len(trace) / span_s * config.tick_s,
        reference_replicas=config.reference_replicas,
        tick_s=config.tick_s,
    )
