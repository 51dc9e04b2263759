"""Worlds drawn per episode: as wide as configured, from the seed alone, and none unless asked."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from envs.config import EnvConfig
from envs.draws import normal
from envs.episodes import EpisodeDraws, episode_seeds
from envs.randomise import RandomiseConfig
from envs.simulator.fleet import EnvFactors
from tests.envs import worlds

N = 20_000
TRACE = worlds.trace()


def drawn(n: int = N, first: int = 0, **widths: object) -> EpisodeDraws:
    config = worlds.config(randomise=RandomiseConfig(**{"enabled": True, **widths}))  # type: ignore[arg-type]
    seeds = episode_seeds(3, np.arange(first, first + n), np.zeros(n, np.int64))
    return EpisodeDraws.of(config, TRACE, seeds)


def test_nothing_is_drawn_unless_it_is_enabled():
    assert not EnvConfig().randomise.enabled
    seeds = np.arange(100, dtype=np.uint64)
    draws = EpisodeDraws.of(worlds.config(), TRACE, seeds)
    for one in fields(EnvFactors):
        expected = -1 if one.name == "slow_slot" else 1
        np.testing.assert_array_equal(getattr(draws.factors, one.name), expected)
    np.testing.assert_array_equal(draws.scrape_lag_s, 0.0)
    np.testing.assert_array_equal(draws.scrape_loss, worlds.config().scrape.loss)


def test_randomised_episodes_start_where_the_others_do():
    """Starts, thinning and seeds are the same: an ablation differs in the worlds alone."""
    seeds = np.arange(100, dtype=np.uint64)
    config = worlds.config(randomise=RandomiseConfig(enabled=True))
    one, other = (EpisodeDraws.of(c, TRACE, seeds) for c in (config, config.nominal))
    for name in ("start_s", "keep", "replicas", "seeds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.factors.step_time != other.factors.step_time).all()


@pytest.mark.parametrize(("name", "sigma"), [("step_time", 0.05), ("prefill", 0.1), ("kv", 0.3)])
def test_coefficients_are_lognormal_around_the_profile(name, sigma):
    logs = np.log(getattr(drawn(**{name: sigma}).factors, name))
    assert logs.mean() == pytest.approx(0.0, abs=4 * sigma / N**0.5)
    assert logs.std() == pytest.approx(sigma, rel=0.03)
    assert np.mean(np.abs(logs) < sigma) == pytest.approx(0.6827, abs=0.015)


@pytest.mark.parametrize(
    ("name", "ends"),
    [("output_tokens", (0.8, 1.2)), ("prefix_hits", (0.0, 1.0))],
)
def test_factors_are_even_between_their_ends(name, ends):
    found = getattr(drawn(**{name: ends}).factors, name)
    counts, _ = np.histogram(found, 10, ends)
    assert counts.sum() == N
    np.testing.assert_allclose(counts, N / 10, rtol=0.1)


def test_cold_starts_are_even_in_their_logarithm():
    found = drawn(cold_start=(0.25, 4.0)).factors.cold_start
    assert 0.25 <= found.min() < 0.27
    assert 3.7 < found.max() <= 4.0
    assert np.median(found) == pytest.approx(1.0, rel=0.05)


def test_metrics_come_late_and_are_lost_as_configured():
    draws = drawn(scrape_lag_s=(5.0, 30.0), scrape_loss=(0.1, 0.3))
    assert draws.scrape_lag_s.min() == pytest.approx(5.0, abs=0.1)
    assert draws.scrape_lag_s.max() == pytest.approx(30.0, abs=0.1)
    assert draws.scrape_loss.mean() == pytest.approx(0.2, abs=0.005)


def test_a_world_depends_on_its_own_seed_alone_and_its_draws_on_none_of_each_other():
    whole, part = drawn(100), drawn(10, first=20)
    for one in fields(EnvFactors):
        np.testing.assert_array_equal(
            getattr(part.factors, one.name), getattr(whole.factors, one.name)[20:30]
        )
    many = drawn()
    columns = [getattr(many.factors, f.name) for f in fields(EnvFactors) if "slow" not in f.name]
    columns += [many.scrape_lag_s, many.scrape_loss, many.keep, many.start_s]
    correlation = np.corrcoef(np.array(columns))
    assert np.abs(correlation - np.eye(len(columns))).max() < 0.035


def test_normal_draws_are_normal():
    found = normal(np.arange(N, dtype=np.uint64), 5)
    assert abs(found.mean()) < 0.03
    assert found.std() == pytest.approx(1.0, abs=0.02)
    assert np.mean(np.abs(found) > 1.96) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(
    ("widths", "sentence"),
    [
        ({"step_time": 1.5}, "step_time is 1.5; expected a sigma of 0 to 1"),
        ({"cold_start": (3.0, 0.5)}, "cold_start is 3.0..0.5; expected 0.01 <= low <= high <= 100"),
        ({"output_tokens": (0.0, 1.0)}, "output_tokens is 0.0..1.0"),
        ({"prefix_hits": (-0.1, 1.0)}, "prefix_hits is -0.1..1.0; expected 0 <= low"),
        ({"scrape_loss": (0.0, 1.0)}, "scrape_loss is 0.0..1.0"),
        ({"scrape_lag_s": (0.0, float("nan"))}, "scrape_lag_s is 0.0..nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_widths_out_of_range_are_named(widths, sentence):
    (mistake,) = replace(RandomiseConfig(), **widths).mistakes()
    assert mistake.startswith(sentence)
