"""vLLM: metrics and endpoints of release 0.33.0 (`vllm/v1/metrics/loggers.py`,
`vllm/entrypoints/serve`); 0.32.0 has the same names."""

from __future__ import annotations

import re
from dataclasses import replace

from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines.answers import flag
from tuner.engines.capability import REPLICAS, WARMUP, StartUp, from_contract
from tuner.engines.engine import (
    Capability,
    EngineState,
    Health,
    Metrics,
    Replica,
    Series,
    Standing,
)
from tuner.engines.http import EngineHttp, tolerant
from tuner.engines.openai import address, complete
from tuner.engines.runtime_config import RuntimeConfig
from tuner.engines.states import health_of, silent

_FINISHED = "vllm:request_success_total"

METRICS = Metrics(
    path="/metrics",
    # Nothing on the page grows when a request arrives: http_requests_total counts finished
    # responses, so arrivals are estimated or come from the gateway.
    arrived=(),
    finished=tuple(
        Series(_FINISHED, {"finished_reason": reason})
        for reason in ("stop", "length", "repetition")
    ),
    # http_requests_total{status="5xx"} would count rejections and errors a second time.
    failed=(
        Series(_FINISHED, {"finished_reason": "error"}),
        Series(_FINISHED, {"finished_reason": "abort"}),
        Series("vllm:admission_rejections_total"),
    ),
    prompt_tokens=Series("vllm:prompt_tokens_total"),
    output_tokens=Series("vllm:generation_tokens_total"),
    preemptions=Series("vllm:num_preemptions_total"),
    running=Series("vllm:num_requests_running"),
    waiting=Series("vllm:num_requests_waiting"),
    kv_cache_usage=Series("vllm:kv_cache_usage_perc"),  # a ratio, whatever its name says
    ttft_s=Series("vllm:time_to_first_token_seconds"),
    # Per request; vLLM's inter_token_latency_seconds is per token and another thing.
    tpot_s=Series("vllm:request_time_per_output_token_seconds"),
    e2e_s=Series("vllm:e2e_request_latency_seconds"),
    prompt_length=Series("vllm:request_prompt_tokens"),
    output_length=Series("vllm:request_generation_tokens"),
)

START_UP: dict[str, StartUp] = {
    "batch_size": StartUp(
        "--max-num-active-seqs (ceiling: --max-num-seqs)", "load the plugin of deploy/vllm_plugin"
    ),
    "threads": StartUp("--api-server-count, --renderer-num-workers", ""),
}

_ASLEEP = re.compile(
    rb'^vllm:engine_sleep_state\{(?=[^}\n]*sleep_state="awake")[^}\n]*\} 0(\.0)?\s*$', re.M
)
"""A rank that is not awake."""


class Vllm:
    """One kind of engine; see `Engine`."""

    name = "vllm"
    standing: Standing = "verified"
    metrics = METRICS

    def __init__(self, http: EngineHttp) -> None:
        self._http = http
        self._config = RuntimeConfig(http)

    def health(self, replica: Replica) -> Health:
        """`/health` stays 200 while paused and while asleep, so these are asked for besides."""
        try:
            self._http.get(replica.name, address(replica, "/health"))
        except FaultError as trouble:
            return Health(live=False, ready=False, why=str(trouble))
        try:
            state = self._as_it_stands(replica)
        except FaultError as trouble:
            return Health(live=True, ready=False, why=str(trouble))
        return health_of(replica, state)

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        return complete(self._http, replica, output_tokens=output_tokens)

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        try:
            state = self._config.read(replica)
        except FaultError as trouble:
            if trouble.fault.reason not in _NO_ENTRY:
                raise
            batch, threads = (
                START_UP[knob].fixed(knob, str(trouble)) for knob in ("batch_size", "threads")
            )
            return batch, REPLICAS, threads, WARMUP
        return from_contract(
            state, START_UP, lambda wanted: self._config.check(replica, wanted, state)
        )

    def read(self, replica: Replica) -> EngineState:
        """Without a run-time configuration endpoint: no knobs, and what else can be seen."""
        try:
            state = self._config.read(replica)
        except FaultError as trouble:
            if trouble.fault.reason is not FaultReason.NOT_FOUND:
                raise
            return self._seen_from_outside(replica, silent("vllm", replica))
        return self._complemented(replica, state)

    def set(
        self,
        replica: Replica,
        wanted: KnobSettings,
        seen: EngineState,
        *,
        ttl_s: float | None,
        reason: str,
    ) -> EngineState:
        return self._moved(
            replica, self._config.set(replica, wanted, seen, ttl_s=ttl_s, reason=reason)
        )

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        return self._moved(replica, self._config.release(replica, seen))

    def _as_it_stands(self, replica: Replica) -> EngineState:
        """The state as far as it tells whether requests are taken: a control port that is shut
        says nothing about that."""
        try:
            return self.read(replica)
        except FaultError:
            return self._seen_from_outside(replica, silent("vllm", replica))

    def _complemented(self, replica: Replica, state: EngineState) -> EngineState:
        """A native endpoint says nothing of pause and sleep."""
        if state.revision is not None:
            return state
        return self._seen_from_outside(replica, state)

    def _moved(self, replica: Replica, state: EngineState) -> EngineState:
        """As above, after a write: it was done, whatever else cannot be told."""
        try:
            return self._complemented(replica, state)
        except FaultError:
            return state

    def _seen_from_outside(self, replica: Replica, state: EngineState) -> EngineState:
        """Pause and sleep by the development routes, sleep else by the metrics page.

        Without those routes nothing can have paused it: they are the only way to do so.
        """
        paused = self._says(replica, "/is_paused", "is_paused")
        sleeping = self._says(replica, "/is_sleeping", "is_sleeping")
        if sleeping is None:
            page = self._http.get(replica.name, address(replica, METRICS.path), auth="none")
            sleeping = _ASLEEP.search(page.body) is not None
        return replace(
            state,
            paused=state.paused or paused is True,
            sleeping=state.sleeping or sleeping,
        )

    def _says(self, replica: Replica, path: str, key: str) -> bool | None:
        reply = tolerant(
            lambda: self._http.get(replica.name, address(replica, path)), FaultReason.NOT_FOUND
        )
        return None if reply is None else flag(reply, reply.mapping(), key)


_NO_ENTRY = frozenset({FaultReason.NOT_FOUND, FaultReason.UNAUTHORIZED, FaultReason.FORBIDDEN})
