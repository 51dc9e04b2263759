"""Dynamo's planner with objectives as a table.

What ai-dynamo 1.6.1 answers, dynamo/planner/core/load_scaling.py, throughput_scaling.py and
budget.py (Python wheel). The toy replicas: TTFT = 100 ms + queued tokens / 20 per ms; ITL = 10 ms +
40 ms x tokens in the cache / 100,000.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies import build_policy
from policies.rule import RulePolicy
from tests.policies.test_dynamo_easy import EARLY, KNOBS, LEAVING, PROFILE, fleet, worker
from tests.policies.test_hpa import NOW_S
from tuner.core.decision import Proposal
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.observation import Observation
from tuner.core.profile import EngineLimits, ServingProfile, StepTime
from tuner.core.slo import Slo

SLO = Slo(ttft_s=0.5, tpot_s=0.05)
RATES = {"qps": 1.0, "prompt_tokens_per_s": 1.0, "output_tokens_per_s": 1000.0}
"""Prompts of one token: a next request adds nothing to speak of."""


def toy(law: StepTime, batch_size_max: int = 256) -> ServingProfile:
    limits = EngineLimits(batch_size_max, chunk_tokens=32_768)
    return replace(PROFILE, step_time=law, limits=limits)


PREFILL = toy(StepTime(base_s=0.1 - 1 / 20_000, per_prefill_token_s=1 / 20_000))
DECODE = toy(StepTime(base_s=0.01, per_kv_token_s=0.04 / 100_000))


def policy(profile: ServingProfile, **options: float | int | str) -> RulePolicy:
    return build_policy("dynamo-sla", options, KNOBS, tick_s=5.0, profile=profile, slo=SLO)


def proposed(rule: RulePolicy, now: Observation) -> Proposal:
    return rule.propose(History(KNOBS).observed(now))


def queues(*tokens: float) -> Observation:
    return fleet(*(worker(queued=each) for each in tokens), **RATES)


def caches(*tokens: float) -> Observation:
    return fleet(*(worker(each) for each in tokens), **RATES)


LOAD_ROWS = {
    # id: (pool, observation, replicas)
    "1 TTFT above on all": ("prefill", queues(10_400, 9000, 8200), 4),
    "2 not on all": ("prefill", queues(10_400, 9000, 7600), 3),
    "3 half as much again fits": ("prefill", queues(3000, 2000, 1600), 2),
    "4 315 of 320 ms": ("prefill", queues(4200, 2000, 1600), 2),
    "4 322.5 of 320 ms": ("prefill", queues(4300, 2000, 1600), 3),
    "5 ITL above on all": ("decode", caches(105_000, 105_000), 3),
    "6 36.7 of 40 ms": ("decode", caches(*[50_000] * 4), 3),
    "6 42 of 40 ms": ("decode", caches(*[60_000] * 4), 4),
    "7 no room in the cache": ("decode", caches(*[80_000] * 4), 4),
    "one replica stays": ("decode", caches(1000), 1),
    "an idle replica keeps the others from help": ("decode", caches(105_000, 0), 2),
    "what waits for a decoding replica is cache to come": (
        "decode",
        fleet(worker(60_000, 45_000), worker(60_000, 45_000), **RATES),
        3,
    ),
}


@pytest.mark.parametrize(("pool", "now", "replicas"), LOAD_ROWS.values(), ids=LOAD_ROWS)
def test_the_load_loop_decides_as_the_planner(pool, now, replicas):
    rule = policy(PREFILL if pool == "prefill" else DECODE, mode="load", pool=pool)
    assert proposed(rule, now).settings["replicas"] == replicas


BOTH = toy(StepTime(base_s=0.01, per_prefill_token_s=1 / 20_000, per_kv_token_s=0.04 / 100_000))
"""An aggregated replica: 10 ms + 50 us per prompt token + 0.4 us per token in the cache."""

AGGREGATED_ROWS = {
    # id: (observation, replicas)
    # 10 ms + 24 ms + 480 ms.
    "up where only TTFT is above": (fleet(worker(60_000, 9600), worker(60_000, 9600), **RATES), 3),
    # 10 ms + 42 ms.
    "up where only ITL is above": (caches(105_000, 105_000), 3),
    # ITL after: 10 + 36; TTFT easily.
    "down only where both keep": (caches(*[68_000] * 4), 4),
    "down where both keep": (caches(*[40_000] * 4), 3),
    "no more while one starts": (fleet(worker(105_000), EARLY, **RATES), 2),
    "what starts is cancelled where both keep": (fleet(worker(20_000), EARLY, **RATES), 1),
    "what starts goes on where one does not": (fleet(*[worker(60_000)] * 2, EARLY, **RATES), 3),
    "none while one drains": (fleet(worker(105_000), LEAVING, **RATES), 1),
}


@pytest.mark.parametrize(("now", "replicas"), AGGREGATED_ROWS.values(), ids=AGGREGATED_ROWS)
def test_an_aggregated_pool_goes_up_for_either_and_down_for_both(now, replicas):
    assert proposed(policy(BOTH, mode="load"), now).settings["replicas"] == replicas


def test_queued_prompts_are_cache_to_come_after_a_move_down():
    roomy = toy(StepTime(base_s=0.01, per_prefill_token_s=1e-5, per_kv_token_s=1e-7))
    rule = policy(roomy, mode="load")
    for queued, replicas in ((4999, 1), (5000, 2)):
        now = fleet(*[worker(45_000, queued)] * 2, **RATES)
        assert proposed(rule, now).settings["replicas"] == replicas


def test_prompts_that_come_in_count_with_the_gap_between_tokens():
    # 100 sequences, a prompt token for every two generated: 50 per iteration, 2.5 ms.
    prompts = {**RATES, "prompt_tokens_per_s": 500.0}
    rule = policy(BOTH, mode="load")
    quiet, busy = caches(98_000, 98_000), fleet(worker(98_000), worker(98_000), **prompts)
    assert proposed(rule, quiet).settings["replicas"] == 2
    assert proposed(rule, busy).settings["replicas"] == 3


@pytest.mark.parametrize(
    "now",
    [
        fleet(worker(105_000), worker(None), **RATES),
        fleet(EARLY, **RATES),
        fleet(n=0, **RATES),
    ],
    ids=["silent", "none ready", "scaled to 0"],
)
def test_no_decision_without_a_report_of_every_replica(now):
    assert "replicas" not in proposed(policy(BOTH, mode="load"), now).settings


def test_a_smaller_scale_of_the_objectives_adds_earlier():
    now = caches(80_000, 80_000)
    assert proposed(policy(BOTH, mode="load"), now).settings["replicas"] == 2
    assert proposed(policy(BOTH, mode="load", slo_scale=0.8), now).settings["replicas"] == 3


# --- throughput ----------------------------------------------------------------------------------

ENGINE = toy(StepTime(base_s=0.01), batch_size_max=32)
"""32 sequences of 1,000 output tokens at 10 ms: 3.2 requests/s."""


def rates(qps: float) -> dict[str, float]:
    """Of requests of one prompt token and 1,000 output tokens."""
    return {"qps": qps, "prompt_tokens_per_s": qps, "output_tokens_per_s": 1000 * qps}


def serving(n: int, rate: float, at_s: float, **fields: object) -> Observation:
    return replace(fleet(*[worker()] * n, **{**rates(rate), **fields}), at_s=NOW_S + at_s)


def after_an_interval(
    rule: RulePolicy, n: int, qps_by_tick: list[float], **fields: object
) -> tuple[list[int | None], Proposal]:
    """What it asks for at each of these ticks, 5 s apart, with n replicas all the while."""
    history, asked = History(KNOBS), []
    for tick, each in enumerate(qps_by_tick):
        proposal = rule.propose(history.observed(serving(n, each, 5.0 * tick, **fields)))
        history = replace(history, memory=proposal.memory)
        value = proposal.settings.get("replicas")
        asked.append(None if value is None else int(value))
    return asked, proposal


THROUGHPUT_ROWS = {
    # id: (n, requests/s, options, replicas)
    "3 20 requests/s": (2, 20.0, {}, 7),
    "4 at most 8 more, then the budget": (2, 200.0, {"max_gpu_budget": 8}, 8),
    "4 at most 8 more": (2, 200.0, {}, 10),
    "5 at most 8 fewer": (20, 10.0, {}, 12),
    "at least min_endpoint": (4, 0.1, {"min_endpoint": 3}, 3),
    "larger steps where told": (2, 200.0, {"max_delta": 99}, 63),
}


@pytest.mark.parametrize(
    ("n", "qps", "options", "replicas"), THROUGHPUT_ROWS.values(), ids=THROUGHPUT_ROWS
)
@pytest.mark.parametrize("pool", ["decode", "aggregated"])
def test_the_throughput_loop_decides_as_the_planner(pool, n, qps, options, replicas):
    rule = policy(ENGINE, mode="throughput", pool=pool, **options)
    asked, _ = after_an_interval(rule, n, [qps] * 37)
    assert asked[:36] == [n] * 36
    assert asked[36] == replicas


def test_a_prefill_pool_carries_what_it_prefills():
    # b / (0.02 s + b x 1,000 / 20,000 s) within 500 ms: b = 9, 19.15 requests/s.
    profile = toy(StepTime(base_s=0.02, per_prefill_token_s=1 / 20_000))
    rule = policy(profile, mode="throughput", pool="prefill")
    asked, _ = after_an_interval(rule, 2, [70.0] * 37, prompt_tokens_per_s=70_000.0)
    assert asked[36] == 4


def test_the_forecast_is_the_mean_of_the_interval():
    rule = policy(ENGINE, mode="throughput")
    asked, _ = after_an_interval(rule, 2, [0.0] * 18 + [20.0] * 19)
    assert asked[36] == 4  # 20 x 19/37 = 10.3 requests/s


def test_sizes_are_those_of_requests_that_were_let_in():
    # 20 requests/s arrive and 10 are served, 1,000 tokens each: the queue grows by 10 a second.
    rule = policy(ENGINE, mode="throughput")
    history = History(KNOBS)
    for tick in range(37):
        seen = fleet(*[worker()] * 3, **{**rates(10.0), "qps": 20.0, "queue_depth": 50.0 * tick})
        proposal = rule.propose(history.observed(replace(seen, at_s=NOW_S + 5.0 * tick)))
        history = replace(history, memory=proposal.memory)
    assert proposal.why.startswith("20 requests/s of 1 + 1,000 tokens to come")
    assert proposal.settings["replicas"] == 7


def test_an_interval_without_a_measurement_decides_nothing():
    rule = policy(ENGINE, mode="throughput")
    asked, last = after_an_interval(rule, 2, [20.0] * 37, qps=None)
    assert asked == [2] * 37
    assert last.why == "the next forecast is due in 180 s: 2"


def test_no_request_yet_is_no_size_and_no_answer():
    rule = policy(ENGINE, mode="throughput")
    asked, last = after_an_interval(rule, 3, [0.0] * 37)
    assert asked[36] == 3
    assert "the model has no answer" in last.why


def test_an_idle_interval_keeps_the_sizes_of_the_last_busy_one():
    rule = policy(ENGINE, mode="throughput", predictor="constant")
    asked, last = after_an_interval(rule, 3, [20.0] * 37 + [0.0] * 36)
    assert asked[72] == 1
    assert last.why.startswith("0 requests/s of 1 + 1,000 tokens to come")


def test_replicas_that_start_are_waited_for():
    rule = policy(ENGINE, mode="throughput")
    history = History(KNOBS)
    for tick in range(37):
        now = replace(
            fleet(
                worker(),
                worker(),
                EARLY,
                **{
                    **RATES,
                    "qps": 20.0,
                    "prompt_tokens_per_s": 20.0,
                    "output_tokens_per_s": 20_000.0,
                },
            ),
            at_s=NOW_S + 5.0 * tick,
        )
        proposal = rule.propose(history.observed(now))
        history = replace(history, memory=proposal.memory)
    assert proposal.settings["replicas"] == 3
    assert proposal.why.endswith("1 still starts: 3")


def test_the_forecast_is_the_load_loops_lower_bound():
    rule = policy(ENGINE, mode="both")
    asked, _ = after_an_interval(rule, 8, [20.0] * 39)
    # The load loop alone would go down by one at every tick.
    assert asked[:36] == [7] * 36
    assert asked[36:] == [7] * 3
    asked, last = after_an_interval(rule, 7, [20.0] * 38)
    assert asked[35:] == [6, 7, 7]
    assert last.why.endswith("the forecast asks for 7: 7")


# --- words and errors ----------------------------------------------------------------------------

WORDS = {
    "TTFT of at least 0.51 s on all 3 replicas, objective 0.5 s: 4": (
        PREFILL,
        {"mode": "load", "pool": "prefill"},
        queues(10_400, 9000, 8200),
    ),
    "TTFT of up to 0.25 s on 3 replicas, 2 would be enough: 2": (
        PREFILL,
        {"mode": "load", "pool": "prefill"},
        queues(3000, 2000, 1600),
    ),
    "ITL of up to 34.24 ms on 4 replicas, 3 would not be enough: 4": (
        DECODE,
        {"mode": "load", "pool": "decode"},
        caches(*[60_000] * 4),
    ),
    "ITL of at least 52.42 ms on all 2 replicas, objective 50 ms, at most 2 allowed: 2": (
        DECODE,
        {"mode": "load", "pool": "decode", "max_gpu_budget": 2},
        caches(105_000, 105_000),
    ),
    "1 of 2 ready replicas report: no decision": (
        BOTH,
        {},
        fleet(worker(1000), worker(None), **RATES),
    ),
    "the next forecast is due in 180 s: 2": (BOTH, {"mode": "throughput"}, caches(0, 0)),
}


@pytest.mark.parametrize("words", WORDS)
def test_says_why(words):
    profile, options, now = WORDS[words]
    assert proposed(policy(profile, **options), now).why == words


def test_says_what_the_forecast_is_made_of():
    _, last = after_an_interval(policy(ENGINE, mode="throughput"), 2, [200.0] * 37)
    assert last.why == (
        "200 requests/s of 1 + 1,000 tokens to come, 3.2 each makes 62.5 replicas, "
        "10 in one step: 10"
    )
    assert last.raw == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"predictor": "arima"}, "predictor arima is not repeated here: pmdarima"),
        ({"predictor": "prophet"}, "predictor prophet is not here"),
        ({"predictor": "kalmann"}, "expected one of ar, constant, kalman"),
        ({"mode": "easy"}, "expected one of both, load, throughput"),
        ({"slo_scale": 0}, "slo_scale is 0; expected more than 0"),
        ({"sensitivity": 80}, "sensitivity is 80; expected a share from 0 to 1"),
        ({"max_delta": 0}, "max_delta is 0; expected at least 1"),
    ],
)
def test_refuses_what_does_not_fit(options, words):
    with pytest.raises(ConfigError, match=words):
        policy(BOTH, **options)
