"""The controller's own page: /metrics, /healthz and /readyz, and nothing else."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tuner.core.errors import ConfigError

TIMEOUT_S = 10.0
"""A client that sends or takes nothing for so long is dropped."""
TEXT = "text/plain; charset=utf-8"

Complaints = Callable[[], Sequence[str]]
"""Sentences about what is wrong; none where all is well."""


class ControllerPage:
    """A small HTTP server in threads of its own.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        registry: what /metrics shows.
        stuck: /healthz answers 503 with these sentences.
        not_ready: /readyz answers 503 with these.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        stuck: Complaints,
        not_ready: Complaints,
    ) -> None:
        answers: dict[str, Answer] = {
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/healthz": lambda: _verdict(stuck()),
            "/readyz": lambda: _verdict(not_ready()),
        }
        handler = type("Handler", (_Handler,), {"answers": answers})
        try:
            self._server = (_Server6 if ":" in host else _Server)((host, port), handler)
        except OSError as error:
            raise ConfigError(
                f"server: {host}:{port} cannot be listened on ({error.strerror or error}); is "
                "another controller running? Change server.host or server.port"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="page", args=(0.2,), daemon=True
        )

    @property
    def url(self) -> str:
        """Where it answers."""
        host = self._server.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop answering; requests under way are dropped."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(TIMEOUT_S)
        self._server.server_close()


Answer = Callable[[], tuple[int, str, bytes]]
"""Status, content type and body."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def server_bind(self) -> None:
        # Not HTTPServer's own: that asks the name service who we are, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, Answer]] = {}
    timeout = TIMEOUT_S
    server_version = "tuner"
    sys_version = ""

    def do_GET(self) -> None:
        answer = self.answers.get(self.path.partition("?")[0])
        status, kind, body = answer() if answer else (404, TEXT, b"not found\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes and probes are not worth a line each."""


def _verdict(complaints: Sequence[str]) -> tuple[int, str, bytes]:
    if not complaints:
        return 200, TEXT, b"ok\n"
    return 503, TEXT, "".join(f"{line}\n" for line in complaints).encode()
