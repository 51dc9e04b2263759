"""Runs spread over processes: the same results in the same order for any number of them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from tuner.core.errors import InputError

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

Progress = Callable[[float], None]
"""Told the share (0-1) that is done."""
Watch = Callable[[str, float], None]
"""Told a task's label and the share (0-1) of it that is done; called from one thread at a time."""


class Task(Protocol[R_co]):
    """One piece of work; can be pickled."""

    @property
    def label(self) -> str:
        """Unlike any other task's."""

    def __call__(self, progress: Progress) -> R_co: ...


def silent(label: str, share: float) -> None:
    """A Watch that nobody reads."""


POLL_S = 0.25
"""How often the progress of other processes is read: as often as a terminal is redrawn."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fan_out(tasks: Sequence[Task[R]], jobs: int, watch: Watch = silent) -> list[R]:
    """Results of the tasks in their order.

    With one job the tasks run here; with more, in processes of joblib's current backend.

    Raises:
        InputError: more than one job, and joblib is not installed.
    """
    if jobs <= 1 or len(tasks) <= 1:
        return [_run_here(task, watch) for task in tasks]
    try:
        from joblib import Parallel, delayed
    except ModuleNotFoundError as error:
        raise InputError(
            "joblib is not installed; install deepseek-tuner[report], or use --jobs 1"
        ) from error
    for task in tasks:
        watch(task.label, 0.0)
    with _board(tasks, watch) as board:
        results: list[R] = Parallel(n_jobs=min(jobs, len(tasks)))(
            delayed(_run_there)(task, _Slot(board, index)) for index, task in enumerate(tasks)
        )
        # Another machine has no board to write to; what came back is done all the same.
        board.write_bytes(np.ones(len(tasks)).tobytes())
    return results


def _run_here(task: Task[R], watch: Watch) -> R:
    watch(task.label, 0.0)
    result = task(lambda share: watch(task.label, share))
    watch(task.label, 1.0)
    return result


def _run_there(task: Task[R], slot: _Slot) -> R:
    result = task(slot)
    slot(1.0)
    return result


@dataclass(frozen=True)
class _Slot:
    """A task's place on the board: a file of one share per task."""

    board: Path
    index: int

    def __call__(self, share: float) -> None:
        try:
            with self.board.open("r+b") as file:
                file.seek(8 * self.index)
                file.write(np.float64(share).tobytes())
        except FileNotFoundError:
            # A backend may run the task on another machine, which has no such file: the work
            # matters, its progress bar does not.
            return


@contextmanager
def _board(tasks: Sequence[Task[R]], watch: Watch) -> Iterator[Path]:
    """A board that a thread reads out to `watch` until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        board = Path(folder) / "progress"
        board.write_bytes(np.zeros(len(tasks)).tobytes())
        told = np.zeros(len(tasks))
        done = threading.Event()

        def tell() -> None:
            shares = np.frombuffer(board.read_bytes(), dtype=np.float64)
            for index in np.flatnonzero(shares != told).tolist():
                watch(tasks[index].label, float(shares[index]))
            told[:] = shares

        def follow() -> None:
            while not done.wait(POLL_S):
                tell()

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        try:
            yield board
        finally:
            done.set()
            reader.join()
        tell()
