"""`tuner load`, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.live.scripted_engine import Behaviour, ScriptedEngine
from tests.ports import free_port
from tuner.cli import app
from tuner.core.errors import InputError, TunerError
from tuner.core.trace import Trace
from tuner.data import write_trace

COMMAND = [sys.executable, "-m", "tuner.cli", "load"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Ten requests in half a second."""
    path = tmp_path / "t.parquet"
    drawn = Trace(
        np.arange(10) * 0.05, np.arange(5, 15, dtype=np.int32), np.full(10, 3, dtype=np.int32)
    )
    write_trace(drawn, path)
    return path


def call(*arguments: object):
    return CliRunner().invoke(app, ["load", *map(str, arguments)], env={"COLUMNS": "200"})


def test_json_tells_what_the_folder_holds(trace, tmp_path):
    out = tmp_path / "run"
    with ScriptedEngine() as engine:
        result = call("--trace", trace, "--url", engine.url, "--out", out, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["finished"] == engine.truth.requests == 10
    assert told == json.loads((out / "summary.json").read_text())
    assert len(pq.read_table(out / "requests.parquet")) == 10


def test_a_run_of_which_no_request_finished_is_a_failure_and_still_told(trace, tmp_path):
    out = tmp_path / "run"
    with ScriptedEngine(dict.fromkeys(range(5, 15), Behaviour(status=500))) as engine:
        result = call("--trace", trace, "--url", engine.url, "--out", out)
    assert isinstance(result.exception, TunerError)
    assert not isinstance(result.exception, InputError), "that would be exit code 2"
    assert "no request finished" in str(result.exception)
    assert "10 sent of 10, 0 finished, 10 failed" in result.stdout
    assert json.loads((out / "summary.json").read_text())["finished"] == 0


def test_no_folder_is_left_where_no_engine_answers(trace, tmp_path):
    result = call(
        "--trace", trace, "--url", f"http://127.0.0.1:{free_port()}", "--out", tmp_path / "a/b"
    )
    assert isinstance(result.exception, InputError)
    assert "is the engine up?" in str(result.exception)
    assert not (tmp_path / "a").exists()


def test_a_folder_that_was_there_stays_where_no_engine_answers(trace, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    call("--trace", trace, "--url", f"http://127.0.0.1:{free_port()}", "--out", out)
    assert out.is_dir()


def test_a_person_is_told_figures_and_failures(trace):
    with ScriptedEngine({5: Behaviour(status=500)}) as engine:
        result = call("--trace", trace, "--url", engine.url, "--speed", 4)
    assert "10 sent of 10, 9 finished, 1 failed (1 http_500)" in result.stdout
    assert "TTFT" in result.stdout


def test_cut_lengths_are_said(trace):
    with ScriptedEngine() as engine:
        result = call("--trace", trace, "--url", engine.url, "--max-output-tokens", 2)
    assert "10 outputs were cut" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--url", "nowhere"], "is no address", id="no address"),
        pytest.param([], "give --url", id="no address at all"),
        pytest.param(["--url", "http://127.0.0.1:1", "--speed", "0"], "--speed is 0", id="speed"),
    ],
)
def test_a_mistake_is_one_sentence(trace, arguments, message):
    result = call("--trace", trace, *arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_a_port_that_no_machine_has_is_refused(trace):
    result = call("--trace", trace, "--url", "http://127.0.0.1:1", "--metrics-port", "65536")
    assert result.exit_code == 2
    assert "'--metrics-port'" in result.stderr


def test_ctrl_c_writes_what_there_is(tmp_path):
    path = tmp_path / "long.parquet"
    arrival_s = np.array([0.0, 0.0, 3600.0])
    write_trace(Trace(arrival_s, np.full(3, 5, np.int32), np.full(3, 2, np.int32)), path)
    out = tmp_path / "run"
    with ScriptedEngine() as engine:
        process = subprocess.Popen(
            [*COMMAND, "--trace", path, "--url", engine.url, "--metrics-port", "0", "--out", out],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert "metrics at" in process.stderr.readline()
            engine.wait_for(2)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "2 sent of 3" in stdout
    assert "Traceback" not in stderr
    assert json.loads((out / "summary.json").read_text())["interrupted"] is True
    assert len(pq.read_table(out / "requests.parquet")) == 2
