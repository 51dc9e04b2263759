"""Published and worked reference runs, request by request."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.core.trace import Trace

WORKED_EXAMPLE = Case(
    trace=small.trace([(0.0, 40, 30), (0.0, 40, 30), (0.005, 70, 20)]),
    profile=replace(
        PROFILE,
        kv=KvCache(block_tokens=16, blocks=10, watermark=0.0),
        limits=EngineLimits(batch_size_max=4, chunk_tokens=64),
        step_time=StepTime(base_s=0.01, per_prefill_token_s=1e-4),
    ),
    ticks=(small.tick(batch_size=4),),
    slots=1,
)


def test_reproduces_the_worked_example_with_its_preemptions() -> None:
    fleet = small.fleet(WORKED_EXAMPLE)
    fleet.advance(10.0)
    seen = fleet.requests()
    np.testing.assert_allclose(seen.ttft_s, [0.0164, 0.0280, 0.3482], rtol=0, atol=1e-12)
    np.testing.assert_allclose(seen.e2e_s, [0.3206, 0.3895, 0.6248], rtol=0, atol=1e-12)
    assert seen.preemptions.sum() == 4


def test_the_naive_loop_takes_59_iterations_for_the_worked_example() -> None:
    oracle = small.oracle(WORKED_EXAMPLE)
    oracle.advance(10.0)
    assert oracle.sums.iterations == 59
    assert oracle.sums.preemptions == 4


def reference(folder: Path) -> tuple[Case, np.ndarray]:
    """Vidur's run of 10,000 requests on four replicas, and its TTFT and E2E per request."""
    load = np.genfromtxt(folder / "w1_poisson12.csv.gz", delimiter=",", names=True)
    times = np.genfromtxt(folder / "vidur_w1_affine_rr4.requests.csv.gz", delimiter=",", names=True)
    profile = ServingProfile(
        schema="tuner.profile/1",
        name="reference",
        scheduler="vidur-sarathi",
        gpus_per_replica=1,
        kv=KvCache(block_tokens=16, blocks=8000, watermark=0.01),
        limits=EngineLimits(batch_size_max=128, chunk_tokens=512),
        step_time=StepTime(
            base_s=0.008, per_prefill_token_s=6e-5, per_sequence_s=5e-5, per_kv_token_s=2e-8
        ),
    )
    trace = Trace(
        load["arrived_at"].copy(),
        load["num_prefill_tokens"].astype(np.int32),
        load["num_decode_tokens"].astype(np.int32),
    )
    case = Case(
        trace=trace,
        profile=profile,
        ticks=(small.tick(replicas=4, batch_size=128),),
        router="round_robin",
        slots=4,
        end_s=5000.0,
    )
    return case, np.column_stack((times["ttft_s"], times["e2e_s"]))


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("TUNER_DATA")
    if folder is None:
        pytest.skip("TUNER_DATA does not name the folder with the reference runs")
    return Path(folder) / "reference" / "sim_compare"


def test_reproduces_vidur_for_every_request(data: Path) -> None:
    case, times = reference(data)
    fleet = small.fleet(case)
    fleet.advance(case.end_s)
    seen = fleet.requests()
    np.testing.assert_allclose(np.column_stack((seen.ttft_s, seen.e2e_s)), times, atol=1e-9)
    assert seen.preemptions.sum() == 0
    np.testing.assert_array_equal(seen.replica, np.arange(len(times)) % 4)


def test_the_naive_loop_reproduces_vidur_for_every_request(data: Path) -> None:
    case, times = reference(data)
    oracle = small.oracle(case)
    oracle.advance(case.end_s)
    assert oracle.sums.iterations == 362_484
    own = np.column_stack((oracle.column("ttft_s"), oracle.column("e2e_s")))
    np.testing.assert_allclose(own, times, atol=1e-9)
