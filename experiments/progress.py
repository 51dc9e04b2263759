"""Progress of many runs at once, on a terminal or in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from experiments.fanout import Watch


@contextmanager
def run_progress(console: Console) -> Iterator[Watch]:
    """Gives a Watch that shows a bar per running task and how many are done.

    Where the console is no terminal, a line per finished task is all a log needs.
    """
    if not console.is_terminal:
        yield lambda label, share: console.print(f"done: {label}") if share >= 1 else None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        Elapsed(),
        console=console,
        transient=True,
    ) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar per running task below a line that counts the finished ones."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0
        self._counter = progress.add_task("starting", total=None)
        self._bars: dict[str, TaskID] = {}

    def __call__(self, label: str, share: float) -> None:
        if share >= 1:
            bar = self._bars.pop(label, None)
            if bar is not None:
                self._progress.remove_task(bar)
                self._count += 1
                runs = "run" if self._count == 1 else "runs"
                self._progress.update(self._counter, description=f"{self._count} {runs} done")
            return
        if label not in self._bars:
            self._bars[label] = self._progress.add_task(label, total=1.0)
        self._progress.update(self._bars[label], completed=share)
