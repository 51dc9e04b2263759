"""What a controller sees of a simulated fleet."""

from __future__ import annotations

import numpy as np
import pytest

from envs.draws import child_seeds, uniform
from envs.simulator.fleet import Fleet
from envs.simulator.observe import ObservedFleet
from tests.envs import worlds
from tuner.core.histograms import histogram_quantile
from tuner.core.observation import COLUMN, REPLICA_STATES, ReplicaState

BOUNDS = np.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        # Ten values below 1: the median is taken as the middle of 0..1.
        (0.5, [10, 0, 0, 0], 0.5),
        # Rank 9 of 10 lies in the second bucket, 4 of its 5 in: 1 + 0.8.
        (0.9, [5, 5, 0, 0], 1.8),
        # Rank 2.5 of 5 lies half-way through 2..4; an empty bucket before it changes nothing.
        (0.5, [0, 0, 5, 0], 3.0),
        # A rank beyond every bound gives the last bound, however far beyond the values are.
        (0.99, [1, 0, 0, 99], 4.0),
        (1.0, [0, 3, 0, 0], 2.0),
    ],
    ids=["first bucket", "second bucket", "empty before", "beyond", "highest"],
)
def test_quantile_is_linear_inside_its_bucket(q, counts, expected):
    assert histogram_quantile(q, BOUNDS, np.array([counts]))[0] == pytest.approx(expected)


def test_no_observations_give_no_value():
    assert np.isnan(histogram_quantile(0.5, BOUNDS, np.zeros((1, 4), dtype=np.int64)))[0]


def observed(n: int = 1, scrape_loss: float = 0.0, replicas: int = 2) -> ObservedFleet:
    space = worlds.knobs()
    fleet = Fleet(worlds.trace(), worlds.PROFILE, seeds=np.zeros(n, np.uint64), slots=8)
    view = ObservedFleet(fleet, space)
    settings = np.tile(space.row({**space.defaults(), "replicas": replicas}), (n, 1))
    view.reset(
        np.arange(n),
        start_s=np.zeros(n),
        seeds=np.arange(n, dtype=np.uint64),
        settings=settings,
        keep=np.ones(n),
        scrape_loss=scrape_loss,
    )
    return view


def test_rates_add_up_to_what_happened():
    view = observed()
    arrivals = output_tokens = 0.0
    for tick in range(1, 60):
        view.fleet.advance(np.array([15.0 * tick]))
        now, outcome = view.look()
        arrivals += now.column("qps")[0] * 15.0
        output_tokens += now.column("output_tokens_per_s")[0] * 15.0
        assert now.column("qps")[0] * 15.0 == pytest.approx(outcome.arrivals[0])
    trace = worlds.trace()
    assert arrivals == pytest.approx((trace.arrival_s <= 15.0 * 59).sum())
    assert 0 < output_tokens <= trace.output_tokens[trace.arrival_s <= 15.0 * 59].sum()


def test_a_starting_replica_has_a_state_and_an_age_and_no_sample():
    view = observed()
    view.fleet.advance(np.array([15.0]))
    view.look()
    space = worlds.knobs()
    view.apply(space.row({"replicas": 3})[None, :])
    view.fleet.advance(np.array([30.0]))
    now, _ = view.look()
    states = [REPLICA_STATES[code] if code >= 0 else None for code in now.replicas.state[0]]
    assert states[:4] == [ReplicaState.READY, ReplicaState.READY, ReplicaState.STARTING, None]
    assert now.replicas.age_s[0, 2] == pytest.approx(15.0)
    assert np.isnan(now.replicas.values[0, 2]).all()
    assert not np.isnan(now.replicas.values[0, :2]).any()
    assert now.column("status_replicas")[0] == 3
    assert now.settings[0, space.column("replicas")] == 3


def test_a_lost_scrape_shows_nothing_and_its_age_grows_until_the_next():
    view = observed(n=200, scrape_loss=0.3)
    ages, lost = [], []
    for tick in range(1, 20):
        view.fleet.advance(np.full(200, 15.0 * tick))
        now, _ = view.look()
        missing = np.isnan(now.values[:, COLUMN["qps"]])
        assert (np.isnan(now.values[missing])).all()
        ages.append(now.age_s)
        lost.append(missing)
    share = np.mean(lost)
    assert 0.27 < share < 0.33
    for before, after, gone in zip(ages, ages[1:], lost[1:], strict=False):
        np.testing.assert_array_equal(after[~gone], 0.0)
        known = gone & ~np.isnan(before)
        np.testing.assert_allclose(after[known], before[known] + 15.0)


def test_draws_are_uniform_and_depend_on_seed_and_place_only():
    seeds = np.arange(20_000, dtype=np.uint64)
    draws = uniform(seeds, 3)
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.histogram(draws, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    np.testing.assert_array_equal(uniform(seeds[5:6], 3), draws[5:6])
    assert (uniform(seeds, 4) != draws).all()
    places = np.arange(20_000)
    assert uniform(seeds, places)[7] == uniform(seeds[7:8], 7)[0]
    assert len(np.unique(child_seeds(seeds, 1))) == 20_000
