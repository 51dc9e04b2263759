"""`tuner trace`, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tuner.cli import app
from tuner.commands.gaps import Gaps
from tuner.commands.trace import Format
from tuner.core.errors import InputError
from tuner.core.trace import Trace
from tuner.data import read_trace, write_trace
from tuner.data.formats import TRACE_FORMATS

OWN = "arrival_s,prompt_tokens,output_tokens\n"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["trace", *map(str, arguments)], env={"COLUMNS": "80"})


def recording(folder: Path, rows: list[str]) -> Path:
    path = folder / "recording.csv"
    path.write_text(OWN + "".join(row + "\n" for row in rows))
    return path


def import_gap(folder: Path, out: Path, *options: str) -> Result:
    """Imports a recording with a request every second, but none from 700 s to 1300 s."""
    path = recording(folder, [f"{i},5,5" for i in range(2000) if not 700 < i < 1300])
    return call("import", path, "--format", "csv", "--out", out, *options)


def test_the_options_name_what_the_code_knows() -> None:
    assert [format_.value for format_ in Format] == list(TRACE_FORMATS)
    assert [mode.value for mode in Gaps] == ["keep", "mask", "error"]


def test_import_writes_a_trace_and_says_what_it_dropped(tmp_path: Path) -> None:
    path = recording(tmp_path, ["0,1,1", "1,1,0", "2,1,0", "9,1,1", "5,2,2"])
    result = call("import", path, "--format", "csv", "--out", tmp_path / "t.parquet")
    assert result.exit_code == 0
    assert "5 rows read, 3 kept" in result.stdout
    assert "dropped 2 without output tokens (failed requests) (40.00%)" in result.stdout
    assert "1 row was out of order: sorted by arrival" in result.stdout
    assert read_trace(tmp_path / "t.parquet").arrival_s.tolist() == [0, 5, 9]


def test_import_tells_scripts_in_json(tmp_path: Path) -> None:
    path = recording(tmp_path, ["0,1,1", "1,1,0"])
    result = call("import", path, "--format", "csv", "--out", tmp_path / "t.parquet", "--json")
    told = json.loads(result.stdout)
    assert told["kept"] == 1
    assert told["dropped"] == {"without output tokens (failed requests)": 1}
    assert told["gaps"] == []


def test_a_gap_is_a_warning_with_its_span(tmp_path: Path) -> None:
    result = import_gap(tmp_path, tmp_path / "t.parquet")
    assert result.exit_code == 0
    assert "warning: no request for 10 min, from 700 s to 1300 s" in result.stderr
    assert read_trace(tmp_path / "t.parquet").gaps == ()
    described = call("describe", tmp_path / "t.parquet")
    assert "warning: no request for 10 min" in described.stderr


def test_a_masked_gap_is_noted_in_the_trace(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    result = import_gap(tmp_path, out, "--gaps", "mask")
    assert "masked" in result.stderr
    (gap,) = read_trace(out).gaps
    assert (gap.start_s, gap.end_s) == (700, 1300)
    described = call("describe", out)
    assert "10 min of it masked" in described.stdout
    assert described.stderr == ""


def test_a_gap_that_is_an_error_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    result = import_gap(tmp_path, out, "--gaps", "error")
    assert isinstance(result.exception, InputError)
    assert "--gaps mask" in str(result.exception)
    assert not out.exists()


def test_an_import_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    out.write_text("precious")
    result = call("import", recording(tmp_path, ["x,y,z"]), "--format", "csv", "--out", out)
    assert isinstance(result.exception, InputError)
    assert out.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["recording.csv", "t.parquet"]


def test_generate_writes_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        out = tmp_path / f"{name}.parquet"
        result = call("generate", "--hours", "0.5", "--seed", "3", "--out", out)
        assert result.exit_code == 0
        assert "requests over 30 min" in result.stdout
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert read_trace(tmp_path / "one.parquet").header["seed"] == "3"


def test_generate_scales_the_load(tmp_path: Path) -> None:
    sizes = []
    for qps in (5, 20):
        out = tmp_path / f"{qps}.parquet"
        call("generate", "--hours", "2", "--qps", qps, "--out", out)
        sizes.append(len(read_trace(out)))
    assert sizes[1] / sizes[0] == pytest.approx(4, rel=0.1)


def test_generate_names_the_workloads_there_are(tmp_path: Path) -> None:
    result = call("generate", "--workload", "deepseek-r1-da", "--out", tmp_path / "t.parquet")
    assert "did you mean 'deepseek-r1-day'?" in str(result.exception)
    assert os.listdir(tmp_path) == []


def test_describe_fits_80_columns_and_shows_the_load(tmp_path: Path) -> None:
    out = tmp_path / "day.parquet"
    call("generate", "--hours", "24", "--seed", "1", "--out", out)
    result = call("describe", out)
    assert max(map(len, result.stdout.splitlines())) <= 80
    for word in ("requests/s", "peak", "CV", "variance/mean", "clients", "prompt", "output", "█"):
        assert word in result.stdout


def test_describe_tells_scripts_in_json(tmp_path: Path) -> None:
    arrival_s = np.arange(100.0)
    tokens = np.full(100, 7, np.int32)
    write_trace(Trace(arrival_s, tokens, tokens.copy()), tmp_path / "t.parquet")
    told = json.loads(call("describe", tmp_path / "t.parquet", "--json").stdout)
    assert told["requests"] == 100
    assert told["prompt"]["quantiles"]["p50"] == 7


@pytest.mark.parametrize("command", ["import", "describe", "generate"])
def test_help_shows_an_example_of(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"tuner trace {command} " in result.stdout


def test_the_real_command_exits_with_2_and_one_sentence(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tuner.cli", "trace", "describe", str(tmp_path / "none.parquet")],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert len(ran.stderr.splitlines()) == 1
    assert "\x1b" not in ran.stderr
