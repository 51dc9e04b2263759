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
        """The same on another part; episodes are no longer than it is."""
        span_s = trace.last_arrival_s - float(trace.arrival_s[0])
        ticks = int(span_s / self.config.tick_s) - 1
        if ticks < LEAST_TICKS:
            raise TraceError(
                f"{trace.name} spans {span_s:.0f} s; expected at least "
                f"{(LEAST_TICKS + 1) * self.config.tick_s:.0f} s to make episodes of"
            )
        ticks = min(ticks, self.config.episode_ticks)
        return replace(self, trace=trace, config=replace(self.config, episode_ticks=ticks))


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
    return _rows(trace, slice(0, row), "training part"), _rows(
        trace, slice(row, None), "validation part"
    )


def _rows(trace: Trace, rows: slice, part: str) -> Trace:
    """Some requests of a trace, with the clock they had: the time of day stays right."""
    hits, clients = trace.prefix_hit_tokens, trace.client_id
    return replace(
        trace,
        name=f"{trace.name} ({part})",
        arrival_s=trace.arrival_s[rows],
        prompt_tokens=trace.prompt_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        prefix_hit_tokens=None if hits is None else hits[rows],
        client_id=None if clients is None else clients[rows],
    )


def reward_scale(trace: Trace, config: EnvConfig) -> RewardScale:
    """What rewards are relative to: the mean tick of the training load."""
    span_s = max(trace.last_arrival_s - float(trace.arrival_s[0]), config.tick_s)
    return RewardScale(
        requests_per_tick=len(trace) / span_s * config.tick_s,
        reference_replicas=config.reference_replicas,
        tick_s=config.tick_s,
    )
