"""The report in short, as GitHub-flavoured Markdown: for a pull request or a ticket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.advantages import advantages
from experiments.best import below_goal, lead, ranked
from experiments.comparison import Comparison
from experiments.eligible import in_hindsight
from experiments.losses import losses
from experiments.money import HOURS_PER_MONTH, LEAST_H, price_of, simulated_h
from experiments.notes import notes
from experiments.oracles.words import REGRET_MEANING
from experiments.readable import duration, percent
from experiments.report.tables import (
    PolicyTable,
    equal_table,
    error_rows,
    figure_tables,
    load_facts,
    money_table,
    objectives,
    title,
)
from experiments.settings import default_text, settings_of, value_text
from experiments.verdict import verdicts


def write_markdown(comparison: Comparison, run: Mapping[str, object], path: Path) -> None:
    """Writes the report in short.

    Args:
        comparison: what was found.
        run: content of `run.json`: command, commit, versions.
        path: the Markdown file.
    """
    path.write_text(markdown(comparison, run), encoding="utf-8")


def markdown(comparison: Comparison, run: Mapping[str, object]) -> str:
    """Verdict, tables, notes, what was simulated, and the command that makes it again.

    Intervals are 95 % over the seeds, as in the HTML report.
    """
    return "\n".join(_lines(comparison, run)) + "\n"


def _lines(comparison: Comparison, run: Mapping[str, object]) -> Iterator[str]:
    yield f"## {_text(title(comparison))}"
    yield ""
    verdict = lead(comparison)
    if verdict is not None:
        yield f"**{_text(verdict.sentence)}**"
        yield ""
        yield from (f"- {_text(detail)}" for detail in verdict.details)
        yield ""
    yield from _figures(comparison)
    yield from _standings(comparison)
    yield "### Before you act on it"
    yield ""
    yield from (f"- {_text(note)}" for note in notes(comparison))
    yield "- All of this is simulated."
    yield ""
    yield from _losses(comparison)
    yield from _settings(comparison)
    yield from _simulated(comparison)
    yield "### Repeat it"
    yield ""
    yield "```sh"
    yield str(run["command"])
    yield "```"
    yield ""
    commit = run.get("commit") or "not under version control"
    yield f"Seeds {', '.join(map(str, comparison.seeds))}; commit {commit}."


def _figures(comparison: Comparison) -> Iterator[str]:
    goal, seeds = percent(comparison.config.sweep.goal), len(comparison.seeds)
    yield (
        f"Mean over {seeds} seed{'s' if seeds > 1 else ''}, the 95 % interval over them in "
        f"brackets. Policies that reach the goal of {goal} stand first, by cost."
        + ("" if comparison.oracles is None else f" Regret: {REGRET_MEANING}.")
    )
    yield ""
    service, latency, happened = figure_tables(comparison)
    hindsight = [o.name for o in comparison.policies if in_hindsight(comparison, o)]
    yield from _table(service, below_goal(comparison), comparison.baseline, hindsight)
    yield from _folded("Latency", _table(latency))
    counts = _table(happened) if happened.columns else []
    yield from _folded(happened.title, [_text(happened.alike), "", *counts])
    yield from _folded(
        "Cost at the same attainment, GPU hours",
        [
            *_table(equal_table(comparison)),
            "Read from curves of one run each, with a seed that is not compared; of static, the "
            "cheapest whole fleet.",
            "",
        ],
    )
    price = price_of(comparison)
    if price is not None:
        month, hours = "", simulated_h(comparison)
        if hours >= LEAST_H:
            month = (
                f"A month is extrapolated: {HOURS_PER_MONTH:g} hours, every one like these "
                f"{duration(3600 * hours)}. "
            )
        yield from _folded(
            f"Money at USD {price.usd:g} per GPU hour",
            [
                *_table(money_table(comparison, price)),
                f"{month}Costs end with the last arrival; tokens are those of completed requests, "
                "prompt and output, made later too.",
                "",
            ],
        )


def _standings(comparison: Comparison) -> Iterator[str]:
    order = [outcome.name for outcome in ranked(comparison)]
    found = sorted(verdicts(comparison), key=lambda verdict: order.index(verdict.policy))
    lines = [f"- *{verdict.standing}* {_text(verdict.headline)}" for verdict in found]
    if lines:
        yield from _folded(f"Each against {comparison.baseline}", [*lines, ""])


def _losses(comparison: Comparison) -> Iterator[str]:
    lines = [
        f"- **{_text(loss.policy)}**, {loss.span}: {loss.missed:,} missed. {_text(loss.why)}"
        for loss in losses(comparison)
    ]
    if lines:
        yield from _folded("Where each policy lost: its worst ten minutes", [*lines, ""])


def _settings(comparison: Comparison) -> Iterator[str]:
    lines = []
    for outcome in ranked(comparison):
        said = [
            f"{setting.name} {value_text(setting)} "
            f"({'tuned, ' if setting.tuned else ''}default {default_text(setting)})"
            for setting in settings_of(comparison, outcome)
            if setting.shown
        ]
        lines.append(f"- **{_text(outcome.name)}**: {_text(', '.join(said) or 'all by default')}")
    yield from _folded("Settings", [*lines, ""])


def _simulated(comparison: Comparison) -> Iterator[str]:
    profile = comparison.profile
    facts = ", ".join(f"{name} {value}" for name, value in load_facts(comparison.trace))
    yield "### What was simulated"
    yield ""
    yield (
        f"Replicas of {_text(profile.name)}, {profile.gpus_per_replica} "
        f"GPU{'s' if profile.gpus_per_replica > 1 else ''} each, under the scheduler rules "
        f"{_text(profile.scheduler)}, on {_text(comparison.trace.name)}: {_text(facts)}. A request "
        f"is served when {objectives(comparison)}."
    )
    yield ""
    errors = error_rows(profile)
    if errors:
        off = ", ".join(f"{name} {value}" for name, value in errors)
        yield f"The profile is off what was measured by: {_text(off)}."
    else:
        yield "The profile states no error against measurements."
    yield ""
    for sentence in advantages(comparison):
        yield _text(sentence)
        yield ""


def _table(
    table: PolicyTable,
    below: Sequence[str] = (),
    baseline: str = "",
    hindsight: Sequence[str] = (),
) -> list[str]:
    """Rows of a Markdown table; intervals stand in brackets."""
    lines = [
        "| | " + " | ".join(_cell(column.label) for column in table.columns) + " |",
        "| :-- |" + " --: |" * len(table.columns),
    ]
    for name, cells in table.rows:
        marks = [" (baseline)"] if name == baseline else []
        marks += [" (misses the goal)"] if name in below else []
        marks += [" (hindsight)"] if name in hindsight else []
        texts = []
        for cell in cells:
            value = _cell(cell.value)
            value = f"**{value}**" if cell.best else value
            texts.append(f"{value} [{_cell(cell.interval)}]" if cell.interval else value)
        lines.append(f"| {_cell(name)}{''.join(marks)} | {' | '.join(texts)} |")
    return [*lines, ""]


def _folded(summary: str, lines: list[str]) -> Iterator[str]:
    """Lines that a reader opens; a blank line in front lets GitHub read them as Markdown."""
    yield f"<details><summary>{_text(summary)}</summary>"
    yield ""
    yield from lines
    yield "</details>"
    yield ""


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Text that Markdown shows as it is: names hold anything."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]~#@])", r"\\\1", " ".join(escaped.split()))
