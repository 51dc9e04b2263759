"""Runs on a Ray cluster give the bits that they give here; what cannot be is told."""

from __future__ import annotations

import importlib.util

import pytest

from experiments.executors import Executor
from experiments.fanout import cores
from tests.experiments import slow
from tuner.core.errors import InputError

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed; see `make proof-ray`")


def test_here_a_run_per_core_unless_told_otherwise():
    with Executor().started() as jobs:
        assert jobs == cores()
    with Executor(jobs=3).started() as jobs:
        assert jobs == 3


def test_an_address_without_ray_is_a_mistake():
    with (
        pytest.raises(InputError, match="goes with --executor ray"),
        Executor(address="here:6379").started(),
    ):
        pass


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_ray_that_is_not_installed_is_told():
    with pytest.raises(InputError, match="ray is not installed"), Executor("ray").started():
        pass


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "out"
    slow.compared(folder)
    return folder


@needs_ray
def test_a_ray_cluster_of_two_workers_gives_the_same_bits(tmp_path, here):
    there = tmp_path / "out"
    with Executor("ray", 2).started() as jobs:
        assert jobs == 2
        slow.compared(there, jobs=jobs)
    assert sorted(slow.ran(there)) == sorted(slow.ran(here))
    for name in ("summary.json", "requests.parquet", "ticks.parquet"):
        assert (there / name).read_bytes() == (here / name).read_bytes()


@needs_ray
def test_a_cluster_that_is_not_there_is_told():
    with (
        pytest.raises(InputError, match=r"at 127\.0\.0\.1:1 does not answer"),
        Executor("ray", address="127.0.0.1:1").started(),
    ):
        pass
