"""What stable-baselines3 sees of the vector environment."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.train.worlds import Echo
from tuner.train.sb3_vec_env import RewardMap, Sb3VecEnv, Tally


def test_shows_only_the_heads_that_move_and_fills_the_others_with_0() -> None:
    echo = Echo()
    face = Sb3VecEnv(echo)
    assert face.action_space.shape == (2,)
    face.reset()
    face.step(np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32))
    expected = np.array([[0, 0.1, 0, 0.2], [0, 0.3, 0, 0.4], [0, 0.5, 0, 0.6]], np.float32)
    assert np.array_equal(echo.actions[0], expected)


def test_an_episode_that_ends_by_time_shows_its_last_observation_and_the_next_ones_first() -> None:
    face = Sb3VecEnv(Echo())
    face.reset()
    for _ in range(2):
        _, _, done, infos = face.step(np.zeros((3, 2), np.float32))
        assert not done.any()
        assert infos == [{}, {}, {}]
    observation, _, done, infos = face.step(np.zeros((3, 2), np.float32))
    assert done.tolist() == [True, False, False]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["terminal_observation"].tolist() == [0, 3]
    assert infos[1:] == [{}, {}]
    assert observation.tolist() == [[0, 0], [1, 3], [2, 3]]


def test_rewards_are_mapped_and_the_tally_keeps_them_as_they_were() -> None:
    face = Sb3VecEnv(Echo(), RewardMap(shift=0.5, scale=4.0))
    face.reset()
    actions = np.array([[0.5, 0], [0.75, 0], [1.0, 0]], np.float32)
    _, rewards, _, _ = face.step(actions)
    assert rewards.tolist() == [0.0, 1.0, 2.0]
    assert face.tally == Tally(steps=3, reward=2.25, met=27.0, missed=3.0, replica_s=90.0)
    assert face.tally.attainment == 0.9


def test_a_seed_reaches_the_next_reset_only() -> None:
    echo = Echo()
    face = Sb3VecEnv(echo)
    face.seed(7)
    face.reset()
    face.reset()
    assert echo.seeds == [7, None]


def test_a_reset_lets_action_0_run_first_and_counts_none_of_it() -> None:
    echo = Echo()
    face = Sb3VecEnv(echo, warm_up_ticks=2)
    observation = face.reset()
    assert observation.tolist() == [[0, 2], [1, 2], [2, 2]]
    assert all((actions == 0).all() for actions in echo.actions)
    assert face.tally == Tally()


def test_refuses_another_autoreset_mode() -> None:
    echo = Echo()
    echo.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    with pytest.raises(ValueError, match="expected SAME_STEP"):
        Sb3VecEnv(echo)
