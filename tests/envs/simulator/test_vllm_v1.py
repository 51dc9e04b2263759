"""The rule-set `vllm-v1`: the compiled rules against a naive loop, and worked cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.envs.simulator.small import Case
from tests.envs.simulator.test_exactness import assert_same_requests, cases, run_both


@st.composite
def vllm_cases(draw: st.DrawFn) -> Case:
    """A cluster under fire, with every option and prefix hits."""
    case = draw(cases())
    options: dict[str, bool | int] = {
        "async": draw(st.booleans()),
        "reserve_full_isl": draw(st.booleans()),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 1, 5, 30])),
    }
    if draw(st.booleans()):
        options["max_queued_requests"] = draw(st.integers(1, 8))
    profile = replace(
        case.profile,
        scheduler="vllm-v1",
        scheduler_options=options,
        kv=replace(case.profile.kv, prefix_cache=draw(st.booleans())),
    )
    prompts = case.trace.prompt_tokens
    shares = draw(st.lists(st.floats(0, 1), min_size=len(prompts), max_size=len(prompts)))
    hits = np.floor(prompts * np.array(shares)).astype(np.int32)
    return replace(case, profile=profile, trace=replace(case.trace, prefix_hit_tokens=hits))


@hypothesis_settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vllm_cases())
def test_equals_the_naive_loop(case: Case) -> None:
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    assert fleet.done()[0]
    event(f"async: {case.profile.scheduler_options['async']}")
    event(f"preemptions: {min(oracle.sums.preemptions, 10)}")
    event(f"rejected: {oracle.sums.rejected > 0}")
