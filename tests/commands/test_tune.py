"""`tuner tune`, as a user calls it: rules searched, and what was found taken by a comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.policies import bundles
from tuner.cli import app
from tuner.core.errors import ConfigError
from tuner.core.trace import Trace
from tuner.data import write_trace

CONFIG = "run: {max_replicas: 3}\nsweep: {static_counts: [1, 2]}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a trace and a configuration."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(5)
    write_trace(
        Trace(
            arrival_s=np.sort(rng.uniform(0, 240, 400)),
            prompt_tokens=rng.integers(50, 400, 400).astype(np.int32),
            output_tokens=rng.integers(1, 120, 400).astype(np.int32),
        ),
        folder / "load.parquet",
    )
    (folder / "compare.yaml").write_text(CONFIG)
    return folder


def call(command, world, *more):
    files = ["--trace", str(world / "load.parquet"), "--profile", "reference-affine"]
    options = ["--config", str(world / "compare.yaml"), "--jobs", "1"]
    result = CliRunner().invoke(app, [command, *files, *options, *map(str, more)])
    return result


@pytest.fixture(scope="module")
def tuned(world):
    out = world / "hpa.yaml"
    return out, call("tune", world, "--policy", "hpa", "--trials", "6", "--out", out, "--json")


def test_writes_what_was_found_and_beside_it_the_trials(world, tuned):
    out, result = tuned
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["hpa"]
    assert found == yaml.safe_load(out.read_text())
    assert found["schema"] == "tuner.tuned/1"
    assert found["trials"] == 6
    assert set(found["tuned"]["options"]) == {"target", "tolerance", "downscale_stabilization_s"}
    assert found["shipped"]["options"] == {}
    assert len(found["trace"]["sha256"]) == 64
    assert "every rule starts from its size" in result.stderr
    assert "done: fleet that all start from: static with replicas 2" in result.stderr
    assert sorted(path.name for path in world.iterdir() if "hpa" in path.name) == [
        *("hpa.db", "hpa.yaml")
    ]


def test_the_same_command_again_runs_no_trial_and_more_trials_add_to_them(world, tuned):
    out, _ = tuned
    before = out.read_bytes()
    again = call("tune", world, "--policy", "hpa", "--trials", "6", "--out", out)
    assert again.exit_code == 0, again.output
    assert "trial" not in again.stderr
    assert out.read_bytes() == before
    assert "as shipped" in again.stdout
    more = call("tune", world, "--policy", "hpa", "--trials", "7", "--out", out)
    (line,) = [line for line in more.stderr.splitlines() if "trial" in line]
    assert line.startswith("done: tuning: hpa, trial 7 of 7")
    out.write_bytes(before)


def test_a_comparison_takes_it_in_place_of_a_search(world, tuned):
    out, _ = tuned
    folder = world / "compared"
    result = call(
        *("compare", world, "--policies", "static,hpa", "--seeds", 1, "--tuned", out),
        *("--out", folder, "--json"),
    )
    assert result.exit_code == 0, result.output
    assert "tuning: hpa" not in result.stderr
    summary = json.loads(result.stdout)
    options = yaml.safe_load(out.read_text())["tuned"]["options"]
    assert summary["policies"]["hpa"]["options"].items() >= options.items()
    assert summary["tuning"]["searches"]["hpa"]["hindsight"] is True
    assert not (world / "compared.cells").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "hap"], "did you mean 'hpa'?"),
        (["--policy", "static"], "needs no search"),
        (["--policy", "BUNDLE"], "a learned policy is trained, by `tuner train`, not tuned"),
        (["--policy", ","], "no policy is named"),
        (["--policy", "hpa,,keda"], "in --policy hpa,keda"),
        (["--policy", "hpa", "--goal", "1.5"], "sweep.goal is 1.5"),
        (["--policy", "hpa", "--storage", "nonsense"], "cannot be used as storage"),
        (["--policy", "hpa", "--set", "hpa.metric=qps"], "give hpa.target too"),
        (["--policy", "hpa", "--set", "hpa.target=9"], "nothing is left to search"),
        (["--policy", "hpa", "--ray-address", "here:1"], "goes with --executor ray"),
    ],
)
def test_a_mistake_is_one_sentence(world, tmp_path, arguments, words):
    bundle = bundles.write(tmp_path / "bundles")
    given = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    result = call("tune", world, "--trials", 4, "--out", tmp_path / "out", *given)
    assert result.exit_code != 0
    assert words in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_tuning_are_refused(world, tmp_path):
    (tmp_path / "odd.yaml").write_text("schema: something/1\n")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "odd.yaml", "expected 'tuner.tuned/1'"),
        (tmp_path / "empty", "holds no .yaml file"),
        (tmp_path / "gone.yaml", "does not exist; expected what `tuner tune` writes"),
    ):
        result = call(
            "compare", world, "--policies", "hpa", "--tuned", path, "--out", tmp_path / "o"
        )
        assert words in str(result.exception)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"target": -5}, "tuned.options: hpa: the target of 'output_tokens_per_s' is -5"),
        ({"target": "fast"}, "tuned.options: hpa: target is 'fast'; expected a number"),
        ({"targit": 5}, "tuned.options: hpa: unknown option 'targit'; did you mean 'target'?"),
        ({"hpa.target": 5}, "expected the option alone, 'target'"),
        ({"tolerance": -1}, "tolerance is -1"),
    ],
)
def test_an_edited_file_is_tried_before_any_run(world, tuned, tmp_path, edit, words):
    file = tmp_path / "edited.yaml"
    content = yaml.safe_load(tuned[0].read_text())
    content["tuned"]["options"].update(edit)
    file.write_text(yaml.safe_dump(content))
    refused(world, tmp_path, file, words)


def test_a_file_for_another_goal_or_of_an_unknown_rule_is_refused(world, tuned, tmp_path):
    content = yaml.safe_load(tuned[0].read_text())
    for changed, words in (
        ({"goal": 0.5}, "hpa was tuned for a goal of 50.0 %, and here the goal is 99.0 %"),
        ({"policy": "hap"}, "policy 'hap' is unknown"),
    ):
        file = tmp_path / "edited.yaml"
        file.write_text(yaml.safe_dump({**content, **changed}))
        refused(world, tmp_path, file, words)


def test_an_option_that_is_given_must_go_with_the_file(world, tuned, tmp_path):
    given = ("--set", "hpa.target_type=Total")
    refused(world, tmp_path, tuned[0], "target_type is 'Total'", *given)


def refused(world, tmp_path, file, words, *more):
    result = call(
        *("compare", world, "--policies", "hpa", "--tuned", file, "--out", tmp_path / "o", *more)
    )
    assert isinstance(result.exception, ConfigError), result.output
    assert f"{file}: " in str(result.exception)
    assert words in str(result.exception)
    assert "done:" not in result.stderr, "nothing has run"


def test_a_file_of_another_profile_is_a_note_of_the_comparison(world, tuned, tmp_path):
    content = yaml.safe_load(tuned[0].read_text())
    content["profile"] = {"name": "small-gpus", "sha256": "0" * 64}
    file = tmp_path / "edited.yaml"
    file.write_text(yaml.safe_dump(content))
    result = call(
        *("compare", world, "--policies", "hpa", "--seeds", 1, "--no-oracle", "--tuned", file),
        *("--out", tmp_path / "o"),
    )
    assert result.exit_code == 0, result.output
    said = "hpa was tuned with the profile small-gpus, not with reference-affine"
    assert said in " ".join(result.stdout.split())
    assert said in (tmp_path / "o" / "report.html").read_text()
    assert said in (tmp_path / "o" / "report.md").read_text()
