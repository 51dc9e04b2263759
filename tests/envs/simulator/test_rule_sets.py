"""What holds under every rule-set: nothing is lost, nothing made up, and the bits are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import SCHEDULERS, Fleet
from tests.envs.simulator import small
from tests.envs.simulator.test_determinism import assert_same_bits, busy_case, settings_at

STEP_S = 0.25
STEPS = 100
END_S = 2000.0

PREEMPTING = {"sglang": {"max_new_tokens": 1, "schedule_conservativeness": 0.01}}
"""Options under which a rule-set that guards against it takes in more than it can hold."""


def busy_fleet(scheduler: str, n: int = 1, first: int = 0, threads: int = 1) -> Fleet:
    """Envs under more load than their blocks hold, with hits, a frontend and a ramp; env e is
    number first + e, and no two are alike."""
    case = busy_case(count=600)
    prompts = case.trace.prompt_tokens.copy()
    prompts[::97] = 700  # more than a replica can hold
    trace = replace(case.trace, prompt_tokens=prompts, prefix_hit_tokens=prompts // 3)
    profile = replace(
        case.profile,
        scheduler=scheduler,
        kv=replace(case.profile.kv, prefix_cache=True),
        scheduler_options=PREEMPTING.get(scheduler, {}),
    )
    env = np.arange(first, first + n)
    seeds = env.astype(np.uint64) * np.uint64(977)
    fleet = Fleet(trace, profile, seeds=seeds, slots=4, jitter=0.2, record=True, threads=threads)
    fleet.reset(slice(None), start_s=0.05 * env, seeds=seeds, settings=settings_at(0, n, first))
    return fleet


def run(fleet: Fleet, first: int = 0, between: int = 0) -> list[np.ndarray]:
    """Drive the fleet through changing settings to its end; all that can be read off it on the
    way. With stops at so many more moments between two readings."""
    seen = []
    for step in range(STEPS):
        for part in range(1, between + 1):
            fleet.advance(STEP_S * (step + 2 + part / (between + 1)))
        fleet.advance(STEP_S * (step + 3))
        seen.extend(fleet.window())
        seen.extend(fleet.gauges())
        fleet.apply(settings_at(step, fleet.n, first))
    fleet.advance(END_S)
    seen.extend(fleet.window())
    seen.extend(fleet.gauges())
    for name in ("ttft_s", "e2e_s", "tpot_s", "replica", "preemptions", "rejected"):
        seen.append(np.array([getattr(fleet.requests(env), name) for env in range(fleet.n)]))
    return seen


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_conserves_requests_tokens_and_blocks(scheduler: str) -> None:
    fleet = busy_fleet(scheduler)
    trace = busy_case(count=600).trace
    totals = dict.fromkeys(
        ("arrivals", "finished", "rejected", "output_tokens", "preemptions", "length_s"), 0.0
    )
    clock_s = 0.0
    for step in range(STEPS + 1):
        fleet.advance(STEP_S * step if step < STEPS else END_S)
        window, gauges = fleet.window(), fleet.gauges()
        for name in totals:
            value = getattr(window, name)[0]
            assert value >= 0, name
            totals[name] += value
        assert gauges.now_s[0] >= clock_s
        clock_s = gauges.now_s[0]
        assert 0.0 <= window.busy_s[0] <= window.replica_s[0] + 1e-9
        usage = gauges.replica_kv_cache_usage[0]
        assert np.all(np.isnan(usage) | ((usage >= 0.0) & (usage <= 1.0))), "blocks out of nothing"
        assert np.all(gauges.replica_kv_tokens[0] >= 0)
        assert np.all(gauges.replica_running[0] <= 8)
        assert gauges.in_flight[0] == gauges.queue_depth[0] + gauges.running[0]
        fleet.apply(settings_at(step, 1))
    seen = fleet.requests()
    served = ~seen.rejected
    assert fleet.done()[0]
    assert np.all(np.isfinite(seen.e2e_s) == served)
    assert np.all(seen.e2e_s[served] >= seen.ttft_s[served])
    assert np.all(seen.ttft_s[served] > 0)
    assert totals["length_s"] == pytest.approx(END_S)
    assert totals["arrivals"] == len(trace)
    assert totals["rejected"] == np.count_nonzero(~served) > 0
    assert totals["finished"] == np.count_nonzero(served)
    assert totals["output_tokens"] == trace.output_tokens[served].sum()
    assert totals["preemptions"] == seen.preemptions.sum() > 0
    gauges = fleet.gauges()
    for name in ("running", "queue_depth", "in_flight", "kv_cache_usage"):
        assert getattr(gauges, name)[0] == 0, name
    assert gauges.replica_kv_tokens.sum() == gauges.replica_queued_prompt_tokens.sum() == 0


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_gives_the_same_bits_beside_others_and_on_two_threads(scheduler: str) -> None:
    together = run(busy_fleet(scheduler, 8))
    assert_same_bits(run(busy_fleet(scheduler, 8, threads=2)), together)
    for first, n in ((3, 1), (0, 3)):
        apart = run(busy_fleet(scheduler, n, first=first), first)
        assert_same_bits([column[first : first + n] for column in together], apart)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_stopping_in_between_changes_no_bit_of_a_request(scheduler: str) -> None:
    straight, stopped = run(busy_fleet(scheduler)), run(busy_fleet(scheduler), between=3)
    assert_same_bits(stopped[-6:], straight[-6:])


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_an_idle_replica_computes_a_prompt_and_then_token_by_token(scheduler: str) -> None:
    # 100 prompt tokens in chunks of 64: 10 + 6.4, 10 + 3.6 ms; four decodes of 10.
    law = replace(
        small.PROFILE.step_time,
        base_s=0.01,
        per_prefill_token_s=1e-4,
        per_sequence_s=0.0,
        per_kv_token_s=0.0,
        prefill_base_s=0.0,
    )
    profile = replace(small.PROFILE, scheduler=scheduler, step_time=law)
    case = small.Case(small.trace([(1.0, 100, 5)]), profile, (small.tick(),))
    fleet = small.fleet(case)
    fleet.advance(10.0)
    assert fleet.requests().ttft_s[0] == pytest.approx(0.030, abs=1e-12)
    assert fleet.requests().e2e_s[0] == pytest.approx(0.070, abs=1e-12)
