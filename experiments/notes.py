"""What a reader must know before believing a comparison, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.comparison import Comparison, PolicyOutcome
from experiments.config import RunConfig
from experiments.digest import RunDigest
from experiments.eligible import BOUNDS, in_hindsight
from experiments.readable import duration, figure, listed, percent
from experiments.settings import cut_timetables
from experiments.statistics import MIN_BLOCKS
from experiments.workbench import STATIC, STATIC_BEST
from policies import POLICIES
from tuner.core.trace import Trace
from tuner.train.digests import trace_digest


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know before believing any of it, what changes the verdict first."""
    return [*decisive(comparison), *others(comparison)]


def decisive(comparison: Comparison) -> list[str]:
    """What changes the verdict: who misses the goal, who knew the load, what is too short."""
    return [
        *_missed_goals(comparison),
        *_hindsight_notes(comparison),
        *_training_notes(comparison),
        *_late_notes(comparison),
        *_idle_notes(comparison),
        *_sample_notes(comparison),
    ]


def others(comparison: Comparison) -> list[str]:
    """How it was made."""
    return [*_tuning_notes(comparison), *_input_notes(comparison)]


def _missed_goals(comparison: Comparison) -> Iterator[str]:
    goal, missed = comparison.config.sweep.goal, []
    for outcome in comparison.policies:
        attainment = outcome.mean("slo_attainment")
        if attainment < goal and outcome.name not in BOUNDS:
            missed.append(f"{outcome.name} ({figure('slo_attainment', attainment)})")
    if missed:
        verb = "misses" if len(missed) == 1 else "miss"
        yield f"{listed(missed)} {verb} the goal of {percent(goal)}."


def _tuned_on(comparison: Comparison) -> tuple[list[str], dict[str, list[str]]]:
    """Who was tuned with hindsight; and trace -> who was tuned on it."""
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
    return hindsight, tuned_on


def _hindsight_notes(comparison: Comparison) -> Iterator[str]:
    """Who was shown the compared load."""
    hindsight, _ = _tuned_on(comparison)
    if hindsight:
        yield (
            f"{_were(hindsight)} tuned on the very load that is compared here. That is "
            "hindsight: on a load nobody has seen yet a rule does worse."
            + (" --train-trace tunes on another one." if comparison.tuning.hindsight else "")
        )
    for name, search in comparison.tuning.searches.items():
        if search.elsewhere:
            yield f"{name} was tuned {search.elsewhere}: it was tuned for another fleet."
    for outcome in comparison.policies:
        if in_hindsight(comparison, outcome):
            yield (
                f"{outcome.name} is a bound here, no rival: its count was chosen with hindsight, "
                "the settings of the others were not."
            )


def _tuning_notes(comparison: Comparison) -> Iterator[str]:
    """What the rules were tuned on, with which budget, and how they ran."""
    _, tuned_on = _tuned_on(comparison)
    for trace, names in tuned_on.items():
        yield f"{_were(names)} tuned on {trace}, not on the load that is compared here."
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
        if settings.get("beats its base rule") is False:
            yield (
                f"{outcome.name} holds its base rule alone: no network did better in training, so "
                "its figures are those of that rule under the guardrails."
            )
        trained_with = settings.get("trained with", comparison.profile.name)
        if trained_with != comparison.profile.name:
            yield (
                f"{outcome.name} was trained with the profile {trained_with}, not with "
                f"{comparison.profile.name}: it has never seen such a fleet."
            )


LATE = 0.01
"""Share of the requests that may finish after the last arrival without a word."""


def _late_notes(comparison: Comparison) -> Iterator[str]:
    """Whose costs end long before its work does."""
    late = {o.name: late_share(o, comparison.trace) for o in comparison.policies}
    said = [f"{name} ({percent(share)})" for name, share in late.items() if share > LATE]
    if said:
        their = "its" if len(said) == 1 else "their"
        yield (
            f"{listed(said)} finished that share of the requests, at least, after the last "
            f"arrival, where costs end: that time is not in {their} GPU hours and money, while the "
            "tokens made in it are counted. Who falls behind looks cheaper than it is."
        )


def late_share(outcome: PolicyOutcome, trace: Trace) -> float:
    """Share (0-1) of the trace's requests that finished after its last arrival, mean over the
    seeds; of the tick that holds it, none."""
    ran = [run.ticks for run in outcome.runs if run.ticks is not None]
    if not ran or not len(trace):
        return 0.0
    late = [
        int(ticks.finished[ticks.at_s - ticks.length_s >= trace.last_arrival_s].sum())
        for ticks in ran
    ]
    return sum(late) / len(late) / len(trace)


def _idle_notes(comparison: Comparison) -> Iterator[str]:
    """Whose figures are those of a fixed fleet."""
    fixed = (STATIC, STATIC_BEST, *BOUNDS)
    idle = [
        outcome.name
        for outcome in comparison.policies
        if outcome.policy not in fixed and all(_idle(run, comparison) for run in outcome.runs)
    ]
    if idle:
        count = comparison.tuning.initial_replicas
        their = "its" if len(idle) == 1 else "their"
        yield (
            f"{listed(idle)} never changed a replica while the load lasted: {their} figures are "
            f"those of the {count} replica{'s' if count != 1 else ''} that everybody starts with, "
            f"{_whose_count(comparison)}."
        )


def _idle(run: RunDigest, comparison: Comparison) -> bool:
    """Whether no knob moved up to the last arrival."""
    ticks = run.ticks
    if run.figures.actions == 0 or ticks is None:
        return run.figures.actions == 0
    before = ticks.at_s <= comparison.trace.last_arrival_s
    others = (ticks.batch_size, ticks.threads, ticks.warmup_requests)
    return bool(
        (ticks.wanted_replicas[before] == comparison.tuning.initial_replicas).all()
    ) and all(len(np.unique(knob[before])) <= 1 for knob in others)


def _whose_count(comparison: Comparison) -> str:
    """Where the count that everybody starts with comes from."""
    tuning = comparison.tuning
    if comparison.config.run.initial_replicas is not None:
        return "which run.initial_replicas gives"
    held = any(outcome.policy == STATIC for outcome in comparison.policies)
    if held and STATIC not in tuning.sweeps:
        return "which were given for static"
    if tuning.hindsight:
        return "which were chosen with hindsight: the fixed fleet that is best on this very load"
    return f"which are the fixed fleet that is best on {tuning.trace}"


SHORT_TICKS = 30
"""Ticks below which a load shows nothing of how policies scale."""


def _short_notes(comparison: Comparison) -> Iterator[str]:
    span_s, startup = comparison.trace.last_arrival_s, comparison.profile.startup
    tick_s = comparison.config.run.tick_s
    reasons = []
    if span_s < SHORT_TICKS * tick_s:
        reasons.append(f"{SHORT_TICKS} ticks of {tick_s:g} s")
    if startup is not None and span_s < startup.stages.sum_s:
        reasons.append(f"a replica takes to start ({duration(startup.stages.sum_s)}, median)")
    if reasons:
        yield (
            f"The load lasts {duration(span_s)}, less than {' and than '.join(reasons)}: nothing "
            "here tells how policies scale."
        )


def _sample_notes(comparison: Comparison) -> Iterator[str]:
    yield from _short_notes(comparison)
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
            f"The load is too short ({duration(span_s)}) to say how it would be on other days; "
            f"{duration(MIN_BLOCKS * block_s)} and more are resampled for that."
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
