"""Every key of tuner.yaml is explained, from the strings under the fields."""

from __future__ import annotations

from dataclasses import fields

import pytest

from tuner.config import TargetConfig
from tuner.config.explain import explained
from tuner.core.errors import ConfigError


def test_every_key_has_a_meaning() -> None:
    assert [key.path for key in explained() if not key.meaning] == []


def test_every_field_of_a_target_is_a_key() -> None:
    paths = {key.path for key in explained()}
    assert {f"targets[].{field.name}" for field in fields(TargetConfig)} <= paths


def test_keys_tell_kind_and_default() -> None:
    keys = {key.path: key for key in explained()}
    assert keys["targets[].tick_s"].default == "15.0"
    assert keys["targets[].name"].default is None
    assert keys["targets[].policy_options"].kind == "number or text by name"
    assert keys["targets[].gpu.source"].kind == "dcgm or nvml"
    assert keys["targets[].steps.NAME.up"].default == "none"


@pytest.mark.parametrize("section", ["engine", "targets.engine", "targets[].engine"])
def test_a_section_is_named_by_its_path_or_its_end(section: str) -> None:
    paths = [key.path for key in explained(section)]
    assert "targets[].engine.ttl_s" in paths
    assert all(path.startswith("targets[].engine") for path in paths)


def test_a_section_that_is_not_known_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"section 'engien' is not known; did you mean 'engine'"):
        explained("engien")
