"""One simulated run: what it costs, what it leaves out, and that it can be repeated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.config import FailureConfig
from experiments.config import RunConfig
from experiments.result import RunResult
from experiments.run import run, target_knobs
from experiments.summary import figures_of
from policies import RulePolicy, StaticRule, build_policy
from tests.envs import worlds
from tuner.core.gaps import treat_gaps
from tuner.core.trace import Trace

CONFIG = RunConfig(max_replicas=6, initial_replicas=3)


def run_static(trace: Trace, replicas: int = 3, **changes: object) -> RunResult:
    config = replace(CONFIG, initial_replicas=replicas, **changes)
    knobs = target_knobs(worlds.PROFILE, max_replicas=6)
    policy = build_policy("static", {"replicas": replicas}, knobs, tick_s=15.0)
    hold = RulePolicy("hold", StaticRule({}))
    return run(trace, worlds.PROFILE, policy, config=config, seed=1, fallback=hold)


def test_replica_hours_count_to_the_last_arrival_and_no_further():
    trace = worlds.trace(seconds=1000.0)
    result = run_static(trace)
    assert result.ticks.at_s[-1] > trace.last_arrival_s + 1, "the fleet should work overtime"
    assert result.replica_hours == pytest.approx(3 * trace.last_arrival_s / 3600, rel=1e-12)
    assert result.gpu_hours == result.replica_hours * worlds.PROFILE.gpus_per_replica


def test_a_run_ends_at_most_overtime_after_the_last_arrival():
    trace = worlds.trace(seconds=600.0, qps=40.0)
    result = run_static(trace, replicas=1, overtime_s=60.0)
    assert result.ticks.at_s[-1] <= trace.last_arrival_s + 60.0 + CONFIG.tick_s
    unfinished = np.isnan(result.requests.e2e_s)
    assert unfinished.any()
    assert not result.requests.met(CONFIG.slo)[unfinished].any()


def test_ticks_inside_a_masked_gap_cost_nothing():
    whole = worlds.trace(seconds=4000.0)
    kept = (whole.arrival_s < 1500.0) | (whole.arrival_s > 2700.0)
    silent = Trace(whole.arrival_s[kept], whole.prompt_tokens[kept], whole.output_tokens[kept])
    masked, gaps = treat_gaps(silent, "mask")
    (gap,) = gaps
    assert gap.length_s > 1190
    counted, left_out = run_static(silent), run_static(masked)
    saved_s = (counted.replica_hours - left_out.replica_hours) * 3600 / 3
    # Whole ticks are left out: up to one more at each end.
    assert gap.length_s <= saved_s <= gap.length_s + 2 * CONFIG.tick_s
    assert left_out.span_s == pytest.approx(counted.span_s - gap.length_s)


def test_failures_that_were_asked_for_end_requests_and_count_as_missed():
    trace = worlds.trace(seconds=1000.0)
    well = run_static(trace)
    assert not well.requests.failed.any()
    ill = run_static(trace, failures=FailureConfig(crash_per_hour=30.0))
    failed = ill.requests.failed
    assert failed.any()
    assert np.isnan(ill.requests.e2e_s[failed]).all()
    assert (ill.requests.finished ^ failed).all()
    assert not ill.requests.met(CONFIG.slo)[failed].any()
    assert ill.ticks.missed.sum() == (~ill.requests.met(CONFIG.slo)).sum()
    assert ill.replica_hours == pytest.approx(well.replica_hours)  # they are held all the same


def test_a_unit_of_several_nodes_is_billed_with_all_its_gpus():
    trace = worlds.trace(seconds=300.0)
    profile = replace(worlds.PROFILE, gpus_per_replica=16)
    knobs = target_knobs(profile, max_replicas=6)
    policy = build_policy("static", {"replicas": 5}, knobs, tick_s=15.0)
    config = replace(CONFIG, initial_replicas=2)
    result = run(trace, profile, policy, config=config, seed=1, fallback=policy)
    hours = trace.last_arrival_s / 3600
    late_hours = (trace.last_arrival_s - 15.0) / 3600  # three start at the first tick, and are held
    assert result.replica_hours == pytest.approx(2 * hours + 3 * late_hours)
    assert result.gpu_hours == pytest.approx(16 * result.replica_hours)
    assert figures_of(result, config.slo).gpu_hours == result.gpu_hours


def test_a_batch_size_that_needs_a_start_is_told_from_one_that_moves():
    hot = target_knobs(worlds.PROFILE, max_replicas=6)["batch_size"]
    assert (hot.applied, hot.low, hot.high) == ("hot", 1, 32)
    limits = replace(worlds.PROFILE.limits, batch_size_applied="restart", batch_size_oom=24)
    cold = target_knobs(replace(worlds.PROFILE, limits=limits), max_replicas=6)["batch_size"]
    assert (cold.applied, cold.low, cold.high, cold.default) == ("restart", 1, 32, 24)


def test_one_seed_gives_one_result():
    def once(seed: int) -> RunResult:
        knobs = target_knobs(worlds.PROFILE, max_replicas=6)
        hpa = build_policy("hpa", {"target": 150.0}, knobs, tick_s=15.0)
        trace = worlds.trace(seconds=2000.0)
        return run(trace, worlds.PROFILE, hpa, config=CONFIG, seed=seed, fallback=hpa)

    first, again, other = once(1), once(1), once(2)
    np.testing.assert_array_equal(first.requests.e2e_s, again.requests.e2e_s)
    assert first.ticks.sentence == again.ticks.sentence
    assert first.replica_hours == again.replica_hours
    assert (first.requests.e2e_s != other.requests.e2e_s).any()
    assert first.actions > 0


def test_a_knob_that_the_profile_does_not_model_has_one_value():
    knobs = target_knobs(worlds.PROFILE, max_replicas=6)
    assert knobs["threads"].low == knobs["threads"].high
    assert knobs["replicas"].high == 6
    assert set(run_static(worlds.trace(300.0)).pinned) == {"threads"}
