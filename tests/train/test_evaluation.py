"""How policies are scored, and rewards scaled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.worlds import CONFIG, inputs
from tuner.train.evaluation import Evaluation, base_rule, evaluate, paired_ci95, reward_map
from tuner.train.ppo import Place, Run


def evaluation(rewards: np.ndarray) -> Evaluation:
    n = rewards.shape[1]
    return Evaluation(rewards, met=np.full(n, 8.0), missed=np.full(n, 2.0), replicas=np.arange(n))


def test_a_score_is_the_mean_over_scenarios_and_attainment_that_over_requests() -> None:
    found = evaluation(np.array([[-1.0, -2.0], [-3.0, -2.0]]))
    assert found.reward.tolist() == [-2.0, -2.0]
    assert found.score.reward == -2.0
    assert found.score.attainment == 0.8
    assert found.score.replicas == 0.5


def test_mapped_rewards_have_no_mean_and_returns_of_unit_spread() -> None:
    rewards = np.random.default_rng(0).gamma(1.0, 3.0, (500, 20)) - 7
    found = reward_map(evaluation(rewards), gamma=0.9)
    mapped = (rewards - found.shift) * found.scale
    assert mapped.mean() == pytest.approx(0.0, abs=1e-12)
    returns, following = np.zeros_like(mapped), np.zeros(20)
    for tick in reversed(range(500)):
        following = returns[tick] = mapped[tick] + 0.9 * following
    assert returns.std() == pytest.approx(1.0)


def test_rewards_that_never_vary_are_only_shifted() -> None:
    found = reward_map(evaluation(np.full((5, 2), -3.0)), gamma=0.9)
    assert (found.shift, found.scale) == (-3.0, 1.0)


def test_the_interval_holds_the_mean_and_narrows_with_scenarios() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.normal(1.0, 1.0, 10), rng.normal(1.0, 1.0, 1000)
    low, high = paired_ci95(few, seed=3)
    assert low < few.mean() < high
    low_many, high_many = paired_ci95(many, seed=3)
    assert high_many - low_many < (high - low) / 5
    assert paired_ci95(few, seed=3) == (low, high)


def test_the_same_seed_is_the_same_scenarios_and_the_warm_up_is_not_counted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = Run.prepare(inputs(), CONFIG, Place(tmp_path_factory.mktemp("x") / "b"), threads=1)
    env = run.validation.env(3)
    first, again = (evaluate(env, base_rule(env), 5, warm_up_ticks=4) for _ in range(2))
    assert np.array_equal(first.rewards, again.rewards)
    whole = evaluate(env, base_rule(env), 5, warm_up_ticks=0)
    assert whole.rewards.shape == (24, 3)
    assert np.array_equal(whole.rewards[4:], first.rewards)
    other = evaluate(env, base_rule(env), 6, warm_up_ticks=4)
    assert not np.array_equal(other.rewards, first.rewards)
