"""What is trained is what acts: loop, single and vector environment decide alike, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pytest

from envs.config import EnvConfig, FailureConfig
from envs.episodes import EpisodeDraws, episode_seeds
from envs.randomise import RandomiseConfig
from envs.serving_env import FollowAction, ServingEnv
from envs.simulator.cluster import SimulatedCluster
from envs.vector_env import VectorServingEnv
from policies.codec import Codec
from tests.envs import worlds
from tuner.control.loop import ticks
from tuner.core.audit import MemoryAudit
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Proposal, Reason, verdicts_of
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.guardrails import default_guardrails

MOVE = ("replicas", "batch_size", "warmup_requests")
SEED = 7
TICKS = 60


class Bold(Codec):
    """A codec without manners: it asks for twice what it should, beyond every bound."""

    def act(self, action, now, seen):
        settings, memory = super().act(action, now, seen)
        return 2 * settings, memory


def bold(codec: Codec) -> Codec:
    return Bold(codec.knobs, codec.base, codec.config, codec.pinned)


def actions(n: int, ticks: int, seed: int = 3) -> np.ndarray:
    """`(ticks, n, knobs)`: bold moves, and now and then an answer that is not a number."""
    rng = np.random.default_rng(seed)
    wish = rng.uniform(-1, 1, (ticks, n, 4)).round(3)
    wish[rng.random((ticks, n)) < 0.3] = 1.0
    wish[rng.random((ticks, n)) < 0.05] = np.nan
    return wish


@dataclass
class Script:
    """A policy that follows a list of actions."""

    codec: Codec
    script: np.ndarray
    name: str = "script"
    at: int = field(default=0)

    def propose(self, history: History) -> Proposal:
        action = self.script[self.at]
        self.at += 1
        return FollowAction(self.codec, action).propose(history)


def cluster_of(
    row: int, codec: Codec, config: EnvConfig, episode: int = 0
) -> tuple[SimulatedCluster, VirtualClock]:
    """The cluster that environment `row` of the vector environment simulates."""
    trace = worlds.trace()
    seeds = episode_seeds(SEED, np.array([row]), np.array([episode]))
    draws = EpisodeDraws.of(config, trace, seeds)
    clock = VirtualClock(float(draws.start_s[0]) + config.tick_s)
    cluster = SimulatedCluster(
        trace,
        worlds.PROFILE,
        codec.knobs,
        clock,
        initial=KnobSettings(replicas=int(draws.replicas[0])),
        seed=int(draws.seeds[0]),
        start_s=float(draws.start_s[0]),
        keep=float(draws.keep[0]),
        jitter=config.jitter,
        scrape=replace(
            config.scrape, loss=float(draws.scrape_loss[0]), lag_s=float(draws.scrape_lag_s[0])
        ),
        factors=draws.factors,
        drain_timeout_s=config.drain_timeout_s,
        failures=config.failures,
    )
    return cluster, clock


def by_loop(row: int, codec: Codec, config: EnvConfig, script: np.ndarray) -> list[Decision]:
    cluster, clock = cluster_of(row, codec, config)
    audit = MemoryAudit()
    loop = ticks(
        cluster,
        clock,
        History(codec.knobs),
        Script(codec, script),
        default_guardrails(),
        worlds.hpa(codec.knobs),
        audit,
        "simulate",
        every_s=config.tick_s,
    )
    list(islice(loop, len(script)))
    return audit.decisions


def by_env(row: int, codec: Codec, config: EnvConfig, script: np.ndarray) -> list[Decision]:
    env = ServingEnv(
        lambda _: cluster_of(row, codec, config),
        codec,
        guardrails=default_guardrails(),
        fallback=worlds.hpa(codec.knobs),
        config=config,
        scale=worlds.SCALE,
    )
    env.reset(seed=0)
    decisions = []
    for action in script:
        env.step(action)
        assert env.last_decision is not None
        decisions.append(env.last_decision)
    return decisions


@dataclass(frozen=True)
class Plain:
    """A decision as the vector environment tells it."""

    target: dict[str, int]
    source: int
    verdicts: tuple[object, ...]


def vector_env(n: int, codec: Codec, config: EnvConfig, threads: int = 1) -> VectorServingEnv:
    return VectorServingEnv(
        worlds.trace(),
        worlds.PROFILE,
        codec,
        n_envs=n,
        guardrails=default_guardrails(),
        fallback=worlds.hpa(codec.knobs).rule,
        config=config,
        scale=worlds.SCALE,
        seed=SEED,
        threads=threads,
    )


def by_vector(n: int, codec: Codec, config: EnvConfig, script: np.ndarray) -> list[list[Plain]]:
    env = vector_env(n, codec, config)
    env.reset()
    rows: list[list[Plain]] = [[] for _ in range(n)]
    for action in script:
        env.step(action)
        tick, decided = env.last
        for row in range(n):
            verdicts = verdicts_of(decided, tick, default_guardrails(), row)
            target = codec.knobs.settings(decided.target[row])
            rows[row].append(Plain(dict(target), int(decided.source[row]), verdicts))
    return rows


SOURCE_CODE = {"policy": 0, "fallback": 1, "hold": 2}


@pytest.fixture(scope="module", params=[False, True], ids=["as calibrated", "worlds drawn"])
def setting(request) -> tuple[Codec, EnvConfig, np.ndarray]:
    space = worlds.knobs()
    widths = RandomiseConfig(enabled=request.param, scrape_loss=(0.05, 0.2))
    return (
        bold(worlds.codec(space, move=MOVE)),
        worlds.config(
            episode_ticks=TICKS + 1,
            randomise=widths,
            drain_timeout_s=5.0,
            failures=FailureConfig(crash_per_hour=10.0, slow_replica=0.5),
        ),
        actions(4, TICKS),
    )


def test_loop_and_single_environment_give_equal_decision_lists(setting):
    codec, config, script = setting
    for row in range(4):
        loop, env = (f(row, codec, config, script[:, row]) for f in (by_loop, by_env))
        assert [str(d) for d in loop] == [str(d) for d in env]


def test_loop_and_vector_environment_give_equal_decision_lists(setting):
    codec, config, script = setting
    rows = by_vector(4, codec, config, script)
    for row in range(4):
        loop = by_loop(row, codec, config, script[:, row])
        assert [dict(d.target) for d in loop] == [d.target for d in rows[row]]
        assert [SOURCE_CODE[d.source] for d in loop] == [d.source for d in rows[row]]
        for mine, theirs in zip(loop, rows[row], strict=True):
            assert [(v.reason, v.knob) for v in mine.verdicts] == [
                (v.reason, v.knob) for v in theirs.verdicts
            ]


def test_every_guardrail_acts_in_these_runs(setting):
    codec, config, script = setting
    seen = {
        (verdict.guardrail, verdict.reason)
        for row in range(4)
        for decision in by_loop(row, codec, config, script[:, row])
        for verdict in decision.verdicts
    }
    assert seen >= {
        ("bounds", Reason.OutOfBounds),
        ("max_delta", Reason.StepTooLarge),
        ("stale_metrics", Reason.MetricsMissing),
        ("policy_failure", Reason.ProposalNotFinite),
    }
    assert {name for name, _ in seen} >= {
        g.name for g in (*default_guardrails().trips, *default_guardrails().limits)
    }
