"""Many calls at once, as one phase with an end.

A call that is not back when the phase ends is left to its own time-out; until it is back, nothing
else is asked of the same name. So a hung replica costs one thread and never holds up the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Generic, TypeVar

from tuner.core.faults import Fault, FaultError, FaultReason

T = TypeVar("T")


class Silence(Enum):
    """Why there is no answer, where there is none."""

    LATE = "late"
    """Sent; the phase ended before the answer came."""
    UNSENT = "unsent"
    """Not sent: others kept every thread busy until the phase ended."""
    BUSY = "busy"
    """Not sent: an earlier call on the same name has not come back."""


@dataclass(frozen=True)
class Phase(Generic[T]):
    """Calls that were started together."""

    futures: Mapping[str, Future[T]]
    busy: frozenset[str]
    ends_s: float
    """On the scale of `time.monotonic`."""


class FanOut:
    """Threads for the calls of one target.

    Args:
        concurrency: most calls at once, >= 1.
        name: of the threads, for whoever lists them.
    """

    def __init__(self, concurrency: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=name)
        self._running: dict[str, Future[object]] = {}

    def start(self, calls: Mapping[str, Callable[[], T]], *, timeout_s: float) -> Phase[T]:
        """Begin a phase that ends `timeout_s` from now; at most one call runs per name."""
        self._running = {n: f for n, f in self._running.items() if not f.done()}
        busy = frozenset(calls) & frozenset(self._running)
        futures = {
            name: self._threads.submit(call) for name, call in calls.items() if name not in busy
        }
        self._running.update(futures)  # type: ignore[arg-type]  # their results are never read here
        return Phase(futures, busy, monotonic() + timeout_s)

    def gather(self, phase: Phase[T]) -> dict[str, T | FaultError | Silence]:
        """One answer per name, when all have come or the phase is over."""
        wait(phase.futures.values(), timeout=max(0.0, phase.ends_s - monotonic()))
        answers: dict[str, T | FaultError | Silence] = dict.fromkeys(phase.busy, Silence.BUSY)
        for name, future in phase.futures.items():
            if future.cancel():
                answers[name] = Silence.UNSENT
            elif not future.done():
                answers[name] = Silence.LATE
            else:
                answer: T | FaultError = _answer(name, future)
                answers[name] = answer
        return answers

    def each(
        self, calls: Mapping[str, Callable[[], T]], *, timeout_s: float
    ) -> dict[str, T | FaultError | Silence]:
        """`start` and `gather` in one."""
        return self.gather(self.start(calls, timeout_s=timeout_s))

    def close(self) -> None:
        """Start nothing more. Running calls end with their own time-outs."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _answer(name: str, future: Future[T]) -> T | FaultError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, FaultError):
        return error
    # A mistake in an adapter, met by one replica's odd answer, must not stop the other replicas.
    sentence = f"{name}: {type(error).__name__}: {error}; tuner cannot handle this answer"
    return FaultError(Fault(name, FaultReason.BAD_ANSWER, sentence))
