"""What one replica carries: small cases worked by hand, and the simulator's own fleets."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.job import Job
from experiments.runner import SimulationRunner
from policies.joint_capacity import LATE, Carried, JointCapacity
from policies.perf_model import PerfModel
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.core.slo import Slo
from tuner.core.trace import Trace
from tuner.data import load_profile

PROFILE = ServingProfile(
    schema="tuner.profile/1",
    name="by-hand",
    scheduler="vidur-sarathi",
    gpus_per_replica=1,
    kv=KvCache(block_tokens=10, blocks=10_000),
    limits=EngineLimits(batch_size_max=100, chunk_tokens=1000),
    step_time=StepTime(base_s=0.020),
)
DEEPSEEK = replace(load_profile("deepseek-r1-8xh200-sglang"), startup=None)


def carried(
    law: StepTime = PROFILE.step_time,
    *,
    prompt: float = 100,
    output: float = 100,
    held: float = 150,
    batch_size: float = 100,
    slo: Slo | None = None,
) -> Carried:
    model = PerfModel(replace(PROFILE, step_time=law))
    sizes = (np.array([float(size)]) for size in (prompt, output, held, batch_size))
    return JointCapacity(model, slo or Slo(ttft_s=1e3, tpot_s=1e3)).carried(*sizes)


@pytest.mark.parametrize(
    ("case", "batch", "qps"),
    [
        # Nothing but decodes of 20 ms: 85 of 100 slots, 85 / (100 x 0.020).
        ({}, 85.0, 42.5),
        # The knob allows 40: 34 of them, 34 / 2.
        ({"batch_size": 40}, 34.0, 17.0),
        # Above the ceiling of the engine the knob says nothing.
        ({"batch_size": 900}, 85.0, 42.5),
        # 100,000 tokens of cache, 2,500 held: room for 40, 85 % of it.
        ({"held": 2500}, 34.0, 17.0),
        # Not even one fits: a tenth of one is the least that is told.
        ({"held": 1e9}, 0.1, 0.05),
    ],
    ids=["slots", "knob", "ceiling", "cache", "nothing fits"],
)  # fmt: skip
def test_decodes_alone_fill_the_slots_or_the_cache(case, batch, qps):
    found = carried(**case)
    assert found.batch == pytest.approx(batch)
    assert found.room == pytest.approx(batch)
    assert found.qps == pytest.approx(qps)
    assert found.tpot_s == pytest.approx(0.020)


def test_a_prompt_costs_its_seconds_beside_the_decodes():
    # 1 ms per prompt token, and no launch beyond the first token's: 100 ms per prompt. With 85
    # sequences a request costs 100 x 0.020 / 85 + 0.100 = 0.12353 s. A launch of 1 ms is shared.
    found = carried(StepTime(base_s=0.020, per_prefill_token_s=0.001))
    assert found.qps == pytest.approx(1 / 0.12353, rel=0.01)
    # Of each second 0.8095 s go to prefills; the steps in between are 20 ms / 0.1905 apart.
    assert found.tpot_s == pytest.approx(0.020 / 0.1905, rel=0.05)


def test_prompts_that_come_during_a_launch_share_the_next():
    # Every prefill adds 100 ms, whatever its size. With 85 sequences of 100 tokens the decodes of
    # a request cost 0.023529 s. A launch of its own for each: 1 / 0.123529 = 8.095 requests/s.
    # But x = qps x (0.100 + 0.020) of them come per prefill, and share 1 launch in x + exp(-x):
    # at x = 1.48 that is 1.7076, so 0.023529 + 0.1 / 1.7076 = 0.08209 s, 12.18/s, x = 1.462;
    # at x = 1.447 it is 1.6823: 0.08297 s, 12.05/s, x = 1.446.
    found = carried(StepTime(base_s=0.020, prefill_base_s=0.100))
    assert found.qps == pytest.approx(12.05, rel=0.01)


def test_gaps_between_tokens_keep_their_objective():
    # 1 ms per prompt token as above. TPOT is 20 ms / (share of time left to decodes): 40 ms leave
    # half the time to prefills, 5 prompts/s; so b = 5 x 100 x 0.040 = 20 sequences.
    law = StepTime(base_s=0.020, per_prefill_token_s=0.001)
    found = carried(law, slo=Slo(ttft_s=1e3, tpot_s=0.040))
    assert found.tpot_s == pytest.approx(0.040, rel=0.03)
    assert found.tpot_s <= 0.040
    assert found.qps == pytest.approx(5.0, rel=0.05)
    assert found.room == pytest.approx(85.0)


def test_first_tokens_keep_their_objective():
    # Prompts of 100 ms in steps of 20 ms, 600 ms allowed: the wait may be 480 ms, four prefills of
    # 120 ms. Late is share x exp(-4 (1 - share)) <= 1 %: at 0.27 of the time it is 1.46 %, at 0.2
    # 0.82 %, at 0.22 0.97 %. So 22 % go to prefills of 0.1 s: 2.2 requests/s.
    assert 0.22 * exp(-4 * 0.78) < LATE < 0.24 * exp(-4 * 0.76)
    law = StepTime(base_s=0.020, per_prefill_token_s=0.001)
    found = carried(law, slo=Slo(ttft_s=0.6, tpot_s=1e3))
    assert found.qps == pytest.approx(2.2, rel=0.05)


def test_where_no_batch_meets_the_objectives_it_says_what_fits():
    # A step takes 20 ms, 10 ms are asked for: nobody can, and a replica more would not help.
    found = carried(slo=Slo(ttft_s=1e3, tpot_s=0.010))
    assert found.batch == pytest.approx(85.0)
    assert found.qps == pytest.approx(42.5)


def test_an_unknown_mix_is_not_known():
    model = JointCapacity(PerfModel(PROFILE), Slo())
    mixes = np.array([[100.0, np.nan], [100.0, 100.0], [150.0, 150.0], [100.0, 100.0]])
    found = model.carried(*mixes)
    assert np.isnan(found.qps[1])
    assert found.qps[0] == carried(slo=Slo()).qps[0]


LENGTHS = {
    # (mean prompt, mean output, batch size): where decodes, prompts, both, or slots run out.
    "long answers": (800, 2500, 128),
    "long prompts": (6000, 300, 128),
    "a small batch": (1500, 1500, 32),
    "chat": (1200, 220, 128),
}


def holds(prompt: float, output: float, batch: int, qps: float) -> bool:
    """Whether four simulated replicas meet the objectives for 99 % at that load for an hour.

    Exponential lengths, Poisson arrivals; the first 20 minutes do not count.
    """
    draw = np.random.default_rng(7)
    count = draw.poisson(4 * qps * 3600)
    trace = Trace(
        name="steady",
        arrival_s=np.sort(draw.uniform(0, 3600, count)),
        prompt_tokens=np.minimum(draw.exponential(prompt, count) + 1, 4 * prompt).astype(np.int32),
        output_tokens=np.minimum(draw.exponential(output, count) + 1, 8 * output).astype(np.int32),
    )
    config = RunConfig(initial_replicas=4)
    job = Job("static", "static", {"replicas": 4, "batch_size": batch}, config, seed=3)
    served = SimulationRunner()(trace, DEEPSEEK, job, lambda _: None).requests
    met: float = served.met(config.slo)[trace.arrival_s > 1200].mean()
    return met >= 0.99


@pytest.mark.parametrize(("prompt", "output", "batch"), LENGTHS.values(), ids=LENGTHS)
def test_a_steady_simulated_fleet_carries_about_as_much(prompt, output, batch):
    model = JointCapacity(PerfModel(DEEPSEEK), Slo())
    # Exponential lengths: a running sequence is halfway through twice the mean.
    sizes = (prompt, output, prompt + output, batch)
    [qps] = model.carried(*(np.array([float(size)]) for size in sizes)).qps
    assert holds(prompt, output, batch, 0.75 * qps)
    assert not holds(prompt, output, batch, 1.3 * qps)
