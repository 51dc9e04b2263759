"""The sandbox against the simulator that it stands on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.sandbox.cluster import StaleVersionError
from envs.sandbox.counting import length_bounds
from envs.sandbox.load import repeated, sensible_replicas, sensible_target
from envs.simulator import Fleet, FleetSettings, ReplicaState
from tests.envs import worlds
from tests.envs.sandbox.small import World
from tuner.core.errors import ConfigError
from tuner.core.profile import Frontend, KvCache
from tuner.core.trace import Trace
from tuner.data import load_profile

MOVES = {20: 5, 60: 2, 61: 6, 140: 1, 200: 4, 260: 3}
"""Look -> replicas asked for at it."""
LOOKS_S = np.cumsum(np.resize([15.0, 3.0, 0.5, 31.0, 7.0], 300))


def played(**options: object) -> World:
    """Some 3,400 s of changing load on a fleet that is moved about."""
    world = World(**options)
    for look, at_s in enumerate(LOOKS_S):
        cluster = world.at(float(at_s))
        if look in MOVES:
            cluster.scale(MOVES[look], str(cluster.version))
    return world


@pytest.fixture(scope="module")
def world() -> World:
    return played()


def the_same_fleet() -> Fleet:
    """The simulator of the same run, by itself."""
    profile = worlds.PROFILE

    def settings(replicas: int) -> FleetSettings:
        columns = (replicas, profile.limits.batch_size_max, 1, 0)
        return FleetSettings(*(np.array([value]) for value in columns))

    seeds = np.array([3], dtype=np.uint64)
    fleet = Fleet(worlds.trace(), profile, seeds=seeds, slots=14, record=True)
    fleet.reset(slice(None), start_s=0.0, seeds=seeds, settings=settings(3))
    for look, at_s in enumerate(LOOKS_S):
        fleet.advance(float(at_s))
        if look in MOVES:
            fleet.apply(settings(MOVES[look]))
    return fleet


def test_totals_are_the_simulators(world):
    truth = the_same_fleet().window()
    totals = world.cluster.totals
    for name in ("arrivals", "finished", "prompt_tokens", "output_tokens", "preemptions"):
        assert getattr(totals, name) == getattr(truth, name)[0], name
    assert totals.finished > 5000
    assert totals.arrivals == totals.finished + totals.rejected + world.cluster.in_flight
    assert totals.replica_s == pytest.approx(truth.replica_s[0])


def test_a_replica_counts_the_requests_that_it_served(world):
    """Replica 0 lives through the whole run, alone in its slot."""
    trace, seen = worlds.trace(), the_same_fleet().requests()
    one = world.cluster.instances["replica-0"].counters
    mine = seen.replica == 0
    begun, ended = mine & ~np.isnan(seen.ttft_s), mine & ~np.isnan(seen.e2e_s)
    assert one.finished == ended.sum() > 1000
    assert one.prompt_tokens == trace.prompt_tokens[begun].sum()
    running = one.output_tokens - trace.output_tokens[ended].sum()
    assert 0 < running <= trace.output_tokens[begun & ~ended].sum()
    several = ended & (trace.output_tokens > 1)
    for histogram, values in (
        (one.ttft_s, seen.ttft_s[begun]),
        (one.tpot_s, seen.tpot_s[several]),
        (one.e2e_s, seen.e2e_s[ended]),
    ):
        below = [(values <= bound).sum() for bound in (*histogram.bounds, np.inf)]
        np.testing.assert_array_equal(histogram.counts.cumsum(), below)
        assert histogram.sum == pytest.approx(values.sum())


def test_preemptions_are_counted_where_they_happen():
    cramped = replace(worlds.PROFILE, kv=KvCache(block_tokens=16, blocks=120))
    world = World(profile=cramped, replicas=2)
    totals = world.at(900.0).totals
    assert totals.preemptions > 0
    both = [one.counters.preemptions for one in world.every]
    assert min(both) > 0
    assert sum(both) == totals.preemptions


def test_what_no_replica_can_hold_is_rejected_and_counted():
    trace = Trace(
        np.array([1.0, 2.0, 3.0]), np.array([50, 20_000, 50], np.int32), np.full(3, 5, np.int32)
    )
    world = World(trace=trace)
    cluster = world.at(100.0)
    assert (cluster.totals.arrivals, cluster.totals.finished, cluster.totals.rejected) == (3, 2, 1)
    assert cluster.in_flight == 0
    assert cluster.load_ended


def test_histograms_and_counters_of_a_replica_agree(world):
    for one in world.cluster.instances.values():
        counters = one.counters
        assert counters.e2e_s.counts.sum() == counters.finished
        assert counters.prompt_length.counts.sum() == counters.finished
        assert counters.ttft_s.counts.sum() >= counters.finished
        gaps = counters.output_length.sum - counters.finished
        assert counters.itl_s.counts.sum() == gaps


def test_counters_never_fall_within_one_instance():
    world = World()
    before: dict[str, tuple[int, ...]] = {}
    for look, at_s in enumerate(LOOKS_S[:200]):
        cluster = world.at(float(at_s))
        if look in MOVES:
            cluster.scale(MOVES[look], str(cluster.version))
        for name, one in cluster.instances.items():
            counters = one.counters
            now = (
                counters.finished,
                counters.prompt_tokens,
                counters.output_tokens,
                counters.preemptions,
                *counters.ttft_s.counts.cumsum().tolist(),
                *counters.itl_s.counts.cumsum().tolist(),
            )
            assert all(new >= old for new, old in zip(now, before.get(name, now), strict=True))
            before[name] = now
    assert len(before) > 6


def test_the_same_seed_and_looks_give_the_same_cluster(world):
    again = played()
    assert again.cluster.totals == world.cluster.totals
    assert [one.name for one in again.every] == [one.name for one in world.every]
    for mine, theirs in zip(again.every, world.every, strict=True):
        assert mine.counters.output_tokens == theirs.counters.output_tokens
        assert mine.counters.ttft_s.sum == theirs.counters.ttft_s.sum


def test_another_seed_starts_replicas_at_other_times(world):
    other = played(seed=4)
    assert other.cluster.totals != world.cluster.totals


def test_a_new_replica_starts_warms_up_serves_and_leaves():
    world = World(replicas=1)
    cluster = world.cluster
    cluster.set_warmup(40)  # 2 s
    cluster.scale(2, "1")
    seen = []
    for second in range(1, 400):
        world.at(second * 0.5)
        state = ReplicaState(cluster.instances["replica-1"].state)
        if not seen or seen[-1] is not state:
            seen.append(state)
    assert seen == [ReplicaState.STARTING, ReplicaState.WARMING, ReplicaState.READY]
    assert cluster.instances["replica-1"].counters.finished > 0
    cluster.scale(1, "2")
    assert cluster.instances["replica-1"].state == ReplicaState.DRAINING
    world.at(400.0)
    assert list(cluster.instances) == ["replica-0"]
    (gone,) = cluster.gone
    assert gone.counters.output_tokens > 0


def test_a_slot_that_is_used_again_is_another_replica_with_counters_from_zero():
    world = World(replicas=2)
    cluster = world.at(100.0)
    cluster.scale(1, "1")
    world.at(200.0)
    cluster.scale(2, "2")
    one = cluster.instances["replica-2"]
    assert one.slot == cluster.gone[0].slot
    assert one.counters.finished == 0
    assert cluster.gone[0].counters.finished > 0


def test_a_rolling_restart_makes_new_instances_and_loses_no_request():
    frontend = Frontend(cores=2, per_request_s=0.001)
    world = World(profile=replace(worlds.PROFILE, frontend=frontend), replicas=2)
    world.at(50.0)
    # Not reachable over HTTP; what the counting does with it must hold all the same.
    settings = world.cluster._settings()
    world.cluster._settings = lambda: replace(settings, threads=np.array([4]))  # type: ignore[method-assign]
    world.cluster._apply()
    cluster = world.at(500.0)
    assert {one.name for one in world.every} == {f"replica-{i}" for i in range(4)}
    finished = sum(int(one.counters.prompt_length.counts.sum()) for one in world.every)
    assert finished == cluster.totals.finished


@pytest.mark.parametrize("replicas", [0, 7, -1])
def test_a_number_of_replicas_that_cannot_be_is_refused(replicas):
    cluster = World().cluster
    with pytest.raises(ValueError, match="expected 1 to 6"):
        cluster.scale(replicas, "1")
    assert cluster.wanted == 3


def test_a_stale_version_changes_nothing():
    cluster = World().cluster
    cluster.scale(4, "1")
    with pytest.raises(StaleVersionError, match="version 1 is not 2"):
        cluster.scale(5, "1")
    assert cluster.wanted == 4
    cluster.scale(4, "2")  # the same again is no change
    assert cluster.version == 2


def test_too_many_replicas_to_begin_with_are_refused():
    with pytest.raises(ConfigError, match="--replicas is 9; expected 1 to 6"):
        World(replicas=9)


def test_buckets_of_lengths_are_vllms():
    # As on a page of vLLM 0.32 started with --max-model-len 512.
    assert length_bounds(512).tolist() == [1, 2, 5, 10, 20, 50, 100, 200, 500]


def test_a_repeated_trace_goes_on_where_it_ended():
    trace = Trace(np.array([0.0, 4.0]), np.array([1, 2], np.int32), np.array([3, 4], np.int32))
    twice = repeated(trace, 2)
    assert twice.arrival_s.tolist() == [0.0, 4.0, 8.0, 12.0]
    assert twice.prompt_tokens.tolist() == [1, 2, 1, 2]
    assert repeated(trace, 1) is trace


def test_the_rule_and_the_fleet_to_begin_with_fit_the_profile():
    # tuner compare's sweep finds 1,540 on this profile's day.
    target = sensible_target(load_profile("deepseek-r1-8xh200-sglang"))
    assert 1400 <= target <= 1700
    trace = Trace(np.arange(100.0), np.full(100, 5, np.int32), np.full(100, 400, np.int32))
    # 100 requests of 400 tokens in 99 s.
    assert sensible_replicas(trace, 100.0, 32) == 5
    assert sensible_replicas(trace, 100.0, 3) == 3
    assert sensible_replicas(trace, 1e9, 3) == 1
