"""`tuner simulate`, as a user calls it: a world that goes wrong because it was asked to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tests.envs import worlds
from tuner.cli import app
from tuner.data import write_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "trace.parquet"
    write_trace(worlds.trace(900.0), path)
    return path


def call(trace: Path, out: Path, *more: str) -> Result:
    given = ["--trace", str(trace), "--profile", "reference-affine", "--out", str(out)]
    policy = ["--policy", "static", "--set", "replicas=2"]
    return CliRunner().invoke(app, ["simulate", *given, *policy, *more])


def test_a_named_start_and_failures_are_simulated_and_written_down(trace, tmp_path) -> None:
    out = tmp_path / "rough"
    rough = ("--startup", "cold", "--drain-timeout", "30", "--crashes", "20")
    result = call(trace, out, *rough, "--json")
    assert result.exit_code == 0, result.output
    run = json.loads((out / "run.json").read_text())
    assert (run["config"]["startup"], run["config"]["drain_timeout_s"]) == ("cold", 30.0)
    assert run["config"]["failures"]["crash_per_hour"] == 20.0
    assert "'cold'" in run["profile"]["origin"]["startup"]
    requests = pq.read_table(out / "requests.parquet")
    failed = requests["failed"].to_numpy()
    finished = ~np.isnan(requests["e2e_s"].to_numpy())
    assert failed.any()
    assert not (failed & finished).any()
    # A crashed replica is away for about ten minutes, not for the instant of its own profile.
    assert json.loads(result.stdout)["slo_attainment"] < 0.9


def test_requests_that_overtime_cuts_off_are_told(tmp_path) -> None:
    path = tmp_path / "much.parquet"
    write_trace(worlds.trace(300.0, qps=60.0), path)
    short = call(path, tmp_path / "short", "--overtime", "15", "--json")
    assert short.exit_code == 0, short.output
    told = json.loads(short.stdout)
    assert told["unfinished"] > 0
    assert told["completed"] + told["unfinished"] == told["requests"]
    words = " ".join(call(path, tmp_path / "table", "--overtime", "15").stdout.split())
    cut = f"{told['unfinished']:,} of {told['requests']:,} requests had not ended 15 s after"
    assert cut in words
    assert cut in " ".join(short.stderr.split())
    assert f"latencies are those of the {told['completed']:,} completed requests" in words
    whole = call(path, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["unfinished"] == 0
    assert "latencies are those" not in whole.output


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--crashes", "1e9"), "failures.crash_per_hour is 1000000000.0; expected 0 to 3600"),
        (("--initial-replicas", "99999999999"), "initial_replicas is 99999999999; expected 1 to"),
        (("--drain-timeout", "1e12"), "drain_timeout_s is 1000000000000.0; expected 0 to"),
    ],
    ids=["crashes", "start", "drain time-out"],
)
def test_a_value_beyond_reason_is_refused_before_anything_is_written(
    trace, tmp_path, option, sentence
) -> None:
    result = call(trace, tmp_path / "out", *option)
    assert result.exit_code != 0
    assert sentence in str(result.exception)
    assert ";" not in str(result.exception).replace(sentence, "")
    assert not (tmp_path / "out").exists()
