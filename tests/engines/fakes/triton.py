"""Triton with one model: health, metadata, inference, and loading with another configuration."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.engines.fakes.server import Answer, FakeServer, Request
from tuner.engines import Replica

MODEL = "deepseek"


class FakeTriton:
    """One server.

    Args:
        explicit: whether it was started with `--model-control-mode=explicit`.
    """

    def __init__(self, *, explicit: bool = True, batch: int = 8) -> None:
        self.server = FakeServer()
        self.explicit = explicit
        self.repository: dict[str, Any] = {
            "name": MODEL,
            "backend": "python",
            "max_batch_size": batch,
            "input": [{"name": "IDS", "data_type": "TYPE_INT64", "dims": ["-1"]}],
            "dynamic_batching": {"preferred_batch_size": [4, batch]} if batch else {},
            "instance_group": [{"name": "deepseek_0", "kind": "KIND_CPU", "count": 1}],
            "parameters": {"kept": {"string_value": "as it is"}},
        }
        self.config = copy.deepcopy(self.repository)
        self.live = self.ready = self.model_ready = True
        self.empty = False
        """numpy 2 in the Python stub: 200, and nothing in it."""
        self.obeys = True
        self.loads: list[dict[str, Any]] = []
        self.inferences: list[dict[str, Any]] = []
        server, base = self.server, f"/v2/models/{MODEL}"
        server.on("GET", "/v2/health/live", lambda r: Answer(200 if self.live else 400))
        server.on("GET", "/v2/health/ready", lambda r: Answer(200 if self.ready else 503))
        server.on("GET", f"{base}/ready", lambda r: Answer(200 if self.model_ready else 503))
        server.on("GET", "/v2", lambda r: Answer(200, {"name": "triton", "version": "2.51.0"}))
        server.on("GET", base, self.metadata)
        server.on("GET", f"{base}/config", lambda r: Answer(200, self.config))
        server.on("POST", "/v2/repository/index", lambda r: Answer(200, [{"name": MODEL}]))
        server.on("POST", f"{base}/infer", self.infer)
        server.on("POST", f"/v2/repository/models/{MODEL}/load", self.load)
        server.otherwise = self._otherwise

    @property
    def replica(self) -> Replica:
        return Replica("replica-0", self.server.url, self.server.url)

    def close(self) -> None:
        self.server.close()

    def metadata(self, request: Request) -> Answer:
        inputs = [{"name": "IDS", "datatype": "INT64", "shape": [-1, -1]}]
        return Answer(200, {"name": MODEL, "inputs": inputs})

    def infer(self, request: Request) -> Answer:
        body: Any = request.json
        self.inferences.append(body)
        if self.empty:
            return Answer(200, {"outputs": []})
        outputs = [{"name": "OUT", "datatype": "INT64", "shape": [1, 1], "data": [7]}]
        return Answer(200, {"outputs": outputs})

    def load(self, request: Request) -> Answer:
        if not self.explicit:
            return _not_explicit()
        body: Any = request.json
        given = body.get("parameters", {}).get("config")
        self.loads.append(body)
        # Without one, the server keeps what it was given as long as the files are the same.
        config = self.config if given is None else json.loads(given)
        if not set(config) >= set(self.repository) or _largest(config) > config["max_batch_size"]:
            return Answer(500, {"error": "failed to load 'deepseek', failed to poll"})
        if self.obeys:
            self.config = config
        return Answer(200)

    def _otherwise(self, request: Request) -> Answer:
        if request.method == "POST" and request.path.endswith("/load"):
            if not self.explicit:
                return _not_explicit()
            return Answer(500, {"error": "failed to load, failed to poll from model repository"})
        return Answer(404, {"error": "Not Found"})


def _largest(config: dict[str, Any]) -> int:
    """The largest preferred batch size: above the batch size the load fails."""
    batching = config.get("dynamic_batching")
    sizes = batching.get("preferred_batch_size", []) if isinstance(batching, dict) else []
    return max((size for size in sizes if isinstance(size, int)), default=0)


def _not_explicit() -> Answer:
    sentence = "explicit model load / unload is not allowed if polling is enabled"
    return Answer(503, {"error": sentence})
