"""HTTP status codes as reasons of faults, for everything that speaks HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from tuner.core.faults import FaultReason

_REASONS: Mapping[int, FaultReason] = {
    401: FaultReason.UNAUTHORIZED,
    403: FaultReason.FORBIDDEN,
    404: FaultReason.NOT_FOUND,
    409: FaultReason.CONFLICT,
    429: FaultReason.RATE_LIMITED,
}


def reason_of_status(status: int, special: Mapping[int, FaultReason] | None = None) -> FaultReason:
    """What a status that is no success says.

    Args:
        special: statuses by which this protocol means something of its own.
    """
    if special is not None and status in special:
        return special[status]
    if status < 400:
        return FaultReason.BAD_ANSWER
    rest = FaultReason.INVALID if status < 500 else FaultReason.SERVER_ERROR
    return _REASONS.get(status, rest)
