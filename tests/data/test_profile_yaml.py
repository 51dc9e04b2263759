"""Profiles as they are written: read back as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tuner.core.profile import Frontend, StepTime
from tuner.data import list_profiles, load_profile
from tuner.data.profiles import parse_profile, profile_yaml, write_profile


@pytest.mark.parametrize("name", list_profiles())
def test_a_profile_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    write_profile(profile, tmp_path / "again.yaml", "two lines\nof comment")
    assert load_profile(tmp_path / "again.yaml") == profile


def test_small_numbers_tables_and_long_texts_survive() -> None:
    profile = replace(
        load_profile("reference-affine"),
        step_time=StepTime(
            per_kv_token_s=1e-9,
            batch_table=((1, 1e-3), (2, 2e-3)),
            prefill_table=((1, 1e-5), (512, 0.1)),
        ),
        frontend=Frontend(cores=1, ingress_s=0.1),
        scheduler_options={"async": True},
        origin={"frontend": "made up", "step_time": "a: 'quoted' \"text\" - # of many words " * 9},
        interval={"step_time.batch_table[1]": (9e-4, 1.1e-3)},
    )
    text = profile_yaml(profile)
    assert parse_profile(text, "text") == profile
    assert "- [1, 0.001]" in text
    assert "startup" not in text
