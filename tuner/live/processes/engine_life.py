"""The life of one engine process: start, warm-up, service, drain, end; one thread for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic

from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Engine, Replica
from tuner.live.processes import started
from tuner.live.processes.requests_inside import requests_inside
from tuner.live.processes.started import Started
from tuner.live.processes.warmup import warm_up

AGAIN_S = 5.0
"""Pause after a mistake of ours, s: it must neither spin nor be forgotten."""
REAP_S = 2.0
"""Longest wait for the last threads of a dead process, s."""


@dataclass(frozen=True)
class Patience:
    """How long each part of a life may take, s."""

    start_s: float = 600.0
    warmup_s: float = 300.0
    drain_s: float = 120.0
    stop_s: float = 30.0
    """From SIGTERM to SIGKILL: Triton alone takes 30 s to leave."""
    quiet_s: float = 3.0
    """A leaving engine must be seen empty for so long: routers need a moment to learn that it
    leaves, and requests in front of the scheduler are in no gauge."""
    poll_s: float = 0.25
    """Between two looks at the process."""


class EngineLife:
    """One process from its start, or from where a former controller left it, to its end.

    Args:
        process: it runs already.
        replica: where it answers.
        warmup_requests: sent before it counts as ready.
        changed: called with every new state, from the life's thread.
        ended: called once at the end of the process, with the fault if it was not asked to leave.
        noted: called with troubles that do not end it.
    """

    def __init__(
        self,
        process: Started,
        replica: Replica,
        engine: Engine,
        patience: Patience,
        *,
        warmup_requests: int,
        log: str,
        changed: Callable[[EngineLife], None],
        ended: Callable[[EngineLife, Fault | None], None],
        noted: Callable[[Fault], None],
    ) -> None:
        self.process = process
        self.replica = replica
        self._engine = engine
        self._patience = patience
        self._warmup_requests = warmup_requests
        self._log = log
        self._changed = changed
        self._ended = ended
        self._noted = noted
        self._served = process.state in (ReplicaState.READY, ReplicaState.DRAINING)
        self._told = False
        self._lock = Lock()
        self._called = Event()
        self._closing = Event()
        self._thread = Thread(target=self._run, name=f"engine {process.name}", daemon=True)

    @property
    def state(self) -> ReplicaState:
        return self.process.state

    def begin(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Take no more traffic, finish what is inside, end. Comes back at once."""
        with self._lock:
            self.process = self.process.with_(ReplicaState.DRAINING)
            self._called.set()

    def close(self) -> None:
        """Watch no more; the process stays as it is."""
        self._closing.set()
        self._called.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        over = False
        while not over:
            try:
                over = self._live()
            except Exception as error:  # the outermost guard: no engine may go unwatched
                sentence = (
                    f"{self.process.name}: {type(error).__name__}: {error}; tuner cannot handle "
                    f"this and tries again in {AGAIN_S:g} s"
                )
                self._noted(Fault(self.process.name, FaultReason.BAD_ANSWER, sentence))
                over = self._closing.wait(AGAIN_S)

    def _live(self) -> bool:
        """From the state it is in to its end; True when there is nothing more to do."""
        fault = None
        if self.state is not ReplicaState.DRAINING:
            fault = self._start() or self._serve()
        if self._closing.is_set():
            return True
        if fault is None and self._served and not self._drain():
            return True
        self._end()
        self._ended(self, fault)
        return True

    def _start(self) -> Fault | None:
        """Until it is ready, or is called away; the fault if it fails."""
        ends_s = monotonic() + self._patience.start_s
        if self.state is ReplicaState.READY:
            return None
        why = self._why_not()
        while why:
            if self._called.wait(self._patience.poll_s):
                return None
            if not self.process.alive:
                return self._died("before it was ready")
            if monotonic() > ends_s:
                return self._too_slow(why)
            why = self._why_not()
        self._become(ReplicaState.WARMING)
        result = warm_up(
            self._engine,
            self.replica,
            self._warmup_requests,
            deadline_s=self._patience.warmup_s,
            stop=self._called,
        )
        if result.fault is not None and self.process.alive:
            self._noted(result.fault)
        self._become(ReplicaState.READY)
        return None

    def _why_not(self) -> str:
        """Why it is not ready yet; empty if it is, which takes one real completion."""
        health = self._engine.health(self.replica)
        if not health.ready:
            return health.why or "not ready"
        try:
            self._engine.complete(self.replica)
        except FaultError as error:
            self._tell_once(error.fault.sentence)
            return error.fault.sentence
        return ""

    def _tell_once(self, why: str) -> None:
        """An engine that calls itself ready and answers nothing may do so for ever: say it now."""
        if not self._told:
            self._told = True
            name = self.process.name
            sentence = f"{name} calls itself ready and completes no request: {why}; see {self._log}"
            self._noted(Fault(name, FaultReason.NOT_READY, sentence))

    def _serve(self) -> Fault | None:
        """Until it is called away, or dies."""
        while not self._called.wait(self._patience.poll_s):
            if not self.process.alive:
                return self._died("while it served")
        return None

    def _drain(self) -> bool:
        """Until it is empty, or the time is up; False if the controller leaves meanwhile."""
        ends_s = monotonic() + self._patience.drain_s
        empty_s: float | None = None
        while self.process.alive:
            inside = requests_inside(self._engine, self.replica)
            now_s = monotonic()
            if inside != 0:
                empty_s = None
            elif empty_s is None:
                empty_s = now_s
            if empty_s is not None and now_s - empty_s >= self._patience.quiet_s:
                break
            if now_s > ends_s:
                self._noted(self._cut_off(inside))
                break
            if self._closing.wait(self._patience.poll_s):
                return False
        return True

    def _end(self) -> None:
        """Ask it to end, wait, and take away what does not follow."""
        started.terminate(self.process)
        ends_s = monotonic() + self._patience.stop_s
        # Not on `_closing`, which stays set once the controller leaves and would make this spin.
        pause = Event()
        while self._lingers() and monotonic() < ends_s:
            pause.wait(self._patience.poll_s)
        if self._lingers():
            started.kill_all(self.process)
            while self.process.alive and monotonic() < ends_s + self._patience.stop_s:
                pause.wait(self._patience.poll_s)
        started.reap(self.process, wait_s=REAP_S)

    def _lingers(self) -> bool:
        if self.process.alive:
            return True
        started.reap(self.process)
        return started.has_leftovers(self.process)

    def _become(self, state: ReplicaState) -> None:
        with self._lock:
            if self._called.is_set():
                return
            self.process = self.process.with_(state)
            self._served = state is ReplicaState.READY
        self._changed(self)

    def _died(self, when: str) -> Fault:
        how = started.reap(self.process, wait_s=REAP_S)
        sentence = f"{self.process.name} died {when} ({how}); its last words are in {self._log}"
        return Fault(self.process.name, FaultReason.UNREACHABLE, sentence)

    def _too_slow(self, why: str) -> Fault:
        sentence = (
            f"{self.process.name} was not ready after {self._patience.start_s:g} s and is stopped: "
            f"{why}; see {self._log}, or raise `start_timeout_s`"
        )
        return Fault(self.process.name, FaultReason.NOT_READY, sentence)

    def _cut_off(self, inside: int | None) -> Fault:
        count = "an unknown number of" if inside is None else inside
        sentence = (
            f"{self.process.name} still had {count} requests after {self._patience.drain_s:g} s of "
            "draining and is stopped all the same; raise `drain_timeout_s` if they take longer"
        )
        return Fault(self.process.name, FaultReason.TIMED_OUT, sentence)
