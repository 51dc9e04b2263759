"""SGLang: `/server_info`, and `/set_internal_state` with its 200 that may be a refusal."""

from __future__ import annotations

from typing import Any

from tests.engines.fakes.openai import FakeOpenAi
from tests.engines.fakes.server import Answer, Request

CAP = "pp_max_micro_batch_size"


class FakeSglang(FakeOpenAi):
    """One server with `ranks` schedulers."""

    def __init__(
        self,
        *,
        ceiling: int | None = 32,
        ranks: int = 1,
        stages: int = 1,
        api_key: str | None = None,
        admin_key: str | None = None,
    ) -> None:
        super().__init__(api_key=api_key)
        self.admin_key = admin_key
        self.ceiling = ceiling
        self.stages = stages
        self.caps: list[int | None] = [ceiling] * ranks
        self.starting = False
        self.refusing: set[int] = set()
        """Ranks that answer false."""
        self.deaf: set[int] = set()
        """Ranks that answer true and do nothing."""
        self.extra: dict[str, object] = {}
        """More of `/server_info`."""
        self.server.on("GET", "/ready", lambda r: Answer(503 if self.starting else 200))
        self.server.on("GET", "/server_info", self.server_info)
        self.server.on("POST", "/set_internal_state", self.set_internal_state)

    def server_info(self, request: Request) -> Answer:
        info = {
            "model_path": "/models/tiny",
            "served_model_name": "tiny",
            "max_running_requests": self.ceiling,
            "pp_size": self.stages,
            CAP: None,
            "version": "0.5.23",
            "internal_states": [{CAP: cap} for cap in self.caps],
        }
        return Answer(200, {**info, **self.extra})

    def set_internal_state(self, request: Request) -> Answer:
        if self.admin_key is not None and request.bearer != self.admin_key:
            return Answer(401, {"error": "Unauthorized"})
        body: Any = request.json
        wanted = body["server_args"][CAP]
        fits = 1 <= wanted <= (self.ceiling or 0) // self.stages
        took = [fits and rank not in self.refusing for rank in range(len(self.caps))]
        for rank, yes in enumerate(took):
            if yes and rank not in self.deaf:
                self.caps[rank] = wanted
        return Answer(200, took)
