"""The values of the run-time configuration: knobs, status, answers, audit lines; and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

PATH = "/v1/runtime_config"
ROLLBACK = PATH + "/rollback"
VERSION = "1"

Actuation = Literal["hot", "reload", "restart", "unsupported"]
Source = Literal["startup", "patch", "ttl", "rollback"]


class EngineError(Exception):
    """The engine did not answer, or its answer settles nothing. The message is a sentence."""


class RefusedByEngineError(EngineError):
    """The engine said no: nothing was changed."""


@dataclass(frozen=True)
class Knob:
    """One knob as the engine declares it."""

    value: int
    low: int
    """Smallest allowed value."""
    high: int
    """Largest allowed value: the ceiling that the engine was started with."""
    unit: str
    actuation: Actuation = "hot"
    slow: bool = False
    """Hot, and yet longer on the way than a caller waits: answered with 202 as a reload is."""

    @property
    def prompt(self) -> bool:
        """Whether a change is done when its answer goes out."""
        return self.actuation == "hot" and not self.slow


@dataclass(frozen=True)
class Status:
    """How the engine stands now."""

    running: int | None = None
    """Requests that the scheduler runs, over all ranks; None: the engine does not say."""
    waiting: int | None = None
    paused: bool = False
    sleeping: bool = False
    draining: bool = False
    ranks: int = 1
    """Schedulers that hold the cap each for itself."""
    knobs: Mapping[str, Knob] | None = None
    """What is really in force; None: the engine does not say. Where it differs from what was set
    last, somebody else set it or the engine started anew: a new instance begins."""


@dataclass(frozen=True)
class Response:
    """What goes back: plain data, turned into bytes by the transport."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, object]

    def encoded(self) -> bytes:
        return json.dumps(self.body).encode()


@dataclass(frozen=True)
class AuditLine:
    """One change that reached the engine."""

    who: str
    """Peer and program as the request says; `contract` for what happens by itself."""
    source: Source
    before: Mapping[str, int]
    after: Mapping[str, int]
    """As wanted; in force only if `result` is `applied`."""
    revision: int
    """In force afterwards."""
    instance_id: str
    reason: str
    request_id: str | None
    epoch: int | None
    ttl_s: float | None
    result: str
    """`applied`, or the sentence why not."""

    def to_json(self) -> dict[str, object]:
        """Keys never vary; absent values are null."""
        return {
            "event": "runtime_config",
            "who": self.who,
            "source": self.source,
            "from": dict(self.before),
            "to": dict(self.after),
            "revision": self.revision,
            "instance_id": self.instance_id,
            "reason": self.reason,
            "request_id": self.request_id,
            "epoch": self.epoch,
            "ttl_s": self.ttl_s,
            "result": self.result,
        }


@dataclass(frozen=True)
class Held:
    """One knob as the contract holds it. Times are on the contract's monotonic clock."""

    spec: Knob
    value: int
    base: int
    previous: int | None
    expires_at: float | None
    source: Source
    changed_at: float

    @classmethod
    def at_start(cls, spec: Knob, now: float) -> Held:
        return cls(spec, spec.value, spec.value, None, None, "startup", now)

    def moved(self, value: int, base: int, expires_at: float | None, by: Source, at: float) -> Held:
        if value == self.value:
            return replace(self, base=base, expires_at=expires_at, source=by)
        return Held(self.spec, value, base, self.value, expires_at, by, at)

    def to_json(self, now: float) -> dict[str, object]:
        left = None if self.expires_at is None else max(self.expires_at - now, 0.0)
        return {
            "value": self.value,
            "min": self.spec.low,
            "max": self.spec.high,
            "unit": self.spec.unit,
            "actuation": self.spec.actuation,
            "base": self.base,
            "previous": self.previous,
            "expires_in_s": left,
            "source": self.source,
            "changed_s_ago": max(now - self.changed_at, 0.0),
        }


@dataclass(frozen=True)
class Wish:
    """A well-formed request body."""

    knobs: Mapping[str, object] = field(default_factory=dict)
    dry_run: bool = False
    request_id: str | None = None
    ttl_s: float | None = None
    epoch: int | None = None
    reason: str = ""
    digest: str = ""
    """Of path and body: a repeated `request_id` must mean the same."""


@dataclass(frozen=True)
class Change:
    """What a request comes down to, checked and ready to go to the engine."""

    wish: Wish
    source: Source
    who: str
    after: Mapping[str, tuple[int, int, float | None]]
    """Knob -> value, base, and either seconds to live (patch) or the moment it ends (rollback)."""


class RefusalError(Exception):
    """A request that ends here, with the answer it gets."""

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        headers: Mapping[str, str] | None = None,
        **body: object,
    ) -> None:
        super().__init__(sentence)
        self.response = Response(status, dict(headers or {}), {"error": sentence, **body})
