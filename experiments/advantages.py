"""Who knew more in the simulation than it would beside a live fleet."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.comparison import Comparison
from experiments.oracles import CLAIRVOYANT
from experiments.oracles.start import start_draws_s
from experiments.readable import duration, figure, listed, percent
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
    if oracles is None:
        return
    frontier = oracles.frontiers[CLAIRVOYANT]
    count = len({point.plan.wanted.tobytes() for point in frontier.points})
    plans = f"{count} plan{'' if count == 1 else 's'}"
    checked = "each checked in the simulator on the compared seeds"
    seen = "it has seen the runs that it is judged by"
    best = frontier.reaching(oracles.goal)
    if best.reached:
        yield (
            f"Of {plans} of {CLAIRVOYANT}, {checked}, the cheapest that holds the goal "
            f"is shown: {seen}."
        )
        return
    yield (
        f"{CLAIRVOYANT} could not reach the goal of {percent(oracles.goal)}: of {plans}, "
        f"{checked}, the one that comes closest is shown, with "
        f"{figure('slo_attainment', best.point.attainment)}; {seen}."
    )
    yield from _why_short(comparison)


def _why_short(comparison: Comparison) -> Iterator[str]:
    """Where a perfect forecast comes too late: what is missed before a replica can be ready."""
    startup, trace = comparison.profile.startup, comparison.trace
    if startup is None:
        return
    soonest_s = float(start_draws_s(startup).min())
    begins = (
        f"Its fleet begins as everybody's, with {comparison.tuning.initial_replicas} replicas, and "
        f"what it starts is ready after {duration(soonest_s)} at the soonest"
    )
    if soonest_s >= trace.last_arrival_s:
        yield f"{begins}, after the last arrival: no replica starts in time."
        return
    ran = [run.ticks for run in comparison[CLAIRVOYANT].runs if run.ticks is not None]
    if not ran:
        return
    before = sum(int(ticks.missed[ticks.at_s <= soonest_s].sum()) for ticks in ran) / len(ran)
    missed = before / len(trace)
    if missed > 1 - comparison.config.sweep.goal:
        yield f"{begins}; until then {percent(missed)} of all requests have missed already."
