"""Processes that outlive whoever started them, and how to know them again.

A process number is used again after its owner has ended; together with the boot and the moment of
the start it is unique. Whatever does not carry the same mark is a stranger and never signalled.
Linux only: the mark comes from /proc.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

from tuner.core.observation import ReplicaState

PROC = Path("/proc")
START_TIME = 19
"""Place of the start time (clock ticks since boot) among the fields of /proc/PID/stat that follow
the command's name; proc_pid_stat(5) counts it as field 22."""
REAP_POLL_S = 0.02
UNKNOWN_END = "unknown exit status"


@dataclass(frozen=True)
class Started:
    """One engine that was started from here."""

    name: str
    pid: int
    mark: str
    """Of this very process; see `mark_of`."""
    port: int
    control_port: int
    metrics_port: int
    asked_s: float
    """Unix s at which it was asked for."""
    state: ReplicaState

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Started:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: if the data is not what `to_json` gives.
        """
        return cls(**{**data, "state": ReplicaState(data["state"])})

    def with_(self, state: ReplicaState) -> Started:
        return replace(self, state=state)

    @property
    def alive(self) -> bool:
        """Whether this process, and not a later one with its number, still runs."""
        return mark_of(self.pid) == self.mark


def mark_of(pid: int) -> str | None:
    """Boot and start time of a running process; None where there is none, or only its remains."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else f"{boot}:{fields[START_TIME]}"


def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Start a process in a session of its own, so that no signal meant for us reaches it.

    Args:
        environment: all of it.
        log: takes what it prints; appended to.

    Returns:
        Its number.
    Raises:
        OSError: if it cannot be started.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawnp(
        command[0],
        list(command),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def terminate(process: Started) -> None:
    """Ask it to end, if it is still this process."""
    if process.alive:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGTERM)


def kill_all(process: Started) -> None:
    """End it and what it left behind in its session, at once."""
    if process.alive or has_leftovers(process):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def has_leftovers(process: Started) -> bool:
    """Whether the process is gone and children of it are not.

    While a group has a member, its number is not given to another process; so a group under a
    number that nobody carries is still ours.
    """
    if (PROC / str(process.pid)).exists():
        return False
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    return True


def reap(process: Started, *, wait_s: float = 0.0) -> str:
    """How it ended, in words; takes its remains away where it is a child of ours.

    Args:
        wait_s: longest wait for its last threads: the kernel gives nothing out before they are
            gone, although the process counts as dead already.
    """
    pause, ends_s = Event(), monotonic() + wait_s
    try:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        while not pid and monotonic() < ends_s:
            pause.wait(REAP_POLL_S)
            pid, status = os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return UNKNOWN_END
    if not pid:
        return UNKNOWN_END
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
