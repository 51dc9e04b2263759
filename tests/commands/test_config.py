"""`tuner config` and `tuner run`, as a user calls them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.config.files import target, write
from tuner.cli import app
from tuner.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=True)


def test_check_prints_what_would_run_in_full(tmp_path: Path) -> None:
    path = str(write(tmp_path))
    shown = call("config", "check", path)
    assert shown.exit_code == 0
    assert "hpa target=1200" in shown.output
    facts = json.loads(call("config", "check", path, "--json").output)
    assert facts["targets"][0]["window_s"] == 60.0
    assert facts["targets"][0]["knobs"]["threads"] == {"low": 1, "high": 64}
    assert facts["missing_files"] == []


def test_check_tells_every_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, target(tick_s=-1, polcy="hpa"), server={"port": -1})
    refused = call("config", "check", str(path))
    assert isinstance(refused.exception, ConfigError)
    paths = [line.removeprefix(f"{path}: ") for line in str(refused.exception).splitlines()]
    assert {line.split(" ")[0] for line in paths} == {
        "targets[0].polcy",
        "targets[0].tick_s",
        "server.port",
    }


def test_a_secret_that_is_mounted_elsewhere_is_told_and_no_mistake(tmp_path: Path) -> None:
    engine = {"kind": "vllm", "token_file": "/run/nowhere/token"}
    shown = call("config", "check", str(write(tmp_path, target(engine=engine))))
    assert shown.exit_code == 0
    assert "not here: targets[0].engine.token_file: /run/nowhere/token" in shown.output


def test_an_audit_log_that_has_no_place_here_is_told_before_a_run(tmp_path: Path) -> None:
    path = str(write(tmp_path, audit="sqlite:////nowhere/tuner-audit.db"))
    shown = call("config", "check", path)
    assert shown.exit_code == 0  # The volume may be there where the controller runs.
    assert "folder /nowhere does not exist" in shown.output
    facts = json.loads(call("config", "check", path, "--json").output)
    assert "folder /nowhere does not exist" in facts["missing_files"][0]


def test_an_audit_log_in_memory_is_a_mistake(tmp_path: Path) -> None:
    refused = call("config", "check", str(write(tmp_path, audit="sqlite://")))
    assert isinstance(refused.exception, ConfigError)
    assert "would not outlive the controller" in str(refused.exception)


def test_explain_prints_key_default_and_meaning() -> None:
    keys = json.loads(call("config", "explain", "engine", "--json").output)
    ttl = next(key for key in keys if key["path"] == "targets[].engine.ttl_s")
    assert ttl["default"] == "180.0"
    assert "Renewed at every tick" in ttl["meaning"]
    assert "targets[].slo.ttft_s" in call("config", "explain").output


@pytest.mark.parametrize("width", [60, 80])
def test_explain_leaves_room_for_the_meaning(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line.rstrip() for line in call("config", "explain", "engine").output.splitlines()]
    assert lines[:2] == ["targets[].engine: section, needed", "    The engine in each replica."]
    assert "targets[].engine.ttl_s: number, default 180.0" in lines
    assert all(len(line) <= width for line in lines)
    assert len(lines) < 30


def test_live_ends_with_1_where_something_needed_is_missing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    nobody = {"endpoints": [{"name": "a", "url": f"http://127.0.0.1:{port}"}]}
    alone = target(prometheus=..., kubernetes=..., scrape={}, processes=nobody, move=[], tick_s=0.1)
    path = str(write(tmp_path, alone))
    shown = call("config", "check", path, "--live")
    assert shown.exit_code == 1
    assert "missing" in shown.output
    failed = call("config", "check", path, "--live", "--json")
    assert failed.exit_code == 1
    rows = {row["field"]: row for row in json.loads(failed.output)["live"]["r1"]}
    assert rows["qps"]["found"] is False
    assert rows["qps"]["needed"] is True
    assert rows["qps"]["sentence"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mode", "shadow", "--once", "--ticks", "3"], "--once and --ticks say the same"),
        (["--mode", "shadow", "--without-evidence", "x"], "--without-evidence is for --mode"),
        (["--mode", "shadow", "--target", "r2"], "target 'r2' is not in the configuration"),
    ],
    ids=["twice", "evidence in shadow", "unknown target"],
)
def test_run_refuses_what_makes_no_sense(tmp_path: Path, options: list[str], sentence: str) -> None:
    refused = call("run", "--config", str(write(tmp_path)), *options)
    assert isinstance(refused.exception, ConfigError)
    assert sentence in str(refused.exception)


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['structlog'] = None\n"
        f"sys.argv = ['tuner', 'run', '--mode', 'shadow', '--config', {str(write(tmp_path))!r}]\n"
        "import tuner.cli; tuner.cli.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "structlog is not installed; pip install 'deepseek-tuner[live]'" in ended.stderr
