"""Progress of many runs at once, on a terminal or in a log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.fanout import KEPT, Watch
from experiments.readable import duration, figure
from tuner.core.clock import WallClock

REDRAWN_HZ = 4
GROWING = re.compile(r"(tuning|frontier|bound [\w-]+): .+")
"""Label of a run beside which others come up while it runs: of these nobody knows how many."""
CELL = re.compile(r"(?P<policy>.+), seed (?P<seed>\d+)")
"""Label of a policy's run with a seed; such runs stand in one table, all others have a bar each."""


@contextmanager
def run_progress(console: Console) -> Iterator[Watch]:
    """Gives a Watch that shows what runs, what came of what is done, and how long the rest takes.

    Where the console is no terminal, a line per finished task is all a log needs.
    """
    if not console.is_terminal:
        yield _Lines(console)
        return
    board = Board(WallClock().now_s)
    with Live(
        console=console,
        get_renderable=board.shown,
        transient=True,
        refresh_per_second=REDRAWN_HZ,
    ):
        yield board


@dataclass(frozen=True)
class _Lines:
    """A line per finished task."""

    console: Console

    def __call__(self, label: str, share: float, *found: float) -> None:
        if share >= 1:
            text = f": {_figures(found)}" if found else ""
            state = "done" if share < KEPT else "kept"
            self.console.print(
                f"{state}: {label}{text}", highlight=False, markup=False, soft_wrap=True
            )


class Board:
    """A table of policies and seeds, a bar for each other task that runs, and what is to come.

    Args:
        now_s: tells the time, s; only differences matter.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._shares: dict[str, float] = {}
        self._found: dict[str, Sequence[float]] = {}
        self._began_s: dict[bool, float] = {}

    def __call__(self, label: str, share: float, *found: float) -> None:
        # Cells and other tasks come one after the other: each kind has its own beginning.
        self._began_s.setdefault(CELL.fullmatch(label) is not None, self._now_s())
        self._shares[label] = share
        if found:
            self._found[label] = found

    def shown(self) -> RenderableType:
        """The board as it is now."""
        shares = dict(self._shares)  # the one that draws is another thread than the one that tells
        cells = {label: share for label, share in shares.items() if CELL.fullmatch(label)}
        others = {label: share for label, share in shares.items() if label not in cells}
        parts: list[RenderableType] = []
        if others:
            parts.append(Text(self._state(others, is_cell=False)))
        for label, share in others.items():
            if share < 1:
                parts.append(_bar(label, share))
        if cells:
            parts.append(self._table(cells))
            parts.append(Text(self._state(cells, is_cell=True)))
        return Group(*parts)

    def _state(self, shares: Mapping[str, float], *, is_cell: bool) -> str:
        """`7 of 12 runs done, about 3 min left`; `7 runs done` where nobody knows of how many."""
        done = sum(share >= 1 for share in shares.values())
        kept = sum(share >= KEPT for share in shares.values())
        before = f", {kept} of them before" if kept else ""
        if any(GROWING.fullmatch(label) for label in shares):
            return f"{done} run{'' if done == 1 else 's'} done{before}"
        text = f"{done} of {len(shares)} run{'s' if len(shares) > 1 else ''} done{before}"
        # What was done before took none of the time that has passed.
        now = [share for share in shares.values() if share < KEPT]
        total = sum(now)
        passed_s = self._now_s() - self._began_s[is_cell]
        if 0 < total < len(now) and passed_s > 0:
            text += f", about {duration(passed_s * (len(now) / total - 1), digits=2)} left"
        return text

    def _table(self, cells: Mapping[str, float]) -> Table:
        """A row per policy, a column per seed, and the means of what is done."""
        keys = {
            label: (match["policy"], int(match["seed"]))
            for label in cells
            if (match := CELL.fullmatch(label))
        }
        seeds = sorted({seed for _, seed in keys.values()})
        table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
        table.add_column("policy")
        for seed in seeds:
            table.add_column(f"seed {seed}" if len(seeds) <= 3 else str(seed), justify="right")
        table.add_column("attainment", justify="right")
        table.add_column("GPU hours", justify="right")
        for policy in dict.fromkeys(policy for policy, _ in keys.values()):
            own = {seed: label for label, (name, seed) in keys.items() if name == policy}
            states = [_state_of(cells.get(own.get(seed, ""))) for seed in seeds]
            done = [label for label in own.values() if cells[label] >= 1]
            figures = [self._found[label] for label in done if label in self._found]
            shown = ["", ""]
            # A run that was kept from before tells no figures: half a mean would be none.
            if figures and len(figures) == len(done):
                shown = _shown([sum(row) / len(row) for row in zip(*figures, strict=True)])
            table.add_row(policy, *states, *shown)
        return table


def _state_of(share: float | None) -> Text:
    """Done, running or to come."""
    if share is None:
        return Text("")
    if share >= 1:
        return Text("done" if share < KEPT else "kept", style="green")
    return Text(f"{100 * share:.0f} %" if share > 0 else "·", style="" if share > 0 else "dim")


def _bar(label: str, share: float) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(label), ProgressBar(total=1.0, completed=share, width=24), f"{share:.0%}")
    return row


def _shown(found: Sequence[float]) -> list[str]:
    return [
        figure(name, value)
        for name, value in zip(("slo_attainment", "gpu_hours"), found, strict=True)
    ]


def _figures(found: Sequence[float]) -> str:
    attainment, cost = _shown(found)
    return f"{attainment} within the objectives for {cost} GPU hours"
