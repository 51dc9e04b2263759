"""An engine's metrics page with known truth: vLLM's names, kept by the real Prometheus client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from envs.simulator.buckets import E2E_BOUNDS_S, TPOT_BOUNDS_S, TTFT_BOUNDS_S
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Metrics, Replica, Series
from tuner.live.pool import Member

SUCCESS = "vllm:request_success_total"

VLLM = Metrics(
    path="/metrics",
    finished=tuple(Series(SUCCESS, {"finished_reason": r}) for r in ("stop", "length")),
    failed=tuple(Series(SUCCESS, {"finished_reason": r}) for r in ("abort", "error")),
    prompt_tokens=Series("vllm:prompt_tokens_total"),
    output_tokens=Series("vllm:generation_tokens_total"),
    preemptions=Series("vllm:num_preemptions_total"),
    running=Series("vllm:num_requests_running"),
    waiting=Series("vllm:num_requests_waiting"),
    kv_cache_usage=Series("vllm:kv_cache_usage_perc"),
    ttft_s=Series("vllm:time_to_first_token_seconds"),
    tpot_s=Series("vllm:request_time_per_output_token_seconds"),
    e2e_s=Series("vllm:e2e_request_latency_seconds"),
    prompt_length=Series("vllm:request_prompt_tokens"),
    output_length=Series("vllm:request_generation_tokens"),
)
TOKEN_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class EnginePage:
    """The page of one engine process; a restart is a new object."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("engine", "model_name")

        def at(kind: type, name: str, **options: object):
            return kind(name, name, labels, registry=self.registry, **options).labels("0", "m")

        self._success = Counter(
            "vllm:request_success", "ended", (*labels, "finished_reason"), registry=self.registry
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels("0", "m", reason)
        self.prompt_tokens = at(Counter, "vllm:prompt_tokens")
        self.output_tokens = at(Counter, "vllm:generation_tokens")
        self.preemptions = at(Counter, "vllm:num_preemptions")
        self.running = at(Gauge, "vllm:num_requests_running")
        self.waiting = at(Gauge, "vllm:num_requests_waiting")
        self.kv = at(Gauge, "vllm:kv_cache_usage_perc")
        ttft, tpot, e2e = TTFT_BOUNDS_S, TPOT_BOUNDS_S, E2E_BOUNDS_S
        self.ttft = at(Histogram, "vllm:time_to_first_token_seconds", buckets=ttft)
        self.tpot = at(Histogram, "vllm:request_time_per_output_token_seconds", buckets=tpot)
        self.e2e = at(Histogram, "vllm:e2e_request_latency_seconds", buckets=e2e)
        self.prompts = at(Histogram, "vllm:request_prompt_tokens", buckets=TOKEN_BOUNDS)
        self.outputs = at(Histogram, "vllm:request_generation_tokens", buckets=TOKEN_BOUNDS)
        # What stands beside it on vLLM's page, and must not disturb.
        self._http = Counter(
            "http_requests", "answered", ("handler", "status"), registry=self.registry
        )

    def finish(
        self,
        *,
        prompt: int = 24,
        output: int = 16,
        ttft_s: float = 0.05,
        tpot_s: float = 0.02,
        reason: str = "stop",
    ) -> None:
        """One request from its first token to its end."""
        self._http.labels("/v1/completions", "2xx").inc()
        self._success.labels("0", "m", reason).inc()
        self.prompt_tokens.inc(prompt)
        self.output_tokens.inc(output)
        self.ttft.observe(ttft_s)
        self.tpot.observe(tpot_s)
        self.e2e.observe(ttft_s + tpot_s * (output - 1))
        self.prompts.observe(prompt)
        self.outputs.observe(output)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def member(name: str, url: str = "http://127.0.0.1:9", state: str = "ready") -> Member:
    """A replica that answers at `url`."""
    replica = Replica(name=name, serving_url=url, control_url=url)
    return Member(name=name, state=ReplicaState(state), age_s=1000.0, replica=replica)


@dataclass
class Answer:
    """What a server says to every GET."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def serving(answer) -> Iterator[str]:
    """A real HTTP server on a free loopback port that answers GET with `answer(path, headers)`.

    `answer` gives an Answer, or None to hang up without one. Yields the base address.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = answer(self.path, self.headers)
            if found is None:
                self.close_connection = True
                return
            with suppress(ConnectionError):  # who asked has given up
                self.send_response(found.status)
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(found.body)))
                self.end_headers()
                self.wfile.write(found.body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
