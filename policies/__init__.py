"""The policies. A new one: a file with its `build`, and a line in POLICIES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from policies import hpa, static
from policies.hpa import HpaRule
from policies.options import Options, OptionValue
from policies.rule import Rule, RulePolicy, RuleResult, empty_memory, propose_one
from policies.static import StaticRule
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSpace

Builder = Callable[[Options, KnobSpace, float], RulePolicy]
"""From options, the target's knobs and the seconds between two ticks to a policy."""

POLICIES: dict[str, Builder] = {
    "hpa": hpa.build,
    "static": static.build,
}


def build_policy(
    name: str, options: Mapping[str, OptionValue], knobs: KnobSpace, *, tick_s: float
) -> RulePolicy:
    """A policy by name.

    Args:
        name: a key of POLICIES.
        options: `option: value`, or `policy.option: value` where options of several policies stand
            together; see the policy's `build` for what it takes.
        knobs: the knobs of the target.
        tick_s: seconds between two decisions.
    Raises:
        ConfigError: the policy or an option is unknown, or a value does not fit.
    """
    if name not in POLICIES:
        near = get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known policies: {', '.join(POLICIES)}"
        raise ConfigError(f"policy '{name}' is unknown; {hint}")
    for key in options:
        owner, dot, _ = key.partition(".")
        if dot and owner not in POLICIES:
            raise ConfigError(
                f"option '{key}' is for policy '{owner}', which is unknown; known policies: "
                f"{', '.join(POLICIES)}"
            )
    return POLICIES[name](Options(name, options), knobs, tick_s)


__all__ = [
    "POLICIES",
    "Builder",
    "HpaRule",
    "Options",
    "Rule",
    "RulePolicy",
    "RuleResult",
    "StaticRule",
    "build_policy",
    "empty_memory",
    "propose_one",
]
