"""The server side of `/v1/runtime_config`, as small as it can be. Time passes when told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.engines.fakes.server import Answer, FakeServer, Request

PATH = "/v1/runtime_config"


@dataclass
class FakeKnob:
    value: int
    high: int
    low: int = 1
    actuation: str = "hot"
    base: int | None = None
    previous: int | None = None
    expires_at_s: float | None = None

    def __post_init__(self) -> None:
        self.base = self.value if self.base is None else self.base


class FakeContract:
    """State and answers of one process.

    Args:
        apply: told of every change.
        token: wanted as a bearer; None: none is.
    """

    def __init__(
        self,
        engine: str,
        knobs: dict[str, FakeKnob],
        *,
        apply: Callable[[dict[str, int]], None] = lambda values: None,
        token: str | None = None,
    ) -> None:
        self.engine = engine
        self.knobs = knobs
        self.apply = apply
        self.token = token
        self.instance = "instance-1"
        self.revision = 1
        self.paused = self.sleeping = self.draining = False
        self.running = self.waiting = 0
        self.now_s = 0.0
        self.obeys = True
        """False: agrees to everything and does nothing."""
        self.reloads = False
        """True: a change is answered with 202 and done by `finish_reload`."""
        self._pending: dict[str, int] | None = None
        self._results: dict[str, Answer] = {}

    def serve_on(self, server: FakeServer) -> None:
        server.on("GET", PATH, self.guarded(self.get))
        server.on("PATCH", PATH, self.guarded(self.patch))
        server.on("POST", f"{PATH}/rollback", self.guarded(self.rollback))

    def guarded(self, handler: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
        def handle(request: Request) -> Answer:
            if self.token is not None and request.bearer is None:
                return Answer(401, {"error": "no token"})
            if self.token is not None and request.bearer != self.token:
                return Answer(403, {"error": "wrong token"})
            self.expire()
            return handler(request)

        return handle

    @property
    def etag(self) -> str:
        return f'"{self.instance}:{self.revision}"'

    def restart(self) -> None:
        """A new process: a new name, and the values of its start."""
        self.instance += "+"
        self.revision = 1

    def expire(self) -> None:
        for name, knob in self.knobs.items():
            if knob.expires_at_s is not None and knob.expires_at_s <= self.now_s:
                knob.expires_at_s = None
                self._move({name: knob.base or knob.value})

    def finish_reload(self) -> None:
        if self._pending is not None:
            self._move(self._pending)
            self._pending = None

    def state(self) -> dict[str, object]:
        return {
            "contract": "1",
            "engine": self.engine,
            "engine_version": "0.0.0",
            "model": "tiny",
            "instance_id": self.instance,
            "revision": self.revision,
            "paused": self.paused,
            "sleeping": self.sleeping,
            "draining": self.draining,
            "running": self.running,
            "waiting": self.waiting,
            "knobs": {name: self._knob(knob) for name, knob in self.knobs.items()},
        }

    def get(self, request: Request) -> Answer:
        return Answer(200, self.state(), {"ETag": self.etag})

    def patch(self, request: Request) -> Answer:
        body: Any = request.json
        refused = self._refused(request, body.get("knobs", {}))
        if refused is not None:
            return refused
        if body.get("dry_run"):
            return Answer(200, {"dry_run": True})
        done = self._results.get(body.get("request_id", ""))
        if done is not None:
            return done
        if self.reloads:
            self._pending = body["knobs"]
            return Answer(202, {"revision": self.revision})
        if self.obeys:
            self._move(body["knobs"])
            self._keep(body["knobs"], body.get("ttl_s"))
        answer = Answer(200, {"applied": body["knobs"], "revision": self.revision})
        self._results[body.get("request_id", "")] = answer
        return answer

    def rollback(self, request: Request) -> Answer:
        refused = self._refused(request, {})
        if refused is not None:
            return refused
        self._move({n: k.previous for n, k in self.knobs.items() if k.previous is not None})
        return Answer(200, {"revision": self.revision})

    def _knob(self, knob: FakeKnob) -> dict[str, object]:
        ends = knob.expires_at_s
        return {
            "value": knob.value,
            "min": knob.low,
            "max": knob.high,
            "unit": "sequences",
            "actuation": knob.actuation,
            "base": knob.base,
            "previous": knob.previous,
            "expires_in_s": None if ends is None else ends - self.now_s,
            "source": "startup",
            "changed_s_ago": 0.0,
        }

    def _refused(self, request: Request, wanted: dict[str, int]) -> Answer | None:
        for name, value in wanted.items():
            knob = self.knobs.get(name)
            if knob is None or not knob.low <= value <= knob.high:
                return Answer(400, {"error": f"{name} = {value} is not possible"})
            if knob.actuation == "unsupported":
                return Answer(501, {"error": f"{name} is not movable here"})
        tag = request.headers.get("if-match")
        if tag is None:
            return Answer(428, {"error": "If-Match is missing"})
        if self.paused or self.sleeping:
            return Answer(503, {"error": "paused or asleep"})
        if tag != self.etag:
            return Answer(409, {"error": f"{tag} is behind {self.etag}", "state": self.state()})
        return None

    def _move(self, values: dict[str, int]) -> None:
        changed = {n: v for n, v in values.items() if self.knobs[n].value != v}
        for name, value in changed.items():
            self.knobs[name].previous = self.knobs[name].value
            self.knobs[name].value = value
        if changed:
            self.revision += 1
            self.apply(changed)

    def _keep(self, values: dict[str, int], ttl_s: float | None) -> None:
        for name, value in values.items():
            knob = self.knobs[name]
            knob.expires_at_s = None if ttl_s is None else self.now_s + ttl_s
            knob.base = value if ttl_s is None else knob.base
