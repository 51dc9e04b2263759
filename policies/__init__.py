"""The policies. A new one: a file with its `build`, and a line in POLICIES.

A learned policy has no line: it is named by the folder of its bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from policies import (
    aibrix_apa,
    aibrix_kpa,
    dynamo_easy,
    dynamo_sla,
    hpa,
    keda,
    kpa,
    planner,
    ray_serve,
    schedule,
    static,
    wva_v1,
    wva_v2,
)
from policies.entry import Builder, Entry, Load, Parameter, Search, Target
from policies.hpa import HpaRule
from policies.learned import LearnedRule, learned_policy
from policies.options import Options, OptionValue
from policies.rule import Rule, RulePolicy, RuleResult, empty_memory, propose_one
from policies.static import StaticRule
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSpace
from tuner.core.profile import ServingProfile
from tuner.core.slo import Slo
from tuner.data.bundles import read_bundle

POLICIES: dict[str, Entry] = {
    "aibrix-apa": aibrix_apa.ENTRY,
    "aibrix-kpa": aibrix_kpa.ENTRY,
    "dynamo-easy": dynamo_easy.ENTRY,
    "dynamo-sla": dynamo_sla.ENTRY,
    "hpa": hpa.ENTRY,
    "keda": keda.ENTRY,
    "kpa": kpa.ENTRY,
    "planner": planner.ENTRY,
    "ray-serve": ray_serve.ENTRY,
    "schedule": schedule.ENTRY,
    "static": static.ENTRY,
    "static-best": static.BEST_ENTRY,
    "wva-v1": wva_v1.ENTRY,
    "wva-v2": wva_v2.ENTRY,
}


def build_policy(
    name: str,
    options: Mapping[str, OptionValue],
    knobs: KnobSpace,
    *,
    tick_s: float,
    profile: ServingProfile | None = None,
    slo: Slo | None = None,
) -> RulePolicy:
    """A policy by name, or from a bundle.

    Args:
        name: a key of POLICIES, or the folder of a policy bundle.
        options: `option: value`, or `policy.option: value` where options of several policies stand
            together; see the policy's `build` for what it takes.
        knobs: the knobs of the target.
        tick_s: seconds between two decisions.
        profile: how fast a replica serves, for rules with a model of the fleet.
        slo: objectives of each request; None: the usual ones.
    Raises:
        ConfigError: the policy or an option is unknown, or a value does not fit.
        BundleError: the bundle cannot be trusted, or is not for these knobs.
    """
    if name not in POLICIES and not _is_folder(name):
        near = get_close_matches(name, POLICIES, n=1)
        known = f"known policies: {', '.join(POLICIES)}, or the folder of a trained bundle"
        hint = f"did you mean '{near[0]}'?" if near else known
        raise ConfigError(f"policy '{name}' is unknown; {hint}")
    for key in options:
        owner, dot, _ = key.partition(".")
        if dot and owner not in POLICIES:
            raise ConfigError(
                f"option '{key}' is for policy '{owner}', which is unknown; known policies: "
                f"{', '.join(POLICIES)}"
            )
    if name in POLICIES:
        target = Target(knobs, tick_s, profile, slo or Slo())
        return POLICIES[name].build(Options(name, options), target)
    # All that a bundle can be told is in its manifest.
    Options(name, options).finish()
    return learned_policy(read_bundle(name), knobs, build_policy, tick_s=tick_s)


def _is_folder(name: str) -> bool:
    return "/" in name or Path(name).is_dir()


__all__ = [
    "POLICIES",
    "Builder",
    "Entry",
    "HpaRule",
    "LearnedRule",
    "Load",
    "OptionValue",
    "Options",
    "Parameter",
    "Rule",
    "RulePolicy",
    "RuleResult",
    "Search",
    "StaticRule",
    "Target",
    "build_policy",
    "empty_memory",
    "propose_one",
]
