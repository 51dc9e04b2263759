"""What an engine adapter is: what can be read off an engine, what can be turned, and how.

An adapter holds no state of a replica: every call names the replica it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tuner.core.knobs import Applied, KnobSettings

Standing = Literal["verified", "from documentation"]
"""Whether an adapter was run against the real engine by the tests."""


@dataclass(frozen=True)
class Series:
    """One metric on an engine's page; the sum over its other labels is what counts."""

    name: str
    """As on the page: `vllm:num_requests_waiting`; a histogram without its `_bucket`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Samples that count: label -> value."""
    unit: float = 1.0
    """Factor from the page's unit to ours (s, 0-1, requests, tokens)."""


@dataclass(frozen=True)
class Metrics:
    """Where an engine's page says what; None or empty: it does not."""

    path: str
    """Of the page, on the replica's metrics port."""
    arrived: tuple[Series, ...] = ()
    """Counter, requests that came in."""
    finished: tuple[Series, ...] = ()
    """Counters, requests that ended well; summed."""
    failed: tuple[Series, ...] = ()
    """Counters, requests that ended badly or were turned away; summed."""
    prompt_tokens: Series | None = None
    """Counter."""
    output_tokens: Series | None = None
    """Counter."""
    preemptions: Series | None = None
    """Counter."""
    running: Series | None = None
    """Gauge."""
    waiting: Series | None = None
    """Gauge."""
    kv_cache_usage: Series | None = None
    """Gauge, 0-1; the mean over ranks counts."""
    ttft_s: Series | None = None
    """Histogram."""
    tpot_s: Series | None = None
    """Histogram, one observation per request."""
    e2e_s: Series | None = None
    """Histogram."""
    e2e_p99_s: Series | None = None
    """Gauge: the 99th percentile as the engine reckons it, where it keeps no histogram."""
    prompt_length: Series | None = None
    """Histogram of prompt tokens per request."""
    output_length: Series | None = None
    """Histogram of output tokens per request."""


@dataclass(frozen=True)
class Replica:
    """Where one replica answers."""

    name: str
    serving_url: str
    """Scheme, host and port of the OpenAI API and health; no path."""
    control_url: str
    """Scheme, host and port (and path before `/v1/runtime_config`) of run-time control."""
    model: str = ""
    """Served model; empty: the first one that the replica names."""
    metrics_url: str = ""
    """Scheme, host and port of the metrics page; empty: the serving address."""

    def page(self, path: str) -> str:
        """Address of the metrics page."""
        return (self.metrics_url or self.serving_url).rstrip("/") + path


@dataclass(frozen=True)
class KnobState:
    """One knob of one replica, as the replica says it stands."""

    value: int
    low: int
    high: int
    applied: Applied | Literal["unsupported"]
    base: int | None = None
    """What it falls back to when a temporary value ends; None where the engine has no such."""
    expires_in_s: float | None = None
    """Time left of a temporary value; None: it stays."""


@dataclass(frozen=True)
class EngineState:
    """One replica's run-time configuration."""

    engine: str
    version: str
    model: str
    instance: str | None
    """Changes with every process start; None where the engine does not say."""
    revision: int | None
    """Grows with every applied change; None where the engine does not count."""
    paused: bool
    sleeping: bool
    draining: bool
    running: int | None
    waiting: int | None
    knobs: Mapping[str, KnobState]
    ttl: bool
    """Whether values can be temporary: the dead-man switch of hot knobs."""


@dataclass(frozen=True)
class Health:
    """Whether a replica lives, whether it takes requests, and the sentence why not."""

    live: bool
    ready: bool
    why: str = ""


@dataclass(frozen=True)
class Capability:
    """What the probe found about one knob on one replica."""

    knob: str
    movable: bool
    applied: Applied
    route: str
    """Endpoint or start-up argument: `PATCH /v1/runtime_config`, `--max-num-seqs`."""
    sentence: str
    """Why it can be moved, or why not and what would help."""


class Engine(Protocol):
    """One kind of engine. Every call has a time-out and raises FaultError, never anything else."""

    @property
    def name(self) -> str: ...

    @property
    def standing(self) -> Standing: ...

    @property
    def metrics(self) -> Metrics: ...

    def health(self, replica: Replica) -> Health:
        """Ready means: the ready endpoint says so, not paused, not asleep. A dead replica is a
        Health, not an error."""

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        """One small real request; seconds to its last token."""

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        """Every knob of KNOBS: what can be moved here and what cannot, and why."""

    def read(self, replica: Replica) -> EngineState:
        """The run-time configuration in force."""

    def set(
        self,
        replica: Replica,
        wanted: KnobSettings,
        seen: EngineState,
        *,
        ttl_s: float | None,
        reason: str,
    ) -> EngineState:
        """Bring about some hot knobs, all or nothing, and read back.

        Raises:
            FaultError: with `knob` set. CONFLICT where the replica has moved since `seen`;
                OUTCOME_UNKNOWN where the answer was lost and reading back did not settle it.
        """

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        """Back to the base values, as if the controller had never been there."""
