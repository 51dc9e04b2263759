"""`tuner tune`, as a user calls it: rules searched, and what was found taken by a comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.policies import bundles
from tuner.cli import app
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
