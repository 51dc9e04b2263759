"""The rule-set `sglang`: against a naive loop, and cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.envs.simulator.small import Case
from tests.envs.simulator.test_exactness import assert_same_requests, cases, run_both
from tuner.core.profile import KvCache
from tuner.core.trace import Trace


@st.composite
def sglang_cases(draw: st.DrawFn) -> Case:
    """A cluster under fire, with every option and prefix hits."""
    case = draw(cases())
    block_tokens = draw(st.sampled_from([1, 4, 7, 16]))
    blocks = draw(st.integers(180, 600)) // block_tokens
    chunk_tokens = block_tokens * draw(st.sampled_from([1, 3, 8, 60]))
    profile = replace(
        case.profile,
        scheduler="sglang",
        kv=KvCache(block_tokens, blocks, prefix_cache=draw(st.booleans())),
        limits=replace(case.profile.limits, chunk_tokens=chunk_tokens),
        scheduler_options={
            "overlap": draw(st.booleans()),
            "max_new_tokens": draw(st.sampled_from([1, 1, 70, 4096])),
            "max_prefill_tokens": draw(st.sampled_from([1, 50, 16384])),
            "schedule_conservativeness": draw(st.sampled_from([0.01, 0.1, 1.0, 3.0])),
        },
    )
    trace = with_hits(draw, case.trace)
    longer = draw(st.sampled_from([1, 2, 3]))
    return replace(
        case, profile=profile, trace=replace(trace, output_tokens=longer * trace.output_tokens)
    )


def with_hits(draw: st.DrawFn, trace: Trace) -> Trace:
    prompts = trace.prompt_tokens
    shares = draw(st.lists(st.floats(0, 1), min_size=len(prompts), max_size=len(prompts)))
    hits = np.floor(prompts * np.array(shares)).astype(np.int32)
    return replace(trace, prefix_hit_tokens=hits)


@hypothesis_settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sglang_cases())
def test_equals_the_naive_loop(case: Case) -> None:
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    event(f"retractions: {min(oracle.sums.preemptions, 10)}")
    event(f"all ended: {bool(fleet.done()[0])}")
