"""Reading bundles: what is whole and unchanged is read, everything else gets one sentence."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.policies import bundles
from tuner.core.errors import BundleError
from tuner.data import bundles as reader
from tuner.data.bundles import (
    MANIFEST,
    NETWORK,
    digest_of,
    find_bundles,
    manifest_text,
    read_bundle,
    sha256,
)


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    bundle = read_bundle(path)
    assert bundle.manifest == bundles.manifest(bundle.network)
    assert bundle.manifest.title == "small-1.2.3"
    assert bundle.network == (path / NETWORK).read_bytes()
    assert bundle.digest == sha256((path / MANIFEST).read_bytes())


def test_a_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    manifest = read_bundle(path).manifest
    (path / MANIFEST).write_text(manifest_text(manifest))
    assert read_bundle(path).manifest == manifest


def test_the_digest_of_a_section_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1.5]}) == digest_of({"b": [1.5], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def _set(*keys: str | int, to: object) -> Callable[[dict[str, Any]], object]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


def _drop(*keys: str | int) -> Callable[[dict[str, Any]], object]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another schema": (
        _set("schema", to="tuner.bundle/2"),
        "schema is 'tuner.bundle/2'; expected 'tuner.bundle/1'",
    ),
    "no schema": (_drop("schema"), "schema is None; expected 'tuner.bundle/1'"),
    "an unknown key": (
        _set("verion", to="1"),
        "verion is not a known key; did you mean 'version'?",
    ),
    "an unknown key in a section": (
        _set("network", "input", to=3),
        "network.input is not a known key; did you mean 'inputs'?",
    ),
    "a missing key": (_drop("digests", "trace"), "digests.trace is missing"),
    "a number as text": (_set("seed", to="0"), "seed is '0'; expected a whole number"),
    "a digest of the network": (
        _set("digests", "network", to="0" * 64),
        f"policy.onnx has SHA-256 {'{found}'}, but the manifest says {'0' * 64}",
    ),
    "a digest that is none": (
        _set("digests", "network", to="abc"),
        "digests.network is 'abc'; expected 64 hexadecimal digits",
    ),
    "a changed configuration": (
        _set("config", "ppo", "steps", to=7),
        "manifest.yaml: config has SHA-256",
    ),
    "a version without patch": (
        _set("version", to="1.0"),
        "version is '1.0'; expected MAJOR.MINOR.PATCH",
    ),
    "a name that is a path": (_set("name", to="../x"), "name is '../x'; expected letters"),
    "a knob twice": (_set("knobs", 0, "name", to="replicas"), "knobs names 'replicas' twice"),
    "a knob's default outside": (
        _set("knobs", 1, "default", to=99),
        "knobs.replicas: default 99 is outside 1..6",
    ),
    "inputs that are not the features": (
        _set("network", "inputs", to=3),
        "network.inputs is 3; expected 36, one a feature",
    ),
    "outputs that are not the knobs": (
        _set("network", "outputs", to=1),
        "network.outputs is 1; expected 4, one a knob",
    ),
    "a figure that is not finite": (
        _set("results", "difference", to=float("nan")),
        "results.difference",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_a_manifest_with(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = bundles.write(tmp_path, change=change)
    found = sha256((path / NETWORK).read_bytes())
    with pytest.raises(BundleError) as refused:
        read_bundle(path)
    assert message.format(found=found) in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("codec", "factor_high", to=3.0), "codec.factor_high is 3.0, but config.codec.factor"),
        (_set("base", "options", "target", to=1.0), "base.options is {'target': 1.0}, but config."),
        (_set("base", "policy", to="static"), "base.policy is 'static', but config.base.policy is"),
        (_set("seed", to=7), "seed is 7, but config.seed is 0"),
        (_set("network", "hidden", to=[9]), "network.hidden is [9], but config.ppo.hidden is [64"),
        (_set("config", "env", to={"tick_s": 30.0}), "codec.tick_s is 15.0, but config.env.tick_s"),
        (_set("knobs", 1, "high", to=5), "manifest.yaml: the manifest has SHA-256"),
        (_set("results", "beats_base", to=False), "manifest.yaml: the manifest has SHA-256"),
        (_set("config", "x", to=float("inf")), "config.x is inf; expected a finite"),
        (_set("config", "x", to=date(2024, 1, 1)), "manifest.yaml: config has SHA-256"),
        (_drop("digests", "manifest"), "digests.manifest is ''; expected 64 hexadecimal digits"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_refuses_what_was_edited_by_hand(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = bundles.write(tmp_path, change=change, by_hand=True)
    with pytest.raises(BundleError, match=re.escape(message)):
        read_bundle(path)


@pytest.mark.parametrize("name", [MANIFEST, NETWORK])
def test_refuses_a_folder_that_lacks_a_file(tmp_path: Path, name: str) -> None:
    path = bundles.write(tmp_path)
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing; a bundle holds"):
        read_bundle(path)


def test_refuses_a_truncated_network(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    whole = (path / NETWORK).read_bytes()
    (path / NETWORK).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="was changed or damaged after training"):
        read_bundle(path)


def test_refuses_a_pickle_in_the_place_of_the_network_and_does_not_load_it(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)
    trap = tmp_path / "sprung"
    (path / NETWORK).write_bytes(pickle.dumps(_Trap(str(trap))))
    with pytest.raises(BundleError, match="but the manifest says"):
        read_bundle(path)
    assert not trap.exists()


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("name", "most"), [(MANIFEST, "MAX_MANIFEST_BYTES"), (NETWORK, "MAX_NETWORK_BYTES")]
)
def test_refuses_a_file_that_is_far_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: str
) -> None:
    path = bundles.write(tmp_path)
    size = (path / name).stat().st_size
    monkeypatch.setattr(reader, most, size - 1)
    with pytest.raises(BundleError, match=f"{name} has {size} bytes; expected at most {size - 1}"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds list; expected keys and values (schema: tuner.bundle/1)"),
        ("schema: [\n", "is not valid YAML"),
        ("a: &x [1, 2]\nb: [*x, *x]\n", "line 2 holds a YAML alias; expected plain values"),
        ("x: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
    ids=["a list", "broken YAML", "aliases", "a Python object"],
)
def test_refuses_a_manifest_that_is(tmp_path: Path, text: str, message: str) -> None:
    path = bundles.write(tmp_path)
    (path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=re.escape(message)):
        read_bundle(path)


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, found in (("nothing", "does not exist"), ("file", "is a file")):
        with pytest.raises(BundleError, match=f"{name} {found}; expected a bundle"):
            read_bundle(tmp_path / name)


def test_finds_bundles_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        bundles.write(tmp_path / "made").rename(tmp_path / name)
    (tmp_path / "made").rmdir()
    (tmp_path / "other").mkdir()
    assert find_bundles(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_bundles(tmp_path / "a") == [tmp_path / "a"]
    with pytest.raises(BundleError, match="is no folder"):
        find_bundles(tmp_path / "nowhere")
