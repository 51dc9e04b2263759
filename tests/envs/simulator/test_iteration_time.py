"""Seconds of an iteration, term by term, and the factors that set one env apart from another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import EnvFactors, Fleet
from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.errors import ProfileError
from tuner.core.profile import EngineLimits, StepTime
from tuner.core.step_time import (
    decode_seconds,
    seconds_by_prefill,
    straggler_by_batch,
)

LAW = StepTime(base_s=0.01, per_kv_token_s=1e-5, prefill_base_s=0.003, per_prefill_token_s=1e-4)


def first_token_s(law: StepTime, prompt: int, **factors: float) -> float:
    """TTFT of one request on an idle replica that takes 64 tokens per iteration."""
    case = Case(
        small.trace([(0.0, prompt, 1)]),
        replace(PROFILE, step_time=law),
        (small.tick(),),
        factors=factors,
    )
    fleet = small.fleet(case)
    fleet.advance(50.0)
    return float(fleet.requests().ttft_s[0])


def test_the_law_adds_up_over_the_chunks_of_a_prompt() -> None:
    # 64, 64 and 22 tokens, on top of 0, 64 and 128.
    context = 64 * 64 + 22 * 128
    expected = 3 * 0.013 + 150e-4 + (64 + 128) * 1e-5
    assert first_token_s(LAW, 150) == pytest.approx(expected)
    law = replace(LAW, per_context_s=1e-6)
    assert first_token_s(law, 150) == pytest.approx(expected + context * 1e-6)
    law = replace(law, straggler=((1, 1.5), (8, 1.8)))
    assert first_token_s(law, 150) == pytest.approx(1.5 * (expected + context * 1e-6))


def test_a_prefill_table_is_read_at_the_tokens_of_each_iteration() -> None:
    table = ((8, 0.002), (24, 0.004), (40, 0.008))
    law = StepTime(base_s=0.01, prefill_table=table)
    chunks_s = 2 * (0.008 + 24 * 0.004 / 16) + 0.002 + 14 * 0.002 / 16
    assert first_token_s(law, 150) == pytest.approx(3 * 0.01 + chunks_s)
    assert first_token_s(law, 3) == pytest.approx(0.01 + 0.002)


@pytest.mark.parametrize(
    ("factors", "seconds"),
    [
        ({"step_time": 1.5}, 1.5 * (0.01 + 0.003 + 0.006)),
        ({"prefill": 2.0}, 0.01 + 2 * (0.003 + 0.006)),
        ({"slow_slot": 0, "slow": 3.0}, 3 * (0.01 + 0.003 + 0.006)),
        ({"slow_slot": 1, "slow": 3.0}, 0.01 + 0.003 + 0.006),
        ({"slow": 3.0}, 0.01 + 0.003 + 0.006),
    ],
    ids=["step time", "prefill", "the slow slot", "another slot", "no slot"],
)
def test_a_factor_stretches_its_terms(factors: dict[str, float], seconds: float) -> None:
    assert first_token_s(LAW, 60, **factors) == pytest.approx(seconds)


def test_the_factor_of_kv_reads_stretches_every_iteration_of_a_run() -> None:
    case = Case(
        small.trace([(0.0, 60, 101)]),
        replace(PROFILE, step_time=LAW),
        (small.tick(),),
        factors={"kv": 4.0},
    )
    fleet = small.fleet(case)
    fleet.advance(50.0)
    seen = fleet.requests()
    tokens = sum(61 + decode for decode in range(100))
    assert seen.e2e_s[0] - seen.ttft_s[0] == pytest.approx(100 * 0.01 + tokens * 4e-5)


def test_every_env_has_factors_of_its_own_until_its_next_reset() -> None:
    fleet = Fleet(
        small.trace([(0.0, 60, 1)]),
        replace(PROFILE, step_time=LAW),
        seeds=np.zeros(3, np.uint64),
        slots=1,
        record=True,
    )

    def ttft_s(factors: EnvFactors | None) -> list[float]:
        fleet.reset(
            slice(None),
            start_s=0.0,
            seeds=np.zeros(3, np.uint64),
            settings=small.settings(small.tick(), 3),
            factors=factors,
        )
        fleet.advance(1.0)
        return [float(fleet.requests(env).ttft_s[0]) for env in range(3)]

    varied = replace(EnvFactors.none(3), step_time=np.array([1.0, 2.0, 0.5]))
    assert ttft_s(varied) == pytest.approx([0.019, 0.038, 0.0095])
    assert ttft_s(None) == pytest.approx([0.019] * 3)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("step_time", 0.0, "step_time is 0.0; expected above 0"),
        ("prefill", np.nan, "prefill is nan"),
        ("kv", -0.1, "kv is -0.1; expected at least 0"),
        ("slow", 0.9, "slow is 0.9; expected at least 1"),
        ("slow_slot", -2, "slow_slot is -2; expected at least -1"),
    ],
)
def test_refuses_a_factor_out_of_range(name: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(EnvFactors.none(2), **{name: np.array([1, value])})


def test_tables_are_level_before_the_first_point_and_straight_on_beyond_the_last() -> None:
    law = StepTime(
        base_s=0.01,
        prefill_table=((4, 0.002), (12, 0.01)),
        straggler=((2, 1.1), (4, 1.3)),
    )
    profile = replace(PROFILE, limits=EngineLimits(6, 20), step_time=law)
    by_prefill = seconds_by_prefill(profile)
    np.testing.assert_allclose(by_prefill[[0, 1, 4, 8, 12, 20]], [0, 2e-3, 2e-3, 6e-3, 0.01, 0.018])
    np.testing.assert_allclose(straggler_by_batch(profile), [1.1, 1.1, 1.1, 1.2, 1.3, 1.4, 1.5])
    np.testing.assert_allclose(decode_seconds(profile)[[0, 1, 6]], [0, 0.011, 0.015])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"straggler": ((1, 1.2), (4, 1.1))}, "straggler gives a factor of 0.96"),
        ({"prefill_table": ((1, 0.01), (20, 0.005))}, "s for 40 prompt tokens; expected at least"),
        ({"per_prefill_token_s": -1e-6}, "s for 1 prompt tokens; expected at least 0"),
    ],
)
def test_refuses_a_law_that_goes_wrong_beyond_its_points(
    changes: dict[str, object], words: str
) -> None:
    profile = replace(PROFILE, step_time=replace(LAW, **changes))
    with pytest.raises(ProfileError, match=words):
        small.fleet(Case(small.trace([(0.0, 5, 1)]), profile, (small.tick(),)))


def test_an_env_of_eight_replicas_and_128_sequences_takes_little_memory() -> None:
    profile = replace(PROFILE, limits=EngineLimits(128, 512), kv=replace(PROFILE.kv, blocks=8000))
    # 1,024 requests at once, more than which do not run: the pool has grown to hold them.
    load = small.trace([(0.0, 5 + k % 90, 500) for k in range(1024)])
    fleet = Fleet(load, profile, seeds=np.zeros(16, np.uint64), slots=8)
    at_first = fleet.memory_bytes()
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=np.zeros(16, np.uint64),
        settings=small.settings(small.tick(replicas=8, batch_size=128), 16),
    )
    fleet.advance(4.0)
    assert fleet.gauges().running[0] == 1024
    assert at_first < fleet.memory_bytes() <= 16 * 160 * 1024
