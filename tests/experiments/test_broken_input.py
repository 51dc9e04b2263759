"""Values that cannot be are refused before any work, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.folder import result_folder
from experiments.load import read_load
from experiments.report.timelines import _Buckets
from experiments.simulate import SimulateRequest, simulate
from tests.envs import worlds
from tuner.core.errors import ConfigError, InputError, ProfileError, TraceError
from tuner.core.trace import Gap
from tuner.data import write_trace
from tuner.data.strict import parse_yaml


def request(folder: Path, **changes: object) -> SimulateRequest:
    trace = folder / "t.parquet"
    write_trace(worlds.trace(100.0), trace)
    values = {"profile": "reference-affine", "policy": "static", "options": {"replicas": 2}}
    return SimulateRequest(trace=trace, out=folder / "out", **{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tick_s": float("inf")}, "tick_s is inf"),
        ({"tick_s": float("nan")}, "tick_s is nan"),
        ({"jitter": float("inf")}, "jitter is inf"),
        ({"max_replicas": 10**8}, "max_replicas is 100000000"),
        ({"options": {"replicas": 0}}, r"replicas 0 is outside 1\.\.32"),
        ({"options": {"replicas": 10**20}}, r"is outside 1\.\.32"),
        ({"options": {"replicas": 2.5}}, "expected a whole number"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_simulate_refuses_what_cannot_be(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        simulate(request(tmp_path, **changes), console=Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_whole_number_written_as_a_float_is_a_count(tmp_path):
    result = simulate(request(tmp_path, options={"replicas": 40.0}), console=Console(quiet=True))
    assert result.ticks.ready_replicas[0] == 40


def test_an_out_that_is_a_file_is_refused_before_the_run(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        simulate(request(tmp_path), console=Console(quiet=True))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_failed_block_leaves_none_of_the_folders_that_it_made(tmp_path):
    with pytest.raises(InputError, match="no"), result_folder(tmp_path / "a" / "b" / "out"):
        raise InputError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["? [1, 2]\n: 3\n", "a: 2020-13-45\n", "a: " + "[" * 5000],
    ids=["list as a key", "thirteenth month", "nested without end"],
)
def test_yaml_that_python_cannot_hold_is_one_sentence(text):
    with pytest.raises(ProfileError, match=r"f\.yaml"):
        parse_yaml(text, "f.yaml", ProfileError)


def test_a_timeline_without_any_value_is_empty():
    buckets = _Buckets(x={"x0": 0.0, "dx": 1.0}, of=np.array([0, 1, 2]), length_s=60.0, count=3)
    assert buckets.worst(np.full(3, np.nan)) == [None, None, None]


def test_a_trace_that_is_all_gap_leaves_nothing_to_score(tmp_path):
    whole = worlds.trace(100.0)
    silent = replace(whole, gaps=(Gap(0.0, whole.last_arrival_s + 1),))
    write_trace(silent, tmp_path / "silent.parquet")
    with pytest.raises(TraceError, match="cover all of its"):
        read_load(tmp_path / "silent.parquet", "keep", Console(quiet=True))
