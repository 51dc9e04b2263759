"""Replicas that start, warm up, drain and restart; numbers derived by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import Fleet, ReplicaState
from tests.envs.simulator import small
from tests.envs.simulator.oracle_draws import normal, truncated_normal
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import Frontend, KvCache, Stage, Stages, Startup, StepTime
from tuner.data.startups import with_startup

STEADY = replace(PROFILE, step_time=StepTime(base_s=0.01))
"""Every iteration takes 0.01 s."""
FAR = small.trace([(1e6, 5, 1)])
"""No load to speak of."""

WEIGHTS = 2
"""Place of that stage among the draws of a start."""
OFF, STARTING, WARMING, READY, DRAINING = ReplicaState


def weights(median_s: float, spread: float = 0.0) -> Stages:
    """A start that is all one stage."""
    return Stages(weights=Stage(median_s, spread))


def cold(**changes: object) -> Case:
    """Cold starts of exactly 10 s, unless changed."""
    usual = {"stages": weights(10.0), "warmup_request_s": 0.5}
    profile = replace(STEADY, startup=Startup(**{**usual, **changes}))
    return Case(FAR, profile, (small.tick(),), slots=5)


def states(fleet: Fleet) -> list[int]:
    return fleet.gauges().replica_state[0].tolist()


def put(fleet: Fleet, **changes: int) -> None:
    fleet.apply(small.settings(small.tick(**changes)))


def test_starts_at_once_without_a_startup_section() -> None:
    fleet = small.fleet(Case(FAR, STEADY, (small.tick(),)))
    put(fleet, replicas=3)
    assert states(fleet) == [READY, READY, READY]


def test_a_cold_start_ends_in_warm_up_and_then_ready() -> None:
    fleet = small.fleet(cold())
    put(fleet, replicas=2, warmup_requests=4)
    for at_s, state in ((9.9, STARTING), (10.1, WARMING), (11.9, WARMING), (12.1, READY)):
        fleet.advance(at_s)
        assert states(fleet)[:2] == [READY, state], at_s


def test_cold_starts_follow_from_seed_and_number_alone() -> None:
    case = replace(cold(stages=weights(10.0, 0.3)), seed=123)
    fleet = small.fleet(case)
    put(fleet, replicas=4)
    ready_s = sorted(
        10.0 * math.exp(0.3 * truncated_normal(123, 1, 4 * k + WEIGHTS)) for k in range(3)
    )
    for count, at_s in enumerate(ready_s, start=1):
        fleet.advance(at_s - 1e-6)
        assert fleet.gauges().ready[0] == count
        fleet.advance(at_s + 1e-6)
        assert fleet.gauges().ready[0] == count + 1


def test_a_cold_start_beyond_three_sigma_is_drawn_again() -> None:
    seed = next(seed for seed in range(10_000) if abs(normal(seed, 1, 256 * WEIGHTS)) > 3.0)
    fleet = small.fleet(replace(cold(stages=weights(10.0, 0.3)), seed=seed))
    put(fleet, replicas=2)
    ready_s = 10.0 * math.exp(0.3 * truncated_normal(seed, 1, WEIGHTS))
    fleet.advance(ready_s - 1e-6)
    assert states(fleet)[1] == STARTING
    fleet.advance(ready_s + 1e-6)
    assert states(fleet)[1] == READY


def test_cold_start_draws_are_truncated_and_normal() -> None:
    draws = np.array([truncated_normal(11, 1, k) for k in range(20_000)])
    assert np.abs(draws).max() <= 3.0
    assert draws.mean() == pytest.approx(0.0, abs=0.02)
    assert draws.std() == pytest.approx(0.987, abs=0.01)  # of a normal truncated at 3


@pytest.mark.parametrize(("name", "median_s"), [("warm", 120), ("normal", 480), ("cold", 1200)])
def test_a_named_start_has_its_median_and_two_thirds_within_30_percent(name, median_s) -> None:
    # One replica is asked for in each of n fleets; shares of them within 3.5 standard errors.
    n = 3000
    profile = with_startup(STEADY, name)
    seeds = np.arange(n, dtype=np.uint64)
    fleet = Fleet(FAR, profile, seeds=seeds, slots=1)
    nobody = small.settings(small.tick(replicas=0), n)
    fleet.reset(slice(None), start_s=0.0, seeds=seeds, settings=nobody)
    fleet.apply(small.settings(small.tick(), n))
    ready = []
    for share in (0.7, 1.0, 1.3):
        fleet.advance(share * median_s)
        ready.append(fleet.gauges().ready.mean())
    assert ready[1] == pytest.approx(0.5, abs=3.5 * math.sqrt(0.25 / n))
    assert ready[2] - ready[0] == pytest.approx(0.68, abs=0.04)


def test_the_stages_of_a_start_are_drawn_one_by_one() -> None:
    stages = Stages(Stage(1.0, 0.5), Stage(2.0, 0.1), Stage(30.0, 0.3), Stage(4.0))
    fleet = small.fleet(replace(cold(stages=stages), seed=5))
    put(fleet, replicas=2)
    draws = [truncated_normal(5, 1, place) for place in range(4)]
    one_by_one = zip((1.0, 2.0, 30.0, 4.0), (0.5, 0.1, 0.3, 0.0), draws, strict=True)
    ready_s = sum(median_s * math.exp(spread * draw) for median_s, spread, draw in one_by_one)
    fleet.advance(ready_s - 1e-6)
    assert states(fleet)[1] == STARTING
    fleet.advance(ready_s + 1e-6)
    assert states(fleet)[1] == READY


def test_going_down_takes_the_newest_starts_first_and_at_once() -> None:
    fleet = small.fleet(cold())
    put(fleet, replicas=2)
    fleet.advance(1.0)
    put(fleet, replicas=4)
    assert states(fleet) == [READY, STARTING, STARTING, STARTING, OFF]
    put(fleet, replicas=3)
    assert states(fleet) == [READY, STARTING, STARTING, OFF, OFF]
    put(fleet, replicas=1)
    assert states(fleet) == [READY, OFF, OFF, OFF, OFF]


def test_going_down_drains_the_newest_ready_ones() -> None:
    # Slot 1 is ready at 10 s, slots 0 and 2 were from the start.
    case = replace(cold(), ticks=(small.tick(replicas=3),))
    fleet = small.fleet(case)
    put(fleet, replicas=1)
    assert states(fleet)[:3] == [READY, OFF, OFF]  # idle: nothing to drain; ties to the highest
    put(fleet, replicas=2)
    fleet.advance(10.5)
    put(fleet, replicas=3)
    fleet.advance(21.0)
    put(fleet, replicas=2)
    assert states(fleet)[:3] == [READY, READY, OFF]


def test_a_draining_replica_serves_what_it_has_and_takes_no_more() -> None:
    # Cap 1: the second request of each replica waits in its queue.
    rows = [(0.0, 5, 100), (0.0, 5, 100), (0.0, 5, 100), (0.0, 5, 100), (0.5, 5, 1)]
    case = Case(small.trace(rows), STEADY, (small.tick(replicas=2, batch_size=1),))
    fleet = small.fleet(case)
    fleet.advance(0.1)
    put(fleet, replicas=1, batch_size=1)
    assert states(fleet)[:2] == [READY, DRAINING]
    fleet.advance(1.99)
    assert states(fleet)[:2] == [READY, DRAINING]
    fleet.advance(2.01)
    assert states(fleet)[:2] == [READY, OFF]
    assert fleet.window().replica_s[0] == pytest.approx(2.01 + 2.0)
    fleet.advance(5.0)
    seen = fleet.requests()
    assert seen.replica.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(seen.e2e_s[:4], [1.0, 1.0, 2.0, 2.0])


def test_a_start_waits_for_a_free_slot() -> None:
    rows = [(0.0, 5, 100), (0.0, 5, 200)]
    case = Case(small.trace(rows), STEADY, (small.tick(replicas=2),), slots=2)
    fleet = small.fleet(replace(case, profile=cold().profile))
    fleet.advance(0.0)
    put(fleet, replicas=0)
    put(fleet, replicas=1)
    assert states(fleet) == [DRAINING, DRAINING]
    fleet.advance(1.5)
    assert states(fleet) == [STARTING, DRAINING]
    assert fleet.gauges().replica_started_s[0, 0] == pytest.approx(1.0)
    fleet.advance(11.1)
    assert states(fleet) == [READY, OFF]


def test_requests_wait_at_the_router_and_go_out_in_order_when_replicas_get_ready() -> None:
    rows = [(1.0 + 0.1 * k, 5, 1) for k in range(6)]
    case = replace(cold(), trace=small.trace(rows), ticks=(small.tick(replicas=0),))
    fleet = small.fleet(replace(case, router="round_robin"))
    put(fleet, replicas=3)  # all three are ready at 10 s
    fleet.advance(9.0)
    gauges = fleet.gauges()
    assert (gauges.queue_depth[0], gauges.in_flight[0], gauges.running[0]) == (6, 6, 0)
    fleet.advance(11.0)
    seen = fleet.requests()
    assert seen.replica.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_allclose(seen.ttft_s, 10.01 - np.array([row[0] for row in rows]))


def test_the_first_requests_of_a_new_replica_run_slowly() -> None:
    # Two requests at a tenth of the speed, one at half; spaced, so that each runs alone.
    rows = [(20.0 + k, 5, 1) for k in range(4)]
    case = replace(cold(ramp=((2, 0.1), (1, 0.5))), trace=small.trace(rows))
    fleet = small.fleet(replace(case, ticks=(small.tick(replicas=0),)))
    put(fleet, replicas=1)
    fleet.advance(30.0)
    np.testing.assert_allclose(fleet.requests().ttft_s, [0.1, 0.1, 0.02, 0.01])


@pytest.mark.parametrize(
    ("warmups", "seconds"), [(1, 5.0), (2, 10.0), (3, 11.0), (5, 12.0)], ids=str
)
def test_warm_up_requests_climb_the_ramp_before_the_replica_is_ready(warmups, seconds) -> None:
    # Half a second each at full speed: 5 s at a tenth of it, 1 s at half.
    fleet = small.fleet(cold(ramp=((2, 0.1), (1, 0.5))))
    put(fleet, replicas=2, warmup_requests=warmups)
    fleet.advance(10.0 + seconds - 1e-6)
    assert states(fleet)[:2] == [READY, WARMING]
    fleet.advance(10.0 + seconds + 1e-6)
    assert states(fleet)[:2] == [READY, READY]


def test_warm_up_requests_use_up_the_ramp() -> None:
    rows = [(30.0 + k, 5, 1) for k in range(4)]
    case = replace(cold(ramp=((2, 0.1), (1, 0.5))), trace=small.trace(rows))
    fleet = small.fleet(replace(case, ticks=(small.tick(replicas=0),)))
    put(fleet, replicas=1, warmup_requests=2)
    fleet.advance(40.0)
    np.testing.assert_allclose(fleet.requests().ttft_s, [0.02, 0.01, 0.01, 0.01])


def test_a_request_that_is_preempted_uses_up_the_ramp_once() -> None:
    # Ten blocks hold one of the two at full length, so the second is preempted and admitted
    # again, several times; the ramp of three requests still slows the third.
    rows = [(20.0, 40, 110), (20.0, 40, 110), (40.0, 5, 1), (41.0, 5, 1)]
    case = replace(cold(ramp=((3, 0.5),)), trace=small.trace(rows))
    profile = replace(case.profile, kv=KvCache(block_tokens=16, blocks=10, watermark=0.0))
    fleet = small.fleet(replace(case, profile=profile, ticks=(small.tick(replicas=0),)))
    put(fleet, replicas=1)
    fleet.advance(60.0)
    seen = fleet.requests()
    assert seen.preemptions.sum() > 3
    np.testing.assert_allclose(seen.ttft_s[2:], [0.02, 0.01])


def test_replicas_of_a_reset_are_past_their_ramp() -> None:
    case = replace(cold(ramp=((2, 0.1),)), trace=small.trace([(1.0, 5, 1)]))
    fleet = small.fleet(case)
    fleet.advance(2.0)
    np.testing.assert_allclose(fleet.requests().ttft_s, [0.01])


def test_a_lower_cap_evicts_nobody_and_a_higher_one_holds_from_the_next_iteration() -> None:
    # Two run from 0 s on. The third request waits under cap 1, although the first has ended at
    # 0.1 s; the cap rises at 0.155 s, in the iteration that ends at 0.16 s.
    rows = [(0.0, 5, 10), (0.0, 5, 50), (0.02, 5, 1)]
    fleet = small.fleet(Case(small.trace(rows), STEADY, (small.tick(batch_size=2),)))
    fleet.advance(0.015)
    put(fleet, batch_size=1)
    assert fleet.gauges().running[0] == 2
    fleet.advance(0.155)
    assert (fleet.gauges().running[0], fleet.gauges().queue_depth[0]) == (1, 1)
    put(fleet, batch_size=2)
    fleet.advance(1.0)
    np.testing.assert_allclose(fleet.requests().e2e_s, [0.1, 0.5, 0.17 - 0.02])


def test_a_cap_raised_at_the_border_of_two_iterations_misses_the_one_that_starts() -> None:
    # Iterations of 1/128 s, exact in binary: the one from 10/128 s on has started, under the old
    # cap, when the cap rises at 10/128 s.
    profile = replace(PROFILE, step_time=StepTime(base_s=1 / 128))
    rows = [(0.0, 5, 50), (0.0, 5, 1)]
    fleet = small.fleet(Case(small.trace(rows), profile, (small.tick(batch_size=1),)))
    fleet.advance(10 / 128)
    put(fleet, batch_size=2)
    fleet.advance(1.0)
    assert fleet.requests().ttft_s[1] == 12 / 128


def test_the_frontend_serves_in_order_with_as_many_workers_as_threads() -> None:
    # 0.1 s of CPU per request; 4 workers on 2 cores take twice as long each.
    profile = replace(STEADY, frontend=Frontend(cores=2, per_request_s=0.1))
    rows = [(0.0, 5, 1)] * 4
    for threads, out_s in ((1, [0.1, 0.2, 0.3, 0.4]), (2, [0.1, 0.1, 0.2, 0.2]), (4, [0.2] * 4)):
        fleet = small.fleet(Case(small.trace(rows), profile, (small.tick(threads=threads),)))
        fleet.advance(0.05)
        assert fleet.gauges().queue_depth[0] == 4
        fleet.advance(1.0)
        np.testing.assert_allclose(fleet.requests().ttft_s, np.add(out_s, 0.01))


def test_a_change_of_threads_restarts_one_ready_replica_at_a_time() -> None:
    profile = replace(cold().profile, frontend=Frontend(cores=4, per_request_s=1e-6))
    rows = [(0.01 * k, 5, 5) for k in range(5000)]
    case = Case(small.trace(rows), profile, (small.tick(replicas=3),), slots=3)
    fleet = small.fleet(case)
    fleet.advance(1.005)
    put(fleet, replicas=3, threads=2)
    ready = []
    for at_s in np.arange(1.5, 40.0, 0.5):
        fleet.advance(at_s)
        ready.append(int(fleet.gauges().ready[0]))
    assert set(ready) == {2, 3}
    window = fleet.window()
    assert window.starts[0] == 3
    assert ready.index(3) == pytest.approx(60, abs=1)  # three cold starts of 10 s in a row
    fleet.advance(100.0)
    assert fleet.done()[0]


def test_threads_change_nothing_without_a_frontend() -> None:
    fleet = small.fleet(cold())
    put(fleet, threads=5)
    assert states(fleet)[0] == READY
    assert fleet.window().starts[0] == 0
