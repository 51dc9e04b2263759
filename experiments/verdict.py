"""What a comparison says, in plain words: who wins, who loses, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.curve import cost_at
from experiments.eligible import BOUNDS, in_hindsight
from experiments.readable import (
    difference,
    difference_interval,
    figure,
    percent,
    signed_percent,
)

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
    HINDSIGHT = "hindsight"
    """No rival: its setting was chosen on the compared load, those of others were not."""


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


def _verdict(comparison: Comparison, outcome: PolicyOutcome) -> Verdict:
    base = comparison[comparison.baseline]
    attainment, cost = outcome.differences["slo_attainment"], outcome.differences["gpu_hours"]
    base_cost = base.mean("gpu_hours")
    serves = _direction(attainment, EVEN_ATTAINMENT, higher_is_better=True)
    saves = _direction(cost, EVEN_COST * base_cost, higher_is_better=False)
    standing = _standing(serves, saves)
    if in_hindsight(comparison, outcome):
        standing = Standing.HINDSIGHT
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
    if standing is Standing.HINDSIGHT:
        return f"{name} against {base}, its count chosen with hindsight: {figures}."
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
