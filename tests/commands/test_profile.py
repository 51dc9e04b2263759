"""`tuner profile`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tuner.cli import app
from tuner.core.errors import ProfileError
from tuner.data import list_profiles

HEADER = """\
schema: tuner.profile/1
name: ours
scheduler: vidur-sarathi
gpus_per_replica: 8
"""
OURS = f"""\
{HEADER}kv: {{block_tokens: 16, blocks: 1000}}
limits: {{batch_size_max: 64, chunk_tokens: 512}}
step_time: {{base_s: 0.01}}
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
    text = HEADER + (
        "startup: {stages: {compile: {median_s: 60}}, ramp: [[10, 0.5]]}\n"
        "frontend: {cores: 8, per_request_s: 0.001, per_output_token_s: 4.6e-5,\n"
        "  ingress_s: 0.0156}\n"
        "price_per_gpu_hour_usd: 2.5\n"
        "origin: {frontend: guessed}\n"
        "assumed: [frontend]\n"
        "not_modelled: [Speculative decoding.]\n"
        "kv: {block_tokens: 16, blocks: 1000, prefix_cache: true}\n"
        "limits: {batch_size_max: 64, chunk_tokens: 512, batch_size_oom: 96}\n"
        "step_time: {base_s: 0.01, prefill_table: [[8, 0.002], [512, 0.03]],\n"
        "  per_context_s: 3.0e-9, straggler: [[1, 1.0], [64, 1.2]]}\n"
    )
    printed = " ".join(call("show", ours(tmp_path, text)).stdout.split())
    for words in (
        "50% for 10 requests",
        "8 cores, 1 ms per request",
        "46 µs per output token; 15.6 ms to the engine",
        "2 ms for 8 prompt tokens to 30 ms for 512; 3 ns per prompt token and token before it",
        "longer by 0.0% at 1 sequences, 20.0% at 64 sequences",
        "runs out when started for more than 96 sequences",
        "prefix cache on",
        "2.50 USD per GPU hour",
        "not modelled: Speculative decoding.",
        "assumed, not measured: threads (frontend), kv (no origin), step_time (no origin)",
        "ms per iteration 10.0 10.0 10.1 10.2 10.5 11.0 12.0",
    ):
        assert words in printed


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
        ("batch_size_max: 64", "batch_size_max: 600", "batch_size_max is 600, above"),
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


def test_a_rule_set_decides_whether_a_batch_may_exceed_the_chunk(tmp_path: Path) -> None:
    """SGLang's chunk bounds prompts only; a decode takes nothing of it."""
    text = OURS.replace("batch_size_max: 64", "batch_size_max: 600")
    text = text.replace("vidur-sarathi", "sglang")
    result = call("check", ours(tmp_path, text))
    assert result.exit_code == 0, result.exception


@pytest.mark.parametrize("command", ["list", "show", "check"])
def test_help_shows_an_example_of(command: str) -> None:
    assert f"tuner profile {command}" in call(command, "--help").stdout
