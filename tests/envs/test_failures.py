"""What is wrong with a fleet from its start: drawn from its seed, off by default."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.config import EnvConfig, FailureConfig
from envs.failures import with_failures
from envs.simulator import EnvFactors
from tuner.core.errors import ConfigError

SEEDS = np.arange(4000, dtype=np.uint64)


def drawn(config: FailureConfig, replicas: float, n: int = len(SEEDS)) -> EnvFactors:
    return with_failures(EnvFactors.none(n), config, SEEDS[:n], np.full(n, replicas))


def test_by_default_nothing_goes_wrong() -> None:
    config = FailureConfig()
    assert config.crash_per_hour == 0
    factors = drawn(config, 5.0)
    assert set(factors.slow_slot) == {-1}
    assert set(factors.slow) == {1.0}


def test_as_many_fleets_as_asked_for_have_one_slow_replica_of_those_at_the_start() -> None:
    config = FailureConfig(slow_replica=0.25, slow=(1.5, 3.0))
    factors = drawn(config, 4.0)
    slow = factors.slow_slot >= 0
    assert slow.mean() == pytest.approx(0.25, abs=0.025)
    assert set(factors.slow[~slow]) == {1.0}
    slots, counts = np.unique(factors.slow_slot[slow], return_counts=True)
    assert slots.tolist() == [0, 1, 2, 3]
    assert counts.min() > 0.8 * counts.mean()
    assert 1.5 <= factors.slow[slow].min() < 1.52
    assert 2.98 < factors.slow[slow].max() <= 3.0


def test_a_fleet_that_starts_with_nobody_has_nobody_who_is_slow() -> None:
    config = FailureConfig(slow_replica=1.0)
    assert drawn(config, 0.0, 5).slow_slot.tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crash_per_hour": -1.0}, "env.failures.crash_per_hour is -1.0; expected 0 to 3600"),
        ({"slow_replica": 1.5}, "env.failures.slow_replica is 1.5; expected a chance from 0 to 1"),
        ({"slow": (0.5, 2.0)}, "env.failures.slow is 0.5..2.0; expected factors 1 <= low"),
        ({"slow": (3.0, 2.0)}, "env.failures.slow is 3.0..2.0"),
    ],
)
def test_a_value_out_of_its_range_is_named(changes, sentence) -> None:
    config = replace(EnvConfig(), failures=replace(FailureConfig(), **changes))
    with pytest.raises(ConfigError) as raised:
        config.validate()
    assert sentence in str(raised.value)


def test_a_time_to_drain_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env.drain_timeout_s is -1.0; expected seconds >= 0"):
        EnvConfig(drain_timeout_s=-1.0).validate()
