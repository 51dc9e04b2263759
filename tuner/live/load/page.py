"""The load driver's own metrics page: the client side's count of requests, for whoever scrapes it.

An engine's page counts requests when they end, and can miss those that wait in front of it; this
one counts them when they are sent, and knows how many are under way.
"""

from __future__ import annotations

from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tuner.core.errors import ConfigError
from tuner.live.load.streaming import Answer


class LoadPage:
    """Counters of one run; a context, served over HTTP where a port is given.

    Args:
        host: address to listen on.
        port: None: no page; 0: a free one.

    Raises:
        ConfigError: the port is taken, when entered.
    """

    def __init__(self, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.registry = CollectorRegistry()
        self._host, self._port = host, port
        self._requests = self._counter("tuner_load_requests", "Requests sent, when sent.")
        self._in_flight = Gauge(
            "tuner_load_in_flight", "Requests sent and not ended.", registry=self.registry
        )
        self._finished = self._counter("tuner_load_finished", "Requests that ended well.")
        self._failed = Counter(
            "tuner_load_failed",
            "Requests that did not end well, or were not sent; by kind.",
            ["kind"],
            registry=self.registry,
        )
        self._prompt_tokens = self._counter(
            "tuner_load_prompt_tokens", "Prompt tokens of finished requests, as the engine counts."
        )
        self._output_tokens = self._counter(
            "tuner_load_output_tokens", "Tokens received, when received."
        )
        self.url: str | None = None
        """Where the page is, once entered."""

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, registry=self.registry)

    def __enter__(self) -> LoadPage:
        if self._port is not None:
            try:
                self._server, self._thread = start_http_server(
                    self._port, addr=self._host, registry=self.registry
                )
            except OSError as error:
                raise ConfigError(
                    f"--metrics-port {self._port}: {error.strerror}; name another one, or 0"
                ) from error
            self.url = f"http://{self._host}:{self._server.server_port}/metrics"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.url is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def sent(self) -> None:
        self._requests.inc()
        self._in_flight.inc()

    def output_tokens(self, count: int) -> None:
        self._output_tokens.inc(count)

    def ended(self, answer: Answer) -> None:
        """A request that was sent has ended, well or not."""
        self._in_flight.dec()
        if answer.failure is None:
            self._finished.inc()
            self._prompt_tokens.inc(answer.prompt_tokens or 0)
        else:
            self._failed.labels(answer.outcome).inc()

    def not_sent(self, answer: Answer) -> None:
        """A request that never left."""
        if answer.failure is not None:
            self._failed.labels(answer.outcome).inc()
