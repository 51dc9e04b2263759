"""`tuner policy`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.policies import bundles
from tuner.cli import app
from tuner.core.errors import BundleError
from tuner.data.bundles import NETWORK, sha256


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["policy", *arguments], catch_exceptions=True)


def test_lists_bundles_and_the_fault_of_one_that_is_damaged(tmp_path: Path) -> None:
    bundles.write(tmp_path / "a").rename(tmp_path / "good")
    damaged = bundles.write(tmp_path / "a").rename(tmp_path / "damaged")
    (damaged / NETWORK).write_bytes(b"")
    (tmp_path / "a").rmdir()
    shown = call("list", str(tmp_path)).output
    assert "small-1.2.3" in shown
    assert "refused" in shown
    damaged_row, good_row = json.loads(call("list", str(tmp_path), "--json").output)
    assert "SHA-256" in damaged_row["fault"]
    assert good_row["name"] == "small-1.2.3"
    assert good_row["beats_base"] is True


def test_an_empty_folder_holds_no_bundles(tmp_path: Path) -> None:
    assert "no bundles in" in call("list", str(tmp_path)).output
    assert json.loads(call("list", str(tmp_path), "--json").output) == []


def test_shows_what_a_bundle_holds(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    shown = call("show", str(path)).output
    for part in ("small-1.2.3", "minutes with profile small", "hpa (target 150.0)", "it did"):
        assert part in shown
    assert "threads could not move in training: profile small has no frontend section" in shown
    facts = json.loads(call("show", str(path), "--json").output)
    assert facts["base"] == {"policy": "hpa", "options": {"target": 150.0}}
    assert len(facts["features"]) == 36


def test_verifies_a_sound_bundle(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    assert "valid: small-1.2.3" in call("verify", str(path)).output
    facts = json.loads(call("verify", str(path), "--json").output)
    assert facts["valid"] is True
    assert facts["network"] == sha256((path / NETWORK).read_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "was changed or damaged"),
        (b"not onnx", "is no network that onnxruntime can read"),
        (bundles.linear_network(36, 4, bias=float("nan")), "something else than finite numbers"),
    ],
    ids=["another digest", "a digest that fits what is no network", "answers that are no numbers"],
)
def test_refuses_a_bundle_that_is_not_sound(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = bundles.write(tmp_path, content=content)
    if content is None:
        (path / NETWORK).write_bytes(b"other")
    refused = call("verify", str(path))
    assert isinstance(refused.exception, BundleError)
    assert message in str(refused.exception)


def test_refuses_a_knob_list_that_is_not_this_versions(tmp_path: Path) -> None:
    def rename(data: dict[str, list[dict[str, object]]]) -> None:
        data["knobs"][2]["name"] = "gears"

    refused = call("verify", str(bundles.write(tmp_path, change=rename)))
    assert isinstance(refused.exception, BundleError)
    assert "knobs are batch_size, replicas, gears, warmup_requests" in str(refused.exception)
