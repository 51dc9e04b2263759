"""The benchmark measures what it says, in the form that scripts read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from envs.simulator import SCHEDULERS
from experiments.bench.__main__ import main
from experiments.bench.compile import first_tick
from experiments.bench.peers import write_mooncake
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
    assert main(["simulator", *load, "--replicas", "2", "--repeat", "3"]) == 0
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
    assert main(["simulator", *load, option, "0"]) == 2
    assert f"{option} is 0; expected at least 1" in capsys.readouterr().err


def test_says_which_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulator", "--trace", "no.parquet", "--profile", "no.yaml"]) == 2
    assert "no.parquet" in capsys.readouterr().err


def test_measures_training_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--replicas", "1", "--envs", "2", "--updates", "1"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    steps = 2 * figures["config"]["ppo"]["rollout_ticks"]
    assert figures["steps"] == steps
    assert figures["steps_per_cpu_s"] == pytest.approx(steps / figures["cpu_s"])
    assert 0 < figures["update_share"] < 1


@pytest.mark.parametrize("source", ["scrape", "prometheus"])
def test_measures_a_look_at_a_fleet_whole(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["collector", "--source", source, "--replicas", "3", "--repeat", "1"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["replicas_seen"] == 3
    assert figures["faults"] == 0
    assert figures["fields"] >= 14
    assert figures["config"]["page_bytes"] >= 53_000
    assert figures["cpu_s"] > 0


def test_measures_ticks_over_served_pages(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--targets", "2", "--replicas", "5", "--ticks", "1", "--repeat", "3"]
    assert main(["tick", *arguments]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["ready_replicas"], figures["targets_with_rates"]) == (5, 2)
    assert (figures["moved"], figures["faults"]) == (2, [])
    assert figures["tick_wall_s"] > 0
    assert figures["tick_cpu_s"] > 0
    assert [decision["replicas"] for decision in figures["decision"]] == [2, 5]
    assert all(decision["median_s"] > 0 for decision in figures["decision"])
    assert figures["rss_bytes"] > 0
    assert figures["torch_imported"] is False


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--targets", "0"], "--targets is 0; expected at least 1"),
        (["--targets", "9", "--replicas", "3"], "--replicas is 3; expected at least one for each"),
        (["--targets", "1", "--replicas", "1", "--policy", "hpb"], "could not be measured"),
    ],
    ids=["no target", "fewer replicas than targets", "no such policy"],
)
def test_ticks_that_cannot_be_measured_are_refused(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tick", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_start_is_measured_in_a_process_of_its_own() -> None:
    seconds = first_tick("reference-affine", os.environ.get("NUMBA_CACHE_DIR", ""))
    assert seconds["cpu_s"] > 0
    assert seconds["wall_s"] > 0


def test_a_peer_gets_the_same_requests_and_no_shared_block(tmp_path: Path) -> None:
    trace = Trace(np.array([0.0, 1.5]), np.array([512, 513], np.int32), np.array([3, 4], np.int32))
    write_mooncake(trace, tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows == [
        {"timestamp": 0.0, "input_length": 512, "output_length": 3, "hash_ids": [0]},
        {"timestamp": 1500.0, "input_length": 513, "output_length": 4, "hash_ids": [1, 2]},
    ]


def test_a_missing_peer_is_named_with_what_installs_it(
    load: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["peers", *load, "--repeat", "1", "--python", "no/python"]) == 2
    assert "no/python does not exist; make the peers' environment" in capsys.readouterr().err


def test_compares_with_the_peer_on_the_same_requests(
    load: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    python = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no .venv-peers; `make peers` makes it")
    assert main(["peers", *load, "--repeat", "1", "--python", str(python)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["dynosim"]["requests"] == 50
    assert figures["ratio"]["requests"] > 1


def test_a_fleets_day_is_simulated_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--profile", "reference-affine", "--tokens", "2000", "--hours", "0.6"]
    assert main(["day", *words]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["finished"] + figures["rejected"] == figures["requests"] > 1000
    assert figures["ttft_p50_s"] > 0
    assert figures["peak_rss_bytes"] > 1e7


def test_compares_the_rule_sets_on_one_load(capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--qps", "50", "--hours", "0.003", "--replicas", "2", "--blocks", "500"]
    assert main(["rules", *load]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.pop("config")["trace_requests"] == 540
    roomy, small = figures["8000 KV blocks"], figures["500 KV blocks"]
    assert {name.split(",")[0] for name in small} == set(SCHEDULERS)
    for row in [*roomy.values(), *small.values()]:
        assert row["served"] == 540
        assert 0 < row["ttft_s"]["p50"] < row["ttft_s"]["p99"] < row["e2e_s"]["p99"]
    assert all(row["preemptions"] == 0 for row in roomy.values())
    assert small["vllm-v1"]["preemptions"] > small["vidur-sarathi"]["preemptions"] > 0
    # It lets in what it has room for, whatever that makes the others wait.
    assert small["sglang"]["preemptions"] == 0
    assert small["sglang"]["longest_queue"] > small["vllm-v1"]["longest_queue"]


@pytest.mark.parametrize(
    ("option", "words"),
    [("--blocks", "--blocks is 0; expected at least 1"), ("--qps", "less than one request")],
)
def test_refuses_to_compare_on_nothing(
    option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rules", option, "0"]) == 2
    assert words in capsys.readouterr().err


def test_an_environment_is_measured_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--replicas", "2", "--batch-size", "16"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["in_flight"] == 32
    assert 0 < figures["bytes_at_start"] <= figures["bytes_full"] < 160 * 1024
