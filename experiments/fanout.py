"""Runs spread over processes: the same results in the same order for any number of them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import InputError

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Progress(Protocol):
    """Told how far a task is."""

    def __call__(self, share: float, *found: float) -> None:
        """The share (0-1) that is done, and at the end up to FOUND figures of what came of it."""


class Watch(Protocol):
    """Told how far each task is; called from one thread at a time."""

    def __call__(self, label: str, share: float, *found: float) -> None:
        """A task's label, and what it said of itself; a share of KEPT if it was done before."""


KEPT = 2.0
"""Share of a task of which nothing is left to do, and nothing was done now."""
FOUND = 2
"""Figures that a task can tell a watch."""


class Task(Protocol[R_co]):
    """One piece of work; can be pickled."""

    @property
    def label(self) -> str:
        """Unlike any other task's."""

    def __call__(self, progress: Progress) -> R_co: ...


def silent(label: str, share: float, *found: float) -> None:
    """A Watch that nobody reads."""


POLL_S = 0.25
"""How often the progress of other processes is read: as often as a terminal is redrawn."""


ORPHAN_S = 1.0
"""How often a worker looks whether it still has a parent."""
EXIT_ORPHANED = 1


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
        from joblib.parallel import LokyBackend, get_active_backend
    except ModuleNotFoundError as error:
        raise InputError(
            "joblib is not installed; install deepseek-tuner[report], or use --jobs 1"
        ) from error
    for task in tasks:
        watch(task.label, 0.0)
    with _board(tasks, watch) as board:
        # A worker of a cluster belongs to that cluster, one of this machine to this process.
        ours = isinstance(get_active_backend()[0], LokyBackend)
        leave = {"initializer": _leave_with, "initargs": (os.getpid(),)} if ours else {}
        results: list[R] = Parallel(n_jobs=min(jobs, len(tasks)), **leave)(
            delayed(_run_there)(task, _Slot(board, index)) for index, task in enumerate(tasks)
        )
        # Another machine has no board to write to; what came back is done all the same.
        rows = _rows(board).copy()
        rows[:, 0] = 1.0
        board.write_bytes(rows.tobytes())
    return results


def _run_here(task: Task[R], watch: Watch) -> R:
    watch(task.label, 0.0)
    return _followed(task, partial(watch, task.label))


def _run_there(task: Task[R], slot: _Slot) -> R:
    return _followed(task, slot)


def _leave_with(parent: int) -> None:
    """End this process when the one that started it is gone: killed, it can tell nobody, and a
    worker that waits for its next task would wait for ever."""

    def watch() -> None:
        never = threading.Event()
        while os.getppid() == parent:
            never.wait(ORPHAN_S)
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


def _followed(task: Task[R], tell: Progress) -> R:
    """The task's result; that it is done is told once, when it is."""
    last: list[float] = []

    def progress(share: float, *found: float) -> None:
        last[:] = found
        if share < 1:
            tell(share)

    result = task(progress)
    tell(1.0, *last)
    return result


@dataclass(frozen=True)
class _Slot:
    """A task's place on the board: a file of a share and FOUND figures per task, NaN for none."""

    board: Path
    index: int

    def __call__(self, share: float, *found: float) -> None:
        row = np.full(1 + FOUND, np.nan)
        row[: 1 + len(found)] = share, *found
        try:
            with self.board.open("r+b") as file:
                file.seek(row.nbytes * self.index)
                file.write(row.tobytes())
        except FileNotFoundError:
            # A backend may run the task on another machine, which has no such file: the work
            # matters, its progress bar does not.
            return


def _rows(board: Path) -> NDArray[np.float64]:
    """`(tasks, 1 + FOUND)` share and figures of each task."""
    return np.frombuffer(board.read_bytes(), dtype=np.float64).reshape(-1, 1 + FOUND)


@contextmanager
def _board(tasks: Sequence[Task[R]], watch: Watch) -> Iterator[Path]:
    """A board that a thread reads out to `watch` until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        board = Path(folder) / "progress"
        rows = np.full((len(tasks), 1 + FOUND), np.nan)
        rows[:, 0] = 0.0
        board.write_bytes(rows.tobytes())
        told = np.zeros(len(tasks))
        done = threading.Event()

        def tell() -> None:
            rows = _rows(board)
            for index in np.flatnonzero(rows[:, 0] != told).tolist():
                found = rows[index, 1:]
                watch(tasks[index].label, float(rows[index, 0]), *found[~np.isnan(found)].tolist())
            told[:] = rows[:, 0]

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
