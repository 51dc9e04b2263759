"""What a grid found, as tables for the terminal, the page and a pull request alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.equal_attainment import LEVELS
from experiments.grid.panel import (
    Aggregate,
    Case,
    aggregate,
    cost_ratios,
    equal_attainment,
    relative_cost,
)
from experiments.readable import NOTHING, figure, percent
from experiments.report.document import Table
from experiments.result import Floats
from experiments.statistics import Interval
from experiments.workbench import STATIC


@dataclass(frozen=True)
class Findings:
    """A grid's scenarios and what they say together."""

    cases: tuple[Case, ...]
    policies: tuple[str, ...]
    baseline: str
    goal: float
    attainment: Mapping[str, Aggregate]
    """Policy -> SLO attainment over all scenarios."""
    cost: Mapping[str, Aggregate]
    """Policy -> GPU hours over the baseline's, over all scenarios."""
    ratios: Mapping[str, tuple[Floats, ...]]
    """Policy -> per scenario `(seeds,)` cost over that of the cheapest that reaches the goal."""
    equal: Mapping[float, tuple[Mapping[str, float], ...]]
    """Attainment -> per scenario policy -> GPU hours at it, by the policy's curve."""


def findings_of(cases: Sequence[Case]) -> Findings:
    """Rows first, then everything over all scenarios.

    Args:
        cases: at least one; of the same policies, baseline and seeds.
    """
    first = cases[0]
    policies, baseline = first.policies, str(first.summary["baseline"])
    goal = float(first.summary["goal"])
    attainment = {
        policy: aggregate(
            {case.label: case.values(policy, "slo_attainment") for case in cases},
            worst=lambda means: int(np.nanargmin(means)),
        )
        for policy in policies
    }
    cost = {
        policy: aggregate(
            {case.label: relative_cost(case, policy, baseline) for case in cases},
            worst=lambda means: int(np.nanargmax(means)),
        )
        for policy in policies
    }
    by_case = [cost_ratios(case, policies, goal) for case in cases]
    return Findings(
        cases=tuple(cases),
        policies=policies,
        baseline=baseline,
        goal=goal,
        attainment=attainment,
        cost=cost,
        ratios={policy: tuple(ratios[policy] for ratios in by_case) for policy in policies},
        equal={goal: tuple(equal_attainment(case, goal) for case in cases) for goal in LEVELS},
    )


def tables(findings: Findings) -> list[Table]:
    """Per scenario, then over all of them."""
    return [
        _rows(findings),
        _over_all(findings),
        *(_at(findings, goal) for goal in findings.equal if _shared(findings, goal)),
    ]


def _rows(findings: Findings) -> Table:
    """Attainment and GPU hours of every policy in every scenario; a missed goal is marked."""
    rows = []
    for case in findings.cases:
        cells = [case.label]
        for policy in findings.policies:
            served = float(np.mean(case.values(policy, "slo_attainment")))
            hours = float(np.mean(case.values(policy, "gpu_hours")))
            mark = "" if served >= findings.goal else " *"
            cells.append(f"{figure('slo_attainment', served)}{mark} / {figure('gpu_hours', hours)}")
        rows.append(cells)
    return Table(
        ("scenario", *findings.policies),
        rows,
        f"SLO attainment / GPU hours per scenario, means over the seeds; * misses the goal of "
        f"{percent(findings.goal)}",
    )


def _over_all(findings: Findings) -> Table:
    """Interquartile means, their intervals and the worst scenario of each policy."""
    rows = []
    for policy in findings.policies:
        served, cost = findings.attainment[policy], findings.cost[policy]
        runs = np.concatenate(findings.ratios[policy])
        counted = runs[~np.isnan(runs)]
        rows.append(
            (
                policy,
                figure("slo_attainment", served.iqm),
                _share_bounds(served.ci95_scenarios or served.ci95),
                f"{cost.iqm:.3f}",
                _bounds(cost.ci95_scenarios or cost.ci95),
                percent(float(np.isfinite(counted).mean())) if len(counted) else NOTHING,
                percent(float((counted == 1).mean())) if len(counted) else NOTHING,
                f"{figure('slo_attainment', served.worst_value)} ({served.worst})",
            )
        )
    return Table(
        (
            "policy",
            "SLO attainment, IQM",
            "95 % of attainment",
            f"cost / {findings.baseline}, IQM",
            "95 % of cost",
            "reaches the goal",
            "cheapest that does",
            "worst attainment",
        ),
        rows,
        "Over all scenarios and seeds",
    )


def _at(findings: Findings, goal: float) -> Table:
    """GPU hours at one attainment, by the curves, in those of the baseline."""
    rows = []
    for policy in findings.policies:
        ratios = [
            costs[policy] / costs[findings.baseline]
            for costs in findings.equal[goal]
            if policy in costs and findings.baseline in costs
        ]
        reached = sum(policy in costs for costs in findings.equal[goal])
        rows.append(
            (
                policy,
                f"{reached} of {len(findings.cases)}",
                f"{np.median(ratios):.3f}" if ratios else NOTHING,
                f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else NOTHING,
            )
        )
    return Table(
        ("policy", "curve reaches it", f"cost / {findings.baseline}, median", "range"),
        rows,
        f"Cost at equal attainment, {percent(goal)}, read from each policy's curve (hindsight)",
    )


def _shared(findings: Findings, goal: float) -> bool:
    """Whether more than the baseline has a curve that reaches the goal somewhere."""
    return any(len(costs) > 1 for costs in findings.equal[goal])


def verdict(findings: Findings) -> str:
    """The one sentence: who is cheapest among those that keep the goal nearly everywhere."""
    steady = [
        policy
        for policy in findings.policies
        if findings.attainment[policy].worst_value >= findings.goal
    ]
    if not steady:
        best = max(findings.policies, key=lambda name: findings.attainment[name].worst_value)
        worst = findings.attainment[best]
        return (
            f"No policy keeps {percent(findings.goal)} in every scenario; {best} comes closest: "
            f"{figure('slo_attainment', worst.worst_value)} in {worst.worst}."
        )
    # Where another one keeps the goal too, a count chosen with hindsight is not called the best.
    best = min(
        [name for name in steady if name != STATIC] or steady,
        key=lambda name: findings.cost[name].iqm,
    )
    cost = findings.cost[best]
    over = cost.ci95_scenarios or cost.ci95
    sure = "" if over is None else f" (95 % interval {_bounds(over)})"
    rivals = [name for name in steady if name != STATIC or name == best]
    who = (
        f"{best} is the only policy that keeps"
        if len(rivals) == 1
        else f"{best} is the cheapest of the {len(rivals)} policies that keep"
    )
    return (
        f"{who} {percent(findings.goal)} in every scenario: it costs {cost.iqm:.3f} times what "
        f"{findings.baseline} costs{sure}."
    )


def title(findings: Findings) -> str:
    """How many of what."""
    policies, cases = len(findings.policies), len(findings.cases)
    return (
        f"{policies} polic{'y' if policies == 1 else 'ies'} in {cases} "
        f"scenario{'' if cases == 1 else 's'}"
    )


def caveats(findings: Findings) -> list[str]:
    """What a reader of the figures must not mistake."""
    found = [
        "The first ratios compare what each policy cost as it was set, whatever it served beyond "
        "the goal; those at equal attainment compare what each curve costs where all serve the "
        "same, set with hindsight. A policy that serves more than the goal looks dearer in the "
        "first."
    ]
    if STATIC in findings.policies:
        found.append(
            f"{STATIC} holds the count that is best on the compared load itself: chosen with "
            "hindsight, it is a bound and no rival. static-best is what its owner could have run."
        )
    return found


def _bounds(bounds: Interval | None) -> str:
    return NOTHING if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _share_bounds(bounds: Interval | None) -> str:
    if bounds is None:
        return NOTHING
    low, high = (figure("slo_attainment", bound) for bound in bounds)
    return f"{low.removesuffix(' %')} to {high}"


def as_json(findings: Findings) -> dict[str, object]:
    """All figures for scripts, `tuner.grid/1`."""
    return {
        "schema": "tuner.grid/1",
        "baseline": findings.baseline,
        "goal": findings.goal,
        "verdict": verdict(findings),
        "scenarios": {
            case.label: {
                policy: {
                    "slo_attainment": case.values(policy, "slo_attainment").tolist(),
                    "gpu_hours": case.values(policy, "gpu_hours").tolist(),
                }
                for policy in findings.policies
            }
            for case in findings.cases
        },
        "policies": {
            policy: {
                "slo_attainment": _aggregate(findings.attainment[policy]),
                "relative_cost": _aggregate(findings.cost[policy]),
                "equal_attainment": {
                    f"{goal:g}": [costs.get(policy, math.nan) for costs in per_case]
                    for goal, per_case in findings.equal.items()
                },
            }
            for policy in findings.policies
        },
    }


def _aggregate(one: Aggregate) -> dict[str, object]:
    return {
        "iqm": one.iqm,
        "ci95": one.ci95,
        "ci95_scenarios": one.ci95_scenarios,
        "worst": {"scenario": one.worst, "mean": one.worst_value},
    }
