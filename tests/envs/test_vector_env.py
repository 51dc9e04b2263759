from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.config import EnvConfig, ScrapeConfig
from envs.episodes import EpisodeDraws
from envs.randomise import RandomiseConfig
from envs.reward import Outcome, RewardScale, RewardWeights, reward
from tests.envs import worlds
from tests.envs.test_parity import MOVE, actions, vector_env
from tuner.core.errors import ConfigError


def steps(n: int, ticks: int, threads: int = 1, config: EnvConfig | None = None) -> list[tuple]:
    space = worlds.knobs()
    env = vector_env(
        n, worlds.codec(space, move=MOVE), config or worlds.config(episode_ticks=25), threads
    )
    first, _ = env.reset()
    script = actions(8, ticks)[:, :n]
    return [(first,), *(env.step(action) for action in script)]


def assert_same_bits(mine: list[tuple], theirs: list[tuple], rows: int) -> None:
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x[:rows], y[:rows])


def test_two_threads_give_the_bits_of_one():
    assert_same_bits(steps(8, 60, threads=1), steps(8, 60, threads=2), rows=8)


@pytest.mark.parametrize("n", [1, 3])
def test_the_number_of_environments_beside_it_changes_nothing(n):
    assert_same_bits(steps(n, 60), steps(8, 60), rows=n)


def test_a_fallback_that_is_the_base_rule_decides_as_one_beside_it():
    script = actions(4, 60)
    script[7:45, 1] = np.nan  # its own memory stands still while the fallback's goes on
    results = []
    for shared in (True, False):
        codec = worlds.codec(worlds.knobs(), move=MOVE)
        env = vector_env(4, codec, worlds.config(episode_ticks=50))
        if shared:
            env.fallback = codec.base
        results.append([(env.reset()[0],), *(env.step(action) for action in script)])
    assert_same_bits(*results, rows=4)


def test_an_episode_ends_after_its_ticks_and_the_next_begins_in_the_same_step():
    results = steps(3, 60, config=worlds.config(episode_ticks=25))
    for number, (obs, _, terminated, truncated, infos) in enumerate(results[1:], start=1):
        assert not terminated.any()
        assert truncated.all() == (number % 25 == 0)
        if truncated.any():
            assert infos["_final_obs"].all()
            assert (infos["final_obs"] != obs).any()


def test_seed_starts_again_from_the_first_episode():
    space = worlds.knobs()
    env = vector_env(2, worlds.codec(space), worlds.config())
    first, _ = env.reset(seed=5)
    for action in actions(2, 45):
        env.step(action)
    again, _ = env.reset(seed=5)
    other, _ = env.reset(seed=6)
    np.testing.assert_array_equal(first, again)
    assert (other != again).any()


def test_observations_stay_in_the_space():
    for obs, *_ in steps(8, 60):
        assert np.isfinite(obs).all()
    space = worlds.knobs()
    env = vector_env(8, worlds.codec(space), worlds.config())
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)


def outcome(**values: float) -> Outcome:
    empty = {"arrivals": 0.0, "finished": 0.0, "met": 0.0, "missed": 0.0, "replica_s": 0.0}
    columns = {k: np.array([v]) for k, v in ({**empty, "business": np.nan} | values).items()}
    return Outcome(**columns)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 0.0),
        # 6 of 60 requests missed: a tenth, times 8.
        ({"missed": 6.0}, -0.8),
        # Six replicas through one tick against a reference of three.
        ({"replica_s": 90.0}, -2.0),
        ({"missed": 6.0, "replica_s": 45.0, "business": 2.0}, -0.8 - 1.0 + 1.0),
    ],
    ids=["nothing", "missed", "held", "all"],
)
def test_reward_adds_up(values, expected):
    scale = RewardScale(requests_per_tick=60.0, reference_replicas=3.0, tick_s=15.0)
    weights = RewardWeights(stability=8.0, resources=1.0, business=0.5)
    assert reward(outcome(**values), weights, scale)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tick_s": 0.0}, r"env\.tick_s is 0\.0; expected seconds > 0"),
        ({"episode_ticks": 0}, r"env\.episode_ticks is 0"),
        ({"start_replicas": (5, 2)}, r"env\.start_replicas is 5\.\.2"),
        ({"keep": (0.0, 1.0)}, r"env\.keep"),
        ({"scrape": ScrapeConfig(loss=1.0)}, r"env\.scrape\.loss is 1"),
        ({"scrape": ScrapeConfig(outage=-0.1)}, r"env\.scrape\.outage is -0"),
        ({"scrape": ScrapeConfig(window_s=59.0)}, r"env\.scrape\.window_s is 59"),
        ({"scrape": ScrapeConfig(lag_s=31.0)}, r"env\.scrape\.lag_s is 31"),
        ({"scrape": ScrapeConfig(interval_s=0.0)}, r"env\.scrape\.interval_s is 0"),
        ({"jitter": -1.0}, r"env\.jitter"),
        ({"randomise": RandomiseConfig(kv=-0.1)}, r"env\.randomise\.kv is -0\.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_scenario_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        worlds.config(**change).validate()


def test_episodes_of_a_late_part_of_a_trace_begin_where_its_load_does():
    whole = worlds.trace()
    late = replace(
        whole,
        arrival_s=whole.arrival_s + 7200.0,
        prompt_tokens=whole.prompt_tokens.copy(),
        output_tokens=whole.output_tokens.copy(),
    )
    seeds = np.arange(500, dtype=np.uint64)
    early_s = EpisodeDraws.of(worlds.config(), whole, seeds).start_s
    late_s = EpisodeDraws.of(worlds.config(), late, seeds).start_s
    np.testing.assert_allclose(late_s, early_s + 7200.0)
    assert (late_s >= late.arrival_s[0] - worlds.TICK_S).all()
