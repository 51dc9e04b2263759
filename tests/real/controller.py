"""The installed commands, run as a user runs them: in processes of their own."""

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
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180.0


def tuner(*arguments: object, cwd: Path, timeout_s: float = DEADLINE_S) -> Finished:
    """Run one command to its end."""
    process = Running(arguments, cwd=cwd)
    return process.wait(timeout_s)


class Finished:
    """What a command left: exit status and all it said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def json(self) -> Any:
        assert self.status == 0, f"exit {self.status}\n{self.out}\n{self.err}"
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit {self.status}\n{self.out}\n{self.err}"


class Running:
    """One command under way; its output goes to files, so that no pipe fills up."""

    def __init__(self, arguments: Sequence[object], *, cwd: Path) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        stem = f"{arguments[0]}-{time.monotonic_ns()}"
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
        return Finished(
            -1 if status is None else status, self._out.read_text(), self._err.read_text()
        )

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


def reach(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout_s: float = DEADLINE_S,
    of: Running | None = None,
) -> None:
    """Poll with a deadline; how long it takes is nobody's promise."""
    pause = threading.Event()
    end = time.monotonic() + timeout_s
    while not condition():
        if of is not None and of.process.poll() is not None:
            raise AssertionError(f"{what}: the command has ended: {of.said()}")
        said = "" if of is None else f": {of.said()}"
        assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s{said}"
        pause.wait(0.2)
