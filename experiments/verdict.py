"""What a comparison says, in plain words: who wins, who loses, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.config import RunConfig
from experiments.curve import cost_at
from experiments.oracles import CLAIRVOYANT, INSTANT
from experiments.readable import (
    difference,
    difference_interval,
    duration,
    figure,
    listed,
    percent,
    signed_percent,
)
from experiments.settings import cut_timetables
from experiments.statistics import MIN_BLOCKS
from experiments.workbench import STATIC
from policies import POLICIES
from tuner.train.digests import trace_digest

EVEN_ATTAINMENT = 0.0005
"""Half a request in a thousand: below it nobody would act on a difference of attainment."""
EVEN_COST = 0.005
"""Half a percent of the cost: likewise."""
BOUNDS = (INSTANT, CLAIRVOYANT)
"""Not policies that anyone could run."""


class Standing(StrEnum):
    """How a policy stands against the baseline."""

    WINS = "wins"
    LOSES = "loses"
    TRADES = "trade-off"
    EVEN = "no difference"
    OPEN = "undecided"


@dataclass(frozen=True)
class Verdict:
    """One policy against the baseline."""

    policy: str
    standing: Standing
    headline: str
    """The one sentence."""
    details: tuple[str, ...]
    """Figures with their intervals, how far it carries, and what its cost buys elsewhere."""


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Every policy but baseline and bounds against the baseline, in the comparison's order."""
    return [
        _verdict(comparison, outcome)
        for outcome in comparison.policies
        if outcome.name not in (comparison.baseline, *BOUNDS)
    ]


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know before believing any of it."""
    return [
        *_missed_goals(comparison),
        *_tuning_notes(comparison),
        *_training_notes(comparison),
        *_sample_notes(comparison),
        *_input_notes(comparison),
    ]


def _missed_goals(comparison: Comparison) -> Iterator[str]:
    goal, missed = comparison.config.sweep.goal, []
    for outcome in comparison.policies:
        attainment = outcome.mean("slo_attainment")
        if attainment < goal and outcome.name not in BOUNDS:
            missed.append(f"{outcome.name} ({figure('slo_attainment', attainment)})")
    if missed:
        verb = "misses" if len(missed) == 1 else "miss"
        yield f"{listed(missed)} {verb} the goal of {percent(goal)}."


def _tuning_notes(comparison: Comparison) -> Iterator[str]:
    """What the rules were tuned on, with which budget, and how they ran."""
    tuning = comparison.tuning
    tuned_on: dict[str, list[str]] = {}
    hindsight = [STATIC] if STATIC in tuning.sweeps else []
    for name, sweep in tuning.sweeps.items():
        if name != STATIC:
            (hindsight if tuning.hindsight else tuned_on.setdefault(tuning.trace, [])).append(
                sweep.policy
            )
    for name, search in tuning.searches.items():
        (hindsight if search.hindsight else tuned_on.setdefault(search.trace, [])).append(name)
    if hindsight:
        yield (
            f"{_were(hindsight)} tuned on the very load that is compared here. That is "
            "hindsight: on a load nobody has seen yet a rule does worse."
            + (" --train-trace tunes on another one." if tuning.hindsight else "")
        )
    for trace, names in tuned_on.items():
        yield f"{_were(names)} tuned on {trace}, not on the load that is compared here."
    for name, search in tuning.searches.items():
        if search.elsewhere:
            yield f"{name} was tuned {search.elsewhere}: it was tuned for another fleet."
    yield from _budget_notes(comparison)
    tick_s = comparison.config.run.tick_s
    periods: dict[float, list[str]] = {}
    for outcome in comparison.policies:
        if outcome.policy in POLICIES:
            own_s = POLICIES[outcome.policy].tick_s or tick_s
            periods.setdefault(own_s, []).append(outcome.name)
    if periods:
        said = "; ".join(f"{listed(names)} {own_s:g} s" for own_s, names in sorted(periods.items()))
        yield (
            f"Rules ran at their own periods ({said}) and under the bounds of the "
            "knobs alone: how far a rule steps and what it does without data is part of the rule. "
            f"Learned policies run every {tick_s:g} s, under every guardrail."
        )


def _were(names: Sequence[str]) -> str:
    return f"{listed(names)} {'was' if len(names) == 1 else 'were'}"


def _budget_notes(comparison: Comparison) -> Iterator[str]:
    """What was spent on each side, in simulated hours."""
    budgets: dict[tuple[int, float], list[str]] = {}
    for name, search in comparison.tuning.searches.items():
        budgets.setdefault((search.budget, search.simulated_s), []).append(name)
    for (trials, simulated_s), names in budgets.items():
        each = " each" if len(names) > 1 else ""
        # Most often all had the same, and are listed where it says on what they were tuned.
        all_of = len(budgets) == 1 and len(names) > 2
        who = f"All {len(names)} searched rules were" if all_of else _were(names)
        yield f"{who} tuned in {trials} trials, {simulated_s / 3600:,.1f} simulated hours{each}."
    for outcome in comparison.policies:
        learned = outcome.runs[0].settings.get("simulated hours")
        if isinstance(learned, int | float):
            yield f"{outcome.name} was trained in {learned:,.1f} simulated hours."


def _training_notes(comparison: Comparison) -> Iterator[str]:
    """Where a trained policy meets the load that it learned, or a fleet that it never saw."""
    for outcome in comparison.policies:
        settings = outcome.runs[0].settings
        if settings.get("trained on sha256") == trace_digest(comparison.trace):
            yield (
                f"{outcome.name} was trained on the very load that is compared here: hindsight too."
            )
        trained_with = settings.get("trained with", comparison.profile.name)
        if trained_with != comparison.profile.name:
            yield (
                f"{outcome.name} was trained with the profile {trained_with}, not with "
                f"{comparison.profile.name}: it has never seen such a fleet."
            )


def _sample_notes(comparison: Comparison) -> Iterator[str]:
    seeds, span_s = len(comparison.seeds), comparison.trace.last_arrival_s
    if seeds == 1:
        yield (
            "One seed shows no spread: every figure is a single draw of cold starts and jitter. "
            "--seeds 3 is the least that gives intervals."
        )
    elif seeds < 5:
        yield f"{seeds} seeds do while developing; publish nothing from fewer than five."
    block_s = comparison.config.statistics.block_s
    if round(span_s / block_s) < MIN_BLOCKS:
        yield (
            f"The load lasts {duration(span_s)}: fewer than {MIN_BLOCKS} blocks of "
            f"{duration(block_s)}, too few to say anything about other loads."
        )


def _input_notes(comparison: Comparison) -> Iterator[str]:
    gaps = comparison.trace.gaps
    if gaps:
        length_s = sum(gap.length_s for gap in gaps)
        yield (
            f"The recording is silent for {duration(length_s)} in {len(gaps)} "
            f"span{'s' if len(gaps) > 1 else ''}; no record is not the same as no load."
        )
    for knob, why in comparison.pinned().items():
        yield f"The knob {knob} is pinned: {why}."
    yield from cut_timetables(comparison)
    yield from _world_notes(comparison.config.run)
    assumptions = comparison.profile.assumptions()
    if assumptions:
        yield f"Assumed, not measured: {', '.join(assumptions)}."


def _world_notes(run: RunConfig) -> Iterator[str]:
    """Where the simulated world was asked to be another than the profile's and a smooth one."""
    if run.authority == "floor":
        yield (
            "Authority floor: the native HPA owns the replicas, and every policy only raises its "
            "minimum. A policy can serve better than that HPA here, never cheaper."
        )
    if run.startup is not None:
        yield f"Replicas start by the named start {run.startup}, not by the profile's own."
    if run.drain_timeout_s is not None:
        yield (
            f"What a leaving replica has not answered within {duration(run.drain_timeout_s)} fails."
        )
    failures = run.failures
    if failures.crash_per_hour > 0:
        yield (
            f"Serving replicas crash {failures.crash_per_hour:g} times an hour; what they have "
            "fails, as behind a gateway that does not retry."
        )
    if failures.slow_replica > 0:
        yield (
            f"With a chance of {failures.slow_replica:g} one replica of a run is slower by a "
            f"factor of {failures.slow[0]:g} to {failures.slow[1]:g}."
        )


def _verdict(comparison: Comparison, outcome: PolicyOutcome) -> Verdict:
    base = comparison[comparison.baseline]
    attainment, cost = outcome.differences["slo_attainment"], outcome.differences["gpu_hours"]
    base_cost = base.mean("gpu_hours")
    serves = _direction(attainment, EVEN_ATTAINMENT, higher_is_better=True)
    saves = _direction(cost, EVEN_COST * base_cost, higher_is_better=False)
    standing = _standing(serves, saves)
    relative = cost.mean / base_cost if base_cost > 0 else 0.0
    return Verdict(
        policy=outcome.name,
        standing=standing,
        headline=_headline(outcome.name, base.name, standing, serves, saves, relative, attainment),
        details=(
            _figures("GPU hours", "gpu_hours", outcome, base, f" ({signed_percent(relative)})"),
            _figures("SLO attainment", "slo_attainment", outcome, base, ""),
            *_how_far(attainment, cost),
            *_against_curves(comparison, outcome),
        ),
    )


def _direction(gap: Estimate, even: float, *, higher_is_better: bool) -> int | None:
    """1 better, -1 worse, 0 even; None where the seeds do not tell better from worse."""
    if abs(gap.mean) <= even:
        return 0
    if gap.ci95 is not None and gap.ci95[0] <= 0 <= gap.ci95[1]:
        return None
    return 1 if (gap.mean > 0) == higher_is_better else -1


def _standing(serves: int | None, saves: int | None) -> Standing:
    known = [direction for direction in (serves, saves) if direction is not None]
    if serves == 0 and saves == 0:
        return Standing.EVEN
    if {1, -1} <= set(known):
        return Standing.TRADES
    if len(known) < 2:
        return Standing.OPEN
    return Standing.WINS if 1 in known else Standing.LOSES


def _headline(
    name: str,
    base: str,
    standing: Standing,
    serves: int | None,
    saves: int | None,
    relative: float,
    attainment: Estimate,
) -> str:
    fewer = f"{percent(abs(relative))} {'fewer' if relative < 0 else 'more'} GPU hours"
    points = difference("slo_attainment", attainment.mean).lstrip("+\N{MINUS SIGN}")
    served = f"attainment {points} {'higher' if attainment.mean > 0 else 'lower'}"
    costs = {1: fewer, -1: fewer, 0: "the same GPU hours", None: "no clear difference in GPU hours"}
    served_as = {
        1: served,
        -1: served,
        0: "attainment the same",
        None: "no clear difference in attainment",
    }
    figures = f"{costs[saves]}, {served_as[serves]}"
    if standing is Standing.WINS:
        return f"{name} beats {base}: {figures}."
    if standing is Standing.LOSES:
        return f"{name} loses to {base}: {figures}."
    if standing is Standing.EVEN:
        return f"{name} does as {base} does: {figures}."
    if standing is Standing.OPEN:
        return f"{name} against {base}: {figures}."
    trade = "costs less and serves worse" if relative < 0 else "serves better and costs more"
    return f"{name} {trade} than {base}: {figures}."


def _figures(
    label: str, metric: str, outcome: PolicyOutcome, base: PolicyOutcome, extra: str
) -> str:
    gap = outcome.differences[metric]
    text = (
        f"{label}: {figure(metric, outcome.mean(metric))} against "
        f"{figure(metric, base.mean(metric))}, {difference(metric, gap.mean)}{extra}"
    )
    if gap.ci95 is not None:
        text += f"; 95 % interval over the seeds {difference_interval(metric, gap.ci95)}"
    if gap.ci95_load is not None:
        text += f", over loads like this one {difference_interval(metric, gap.ci95_load)}"
    return text + "."


def _how_far(attainment: Estimate, cost: Estimate) -> list[str]:
    """Which of the differences may vanish on another load."""
    shaky = [
        what
        for what, gap in (("GPU hours", cost), ("attainment", attainment))
        if gap.ci95 is not None
        and gap.ci95_load is not None
        and not gap.ci95[0] <= 0 <= gap.ci95[1]
        and gap.ci95_load[0] <= 0 <= gap.ci95_load[1]
    ]
    if not shaky:
        return []
    return [
        f"The difference in {' and in '.join(shaky)} holds on this load; its hours differ so much "
        "that it may not hold on another one like it."
    ]


def _against_curves(comparison: Comparison, outcome: PolicyOutcome) -> list[str]:
    """What the baseline, and the cheapest of the other rules, would cost at this attainment."""
    attainment, cost = outcome.mean("slo_attainment"), outcome.mean("gpu_hours")
    same = {
        rule: needed
        for rule, sweep in comparison.tuning.curves.items()
        if rule not in (outcome.policy, *BOUNDS)
        and (needed := cost_at(sweep.points, attainment)) is not None
        and needed > 0
    }
    shown = {comparison.baseline, min(same, key=lambda rule: same[rule], default=None)}
    found = []
    for rule, needed in same.items():
        if rule not in shown:
            continue
        more = cost / needed - 1
        if abs(more) < EVEN_COST:
            compared = f"{outcome.name} costs about the same"
        else:
            compared = f"{outcome.name} costs {percent(abs(more))} {'more' if more > 0 else 'less'}"
        hours = figure("gpu_hours", needed)
        found.append(
            f"{rule}, set with hindsight to the same attainment, needs about {hours} GPU hours: "
            f"{compared}."
        )
    return found
