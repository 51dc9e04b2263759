"""The compiled simulator against the naive loop, on random small clusters."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from envs.simulator import ROUTERS, Fleet, Gauges
from tests.envs.simulator import small
from tests.envs.simulator.oracle import Oracle
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import KvCache, ServingProfile, Stage, Stages

GAP_S = 0.0031415926535
"""Arrivals are whole multiples; ticks are of another irrational number, so that they never meet."""
TICK_S = 0.0271828182845


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A cluster under fire: few blocks, moving caps, replicas that come and go, closed loops."""
    profile = _profile(draw)
    # Distinct prompts: two replicas in step would end an iteration at one moment, up to rounding.
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(1, 150), st.integers(1, 60)),
            min_size=1,
            max_size=24,
            unique_by=lambda row: row[1],
        )
    )
    arrival_s = np.cumsum([gap for gap, _, _ in rows]) * GAP_S
    slots = draw(st.integers(1, 4))
    return Case(
        trace=small.trace(
            [(at_s, prompt, out) for at_s, (_, prompt, out) in zip(arrival_s, rows, strict=True)]
        ),
        profile=profile,
        ticks=_ticks(draw, slots, profile.frontend is not None),
        router=draw(st.sampled_from(sorted(ROUTERS))),
        slots=slots,
        seed=draw(st.integers(0, 2**64 - 1)),
        end_s=200.0,
        clients=draw(st.sampled_from([0, 0, 1, 3, 12])),
        factors=_factors(draw, slots),
        drain_timeout_s=draw(st.sampled_from([None, 0.0, 0.0123, 0.1])),
        crash_per_hour=draw(st.sampled_from([0.0, 0.0, 3600.0, 36000.0])),
    )


def _profile(draw: st.DrawFn):
    profile = replace(
        PROFILE,
        kv=KvCache(
            block_tokens=draw(st.sampled_from([4, 16, 7])),
            blocks=draw(st.integers(8, 60)),
            watermark=draw(st.sampled_from([0.0, 0.05])),
        ),
        limits=replace(PROFILE.limits, chunk_tokens=draw(st.sampled_from([8, 33, 64, 512]))),
    )
    if draw(st.booleans()):
        table = ((1, 0.00113), (3, 0.00197), (6, 0.00229))
        law = replace(profile.step_time, base_s=0.0, per_sequence_s=0.0, batch_table=table)
        profile = replace(profile, step_time=law)
    if draw(st.booleans()):
        profile = _with_more_terms(draw, profile)
    if draw(st.booleans()):
        ramp = draw(st.sampled_from([(), ((2, 0.3), (3, 0.7))]))
        profile = small.with_startup(
            profile,
            stages=Stages(
                schedule=Stage(0.005, 0.2),
                weights=Stage(draw(st.sampled_from([0.01, 0.2])), 0.3),
                compile=Stage(0.01),
            ),
            ramp=ramp,
        )
    if draw(st.booleans()):
        limits = replace(
            profile.limits,
            batch_size_applied="restart",
            batch_size_oom=draw(st.sampled_from([None, 5, 8])),
        )
        profile = replace(profile, limits=limits)
    if draw(st.booleans()):
        profile = small.with_frontend(
            profile,
            per_output_token_s=draw(st.sampled_from([0.0, 0.000123, 0.00231])),
            ingress_s=draw(st.sampled_from([0.0, 0.0156])),
        )
    return profile


def _with_more_terms(draw: st.DrawFn, profile: ServingProfile) -> ServingProfile:
    """Tables over the prompt tokens and of the straggler, and attention over the context."""
    law = replace(
        profile.step_time, per_context_s=draw(st.sampled_from([0.0, math.sqrt(13) * 1e-6]))
    )
    if draw(st.booleans()):
        table = ((3, 0.00217), (11, 0.00319), (40, 0.00853))
        law = replace(law, prefill_base_s=0.0, per_prefill_token_s=0.0, prefill_table=table)
    if draw(st.booleans()):
        law = replace(law, straggler=((2, 1.0231), (5, 1.1773)))
    return replace(profile, step_time=law)


def _factors(draw: st.DrawFn, slots: int) -> dict[str, float]:
    if draw(st.booleans()):
        return {}
    return {
        "step_time": draw(st.sampled_from([0.8237, 1.0, 1.3123])),
        "prefill": draw(st.sampled_from([0.7113, 1.0, 1.9371])),
        "kv": draw(st.sampled_from([0.0, 1.0, 31.71])),
        "slow_slot": draw(st.integers(-1, slots - 1)),
        "slow": draw(st.sampled_from([1.0, 1.7321])),
    }


def _ticks(draw: st.DrawFn, slots: int, frontend: bool) -> tuple[small.Tick, ...]:
    ticks = []
    at_s = 0.0
    for _ in range(draw(st.integers(1, 6))):
        ticks.append(
            small.tick(
                at_s,
                replicas=draw(st.integers(0 if ticks else 1, slots)),
                batch_size=draw(st.integers(1, 8)),
                threads=draw(st.integers(1, 4)) if frontend else 1,
                warmup_requests=draw(st.integers(0, 3)),
            )
        )
        at_s += draw(st.integers(1, 15)) * TICK_S
    if ticks[-1].replicas == 0:
        ticks.append(small.tick(at_s, replicas=1))
    return tuple(ticks)


def run_both(case: Case) -> tuple[Fleet, Oracle]:
    """Drive both through the ticks, comparing what can be seen at each."""
    fleet, oracle = small.fleet(case), small.oracle(case)
    totals = dict.fromkeys(("arrivals", "prompt_tokens", "output_tokens", "finished"), 0)
    totals |= dict.fromkeys(("rejected", "failed", "met", "missed", "preemptions", "starts"), 0)
    totals |= dict.fromkeys(("busy_s", "replica_s"), 0)
    for number, tick in enumerate((*case.ticks, small.tick(case.end_s))):
        if number > 0:
            fleet.advance(tick.at_s)
            oracle.advance(tick.at_s)
            assert_same_gauges(fleet.gauges(), oracle)
            window = fleet.window()
            for name in totals:
                totals[name] += getattr(window, name)[0]
                seen, expected = totals[name], getattr(oracle.sums, name)
                assert seen == pytest.approx(expected, rel=1e-9, abs=1e-9), name
            ended = totals["finished"] + totals["rejected"] + totals["failed"]
            assert totals["arrivals"] == ended + fleet.gauges().in_flight[0]
        if 0 < number < len(case.ticks):
            fleet.apply(small.settings(tick))
            oracle.apply(
                replicas=tick.replicas,
                batch_size=tick.batch_size,
                threads=tick.threads,
                warmup_requests=tick.warmup_requests,
            )
    return fleet, oracle


def assert_same_gauges(gauges: Gauges, oracle: Oracle) -> None:
    waiting = len(oracle.waiting) + sum(len(oracle.queue_of(r)) for r in oracle.slots)
    running = sum(len(oracle.running_of(r)) for r in oracle.slots)
    assert gauges.queue_depth[0] == waiting
    assert gauges.running[0] == running
    assert gauges.in_flight[0] == waiting + running
    assert gauges.ready[0] == oracle.count("ready")
    assert gauges.starting[0] == oracle.count("starting") + oracle.count("warming")
    assert gauges.draining[0] == oracle.count("draining")
    for slot, replica in enumerate(oracle.slots):
        if replica.state in ("ready", "draining"):
            used = oracle.blocks_of(replica) / oracle.blocks
            assert gauges.replica_kv_cache_usage[0, slot] == pytest.approx(used, abs=1e-12)
            assert gauges.replica_kv_tokens[0, slot] == oracle.tokens_of(replica)
            queued = oracle.queued_tokens_of(replica)
            assert gauges.replica_queued_prompt_tokens[0, slot] == queued


def assert_same_requests(fleet: Fleet, oracle: Oracle, tolerance: float = 1e-9) -> None:
    seen = fleet.requests()
    np.testing.assert_array_equal(seen.replica, oracle.column("replica"))
    np.testing.assert_array_equal(seen.preemptions, oracle.column("preemptions"))
    np.testing.assert_array_equal(seen.rejected, oracle.column("rejected"))
    np.testing.assert_array_equal(seen.failed, oracle.column("failed"))
    ends = np.array([~np.isnan(seen.e2e_s), seen.rejected, seen.failed]).sum(axis=0)
    assert np.all(ends <= 1)
    if fleet.done()[0]:
        assert np.all(ends == 1)
    for name in ("ttft_s", "e2e_s"):
        np.testing.assert_allclose(
            getattr(seen, name), oracle.column(name), rtol=tolerance, atol=tolerance, err_msg=name
        )


@hypothesis_settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_equals_the_naive_loop(case: Case) -> None:
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    event(f"preemptions: {min(oracle.sums.preemptions, 10)}")
    event(f"starts: {min(oracle.sums.starts, 10)}")
    event(f"failed: {min(oracle.sums.failed, 5)}")
    event(f"all ended: {bool(fleet.done()[0])}")
