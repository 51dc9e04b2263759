"""The simulator's rule-set `vllm-v1` against vLLM's own scheduler, request by request.

vLLM's scheduler classes run in virtual time, without a model (`vllm_schedule.py`): the same
requests, caps, options and step times as in the simulator. TUNER_RULES_CASES asks for more cases
than the usual few (`make proof-rules`).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.simulator import Fleet
from tests.envs.simulator import small
from tests.real import vllm_env
from tests.real.conftest import SKIP
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime

DRIVER = Path(__file__).with_name("vllm_schedule.py")
CASES = int(os.environ.get("TUNER_RULES_CASES", "25"))
DEADLINE_S = 600.0
LAW = StepTime(
    base_s=math.sqrt(5) * 1e-3,
    per_prefill_token_s=math.sqrt(2) * 1e-4,
    per_sequence_s=math.sqrt(3) * 1e-4,
)
BLOCK_TOKENS = 16

# Requests one after the other: prompt, output, tokens shared with the first one.
SHARERS = ((100, 3, 100), (80, 3, 70), (64, 3, 64), (65, 3, 64), (20, 3, 5), (120, 3, 100))

Case = dict[str, Any]


def random_case(rng: np.random.Generator) -> Case:
    """Load on one engine with few blocks, under caps that change; rows are arrival in seconds,
    prompt, output and tokens of a shared prefix, caps are seconds and requests."""
    count = int(rng.integers(2, 40))
    cap = int(rng.choice([2, 4, 8, 16]))
    gaps_s = rng.exponential(float(rng.choice([1e-4, 3e-3, 2e-2])), count)
    prompts, outputs = rng.integers(1, 120, count), rng.integers(1, 70, count)
    cap_times_s = np.cumsum(rng.exponential(0.05, int(rng.integers(0, 5))) + 1e-6)
    return {
        "rows": [
            [float(at_s), int(prompt), int(output), 0]
            for at_s, prompt, output in zip(np.cumsum(gaps_s), prompts, outputs, strict=True)
        ],
        "caps": [[at_s, int(rng.integers(1, cap + 1))] for at_s in (0.0, *map(float, cap_times_s))],
        "batch_size_max": cap,
        "chunk_tokens": int(rng.choice([16, 48, 64, 512])),
        "long_prefill_token_threshold": int(rng.choice([0, 0, 0, 1, 7, 40])),
        "reserve_full_isl": bool(rng.random() < 0.5),
        "watermark": float(rng.choice([0.0, 0.0, 0.1])),
        "async": bool(rng.random() < 0.7),
        "prefix_cache": False,
        "blocks": int(rng.integers(14, 40)),
    }


def sharing_case(asynchronous: bool) -> Case:
    """Requests that find the blocks of those before in the cache."""
    return {
        "rows": [[float(at_s), *sharer] for at_s, sharer in enumerate(SHARERS)],
        "caps": [[0.0, 4]],
        "batch_size_max": 4,
        "chunk_tokens": 48,
        "long_prefill_token_threshold": 0,
        "reserve_full_isl": True,
        "watermark": 0.0,
        "async": asynchronous,
        "prefix_cache": True,
        "blocks": 200,
    }


def scheduled(cases: list[Case]) -> list[dict[str, list[float]]]:
    """What vLLM's scheduler makes of the cases."""
    law = {name: getattr(LAW, name) for name in ("base_s", "per_sequence_s", "per_prefill_token_s")}
    lines = [json.dumps({**case, **law, "block_tokens": BLOCK_TOKENS}) for case in cases]
    command = [str(vllm_env.engine_python()), str(DRIVER), str(vllm_env.engine_model())]
    done = subprocess.run(
        command,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"first_s"')]


def simulated(case: Case) -> Fleet:
    """What the simulator makes of it."""
    options = ("async", "long_prefill_token_threshold", "reserve_full_isl")
    profile = ServingProfile(
        schema="tuner.profile/1",
        name="rules",
        scheduler="vllm-v1",
        gpus_per_replica=1,
        kv=KvCache(BLOCK_TOKENS, case["blocks"], case["watermark"], case["prefix_cache"]),
        limits=EngineLimits(case["batch_size_max"], case["chunk_tokens"]),
        step_time=LAW,
        scheduler_options={name: case[name] for name in options},
    )
    rows = [(at_s, prompt, output) for at_s, prompt, output, _ in case["rows"]]
    hits = [0, *(shared for *_, shared in case["rows"][1:])]
    ticks = tuple(small.tick(at_s, batch_size=cap) for at_s, cap in case["caps"])
    fleet = small.fleet(small.Case(small.trace(rows, hits), profile, ticks, slots=1))
    for tick in ticks[1:]:
        fleet.advance(tick.at_s)
        fleet.apply(small.settings(tick))
    fleet.advance(10_000.0)
    return fleet


def assert_same(case: Case, real: dict[str, list[float]]) -> None:
    seen = simulated(case).requests()
    arrival_s = np.array([row[0] for row in case["rows"]])
    assert seen.preemptions.tolist() == real["preemptions"], case
    np.testing.assert_allclose(arrival_s + seen.ttft_s, real["first_s"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(arrival_s + seen.e2e_s, real["end_s"], atol=1e-9, rtol=0)


@pytest.mark.skipif(os.environ.get(SKIP) == "1", reason=f"{SKIP}=1: the real engine is left out")
def test_schedules_as_vllm_itself() -> None:
    rng = np.random.default_rng(11)
    cases = [random_case(rng) for _ in range(CASES)]
    cases += [sharing_case(asynchronous) for asynchronous in (True, False)]
    outcomes = scheduled(cases)
    assert len(outcomes) == len(cases)
    preempted = Counter[bool]()
    for case, real in zip(cases, outcomes, strict=True):
        assert_same(case, real)
        preempted[case["async"]] += sum(real["preemptions"]) > 0
    assert preempted[True] >= CASES // 10, "too few cases preempt to prove it"
    assert preempted[False] >= CASES // 20
