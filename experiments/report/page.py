"""Puts the page together: words, tables and plots from a comparison, one file from a template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.comparison import Comparison, PolicyOutcome
from experiments.readable import NOTHING, duration, figure, percent, shown_interval
from experiments.report.colours import colours_of, token
from experiments.report.frontier import frontier
from experiments.report.template import render_template
from experiments.report.timelines import timelines
from experiments.summary import METRICS, Metric
from experiments.sweep import Sweep
from experiments.verdict import notes, verdicts
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace


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
    names = [outcome.name for outcome in comparison.policies]
    colours = colours_of([*names, *comparison.tuning.curves])
    plots = {
        "frontier": frontier(comparison, colours),
        "timelines": timelines(comparison, colours),
    }
    return render_template(
        "page.html",
        plots=plots,
        comparison=comparison,
        run=run,
        title=f"{_listed(names)} on {comparison.trace.name}",
        load=load_facts(comparison.trace),
        verdicts=verdicts(comparison),
        notes=notes(comparison),
        outcomes=comparison.policies,
        tokens={name: token(name, colours) for name in colours},
        palette=[(token(name, colours), colour) for name, colour in colours.items()],
        rows=list(figure_rows(comparison)),
        sweep_columns=[m.label for m in METRICS if m.name in SWEEP_FIGURES],
        objectives=objectives(comparison),
        sweeps=[(sweep, sweep_rows(sweep)) for sweep in comparison.tuning.sweeps.values()],
        searches=list(comparison.tuning.searches.values()),
        curves=[
            (curve, sweep_rows(curve))
            for name, curve in comparison.tuning.curves.items()
            if curve is not comparison.tuning.sweeps.get(name)
        ],
        settings=[(o.name, setting_rows(o)) for o in comparison.policies],
        config=list(_flat(asdict(comparison.config))),
        profile=comparison.profile,
        errors=error_rows(comparison.profile),
    )


@dataclass(frozen=True)
class FigureCell:
    """One figure of one policy."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class FigureRow:
    """One metric over all policies."""

    metric: Metric
    cells: tuple[FigureCell, ...]


def figure_rows(comparison: Comparison) -> Iterator[FigureRow]:
    """The table of figures: a row per metric, a cell per policy, the best one marked."""
    for metric in METRICS:
        name = metric.name
        values = [outcome.mean(name) for outcome in comparison.policies]
        known = [value for value in values if value == value]
        best = None
        if metric.better != "neither" and len(set(known)) > 1:
            best = max(known) if metric.better == "higher" else min(known)
        yield FigureRow(
            metric,
            tuple(
                FigureCell(
                    figure(name, outcome.mean(name)),
                    shown_interval(name, outcome.estimates[name].ci95, outcome.mean(name)),
                    best is not None and outcome.mean(name) == best,
                )
                for outcome in comparison.policies
            ),
        )


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


def setting_rows(outcome: PolicyOutcome) -> list[tuple[str, str]]:
    """Parameters of a policy: what it was given, then what it said of itself."""
    said = outcome.runs[0].settings
    return [(key, _value(value)) for key, value in {**outcome.options, **said}.items()]


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


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Key path and value of every entry, sections opened."""
    for key, value in values.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, inner)
        else:
            yield inner, _value(value)


def _value(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping | tuple | list) and not value:
        return "none"
    return str(value)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
