"""`tuner calibrate`, as a user calls it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tests.envs import worlds
from tests.envs.recordings import recorded
from tests.pages import plots_of
from tuner.cli import app
from tuner.data import load_profile
from tuner.data.profiles import write_profile
from tuner.data.telemetry import write_telemetry


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Iterations of 0.02 s + 50 µs per prompt token, 1 % noise, in three runs."""
    rng = np.random.default_rng(0)
    prefill = np.where(rng.random(1800) < 0.3, rng.integers(1, 500, 1800), 0)
    batch = rng.integers(1, 30, 1800)
    table = {
        "prefill_tokens": prefill,
        "batch": batch,
        "kv_tokens": batch * 500,
        "step_s": (0.02 + 5e-5 * prefill) * np.exp(rng.normal(0, 0.01, 1800)),
        "run": np.arange(1800) // 600,
    }
    pq.write_table(pa.table(table), tmp_path / "steps.parquet")
    return tmp_path / "steps.parquet"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    rows = [
        {"isl": 256, "osl": 64, "concurrency": c, "ttft_ms": ttft, "tpot_ms": tpot}
        for c, ttft, tpot in ((1.0, 110.0, 9.0), (4.0, 130.0, 14.0))
    ]
    same = {"model_path": "M", "system": "h200_sxm", "mode": "agg"}
    pq.write_table(pa.Table.from_pylist([same | row for row in rows]), tmp_path / "points.parquet")
    return tmp_path / "points.parquet"


def test_writes_a_profile_that_holds_its_figures_intervals_errors_and_origins(
    steps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ours.yaml"
    result = call("reference-affine", "--steps", steps, "--out", out)
    assert result.exit_code == 0, result.output
    profile = load_profile(out)
    assert profile.name == "ours"
    assert profile.step_time.per_prefill_token_s == pytest.approx(5e-5, rel=0.02)
    low, high = profile.interval["step_time.per_prefill_token_s"]
    assert low < 5e-5 < high
    assert profile.error["step_mean_left_out"] == pytest.approx(0.008, rel=0.15)
    assert "1,800 iterations of steps.parquet" in profile.origin["step_time"]
    told = profile.origin["step_time.batch_table"]
    assert told.startswith("Measured at 1 to 29 sequences. From there to batch_size_max 128 it is")
    assert "extrapolated" in told
    # What was not fitted is the base's, its origin with it.
    base = load_profile("reference-affine")
    assert profile.kv == base.kv
    assert profile.origin["kv"] == base.origin["kv"]


def test_tells_scripts_the_same_in_json(steps: Path) -> None:
    told = json.loads(call("reference-affine", "--steps", steps, "--hold-out", 2, "--json").stdout)
    assert told["error"]["step_mean_left_out"] < 0.01
    found = {row["key"]: row for row in told["coefficients"]}
    row = found["step_time.per_prefill_token_s"]
    assert row["low"] <= row["value"] <= row["high"]


def test_writes_a_page_that_fetches_nothing(steps: Path, points: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    sources = {
        "steps": ["--steps", steps],
        "points": ["--points", points, "--system", "h200_sxm", "--hold-out", 4],
    }
    plots = {"steps": {"steps", "batch_table"}, "points": {"tpot", "ttft"}}
    for name, source in sources.items():
        page = tmp_path / f"{name}.html"
        result = call("reference-affine", *source, "--page", page)
        assert result.exit_code == 0, result.output
        html = page.read_text()
        own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
        assert not re.search(r"(src|href)=|https?://", own)
        data = plots_of(html)
        assert plots[name] <= set(data)
        assert ("Milliseconds by sequences" in own) == (name == "steps")
        for plot in data:
            assert f'id="plot-{plot}"' in own
            assert all(trace["x"] for trace in data[plot]["data"])


def test_telemetry_alone_gives_a_profile_and_a_page(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    profile = replace(worlds.PROFILE, startup=None)
    write_profile(profile, tmp_path / "ours.yaml")
    recording, out, page = (tmp_path / name for name in ("r.parquet", "fitted.yaml", "page.html"))
    steady = replace(worlds.trace(200.0, qps=1.4), arrival_s=np.arange(280) / 1.4)
    write_telemetry(recorded(steady, profile, until_s=200.0), recording)
    given = ("--telemetry", recording, "--terms", "prefill", "--trials", 10)
    result = call(tmp_path / "ours.yaml", *given, "--out", out, "--page", page)
    assert result.exit_code == 0, result.output
    assert re.search(r"TPOT p50, ms +[\d.]+ +[\d.]+ +[+-]", result.output)
    fitted = load_profile(out)
    assert fitted.scheduler == profile.scheduler
    assert set(fitted.interval) == {"step_time.base_s", "step_time.per_prefill_token_s"}
    assert "requests of r1 (vllm), 2027-01-15" in fitted.origin["step_time"]
    assert "tpot_p50_left_out" in fitted.error
    html = page.read_text()
    for told in (" ".join(result.output.split()), fitted.origin["step_time"], html):
        assert "one rate only" in told
        assert "not a 95 % interval" in told
    assert "95 % intervals." not in html
    assert all(f'id="plot-{kind}"' in html for kind in ("ttft_s", "tpot_s", "e2e_s"))


def test_shows_each_point_and_what_was_held_out(points: Path) -> None:
    result = call("reference-affine", "--points", points, "--system", "h200_sxm", "--hold-out", 4)
    assert result.exit_code == 0, result.output
    assert re.search(r"256/64 +4 +130", result.output)
    assert "tpot mean held out left out" in result.output


STEPLESS = """\
schema: tuner.profile/1
name: ours
scheduler: vidur-sarathi
gpus_per_replica: 8
kv: {block_tokens: 16, blocks: 30000}
limits: {batch_size_max: 64, chunk_tokens: 2048}
"""


@pytest.fixture
def stepless(tmp_path: Path) -> Path:
    """Rule-set, cache and limits: what nothing fits."""
    (tmp_path / "ours.yaml").write_text(STEPLESS)
    return tmp_path / "ours.yaml"


def test_the_base_needs_no_step_time_where_all_of_it_is_fitted(
    steps: Path, points: Path, stepless: Path, tmp_path: Path
) -> None:
    sources = (["--steps", steps], ["--points", points, "--system", "h200_sxm", "--hold-out", 4])
    for source in sources:
        result = call(stepless, *source, "--out", tmp_path / "fitted.yaml")
        assert result.exit_code == 0, result.output
        step_time = load_profile(tmp_path / "fitted.yaml").step_time
        assert step_time.base_s == 0.0
        assert 0.001 < step_time.batch_table[0][1] < 0.1


def test_telemetry_needs_a_step_time_to_start_from(steps: Path, stepless: Path) -> None:
    result = call(stepless, "--telemetry", steps)
    assert result.exit_code != 0
    assert "step_time is missing" in str(result.exception)
    assert "built-in profile" in str(result.exception)


def test_warns_where_no_point_can_be_left_out(points: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(points).slice(0, 1), tmp_path / "one.parquet")
    out = tmp_path / "fitted.yaml"
    given = ("--points", tmp_path / "one.parquet", "--system", "h200_sxm", "--out", out)
    result = call("reference-affine", *given, "--json")
    assert result.exit_code == 0, result.output
    assert "warning: 1 point: none can be left out" in result.stderr
    assert json.loads(result.stdout)["left_out"] == []
    assert "none can be left out" in load_profile(out).origin["error"]


def test_outputs_are_checked_before_the_work(steps: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    page, same = tmp_path / "page.html", tmp_path / "one.yaml"
    # The measurements are not there: whoever looked at them first would say so.
    for given, message in (
        (("--out", tmp_path / "no" / "out.yaml", "--page", page), "does not exist; create it"),
        (("--out", tmp_path, "--page", page), "is a folder"),
        (("--out", same, "--page", same), "--out and --page are both"),
    ):
        result = call("reference-affine", "--steps", "none.npz", *given)
        assert message in str(result.exception)
    assert {path.name for path in tmp_path.iterdir()} == {steps.name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "STEPS", "--replicas", "99999999"], "--replicas is 99999999; expected 1 to"),
        ([], "expected measurements: --steps FILE, --points FILE or"),
        (["--steps", "STEPS", "--points", "POINTS"], "and only one of them"),
        (["--telemetry", "none.parquet"], "none.parquet does not exist"),
        (["--telemetry", "STEPS"], "schema is 'nothing'"),
        (["--telemetry", "STEPS", "--hold-out", "1"], "spans of time are left out in turn"),
        (["--steps", "none.npz"], "none.npz is not a file; expected a step log"),
        (["--steps", "STEPS", "--terms", "magic"], "term 'magic' is not known"),
        (["--steps", "STEPS", "--terms", "context"], "needs a column context_pairs"),
        (["--steps", "STEPS", "--hold-out", "7"], "run 7 is not in the step log (its runs: 0, 1"),
        (["--steps", "STEPS", "--hold-out", "8192/1024"], "expected numbers of runs"),
        (["--steps", "STEPS", "--requests", "none.csv"], "none.csv is not a file"),
        (["--steps", "STEPS", "--scheduler", "fifo"], "scheduler is 'fifo'"),
        (["--points", "POINTS"], "--points needs --system"),
        (["--points", "POINTS", "--system", "b200_sxm"], "has no point of mode agg, system b200"),
        (["--points", "EMPTY", "--system", "h200_sxm"], "empty.parquet holds no rows; expected"),
        (["--points", "POINTS", "--system", "h200_sxm", "--hold-out", "x"], "--hold-out x: exp"),
        (["--points", "POINTS", "--system", "h200_sxm", "--hold-out", "9"], "leaves 2 of 2 points"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    arguments: list[str], message: str, steps: Path, points: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(points).slice(0, 0), empty)
    files = {"STEPS": steps, "POINTS": points, "EMPTY": empty}
    given = [str(files.get(a, a)) for a in arguments]
    out = tmp_path / "out.yaml"
    result = call("reference-affine", *given, "--out", out)
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not out.exists()
