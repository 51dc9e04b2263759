"""Log lines for people: JSON where a machine collects them, key=value at a terminal."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

PERSON_TIME = "%H:%M:%SZ"
"""To the second, in UTC as everywhere; the day is in the audit log."""
FOR_MACHINES = frozenset({"at_s", "policy_digest"})
"""Keys that no person reads in a line: the overview has the digest, the line its own time."""


def logger_to(stream: TextIO, **facts: object) -> FilteringBoundLogger:
    """A logger that writes one line per event.

    At a terminal it is read by a person (no colours where NO_COLOR is set), anywhere else by a
    machine: one JSON object a line, absent values null. A person's line leaves out what the
    overview at the start has said and what only a program compares.

    Args:
        stream: where to write.
        facts: stand in every line.
    """
    person = stream.isatty()
    renderer: structlog.typing.Processor
    if person:
        renderer = structlog.dev.ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"),
            exception_formatter=structlog.dev.plain_traceback,
            sort_keys=False,
            pad_event_to=0,
            pad_level=False,
            timestamp_key="time",
        )
    else:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        Lines(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt=PERSON_TIME if person else "iso", utc=True, key="time"
            ),
            _for_a_person if person else _head_first,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("INFO"),
    )
    return logger.bind(**facts)


class Lines:
    """Writes lines, and goes on where they cannot be written.

    A reader that went away or a full disk must not end a controller: what has to be kept is in the
    audit log.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._turn = threading.Lock()

    def msg(self, message: str) -> None:
        with self._turn, suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(message + "\n")
            self._stream.flush()

    log = debug = info = warning = error = critical = msg


def _head_first(_: WrappedLogger, __: str, event: EventDict) -> Mapping[str, object]:
    """When, how bad and what, then the rest as it was said."""
    return {**{key: event[key] for key in ("time", "level", "event")}, **event}


def _for_a_person(_: WrappedLogger, __: str, event: EventDict) -> Mapping[str, object]:
    """A person needs no keys that say nothing, or nothing new."""
    return {
        key: value
        for key, value in event.items()
        if key not in FOR_MACHINES and value not in (None, "", {}, [])
    }
