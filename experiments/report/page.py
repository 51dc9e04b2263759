"""Puts the page together: words, tables and plots from a comparison, one file from a template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.advantages import advantages
from experiments.best import below_goal, lead, ranked
from experiments.comparison import Comparison, PolicyOutcome
from experiments.eligible import BOUNDS, in_hindsight
from experiments.losses import Loss, losses
from experiments.money import LEAST_H, price_of, simulated_h
from experiments.notes import notes
from experiments.oracles.words import REGRET_MEANING
from experiments.readable import duration, figure, percent, setting_text
from experiments.report.colours import colours_of, token
from experiments.report.frontier import cost_view, frontier, outside_words
from experiments.report.tables import (
    FEW,
    equal_table,
    error_rows,
    figure_tables,
    load_facts,
    money_table,
    objectives,
    title,
)
from experiments.report.template import render_template, swatch
from experiments.report.timelines import time_axis, timelines
from experiments.search import Search
from experiments.settings import default_text, settings_of
from experiments.summary import METRICS
from experiments.sweep import Sweep
from experiments.verdict import verdicts
from policies import POLICIES
from tuner.core.profile import ServingProfile


def write_report(comparison: Comparison, run: Mapping[str, object], path: Path) -> None:
    """Writes the report.

    Args:
        comparison: what was found.
        run: content of `run.json`: command, commit, versions.
        path: the HTML file.
    """
    path.write_text(render(comparison, run), encoding="utf-8")


def render(comparison: Comparison, run: Mapping[str, object]) -> str:
    """The report as HTML: styles, scripts, plotly.js and data in one file, nothing fetched."""
    from markupsafe import Markup

    order = [outcome.name for outcome in ranked(comparison)]
    colours = colours_of(
        [
            *(outcome.name for outcome in comparison.policies),
            *comparison.tuning.curves,
            *comparison.tuning.searches,
        ]
    )
    first = usual(comparison)
    view = cost_view(comparison, first)
    price, errors = price_of(comparison), error_rows(comparison.profile)
    return render_template(
        "page.html",
        plots={
            "frontier": frontier(comparison, colours, view),
            "timelines": timelines(comparison, colours),
        },
        comparison=comparison,
        run=run,
        title=title(comparison),
        contents=CONTENTS,
        load=load_facts(comparison.trace),
        lead=lead(comparison),
        verdicts=sorted(verdicts(comparison), key=lambda verdict: order.index(verdict.policy)),
        below=below_goal(comparison),
        bounds=BOUNDS,
        hindsight=[o.name for o in comparison.policies if in_hindsight(comparison, o)],
        notes=notes(comparison),
        order=order,
        usual=first,
        outside=outside_words(comparison, view),
        swatches={
            name: Markup(swatch(colours[name], token(name, colours)))  # ours, and no name is in it
            for name in colours
        },
        palette=[(token(name, colours), colour) for name, colour in colours.items()],
        goal=percent(comparison.config.sweep.goal),
        figures=figure_tables(comparison),
        regret_meaning=REGRET_MEANING,
        metrics=METRICS,
        equal=equal_table(comparison),
        price=price,
        money=None if price is None else money_table(comparison, price),
        span=duration(3600 * simulated_h(comparison)),
        short=simulated_h(comparison) < 24,
        month=simulated_h(comparison) >= LEAST_H,
        losses=[(loss, _zoom(comparison, loss)) for loss in losses(comparison)],
        sweep_columns=[m.label for m in METRICS if m.name in SWEEP_FIGURES],
        objectives=objectives(comparison),
        sweeps=[(sweep, sweep_rows(sweep)) for sweep in comparison.tuning.sweeps.values()],
        searches=[search_table(search) for search in comparison.tuning.searches.values()],
        curves=[
            (sweep, sweep_rows(sweep))
            for name, sweep in comparison.tuning.curves.items()
            if sweep != comparison.tuning.sweeps.get(name)
        ],
        settings=[(name, *setting_rows(comparison, comparison[name])) for name in order],
        config=list(_flat(asdict(comparison.config))),
        profile=comparison.profile,
        advantages=advantages(comparison),
        errors=errors,
        largest_error=_largest_error(comparison.profile),
    )


CONTENTS = (
    ("verdict", "Verdict"),
    ("figures", "Figures"),
    ("cost", "Cost against attainment"),
    ("money", "Money"),
    ("time", "What happened when"),
    ("losses", "Where each lost"),
    ("tuning", "Tuning"),
    ("settings", "Settings"),
    ("simulated", "What was simulated"),
    ("repeat", "Repeat it"),
)
"""Anchor and name of each section."""

USUAL = 3
"""Policies that a timeline shows at first where there are too many for all of them."""
_AROUND_S = 1200.0
"""What a link to the worst minutes shows before and after them: a cold start and its cause."""


def usual(comparison: Comparison) -> list[str]:
    """What a timeline shows at first: the best, the baseline, what was learned, who is next."""
    order = [outcome.name for outcome in ranked(comparison)]
    known = (*POLICIES, *BOUNDS)
    learned = [name for name in order if comparison[name].policy not in known]
    first = list(dict.fromkeys([order[0], comparison.baseline, *learned]))[:FEW]
    rest = [name for name in order if name not in first]
    return first + rest[: (FEW if len(order) <= FEW else USUAL) - len(first)]


def _zoom(comparison: Comparison, loss: Loss) -> tuple[float, float]:
    """Where the timelines' axis begins and ends around the worst minutes."""
    axis = time_axis(comparison)
    ends_s = max(0.0, loss.from_s - _AROUND_S), min(axis.end_s, loss.to_s + _AROUND_S)
    return round(ends_s[0] / axis.unit_s, 4), round(ends_s[1] / axis.unit_s, 4)


def _largest_error(profile: ServingProfile) -> str:
    """`12.5 % (ttft mean)`; empty where none is stated."""
    if not profile.error:
        return ""
    name, value = max(profile.error.items(), key=lambda item: abs(item[1]))
    return f"{percent(value)} ({name.replace('_', ' ')})"


@dataclass(frozen=True)
class SweepRow:
    """One setting of a rule, as the table shows it."""

    value: str
    figures: tuple[str, ...]
    """In the order of SWEEP_FIGURES."""
    chosen: bool


SWEEP_FIGURES = ("slo_attainment", "gpu_hours", "ttft_p99_s", "tpot_p99_s")


def sweep_rows(sweep: Sweep) -> list[SweepRow]:
    """Every setting that was tried."""
    return [
        SweepRow(
            f"{point.value:,g}",
            tuple(figure(name, getattr(point.figures, name)) for name in SWEEP_FIGURES),
            point == sweep.chosen,
        )
        for point in sweep.points
    ]


@dataclass(frozen=True)
class SearchTable:
    """Every trial of a search, as the table shows it."""

    policy: str
    sentence: str
    options: tuple[str, ...]
    """What was searched: the first columns."""
    rows: tuple[SweepRow, ...]
    """Its `figures` begin with the value of each option, empty where it was left as shipped."""


def search_table(search: Search) -> SearchTable:
    """In the order in which the trials were run."""
    options = tuple(dict.fromkeys(name for trial in search.trials for name in trial.options))
    rows = [
        SweepRow(
            str(number) if trial.options else "as shipped",
            (
                *(
                    setting_text(trial.options[name]) if name in trial.options else ""
                    for name in options
                ),
                *(figure(name, getattr(trial.figures, name)) for name in SWEEP_FIGURES),
            ),
            trial == search.chosen,
        )
        for number, trial in enumerate(search.trials)
    ]
    return SearchTable(search.policy, search.sentence, options, tuple(rows))


@dataclass(frozen=True)
class SettingRow:
    """One option of a policy, as the table shows it."""

    name: str
    value: str
    default: str
    tuned: bool
    unit: str


def setting_rows(
    comparison: Comparison, outcome: PolicyOutcome
) -> tuple[list[SettingRow], list[SettingRow]]:
    """Options of a policy that were tuned, given or changed, and those left at their default.

    A default that is nothing, as no file is, is left out.
    """
    changed: list[SettingRow] = []
    unchanged: list[SettingRow] = []
    for setting in settings_of(comparison, outcome):
        row = SettingRow(
            setting.name,
            setting_text(setting.value),
            default_text(setting),
            setting.tuned,
            setting.unit,
        )
        if setting.shown:
            changed.append(row)
        elif setting.value not in ("", None):
            unchanged.append(row)
    return changed, unchanged


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Key path and value of every entry, sections opened."""
    for key, value in values.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, inner)
        else:
            yield inner, setting_text(value)
