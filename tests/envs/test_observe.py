"""What a controller sees of a simulated fleet."""

from __future__ import annotations

import numpy as np
import pytest

from envs.config import ScrapeConfig
from envs.draws import child_seeds, uniform
from envs.simulator.fleet import Fleet
from envs.simulator.observe import ObservedFleet
from tests.envs import worlds
from tuner.core.histograms import histogram_quantile
from tuner.core.observation import (
    COLUMN,
    REPLICA_FIELDS,
    REPLICA_STATES,
    ObservationArrays,
    ReplicaState,
)

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


def observed(n: int = 1, replicas: int = 2, scrape: ScrapeConfig | None = None) -> ObservedFleet:
    space = worlds.knobs()
    scrape = scrape or ScrapeConfig()
    fleet = Fleet(
        worlds.trace(), worlds.PROFILE, seeds=np.zeros(n, np.uint64), slots=8, scrape=scrape
    )
    view = ObservedFleet(fleet, space, outage=scrape.outage)
    settings = np.tile(space.row({**space.defaults(), "replicas": replicas}), (n, 1))
    view.reset(
        np.arange(n),
        start_s=np.zeros(n),
        seeds=np.arange(n, dtype=np.uint64),
        settings=settings,
        keep=np.ones(n),
    )
    return view


def look_at(view: ObservedFleet, at_s: float) -> ObservationArrays:
    view.fleet.advance(at_s)
    return view.look()[0]


def test_a_rate_is_of_the_window_and_the_outcome_of_the_tick():
    view = observed()
    seen, happened = [], []
    for tick in range(1, 60):
        view.fleet.advance(15.0 * tick)
        now, outcome = view.look()
        seen.append(now.column("qps")[0])
        happened.append(outcome.arrivals[0])
    trace = worlds.trace()
    assert sum(happened) == (trace.arrival_s <= 15.0 * 59).sum()
    # Arrivals of the four scrapes up to the tick lie within the five ticks before it.
    for tick in range(5, 59):
        assert seen[tick] * 45.0 <= sum(happened[tick - 4 : tick + 1]) + 1e-9
    assert np.mean(seen[5:]) * 15.0 == pytest.approx(np.mean(happened[4:]), rel=0.05)


def test_rates_need_two_scrapes_and_gauges_one():
    view = observed()
    first, second = look_at(view, 15.0), look_at(view, 30.0)
    for name in ("qps", "output_tokens_per_s", "error_rate"):
        assert np.isnan(first.column(name)[0]), name
    assert first.column("in_flight")[0] >= 0
    assert first.column("running")[0] >= 0
    assert second.column("qps")[0] >= 0
    assert 0.0 <= first.age_s[0] < 15.0


def test_a_starting_replica_has_a_state_and_an_age_and_no_sample():
    view = observed()
    look_at(view, 15.0)
    space = worlds.knobs()
    view.apply(space.row({"replicas": 3})[None, :])
    now = look_at(view, 30.0)
    states = [REPLICA_STATES[code] if code >= 0 else None for code in now.replicas.state[0]]
    assert states[:4] == [ReplicaState.READY, ReplicaState.READY, ReplicaState.STARTING, None]
    assert now.replicas.age_s[0, 2] == pytest.approx(15.0)
    assert np.isnan(now.replicas.values[0, 2]).all()
    seen = [name for name in REPLICA_FIELDS if name not in ("queued_prompt_tokens", "kv_tokens")]
    columns = [REPLICA_FIELDS.index(name) for name in seen]
    assert not np.isnan(now.replicas.values[0, :2, columns]).any()
    assert now.column("status_replicas")[0] == 3
    assert now.settings[0, space.column("replicas")] == 3


def test_what_is_seen_is_as_old_as_the_lag():
    late, prompt = (observed(scrape=ScrapeConfig(lag_s=lag_s)) for lag_s in (30.0, 0.0))
    then = []
    for tick in range(1, 12):
        now = look_at(late, 15.0 * tick)
        then.append(look_at(prompt, 15.0 * tick))
        if tick <= 2:
            assert np.isnan(now.age_s[0])
            continue
        assert now.age_s[0] == pytest.approx(then[-1].age_s[0] + 30.0)
        assert now.column("in_flight")[0] == then[-3].column("in_flight")[0]


def test_an_outage_hides_what_is_scraped_and_not_what_the_orchestrator_knows():
    view = observed(n=200, scrape=ScrapeConfig(outage=0.3))
    known = [COLUMN[f"{word}_replicas"] for word in ("ready", "starting", "draining", "status")]
    share = []
    for tick in range(1, 20):
        now = look_at(view, 15.0 * tick)
        lost = np.isnan(now.age_s)
        assert np.isnan(np.delete(now.values[lost], known, axis=1)).all()
        assert np.isnan(now.replicas.values[lost]).all()
        assert (now.values[:, known] == [2, 0, 0, 2]).all()
        assert not np.isnan(now.column("in_flight")[~lost]).any()
        share.append(lost)
    assert 0.27 < np.mean(share) < 0.33


def test_lost_scrapes_make_samples_older_and_leave_the_truth_alone():
    lossy, whole = (observed(n=100, scrape=ScrapeConfig(loss=loss)) for loss in (0.5, 0.0))
    ages = []
    for tick in range(1, 30):
        at_s = 15.0 * tick
        lossy.fleet.advance(at_s)
        whole.fleet.advance(at_s)
        (seen, truth), (_, same) = lossy.look(), whole.look()
        ages.append(seen.age_s)
        for name in ("arrivals", "finished", "met", "missed", "replica_s"):
            np.testing.assert_array_equal(getattr(truth, name), getattr(same, name))
    # Two replicas at a loss of a half: 15 s x (1/3 + 4/3 x 1/4 / (1 - 1/4)) within the window.
    assert 8.0 < np.nanmean(ages) < 14.0


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
