"""Who knew more in the simulation than it would beside a live fleet."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.comparison import Comparison
from experiments.oracles import CLAIRVOYANT
from experiments.readable import listed
from policies import POLICIES


def advantages(comparison: Comparison) -> list[str]:
    """A sentence for each kind of knowledge that a reader must allow for; empty where none had."""
    return [*_best_case(comparison), *_looked(comparison)]


def _best_case(comparison: Comparison) -> Iterator[str]:
    names = [
        outcome.name
        for outcome in comparison.policies
        if outcome.policy in POLICIES
        and POLICIES[outcome.policy].modelled
        and not outcome.options.get("profile")
    ]
    if names:
        reckon, their = ("reckons", "its") if len(names) == 1 else ("reckon", "their")
        yield (
            f"{listed(names)} {reckon} with a performance model of a replica, and {their} model is "
            f"the very profile that is simulated: {their} best case. A live fleet differs from its "
            "profile."
        )


def _looked(comparison: Comparison) -> Iterator[str]:
    oracles = comparison.oracles
    if oracles is not None:
        plans = {point.plan.wanted.tobytes() for point in oracles.frontiers[CLAIRVOYANT].points}
        many = f"{len(plans)} plan{'' if len(plans) == 1 else 's'}"
        yield (
            f"Of {many} of {CLAIRVOYANT}, each checked in the simulator on the "
            "compared seeds, the cheapest that holds the goal is shown: it has seen the runs that "
            "it is judged by."
        )
