"""An engine that keeps state: completions with an admission cap, /health, /metrics, and the
run-time configuration contract on its own port.

In a test: `with FakeEngine() as engine`. As a process of its own:

    python tests/live/fake_engine.py --port 8000 --control-port 8001
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tuner.engines.contract import AuditLine, Contract, Knob, Status

Trouble = Literal["", "hang", "error", "garbage", "lost answer", "slow down", "closed"]
"""What goes wrong on the control port: no answer; 500; not JSON; the change is done and the
connection breaks off; 429 with Retry-After; the connection breaks off before anything is read."""


@dataclass
class Load:
    """Requests inside, held to the cap."""

    cap: int
    seconds: float
    """Time that one request takes once admitted."""
    running: int = 0
    waiting: int = 0
    finished: int = 0
    most_running: int = 0
    hold: threading.Event = field(default_factory=threading.Event)
    """While it is set, admitted requests do not end."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def serve(self) -> None:
        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: self.running < self.cap)
            self.waiting -= 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            if self.seconds:
                self.changed.wait_for(lambda: False, timeout=self.seconds)
            self.changed.wait_for(lambda: not self.hold.is_set())
            self.running -= 1
            self.finished += 1
            self.changed.notify_all()

    def resume(self) -> None:
        with self.changed:
            self.hold.clear()
            self.changed.notify_all()


class FakeEngine:
    """One replica on loopback.

    Args:
        batch_size: admission cap at start, and its ceiling.
        seconds: time that one request takes.
        port, control_port: 0 takes a free one.
    """

    def __init__(
        self,
        batch_size: int = 32,
        *,
        seconds: float = 0.0,
        port: int = 0,
        control_port: int = 0,
        name: str = "fake",
    ) -> None:
        self.load = Load(batch_size, seconds)
        self.trouble: Trouble = ""
        self.healthy = True
        self.paused = False
        self.refuses_completions = False
        self.completions = 0
        self.patches: list[dict[str, Any]] = []
        """Bodies of the PATCH requests that arrived."""
        self.tokens: set[str | None] = set()
        """`Authorization` of every request to the control port."""
        self.changes: list[AuditLine] = []
        self.over = threading.Event()
        """Ends every hanging answer."""
        self.now_s = 0.0
        """Clock of the times to live; a test moves it."""
        self._name = name
        self._instances = 0
        self.contract = self._contract()
        self._servers = [_serve(port, _Serving, self), _serve(control_port, _Control, self)]
        self.url, self.control_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def _contract(self) -> Contract:
        self._instances += 1
        return Contract(
            {
                "batch_size": Knob(self.load.cap, 1, self.load.cap, "sequences"),
                "threads": Knob(4, 1, 64, "workers", "unsupported"),
            },
            self._apply,
            self._status,
            engine="fake",
            engine_version="1",
            model="tiny",
            token=None,
            min_interval_s=0.0,
            audit=self.changes.append,
            clock=lambda: self.now_s,
            new_instance_id=lambda: f"{self._name}-{self._instances}",
        )

    def _apply(self, values: Any) -> None:
        with self.load.changed:
            self.load.cap = values.get("batch_size", self.load.cap)
            self.load.changed.notify_all()

    def _status(self) -> Status:
        return Status(self.load.running, self.load.waiting, paused=self.paused)

    def restart(self, batch_size: int = 32) -> None:
        """As a new process: start-up values, another instance."""
        self.load.cap = batch_size
        self.contract = self._contract()

    @property
    def batch_size(self) -> int:
        self.contract.expire()
        return self.contract.values["batch_size"]

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.over.set()
        self.load.resume()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    engine: FakeEngine


def _serve(port: int, handler: type[BaseHTTPRequestHandler], engine: FakeEngine) -> _Server:
    server = _Server(("127.0.0.1", port), handler)
    server.engine = engine
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def engine(self) -> FakeEngine:
        return self.server.engine

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def drop(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Serving(_Handler):
    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200 if self.engine.healthy else 503, b"")
        elif self.path == "/metrics":
            self.answer(200, page(self.engine.load).encode())
        elif self.path == "/v1/models":
            self.answer(200, b'{"data": [{"id": "tiny"}]}')
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        self.body()
        self.engine.completions += 1
        if self.engine.refuses_completions:
            self.answer(500, b"")
            return
        self.engine.load.serve()
        answer = {"choices": [{"text": "x"}], "usage": {"completion_tokens": 1}}
        self.answer(200, json.dumps(answer).encode())


def page(load: Load) -> str:
    """What /metrics says, in vLLM's names."""
    return (
        f'vllm:num_requests_running{{model_name="tiny"}} {load.running}\n'
        f'vllm:num_requests_waiting{{model_name="tiny"}} {load.waiting}\n'
        f'vllm:request_success_total{{model_name="tiny"}} {load.finished}\n'
    )


class _Control(_Handler):
    def do_GET(self) -> None:
        self.control(b"")

    def do_POST(self) -> None:
        self.control(self.body())

    def do_PATCH(self) -> None:
        body = self.body()
        self.engine.patches.append(json.loads(body))
        self.control(body)

    def control(self, body: bytes) -> None:
        engine, writes = self.engine, self.command != "GET"
        engine.tokens.add(self.headers.get("Authorization"))
        if engine.trouble == "hang":
            engine.over.wait()
            self.drop()
        elif engine.trouble == "closed":
            self.drop()
        elif engine.trouble == "error":
            self.answer(500, b"inside out")
        elif engine.trouble == "garbage":
            self.answer(200, b"<html>it works</html>")
        elif engine.trouble == "slow down" and writes:
            self.answer(429, b"{}", {"Retry-After": "40"})
        else:
            response = engine.contract.handle(
                self.command, self.path, dict(self.headers), body, peer="test"
            )
            if engine.trouble == "lost answer" and writes:
                self.drop()
            else:
                self.answer(response.status, response.encoded(), dict(response.headers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0, help="time of one request")
    parser.add_argument("--unhealthy", action="store_true", help="never gets ready")
    parser.add_argument("--refuse", action="store_true", help="answers completions with 500")
    parser.add_argument("--stubborn", action="store_true", help="ignores SIGTERM")
    parser.add_argument("--exit", type=int, help="ends at once with this status")
    options = parser.parse_args()
    if options.exit is not None:
        sys.exit(options.exit)
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine = FakeEngine(
        seconds=options.seconds, port=options.port, control_port=options.control_port
    )
    engine.healthy = not options.unhealthy
    engine.refuses_completions = options.refuse
    threading.Event().wait()


if __name__ == "__main__":
    main()
