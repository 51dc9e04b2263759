"""Dynamo's easy mode as a table.

What ai-dynamo 1.6.1 answers, dynamo/planner/core/load_scaling.py and budget.py (Python wheel), and
what a naive version would.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies import build_policy
from policies.rule import empty_memory, propose_one
from tests.envs.simulator import small
from tests.policies.test_hpa import NOW_S, observation
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.knobs import KnobSpace
from tuner.core.observation import (
    Observation,
    ObservationArrays,
    ReplicaObservation,
    ReplicaState,
)
from tuner.core.profile import EngineLimits, KvCache, ServingProfile
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 100))
PROFILE = replace(
    small.PROFILE, kv=KvCache(block_tokens=1, blocks=100_000), limits=EngineLimits(256, 16_384)
)
"""A cache of 100,000 tokens, one GPU."""
READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING


def worker(
    kv: float | None = 0.0,
    queued: float | None = 0.0,
    *,
    running: float = 100.0,
    state: ReplicaState = READY,
) -> ReplicaObservation:
    """A replica with so many tokens in its cache and so many prompt tokens in front of it."""
    sample = {"running": running, "queue_depth": 0.0} if state is READY else {}
    return ReplicaObservation(
        "r", state, 900.0, **sample, kv_tokens=kv, queued_prompt_tokens=queued
    )


def fleet(*workers: ReplicaObservation, n: int | None = None, **fields: object) -> Observation:
    """These replicas, all of them wanted unless `n` says otherwise."""
    count = {state: sum(each.state is state for each in workers) for state in ReplicaState}
    seen = {
        "ready_replicas": float(count[READY]),
        "starting_replicas": float(count[STARTING]),
        "draining_replicas": float(count[DRAINING]),
    }
    wanted = count[READY] + count[STARTING] if n is None else n
    return observation(wanted, replicas=workers, **{**seen, **fields})


def caches(*used: float) -> Observation:
    return fleet(*(worker(100_000 * u) for u in used))


def queues(*tokens: float) -> Observation:
    return fleet(*(worker(queued=each) for each in tokens))


def asked(
    policy: str,
    now: Observation,
    options: dict[str, float | int | str],
    profile: ServingProfile = PROFILE,
    knobs: KnobSpace = KNOBS,
) -> int | None:
    """Replicas that the policy wants; None where it makes no decision."""
    rule = build_policy(policy, options, knobs, tick_s=5.0, profile=profile)
    wanted = propose_one(rule.rule, History(knobs).observed(now)).settings.get("replicas")
    return None if wanted is None else int(wanted)


THROUGHPUT: dict[str, float | int | str] = {}
LATENCY: dict[str, float | int | str] = {"optimization_target": "latency"}
LOAD: dict[str, float | int | str] = {"optimization_target": "load", "up": 0.8, "down": 0.3}
PREFILL: dict[str, float | int | str] = {"pool": "prefill", "context_tokens": 32_768}
BUDGET = {"max_gpu_budget": 8}
FULL = [worker(105_000)]

ROWS = {
    # id: (options, observation, GPUs of a replica, replicas)
    "1 any replica above its cache": (THROUGHPUT, caches(1.05, 0.40, 0.30), 1, 4),
    "2 all below, and the survivors too": (THROUGHPUT, caches(0.50, 0.55, 0.40), 1, 2),
    # Without the check of 1.6.1: 1, and back to 2 at once.
    "3 the survivor would call for one up": (THROUGHPUT, caches(0.55, 0.50), 1, 2),
    "4 exactly full is not above": (THROUGHPUT, caches(1.0, 0.9), 1, 2),
    "4 exactly at the lower threshold is not below": (THROUGHPUT, caches(0.6, 0.5, 0.5), 1, 3),
    "5 latency, up": (LATENCY, caches(0.41, 0.20, 0.20, 0.20), 1, 5),
    "5 latency, down": (LATENCY, caches(0.05, 0.05, 0.05, 0.05), 1, 3),
    "5 latency, down to one": (LATENCY, caches(0.09, 0.09), 1, 1),
    "6 queued prompts count with the cache": (
        THROUGHPUT,
        fleet(worker(60_000, 10_000 + 35_000), worker(50_000)),
        1,
        3,
    ),
    "6 a decode pool has no queued prompts": (
        {"pool": "decode"},
        fleet(worker(60_000, 10_000), worker(50_000)),
        1,
        2,
    ),
    "7 a prefill queue of a whole context": (PREFILL, queues(32_768, 0), 1, 3),
    "7 one token less": (PREFILL, queues(32_767, 0), 1, 2),
    "7 both below a tenth": (PREFILL, queues(3000, 3000), 1, 1),
    "8 latency: all queues empty": ({**PREFILL, **LATENCY}, queues(0, 0), 1, 1),
    "8 latency: one token": ({**PREFILL, **LATENCY}, queues(1, 0), 1, 2),
    "8 latency: a tenth of a context": ({**PREFILL, **LATENCY}, queues(3277, 0), 1, 3),
    "9 the budget is full": (BUDGET, fleet(*FULL * 8), 1, 8),
    "9 one replica fills the budget": (BUDGET, fleet(*FULL), 8, 1),
    "9 two of four GPUs fit": (BUDGET, fleet(*FULL), 4, 2),
    "10 a fleet beyond the budget is cut under load": (BUDGET, fleet(*FULL * 2), 8, 1),
    "load: at the upper threshold is above": (LOAD, caches(0.8, 0.1), 1, 3),
    "load: at the lower threshold is below": (LOAD, caches(0.3, 0.3, 0.3), 1, 2),
    "load: between": (LOAD, caches(0.31, 0.3, 0.3), 1, 3),
    "load: tokens in front of a prefill pool": (
        {**LOAD, "pool": "prefill", "up": 5000, "down": 100},
        queues(5000, 0),
        1,
        3,
    ),
    "never below min_endpoint": ({"min_endpoint": 2}, caches(0.1, 0.1), 1, 2),
}


@pytest.mark.parametrize(("options", "now", "gpus", "replicas"), ROWS.values(), ids=ROWS)
def test_decides_as_the_planner(options, now, gpus, replicas):
    profile = replace(PROFILE, gpus_per_replica=gpus)
    assert asked("dynamo-easy", now, options, profile) == replicas


EARLY = worker(None, None, state=STARTING)
LEAVING = worker(None, None, state=DRAINING)
HOLDS = {
    # id: (observation, replicas, or None for no decision)
    "no more while one starts": (fleet(worker(105_000), EARLY), 2),
    "a start is cancelled when all are idle": (fleet(worker(10_000), worker(0.0), EARLY), 1),
    "a start is cancelled where the check keeps the rest": (
        fleet(worker(55_000), worker(50_000), EARLY),
        2,
    ),
    "between the thresholds a start goes on": (fleet(worker(70_000), EARLY), 2),
    "none while one drains": (fleet(worker(105_000), worker(105_000), LEAVING), 2),
    "none while replicas are missing": (fleet(worker(105_000), n=3), 3),
    "none while one is silent": (fleet(worker(105_000), worker(None)), None),
    "none while all are silent": (fleet(worker(None)), None),
    "none without a ready replica": (fleet(EARLY), None),
    "none where the ready ones are not known": (fleet(*FULL, ready_replicas=None), None),
    "none when scaled to 0 by hand": (fleet(n=0), None),
    "a draining count that no one gives": (fleet(*FULL, draining_replicas=None), 2),
    "the lower bound of the knob comes first": (fleet(worker(50_000), n=200), 100),
}


@pytest.mark.parametrize(("now", "replicas"), HOLDS.values(), ids=HOLDS)
def test_holds_as_the_planner(now, replicas):
    assert asked("dynamo-easy", now, THROUGHPUT) == replicas


def test_what_a_replica_does_not_report_is_worked_out():
    sample = ReplicaObservation("r", READY, 900.0, running=9.0, queue_depth=4.0, kv_cache_usage=0.5)
    rates = {"qps": 2.0, "prompt_tokens_per_s": 26_000.0, "output_tokens_per_s": 1.0}
    # 50,000 tokens in the cache and four prompts of 13,000 in front of it.
    assert asked("dynamo-easy", fleet(sample, **rates), THROUGHPUT) == 2
    assert asked("dynamo-easy", fleet(replace(sample, queue_depth=3.0), **rates), THROUGHPUT) == 1
    # Nothing known of prompts: nothing known of the queue, unless it is empty.
    assert asked("dynamo-easy", fleet(sample), THROUGHPUT) is None
    assert asked("dynamo-easy", fleet(replace(sample, queue_depth=0.0)), THROUGHPUT) == 1


def test_the_mean_prompt_is_that_of_requests_that_were_let_in():
    rule = build_policy("dynamo-easy", {}, KNOBS, tick_s=5.0, profile=PROFILE)
    history = History(KNOBS)
    # 2 requests/s arrive and 1 of 1,000 prompt tokens is let in: 55 wait at last.
    for tick in range(12):
        sample = ReplicaObservation(
            "r", READY, 900.0, running=9.0, queue_depth=5.0 * tick, kv_cache_usage=0.5
        )
        rates = {"qps": 2.0, "prompt_tokens_per_s": 1000.0, "output_tokens_per_s": 1.0}
        now = fleet(sample, **rates, queue_depth=5.0 * tick)
        proposal = rule.propose(history.observed(replace(now, at_s=NOW_S + 5.0 * tick)))
        history = replace(history, memory=proposal.memory)
        if tick == 9:
            assert proposal.settings["replicas"] == 1
    assert proposal.settings["replicas"] == 2


def test_sheds_four_to_one_within_fifteen_seconds():
    rule = build_policy("dynamo-easy", {}, KNOBS, tick_s=5.0, profile=PROFILE)
    n, seen = 4, []
    history = History(KNOBS)
    for tick in range(4):
        now = replace(caches(*[0.0] * n), at_s=NOW_S + 5.0 * tick)
        proposal = rule.propose(history.observed(now))
        history = replace(history, memory=proposal.memory)
        n = int(proposal.settings["replicas"])
        seen.append(n)
    assert seen == [3, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimization_target": "load"}, "set up, in shares of the cache"),
        ({"optimization_target": "load", "up": 0.5}, "set down"),
        ({"optimization_target": "lod"}, "expected one of throughput, latency, load"),
        ({"up": 0}, "up is 0"),
        ({"pool": "prefill", "context_tokens": 0}, "context_tokens is 0"),
        ({"context_tokens": 8}, "unknown option 'context_tokens'"),
        ({"min_endpoint": 0}, r"min_endpoint 0 is outside 1\.\.100"),
        ({"max_gpu_budget": 7}, "max_gpu_budget 7 is less than the 8 GPUs of 1 replica"),
    ],
)
def test_refuses_what_does_not_fit(options, words):
    profile = replace(PROFILE, gpus_per_replica=8)
    with pytest.raises(ConfigError, match=words):
        build_policy("dynamo-easy", options, KNOBS, tick_s=5.0, profile=profile)


def test_refuses_to_go_without_a_profile():
    with pytest.raises(ConfigError, match="dynamo-easy: it needs to know how fast"):
        build_policy("dynamo-easy", {}, KNOBS, tick_s=5.0)


WORDS = {
    # sentence: (options, observation)
    "the fullest of 2 replicas has 105 % of its cache to hold, above 100 %: 3": (
        THROUGHPUT,
        caches(1.05, 0.4),
    ),
    "the fullest of 2 replicas has 80 % of its cache to hold, between 60 % and 100 %: 2": (
        THROUGHPUT,
        caches(0.8, 0.4),
    ),
    "the replica has 50 % of its cache to hold, below 60 %: 1": (THROUGHPUT, caches(0.5)),
    "the fullest of 2 replicas has 55 % of its cache to hold, below 60 %, but with one fewer "
    "110 %: 2": (THROUGHPUT, caches(0.55, 0.5)),
    "the replica has 80 % of its cache to hold, at or above 80 %: 2": (LOAD, caches(0.8)),
    "the fullest of 2 replicas has 32,768 prompt tokens queued, at or above 32,768: 3": (
        PREFILL,
        queues(32_768, 0),
    ),
    "the replica has 105 % of its cache to hold, above 100 %, 1 still starts: 2": (
        THROUGHPUT,
        fleet(*FULL, EARLY),
    ),
    "the fullest of 2 replicas has 10 % of its cache to hold, below 60 %, what starts is "
    "cancelled: 1": (THROUGHPUT, fleet(worker(10_000), worker(), EARLY)),
    "the fullest of 8 replicas has 105 % of its cache to hold, above 100 %, at most 8 allowed": (
        BUDGET,
        fleet(*FULL * 8),
    ),
    "2 of 3 replicas serve, no decision until all do: 3": (THROUGHPUT, fleet(*FULL * 2, n=3)),
    "1 replica drains, no decision until then: 2": (THROUGHPUT, fleet(*FULL * 2, LEAVING)),
    "1 of 2 ready replicas report: no decision": (THROUGHPUT, fleet(*FULL, worker(None))),
    "no replica is ready": (THROUGHPUT, fleet(EARLY)),
    "the ready replicas are not known": (THROUGHPUT, fleet(*FULL, ready_replicas=None)),
    "scaled to 0 by hand, which it leaves": (THROUGHPUT, fleet(n=0)),
}


@pytest.mark.parametrize("words", WORDS)
def test_says_why(words):
    options, now = WORDS[words]
    policy = build_policy("dynamo-easy", options, KNOBS, tick_s=5.0, profile=PROFILE)
    assert policy.propose(History(KNOBS).observed(now)).why == words


def test_the_count_that_the_load_asks_for_is_told():
    rule = build_policy("dynamo-easy", {}, KNOBS, tick_s=5.0, profile=PROFILE).rule
    result = rule.decide(ObservationArrays.of(KNOBS, caches(0.9, 0.3)), empty_memory(rule, 1))
    assert result.need == pytest.approx(1.8)
    assert result.raw == 2
