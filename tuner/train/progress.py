"""What a person sees while a policy is trained."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tuner.data.bundles import Score
from tuner.train.sb3_vec_env import Tally


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} steps/s" if task.speed else "")


class Display:
    """A bar with speed, reward, attainment and cost, and a line per event above it."""

    def __init__(self, console: Console, *, total: int, done: int, tick_s: float) -> None:
        self._console = console
        self._tick_s = tick_s
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            _Speed(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            # A log is told in lines; a bar there would be one more of them, and a broken one.
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, figures="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def doing(self, what: str) -> None:
        """Name the present stage."""
        self._progress.update(self._task, description=what)

    def trained(self, steps: int, tally: Tally) -> None:
        """Steps done in all, and what the present rollout brought so far."""
        self._progress.update(
            self._task, completed=steps, figures=rollout_figures(tally, self._tick_s)
        )

    def line(self, text: str) -> None:
        """A line that stays."""
        self._progress.print(text, highlight=False)


def rollout_figures(tally: Tally, tick_s: float) -> str:
    """Attainment and cost of some steps: what fits beside a bar in 80 columns."""
    if not tally.steps:
        return ""
    return f"{tally.attainment:.2%} met, {tally.replica_s / (tally.steps * tick_s):.1f} replicas"


def score_figures(score: Score) -> str:
    """A score in words."""
    return (
        f"reward {score.reward:.4f}, attainment {score.attainment:.2%}, "
        f"replicas {score.replicas:.2f}"
    )
