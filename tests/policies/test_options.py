"""How policies are set from a command line: what is understood, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import policies
from policies import HpaRule, StaticRule, build_policy
from policies.hpa_spec import Behavior, HpaConfig, MetricSpec
from tests.policies.test_contract import NEEDED, PROFILE
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(2, 16), batch_size=(1, 128))


def hpa(**options: float | str) -> HpaConfig:
    rule = build_policy("hpa", options, KNOBS, tick_s=15.0).rule
    assert isinstance(rule, HpaRule)
    return rule.config


def test_hpa_without_options_is_plain_hpa_on_output_tokens():
    assert hpa() == HpaConfig(
        metrics=(MetricSpec("output_tokens_per_s", 1000.0, "External", "AverageValue"),),
        min_replicas=2,
        max_replicas=16,
        behavior=None,
        tolerance=0.1,
        downscale_stabilization_s=300.0,
        sync_period_s=15.0,
    )


def test_hpa_takes_its_options_as_text():
    assert hpa(
        metric="running",
        type="Pods",
        target="32",
        min_replicas="3",
        max_replicas="8",
        tolerance="0.05",
        downscale_stabilization_s="600",
        behavior="default",
    ) == HpaConfig(
        metrics=(MetricSpec("running", 32.0, "Pods"),),
        min_replicas=3,
        max_replicas=8,
        behavior=Behavior(),
        tolerance=0.05,
        downscale_stabilization_s=600.0,
    )
    assert hpa(target_type="Value").metrics[0].target_type == "Value"


def test_hpa_syncs_once_a_tick():
    rule = build_policy("hpa", {}, KNOBS, tick_s=60.0).rule
    assert rule.config.sync_period_s == 60.0


def test_static_holds_what_it_is_told_and_leaves_the_rest():
    assert build_policy("static", {}, KNOBS, tick_s=15.0).rule == StaticRule(
        KnobSettings(replicas=4)
    )
    rule = build_policy("static", {"replicas": "7", "batch_size": 64}, KNOBS, tick_s=15.0).rule
    assert rule == StaticRule(KnobSettings(batch_size=64, replicas=7))


def test_options_of_one_policy_may_stand_beside_those_of_another():
    options = {"static.replicas": "7", "hpa.target": "900"}
    static = build_policy("static", options, KNOBS, tick_s=15.0).rule
    assert static == StaticRule(KnobSettings(replicas=7))
    assert hpa(**options).metrics[0].target == 900.0


def test_the_policy_s_own_option_wins():
    assert hpa(**{"hpa.target": 2, "target": 1}).metrics[0].target == 2.0


@pytest.mark.parametrize("name", sorted(policies.POLICIES.keys() - {"static", "static-best"}))
def test_the_readme_names_every_option(name):
    rows = (Path(policies.__file__).parent / "README.md").read_text().splitlines()
    row = next(line for line in rows if line.startswith(f"| `{name}`"))
    with pytest.raises(ConfigError) as error:
        build_policy(name, {**NEEDED.get(name, {}), "zz": 1}, KNOBS, tick_s=15.0, profile=PROFILE)
    assert "known options: " in str(error.value)
    for option in str(error.value).partition("known options: ")[2].split(", "):
        assert f"`{option}`" in row


REFUSED = {
    "a misspelt option": ("hpa", {"taget": 3}, "unknown option 'taget'; did you mean 'target'"),
    "an option like none": ("hpa", {"zz": 3}, "unknown option 'zz'; known options: metric, target"),
    "a misspelt knob": ("static", {"replica": 3}, "did you mean 'replicas'"),
    "a misspelt metric": ("hpa", {"metric": "qp"}, "did you mean 'qps'"),
    "text for a number": ("hpa", {"target": "many"}, "target is 'many'; expected a number"),
    "an infinite target": ("hpa", {"target": "inf"}, "expected a number"),
    "a target of 0": ("hpa", {"target": 0}, "expected a number above 0"),
    "half a replica": ("static", {"replicas": 2.5}, "replicas is 2.5; expected a whole number"),
    "too many replicas": ("static", {"replicas": 17}, "replicas 17 is outside 2..16"),
    "a batch of none": ("static", {"batch_size": 0}, "batch_size 0 is outside 1..128"),
    "no count for static-best": (
        "static-best",
        {},
        "none is given; .* --train-trace",
    ),
    "too many of static-best": ("static-best", {"replicas": 17}, "replicas 17 is outside 2..16"),
    "a share above 1": ("planner", {"trend": 2}, "planner: trend is 2; expected 0 to 1"),
    "no headroom": ("planner", {"headroom": 0}, "headroom is 0; expected above 0"),
    "a bound outside the knob": ("hpa", {"max_replicas": 17}, "max_replicas 17 is outside 2..16"),
    "a lower bound outside": ("hpa", {"min_replicas": 1}, "min_replicas 1 is outside 2..16"),
    "bounds that cross": ("hpa", {"min_replicas": 9, "max_replicas": 8}, "9 is above max"),
    "another behavior": ("hpa", {"behavior": "x"}, "behavior is 'x'; expected one of absent, def"),
    "another type": ("hpa", {"type": "Resource"}, "expected one of Pods, External, Object"),
}


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(name, options, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        build_policy(name, options, KNOBS, tick_s=15.0, profile=PROFILE)
    assert "\n" not in str(error.value)


def test_hpa_never_goes_to_0_on_its_own():
    space = KnobSpace(tuple(spec.bounded(0, spec.high) for spec in KNOBS.specs))
    rule = build_policy("hpa", {}, space, tick_s=15.0).rule
    assert rule.bounds(space) == (1.0, 16.0)
