"""What runs on a target, in digests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.config.files import target, write
from tests.policies import bundles
from tuner.config import TargetConfig
from tuner.config.file import load_config
from tuner.control.identity import identity_of, policy_digest

FITS = {
    "replicas": {"low": 1, "high": 6},
    "batch_size": {"low": 1, "high": 32},
    "threads": {"low": 4, "high": 4},
}


def read(folder: Path, **changes: Any) -> TargetConfig:
    return load_config(write(folder, target(**changes))).targets[0]


def with_bundle(folder: Path) -> TargetConfig:
    return read(folder, policy="small-1.2.3", policy_options=..., knobs=FITS)


def test_shadow_and_active_differ_in_nothing_but_who_writes(tmp_path: Path) -> None:
    shadow, active = (identity_of(read(tmp_path), mode) for mode in ("shadow", "active"))
    assert (shadow.authority, active.authority) == ("none", "direct")
    assert (shadow.policy_digest, shadow.config_digest) == (
        active.policy_digest,
        active.config_digest,
    )


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"policy_options": {"target": 1200.0}}, True),
        ({"policy_options": {"target": 1201}}, False),
        ({"policy": "static", "policy_options": {"replicas": 2}}, False),
        ({"tick_s": 30.0}, True),
    ],
    ids=["same number", "another option", "another rule", "not of the policy"],
)
def test_a_rule_is_its_name_and_options(
    tmp_path: Path, changes: dict[str, Any], same: bool
) -> None:
    before = policy_digest(read(tmp_path))
    assert (policy_digest(read(tmp_path, **changes)) == before) is same


def test_a_bundle_is_its_sealed_manifest_wherever_it_lies(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    bundle = bundles.write(here)
    shutil.copytree(here, there)
    one, other = identity_of(with_bundle(here), "shadow"), identity_of(with_bundle(there), "shadow")
    assert one == other
    assert one.policy == bundle.name
    assert one.policy_digest != policy_digest(read(tmp_path))
