"""Crashes, drain time-outs, starts that run out of memory; numbers derived by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import EnvFactors, Fleet, ReplicaState
from tests.envs.simulator import small
from tests.envs.simulator.oracle_draws import exponential
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import EngineLimits, KvCache, Stage, Stages, Startup, StepTime

STEP_S = 1 / 128
"""Of every iteration; exact in binary, so that what is at one moment is at one moment."""
STEADY = replace(PROFILE, step_time=StepTime(base_s=STEP_S))
STAGED = Startup(Stages(Stage(3.0), Stage(2.0), weights=Stage(1.0), compile=Stage(7.0)))
"""13 s; 8 s where the container restarts in place; memory runs out after 6 or 1 s."""
FAR = small.trace([(1e6, 5, 1)])
CRASH = 6
"""The stream of draws of crashes."""

OFF, STARTING, WARMING, READY, DRAINING = ReplicaState


def states(fleet: Fleet) -> list[int]:
    return fleet.gauges().replica_state[0].tolist()


def put(fleet: Fleet, **changes: int) -> None:
    fleet.apply(small.settings(small.tick(**changes)))


# Drain time-outs


def drained(timeout_s: float | None, rows: list[tuple[float, int, int]]) -> Fleet:
    """Two replicas that run one request each at a time; slot 1 drains from 0.25 s on."""
    tick = small.tick(replicas=2, batch_size=1)
    case = Case(small.trace(rows), STEADY, (tick,), drain_timeout_s=timeout_s)
    fleet = small.fleet(case)
    fleet.advance(0.25)
    put(fleet, replicas=1, batch_size=1)
    return fleet


def test_what_has_not_ended_when_the_time_to_drain_is_up_fails_and_frees_the_slot() -> None:
    # Each replica runs a request of 128 iterations, to 1 s, with another behind it.
    fleet = drained(0.5, [(0.0, 5, 128)] * 4)
    fleet.advance(0.75 - 1e-9)
    assert states(fleet)[:2] == [READY, DRAINING]
    fleet.advance(0.75 + 1e-9)
    assert states(fleet)[:2] == [READY, OFF]
    gauges, window = fleet.gauges(), fleet.window()
    assert (gauges.running[0], gauges.queue_depth[0], gauges.in_flight[0]) == (1, 1, 2)
    assert (window.failed[0], window.finished[0], window.missed[0]) == (2, 0, 2)
    assert window.output_tokens[0] == 2 * 96  # 0.75 s of iterations on both
    assert window.replica_s[0] == pytest.approx(1.5)
    assert window.busy_s[0] == pytest.approx(1.5)
    fleet.advance(10.0)
    seen = fleet.requests()
    assert seen.failed.tolist() == [False, True, False, True]
    assert np.isnan(seen.e2e_s[1])
    assert seen.ttft_s[1] == STEP_S
    assert np.isnan(seen.ttft_s[3])
    assert fleet.done()[0]
    put(fleet, replicas=2)  # the slot is as good as new
    assert states(fleet)[:2] == [READY, READY]
    assert fleet.gauges().replica_kv_cache_usage[0, 1] == 0.0


def test_a_request_that_ends_at_the_very_time_out_has_ended() -> None:
    fleet = drained(0.25, [(0.0, 5, 128), (0.0, 5, 64)])
    fleet.advance(0.5)
    assert states(fleet)[:2] == [READY, OFF]
    assert (fleet.window().failed[0], fleet.requests().e2e_s[1]) == (0, 0.5)


def test_without_a_time_out_a_replica_drains_as_long_as_it_takes() -> None:
    fleet = drained(None, [(0.0, 5, 128), (0.0, 5, 640)])
    fleet.advance(4.9)
    assert states(fleet)[:2] == [READY, DRAINING]
    fleet.advance(5.1)
    assert states(fleet)[:2] == [READY, OFF]


def test_a_request_whose_first_token_was_late_is_missed_once_when_it_fails() -> None:
    # In slot 1 the second request waits until 0.25 s, beyond the objective of 0.1 s.
    fleet = drained(0.5, [(0.0, 5, 1), (0.0, 5, 32), (0.0, 5, 1), (0.0, 5, 128)])
    fleet.advance(0.5)
    assert fleet.window().missed[0] == 2  # and the one before it, for its TPOT
    fleet.advance(1.0)
    window = fleet.window()
    assert (window.failed[0], window.missed[0]) == (1, 0)


def test_a_rolling_restart_goes_on_when_the_time_to_drain_is_up() -> None:
    profile = replace(small.with_frontend(STEADY), startup=STAGED)
    case = Case(
        small.trace([(0.0, 5, 60)] * 2), profile, (small.tick(replicas=2),), drain_timeout_s=0.125
    )
    fleet = small.fleet(case)
    fleet.advance(0.25)
    put(fleet, replicas=2, threads=2)
    fleet.advance(0.5)
    assert states(fleet)[:2] == [STARTING, READY]
    window = fleet.window()
    assert (window.failed[0], window.starts[0]) == (1, 1)
    fleet.advance(30.0)
    assert states(fleet)[:2] == [READY, READY]
    assert fleet.window().starts[0] == 1


# Crashes


def test_a_crash_fails_what_the_replica_has_and_restarts_it_in_place() -> None:
    # Long requests all the time; the first replica of the reset is the first that serves.
    seed, per_hour = 9, 3600.0
    served_s = exponential(seed, CRASH, 0)
    again_s = exponential(seed, CRASH, 1)
    rows = [(0.25 * k, 5, 640) for k in range(80)]
    profile = replace(STEADY, startup=STAGED)
    case = Case(small.trace(rows), profile, (small.tick(),), seed=seed, crash_per_hour=per_hour)
    fleet = small.fleet(case)
    before = sum(arrival_s <= served_s for arrival_s, _, _ in rows)
    fleet.advance(served_s - 1e-6)
    assert (fleet.window().failed[0], states(fleet)[0]) == (0, READY)
    fleet.advance(served_s + 1e-6)
    window = fleet.window()
    assert (window.failed[0], window.starts[0]) == (before, 1)
    assert fleet.gauges().in_flight[0] == 0
    fleet.advance(served_s + 8.0 - 1e-6)
    assert states(fleet)[0] == STARTING
    fleet.advance(served_s + 8.0 + 1e-6)
    gauges, window = fleet.gauges(), fleet.window()
    assert states(fleet)[0] == READY
    assert gauges.running[0] == 8  # what waited at the router meanwhile
    assert (window.starts[0], window.failed[0]) == (0, 0)
    assert window.replica_s[0] == pytest.approx(8.0, abs=1e-5)  # held, though it served nothing
    fleet.advance(served_s + 8.0 + again_s + 1e-6)
    assert fleet.window().failed[0] > 0


def test_crashes_come_at_the_rate_that_was_asked_for() -> None:
    case = Case(FAR, STEADY, (small.tick(replicas=2),), crash_per_hour=0.5)
    n = 2000
    seeds = np.arange(n, dtype=np.uint64)
    fleet = Fleet(case.trace, STEADY, seeds=seeds, slots=2, crash_per_hour=0.5)
    fleet.reset(slice(None), start_s=0.0, seeds=seeds, settings=small.settings(case.ticks[0], n))
    fleet.advance(2 * 3600.0)
    crashes = fleet.window().starts  # two replica-hours each at 0.5 per hour, twice over
    assert crashes.mean() == pytest.approx(2.0, abs=4 * np.sqrt(2.0 / n))
    assert crashes.var() == pytest.approx(2.0, rel=0.15)  # as Poisson has it


def test_without_crashes_nothing_is_drawn() -> None:
    fleet = small.fleet(Case(FAR, STEADY, (small.tick(replicas=3),)))
    fleet.advance(1e5)
    assert fleet.window().starts[0] == 0


# Out of memory


def limits(applied: str, oom: int | None) -> EngineLimits:
    return EngineLimits(
        batch_size_max=8,
        chunk_tokens=64,
        batch_size_oom=oom,
        batch_size_applied=applied,  # type: ignore[arg-type]
    )


def starts_of(fleet: Fleet, until_s: float) -> list[float]:
    """When a container began to start anew, to the tenth of a second."""
    seen, at_s = [], 0.0
    while at_s < until_s:
        at_s += 0.1
        fleet.advance(at_s)
        seen.extend([round(at_s, 1)] * int(fleet.window().starts[0]))
    return seen


def crash_looping(weights_s: float) -> Fleet:
    """A single replica that is asked for at 0 s with a ceiling that does not fit."""
    stages = replace(STAGED.stages, weights=Stage(weights_s))
    profile = replace(STEADY, limits=limits("restart", 4), startup=replace(STAGED, stages=stages))
    fleet = small.fleet(Case(FAR, profile, (small.tick(replicas=0, batch_size=8),)))
    put(fleet, replicas=1, batch_size=8)
    return fleet


def test_a_start_that_runs_out_of_memory_is_tried_again_with_the_kubelets_pauses() -> None:
    # The pod is scheduled and its image there after 5 s; each try takes 1 s. The crash of a try
    # counts the next start, which then waits.
    fleet = crash_looping(weights_s=1.0)
    pauses = [0, 10, 20, 40, 80, 160, 300, 300]
    crashed_s = 6.0 + np.cumsum([0.0] + [pause + 1.0 for pause in pauses])
    seen = starts_of(fleet, 1000.0)
    assert seen[0] == 0.1
    np.testing.assert_allclose(seen[1:], crashed_s, atol=0.11)
    assert states(fleet)[0] == STARTING
    assert fleet.gauges().ready[0] == 0
    fleet.advance(1010.0)
    assert fleet.window().replica_s[0] == pytest.approx(10.0)  # it holds its GPUs


@pytest.mark.parametrize(
    ("weights_s", "pause_s"), [(599.0, 10.0), (600.0, 0.0)], ids=["short of it", "ten minutes"]
)
def test_a_container_that_ran_for_ten_minutes_begins_a_new_row(weights_s, pause_s) -> None:
    fleet = crash_looping(weights_s)
    third_s = 5.0 + 2 * weights_s + pause_s  # its weights begin to load
    fleet.advance(third_s + weights_s - 0.5)
    assert fleet.window().starts[0] == 3
    fleet.advance(third_s + weights_s + 0.5)
    assert fleet.window().starts[0] == 1


def test_a_lower_ceiling_ends_the_loop_at_once() -> None:
    fleet = crash_looping(weights_s=1.0)
    fleet.advance(100.0)  # in a pause of 80 s
    put(fleet, replicas=1, batch_size=4)
    fleet.advance(112.9)
    assert states(fleet)[0] == STARTING
    fleet.advance(113.1)
    assert states(fleet)[0] == READY


def test_a_rolling_restart_to_a_ceiling_that_does_not_fit_takes_one_replica_with_it() -> None:
    profile = replace(STEADY, limits=limits("restart", 4), startup=STAGED)
    fleet = small.fleet(Case(FAR, profile, (small.tick(replicas=3, batch_size=4),)))
    put(fleet, replicas=3, batch_size=8)
    fleet.advance(5000.0)
    assert states(fleet)[:3] == [STARTING, READY, READY]
    put(fleet, replicas=3, batch_size=4)  # back: the others never left it
    fleet.advance(5013.1)
    assert states(fleet)[:3] == [READY, READY, READY]


@pytest.mark.parametrize(
    ("applied", "oom", "comes_up"),
    [("hot", 8, True), ("hot", 7, False), ("restart", 7, False), ("restart", None, True)],
    ids=["at the limit", "hot: the ceiling is batch_size_max", "above", "no limit is known"],
)
def test_the_ceiling_of_a_start_follows_from_how_the_knob_is_applied(applied, oom, comes_up):
    profile = replace(STEADY, limits=limits(applied, oom), startup=STAGED)
    fleet = small.fleet(Case(FAR, profile, (small.tick(replicas=0),)))
    put(fleet, replicas=1, batch_size=8)
    fleet.advance(13.5)
    assert (states(fleet)[0] == READY) == comes_up


def test_a_cap_that_moves_while_the_engine_runs_restarts_nobody() -> None:
    profile = replace(STEADY, limits=limits("hot", 8), startup=STAGED)
    fleet = small.fleet(Case(FAR, profile, (small.tick(replicas=2, batch_size=2),)))
    put(fleet, replicas=2, batch_size=8)
    fleet.advance(100.0)
    assert fleet.window().starts[0] == 0


def test_a_reset_does_not_make_ready_what_could_not_start() -> None:
    profile = replace(STEADY, limits=limits("restart", 4), startup=STAGED)
    fleet = small.fleet(Case(FAR, profile, (small.tick(replicas=2, batch_size=8),)))
    assert states(fleet)[:2] == [STARTING, STARTING]


# Restarts


def test_a_batch_size_of_the_start_is_put_in_force_replica_by_replica() -> None:
    # 20 long requests wait at each of three replicas; no replica ever runs more than it was
    # started with, and one at a time is away.
    rows = [(0.0, 5, 640)] * 60
    profile = replace(STEADY, limits=limits("restart", None), startup=STAGED)
    case = Case(small.trace(rows), profile, (small.tick(replicas=3, batch_size=2),))
    fleet = small.fleet(case)
    fleet.advance(1.0)
    put(fleet, replicas=3, batch_size=8)
    caps, away = [2, 2, 2], []
    for at_s in np.arange(2.0, 300.0, 1.0):
        fleet.advance(at_s)
        gauges = fleet.gauges()
        for slot in range(3):
            if gauges.replica_state[0, slot] == STARTING:
                caps[slot] = 8
            assert gauges.replica_running[0, slot] <= caps[slot]
        away.append(3 - int(gauges.ready[0]))
    assert caps == [8, 8, 8]
    assert set(away) == {0, 1}
    assert fleet.done()[0]


def test_a_replica_that_starts_with_old_settings_begins_anew() -> None:
    profile = replace(small.with_frontend(STEADY), startup=STAGED)
    fleet = small.fleet(Case(FAR, profile, (small.tick(replicas=0),)))
    put(fleet, replicas=1)
    fleet.advance(4.0)
    put(fleet, replicas=1, threads=2)
    fleet.advance(16.9)
    assert states(fleet)[0] == STARTING
    fleet.advance(17.1)
    assert states(fleet)[0] == READY
    assert fleet.window().starts[0] == 2


def test_the_prefix_cache_is_cold_after_a_start_and_fills_with_prompts() -> None:
    # A cache of 20 blocks of 8 tokens (one more is vLLM's own); prompts of 80 tokens of which 64
    # hit in a warm cache. The first finds an empty one, the second half a one, the third a full
    # one: 80, 48 and 16 tokens are left to prefill.
    profile = replace(
        PROFILE,
        scheduler="vllm-v1",
        kv=KvCache(8, blocks=21, watermark=0.0, prefix_cache=True),
        limits=EngineLimits(batch_size_max=8, chunk_tokens=512),
        step_time=StepTime(base_s=0.01, per_prefill_token_s=0.001),
    )
    rows = [(1.0, 80, 1), (2.0, 80, 1), (3.0, 80, 1)]
    trace = small.trace(rows, hits=[64, 64, 64])
    warm = small.fleet(Case(trace, profile, (small.tick(),)))
    cold = small.fleet(Case(trace, profile, (small.tick(replicas=0),)))
    put(cold, replicas=1)
    for fleet, expected in ((warm, [0.026] * 3), (cold, [0.09, 0.058, 0.026])):
        fleet.advance(5.0)
        np.testing.assert_allclose(fleet.requests().ttft_s, expected)


def test_the_factor_on_cold_starts_stretches_stages_and_no_pause() -> None:
    fleet = crash_looping(weights_s=1.0)
    seeds = np.array([7], np.uint64)
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=seeds,
        settings=small.settings(small.tick(replicas=0, batch_size=8)),
        factors=replace(EnvFactors.none(1), cold_start=np.full(1, 2.0)),
    )
    put(fleet, replicas=1, batch_size=8)
    # Twice 5 s before the container, twice 1 s per try; pauses of 0 and 10 s.
    seen = starts_of(fleet, 40.0)
    np.testing.assert_allclose(seen, [0.1, 12.0, 14.0, 26.0], atol=0.11)
