"""Named starts: what they replace in a profile, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tuner.core.profile import Stage, Stages, Startup
from tuner.data import load_profile
from tuner.data.startups import COMPILED_AHEAD, COMPILED_AT_FIRST_CALL, STARTUPS, with_startup

PROFILE = load_profile("deepseek-r1-8xh200-sglang")


@pytest.mark.parametrize(
    ("name", "ramp"),
    [("warm", COMPILED_AHEAD), ("normal", COMPILED_AHEAD), ("cold", COMPILED_AT_FIRST_CALL)],
)
def test_stages_and_ramp_are_replaced_and_the_cost_of_a_warm_up_request_stays(name, ramp) -> None:
    profile = with_startup(PROFILE, name)
    assert profile.startup is not None
    assert profile.startup.stages == STARTUPS[name].stages
    assert profile.startup.ramp == ramp
    assert profile.startup.warmup_request_s == 0.5
    assert set(profile.assumed) == set(PROFILE.assumed)  # the stages are judged in both
    own = {"startup": PROFILE.startup, "origin": PROFILE.origin, "assumed": PROFILE.assumed}
    assert replace(profile, **own) == PROFILE


def test_the_origin_says_which_start_stands_in() -> None:
    origin = with_startup(PROFILE, "cold").origin
    assert "'cold'" in origin["startup"]
    assert "startup.stages" not in origin
    assert "startup.warmup_request_s" in origin
    assert origin["kv.blocks"] == PROFILE.origin["kv.blocks"]


def test_no_name_changes_nothing() -> None:
    assert with_startup(PROFILE, None) is PROFILE


def test_a_profile_without_a_start_gets_one_whose_warm_up_requests_stay_pinned() -> None:
    profile = with_startup(replace(PROFILE, startup=None), "warm")
    assert "warmup_request_s" in profile.unmodelled_knobs()["warmup_requests"]
    assert "warmup_requests" not in with_startup(PROFILE, "warm").unmodelled_knobs()
    free = replace(PROFILE, startup=Startup(Stages(weights=Stage(60.0))))
    assert "warmup_requests" not in free.unmodelled_knobs()  # without a ramp they change nothing
