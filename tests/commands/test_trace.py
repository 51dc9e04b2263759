"""`tuner trace`, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tests.envs import worlds
from tests.envs.workloads.test_recorded import telemetry_of
from tuner.cli import app
from tuner.commands.gaps import Gaps
from tuner.commands.trace import Format
from tuner.core.errors import InputError
from tuner.core.trace import Trace
from tuner.data import read_trace, write_trace
from tuner.data.formats import TRACE_FORMATS
from tuner.data.telemetry import write_telemetry

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


COUNTS = {
    "client_id": [0, 0, 1, 1, 1, 1],
    "window_start_s": [0, 600, 0, 600, 1800, 2400],
    "requests": [50, 30, 200, 100, 150, 90],
    "iat_family": ["Gamma"] * 5 + ["Weibull"],
    "iat_shape": [0.5] * 6,
}


def counted(folder: Path) -> Path:
    path = folder / "counts.parquet"
    pq.write_table(pa.table(COUNTS), path)
    return path


def test_from_counts_draws_what_was_counted_and_masks_what_was_not(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    result = call("from-counts", counted(tmp_path), "--out", out)
    assert result.exit_code == 0, result.output
    assert "620 requests over" in result.stdout
    assert "10 min of it masked" in result.stdout
    trace = read_trace(out)
    assert np.bincount((trace.arrival_s // 600).astype(int)).tolist() == [250, 130, 0, 150, 90]
    assert [(gap.start_s, gap.end_s) for gap in trace.gaps] == [(1200.0, 1800.0)]
    assert call("describe", out).stderr == ""


def test_from_counts_takes_lengths_and_a_rate(tmp_path: Path) -> None:
    lengths = {
        "client_id": [0, 0, 1, 1],
        "window_start_s": [0] * 4,
        "field": ["input_tokens", "output_tokens"] * 2,
        "value": [11.0, 22.0, 33.0, 44.0],
        "prob": [1.0] * 4,
    }
    pq.write_table(pa.table(lengths), tmp_path / "lengths.parquet")
    given = ["--lengths", tmp_path / "lengths.parquet", "--same-clients", "--qps", "2"]
    out = tmp_path / "t.parquet"
    assert call("from-counts", counted(tmp_path), *given, "--out", out).exit_code == 0
    trace = read_trace(out)
    assert len(trace) == pytest.approx(2 * 2400, abs=2)
    assert set(zip(trace.client_id, trace.prompt_tokens, trace.output_tokens, strict=True)) == {
        (0, 11, 22),
        (1, 33, 44),
    }
    alone = call("from-counts", counted(tmp_path), "--same-clients", "--out", out)
    assert "--same-clients is given without --lengths" in str(alone.exception)


def test_from_telemetry_rebuilds_the_load_and_says_what_it_left_out(tmp_path: Path) -> None:
    sent = worlds.trace(1500.0)
    telemetry, out = tmp_path / "telemetry.parquet", tmp_path / "t.parquet"
    write_telemetry(telemetry_of(sent, lost=tuple(range(20, 30))), telemetry)
    result = call("from-telemetry", telemetry, "--match", "row", "--out", out)
    assert result.exit_code == 0, result.output
    trace = read_trace(out)
    left_out = len(sent) - len(trace)
    assert f"{left_out:,} requests were counted only after a gap" in result.stderr
    assert len(trace.gaps) == 1
    assert trace.header["tokens_add_up"] == "in every row"
    write_telemetry(telemetry_of(sent, arrivals=False), telemetry)
    told = call("from-telemetry", telemetry, "--out", out).stderr
    assert "arrivals are told by requests_finished and those in flight" in told
    assert isinstance(
        call("from-telemetry", telemetry, "--match", "often", "--out", out).exception, InputError
    )


def test_edit_does_everything_in_its_order_and_the_header_tells(tmp_path: Path) -> None:
    one, two, out = (tmp_path / f"{name}.parquet" for name in ("one", "two", "out"))
    for path, seed in ((one, 1), (two, 2)):
        call("generate", "--hours", "2", "--qps", "2", "--seed", seed, "--out", path)
    edits = ["--from", "30m", "--until", "90m", "--append", two, "--overlay", two, "--phase", "3h"]
    edits += ["--thin", "0.5", "--burst-cv", "2", "--outputs", "1.2", "--prompt-tail", "1.1"]
    result = call("edit", one, *edits, "--seed", "9", "--out", out)
    assert result.exit_code == 0, result.output
    trace = read_trace(out)
    assert trace.header["edits"] == (
        "cut 1800 to 5400 s; spliced with two.parquet; overlaid with two.parquet; "
        "shifted by 3 h of 24 h; thinned to 0.5, seed 9; gaps of CV 2 over 600 s, seed 9; "
        "lengths: outputs 1.2, prompt_tail 1.1"
    )
    assert trace.header["workload"] == "deepseek-r1-day"
    assert trace.arrival_s[0] > 3 * 3600 - 600
    again = call("edit", one, *edits, "--seed", "9", "--out", tmp_path / "again.parquet")
    assert again.exit_code == 0
    assert (tmp_path / "again.parquet").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--phase", "soon"], "--phase is 'soon'; expected a length"),
        (["--thin", "2"], "thin: 2.0 of the requests"),
        (["--from", "9h"], "holds no request from 32400 s"),
        (["--seed", "-1"], "--seed is -1"),
    ],
    ids=["phase", "thin", "from", "seed"],
)
def test_edit_refuses_what_cannot_be(tmp_path: Path, options: list[str], sentence: str) -> None:
    path = tmp_path / "t.parquet"
    call("generate", "--hours", "0.2", "--out", path)
    result = call("edit", path, *options, "--out", tmp_path / "out.parquet")
    assert isinstance(result.exception, InputError)
    assert sentence in str(result.exception)
    assert os.listdir(tmp_path) == ["t.parquet"]


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


def test_a_cut_to_the_end_names_no_end(tmp_path: Path) -> None:
    day, out = tmp_path / "day.parquet", tmp_path / "out.parquet"
    call("generate", "--hours", "2", "--qps", "2", "--seed", 1, "--out", day)
    refused = call("edit", day, "--from", "3h", "--out", out)
    assert "holds no request from 10800 s on; its last one is at" in str(refused.exception)
    assert call("edit", day, "--from", "1h", "--out", out).exit_code == 0
    assert read_trace(out).header["edits"] == "cut 3600 s on"


@pytest.mark.parametrize(
    "command", ["import", "describe", "generate", "from-counts", "from-telemetry", "edit"]
)
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
