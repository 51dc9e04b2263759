"""`tuner sandbox`, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from tests.envs import worlds
from tuner.cli import app
from tuner.config.file import load_config
from tuner.core.errors import InputError
from tuner.data import write_trace
from tuner.live.sandbox import SandboxPool

PROFILE = """
schema: tuner.profile/1
name: small
scheduler: vidur-sarathi
gpus_per_replica: 1
kv: {block_tokens: 16, blocks: 600}
limits: {batch_size_max: 32, chunk_tokens: 512}
step_time: {base_s: 0.02, per_prefill_token_s: 1.0e-4, per_sequence_s: 5.0e-4}
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A small sandbox on a free port."""
    write_trace(worlds.trace(seconds=600.0), tmp_path / "t.parquet")
    (tmp_path / "small.yaml").write_text(PROFILE)
    return [
        *("--trace", str(tmp_path / "t.parquet"), "--profile", str(tmp_path / "small.yaml")),
        *("--replicas", "2", "--max-replicas", "5", "--port", "0", "--speed", "10", "--json"),
        *("--out", str(tmp_path / "box"), "--repeat", "20"),
    ]


@contextmanager
def running(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and the address that it tells."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner.cli", "sandbox", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()


def test_writes_a_configuration_that_leads_to_it(arguments, tmp_path):
    with running(arguments) as (_, url):
        (target,) = load_config(tmp_path / "box" / "tuner.yaml").targets
        assert target.sandbox.url == url
        assert target.sandbox.speed == 10.0
        assert target.knobs["replicas"].high == 5
        assert target.knobs["batch_size"].high == 32
        assert target.fallback == "hpa"
        assert target.fallback_options["target"] > 0
        pool = SandboxPool(target.sandbox, timeout_s=10.0)
        pool.check(writes=True)
        assert pool.look().wanted == 2
        assert pool.scale(4, pool.look()) == 4
        pool.close()
        traffic = httpx.get(target.traffic.url, trust_env=False).text
        assert target.traffic.arrivals in traffic
        assert target.traffic.in_flight in traffic
        scrapes = yaml.safe_load((tmp_path / "box" / "prometheus.yml").read_text())
        (job,) = scrapes["scrape_configs"]
        page = httpx.get(f"http://{job['static_configs'][0]['targets'][0]}/metrics").text
        assert 'pod="replica-0"' in page


def steer(folder: Path, *options: str) -> list[dict[str, object]]:
    """Eight ticks of the controller; its decisions."""
    path = folder / "box" / "tuner.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "server": {"port": 0}}))
    ended = subprocess.run(
        [sys.executable, "-m", "tuner.cli", "run", "--config", path, "--ticks", "8", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return [event for event in events if event["event"] == "decision"]


def test_a_controller_in_shadow_decides_and_writes_nothing(arguments, tmp_path):
    with running([*arguments, "--replicas", "1", "--target", "20"]) as (_, url):
        decisions = steer(tmp_path, "--mode", "shadow")
        assert len(decisions) == 8
        assert any(str(one["moves"]).startswith("replicas 1 -> ") for one in decisions)
        pool = httpx.get(f"{url}/pool", trust_env=False).json()
        state = httpx.get(f"{url}/replicas/replica-0/v1/runtime_config", trust_env=False).json()
    assert (pool["wanted"], pool["version"]) == (1, "1")
    assert state["revision"] == 0


def test_a_controller_that_acts_moves_the_fleet(arguments, tmp_path):
    with running([*arguments, "--replicas", "1", "--target", "20"]) as (_, url):
        decisions = steer(tmp_path, "--mode", "active", "--without-evidence", "a test")
        pool = httpx.get(f"{url}/pool", trust_env=False).json()
    assert pool["wanted"] > 1
    assert len(pool["members"]) == pool["wanted"]
    assert any(one["applied"] for one in decisions)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_it_did_and_130(arguments, number):
    with running(arguments) as (process, url):
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "requests arrived" in errors.splitlines()[-1]
    assert "error" not in errors
    assert "Traceback" not in errors


def test_a_duration_ends_it_well(arguments):
    with running([*arguments, "--duration", "1"]) as (process, _):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "tuner run --config" in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        pytest.param(["--speed", "0"], "--speed is 0", id="speed"),
        pytest.param(["--replicas", "9"], "--replicas is 9; expected 1 to 5", id="replicas"),
        pytest.param(["--policy", "hap"], "--policy is 'hap'; expected hpa, or", id="policy"),
        pytest.param(["--profile", "nothing"], "profile 'nothing' is not built in", id="profile"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(arguments, tmp_path, more, message):
    result = CliRunner().invoke(app, ["sandbox", *arguments, "--duration", "1", *more])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_no_machine_has_is_refused(arguments, tmp_path, port):
    result = CliRunner().invoke(app, ["sandbox", *arguments, "--port", port])
    assert result.exit_code == 2
    assert "'--port'" in result.output
    assert not (tmp_path / "box").exists()


def test_a_port_that_is_taken_is_one_sentence_and_writes_nothing(arguments, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["sandbox", *arguments, "--port", port])
    assert isinstance(result.exception, InputError)
    assert f"--port {port}: Address already in use" in str(result.exception)
    assert not (tmp_path / "box").exists()


def test_an_unknown_workload_is_named_with_its_nearest():
    result = CliRunner().invoke(app, ["sandbox", "--workload", "deepseek-r1-dai"])
    assert "did you mean 'deepseek-r1-day'?" in str(result.exception)
