"""A comparison on a terminal: verdict, figures, settings and notes in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from experiments.advantages import advantages
from experiments.best import lead
from experiments.comparison import Comparison, PolicyOutcome
from experiments.eligible import BOUNDS, in_hindsight
from experiments.notes import decisive, others
from experiments.oracles.words import oracle_sentences
from experiments.ranking import STYLES, how_to_read, ranking
from experiments.readable import brief, figure, shown_interval
from experiments.search import Search, options_in_words
from experiments.summary import METRICS, Figures
from experiments.sweep import BELOW_GOAL, Sweep
from experiments.verdict import verdicts

FEW = 4
"""Policies, bounds among them, that a terminal has room for in full: every figure of each, and its
verdict; of more it shows a row each."""
ACROSS = 3
"""Policies side by side: as many as 80 columns hold with their intervals."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The verdict, the figures, how the rules were tuned, and what to mind."""
    few = len(comparison.policies) <= FEW
    best = lead(comparison)
    if best is not None:
        _say(console, Text(best.sentence, style="bold"))
        for detail in best.details:
            _say(console, Text(detail), indent=2)
    if few:
        _print_each(comparison, console)
    else:
        console.print(ranking(comparison, console))
        _say(console, Text(how_to_read(comparison), style="dim"))
    if comparison.oracles is not None:
        regrets = {
            outcome.name: comparison.regret(outcome)
            for outcome in comparison.policies
            if few and outcome.name not in BOUNDS
        }
        for sentence in oracle_sentences(comparison.oracles, regrets):
            _say(console, Text(f"{sentence}."))
    tuned = list(_tuned(comparison))
    if tuned:
        console.print(Text("Settings that were found, with what they reached in tuning:", "bold"))
        grid = Table.grid(padding=(0, 1))
        for name, setting in tuned:
            if console.is_terminal:
                grid.add_row(Text(f"{name}:"), Text(setting))
            else:
                _say(console, Text(f"{name}: {setting}"))
        if grid.rows:
            console.print(grid)
    for note in decisive(comparison):
        _say(console, Text("note: ", style="yellow") + Text(note))
    rest = [*others(comparison), *advantages(comparison)]
    if rest:
        console.print(Text("also:", style="dim"))
    for note in rest:
        _say(console, Text(note, style="dim"), indent=2)
    more = "" if few else "every figure with its intervals, each policy's verdict, "
    _say(
        console,
        Text(
            f"The report has more: {more}cost against attainment and at the same attainment, "
            "money, what happened when, where each policy lost, every trial and setting."
        ),
    )


def _say(console: Console, text: Text, indent: int = 0) -> None:
    """A sentence: wrapped on a terminal, in one line in a file or a pipe."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent), expand=False))
    else:
        console.print(Text(" " * indent) + text, soft_wrap=True)


def _print_each(comparison: Comparison, console: Console) -> None:
    for verdict in verdicts(comparison):
        badge = Text(f"{verdict.standing}: ", style=STYLES.get(verdict.standing, "bold"))
        _say(console, badge + Text(verdict.headline))
        for detail in verdict.details:
            _say(console, Text(detail), indent=2)
    for start in range(0, len(comparison.policies), ACROSS):
        console.print(_figures(comparison, comparison.policies[start : start + ACROSS]))


def _tuned(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Rule, and its setting with what that took and reached: a line of each that was tuned."""
    for name, sweep in comparison.tuning.sweeps.items():
        setting = f"{sweep.option} {brief(sweep.chosen.value)}"
        yield name, _found(setting, len(sweep.points), sweep.chosen.figures, sweep)
    for name, search in comparison.tuning.searches.items():
        setting = options_in_words(search.chosen.options)
        yield name, _found(setting, search.budget, search.chosen.figures, search)


def _found(setting: str, trials: int, figures: Figures, tried: Sweep | Search) -> str:
    attainment = figure("slo_attainment", figures.slo_attainment)
    missed = "" if tried.reached else f", {BELOW_GOAL}"
    missed += "".join(f"; {remark}" for remark in tried.remarks)
    hours = figure("gpu_hours", figures.gpu_hours)
    return f"{setting} ({trials} trials, {attainment} for {hours} GPU hours{missed})"


def _figures(comparison: Comparison, outcomes: Sequence[PolicyOutcome]) -> Table:
    seeds = len(comparison.seeds)
    caption = f"mean over {seeds} seeds, 95 % interval below" if seeds > 1 else "one seed"
    table = Table(caption=caption, caption_justify="left", header_style="bold")
    table.add_column("")
    for outcome in outcomes:
        mark = " *" if outcome.name == comparison.baseline else ""
        mark += "\n(hindsight)" if in_hindsight(comparison, outcome) else ""
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
