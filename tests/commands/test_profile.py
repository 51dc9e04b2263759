"""`tuner profile`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tuner.cli import app
from tuner.core.errors import ProfileError
from tuner.data import list_profiles

OURS = """\
schema: tuner.profile/1
name: ours
scheduler: vidur-sarathi
gpus_per_replica: 8
kv: {block_tokens: 16, blocks: 1000}
limits: {batch_size_max: 64, chunk_tokens: 512}
step_time: {base_s: 0.01}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)], env={"COLUMNS": "80"})


def ours(folder: Path, text: str = OURS) -> Path:
    path = folder / "ours.yaml"
    path.write_text(text)
    return path


def test_list_has_a_line_for_every_built_in_profile() -> None:
    printed = call("list").stdout
    told = json.loads(call("list", "--json").stdout)
    assert [profile["name"] for profile in told] == list_profiles()
    for name in list_profiles():
        assert name in printed


def test_show_prints_figures_origin_and_error() -> None:
    printed = call("show", "deepseek-r1-8xh200-sglang").stdout
    assert max(map(len, printed.splitlines())) <= 80
    for word in ("vidur-sarathi", "496,000 tokens", "tpot_mean", "origin", "kv.blocks", "threads"):
        assert word in printed


def test_show_tells_scripts_every_key() -> None:
    told = json.loads(call("show", "reference-affine", "--json").stdout)
    assert told["step_time"]["per_prefill_token_s"] == 6e-5
    assert told["startup"] is None


def test_show_draws_a_profile_with_every_section(tmp_path: Path) -> None:
    text = OURS + (
        "startup: {stages: {compile: {median_s: 60}}, ramp: [[10, 0.5]]}\n"
        "frontend: {cores: 8, per_request_s: 0.001}\n"
        "price_per_gpu_hour_usd: 2.5\n"
    )
    printed = call("show", ours(tmp_path, text)).stdout
    assert "50% for 10 requests" in printed
    assert "8 cores, 1 ms per request" in printed
    assert "2.50 USD per GPU hour" in printed


def test_check_says_valid_and_what_is_not_known(tmp_path: Path) -> None:
    printed = call("check", ours(tmp_path)).stdout
    assert "valid: ours" in printed
    assert "threads stays pinned" in printed
    told = json.loads(call("check", ours(tmp_path), "--json").stdout)
    assert told["valid"] is True
    assert len(told["notes"]) == 4


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("batch_size_max: 64", "batch_size_max: 600", "is above limits.chunk_tokens 512"),
        ("base_s", "bas_s", "did you mean 'base_s'?"),
        ("vidur-sarathi", "orca", "scheduler is 'orca'; expected one of"),
    ],
    ids=["batch above the chunk", "unknown key", "unknown scheduler"],
)
def test_check_refuses(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    result = call("check", ours(tmp_path, OURS.replace(old, new)))
    assert isinstance(result.exception, ProfileError)
    assert sentence in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["list", "show", "check"])
def test_help_shows_an_example_of(command: str) -> None:
    assert f"tuner profile {command}" in call(command, "--help").stdout
