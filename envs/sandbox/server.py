"""The sandbox over HTTP: what answers where.

    GET    /                                     what this is, as JSON
    GET    /healthz                              200
    GET    /metrics                              all on one page, replicas told apart by `pod`
    GET    /traffic/metrics                      the client side: arrivals, in flight
    GET    /pool                                 replicas wanted and there; ETag is the version
    PUT    /pool  {"replicas": n}                If-Match; 409 when somebody wrote in between
    GET    /pool/warmup, PUT {"requests": n}     warm-up requests of replicas that start from now on
    GET    /replicas/NAME/metrics                in vLLM's format, since that replica's start
    GET    /replicas/NAME/health, /version, /is_paused, /is_sleeping, /v1/models
    POST   /replicas/NAME/v1/completions         answered at once; no part of the simulated load
    GET, PATCH /replicas/NAME/v1/runtime_config  the contract of `tuner.engines.contract`
    POST   /replicas/NAME/v1/runtime_config/rollback

A replica that starts answers 503, one that is gone 404. Errors are `{"error": sentence}`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from envs.sandbox.cluster import STATES, Instance, SandboxCluster, StaleVersionError
from envs.sandbox.pages import CONTENT_TYPE, replica_page, traffic_page, whole_page
from tuner.core.errors import ConfigError
from tuner.engines.contract import PATH as CONFIG_PATH

LARGEST_BODY_BYTES = 16 * 2**20
"""A prompt of a million token numbers fits."""
PATIENCE_S = 30.0
"""A peer that sends or takes nothing for so long is given up."""
MOST_COMPLETION_TOKENS = 64
"""Tokens of an answer, however many are asked for: it is there to prove life."""


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        return cls(status, json.dumps(data).encode(), headers=headers or {})

    @classmethod
    def text(cls, page: str) -> Reply:
        return cls(200, page.encode(), CONTENT_TYPE)


class _RefusalError(Exception):
    """A request that ends here."""

    def __init__(self, status: int, sentence: str, **more: object) -> None:
        super().__init__(sentence)
        self.reply = Reply.of({"error": sentence, **more}, status)


class SandboxServer:
    """Serves a cluster on loopback while entered.

    Args:
        cluster: looked at and written to under one lock.
        port: 0 takes a free one.
        speed, epoch_s: of the cluster's clock, told to whoever asks: a controller must have the
            same.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(
        self,
        cluster: SandboxCluster,
        *,
        port: int = 0,
        speed: float = 1.0,
        epoch_s: float = 0.0,
    ) -> None:
        self.cluster = cluster
        self._time = {"speed": speed, "epoch_s": epoch_s}
        self.lock = threading.Lock()
        """Held around every use of the cluster."""
        try:
            self._server = _Server(("127.0.0.1", port), self)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; name another one, or 0") from error
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="sandbox", daemon=True
        )

    def __enter__(self) -> SandboxServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(timeout=10.0)
        self._server.server_close()

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The answer to one request, at the cluster's present time.

        Args:
            headers: names in lower case.
        """
        path = path.split("?", 1)[0]
        try:
            with self.lock:
                self.cluster.look()
                return self._route(method, path, headers, body)
        except _RefusalError as refusal:
            return refusal.reply

    def _route(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if path.startswith("/replicas/"):
            name, _, rest = path.removeprefix("/replicas/").partition("/")
            return self._replica(name, method, "/" + rest, headers, body)
        if path == "/pool":
            return self._pool(method, headers, body)
        if path == "/pool/warmup":
            return self._warmup(method, body)
        if method != "GET":
            raise _RefusalError(405, f"{method} is not for {path}; only GET")
        if path == "/metrics":
            return Reply.text(whole_page(self.cluster))
        if path == "/traffic/metrics":
            return Reply.text(traffic_page(self.cluster))
        if path == "/healthz":
            return Reply(200, b"ok\n", "text/plain")
        if path == "/":
            return Reply.of(self._about())
        raise _RefusalError(404, f"no such path: {path}; / names what there is")

    def _about(self) -> dict[str, object]:
        return {
            "sandbox": self.cluster.model,
            **self._time,
            "simulated_s": self.cluster.now_s,
            "load_ended": self.cluster.load_ended,
            "paths": ["/metrics", "/traffic/metrics", "/pool", "/pool/warmup", "/replicas/NAME/"],
        }

    # The pool.

    def _pool(self, method: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if method == "PUT":
            version = headers.get("if-match")
            if version is None:
                raise _RefusalError(428, "If-Match is missing; send the ETag of the last GET")
            try:
                self.cluster.scale(_whole_number(body, "replicas"), version.strip('"'))
            except StaleVersionError as stale:
                raise _RefusalError(409, str(stale), state=self._state()) from None
            except ValueError as error:
                raise _RefusalError(400, str(error)) from None
        elif method != "GET":
            raise _RefusalError(405, f"{method} is not for /pool; GET and PUT are")
        return Reply.of(self._state(), headers={"ETag": f'"{self.cluster.version}"'})

    def _state(self) -> dict[str, object]:
        return {
            "wanted": self.cluster.wanted,
            "version": str(self.cluster.version),
            "max_replicas": self.cluster.max_replicas,
            "model": self.cluster.model,
            "members": [self._member(one) for one in self.cluster.instances.values()],
        }

    def _member(self, one: Instance) -> dict[str, object]:
        url = f"{self.url}/replicas/{one.name}"
        return {
            "name": one.name,
            "state": STATES[one.state],
            "age_s": self.cluster.now_s - one.started_s,
            "url": url,
            "control_url": url,
        }

    def _warmup(self, method: str, body: bytes) -> Reply:
        if method == "PUT":
            if self.cluster.warmup_requests is None:
                raise _RefusalError(501, "the profile has no startup section: no warm-up here")
            try:
                self.cluster.set_warmup(_whole_number(body, "requests"))
            except ValueError as error:
                raise _RefusalError(400, str(error)) from None
        elif method != "GET":
            raise _RefusalError(405, f"{method} is not for /pool/warmup; GET and PUT are")
        return Reply.of({"requests": self.cluster.warmup_requests})

    # One replica.

    def _replica(
        self, name: str, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        one = self.cluster.instances.get(name)
        if one is None:
            raise _RefusalError(404, f"there is no replica {name!r}; GET /pool names them")
        if not one.serves:
            raise _RefusalError(503, f"{name} is {STATES[one.state]}; wait until it is ready")
        if path.startswith(CONFIG_PATH):
            answered = one.contract.handle(method, path, headers, body, peer="127.0.0.1")
            self.cluster.look()  # brings about what the contract agreed to
            return Reply(answered.status, answered.encoded(), headers=answered.headers)
        if path == "/v1/completions" and method == "POST":
            return _completion(self.cluster.model, body)
        pages: Mapping[str, Any] = {
            "/health": {},
            "/version": {"version": "sandbox"},
            "/is_paused": {"is_paused": False},
            "/is_sleeping": {"is_sleeping": False},
            "/v1/models": {
                "object": "list",
                "data": [{"id": self.cluster.model, "object": "model", "owned_by": "sandbox"}],
            },
        }
        if method != "GET":
            raise _RefusalError(405, f"{method} is not for {path}")
        if path == "/metrics":
            return Reply.text(replica_page(self.cluster, one))
        if path not in pages:
            raise _RefusalError(404, f"no such path: {path}")
        return Reply.of(pages[path])


def _completion(model: str, body: bytes) -> Reply:
    data = _json_object(body)
    prompt, wanted = data.get("prompt"), data.get("max_tokens", 16)
    if not isinstance(prompt, str | list) or not prompt:
        raise _RefusalError(400, "prompt is missing; send a text or a list of token numbers")
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise _RefusalError(400, f"max_tokens is {wanted!r}; expected a whole number from 1 on")
    if data.get("model") not in (None, model):
        raise _RefusalError(404, f"the model {data['model']!r} does not exist; it is {model!r}")
    tokens = min(wanted, MOST_COMPLETION_TOKENS)
    counted = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    usage = {
        "prompt_tokens": counted,
        "completion_tokens": tokens,
        "total_tokens": counted + tokens,
    }
    about = {"id": "cmpl-sandbox", "object": "text_completion", "created": 0, "model": model}
    if not data.get("stream"):
        choice = {"index": 0, "text": " a" * tokens, "finish_reason": "length", "logprobs": None}
        return Reply.of({**about, "choices": [choice], "usage": usage})
    events: list[object] = [
        {**about, "choices": [{"index": 0, "text": " a", "finish_reason": None}]}
        for _ in range(tokens)
    ]
    events.append({**about, "choices": [], "usage": usage})
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return Reply(200, stream.encode(), "text/event-stream")


def _whole_number(body: bytes, key: str) -> int:
    data = _json_object(body)
    value = data.get(key)
    if set(data) != {key} or isinstance(value, bool) or not isinstance(value, int):
        raise _RefusalError(400, f'the body is not {{"{key}": N}} with a whole number')
    return value


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusalError(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise _RefusalError(400, "the body is not a JSON object")
    return data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], sandbox: SandboxServer) -> None:
        self.sandbox = sandbox
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is the peer's business; anything else is a mistake in here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tuner-sandbox"
    sys_version = ""
    timeout = PATIENCE_S
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        self._with_body()

    def do_POST(self) -> None:
        self._with_body()

    def do_PATCH(self) -> None:
        self._with_body()

    def _with_body(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= LARGEST_BODY_BYTES):
            self.close_connection = True  # the body was not read
            self._send(_RefusalError(411, "send a Content-Length, of 16 MiB at most").reply)
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.server.sandbox.answer(self.command, self.path, headers, body))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        """One line per request would drown the status line."""
