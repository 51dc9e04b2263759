"""What went wrong at the edges, as data: never a traceback, always a reason and a sentence.

Everything that talks to the outside (metrics sources, engines, Kubernetes) turns its troubles into
a `Fault`. A fault of reading stands in the observation, a fault of writing in the receipt; both
reach the audit log, the metrics (by reason) and the person who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tuner.core.errors import TunerError


class FaultReason(StrEnum):
    """Kinds of trouble. The names are stable: audit log, metric label, alert."""

    UNREACHABLE = "Unreachable"
    """Nothing answered; what was sent was not received."""
    TIMED_OUT = "TimedOut"
    """A read got no answer in time."""
    OUTCOME_UNKNOWN = "OutcomeUnknown"
    """A write got no answer and reading back did not settle it: never repeated blindly."""
    BAD_ANSWER = "BadAnswer"
    """An answer that is not what the protocol says."""
    NO_SERIES = "NoSeries"
    """The metrics source answered, and has nothing under that name."""
    NOT_READY = "NotReady"
    """Starting, paused, asleep or draining."""
    UNAUTHORIZED = "Unauthorized"
    FORBIDDEN = "Forbidden"
    NOT_FOUND = "NotFound"
    CONFLICT = "Conflict"
    """Someone else wrote in between: read, decide again."""
    INVALID = "Invalid"
    """The other side says that what was asked is wrong."""
    RATE_LIMITED = "RateLimited"
    SERVER_ERROR = "ServerError"
    REFUSED = "Refused"
    """Understood, possible, and not done."""
    NOT_MOVABLE = "NotMovable"
    """This engine has no way to move that knob while it runs."""
    SHADOW = "Shadow"
    """Shadow mode: nothing is ever written."""


@dataclass(frozen=True)
class Fault:
    """One trouble at one place."""

    where: str
    """Who was talked to: `prometheus`, `kubernetes`, the name of a replica."""
    reason: FaultReason
    sentence: str
    """The thing, the value found, the value expected, the next move."""
    knob: str | None = None
    """The knob that was not moved, if it was a write."""

    def to_json(self) -> dict[str, object]:
        return {
            "where": self.where,
            "reason": str(self.reason),
            "sentence": self.sentence,
            "knob": self.knob,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fault:
        return cls(**{**data, "reason": FaultReason(data["reason"])})


class FaultError(TunerError):
    """A fault on its way up to whoever can go on without the answer.

    Args:
        fault: what happened.
        retry_after_s: what the other side asked to wait, if it did.
    """

    def __init__(self, fault: Fault, *, retry_after_s: float | None = None) -> None:
        super().__init__(fault.sentence)
        self.fault = fault
        self.retry_after_s = retry_after_s
