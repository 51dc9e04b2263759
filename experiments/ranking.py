"""A row per policy in the report's order: what a terminal shows where policies are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments.best import below_goal
from experiments.comparison import Comparison
from experiments.eligible import BOUNDS, eligible, in_hindsight
from experiments.oracles import CLAIRVOYANT
from experiments.oracles.words import REGRET_MEANING
from experiments.readable import NOTHING, listed, percent
from experiments.report.tables import REGRET, Cell, figure_tables
from experiments.verdict import Standing, verdicts

STYLES: Mapping[Standing, str] = {Standing.WINS: "green", Standing.LOSES: "red"}
"""A policy that is better, or worse, than the baseline in everything that is clear."""

Rows = Mapping[str, Mapping[str, Cell]]
"""Policy -> column -> cell, the best policy first."""


def ranking(comparison: Comparison, console: Console) -> Table:
    """The table, with the intervals of as many columns as the console is wide enough for."""
    rows = _rows(comparison)
    columns = list(next(iter(rows.values())))
    unlimited = console.options.update(width=10_000)
    for count in range(len(columns), -1, -1):
        table = _table(comparison, rows, columns[:count])
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
    return table


def how_to_read(comparison: Comparison) -> str:
    """What the order and the marks of the table mean."""
    seeds, goal = len(comparison.seeds), percent(comparison.config.sweep.goal)
    known = [o.name for o in comparison.policies if in_hindsight(comparison, o)]
    last = f"{listed(known)}, chosen with hindsight, and the bounds" if known else "the bounds"
    sentences = [
        f"Mean over {seeds} seeds." if seeds > 1 else "One seed.",
        f"* is the baseline. First stand those that reach the goal of {goal}, by cost; apart from "
        f"them those that miss it, then {last}.",
    ]
    if seeds > 1:
        sentences.append("A difference in brackets may be none.")
    if comparison.oracles is not None:
        sentences.append(f"Regret: {REGRET_MEANING}.")
        beyond = [
            o.name
            for o in comparison.policies
            if o.name not in BOUNDS and comparison.regret(o) is None
        ]
        if beyond:
            sentences.append(
                f"{NOTHING}: no plan of {CLAIRVOYANT} serves as well, or as badly, as "
                f"{listed(beyond)}."
            )
    return " ".join(sentences)


def _rows(comparison: Comparison) -> Rows:
    service, latency, _ = figure_tables(comparison)
    labels = [column.label for column in (*service.columns, *latency.columns)]
    against = f"against {comparison.baseline}"
    rows = {}
    for (name, costs), (_, times) in zip(service.rows, latency.rows, strict=True):
        cells = dict(zip(labels, (*costs, *times), strict=True))
        row = {label: cells[label] for label in ("SLO attainment", "GPU hours")}
        row[against] = _against(comparison, name, cells[against])
        if REGRET in cells:
            row[REGRET] = cells[REGRET]
        rows[name] = row | {label: cells[label] for label in ("TTFT p99", "TPOT p99")}
    return rows


def _against(comparison: Comparison, name: str, cell: Cell) -> Cell:
    """The difference, in brackets where the seeds do not tell it from none."""
    gap = comparison[name].differences.get("gpu_hours")
    if gap is None or gap.ci95 is None or not gap.ci95[0] <= 0 <= gap.ci95[1]:
        return cell
    return Cell(f"({cell.value})", cell.interval)


def _table(comparison: Comparison, rows: Rows, intervals: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    columns = list(next(iter(rows.values())))
    spread = {c for c in intervals if any(row[c].interval for row in rows.values())}
    for column in columns:
        table.add_column(column.replace(" ", "\n", 1), justify="right", no_wrap=True)
        if column in spread:
            table.add_column("", justify="right", no_wrap=True, style="dim")
    standings = {verdict.policy: verdict.standing for verdict in verdicts(comparison)}
    below = below_goal(comparison)
    rivals = {o.name for o in comparison.policies if eligible(comparison, o)}
    groups = {name: name in below if name in rivals else "bound" for name in rows}
    hindsight = {o.name for o in comparison.policies if in_hindsight(comparison, o)}
    before = next(iter(rows))
    for name, row in rows.items():
        if groups[name] != groups[before]:
            table.add_section()
        before = name
        mark = " *" if name == comparison.baseline else ""
        texts = [Text(f"{name}{mark}")]
        if name in hindsight:
            texts[0].append("\nhindsight", style="dim")
        for column in columns:
            style = STYLES.get(standings.get(name, Standing.EVEN), "")
            texts.append(Text(row[column].value, style if column.startswith("against") else ""))
            if column in spread:
                texts.append(Text(row[column].interval))
        table.add_row(*texts)
    return table
