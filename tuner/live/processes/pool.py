"""Replicas that are engine processes on this host."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from time import monotonic
from typing import IO, Any, Literal

from tuner.config import ProcessesConfig
from tuner.core.clock import Clock
from tuner.core.errors import ConfigError, InputError, TunerError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.data.files import replacing
from tuner.engines.engine import Engine, Health, Replica
from tuner.live.pool import Member, PoolState
from tuner.live.processes.engine_life import EngineLife, Patience
from tuner.live.processes.health_watch import HealthWatch
from tuner.live.processes.started import PROC, Started, mark_of, spawn

SCHEMA = "tuner.processes/1"
WHERE = "processes"
LOOK_S = 1.0
"""Longest wait of a look for the engines' health, s; what comes later counts at the next look."""
CHECKS_AT_ONCE = 8
FIRST_RETRY_S = 10.0
LAST_RETRY_S = 300.0
"""Wait before an engine that failed is started anew: doubling, in these bounds, as Kubernetes does
with a container that crashes."""
JOIN_S = 1.0
"""How long closing waits for the threads, s; they hold nothing that must be put in order."""


@dataclass(frozen=True)
class _Book:
    """What outlives the controller."""

    processes: tuple[Started, ...] = ()
    wanted: int = 0
    """Engines that are to run beside the configured endpoints."""
    version: int = 0
    """Grows with every change of `wanted`."""
    warmup_requests: int = 0


class ProcessPool:
    """Engines that somebody else started, which are never stopped, and more that are started here.

    What is started lives in a session of its own and goes on when the controller ends; the next
    controller finds it in `state_dir` and goes on with it. An engine that dies is started anew, as
    long as it is wanted, with growing pauses.

    Until `check(writes=True)` nothing is started, stopped or written.
    """

    def __init__(
        self,
        config: ProcessesConfig,
        engine: Engine,
        *,
        clock: Clock,
        model: str = "",
        patience: Patience | None = None,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._config = config
        self._engine = engine
        self._clock = clock
        self._model = model
        self._patience = patience or Patience(
            start_s=config.start_timeout_s,
            warmup_s=config.warmup_timeout_s,
            drain_s=config.drain_timeout_s,
        )
        self._first_retry_s = first_retry_s
        self._folder = Path(config.state_dir)
        self._health = HealthWatch(engine, CHECKS_AT_ONCE)
        self._since_s = clock.now_s()
        self._lock = RLock()
        self._writes = False
        self._claim: IO[str] | None = None
        self._book = _Book()
        self._lives: dict[str, EngineLife] = {}
        self._unwell: frozenset[str] = frozenset()
        self._published: tuple[str, ...] | None = None
        self._faults: list[Fault] = []
        self._failures = 0
        self._retry_at_s = 0.0

    # Before the start

    def check(self, *, writes: bool) -> None:
        """Claim the state folder and go on with what a former controller left, if it may write.

        Raises:
            ConfigError: no endpoint and no command; a command that cannot be run or has no place
                for its port; a folder that cannot be written or belongs to another controller.
        """
        if not self._config.endpoints and not self._config.command:
            raise ConfigError("processes: neither endpoints nor a command: there is no replica")
        if not writes or self._writes:
            return
        file = self._config.endpoints_file
        if file is not None and not Path(file).parent.is_dir():
            raise ConfigError(
                f"processes.endpoints_file: folder {Path(file).parent} does not exist; create it"
            )
        if self._config.command:
            self._check_command()
            self._claim_folder()
        with self._lock:
            self._book = self._read_book(ConfigError)
            self._writes = True
            for process in self._book.processes:
                self._adopt(process)
            self._save()

    def _check_command(self) -> None:
        program = self._config.command[0]
        if shutil.which(program) is None:
            raise ConfigError(f"processes.command: '{program}' is not a program on this host")
        if not any("{port}" in word for word in self._words()):
            raise ConfigError(
                "processes.command: nothing says {port}, so every engine would take the same one; "
                "add it where the command takes its port"
            )
        if not (PROC / "self/stat").exists():
            raise ConfigError("processes.command: starting engines needs Linux's /proc")

    def _words(self) -> tuple[str, ...]:
        return (*self._config.command, *self._config.environment.values())

    def _claim_folder(self) -> None:
        """One controller per folder: a lock that ends with its holder."""
        path = self._folder / "lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                claim = stack.enter_context(path.open("a", encoding="utf-8"))
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stack.pop_all()
        except BlockingIOError:
            raise ConfigError(
                f"processes.state_dir: another controller works with {self._folder}; stop it, or "
                "name another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"processes.state_dir: {self._folder} cannot be written ({error.strerror}); name "
                "another folder"
            ) from None
        self._claim = claim

    # Reading

    def look(self) -> PoolState:
        """The replicas now. Waits for slow engines no longer than LOOK_S."""
        with self._lock:
            if not self._writes:
                self._book = self._read_book(_unreadable)
            started = self._processes()
        places = {e.name: self._endpoint(e.name) for e in self._config.endpoints}
        places |= {p.name: self._place(p) for p in started if p.state is ReplicaState.READY}
        health = self._health.look(places, wait_s=LOOK_S)
        with self._lock:
            self._unwell = frozenset(n for n in places if not health.get(n, _UNKNOWN).ready)
            if self._writes:
                self._replace_lost()
                self._publish()
            now_s = self._clock.now_s()
            members = [
                *(self._endpoint_member(e.name, now_s) for e in self._config.endpoints),
                *(self._member(process, now_s) for process in self._processes()),
            ]
            faults, self._faults = self._faults, []
            return PoolState(
                wanted=len(self._config.endpoints) + self._book.wanted,
                members=tuple(members),
                version=str(self._book.version),
                faults=(*faults, *_ill(health)),
            )

    def _processes(self) -> tuple[Started, ...]:
        """Those that run, oldest first; in shadow, as another controller has noted them."""
        if self._writes:
            return tuple(life.process for life in self._lives.values() if life.process.alive)
        return tuple(process for process in self._book.processes if process.alive)

    def _endpoint(self, name: str) -> Replica:
        endpoint = next(e for e in self._config.endpoints if e.name == name)
        control = endpoint.control_url or endpoint.url
        return Replica(name, endpoint.url, control, self._model, endpoint.metrics_url)

    def _place(self, process: Started) -> Replica:
        def url(name: str, port: int) -> str:
            """Empty where the engine was not told to listen there."""
            told = any(name in word for word in self._words())
            return f"http://127.0.0.1:{port}" if told else ""

        serving = f"http://127.0.0.1:{process.port}"
        return Replica(
            name=process.name,
            serving_url=serving,
            control_url=url("{control_port}", process.control_port) or serving,
            model=self._model,
            metrics_url=url("{metrics_port}", process.metrics_port),
        )

    def _endpoint_member(self, name: str, now_s: float) -> Member:
        state = ReplicaState.STARTING if name in self._unwell else ReplicaState.READY
        return Member(name, state, now_s - self._since_s, self._endpoint(name))

    def _member(self, process: Started, now_s: float) -> Member:
        state = process.state
        if state is ReplicaState.READY and process.name in self._unwell:
            state = ReplicaState.STARTING
        return Member(process.name, state, now_s - process.asked_s, self._place(process))

    # Writing

    def scale(self, replicas: int, seen: PoolState) -> int:
        """Start or drain engines until so many are asked for; the newest leave first.

        Raises:
            FaultError: NOT_MOVABLE without a command; CONFLICT if the number was changed since
                `seen`; REFUSED below the engines that somebody else started.
        """
        with self._lock:
            self._refuse_what_cannot_be(replicas, seen)
            extra = replicas - len(self._config.endpoints)
            staying = [
                life for life in self._lives.values() if life.state is not ReplicaState.DRAINING
            ]
            self._start_all(extra - len(staying))
            for life in reversed(staying[extra:]):
                life.leave()
            self._book = replace(self._book, wanted=extra, version=self._book.version + 1)
            self._save()
            return replicas

    def _refuse_what_cannot_be(self, replicas: int, seen: PoolState) -> None:
        least = max(1, len(self._config.endpoints))
        if not self._writes:
            raise _fault(FaultReason.REFUSED, "this pool was opened for watching only")
        if not self._config.command:
            raise _fault(
                FaultReason.NOT_MOVABLE,
                "the number of replicas cannot be moved: `processes.command` does not say how to "
                "start one; add it, or take replicas out of `move`",
            )
        if seen.version != str(self._book.version):
            raise _fault(
                FaultReason.CONFLICT,
                f"the number of engines was changed since it was read (version {seen.version}, now "
                f"{self._book.version}); the next tick decides anew",
            )
        if replicas < least:
            raise _fault(
                FaultReason.REFUSED,
                f"{replicas} replicas were asked for; {least} is the least, since engines that "
                "somebody else started are never stopped; raise `knobs.replicas.low`",
            )

    def set_warmup(self, requests: int) -> None:
        with self._lock:
            if not self._writes or not self._config.command:
                sentence = "no engine is started from here, so none can be warmed up"
                raise _fault(FaultReason.NOT_MOVABLE, sentence, knob="warmup_requests")
            self._book = replace(self._book, warmup_requests=requests)
            self._save()

    def warmup(self) -> int | None:
        with self._lock:
            return self._book.warmup_requests if self._config.command else None

    def close(self) -> None:
        """Watch no more. Every engine goes on."""
        lives = list(self._lives.values())
        for life in lives:
            life.close()
        for life in lives:
            life.join(JOIN_S)
        with self._lock:
            self._writes = False
            if self._claim is not None:
                self._claim.close()
        self._health.close()

    # Engines

    def _start_all(self, count: int) -> None:
        """Start so many engines, or none.

        Raises:
            FaultError: one could not be started.
        """
        lives: list[EngineLife] = []
        try:
            for _ in range(count):
                lives.append(self._start())
        except FaultError:
            for life in lives:
                life.leave()
            raise

    def _start(self) -> EngineLife:
        """Start one more engine.

        Raises:
            FaultError: it could not be started.
        """
        port, control_port, metrics_port = _free_ports(3)
        ports = {
            "{port}": str(port),
            "{control_port}": str(control_port),
            "{metrics_port}": str(metrics_port),
        }
        name = f"127.0.0.1:{port}"
        command = [_filled(word, ports) for word in self._config.command]
        extra = {key: _filled(value, ports) for key, value in self._config.environment.items()}
        try:
            pid = spawn(command, {**os.environ, **extra}, self._log(port))
        except OSError as error:
            sentence = f"'{command[0]}' could not be started ({error.strerror})"
            raise _fault(FaultReason.REFUSED, sentence) from None
        process = Started(
            name=name,
            pid=pid,
            mark=mark_of(pid) or "ended at once",
            port=port,
            control_port=control_port,
            metrics_port=metrics_port,
            asked_s=self._clock.now_s(),
            state=ReplicaState.STARTING,
        )
        life = self._adopt(process)
        # At once: whoever is started and not noted is lost if we end here.
        self._save()
        return life

    def _log(self, port: int) -> Path:
        return self._folder / f"engine-{port}.log"

    def _adopt(self, process: Started) -> EngineLife:
        life = EngineLife(
            process,
            self._place(process),
            self._engine,
            self._patience,
            warmup_requests=self._book.warmup_requests,
            log=str(self._log(process.port)),
            changed=self._life_changed,
            ended=self._life_ended,
            noted=self._note,
        )
        self._lives[process.name] = life
        if process.state is ReplicaState.READY:
            self._health.vouch(process.name)
        life.begin()
        return life

    def _life_changed(self, life: EngineLife) -> None:
        with self._lock:
            if life.state is ReplicaState.READY:
                self._failures = 0
                # It has completed requests: its first health call may be late, as every other.
                self._health.vouch(life.process.name)
            self._save()

    def _life_ended(self, life: EngineLife, fault: Fault | None) -> None:
        with self._lock:
            self._lives.pop(life.process.name, None)
            if fault is not None:
                self._faults.append(fault)
                pause_s = min(self._first_retry_s * 2.0**self._failures, LAST_RETRY_S)
                self._retry_at_s = monotonic() + pause_s
                self._failures += 1
            self._save()

    def _note(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def _replace_lost(self) -> None:
        """Start engines that are wanted and gone, after the pause that the last failure imposed."""
        staying = sum(
            life.state is not ReplicaState.DRAINING and life.process.alive
            for life in self._lives.values()
        )
        # One that has died and is not yet put away may still hold its GPU.
        ending = any(not life.process.alive for life in self._lives.values())
        if staying >= self._book.wanted or ending or monotonic() < self._retry_at_s:
            return
        try:
            self._start()
        except FaultError as error:
            self._faults.append(error.fault)

    # Files

    def _read_book(self, trouble: Callable[[str], TunerError]) -> _Book:
        """What a controller has noted; raises `trouble` of a sentence where it is not readable."""
        path = self._folder / "processes.json"
        if not self._config.command or not path.exists():
            return _Book()
        try:
            return _book_of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise trouble(
                f"{path} cannot be read ({error}); end the engines that it names by hand and "
                "remove it"
            ) from None

    def _save(self) -> None:
        """Note what is to outlive us, and who takes traffic. The lock is held."""
        if not self._writes:
            return
        processes = tuple(life.process for life in self._lives.values())
        self._book = replace(self._book, processes=processes)
        if self._config.command:
            data = {
                "schema": SCHEMA,
                "wanted": self._book.wanted,
                "version": self._book.version,
                "warmup_requests": self._book.warmup_requests,
                "processes": [process.to_json() for process in processes],
            }
            self._write(self._folder / "processes.json", data)
        self._publish()

    def _publish(self) -> None:
        """Bring the list of addresses that take traffic up to date.

        Configured endpoints are always on it: whether they take traffic is not ours to say, and an
        empty list would be an outage.
        """
        urls = [endpoint.url for endpoint in self._config.endpoints]
        for life in self._lives.values():
            process = life.process
            well = process.alive and process.name not in self._unwell
            if process.state is ReplicaState.READY and well:
                urls.append(life.replica.serving_url)
        file = self._config.endpoints_file
        if file is not None and tuple(urls) != self._published:
            self._write(Path(file), urls)
            self._published = tuple(urls)

    def _write(self, path: Path, data: object) -> None:
        """A file that cannot be written is a fault of the next look: the engines go on."""
        try:
            with replacing(path) as part:
                part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        except (InputError, OSError) as error:
            self._faults.append(Fault(WHERE, FaultReason.REFUSED, f"not written: {error}"))


_UNKNOWN = Health(live=False, ready=False, why="has not answered yet")


def _ill(health: Mapping[str, Health]) -> list[Fault]:
    return [
        Fault(name, FaultReason.NOT_READY, f"{name} takes no requests: {found.why or 'not ready'}")
        for name, found in health.items()
        if not found.ready
    ]


def _unreadable(sentence: str) -> FaultError:
    return FaultError(Fault(WHERE, FaultReason.BAD_ANSWER, sentence))


def _fault(
    reason: FaultReason, sentence: str, *, knob: Literal["replicas", "warmup_requests"] = "replicas"
) -> FaultError:
    return FaultError(Fault(WHERE, reason, sentence, knob))


def _filled(text: str, values: Mapping[str, str]) -> str:
    # Not str.format: braces of JSON arguments stay what they are.
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def _free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now."""
    with ExitStack() as held:
        found = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in found]


def _book_of(data: Mapping[str, Any]) -> _Book:
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r}, expected {SCHEMA!r}")
    return _Book(
        processes=tuple(Started.from_json(process) for process in data["processes"]),
        wanted=int(data["wanted"]),
        version=int(data["version"]),
        warmup_requests=int(data["warmup_requests"]),
    )
