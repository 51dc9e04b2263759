"""The benchmark measures what it says, in the form that scripts read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import bench
from tuner.core.trace import Trace
from tuner.data import write_trace

PROFILE = """
schema: tuner.profile/1
name: small
scheduler: vidur-sarathi
gpus_per_replica: 1
kv: {block_tokens: 16, blocks: 100, watermark: 0.01}
limits: {batch_size_max: 16, chunk_tokens: 256}
step_time: {base_s: 0.01, per_prefill_token_s: 1.0e-4}
"""


@pytest.fixture
def load(tmp_path: Path) -> list[str]:
    """Options that name a trace of 50 requests, one of them too large, and a profile."""
    prompt = np.full(50, 100, np.int32)
    prompt[7] = 5000
    trace = Trace(np.arange(50) * 0.1, prompt, np.full(50, 20, np.int32))
    write_trace(trace, tmp_path / "t.parquet")
    (tmp_path / "p.yaml").write_text(PROFILE)
    return ["--trace", str(tmp_path / "t.parquet"), "--profile", str(tmp_path / "p.yaml")]


def test_prints_requests_per_cpu_second_as_json(
    load: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["simulator", *load, "--replicas", "2", "--repeat", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["requests"] == 50
    assert len(figures["cpu_s"]) == 3
    assert figures["requests_per_cpu_s"] == pytest.approx(50 / np.median(figures["cpu_s"]))
    assert figures["config"]["replicas"] == 2
    assert figures["config"]["router"] == "round_robin"


@pytest.mark.parametrize("option", ["--replicas", "--repeat"])
def test_refuses_to_measure_nothing(
    load: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["simulator", *load, option, "0"]) == 2
    assert f"{option} is 0; expected at least 1" in capsys.readouterr().err


def test_says_which_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["simulator", "--trace", "no.parquet", "--profile", "no.yaml"]) == 2
    assert "no.parquet" in capsys.readouterr().err


def test_measures_training_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--replicas", "1", "--envs", "2", "--updates", "1"]
    assert bench.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    steps = 2 * figures["config"]["ppo"]["rollout_ticks"]
    assert figures["steps"] == steps
    assert figures["steps_per_cpu_s"] == pytest.approx(steps / figures["cpu_s"])
    assert 0 < figures["update_share"] < 1
