"""Finished work kept in a folder: what is there is not done again.

A cell is a folder named by the digest of everything that its content depends on. It is written
beside its place and moved there in one rename, by whoever did the work, so that a comparison that
is killed loses what was under way and nothing else. Files are JSON and Parquet; nothing in a cell
is ever unpickled.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from experiments.fanout import KEPT, Progress, Task, Watch, fan_out, silent
from tuner.core.errors import InputError
from tuner.data.bundles import digest_of

FORMAT = 2
"""Of the cells, and of what a run gives: raised when the same inputs come to give other numbers, so
that cells of before are left alone."""

Files = Mapping[str, bytes]
R = TypeVar("R")
K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)

_TOKEN = ".token"
_BROKEN = (OSError, ValueError, KeyError, TypeError)
"""What reading a damaged cell raises; Arrow's errors are ValueErrors."""


class CellTask(Task[Files], Protocol[K_co]):
    """Work whose result can be kept: calling it gives the files of its cell."""

    def key(self) -> Mapping[str, object]:
        """Everything that the files depend on, as plain values."""

    def unpack(self, folder: Path) -> K_co:
        """The result, from the files.

        Raises:
            OSError, ValueError, KeyError, TypeError: a file is not there or not whole.
        """


@contextmanager
def kept(folder: Path, *, keep: bool, option: str = "--cells") -> Iterator[Cells]:
    """Cells that stay where the block is interrupted, and go once it ends well.

    Args:
        keep: whether they stay in any case.
        option: that named the folder, or what it lies beside.
    """
    cells = Cells(folder, option)
    try:
        yield cells
        if not keep:
            cells.remove()
    finally:
        cells.leave()


class Cells:
    """A folder of finished cells; it is made where it does not exist.

    Raises:
        InputError: it cannot be made or written.
    """

    def __init__(self, folder: Path, option: str = "--cells") -> None:
        self.folder = folder
        self._ran: set[str] = set()
        self._found: set[str] = set()
        self._used: set[str] = set()
        self._made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            token = secrets.token_hex(16)
            (folder / _TOKEN).write_text(token)
        except OSError as error:
            raise InputError(
                f"{folder}: finished runs cannot be kept there ({error.strerror}); "
                f"name another folder with {option}"
            ) from error
        self._place = _Place(folder, token)

    @property
    def ran(self) -> int:
        """Cells done so far."""
        return len(self._ran)

    @property
    def found(self) -> int:
        """Cells used so far that were there before this began."""
        return len(self._found)

    def run(self, tasks: Sequence[CellTask[K]], jobs: int, watch: Watch = silent) -> list[K]:
        """Results of the tasks in their order; what is kept is read, what is missing is done.

        Fresh results are read from their cells too, so that both ways give the same bits.
        """
        names = [digest_of({"format": FORMAT, **task.key()}) for task in tasks]
        self._used.update(names)
        results: dict[int, K] = {}
        missing: dict[str, CellTask[K]] = {}
        for place, (name, task) in enumerate(zip(names, tasks, strict=True)):
            if name in missing:
                continue
            try:
                results[place] = task.unpack(self.folder / name)
            except _BROKEN:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                missing[name] = task
            else:
                if name not in self._ran:
                    self._found.add(name)
                watch(task.label, KEPT)
        keep = [_Keep(task, name, self._place) for name, task in missing.items()]
        for name, files in zip(missing, fan_out(keep, jobs, watch), strict=True):
            self._ran.add(name)
            if files is not None:
                self._place.write(name, files)
        for place, (name, task) in enumerate(zip(names, tasks, strict=True)):
            if place not in results:
                results[place] = task.unpack(self.folder / name)
        return [results[place] for place in range(len(tasks))]

    def remove(self) -> None:
        """Removes what was used here; cells of others stay."""
        for name in self._used:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def leave(self) -> None:
        """Removes the folder where no cell is in it."""
        left = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        if left:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self._made[1:]:
            with suppress(OSError):  # something else is in it by now
                parent.rmdir()


@dataclass(frozen=True)
class _Place:
    """A folder of cells, as seen from any process."""

    folder: Path
    token: str

    def is_here(self) -> bool:
        """Whether this process sees the very folder: another machine may have one of its name."""
        try:
            return (self.folder / _TOKEN).read_text() == self.token
        except OSError:
            return False

    def write(self, name: str, files: Files) -> None:
        part = self.folder / f".{name}.{os.getpid()}.part"
        part.mkdir(exist_ok=True)
        for file, content in files.items():
            (part / file).write_bytes(content)
        with suppress(OSError):  # somebody else has done the same work
            os.rename(part, self.folder / name)
        shutil.rmtree(part, ignore_errors=True)


@dataclass(frozen=True)
class _Keep(Task[Files | None]):
    """A task that leaves its files in the folder; only from a machine without it, they travel."""

    task: Task[Files]
    name: str
    place: _Place

    @property
    def label(self) -> str:
        return self.task.label

    def __call__(self, progress: Progress) -> Files | None:
        files = self.task(progress)
        if not self.place.is_here():
            return files
        self.place.write(self.name, files)
        return None
