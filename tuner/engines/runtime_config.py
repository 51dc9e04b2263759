"""The client of `/v1/runtime_config`: our contract, and the native endpoint that vLLM may get.

Two shapes of answer are known. The **contract** names itself (`contract: "1"`), counts revisions
and lets values be temporary. The **native** endpoint of vllm-project/vllm pull request 54816 says
`max_num_running_seqs` and `max_num_seqs` and nothing else: no revision, no time-to-live. It is
preferred where it exists, and then every value is read back, and the way back at a controller's
death is somebody else's.

A contract answers at the control address and wants the token of run-time control; the native
endpoint answers at the serving address and wants that port's key. A contract that answers on the
serving port is a window for the sidecar beside it and is left alone, unless the configuration says
that this is the control address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import Literal
from uuid import uuid4

from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import Applied, KnobSettings
from tuner.engines.answers import count, flag, integer, seconds, text
from tuner.engines.engine import EngineState, KnobState, Replica
from tuner.engines.http import Auth, EngineHttp, Reply
from tuner.engines.settle import (
    check_unmoved,
    check_wanted,
    fault,
    moving,
    settle,
    speaking_of,
)

PATH = "/v1/runtime_config"
ROUTE = f"PATCH {PATH}"
VERSION = "1"
"""Version of the contract that is spoken here."""
RELOAD_WAIT_S = 120.0
"""Longest wait for a reload that was answered with 202; a tiny model takes 2 to 22 s."""
POLL_S = 0.5
"""Between two looks at a reload under way."""
REASON_CHARS = 200
"""Characters of the reason that travel."""

_NATIVE_VALUE = "max_num_running_seqs"
_NATIVE_CEILING = "max_num_seqs"
_ACTUATIONS: Mapping[str, Applied | Literal["unsupported"]] = {
    "hot": "hot",
    "reload": "reload",
    "restart": "restart",
    "unsupported": "unsupported",
}
_ABSENT = frozenset(
    {
        FaultReason.NOT_FOUND,
        FaultReason.NOT_MOVABLE,
        FaultReason.UNAUTHORIZED,
        FaultReason.FORBIDDEN,
    }
)
"""Not here, or not for us: look at the other address."""


@dataclass(frozen=True)
class _Place:
    url: str
    auth: Auth


@dataclass(frozen=True)
class _Found:
    place: _Place
    reply: Reply
    body: Mapping[str, object]

    @property
    def contract(self) -> bool:
        return "contract" in self.body

    @property
    def native(self) -> bool:
        return not self.contract and _NATIVE_VALUE in self.body


class RuntimeConfig:
    """Reads and writes the run-time configuration of replicas; holds no state of theirs.

    Args:
        native: whether the engine may have an endpoint of its own on the serving port.
        reload_wait_s: longest wait for a reload under way.
    """

    def __init__(
        self, http: EngineHttp, *, native: bool = True, reload_wait_s: float = RELOAD_WAIT_S
    ) -> None:
        self._http = http
        self._native = native
        self._reload_wait_s = reload_wait_s

    def read(self, replica: Replica) -> EngineState:
        """The configuration in force.

        Raises:
            FaultError: NOT_FOUND where there is no such endpoint; UNAUTHORIZED or FORBIDDEN where
                there may be one and the secret does not fit.
        """
        return _state(self._find(replica))

    def set(
        self,
        replica: Replica,
        wanted: KnobSettings,
        seen: EngineState,
        *,
        ttl_s: float | None,
        reason: str,
    ) -> EngineState:
        """Bring values about, all or nothing, and read back; see `Engine.set`."""
        check_wanted(replica, wanted, seen)
        if not wanted:
            return seen
        if seen.revision is None:
            with speaking_of(moving(seen, wanted)):
                write = self._native_write(replica, wanted, seen)
        else:
            write = self._contract_write(replica, wanted, seen, ttl_s, reason)
        return settle(replica, wanted, seen, write, lambda: self.read(replica))

    def check(self, replica: Replica, wanted: KnobSettings, seen: EngineState) -> None:
        """Ask whether values would be taken, and change nothing.

        A native endpoint has no such question: nothing is sent there.

        Raises:
            FaultError: with `knob`: the answer is no.
        """
        check_wanted(replica, wanted, seen)
        if seen.revision is None:
            return
        body = {"knobs": dict(wanted), "dry_run": True, "reason": "dry run"}
        with speaking_of(moving(seen, wanted)):
            self._send(replica, seen, "PATCH", PATH, body)

    def rollback(self, replica: Replica, seen: EngineState) -> EngineState:
        """The values before the last applied change.

        Raises:
            FaultError: NOT_MOVABLE where the endpoint keeps none.
        """
        if seen.revision is None:
            sentence = "this endpoint keeps no earlier values; set them by name"
            raise fault(replica, FaultReason.NOT_MOVABLE, sentence, None)
        body = {"request_id": uuid4().hex, "reason": "rollback"}
        self._send(replica, seen, "POST", f"{PATH}/rollback", body)
        return self.read(replica)

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        """Back to the base values, with no time-to-live.

        A change that comes too close to the last one is asked for once more, after the wait that
        was named: the refusal says that nothing was done.
        """
        base = {
            name: knob.base
            for name, knob in seen.knobs.items()
            if knob.base is not None
            and knob.applied in ("hot", "reload")
            and (knob.value != knob.base or knob.expires_in_s is not None)
        }
        wanted = KnobSettings(base)
        try:
            return self.set(replica, wanted, seen, ttl_s=None, reason="release")
        except FaultError as trouble:
            wait_s = trouble.retry_after_s
            early = trouble.fault.reason is FaultReason.RATE_LIMITED
            if not early or wait_s is None or wait_s > self._http.timeout_s:
                raise
        Event().wait(wait_s)
        return self.set(replica, wanted, seen, ttl_s=None, reason="release")

    # Writing.

    def _contract_write(
        self,
        replica: Replica,
        wanted: KnobSettings,
        seen: EngineState,
        ttl_s: float | None,
        reason: str,
    ) -> Callable[[], None]:
        body: dict[str, object] = {
            "knobs": dict(wanted),
            "request_id": uuid4().hex,
            "reason": reason[:REASON_CHARS],
        }
        if ttl_s is not None:
            body["ttl_s"] = ttl_s

        def write() -> None:
            if self._send(replica, seen, "PATCH", PATH, body).status == 202:
                self._await_reload(replica, wanted, seen)

        return write

    def _native_write(
        self, replica: Replica, wanted: KnobSettings, seen: EngineState
    ) -> Callable[[], None]:
        found = self._find(replica)
        check_unmoved(replica, wanted, seen, _state(found))
        place = found.place
        body = {_NATIVE_VALUE: wanted["batch_size"]}

        def write() -> None:
            self._http.write(replica.name, "PATCH", place.url + PATH, body, auth=place.auth)

        return write

    def _send(
        self, replica: Replica, seen: EngineState, method: str, path: str, body: object
    ) -> Reply:
        place = self._control(replica)
        tag = {"If-Match": f'"{seen.instance}:{seen.revision}"'}
        url = place.url + path
        return self._http.write(replica.name, method, url, body, auth=place.auth, headers=tag)

    def _await_reload(self, replica: Replica, wanted: KnobSettings, seen: EngineState) -> None:
        end = monotonic() + self._reload_wait_s
        while monotonic() < end:
            now = self._glance(replica)
            if now is not None and (now.instance, now.revision) != (seen.instance, seen.revision):
                return
            Event().wait(POLL_S)
        knob = moving(seen, wanted)
        sentence = f"{knob}: the reload is not done after {self._reload_wait_s:g} s; not repeated"
        raise fault(replica, FaultReason.OUTCOME_UNKNOWN, sentence, knob)

    def _glance(self, replica: Replica) -> EngineState | None:
        """The state, or None where an engine that reloads has no ear for us."""
        try:
            return self.read(replica)
        except FaultError:
            return None

    # Finding.

    def _find(self, replica: Replica) -> _Found:
        """The endpoint that counts; the native one first."""
        refused: FaultError | None = None
        for place in self._places(replica):
            try:
                reply = self._http.get(replica.name, place.url + PATH, auth=place.auth)
                found = _Found(place, reply, reply.mapping())
            except FaultError as trouble:
                if trouble.fault.reason not in _ABSENT:
                    raise
                if trouble.fault.reason in (FaultReason.UNAUTHORIZED, FaultReason.FORBIDDEN):
                    refused = trouble
                continue
            if found.contract and not self._is_control(replica, place):
                continue
            if found.contract or found.native:
                return found
            raise reply.bad(
                f"keys {', '.join(sorted(found.body)) or 'none'}",
                f"'contract' or '{_NATIVE_VALUE}'",
            )
        if refused is not None:
            raise refused
        sentence = f"there is no {PATH} here; nothing can be moved while it runs"
        raise fault(replica, FaultReason.NOT_FOUND, sentence, None)

    def _places(self, replica: Replica) -> list[_Place]:
        serving, control = _Place(_base(replica.serving_url), "serving"), self._control(replica)
        if control.url == serving.url:
            both = self._http.has("control") and self._http.has("serving")
            return [control, serving] if both else [control]
        places = [serving] if self._native else []
        return [*places, control] if control.url else places

    def _control(self, replica: Replica) -> _Place:
        """Where a contract is expected; one address for both takes whichever secret there is."""
        url = _base(replica.control_url)
        shared = url == _base(replica.serving_url) and not self._http.has("control")
        return _Place(url, "serving" if shared else "control")

    def _is_control(self, replica: Replica, place: _Place) -> bool:
        return place.url == _base(replica.control_url)


def beside(replica: Replica) -> bool:
    """Whether a sidecar is expected: run-time control has an address of its own."""
    return bool(replica.control_url) and _base(replica.control_url) != _base(replica.serving_url)


def _base(url: str) -> str:
    return url.rstrip("/")


# What an answer says.


def _state(found: _Found) -> EngineState:
    return _contract_state(found.reply, found.body) if found.contract else _native_state(found)


def _native_state(found: _Found) -> EngineState:
    reply, body = found.reply, found.body
    value = integer(reply, body, _NATIVE_VALUE)
    ceiling = count(reply, body, _NATIVE_CEILING)
    # Without its ceiling the range is not known, and a guess would ratchet downwards.
    knob = KnobState(
        value=value,
        low=1,
        high=value if ceiling is None else ceiling,
        applied="unsupported" if ceiling is None else "hot",
        base=ceiling,
    )
    return EngineState(
        engine="vllm",
        version="",
        model="",
        instance=None,
        revision=None,
        paused=body.get("paused") is True,
        sleeping=body.get("sleeping") is True,
        draining=body.get("draining") is True,
        running=count(reply, body, "running"),
        waiting=count(reply, body, "waiting"),
        knobs={"batch_size": knob},
        ttl=False,
    )


def _contract_state(reply: Reply, body: Mapping[str, object]) -> EngineState:
    if body["contract"] != VERSION:
        raise reply.bad(f"contract {body['contract']!r}", f"contract '{VERSION}'")
    knobs = body.get("knobs")
    if not isinstance(knobs, dict):
        raise reply.bad(f"knobs {knobs!r}", "an object")
    return EngineState(
        engine=text(reply, body, "engine"),
        version=text(reply, body, "engine_version"),
        model=text(reply, body, "model"),
        instance=text(reply, body, "instance_id"),
        revision=integer(reply, body, "revision"),
        paused=flag(reply, body, "paused"),
        sleeping=flag(reply, body, "sleeping"),
        draining=flag(reply, body, "draining"),
        running=count(reply, body, "running"),
        waiting=count(reply, body, "waiting"),
        knobs={name: _knob(reply, f"knobs.{name}", knob) for name, knob in knobs.items()},
        ttl=True,
    )


def _knob(reply: Reply, path: str, data: object) -> KnobState:
    if not isinstance(data, dict):
        raise reply.bad(f"{path} {data!r}", "an object")
    actuation = data.get("actuation")
    if not isinstance(actuation, str) or actuation not in _ACTUATIONS:
        raise reply.bad(f"{path}.actuation {actuation!r}", f"one of {', '.join(_ACTUATIONS)}")
    within = f"{path}."
    return KnobState(
        value=integer(reply, data, "value", within),
        low=integer(reply, data, "min", within),
        high=integer(reply, data, "max", within),
        applied=_ACTUATIONS[actuation],
        base=count(reply, data, "base", within),
        expires_in_s=seconds(reply, data, "expires_in_s", within),
    )
