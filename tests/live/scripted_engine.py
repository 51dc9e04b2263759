"""A small streaming server with the OpenAI API, whose truth is known: what it does, and counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Behaviour:
    """What becomes of a request."""

    status: int = 200
    first_s: float = 0.0
    """Before the first token."""
    gap_s: float = 0.0
    """Before each further one."""
    drop_after: int | None = None
    """Tokens after which the connection is cut."""
    error_after: int | None = None
    """Tokens after which an error stands in the stream."""
    garbage: bool = False
    """A stream of something else."""
    hang: bool = False
    """No answer until the server is closed."""
    after: int = 0
    """Answers once so many requests have come."""
    per_chunk: int = 1
    """Tokens per chunk."""
    usage: bool = True
    """Whether the engine counts along."""
    text: str = "a"


@dataclass
class Truth:
    """What the server has seen and done."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Condition = field(default_factory=threading.Condition)


class ScriptedEngine:
    """Listens on a free loopback port while entered.

    Args:
        script: behaviour by the number of prompt tokens.
        otherwise: behaviour of all others.
    """

    def __init__(
        self, script: Mapping[int, Behaviour] | None = None, otherwise: Behaviour | None = None
    ) -> None:
        self.truth = Truth()
        self._script = script or {}
        self._otherwise = otherwise or Behaviour()
        self._closing = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                engine._models(self)

            def do_POST(self) -> None:
                engine._complete(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *arguments: object) -> None:
                """A client that hangs up is part of the script."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> ScriptedEngine:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, requests: int, within_s: float = 30.0) -> None:
        """Come back when so many requests have come.

        Raises:
            TimeoutError: they have not.
        """
        with self.truth.lock:
            if not self.truth.lock.wait_for(lambda: self.truth.requests >= requests, within_s):
                raise TimeoutError(f"{self.truth.requests} requests came; expected {requests}")

    def _models(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "scripted"}]}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _complete(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["prompt"] if isinstance(body["prompt"], list) else body["prompt"].split()
        with self.truth.lock:
            self.truth.requests += 1
            self.truth.prompt_tokens += len(prompt)
            self.truth.bodies.append(body)
            self.truth.lock.notify_all()
        does = self._script.get(len(prompt), self._otherwise)
        if does.hang:
            self._closing.wait(60.0)
            handler.close_connection = True
            return
        self.wait_for(does.after, within_s=60.0)
        if does.status != 200:
            handler.send_response(does.status)
            handler.send_header("Content-Length", "5")
            handler.end_headers()
            handler.wfile.write(b"sorry")
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        self._stream(handler, does, len(prompt), body["max_tokens"])

    def _stream(
        self, handler: BaseHTTPRequestHandler, does: Behaviour, prompt: int, wanted: int
    ) -> None:
        if does.garbage:
            self._chunk(handler, b"data: {not json}\n\n")
        done = 0
        while done < wanted and not does.garbage:
            if done == does.drop_after:
                handler.close_connection = True
                return
            if done == does.error_after:
                self._event(handler, {"error": {"message": "engine died"}})
                break
            if self._closing.wait(does.gap_s if done else does.first_s):
                break
            count = min(does.per_chunk, wanted - done)
            done += count
            with self.truth.lock:
                self.truth.output_tokens += count
            usage = {"prompt_tokens": prompt, "completion_tokens": done} if does.usage else None
            self._event(handler, {"choices": [{"text": does.text * count}], "usage": usage})
        final = {"prompt_tokens": prompt, "completion_tokens": done}
        self._event(handler, {"choices": [], "usage": final})
        self._chunk(handler, b"data: [DONE]\n\n")
        self._chunk(handler, b"")

    def _event(self, handler: BaseHTTPRequestHandler, data: dict[str, Any]) -> None:
        self._chunk(handler, f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode())

    def _chunk(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        handler.wfile.flush()
