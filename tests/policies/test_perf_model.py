"""The model of a replica: against the simulator's own iterations, and the worked capacities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator.telemetry import RequestColumns
from policies.perf_model import PerfModel
from tests.envs.simulator import small
from tests.envs.simulator.small import Case
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.core.slo import Slo
from tuner.data import load_profile

BATCH_TABLE = StepTime(
    batch_table=((1, 0.010), (4, 0.016), (8, 0.018)),
    per_kv_token_s=1e-6,
    per_context_s=1e-6,
    prefill_table=((8, 0.002), (40, 0.008)),
    straggler=((1, 1.2), (8, 1.9)),
)
PROFILES = {
    "affine": small.PROFILE,
    "tables": replace(small.PROFILE, step_time=BATCH_TABLE),
    "vllm": replace(small.PROFILE, step_time=BATCH_TABLE, scheduler="vllm-v1"),
    "deepseek": replace(load_profile("deepseek-r1-8xh200-sglang"), startup=None),
}


def served(profile: ServingProfile, requests: int, prompt: int, output: int) -> RequestColumns:
    """These requests, all at once, on one idle replica of the simulator."""
    most = profile.limits.batch_size_max
    rows = [(0.0, prompt, output)] * requests
    fleet = small.fleet(Case(small.trace(rows), profile, (small.tick(batch_size=most),)))
    fleet.advance(1000.0)
    return fleet.requests()


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_decode_iteration_takes_what_it_takes_in_the_simulator(name, batch):
    seen = served(PROFILES[name], batch, 7, 41)
    gap_s = np.mean((seen.e2e_s - seen.ttft_s) / 40)
    # Tokens of a sequence before the first of 40 decodes: vLLM has yet to compute the last one.
    first = 7 if PROFILES[name].scheduler == "vllm-v1" else 8
    itl_s = PerfModel(PROFILES[name]).itl_s(np.array([batch]), np.array([first + 39 / 2]))
    assert itl_s == pytest.approx(gap_s)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("prompt", [1, 63, 64, 65, 150, 640])
def test_a_prompt_takes_what_it_takes_in_the_simulator(name, prompt):
    profile = PROFILES[name]
    prompt = prompt * profile.limits.chunk_tokens // 64
    [seen_s] = served(profile, 1, prompt, 1).ttft_s
    assert PerfModel(profile).prefill_s(np.array([prompt])) == pytest.approx(seen_s)


def test_a_queue_of_prompts_takes_about_what_it_takes_in_the_simulator():
    profile = PROFILES["deepseek"]
    last_s = served(profile, 24, 3000, 1).ttft_s.max()
    queue_s = PerfModel(profile).queue_s(np.array([24 * 3000]), np.zeros(1), np.zeros(1))
    assert queue_s == pytest.approx(last_s, rel=0.02)


# The rows below: ai-dynamo 1.6.1, dynamo/planner/core/perf_model/engine_query.py.


def toy(law: StepTime, batch_size_max: int = 128, kv_tokens: int = 10**9) -> PerfModel:
    limits = EngineLimits(batch_size_max, chunk_tokens=16_384)
    kv = KvCache(block_tokens=1, blocks=kv_tokens)
    return PerfModel(replace(small.PROFILE, step_time=law, limits=limits, kv=kv))


def test_prefill_capacity_is_the_best_batch_that_meets_the_objective():
    model = toy(StepTime(base_s=0.02, per_prefill_token_s=1 / 20_000))
    best = model.prefill_capacity(np.array([3000.0]), 0.5, hits=0.5)
    assert best.batch == 6
    assert best.ttft_s == pytest.approx(0.47)
    assert best.qps == pytest.approx(12.766, abs=5e-4)
    assert best.meets


def test_decode_capacity_is_the_best_batch_that_meets_the_objective():
    model = toy(StepTime(base_s=0.01, per_sequence_s=0.0005))
    best = model.decode_capacity(np.array([3000.0]), np.array([150.0]), 0.05)
    assert best.batch == 80
    assert best.qps == pytest.approx(10.667, abs=5e-4)


def test_decode_capacity_ends_where_the_cache_is_full():
    model = toy(StepTime(base_s=0.01, per_sequence_s=0.0005), kv_tokens=30 * 3075 + 3074)
    best = model.decode_capacity(np.array([3000.0]), np.array([150.0]), 0.05)
    assert best.batch == 30
    assert best.qps == pytest.approx(30 / (150 * 0.025))


def test_a_prompt_longer_than_an_iteration_is_prefilled_alone():
    model = toy(StepTime(base_s=0.02, per_prefill_token_s=1e-4))
    best = model.prefill_capacity(np.array([20_000.0]), 10.0)
    assert best.batch == 1
    assert best.qps == pytest.approx(1 / 2.04)


def test_where_nothing_meets_the_objective_the_highest_rate_counts():
    model = toy(StepTime(base_s=0.06, per_sequence_s=0.0005))
    best = model.decode_capacity(np.array([3000.0]), np.array([150.0]), 0.05)
    assert not best.meets
    assert best.batch == 128


def test_a_mixed_iteration_takes_the_prompt_tokens_that_arrive_with_its_decodes():
    law = StepTime(base_s=0.01, per_prefill_token_s=1e-5)
    best = toy(law).capacity(np.array([1000.0]), np.array([100.0]), ttft_s=10.0, itl_s=0.0151)
    # 10 prompt tokens per decode: 10 ms + 0.1 ms x 51 decodes.
    assert best.batch == 51
    assert best.itl_s == pytest.approx(0.0151)
    assert best.qps == pytest.approx(51 / (100 * 0.0151))
    assert best.ttft_s == pytest.approx(0.01 + 1510e-5)
    # One prompt behind one iteration's tokens.
    best = toy(law).capacity(np.array([1000.0]), np.array([100.0]), ttft_s=0.0221, itl_s=1.0)
    assert best.batch == 21


def test_the_knob_may_allow_fewer_sequences_than_the_engine():
    model = toy(StepTime(base_s=0.01, per_sequence_s=0.0005))
    sizes = np.array([3000.0, 3000.0]), np.array([150.0, 150.0])
    found = model.decode_capacity(*sizes, 0.05, batch_size=np.array([32.0, np.nan]))
    assert found.batch.tolist() == [32, 80]


@pytest.mark.parametrize(("share", "kept"), [(0.95, True), (1.05, False)])
def test_a_replica_keeps_the_objectives_up_to_its_capacity_in_the_simulator(share, kept):
    profile, slo = PROFILES["deepseek"], Slo(2.5, 0.075)
    prompt, output = np.array([2500]), np.array([800])
    best = PerfModel(profile).capacity(prompt, output, ttft_s=slo.ttft_s, itl_s=slo.tpot_s)
    gaps_s = np.random.default_rng(0).exponential(1 / (share * best.qps[0]), 1500)
    rows = [(at_s, 2500, 800) for at_s in np.cumsum(gaps_s)]
    fleet = small.fleet(Case(small.trace(rows), profile, (small.tick(batch_size=128),)))
    fleet.advance(5000.0)
    seen = fleet.requests()
    met = slo.met(seen.ttft_s, (seen.e2e_s - seen.ttft_s) / 799)
    assert met.mean() > 0.99 if kept else met.mean() < 0.9


def test_sizes_that_are_not_known_or_do_not_fit_have_no_capacity():
    model = toy(StepTime(base_s=0.01), kv_tokens=4000)
    prompt, output = np.array([np.nan, 1000.0, 5000.0]), np.array([100.0, np.nan, 100.0])
    assert np.isnan(model.decode_capacity(prompt, output, 0.05).qps).all()
    found = model.capacity(prompt, output, ttft_s=1.0, itl_s=0.05)
    assert np.isnan(found.qps).all()
    assert not found.meets.any()
    assert np.isnan(model.prefill_capacity(prompt[:1], 1.0).qps).all()
    assert np.isnan(model.prefill_s(prompt)).tolist() == [True, False, False]


def test_more_sequences_than_the_engine_takes_wait():
    model = toy(StepTime(base_s=0.01, per_sequence_s=0.001), batch_size_max=4)
    np.testing.assert_allclose(
        model.itl_s(np.array([4, 5, 2.5]), np.zeros(3)), [0.014, 0.014, 0.0125]
    )
