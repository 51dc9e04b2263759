"""The pool of a sandbox: replicas of `tuner sandbox`, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tuner.config import SandboxConfig
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.engines.answers import count
from tuner.engines.engine import Replica
from tuner.engines.http import MAY_HAVE_LANDED, EngineHttp, Reply
from tuner.engines.settle import speaking_of
from tuner.live.pool import Member, PoolState

Found = TypeVar("Found")

WHERE = "sandbox"

_SAME_S = 1e-3
"""Epochs further apart than a rounding are two sandboxes."""


class SandboxPool:
    """See `Pool`.

    Args:
        config: where it is, and how fast its time runs.
        timeout_s: longest wait for one call, real seconds.
    """

    def __init__(self, config: SandboxConfig, *, timeout_s: float) -> None:
        self._config = config
        self._base = config.url.rstrip("/")
        self._http = EngineHttp(timeout_s=timeout_s)

    def check(self, *, writes: bool) -> None:
        reply = self._get("/")
        about = reply.mapping()
        if "sandbox" not in about:
            raise reply.bad("no 'sandbox'", "a sandbox")
        speed, epoch_s = (_number(about.get(name)) for name in ("speed", "epoch_s"))
        if speed is None or epoch_s is None:
            raise reply.bad("no 'speed' and 'epoch_s'", "both, as numbers")
        if speed != self._config.speed or abs(epoch_s - self._config.epoch_s) > _SAME_S:
            raise ConfigError(
                f"sandbox: speed {self._config.speed:g} and epoch_s {self._config.epoch_s:.3f} are "
                f"not those of the sandbox at {self._base} (speed {speed:g}, epoch_s "
                f"{epoch_s:.3f}); use the tuner.yaml that it wrote when it started"
            )

    def look(self) -> PoolState:
        return _state(self._get("/pool"))

    def scale(self, replicas: int, seen: PoolState) -> int:
        headers = {"If-Match": f'"{seen.version}"'}
        with speaking_of("replicas"):
            try:
                return _state(self._put("/pool", {"replicas": replicas}, headers)).wanted
            except FaultError as trouble:
                if trouble.fault.reason not in MAY_HAVE_LANDED:
                    raise
                return self._settled(replicas, seen, trouble)

    def set_warmup(self, requests: int) -> None:
        with speaking_of("warmup_requests"):
            try:
                self._put("/pool/warmup", {"requests": requests})
            except FaultError as trouble:
                if trouble.fault.reason not in MAY_HAVE_LANDED:
                    raise
                if self._read_back(trouble, self.warmup) != requests:
                    raise _unknown(trouble, "the old value stands as yet") from trouble

    def warmup(self) -> int | None:
        reply = self._get("/pool/warmup")
        return count(reply, reply.mapping(), "requests")

    def close(self) -> None:
        self._http.close()

    def _settled(self, replicas: int, seen: PoolState, trouble: FaultError) -> int:
        """What is asked for after a write whose answer was lost."""
        now = self._read_back(trouble, self.look)
        if now.wanted == replicas:
            return now.wanted
        if now.version != seen.version:
            sentence = (
                f"sandbox: {now.wanted} replicas are wanted now, by somebody else; expected "
                f"{replicas} after an answer that was lost; read and decide again"
            )
            raise FaultError(Fault(WHERE, FaultReason.CONFLICT, sentence)) from trouble
        # It may be under way still: it would be applied, because nobody has written since.
        raise _unknown(trouble, f"{now.wanted} replicas are wanted as yet") from trouble

    def _read_back(self, trouble: FaultError, read: Callable[[], Found]) -> Found:
        try:
            return read()
        except FaultError as silence:
            raise _unknown(trouble, f"reading back failed ({silence})") from silence

    def _get(self, path: str) -> Reply:
        return self._http.get(WHERE, self._base + path)

    def _put(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Reply:
        """Sent once; an answer that is no JSON object leaves it open whether it was done."""
        reply = self._http.write(WHERE, "PUT", self._base + path, body, headers=headers)
        reply.mapping()
        return reply


def _state(reply: Reply) -> PoolState:
    data: Mapping[str, Any] = reply.mapping()
    try:
        wanted, version = data["wanted"], data["version"]
        if not _is_count(wanted) or not isinstance(version, str):
            raise ValueError(f"wanted {wanted!r}, version {version!r}")
        model = str(data["model"])
        members = tuple(_member(member, model) for member in data["members"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise reply.bad(f"{type(error).__name__} {error}", "the pool") from error
    return PoolState(wanted=wanted, members=members, version=version)


def _member(data: Mapping[str, Any], model: str) -> Member:
    """Raises KeyError, TypeError or ValueError."""
    name, state, age_s = str(data["name"]), ReplicaState(data["state"]), _number(data["age_s"])
    if age_s is None:
        raise ValueError(f"age_s {data['age_s']!r} of {name}")
    replica = None
    if state is not ReplicaState.STARTING:  # until then it answers 503 to everything
        replica = Replica(
            name=name,
            serving_url=str(data["url"]),
            control_url=str(data["control_url"]),
            model=model,
        )
    return Member(name=name, state=state, age_s=age_s, replica=replica)


def _unknown(trouble: FaultError, found: str) -> FaultError:
    sentence = f"{trouble}; {found}: whether it will be done is not known"
    return FaultError(Fault(WHERE, FaultReason.OUTCOME_UNKNOWN, sentence))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
