"""The estimate of what a tick brought, and `ServingEnv` around a live target over real sockets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import numpy as np
import pytest

from envs.serving_env import FollowAction, ServingEnv
from policies.codec import Codec
from tests.envs import worlds
from tests.live.contract_engine import ContractEngine
from tests.live.fake_engine import FakeEngine
from tests.live.stand_ins import Collector, MemoryPool, member
from tuner.control.loop import ticks
from tuner.control.replay import RecordedCluster
from tuner.control.scored import Scored, outcome_of, share_above
from tuner.core.audit import MemoryAudit
from tuner.core.clock import Clock, VirtualClock
from tuner.core.decision import Decision, Proposal
from tuner.core.history import History
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.core.protocols import Cluster
from tuner.core.slo import Slo
from tuner.guardrails import default_guardrails
from tuner.live.cluster import LiveCluster
from tuner.live.metrics.measured import Measured

SLO = Slo(ttft_s=2.0, tpot_s=0.1)
TICK_S = worlds.TICK_S


def observation(at_s: float = 60.0, **fields: float) -> Observation:
    return Observation(
        at_s=at_s, window_s=60.0, age_s=1.0, settings=KnobSettings(replicas=1), **fields
    )


@pytest.mark.parametrize(
    ("percentiles", "expected"),
    [
        (((0.5, 0.1), (0.99, 1.9)), 0.0),
        (((0.5, 1.0), (0.99, 3.0)), 1 - (0.5 + 0.49 / 2)),
        (((0.5, 4.0), (0.99, 8.0)), 1 - 0.25),
        (((0.5, 4.0), (0.99, None)), 1 - 0.25),
        (((0.5, None), (0.99, None)), math.nan),
    ],
    ids=[
        "p99 within",
        "between p50 and p99",
        "below p50",
        "one percentile only",
        "not measured",
    ],
)
def test_share_above_an_objective_is_linear_between_percentiles(percentiles, expected):
    assert share_above(percentiles, 2.0) == pytest.approx(expected, nan_ok=True)


def test_an_outcome_counts_what_arrived_ended_and_was_held():
    before = observation(60.0, in_flight=4.0)
    now = observation(
        75.0,
        qps=2.0,
        in_flight=9.0,
        error_rate=0.2,
        ttft_p50_s=1.0,
        ttft_p99_s=3.0,
        tpot_p50_s=0.01,
        tpot_p99_s=0.02,
        status_replicas=3.0,
        draining_replicas=1.0,
    )
    outcome = outcome_of(now, before, SLO)
    # 30 arrived, 5 more are inside, so 25 ended: 5 failed, 20 finished, 25.5 % of them late.
    late = 20 * (1 - (0.5 + 0.49 / 2))
    found = {name: float(column[0]) for name, column in vars(outcome).items()}
    assert found == pytest.approx(
        {
            "arrivals": 30.0,
            "finished": 20.0,
            "met": 20.0 - late,
            "missed": 5.0 + late,
            "replica_s": 60.0,
            "business": math.nan,
        },
        nan_ok=True,
    )


def test_the_shares_that_missed_either_objective_are_added_and_never_exceed_all():
    slow = observation(
        qps=1.0,
        in_flight=0.0,
        ttft_p50_s=4.0,
        ttft_p99_s=8.0,
        tpot_p50_s=0.4,
        tpot_p99_s=0.8,
        status_replicas=1.0,
    )
    outcome = outcome_of(slow, None, SLO)
    assert (outcome.met[0], outcome.missed[0]) == (0.0, 60.0)


def test_a_quiet_target_misses_nothing_although_it_has_no_latency():
    outcome = outcome_of(observation(qps=0.0, in_flight=0.0), observation(0.0, in_flight=0.0), SLO)
    assert (outcome.met[0], outcome.missed[0]) == (0.0, 0.0)


@pytest.mark.parametrize("missing", ["qps", "in_flight", "ttft_p50_s", "status_replicas"])
def test_what_was_not_measured_is_not_a_number(missing):
    fields = {
        "qps": 1.0,
        "in_flight": 1.0,
        "ttft_p50_s": 1.0,
        "tpot_p50_s": 0.1,
        "status_replicas": 1.0,
        "draining_replicas": 0.0,
    }
    del fields[missing]
    outcome = outcome_of(observation(75.0, **fields), observation(60.0, in_flight=1.0), SLO)
    touched = "replica_s" if missing == "status_replicas" else "missed"
    assert math.isnan(getattr(outcome, touched)[0])


# Live, over sockets


class Swinging(Collector):
    """Load that swings with time, so that the rule has something to decide."""

    def collect(self, members, *, at_s):
        wave = 1.0 + np.sin(at_s / 40.0)
        return Measured(
            {
                "qps": 4.0 * wave,
                "output_tokens_per_s": 600.0 * wave,
                "prompt_tokens_per_s": 100.0 * wave,
                "in_flight": 3.0 * wave,
                "running": 3.0 * wave,
                "queue_depth": 0.0,
                "ttft_p50_s": 0.1,
                "ttft_p99_s": 0.5,
                "tpot_p50_s": 0.01,
                "tpot_p99_s": 0.02,
            },
            age_s=1.0,
        )


class Recorder:
    """Keeps what a cluster shows."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.seen: list[Observation] = []
        self.apply = cluster.apply

    def observe(self) -> Observation:
        self.seen.append(self._cluster.observe())
        return self.seen[-1]


class Script:
    """A policy that follows a list of actions."""

    name = "script"

    def __init__(self, codec: Codec, actions: np.ndarray) -> None:
        self._codec = codec
        self._actions = iter(actions)

    def propose(self, history: History) -> Proposal:
        return FollowAction(self._codec, next(self._actions)).propose(history)


@pytest.fixture
def codec() -> Codec:
    return worlds.codec(worlds.knobs(), move=("replicas", "batch_size"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def live(stack: ExitStack, codec: Codec) -> tuple[LiveCluster, Clock]:
    engines = [stack.enter_context(FakeEngine()) for _ in range(2)]
    pool = MemoryPool({f"r{i}": member(f"r{i}", engine) for i, engine in enumerate(engines)}, 2)
    adapter = ContractEngine()
    stack.callback(adapter.http.close)
    clock = VirtualClock(1000.0)
    cluster = LiveCluster(
        pool,
        adapter,
        Swinging(),
        codec.knobs,
        clock,
        move=("replicas", "batch_size"),
        ttl_s=180.0,
        concurrency=2,
    )
    stack.callback(cluster.close)
    return cluster, clock


def by_loop(cluster: Cluster, clock: Clock, codec: Codec, actions: np.ndarray) -> list[Decision]:
    audit = MemoryAudit()
    loop = ticks(
        cluster,
        clock,
        History(codec.knobs),
        Script(codec, actions),
        default_guardrails(),
        worlds.hpa(codec.knobs),
        audit,
        "active",
        every_s=TICK_S,
    )
    list(islice(loop, len(actions)))
    return audit.decisions


def test_the_environment_around_a_live_target_decides_as_the_loop_does(stack, codec):
    actions = np.random.default_rng(5).uniform(-1, 1, (12, 4)).astype(np.float32)
    recorders: list[Recorder] = []

    def start(_: object) -> tuple[Scored, Clock]:
        cluster, clock = live(stack, codec)
        recorders.append(Recorder(cluster))
        return Scored(recorders[-1], SLO), clock

    env = ServingEnv(
        start,
        codec,
        guardrails=default_guardrails(),
        fallback=worlds.hpa(codec.knobs),
        config=worlds.config(episode_ticks=len(actions)),
        scale=worlds.SCALE,
    )
    env.reset(seed=0)
    decisions, gains = [], []
    for action in actions:
        _, gained, _, truncated, info = env.step(action)
        assert env.last_decision is not None
        decisions.append(env.last_decision)
        gains.append(gained)
        assert info["arrivals"] > 0
    assert truncated
    assert np.isfinite(gains).all()

    cluster, clock = live(stack, codec)
    in_a_loop = by_loop(cluster, clock, codec, actions)
    recorded = RecordedCluster(recorders[0].seen)
    in_a_replay = by_loop(recorded, VirtualClock(1000.0), codec, actions)
    assert [str(d) for d in decisions] == [str(d) for d in in_a_loop]
    assert [str(d) for d in decisions] == [str(d) for d in in_a_replay]
    moved = {knob for decision in decisions for knob in decision.changes}
    assert moved == {"replicas", "batch_size"}
