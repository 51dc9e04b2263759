"""What a comparison says, in plain words: who wins, who loses, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.config import RunConfig
from experiments.curve import cost_at
from experiments.readable import (
    difference,
    difference_interval,
    duration,
    figure,
    percent,
)
from experiments.statistics import MIN_BLOCKS
from tuner.train.digests import trace_digest

EVEN_ATTAINMENT = 0.0005
"""Half a request in a thousand: below it nobody would act on a difference of attainment."""
EVEN_COST = 0.005
"""Half a percent of the cost: likewise."""


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
    """Every policy but the baseline against it, in the order of the comparison."""
    return [
        _verdict(comparison, outcome)
        for outcome in comparison.policies
        if outcome.name != comparison.baseline
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
    goal = comparison.config.sweep.goal
    for outcome in comparison.policies:
        attainment = outcome.mean("slo_attainment")
        if attainment < goal:
            reached = figure("slo_attainment", attainment)
            yield f"{outcome.name} misses the goal of {percent(goal)}: it reaches {reached}."


def _tuning_notes(comparison: Comparison) -> Iterator[str]:
    tuning = comparison.tuning
    if not tuning.sweeps:
        return
    rules = " and ".join(tuning.sweeps)
    were = "was" if len(tuning.sweeps) == 1 else "were"
    if tuning.hindsight:
        yield (
            f"{rules} {were} tuned on the very load that is compared here. That is hindsight: on "
            "a load nobody has seen yet a rule does worse. --train-trace tunes on another one."
        )
    else:
        yield f"{rules} {were} tuned on {tuning.trace}, not on the load that is compared here."


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
    yield from _world_notes(comparison.config.run)
    assumptions = comparison.profile.assumptions()
    if assumptions:
        yield f"Assumed, not measured: {', '.join(assumptions)}."


def _world_notes(run: RunConfig) -> Iterator[str]:
    """Where the simulated world was asked to be another than the profile's and a smooth one."""
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
            _figures("GPU hours", "gpu_hours", outcome, base, f" ({_signed_percent(relative)})"),
            _figures("SLO attainment", "slo_attainment", outcome, base, ""),
            *_how_far(attainment, cost),
            *_against_curves(comparison, outcome),
        ),
    )


def _direction(gap: Estimate, even: float, *, higher_is_better: bool) -> int | None:
    """1 better, -1 worse, 0 even; None where the seeds do not tell better from worse."""
    if abs(gap.mean) < even:
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
    """What the tuned rules would cost at this policy's attainment."""
    found = []
    attainment, cost = outcome.mean("slo_attainment"), outcome.mean("gpu_hours")
    for rule, sweep in comparison.tuning.curves.items():
        if rule == outcome.policy:
            continue
        same = cost_at(sweep.points, attainment)
        if same is None or same <= 0:
            continue
        more = cost / same - 1
        if abs(more) < EVEN_COST:
            compared = f"{outcome.name} costs about the same"
        else:
            compared = f"{outcome.name} costs {percent(abs(more))} {'more' if more > 0 else 'less'}"
        needs = figure("gpu_hours", same)
        found.append(
            f"{rule}, set with hindsight to the same attainment, needs about {needs} GPU hours: "
            f"{compared}."
        )
    return found


def _signed_percent(share: float) -> str:
    return ("+" if share > 0 else "") + percent(share)
