"""SGLang and Triton as far as the sidecar speaks to them: real sockets, and state that is kept."""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Answer = tuple[int, str]


class FakeEngine:
    """An HTTP server around `answer`; what it was asked stands in `asked`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.hang = threading.Event()
        """Set: the next write is done, and its answer never comes."""
        self.key: str | None = None
        self._over = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(b"")

            def do_POST(self) -> None:
                self._reply(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def _reply(self, body: bytes) -> None:
                engine.asked.append((self.command, self.path))
                sent = self.headers.get("Authorization")
                if engine.key is not None and sent != f"Bearer {engine.key}":
                    status, text = 401, "no key"
                else:
                    status, text = engine.answer(self.command, self.path, body)
                if self.command == "POST" and engine.hang.is_set():
                    engine.hang.clear()
                    engine._over.wait(30)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


class FakeSglang(FakeEngine):
    """Schedulers that each hold a cap; some can be told to refuse, or to agree and do nothing."""

    def __init__(self, caps: list[int], *, ceiling: int = 64, pp_size: int = 1) -> None:
        self.caps: list[int | None] = list(caps)
        self.start_up = caps[0]
        self.ceiling = ceiling
        self.pp_size = pp_size
        self.refusing: set[int] = set()
        self.lying: set[int] = set()
        self.metrics = True
        super().__init__()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if (method, path) == ("GET", "/server_info"):
            return 200, json.dumps(self.info())
        if (method, path) == ("POST", "/set_internal_state"):
            return self.set(json.loads(body)["server_args"])
        if (method, path) == ("GET", "/metrics") and self.metrics:
            return 200, (
                "# TYPE sglang:num_running_reqs gauge\n"
                'sglang:num_running_reqs{dp_rank="0",model_name="m"} 5.0\n'
                'sglang:num_running_reqs{dp_rank="1",model_name="m"} 6.0\n'
                'sglang:num_queue_reqs{dp_rank="0",model_name="m"} 2.0\n'
            )
        return 404, "not found"

    def info(self) -> dict[str, Any]:
        return {
            "version": "0.5.23",
            "served_model_name": "m",
            "pp_size": self.pp_size,
            "tokenizer_worker_num": 2,
            "pp_max_micro_batch_size": self.start_up,
            "max_running_requests": self.ceiling,
            "internal_states": [
                {
                    "pp_max_micro_batch_size": cap,
                    "effective_max_running_requests_per_dp": self.ceiling,
                }
                for cap in self.caps
            ],
        }

    def set(self, wanted: dict[str, int]) -> Answer:
        value = wanted["pp_max_micro_batch_size"]
        took = [
            rank not in self.refusing and 1 <= value <= self.ceiling // self.pp_size
            for rank in range(len(self.caps))
        ]
        for rank, yes in enumerate(took):
            if yes and rank not in self.lying:
                self.caps[rank] = value
        return 200, json.dumps(took)


class FakeTriton(FakeEngine):
    """One model with its configuration; a load must bring all of it, and be consistent."""

    CONFIG: ClassVar[dict[str, Any]] = {
        "name": "tiny",
        "backend": "python",
        "max_batch_size": 8,
        "dynamic_batching": {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 100},
        "instance_group": [{"name": "tiny_0", "kind": "KIND_CPU", "count": 1}],
    }

    def __init__(self) -> None:
        self.config = copy.deepcopy(self.CONFIG)
        self.loads = 0
        self.gate: threading.Event | None = None
        super().__init__()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if (method, path) == ("GET", "/v2"):
            return 200, json.dumps({"name": "triton", "version": "2.51.0"})
        if (method, path) == ("GET", "/v2/models/tiny/ready"):
            return 200, ""
        if (method, path) == ("GET", "/v2/models/tiny/config"):
            return 200, json.dumps(self.config)
        if (method, path) == ("POST", "/v2/repository/models/tiny/load"):
            return self.load(json.loads(json.loads(body)["parameters"]["config"]))
        return 404, "not found"

    def load(self, config: dict[str, Any]) -> Answer:
        self.loads += 1
        if self.gate is not None:
            self.gate.wait(20)
        if set(config) != set(self.CONFIG):
            return 400, json.dumps({"error": "the configuration is not whole"})
        if max(config["dynamic_batching"]["preferred_batch_size"]) > config["max_batch_size"]:
            return 500, json.dumps({"error": "preferred batch size > max batch size"})
        if config["instance_group"][0]["count"] > 3:
            return 500, json.dumps({"error": "failed to load: out of memory"})
        self.config = config
        return 200, ""
