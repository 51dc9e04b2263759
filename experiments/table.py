"""A comparison on a terminal: the report's figures and verdict in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from experiments.best import lead
from experiments.comparison import Comparison, PolicyOutcome
from experiments.oracles.words import oracle_sentences
from experiments.readable import figure, shown_interval
from experiments.summary import METRICS
from experiments.verdict import Standing, notes, verdicts

FEW = 4
"""Policies whose verdicts a terminal has room for in full; of more, the report tells them."""
ACROSS = 3
"""Policies side by side: as many as 80 columns hold with their intervals."""

_STYLE = {Standing.WINS: "green", Standing.LOSES: "red"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The verdict, the figures, how the rules were tuned, and what to mind."""
    best = lead(comparison)
    if best is not None:
        console.print(Text(best.sentence, style="bold"))
        for detail in best.details:
            console.print(Padding(Text(detail), (0, 0, 0, 2)))
    for verdict in verdicts(comparison):
        badge = Text(f"{verdict.standing}: ", style=_STYLE.get(verdict.standing, "bold"))
        console.print(badge + Text(verdict.headline))
        for detail in verdict.details if len(comparison.policies) <= FEW else ():
            console.print(Padding(Text(detail), (0, 0, 0, 2)))
    for start in range(0, len(comparison.policies), ACROSS):
        console.print(_figures(comparison, comparison.policies[start : start + ACROSS]))
    for sweep in comparison.tuning.sweeps.values():
        console.print(Text(f"{sweep.sentence}."))
    if comparison.oracles is not None:
        regrets = {outcome.name: comparison.regret(outcome) for outcome in comparison.policies}
        for sentence in oracle_sentences(comparison.oracles, regrets):
            console.print(Text(f"{sentence}."))
    for search in comparison.tuning.searches.values():
        console.print(Text(f"{search.sentence}."))
    for note in notes(comparison):
        console.print(Text("note: ", style="yellow") + Text(note))


def _figures(comparison: Comparison, outcomes: Sequence[PolicyOutcome]) -> Table:
    seeds = len(comparison.seeds)
    caption = f"mean over {seeds} seeds, 95 % interval below" if seeds > 1 else "one seed"
    table = Table(caption=caption, caption_justify="left", header_style="bold")
    table.add_column("")
    for outcome in outcomes:
        mark = " *" if outcome.name == comparison.baseline else ""
        table.add_column(f"{outcome.name}{mark}", justify="right", overflow="fold")
    for metric in METRICS:
        cells = []
        for outcome in outcomes:
            estimate = outcome.estimates[metric.name]
            cell = Text(figure(metric.name, estimate.mean))
            bounds = shown_interval(metric.name, estimate.ci95, estimate.mean)
            if bounds:
                cell.append(f"\n{bounds}", style="dim")
            cells.append(cell)
        table.add_row(metric.label, *cells)
    return table
