"""The running controller: each target ticks in a thread of its own until it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Protocol, runtime_checkable

from structlog.typing import FilteringBoundLogger

from tuner.control.audit_store import ClaimedError, RunIdentity
from tuner.control.claim import Hold
from tuner.control.health import Pulse
from tuner.control.loop import borders, tick
from tuner.control.metrics import ControllerMetrics
from tuner.control.page import ControllerPage
from tuner.control.watching import NumberedAudit, WatchedAudit, WatchedCluster
from tuner.core.clock import Clock
from tuner.core.decision import Guardrails, Receipt
from tuner.core.errors import InputError, PermanentError, TunerError
from tuner.core.history import History
from tuner.core.protocols import Cluster, Policy
from tuner.engines.engine import Capability

SHOWN_DIGITS = 12
"""Of a digest in a log line."""
GRACE_S = 50.0
"""Longest wait for the targets to leave, s: a tick and a release in which every call times out.
The manifests give the pod 60 s (terminationGracePeriodSeconds)."""
EXIT_DONE = 0
EXIT_FAILED = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunningCluster(Cluster, Protocol):
    """A cluster that can be left."""

    def release(self) -> Receipt:
        """Back to its own rule; the number of replicas stays."""

    def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class ProbedCluster(Protocol):
    """A cluster that can tell what may be moved on it."""

    def capabilities(self) -> Sequence[Capability]:
        """Each knob, whether it can be moved there, and why; empty while no replica is ready."""


@dataclass(frozen=True)
class TargetPlan:
    """All that a target's loop needs."""

    name: str
    mode: str
    identity: RunIdentity
    every_s: float
    """Seconds between two ticks, on `clock`."""
    clock: Clock
    policy: Policy
    fallback: Policy
    guardrails: Guardrails
    history: History
    """What a restarted controller goes on from."""
    audit: NumberedAudit
    connect: Callable[[], RunningCluster]
    """Reaches the target; raises a TunerError where that cannot be."""
    writes: bool = False
    """False in shadow: then nothing is released either."""
    speed: float = 1.0
    """Seconds of `clock` per second of the wall."""
    demoted: Callable[[], str] = lambda: ""
    """Why nothing may act on the target any more; empty where it may. Asked before every tick that
    could write."""
    in_shadow: TargetPlan | None = None
    """What goes on where the target is demoted."""
    hold: Hold | None = None
    """The claim that must be held to write; None where something else keeps others away."""


class TargetLoop:
    """One target from start to end, in the thread that calls `run`."""

    def __init__(
        self, plan: TargetPlan, metrics: ControllerMetrics, log: FilteringBoundLogger
    ) -> None:
        self.pulse = Pulse(plan.name, plan.every_s / plan.speed, started_s=time.monotonic())
        self._metrics = metrics
        self._cluster: RunningCluster | None = None
        self._history = plan.history
        self._take(plan, log)

    def _take(self, plan: TargetPlan, log: FilteringBoundLogger) -> None:
        """Go on by this plan."""
        identity = plan.identity
        self.plan = plan
        self._log = log.bind(
            target=plan.name,
            mode=plan.mode,
            policy=identity.policy,
            policy_digest=(identity.policy_digest or "")[:SHOWN_DIGITS],
        )
        self._audit = WatchedAudit(plan.audit, self.pulse, self._metrics, self._log)
        self._metrics.starts(plan.name, plan.mode, identity)

    def connect(self) -> None:
        """Reach the target, if it is not reached yet.

        Raises:
            InputError: the controller may not, or cannot ever, run here as it is configured.
            TunerError: not now.
        """
        if self._cluster is None:
            self._cluster = cluster = self.plan.connect()
            self._guarded(lambda: self._tell_capabilities(cluster), "capability probe")

    def _tell_capabilities(self, cluster: RunningCluster) -> None:
        if not isinstance(cluster, ProbedCluster):
            return
        for found in cluster.capabilities():
            self._log.info(
                "capability",
                knob=found.knob,
                movable=found.movable,
                applied=found.applied,
                route=found.route,
                why=found.sentence,
            )

    def run(self, stop: threading.Event, ticks: int | None = None) -> None:
        """Tick until `stop`, or so many times, then leave the target with its own rule.

        A tick that is under way when `stop` is set is finished first. One that fails is told,
        counted and followed by the next, with the history there was before it.
        """
        for number, _ in enumerate(borders(self.plan.clock, self.plan.every_s), start=1):
            if stop.is_set():
                break
            self._guarded(self._tick, "tick")
            if number == ticks:
                break
        self._leave()
        self.pulse.ended = True

    def _tick(self) -> None:
        if self.plan.writes and (why := self.plan.demoted()):
            self._step_back(why)
        try:
            self._decide()
        except ClaimedError as error:
            self._lose_claim(str(error))

    def _decide(self) -> None:
        if self._cluster is None and self.plan.hold is not None:
            self.plan.hold.take()  # reaching it may take hours, in which no intent renews it
        self.connect()
        if self._cluster is None:
            raise RuntimeError("a connection was made and is not there")
        plan, before = self.plan, self._history
        self._history = tick(
            WatchedCluster(self._cluster, plan.name, self._metrics),
            before,
            plan.policy,
            plan.guardrails,
            plan.fallback,
            self._audit,
            plan.mode,
        )
        if before.observations and self._history.now.at_s < before.now.at_s:
            back_s = round(before.now.at_s - self._history.now.at_s, 1)
            self._log.warning("history dropped", why="the clock was set back", back_s=back_s)

    def _step_back(self, why: str) -> None:
        """Give the target back to its own rule and go on in shadow.

        Raises:
            PermanentError: there is no plan to go on by; nothing is reached any more.
        """
        self._log.warning("demoted", why=why)
        self._leave()
        if self.plan.hold is not None:
            self._guarded(self.plan.hold.give_up, "giving up the claim")
        if self.plan.in_shadow is None:
            raise PermanentError(f"{self.plan.name} was demoted: {why}; nothing acts on it")
        self._take(self.plan.in_shadow, self._log)

    def _lose_claim(self, why: str) -> None:
        """Go on in shadow and leave the target as it is: it is another's, who writes to it."""
        self._tell_loss(why)
        self.close()
        if self.plan.in_shadow is not None:
            self._take(self.plan.in_shadow, self._log)

    def _tell_loss(self, why: str) -> None:
        self._metrics.claims_lost.labels(self.plan.name).inc()
        self._log.warning("claim lost", why=f"{why}; nothing is written here any more")

    def _leave(self) -> None:
        cluster = self._cluster
        if cluster is not None and self.plan.writes:
            if self.plan.hold is not None and (why := self.plan.hold.lost()):
                self._tell_loss(why)
            else:
                self._guarded(lambda: self._release(cluster), "release")
        self.close()

    def close(self) -> None:
        """Let go of the target, which stays as it is."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            self._guarded(cluster.close, "close")

    def _release(self, cluster: RunningCluster) -> None:
        receipt = cluster.release()
        self._log.info("released", settings=dict(receipt.applied))
        for fault in receipt.faults:
            self._log.warning("not released", **fault.to_json())

    def _guarded(self, work: Callable[[], None], what: str) -> None:
        """The outermost place of this thread: nothing that goes wrong may end the loop."""
        started_s = time.perf_counter()
        try:
            work()
        except TunerError as error:
            self._failed(what, str(error), None)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            self._failed(what, told, "".join(traceback.format_exception(error)))
        finally:
            if what == "tick":
                self._metrics.ticks.labels(self.plan.name).observe(time.perf_counter() - started_s)

    def _failed(self, what: str, told: str, trace: str | None) -> None:
        self.pulse.failure = told
        if what == "tick":
            self._metrics.tick_failures.labels(self.plan.name).inc()
        self._log.error(f"{what} failed", why=told, traceback=trace)


class Service:
    """Several targets in one process; a slow or failing one never delays another.

    Args:
        loops: the targets.
        stop: the event that their clocks sleep on.
        page: answers while the targets run; None: nobody asks.
        log: for what is about no single target.
        ticks: so many of each target, then the end; None: until told to stop.
        grace_s: longest wait for the targets to leave.
    """

    def __init__(
        self,
        loops: Sequence[TargetLoop],
        stop: threading.Event,
        *,
        page: ControllerPage | None,
        log: FilteringBoundLogger,
        ticks: int | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._loops = loops
        self._stop = stop
        self._page = page
        self._log = log
        self._ticks = ticks
        self._grace_s = grace_s
        # Safe to put into from a signal handler, which setting an Event is not.
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._hears = False
        self._begun: list[TargetLoop] = []

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Hear SIGTERM and SIGINT in this block; `run` does so by itself.

        Around `connect` as well: the first process of a container does not get a signal for which
        it has no handler, and would begin to act after it was told to go.
        """
        if self._hears:
            yield
            return
        self._hears = True
        try:
            with _signals(self._events):
                yield
        finally:
            self._hears = False

    def connect(self) -> None:
        """Reach every target at once.

        A target that does not answer now is tried again at each of its ticks.

        Raises:
            InputError: one line for each target on which the controller may not run.
        """
        with ThreadPoolExecutor(max(1, len(self._loops))) as pool:
            reached = [(loop, pool.submit(loop.connect)) for loop in self._loops]
        refused = []
        for loop, future in reached:
            error = future.exception()
            if isinstance(error, InputError):
                refused.append(f"target {loop.plan.name}: {error}")
            elif error is not None:
                self._log.warning("not reached yet", target=loop.plan.name, why=str(error))
        if refused:
            for loop in self._loops:
                loop.close()
            raise InputError("\n".join(refused))

    def run(self) -> int:
        """Run until a signal or the last tick; the exit code.

        SIGTERM or SIGINT lets each target finish its tick and leave; a second one ends the process
        at once. One that was heard before lets none begin.
        """
        if self._page is not None:
            self._page.start()
        if not self._events.empty():
            self._stop.set()
        with self.hearing():
            for loop in self._loops:
                self._begun.append(loop)
                threading.Thread(
                    target=self._run, args=(loop,), name=loop.plan.name, daemon=True
                ).start()
            left = self._leave(self._wait())
        self.close()
        return self._exit_code(left)

    def close(self) -> None:
        """Give the page's address back, whether it ran or not."""
        if self._page is not None:
            self._page.close()

    def still_running(self) -> list[str]:
        """Targets whose loop began and has not ended."""
        return [loop.plan.name for loop in self._begun if not loop.pulse.ended]

    def stop(self) -> None:
        """As a signal would."""
        self._events.put(_Event(signal.SIGTERM))

    def _run(self, loop: TargetLoop) -> None:
        try:
            loop.run(self._stop, self._ticks)
        finally:
            self._events.put(_Event(ended=loop))

    def _wait(self) -> list[TargetLoop]:
        """Until a signal comes or every target has ended; the targets that still run."""
        running = list(self._loops)
        while running:
            event = self._events.get()
            if event.ended is None:
                self._log.info("stopping", signal=signal.Signals(event.signal).name)
                break
            running.remove(event.ended)
        return running

    def _leave(self, running: list[TargetLoop]) -> list[TargetLoop]:
        """Tell the targets to stop and wait for them; those that did not in time."""
        self._stop.set()
        deadline_s = time.monotonic() + self._grace_s
        while running:
            try:
                event = self._events.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except Empty:
                break
            if event.ended is not None:
                running.remove(event.ended)
        return running

    def _exit_code(self, left: Sequence[TargetLoop]) -> int:
        for loop in left:
            self._log.error(
                "not left in time",
                target=loop.plan.name,
                why=f"its tick did not end within {self._grace_s:g} s; hot values end by "
                "themselves after their time to live, replicas stay",
            )
        silent = [loop.plan.name for loop in self._loops if loop.pulse.decided_s is None]
        if self._ticks is not None and silent:
            self._log.error("no decision", targets=silent)
        broken = any(not loop.pulse.ended for loop in self._loops)
        self._log.info("stopped")
        return EXIT_FAILED if broken or (self._ticks is not None and silent) else EXIT_DONE


@dataclass(frozen=True)
class _Event:
    """A signal, or the end of a target's loop."""

    signal: int = 0
    ended: TargetLoop | None = None


@contextmanager
def _signals(events: SimpleQueue[_Event]) -> Iterator[None]:
    """Put the first signal among the events; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        if heard:
            os._exit(128 + number)
        heard.append(number)
        events.put(_Event(number))

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
