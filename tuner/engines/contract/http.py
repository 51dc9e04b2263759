"""A port of its own for the contract: small, standard library only, Python 3.10 up."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .state import Contract
from .values import AuditLine, Response

LARGEST_BODY_BYTES = 65536
CONNECTIONS = 64
"""Connections served at once; more are closed at once. One controller needs one or two."""
PATIENCE_S = 15.0
"""A peer that sends or takes nothing for so long is given up."""

_log = logging.getLogger("tuner.contract")


def token_from(path: str | Path) -> Callable[[], str]:
    """Reads the token anew at each request: a mounted Secret rotates.

    The callable raises OSError where the file cannot be read, ValueError where it is empty.
    """

    def read() -> str:
        token = Path(path).read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError(f"{path} is empty")
        return token

    return read


def log_audit(line: AuditLine) -> None:
    """One line of JSON per change, on the process's own log."""
    _log.info("%s", json.dumps(line.to_json()))


class ControlServer:
    """Serves a contract until `close`; the contract's own thread runs as long.

    Args:
        port: 0 takes a free one; `port` says which.

    Raises:
        ValueError: if it would answer without a token on an address that is not loopback.
        OSError: if the address is not to be had.
    """

    def __init__(self, contract: Contract, *, host: str = "127.0.0.1", port: int = 0) -> None:
        if not contract.guarded and not _loopback(host):
            raise ValueError(f"{host} is not loopback: run-time control there needs a token")
        self._contract = contract
        self._server = _Server((host, port), contract)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="tuner-control", daemon=True
        )

    def start(self) -> None:
        self._contract.start()
        self._thread.start()

    def close(self) -> None:
        """Answer nothing more; values stay as they are."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=10.0)
        self._server.server_close()
        self._contract.close()

    def __enter__(self) -> ControlServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # A restart may bind at once; two at the same time may not.
    allow_reuse_address = os.name == "posix"

    def __init__(self, address: tuple[str, int], contract: Contract) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.contract = contract
        self.places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is the peer's business."""
        _log.debug("connection from %s broke", client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tuner-contract"
    sys_version = ""
    timeout = PATIENCE_S
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PATCH(self) -> None:
        self._with_body()

    def do_POST(self) -> None:
        self._with_body()

    def do_PUT(self) -> None:
        self._with_body()

    def do_DELETE(self) -> None:
        self._with_body()

    def _with_body(self) -> None:
        length = self.headers.get("Content-Length", "0")
        chunked = "Transfer-Encoding" in self.headers
        if chunked or not (length.isascii() and length.isdigit()):
            self._refuse(411, "send a Content-Length")
        elif int(length) > LARGEST_BODY_BYTES:
            self._refuse(413, f"the body has {length} bytes; {LARGEST_BODY_BYTES} are allowed")
        else:
            self._answer(self.rfile.read(int(length)))

    def _refuse(self, status: int, sentence: str) -> None:
        self.close_connection = True  # the body was not read
        self._send(Response(status, {"Connection": "close"}, {"error": sentence}))

    def _answer(self, body: bytes) -> None:
        try:
            response = self.server.contract.handle(
                self.command, self.path, dict(self.headers), body, peer=self.client_address[0]
            )
        except Exception as trouble:  # the outermost guard of this thread
            _log.error("%s %s: %s: %s", self.command, self.path, type(trouble).__name__, trouble)
            response = Response(500, {}, {"error": f"fault of this side: {type(trouble).__name__}"})
        self._send(response)

    def _send(self, response: Response) -> None:
        payload = response.encoded()
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """The audit line says what changed; reads are not worth one."""
