"""What a policy's file gives to the registry: how to build it, when it looks, what can be tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from policies.options import Options
from policies.rule import RulePolicy
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSpace
from tuner.core.profile import ServingProfile
from tuner.core.slo import Slo


@dataclass(frozen=True)
class Target:
    """What a policy is built for."""

    knobs: KnobSpace
    tick_s: float
    """Seconds between two decisions, > 0."""
    profile: ServingProfile | None = None
    """How fast a replica serves, where that is known: rules with a model of the fleet need it."""
    slo: Slo = field(default_factory=Slo)
    """Objectives of each request."""

    def serving(self, policy: str) -> ServingProfile:
        """The profile, for a policy that cannot do without.

        Raises:
            ConfigError: there is none.
        """
        if self.profile is None:
            raise ConfigError(
                f"{policy}: it needs to know how fast a replica serves, and no serving profile is "
                f"named here; set the option profile to a built-in one or to a file "
                "(`tuner profile list`), or choose a rule without a model, such as hpa"
            )
        return self.profile


@dataclass(frozen=True)
class Load:
    """What one replica of the best fixed fleet carries: where a search for parameters begins.

    Means over the load's time, per ready replica.
    """

    replicas: float
    """Replicas of that fleet."""
    qps: float
    """Requests/s."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    in_flight: float
    """Requests running or waiting."""
    kv_cache_usage: float
    """0-1."""


@dataclass(frozen=True)
class Parameter:
    """An option of a policy that can be searched."""

    name: str
    low: float
    high: float
    """Bounds of the search, both included."""
    unit: str
    log: bool = False
    """Whether a ratio, not a difference, is what counts; low > 0 then."""
    whole: bool = False
    note: str = ""
    """What searching it does to what a user has given, in words."""


Search = Callable[[Load], tuple[Parameter, ...]]
"""The parameters worth searching. The first is the policy's dial: the one that trades cost against
attainment most directly; its curve is what a policy has to beat."""


def no_search(load: Load) -> tuple[Parameter, ...]:
    """Of a policy with nothing to tune."""
    return ()


Builder = Callable[[Options, Target], RulePolicy]
"""From options and the target to a policy."""


@dataclass(frozen=True)
class Entry:
    """One line of the registry."""

    build: Builder
    search: Search = no_search
    tick_s: float | None = None
    """Seconds between two looks of the original; None: it has no period of its own."""
    modelled: bool = False
    """Whether it reckons with a performance model of a replica (`PerfModel`), which is the target's
    profile: where that is what is simulated, the rule's best case."""
