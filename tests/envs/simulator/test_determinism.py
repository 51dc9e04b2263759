"""The same bits whatever runs beside an env, in whatever steps and threads."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from envs.config import ScrapeConfig
from envs.simulator import Fleet, FleetSettings, events
from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import KvCache, StepTime

BORDERS_S = np.arange(1, 41) * 0.5


def busy_case(seed: int = 5, count: int = 1500) -> Case:
    """Twenty seconds of bursts on up to four replicas with few blocks, a ramp and a frontend."""
    rng = np.random.default_rng(seed)
    arrival_s = np.sort(rng.uniform(0.0, 20.0, count))
    rows = zip(arrival_s, rng.integers(1, 200, count), rng.integers(1, 60, count), strict=True)
    profile = small.with_startup(
        small.with_frontend(replace(PROFILE, kv=KvCache(16, blocks=40))), ramp=((9, 0.4),)
    )
    return Case(
        trace=small.trace(list(rows)),
        profile=profile,
        ticks=(small.tick(replicas=2, threads=2),),
        slots=4,
    )


def settings_at(step: int, n: int, first: int = 0) -> FleetSettings:
    """Other settings at every step and for every env; env e of a fleet is number first + e."""
    env = np.arange(first, first + n)
    return FleetSettings(
        replicas=1 + (step // 6 + env) % 4,
        batch_size=2 + (3 * step + env) % 7,
        threads=2 + (step // 15 + env) % 2,
        warmup_requests=(step + env) % 3,
    )


def run(fleet: Fleet, first: int = 0) -> list[np.ndarray]:
    """Everything that can be read off the fleet along the way, env by env."""
    seen = []
    for step, border_s in enumerate(BORDERS_S):
        fleet.advance(border_s)
        seen.extend(fleet.window())
        seen.extend(fleet.gauges())
        seen.extend(fleet.counters())
        seen.extend(fleet.seen()[:-1])  # the last is working space
        fleet.apply(settings_at(step, fleet.n, first))
    fleet.advance(2000.0)
    for name in ("ttft_s", "e2e_s", "replica", "preemptions"):
        columns = [getattr(fleet.requests(env), name) for env in range(fleet.n)]
        seen.append(np.array(columns))
    return seen


def varied_fleet(n: int, first: int = 0, threads: int = 1, jitter: float = 0.2) -> Fleet:
    """Envs that differ in everything; env e of the fleet is number first + e of them."""
    case = busy_case()
    env = np.arange(first, first + n)
    seeds = env.astype(np.uint64) * np.uint64(977)
    fleet = Fleet(
        case.trace,
        case.profile,
        seeds=seeds,
        slots=case.slots,
        jitter=jitter,
        record=True,
        scrape=ScrapeConfig(interval_s=0.4, window_s=1.7, lag_s=0.1, loss=0.2),
        threads=threads,
    )
    fleet.reset(
        slice(None),
        start_s=0.05 * env,
        seeds=seeds,
        settings=settings_at(0, n, first),
        keep=1.0 - 0.1 * (env % 3),
    )
    return fleet


def assert_same_bits(seen: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_threads_give_the_bits_of_one() -> None:
    assert_same_bits(run(varied_fleet(11, threads=2)), run(varied_fleet(11)))


def test_an_env_gives_the_bits_it_gives_alone() -> None:
    together = run(varied_fleet(4))
    for env in range(4):
        alone = run(varied_fleet(1, first=env), first=env)
        assert_same_bits([column[env : env + 1] for column in together], alone)


def test_repeats_itself_after_a_reset() -> None:
    fleet = varied_fleet(3)
    before = run(fleet)
    fresh = varied_fleet(3)
    fleet.reset(
        slice(None),
        start_s=0.05 * np.arange(3),
        seeds=np.arange(3, dtype=np.uint64) * np.uint64(977),
        settings=settings_at(0, 3),
        keep=1.0 - 0.1 * np.arange(3),
    )
    assert_same_bits(run(fleet), before)
    assert_same_bits(run(fresh), before)


def test_a_reset_leaves_the_other_envs_alone() -> None:
    expected = run(varied_fleet(3))
    fleet = varied_fleet(3)
    fleet.reset(
        np.array([1]),
        start_s=np.array([0.2]),
        seeds=np.array([1], np.uint64),
        settings=settings_at(7, 1),
    )
    fleet_seen = run(fleet)
    others = np.array([0, 2])
    assert_same_bits([c[others] for c in fleet_seen], [c[others] for c in expected])
    assert not np.array_equal(fleet_seen[-4][1], expected[-4][1], equal_nan=True)


@pytest.mark.parametrize("jitter", [0.0, 0.3], ids=["exact", "jitter"])
def test_stopping_at_more_borders_changes_no_bit(jitter: float) -> None:
    case = busy_case()
    straight, stopped = (small.fleet(case, jitter=jitter) for _ in range(2))
    rng = np.random.default_rng(3)
    for step, border_s in enumerate(BORDERS_S):
        for between_s in np.sort(rng.uniform(border_s - 0.5, border_s, 5)):
            stopped.advance(between_s)
            stopped.window()
            stopped.gauges()
        for fleet in (straight, stopped):
            fleet.advance(border_s)
            fleet.apply(settings_at(step, 1))
    for fleet in (straight, stopped):
        fleet.advance(2000.0)
    for name in ("ttft_s", "e2e_s", "tpot_s", "replica", "preemptions", "rejected"):
        np.testing.assert_array_equal(
            getattr(stopped.requests(), name), getattr(straight.requests(), name)
        )


def test_jitter_has_mean_one_and_averages_out_over_the_iterations_of_a_run() -> None:
    # Each request runs alone: one iteration for its prompt, then one run of 100 decodes.
    profile = replace(PROFILE, step_time=StepTime(base_s=0.01))
    case = Case(small.trace([(2.0 * k, 5, 101) for k in range(4000)]), profile, (small.tick(),))
    fleet = small.fleet(case, jitter=0.4)
    fleet.advance(9000.0)
    seen = fleet.requests()
    spread = np.sqrt(np.expm1(0.4**2))
    assert seen.ttft_s.mean() == pytest.approx(0.01, rel=4 * spread / np.sqrt(4000))
    assert seen.ttft_s.std() == pytest.approx(0.01 * spread, rel=0.1)
    normal = (np.log(seen.ttft_s / 0.01) + 0.5 * 0.4**2) / 0.4
    for share in (0.01, 0.16, 0.5, 0.84, 0.99):
        quantile = NormalDist().inv_cdf(share)
        assert np.mean(normal < quantile) == pytest.approx(share, abs=0.02), share
    decode_s = seen.e2e_s - seen.ttft_s
    assert decode_s.mean() == pytest.approx(1.0, rel=0.003)
    assert decode_s.std() == pytest.approx(0.04, rel=0.1)
    assert np.unique(decode_s.round(9)).size > 3990


def test_thinning_keeps_the_share_it_is_told() -> None:
    case = busy_case(count=5000)
    fleet = small.fleet(case, n=4)
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=np.arange(4, dtype=np.uint64),
        settings=small.settings(small.tick(), 4),
        keep=np.array([0.25, 0.5, 0.9, 1.0]),
    )
    fleet.advance(20.0)
    arrivals = fleet.window().arrivals
    np.testing.assert_allclose(arrivals / 5000, [0.25, 0.5, 0.9, 1.0], atol=0.02)
    assert arrivals[3] == 5000


def test_compiles_each_entry_once_whatever_arrays_it_is_given() -> None:
    fleet = varied_fleet(2)
    plain = FleetSettings(*(np.ones(2, np.int32) for _ in range(4)))
    fleet.advance(np.array([4.0, 4.0]))
    fleet.apply(plain)
    fleet.reset(
        np.array([True, True]), start_s=0, seeds=np.array([3, 3], np.uint64), settings=plain
    )
    # Other rule-sets, which other tests of this process may have run, are entries of their own.
    entries = (events.advance, events.apply, events.reset)
    known = [len(entry.signatures) for entry in entries]
    frozen = np.broadcast_to(np.float64(5.0), (2,))
    fleet.advance(frozen)
    fleet.advance(6)
    fleet.advance(np.arange(14.0)[::7] + 7.0)
    strided = FleetSettings(*np.ones((2, 4), np.int32).T)
    fleet.apply(strided)
    seeds = np.broadcast_to(np.uint64(3), (2,))
    fleet.reset(np.array([True, True]), start_s=0, seeds=seeds, settings=strided)
    assert [len(entry.signatures) for entry in entries] == known
