"""The installed commands, run as a user runs them: in processes of their own.

Whoever starts one ends it: `running` and `tuner` do so whatever happens in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180.0
"""Longest wait for a command's end."""
SOON_S = 120.0
"""Longest wait for anything else that should come at once; a few seconds is what it takes."""
LAST_CHARS = 3000
"""Of each output of a command that a failure shows."""


def tuner(*arguments: object, cwd: Path, timeout_s: float = DEADLINE_S) -> Finished:
    """Run one command to its end."""
    process = Running(arguments, cwd=cwd)
    return process.wait(timeout_s)


class Finished:
    """What a command left: exit status, None while it runs, and all it said."""

    def __init__(self, name: str, status: int | None, out: str, err: str) -> None:
        self.name, self.status, self.out, self.err = name, status, out, err

    def json(self) -> Any:
        assert self.status == 0, self
        return json.loads(self.out)

    def __repr__(self) -> str:
        how = "still runs" if self.status is None else f"exit {self.status}"
        said = "\n".join(text[-LAST_CHARS:].strip() for text in (self.out, self.err))
        return f"tuner {self.name}: {how}\n{said.strip() or '(said nothing)'}"


class Running:
    """One command under way; its output goes to files, so that no pipe fills up."""

    def __init__(self, arguments: Sequence[object], *, cwd: Path) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.name = str(arguments[0])
        stem = f"{self.name}-{time.monotonic_ns()}"
        self._out, self._err = cwd / f"{stem}.out", cwd / f"{stem}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tuner.cli", *map(str, arguments)],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"},
            )

    def said(self) -> Finished:
        status = self.process.poll()
        return Finished(self.name, status, self._out.read_text(), self._err.read_text())

    def wait(self, timeout_s: float = DEADLINE_S) -> Finished:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"not ended after {timeout_s:g} s: {self.said()}") from None
        return self.said()

    def stop(self, timeout_s: float = DEADLINE_S) -> Finished:
        """SIGTERM, as Kubernetes and systemd do."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)


@contextmanager
def running(*arguments: object, cwd: Path) -> Iterator[Running]:
    """A command that runs as long as the block; ended with SIGTERM if it has not ended by then."""
    process = Running(arguments, cwd=cwd)
    try:
        yield process
    finally:
        process.stop()


def reach(condition: Callable[[], T], what: str, *of: Running, timeout_s: float = SOON_S) -> T:
    """Poll until it is true, with a deadline; how long it takes is nobody's promise.

    Args:
        of: commands that must run meanwhile; a failure shows what each has said.

    Returns:
        What the condition gave at last.
    """
    pause = threading.Event()
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        over = [one.name for one in of if one.process.poll() is not None]
        if over or time.monotonic() > end_s:
            why = f"{', '.join(over)} ended" if over else f"not within {timeout_s:g} s"
            raise AssertionError("\n".join([f"{what}: {why}", *(repr(one.said()) for one in of)]))
        pause.wait(0.1)
    return found
