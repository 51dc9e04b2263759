import os
from dataclasses import dataclass

import pytest
from joblib import parallel_config

from experiments.fanout import fan_out
from tuner.core.errors import ConfigError


@dataclass(frozen=True)
class Square:
    number: int

    @property
    def label(self):
        return f"square {self.number}"

    def __call__(self, progress):
        progress(0.5)
        if self.number < 0:
            raise ConfigError(f"number is {self.number}; expected at least 0")
        return self.number**2, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_tasks(jobs):
    results = fan_out([Square(n) for n in range(5)], jobs)
    assert [square for square, _ in results] == [0, 1, 4, 9, 16]


def test_one_job_runs_here_and_two_run_elsewhere():
    here = {pid for _, pid in fan_out([Square(1), Square(2)], 1)}
    there = {pid for _, pid in fan_out([Square(1), Square(2)], 2)}
    assert here == {os.getpid()}
    assert os.getpid() not in there


def test_runs_go_where_joblib_is_told_to_send_them():
    with parallel_config(backend="threading"):
        threads = {pid for _, pid in fan_out([Square(1), Square(2)], 2)}
    assert threads == {os.getpid()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_seen_to_begin_and_to_end(jobs):
    seen = {}
    fan_out(
        [Square(n) for n in range(3)],
        jobs,
        lambda label, share, *_: seen.setdefault(label, []).append(share),
    )
    assert set(seen) == {"square 0", "square 1", "square 2"}
    assert all(shares[0] == 0 and shares[-1] == 1 for shares in seen.values())
    assert all(shares == sorted(shares) for shares in seen.values())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_mistake_in_a_task_arrives_as_it_was(jobs):
    with pytest.raises(ConfigError, match="number is -1; expected at least 0"):
        fan_out([Square(1), Square(-1)], jobs)


def test_nothing_to_do_gives_nothing():
    assert fan_out([], 4) == []
