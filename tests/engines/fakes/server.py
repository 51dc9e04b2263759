"""An HTTP server that answers from a table, remembers what it was asked, and fails on demand."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> object:
        return json.loads(self.body) if self.body else {}

    @property
    def bearer(self) -> str | None:
        scheme, _, secret = self.headers.get("authorization", "").partition(" ")
        return secret if scheme == "Bearer" else None


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: object = b""
    """Bytes go out as they are, anything else as JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with one request."""

    kind: Literal["says", "lost", "hangs", "broken", "not http"]
    done: bool = True
    """Whether the request takes effect all the same."""
    answer: Answer = field(default_factory=Answer)
    """What `says` says."""

    @classmethod
    def says(cls, status: int, body: object = b"", **headers: str) -> Trouble:
        """Answers so, and does nothing."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls("says", done=False, answer=Answer(status, body, named))


Handler = Callable[[Request], Answer]


class FakeServer:
    """Starts at once; `close` frees the port and everything that hangs."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Handler] = {}
        self.otherwise: Handler = lambda request: Answer(404, {"detail": "Not Found"})
        self.gate: Callable[[Request], Answer | None] = lambda request: None
        """Asked first; an answer here is the end of it."""
        self.requests: list[Request] = []
        self._troubles: dict[tuple[str, str], list[Trouble]] = {}
        self._always: dict[tuple[str, str], Trouble] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self._open = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(self, method: str, path: str, handler: Handler) -> None:
        self.routes[method, path] = handler

    def trouble(self, method: str, path: str, *troubles: Trouble) -> None:
        """The next requests of that kind go wrong so, one each."""
        with self._lock:
            self._troubles.setdefault((method, path), []).extend(troubles)

    def always(self, method: str, path: str, trouble: Trouble) -> None:
        """Every request of that kind goes wrong so."""
        self._always[method, path] = trouble

    def asked(self, method: str, path: str) -> list[Request]:
        with self._lock:
            return [r for r in self.requests if (r.method, r.path) == (method, path)]

    def writes(self) -> list[Request]:
        """Everything but GET."""
        with self._lock:
            return [r for r in self.requests if r.method != "GET"]

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)

    def take(self, request: Request) -> tuple[Trouble | None, Answer]:
        """What is wrong with this request, and the answer it gets. One request at a time."""
        key = (request.method, request.path)
        with self._lock:
            self.requests.append(request)
            queue = self._troubles.get(key)
            trouble = queue.pop(0) if queue else self._always.get(key)
            if trouble is not None and not trouble.done:
                return trouble, trouble.answer
            return trouble, self.gate(request) or self.routes.get(key, self.otherwise)(request)

    def hang(self) -> None:
        self._closing.wait()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


def _handler_of(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class FakeHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one segment per answer: two would wait for each other's acknowledgement
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            fake.opened(self.connection)

        def finish(self) -> None:
            fake.closed(self.connection)
            super().finish()

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            path = self.path.partition("?")[0]
            request = Request(self.command, path, headers, self.rfile.read(length))
            trouble, answer = fake.take(request)
            kind = "says" if trouble is None else trouble.kind
            if kind == "hangs":
                fake.hang()
            if kind in ("hangs", "lost"):
                self.close_connection = True
                return
            if kind == "not http":
                self.wfile.write(b"220 mail.example ESMTP\r\n")
                self.close_connection = True
                return
            content = answer.content
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + 7 * (kind == "broken")))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = self.close_connection or kind == "broken"

        do_GET = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return FakeHandler
