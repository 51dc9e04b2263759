"""One serving target as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import Env
from numpy.typing import NDArray

from envs.config import EnvConfig
from envs.reward import Outcome, RewardScale, reward
from envs.spaces import action_space, observation_space
from policies.codec import Codec
from tuner.core.clock import Clock
from tuner.core.decision import Decision, Guardrails, Proposal, arbitrate, propose
from tuner.core.history import History
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import Cluster, FloatArray, Policy


class ScoredCluster(Cluster, Protocol):
    """A cluster that also tells what its last window brought."""

    @property
    def outcome(self) -> Outcome | None: ...


Start = Callable[[np.random.Generator], tuple[ScoredCluster, Clock]]
"""Begins an episode: a cluster and the clock it lives by, drawn with the episode's generator."""


class ServingEnv(Env[NDArray[np.float32], NDArray[np.float32]]):
    """
    ## Description

    A pool of LLM-serving replicas under changing load. Every `tick_s` seconds the agent sees one
    window of measurements and says how the knobs are to stand. Its wish passes the same guardrails
    as in production: it may be clamped, and where metrics are missing or the wish cannot be read,
    the fallback rule decides instead. New replicas start cold; leaving ones finish their requests.

    The environment wraps any cluster: simulated in virtual time, or live in wall-clock time.

    ## Action Space

    `Box` of one number per knob, float32. A knob that the serving profile does not model, or that
    the codec has no head for, is pinned: its range is 0..0 and it keeps what the base rule wants.

    | Num | Knob | Min | Max |
    |-----|------|-----|-----|
    | 0 | batch_size | -1 | 1 |
    | 1 | replicas | -1 | 1 |
    | 2 | threads | -1 | 1 |
    | 3 | warmup_requests | -1 | 1 |

    What a number means is told in `policies.codec`. By default only replicas have a head: a factor
    on what the base rule says the load needs, 1 at action 0. Raw replica deltas learn to hold
    still, since an answer comes a whole cold start after the action.

    ## Observation Space

    `Box` of the codec's features, float32, each cut to its range; the table with meanings and the
    values of missing fields is in `policies.codec`. What is seen is not the truth: metrics are
    scraped, perhaps late or lost, rates cover a window of several ticks, and percentiles come from
    histogram buckets, all as a live controller has them (`envs.config.ScrapeConfig`).

    ## Rewards

    Per tick, dimensionless:

    `- stability x missed / requests_per_tick - resources x replica_s / (reference_replicas x
    tick_s) + business x signal`

    `missed` counts requests (each once, when it is first known) whose TTFT or TPOT broke its
    objective, or that were rejected or failed; `replica_s` are seconds of replicas held, ready or
    not. The weights are in `envs.reward.RewardWeights`.

    ## Starting State

    A place in the load, the number of ready replicas and the level of load are drawn; see
    `envs.config.EnvConfig`. The first observation follows one tick of load: it has no rates yet,
    which need two scrapes, and the guardrails hold.

    ## Episode End

    Termination: never. Truncation: after `episode_ticks` ticks.

    ## Arguments

    - `start`: begins an episode, see `Start`.
    - `codec`: features and heads.
    - `guardrails`, `fallback`: the very objects of the control loop.
    - `config`: tick, length of an episode, reward weights.
    - `scale`: what the reward is relative to.

    `info` holds what the tick brought (`arrivals`, `finished`, `met`, `missed`, `replica_s`, and
    `business` where there is a signal) and the `decision` in one line; `last_decision` is whole.

    ## Version History

    * v0: first version
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - gymnasium's own form

    def __init__(
        self,
        start: Start,
        codec: Codec,
        *,
        guardrails: Guardrails,
        fallback: Policy,
        config: EnvConfig,
        scale: RewardScale,
        render_mode: str | None = None,
    ) -> None:
        config.validate()
        self.observation_space = observation_space(codec)
        self.action_space = action_space(codec)
        self.render_mode = render_mode
        self._start = start
        self._codec = codec
        self._guardrails = guardrails
        self._fallback = fallback
        self._config = config
        self._scale = scale
        self._cluster: ScoredCluster
        self._clock: Clock
        self._history: History
        self._ticks = 0
        self.last_decision: Decision | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._cluster, self._clock = self._start(self.np_random)
        self._history = History(self._codec.knobs).observed(self._cluster.observe())
        self._ticks = 0
        self.last_decision = None
        return self._features(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        proposal = propose(FollowAction(self._codec, action), self._history)
        decision = arbitrate(proposal, self._history, self._guardrails, self._fallback)
        self._cluster.apply(decision)
        self.last_decision = decision
        self._clock.sleep_until(self._history.now.at_s + self._config.tick_s)
        observation = self._cluster.observe()
        self._history = self._history.decided(decision).observed(observation)
        self._ticks += 1
        outcome = self._cluster.outcome
        if outcome is None:
            raise RuntimeError("the cluster was observed and tells no outcome")
        gained = float(reward(outcome, self._config.weights, self._scale)[0])
        truncated = self._ticks >= self._config.episode_ticks
        return self._features(), gained, False, truncated, _info(outcome, decision)

    def render(self) -> str | None:
        """The last decision in one line."""
        if self.render_mode != "ansi":
            return None
        if self.last_decision is None:
            return "no decision yet"
        return f"{self.last_decision.at_s:10.0f} s  {self.last_decision.sentence()}"

    def _features(self) -> NDArray[np.float32]:
        now = ObservationArrays.of(self._codec.knobs, self._history.now)
        features: NDArray[np.float32] = self._codec.observe(
            now, memory_of(self._codec, self._history)
        ).features[0]
        return features


def _info(outcome: Outcome, decision: Decision) -> dict[str, Any]:
    numbers = {name: float(column[0]) for name, column in vars(outcome).items()}
    measured = {name: value for name, value in numbers.items() if not np.isnan(value)}
    return {**measured, "decision": decision.sentence()}


@dataclass(frozen=True)
class FollowAction:
    """A policy that does what an agent outside says: one action, for one tick."""

    codec: Codec
    action: NDArray[np.floating[Any]]
    name: str = "agent"

    def propose(self, history: History) -> Proposal:
        knobs = history.knobs
        if not np.isfinite(self.action).all():
            return Proposal({name: float("nan") for name in knobs.names})
        now = ObservationArrays.of(knobs, history.now)
        seen = self.codec.observe(now, memory_of(self.codec, history))
        settings, memory = self.codec.act(np.asarray(self.action)[None, :], now, seen)
        wanted = {
            name: float(value)
            for name, value in zip(knobs.names, settings[0], strict=True)
            if not np.isnan(value)
        }
        raw = float(seen.base.raw[0])
        return Proposal(
            settings=wanted,
            memory=tuple(float(value) for value in memory[0]),
            raw=None if np.isnan(raw) else raw,
        )


def memory_of(codec: Codec, history: History) -> FloatArray:
    """`(1, memory_size)` the policy's memory, empty at the first tick."""
    return np.array([history.memory]) if history.memory else codec.empty_memory(1)
