import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest

from tuner.cli import main
from tuner.core.trace import Trace
from tuner.data import write_trace

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


@pytest.fixture
def tuner(monkeypatch, capsys):
    """Runs the command; gives exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tuner", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        else:
            code = 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def trace(tmp_path):
    rng = np.random.default_rng(5)
    arrival_s = np.sort(rng.uniform(0, 240, 400))
    path = tmp_path / "load.parquet"
    write_trace(
        Trace(
            arrival_s=arrival_s,
            prompt_tokens=rng.integers(50, 400, 400).astype(np.int32),
            output_tokens=rng.integers(1, 120, 400).astype(np.int32),
        ),
        path,
    )
    return path


def common(trace, out):
    return (
        *("compare", "--trace", trace, "--profile", "reference-affine", "--out", out),
        *("--seeds", 2, "--jobs", 1, "--no-oracle"),
    )


def test_compares_two_rules_in_the_simulator(tuner, trace, tmp_path):
    out = tmp_path / "runs" / "first"
    config = tmp_path / "compare.yaml"
    config.write_text("run: {max_replicas: 3}\nsweep: {hpa_targets: [100, 400]}\n")
    code, printed, _ = tuner(
        *(*common(trace, out), "--policies", "static,hpa", "--config", config),
        *("--startup", "warm", "--json"),
    )
    assert code == 0
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["run"]["startup"] == "warm"
    assert "'warm'" in run["profile"]["origin"]["startup"]
    summary = json.loads(printed)
    assert summary == json.loads((out / "summary.json").read_text())
    assert set(summary["policies"]) == {"static", "hpa"}
    for policy in summary["policies"].values():
        assert 0 <= policy["slo_attainment"] <= 1
        low, high = policy["ci95"]["slo_attainment"]
        assert low <= policy["slo_attainment"] <= high
        assert policy["requests"] == 400
        assert policy["gpu_hours"] > 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("report.html", "report.md", "requests.parquet", "run.json"),
        *("summary.json", "ticks.parquet"),
    ]
    assert pq.read_metadata(out / "requests.parquet").num_rows == 2 * 2 * 400
    run = json.loads((out / "run.json").read_text())
    assert run["command"].startswith("tuner compare --trace ")
    assert run["config"]["run"]["max_replicas"] == 3
    assert run["seeds"] == [1, 2]
    assert run["versions"]["numpy"] == np.__version__


def test_prints_the_verdict_and_where_the_report_is(tuner, trace, tmp_path):
    out = tmp_path / "given"
    code, printed, _ = tuner(
        *common(trace, out),
        *("--policies", "static,hpa", "--set", "static.replicas=1", "--set", "hpa.target=400"),
    )
    assert code == 0
    assert "SLO attainment" in printed
    assert f"report: {out / 'report.html'}" in printed.replace("\n", "")


def test_shows_the_oracles_beside_the_policies_and_each_regret(tuner, trace, tmp_path):
    out = tmp_path / "bounds"
    config = tmp_path / "compare.yaml"
    config.write_text("run: {max_replicas: 3}\n")
    code, printed, _ = tuner(
        *(*common(trace, out)[:-1], "--policies", "static", "--config", config),
        *("--startup", "warm", "--set", "static.replicas=2"),
    )
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["policies"]) == ["static", "oracle-a", "oracle-b"]
    assert [goal["goal"] for goal in summary["oracles"]["oracle-b"]["goals"]] == [0.99, 0.995]
    static, bound = summary["policies"]["static"], summary["policies"]["oracle-b"]
    assert bound["slo_attainment"] >= 0.99
    assert bound["regret"] <= 1.0 < static["regret"]
    assert bound["options"]["plan"]
    assert "oracle-b" in summary["tuning"]["curves"]
    assert f"static +{100 * (static['regret'] - 1):.1f} %" in printed
    assert "With the whole load known, 99.0 % of the requests need" in printed
    assert pq.read_metadata(out / "requests.parquet").num_rows == 3 * 2 * 400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policies", "statik"], "did you mean 'static'?"),
        (["--policies", "static", "--baseline", "hpa"], "baseline 'hpa' is not compared"),
        (["--policies", "static", "--set", "replicas=3"], "as in --set static.replicas=4"),
        (["--policies", "static", "--set", "static.replica=3"], "unknown option 'replica'"),
        (["--policies", "static", "--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--policies", "static", "--train-trace", "absent"], "absent does not exist"),
        (["--policies", "static", "--profile", "deepseek"], "is not built in"),
    ],
)
def test_a_mistake_is_one_sentence_exit_2_and_nothing_written(
    tuner, trace, tmp_path, arguments, words
):
    out = tmp_path / "runs"
    code, printed, complaint = tuner(*common(trace, out), *arguments)
    assert code == 2
    assert printed == ""
    assert words in complaint
    assert complaint.startswith("error: ")
    assert len(complaint.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["load.parquet"]


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (signal.SIGTERM, 130, "error: interrupted; nothing half-written is left\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_ended_from_outside_its_workers_end_with_it(trace, tmp_path, sent, code, words):
    out = tmp_path / "ended"
    command = [sys.executable, "-m", "tuner.cli", *map(str, common(trace, out)), "--jobs", "2"]
    # More trials than it will be given time for.
    config = tmp_path / "long.yaml"
    config.write_text("sweep: {trials: 10000}\n")
    command += ["--policies", "hpa", "--config", str(config)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            deadline = time.monotonic() + 120
            while not list((tmp_path / "ended.cells").glob("*/run.json")):
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            run.send_signal(sent)
            _, said = run.communicate(timeout=90)
            assert run.returncode == code
            assert said.endswith(words)
            assert ("finished runs are kept in" in said) == bool(words)
            while _in_group(run.pid):
                assert time.monotonic() < deadline, "a worker outlived the command"
                time.sleep(0.1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert not out.exists()


def _in_group(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
