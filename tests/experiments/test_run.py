"""One simulated run: what it costs, what it leaves out, and that it can be repeated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.result import RunResult
from experiments.run import run, target_knobs
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
