from __future__ import annotations

import re

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.config import ScrapeConfig
from envs.serving_env import ServingEnv
from policies import codec as codec_module
from tests.envs import worlds
from tests.envs.test_parity import MOVE, cluster_of
from tuner.guardrails import default_guardrails
from tuner.knobs import KNOBS


def serving_env(**codec_config: object) -> ServingEnv:
    space = worlds.knobs()
    codec = worlds.codec(space, **codec_config)
    config = worlds.config(scrape=ScrapeConfig())
    return ServingEnv(
        lambda rng: cluster_of(0, codec, config, episode=int(rng.integers(1000))),
        codec,
        guardrails=default_guardrails(),
        fallback=worlds.hpa(space),
        config=config,
        scale=worlds.SCALE,
        render_mode="ansi",
    )


@pytest.mark.filterwarnings("ignore:.*maximum and minimum values are equal.*")
def test_passes_gymnasiums_checker():
    # Pinned knobs have a range of one value; the checker warns of that, and only that is muted.
    check_env(serving_env(move=MOVE), skip_render_check=False)


def table(text: str, first_column: int) -> dict[str, tuple[float, float]]:
    """Name -> (low, high) of a documentation table whose name column is given."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        numbers = [c for c in cells[first_column + 1 :] if re.fullmatch(r"-?\d+(\.\d+)?", c)]
        if line.strip().startswith("|") and len(numbers) >= 2:
            rows[cells[first_column]] = (float(numbers[0]), float(numbers[1]))
    return rows


def test_the_documented_action_table_is_the_action_space():
    documented = table(ServingEnv.__doc__, first_column=1)
    assert list(documented) == list(KNOBS)
    env = serving_env(move=tuple(KNOBS))
    for column, (name, (low, high)) in enumerate(documented.items()):
        pinned = name in worlds.PROFILE.unmodelled_knobs()
        assert env.action_space.low[column] == (0 if pinned else low)
        assert env.action_space.high[column] == (0 if pinned else high)


def test_the_documented_feature_table_is_the_observation_space():
    documented = table(codec_module.__doc__, first_column=0)
    env = serving_env(time_of_day=True)
    assert len(documented) == env.observation_space.shape[0]
    for column, (low, high) in enumerate(documented.values()):
        assert env.observation_space.low[column] == np.float32(low)
        assert env.observation_space.high[column] == np.float32(high)


def test_render_tells_the_last_decision():
    env = serving_env()
    env.reset(seed=1)
    assert env.render() == "no decision yet"
    env.step(np.ones(4, dtype=np.float32))
    assert "a rate needs two looks" in env.render()
    env.step(np.ones(4, dtype=np.float32))
    assert "policy" in env.render()


def test_one_seed_gives_one_episode():
    def rewards() -> list[float]:
        env = serving_env()
        env.reset(seed=11)
        return [env.step(np.zeros(4, dtype=np.float32))[1] for _ in range(20)]

    assert rewards() == rewards()
