"""The tables of a comparison, a row per policy, as the page and the Markdown show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.best import below_goal, ranked
from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.eligible import BOUNDS, eligible
from experiments.equal_attainment import EqualCost, equal_costs, levels
from experiments.money import LEAST_H, Bill, Price, bills, rough_usd, simulated_h, usd
from experiments.oracles.words import REGRET_MEANING
from experiments.readable import (
    NOTHING,
    duration,
    figure,
    listed,
    percent,
    shown_interval,
    signed_percent,
)
from experiments.report.alike import alike_sentence
from experiments.summary import METRICS
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

FEW = 4
"""Policies that a title can name, and that a timeline can show at once and stay readable."""


def title(comparison: Comparison) -> str:
    """What was compared on what."""
    names = [outcome.name for outcome in comparison.policies if outcome.name not in BOUNDS]
    what = listed(names) if len(names) <= FEW else f"{len(names)} policies"
    return f"{what} on {comparison.trace.name}"


def error_rows(profile: ServingProfile) -> list[tuple[str, str]]:
    """How far the profile is off, figure by figure."""
    return [(name.replace("_", " "), percent(value)) for name, value in profile.error.items()]


def load_facts(trace: Trace) -> list[tuple[str, str]]:
    """The load in a few figures."""
    span_s = trace.last_arrival_s
    rate = f"{len(trace) / span_s:.1f} /s" if span_s > 0 else NOTHING
    return [
        ("requests", f"{len(trace):,}"),
        ("span", duration(span_s)),
        ("mean arrivals", rate),
        ("mean prompt", f"{trace.prompt_tokens.mean():,.0f} tokens"),
        ("mean output", f"{trace.output_tokens.mean():,.0f} tokens"),
    ]


def objectives(comparison: Comparison) -> str:
    slo = comparison.config.run.slo
    return f"TTFT ≤ {slo.ttft_s:g} s and TPOT ≤ {1000 * slo.tpot_s:g} ms"


@dataclass(frozen=True)
class Column:
    """What a column shows."""

    label: str
    meaning: str = ""


@dataclass(frozen=True)
class Cell:
    """One figure of one policy."""

    value: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class PolicyTable:
    """A row per policy, the best policy first."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    alike: str = ""
    """What is the same in every row, and therefore no column, in a sentence."""


SERVICE, HAPPENED = "Service and cost", "What happened"
REGRET = "regret"
GROUPS: Mapping[str, tuple[str, ...]] = {
    SERVICE: ("slo_attainment", "gpu_hours", "replica_hours", "goodput_qps"),
    "Latency": ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s"),
    HAPPENED: (
        *("requests", "completed", "failed", "rejected", "unfinished"),
        *("prompt_tokens", "output_tokens"),
        *("preemptions", "actions", "clamps", "trips"),
    ),
}
"""Metrics of each table of figures; together they are all of METRICS."""

_BY_NAME = {metric.name: metric for metric in METRICS}


def figure_tables(comparison: Comparison) -> list[PolicyTable]:
    """Every figure of every policy, in three tables that a page is wide enough for."""
    return [_figures(comparison, title, names) for title, names in GROUPS.items()]


def _figures(comparison: Comparison, title: str, names: Sequence[str]) -> PolicyTable:
    cells = {name: _column(comparison, name) for name in names}
    alike = {}
    if title == HAPPENED:
        alike = {n: next(iter(c.values())).value for n, c in cells.items() if _one_value(c)}
        names = [name for name in names if name not in alike]
    columns = [Column(_BY_NAME[name].label, _BY_NAME[name].meaning) for name in names]
    rows = {o.name: [cells[name][o.name] for name in names] for o in ranked(comparison)}
    if title == SERVICE:
        columns += _compared_columns(comparison)
        for name, row in rows.items():
            row += _compared(comparison, comparison[name])
    return PolicyTable(title, columns, list(rows.items()), alike_sentence(alike))


def _compared_columns(comparison: Comparison) -> list[Column]:
    """What the cost is measured against: the baseline, and the bound where there is one."""
    columns = [
        Column(f"against {comparison.baseline}", "GPU hours more or fewer, of the baseline's")
    ]
    if comparison.oracles is not None:
        columns.append(Column(REGRET, REGRET_MEANING))
    return columns


def _compared(comparison: Comparison, outcome: PolicyOutcome) -> list[Cell]:
    cells = [_against(outcome, comparison[comparison.baseline].mean("gpu_hours"))]
    if comparison.oracles is not None:
        regret = comparison.regret(outcome)
        cells.append(Cell(NOTHING if regret is None else signed_percent(regret - 1)))
    return cells


def _one_value(column: Mapping[str, Cell]) -> bool:
    """Whether every policy shows the same, and every seed too."""
    spread = any(cell.interval for cell in column.values())
    return not spread and len({cell.value for cell in column.values()}) == 1


def _column(comparison: Comparison, name: str) -> dict[str, Cell]:
    """One metric of every policy, the best one marked."""
    better = _BY_NAME[name].better
    means = {outcome.name: outcome.mean(name) for outcome in comparison.policies}
    # Where nobody needs to serve well, holding few GPUs is no feat.
    below = below_goal(comparison) if name in ("gpu_hours", "replica_hours") else []
    rivals = {o.name for o in comparison.policies if eligible(comparison, o)} - set(below)
    known = [mean for policy, mean in means.items() if mean == mean and policy in rivals]
    best = None
    if better != "neither" and len(set(known)) > 1:
        best = max(known) if better == "higher" else min(known)
    return {
        outcome.name: Cell(
            figure(name, means[outcome.name]),
            shown_interval(name, outcome.estimates[name].ci95, means[outcome.name]),
            outcome.name in rivals and means[outcome.name] == best,
        )
        for outcome in comparison.policies
    }


def _against(outcome: PolicyOutcome, base: float) -> Cell:
    gap = outcome.differences.get("gpu_hours")
    if gap is None or base <= 0:
        return Cell("")
    bounds = None if gap.ci95 is None else (gap.ci95[0] / base, gap.ci95[1] / base)
    ends = [] if bounds is None else [signed_percent(end).removesuffix(" %") for end in bounds]
    return Cell(signed_percent(gap.mean / base), " to ".join(ends))


def equal_table(comparison: Comparison) -> PolicyTable:
    """GPU hours at equal attainment."""
    found = equal_costs(comparison)
    columns = [
        Column(f"at {percent(level)}".replace(" %", "\N{NO-BREAK SPACE}%"))
        for level in levels(comparison)
    ]
    rows = [
        (outcome.name, [_equal(cost) for cost in found[outcome.name]])
        for outcome in ranked(comparison)
    ]
    return PolicyTable("At the same attainment", columns, rows)


def _equal(cost: EqualCost) -> Cell:
    if cost.gpu_hours is None:
        return Cell("not reached")
    return Cell(f"{'≤ ' if cost.at_most else ''}{figure('gpu_hours', cost.gpu_hours)}")


def money_table(comparison: Comparison, price: Price) -> PolicyTable:
    """What each policy costs in money."""
    columns = [
        Column("this load", "GPU hours to the last arrival, times the price"),
        Column(f"saved against {comparison.baseline}", "seed by seed"),
        Column("per million tokens", "prompt and output tokens of completed requests"),
        Column("per million output tokens", "the same cost over output tokens alone"),
    ]
    month = simulated_h(comparison) >= LEAST_H
    if month:
        columns.append(
            Column("a month, extrapolated", "extrapolated: every hour of the month like these")
        )
    found = {bill.policy: bill for bill in bills(comparison, price)}
    rows = [
        (outcome.name, _bill(found[outcome.name], month=month)) for outcome in ranked(comparison)
    ]
    return PolicyTable("Money", columns, rows)


def _bill(bill: Bill, *, month: bool) -> list[Cell]:
    return [
        _usd(bill.run),
        Cell("") if bill.saved is None else _usd(bill.saved),
        _usd(bill.million_tokens),
        _usd(bill.million_output_tokens),
        *([Cell(rough_usd(bill.month))] if month else []),
    ]


def _usd(estimate: Estimate) -> Cell:
    if estimate.mean != estimate.mean:
        return Cell(NOTHING)
    value = usd(estimate.mean)
    if estimate.ci95 is None:
        return Cell(value)
    low, high = (usd(bound, estimate.mean).replace("USD ", "") for bound in estimate.ci95)
    return Cell(value, "" if low == high else f"{low} to {high}")
