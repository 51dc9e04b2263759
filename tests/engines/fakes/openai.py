"""The part of an engine that all but Triton share: `/health`, `/v1/models`, `/v1/completions`."""

from __future__ import annotations

from typing import Any

from tests.engines.fakes.server import Answer, FakeServer, Request
from tuner.engines import Replica

MODEL = "tiny"


class FakeOpenAi:
    """An engine with nothing that can be turned."""

    def __init__(self, *, api_key: str | None = None) -> None:
        self.server = FakeServer()
        self.api_key = api_key
        self.completions = 0
        self.broken_model = False
        """Answers completions with 500 while `/health` goes on saying 200."""
        self.mute = False
        """Answers completions with no token."""
        self.server.gate = self._gate
        self.server.on("GET", "/health", self.health)
        self.server.on("GET", "/v1/models", lambda request: Answer(200, {"data": [{"id": MODEL}]}))
        self.server.on("POST", "/v1/completions", self.completion)
        self.server.on("GET", "/metrics", lambda request: Answer(200, self.page().encode()))

    @property
    def replica(self) -> Replica:
        return Replica("replica-0", self.server.url, self.server.url)

    def close(self) -> None:
        self.server.close()

    def health(self, request: Request) -> Answer:
        return Answer(200)

    def completion(self, request: Request) -> Answer:
        body: Any = request.json
        if body.get("model") != MODEL:
            return Answer(404, {"error": {"message": f"no model {body.get('model')!r}"}})
        if self.broken_model:
            return Answer(500, {"error": {"message": "mat1 and mat2 shapes cannot be multiplied"}})
        self.completions += 1
        made = 0 if self.mute else body["max_tokens"]
        choices = [{"index": 0, "text": "x" * made}]
        return Answer(200, {"choices": choices, "usage": {"completion_tokens": made}})

    def page(self) -> str:
        return ""

    def _gate(self, request: Request) -> Answer | None:
        guarded = self.api_key is not None and request.path.startswith("/v1")
        if guarded and request.bearer != self.api_key:
            return Answer(401, {"error": "Unauthorized"})
        return None
