"""Warm-up: real requests to a replica that has just started, before it takes traffic.

A gate that opens by itself: a replica that cannot be warmed in time serves cold rather than never.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from time import monotonic

from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.engines.engine import Engine, Replica

CONCURRENCY = 4
"""Warm-up requests in flight: enough to form batches, too few to look like an attack."""

STOP_S = 0.2
"""Longest time to notice that the warm-up is to stop, s."""


@dataclass
class _Progress:
    """Shared by the threads of one warm-up."""

    left: int
    done: int = 0
    failed: int = 0
    last_failure: str = ""
    over: bool = False
    changed: Condition = field(default_factory=Condition)


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up went."""

    done: int
    """Requests that were answered to the end."""
    fault: Fault | None
    """Why the replica counts as warm although not every request was answered."""


def warm_up(
    engine: Engine,
    replica: Replica,
    requests: int,
    *,
    deadline_s: float,
    stop: Event,
    concurrency: int = CONCURRENCY,
) -> WarmUp:
    """Send so many requests, each once; come back when all have ended or the time is up.

    Requests that have not ended by the deadline are left to their own time-outs.

    Args:
        requests: 0 sends none.
        deadline_s: longest duration, s.
        stop: ends it early, without a fault.
    """
    progress = _Progress(left=requests)
    workers = min(concurrency, requests)
    for number in range(workers):
        name = f"warm-up-{replica.name}-{number}"
        Thread(target=_work, args=(engine, replica, progress), name=name, daemon=True).start()
    ends_s = monotonic() + deadline_s
    with progress.changed:
        while progress.done + progress.failed < requests and not stop.is_set():
            left_s = ends_s - monotonic()
            if left_s <= 0:
                break
            # Short waits: `stop` has no way to wake a condition.
            progress.changed.wait(min(left_s, STOP_S))
        progress.over = True
        return WarmUp(progress.done, _fault(replica, progress, requests, deadline_s, stop))


def _work(engine: Engine, replica: Replica, progress: _Progress) -> None:
    while True:
        with progress.changed:
            if progress.over or not progress.left:
                return
            progress.left -= 1
        try:
            engine.complete(replica)
            failure = ""
        except FaultError as error:
            failure = error.fault.sentence
        with progress.changed:
            progress.done += not failure
            progress.failed += bool(failure)
            progress.last_failure = failure or progress.last_failure
            progress.changed.notify_all()


def _fault(
    replica: Replica, progress: _Progress, requests: int, deadline_s: float, stop: Event
) -> Fault | None:
    if progress.done == requests or stop.is_set():
        return None
    ended = progress.done + progress.failed
    if ended < requests:
        why = f"{deadline_s:g} s were over"
        reason = FaultReason.TIMED_OUT
    else:
        why = f"the others failed, the last one so: {progress.last_failure}"
        reason = FaultReason.SERVER_ERROR
    sentence = (
        f"{replica.name} takes traffic with {progress.done} of {requests} warm-up requests "
        f"answered: {why}"
    )
    return Fault(replica.name, reason, sentence)
