"""`tuner train`, as a user calls it: from a trace to a bundle that simulate runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from experiments import training
from tests.envs import worlds
from tuner.cli import app
from tuner.core.errors import InputError
from tuner.data import write_trace
from tuner.data.bundles import read_bundle

CONFIG = """
run: {max_replicas: 6, tick_s: 30.0}
sweep: {static_counts: [2, 4], hpa_targets: [200.0, 300.0]}
train:
  ppo: {rollout_ticks: 16, minibatch_size: 64, epochs: 2, hidden: [16, 16]}
  env: {episode_ticks: 24}
  warm_up_ticks: 4
  validation: {scenarios: 3, confirm_scenarios: 3, every_updates: 2}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace, a profile and a configuration."""
    folder = tmp_path_factory.mktemp("world")
    write_trace(worlds.trace(1800.0), folder / "trace.parquet")
    profile = json.loads(json.dumps(asdict(worlds.PROFILE)))
    given = {key: value for key, value in profile.items() if value not in (None, {}, [])}
    (folder / "profile.yaml").write_text(yaml.safe_dump(given))
    (folder / "train.yaml").write_text(CONFIG)
    return folder


def call(world: Path, out: Path, *more: str, config: str = "train.yaml") -> Result:
    files = ["--trace", str(world / "trace.parquet"), "--profile", str(world / "profile.yaml")]
    options = ["--config", str(world / config), "--out", str(out), "--envs", "8", *more]
    return CliRunner().invoke(app, ["train", *files, *options])


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("out") / "tiny-0.1.0"
    return out, call(world, out, "--steps", "256", "--json")


def test_writes_a_bundle_whose_base_rule_was_tuned_first(trained: tuple[Path, Result]) -> None:
    out, result = trained
    assert result.exit_code == 0, result.output
    assert "hpa with" in result.stderr
    manifest = read_bundle(out).manifest
    assert manifest.steps == 256
    assert manifest.base.options["target"] in (200.0, 300.0)
    assert json.loads(result.stdout)["bundle"] == str(out)


def test_what_run_says_and_what_the_sweep_found_reach_the_environment(
    trained: tuple[Path, Result],
) -> None:
    manifest = read_bundle(trained[0]).manifest
    env = manifest.config["env"]
    assert isinstance(env, dict)
    assert env["tick_s"] == 30.0
    assert manifest.codec["tick_s"] == 30.0
    assert env["episode_ticks"] == 24
    assert env["reference_replicas"] in (2.0, 4.0)
    assert env["start_replicas"][0] < env["reference_replicas"] < env["start_replicas"][1]


def test_simulate_runs_the_bundle(
    world: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    files = ["--trace", str(world / "trace.parquet"), "--profile", str(world / "profile.yaml")]
    options = ["--policy", str(trained[0]), "--max-replicas", "6", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["simulate", *files, *options, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["actions"] > 0


def test_goes_on_from_the_checkpoint_with_what_the_sweep_found_before(
    world: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    out = tmp_path / "tiny-0.1.0"
    call(world, out, "--steps", "256")
    out.rename(tmp_path / "before")
    result = call(world, out, "--steps", "512", "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed after 256 steps" in result.stderr
    assert "done: tuning" not in result.stderr
    again, first = (read_bundle(path).manifest for path in (out, trained[0]))
    assert again.steps == 512
    assert again.base == first.base


def refusal(result: Result) -> str:
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_refuses_before_any_work(world: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    assert "exists already" in refusal(call(world, trained[0]))
    short = world / "short.parquet"
    write_trace(worlds.trace(300.0), short)
    assert "expected at least 630 s to make episodes of" in refusal(
        call(world, tmp_path / "x-1.0.0", "--trace", str(short))
    )
    assert "nothing to resume" in refusal(call(world, tmp_path / "x-1.0.0", "--resume"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_trace_leaves_no_folder_behind(world: Path, tmp_path: Path) -> None:
    nowhere = ["--trace", str(world / "nowhere.parquet")]
    assert "nowhere.parquet" in refusal(call(world, tmp_path / "a" / "b" / "x-1.0.0", *nowhere))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", "trian is not a known key; did you mean 'train'?"),
        ("train: {ppo: {gama: 0.9}}", "train.ppo.gama is not a known key; did you mean 'gamma'?"),
        ("train: {ppo: {gamma: 1.5}}", "train.ppo.gamma is 1.5; expected above 0, at most 1"),
        ("train: {ppo: {hidden: []}}", "train.ppo.hidden is []; expected at least one layer"),
        ("train: {env: {tick_s: 5.0}}", "train.env.tick_s is 5.0, but run.tick_s is 15.0"),
        ("train: {codec: {factor_low: 2.0}}", "0 < factor_low < 1 < factor_high"),
        ("train: {base: {policy: crystal}}", "policy 'crystal' is unknown"),
        ("train: {codec: {move: [threads]}}", "codec.move is ['threads'], all of them pinned by"),
        ("train: {codec: {move: [foo]}}", "knob 'foo' is not known here; known knobs: batch_size"),
        ("train: 3", "train is 3; expected keys and values"),
        ("run: {max_replicas: 0}", "run.max_replicas is 0; expected at least 1"),
    ],
)
def test_refuses_a_configuration_with_the_key_path(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(training, "_found_by_sweep", lambda *_: pytest.fail("the sweep ran"))
    (world / "bad.yaml").write_text(text)
    assert message in refusal(call(world, tmp_path / "x-1.0.0", config="bad.yaml"))
    assert list(tmp_path.iterdir()) == []


def test_help_shows_the_options_and_an_example() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"]).output
    for part in ("--trace", "--resume", "BUNDLE.training", "tuner train --trace day.parquet"):
        assert part in shown
