"""SGLang: metrics and endpoints of release 0.5.23 (`python/sglang/srt/entrypoints/http_server.py`,
`python/sglang/srt/metrics/collector.py`), read in the source and not run.

The one hot knob is `pp_max_micro_batch_size`, which each scheduler reads at every admission: with
one pipeline stage it is a cap on running requests. It is set through `/set_internal_state`, whose
answer is a list of booleans, one per scheduler, with status 200 whatever it says.

A sidecar with the contract, at a control address of its own, is used where there is one: it adds
the revision and the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines.answers import count, integer, objects
from tuner.engines.capability import REPLICAS, WARMUP, StartUp, from_contract, movable
from tuner.engines.engine import (
    Capability,
    EngineState,
    Health,
    KnobState,
    Metrics,
    Replica,
    Series,
    Standing,
)
from tuner.engines.http import EngineHttp, Reply, tolerant
from tuner.engines.openai import address, complete
from tuner.engines.runtime_config import RuntimeConfig, beside
from tuner.engines.settle import check_unmoved, check_wanted, fault, settle, speaking_of
from tuner.engines.states import health_by_sidecar, silent

METRICS = Metrics(
    path="/metrics",
    # Counted when a request comes in; the page counts its own scrapes there too.
    arrived=tuple(
        Series("sglang:http_requests_total", {"endpoint": endpoint, "method": "POST"})
        for endpoint in ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses")
    ),
    finished=(Series("sglang:num_requests_total"),),
    # Requests turned away are aborted too: http_responses_total would count them twice.
    failed=(Series("sglang:num_aborted_requests_total"),),
    prompt_tokens=Series("sglang:prompt_tokens_total"),
    output_tokens=Series("sglang:generation_tokens_total"),
    preemptions=Series("sglang:num_retracted_requests_total"),
    running=Series("sglang:num_running_reqs"),
    waiting=Series("sglang:num_queue_reqs"),
    kv_cache_usage=Series("sglang:token_usage"),
    ttft_s=Series("sglang:time_to_first_token_seconds"),
    tpot_s=Series("sglang:request_time_per_output_token_seconds"),
    e2e_s=Series("sglang:e2e_request_latency_seconds"),
)

START_UP: dict[str, StartUp] = {
    "batch_size": StartUp("--max-running-requests", ""),
    "threads": StartUp("--tokenizer-worker-num, --detokenizer-worker-num", ""),
}

CAP = "pp_max_micro_batch_size"
ROUTE = "POST /set_internal_state"
_CEILING = "effective_max_running_requests_per_dp"
_COUNTED_TWICE = "enable_metrics_for_all_schedulers"
_DOUBT = (
    "; metrics of all schedulers are on, so sums over ranks count twice: start without "
    "--enable-metrics-for-all-schedulers"
)


@dataclass(frozen=True)
class _Schedulers:
    """What `/server_info` says of the cap."""

    version: str
    model: str
    stages: int
    """Pipeline stages, pp_size."""
    caps: tuple[int | None, ...]
    """In force, one per scheduler (data-parallel rank)."""
    ceiling: int | None
    base: int | None
    """Cap at start-up: the top level of the answer does not follow a change."""
    counted_twice: bool

    @property
    def why_fixed(self) -> str:
        """Why the cap cannot be moved; empty: it can."""
        if self.stages != 1:
            return f"pp_size is {self.stages}: {CAP} is no cap on running requests unless it is 1"
        if not self.caps or None in self.caps:
            return f"/server_info names no {CAP} for some scheduler, so nothing could be read back"
        if self.ceiling is None:
            return "/server_info names no max_running_requests, so the range is not known"
        return ""


class Sglang:
    """One kind of engine; see `Engine`."""

    name = "sglang"
    standing: Standing = "from documentation"
    metrics = METRICS

    def __init__(self, http: EngineHttp) -> None:
        self._http = http
        self._sidecar = RuntimeConfig(http, native=False)

    def health(self, replica: Replica) -> Health:
        """`/ready` is 503 until it is up and while it exits. A pause cannot be read off the engine:
        only a completion, or a sidecar that paused it, tells."""
        try:
            reply = tolerant(
                lambda: self._http.get(replica.name, address(replica, "/ready")),
                FaultReason.NOT_FOUND,
            )
            if reply is None:  # older releases; /health generates a token and takes a second
                self._http.get(replica.name, address(replica, "/health"))
        except FaultError as trouble:
            answers = trouble.fault.reason is FaultReason.NOT_READY
            return Health(live=answers, ready=False, why=str(trouble))
        if not beside(replica):
            return Health(live=True, ready=True)
        return health_by_sidecar(self._sidecar, replica)

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        return complete(self._http, replica, output_tokens=output_tokens)

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        """Asks by sending the value in force: nothing changes, and a refusal shows."""
        if beside(replica):
            state = self._sidecar.read(replica)
            return from_contract(
                state, START_UP, lambda wanted: self._sidecar.check(replica, wanted, state)
            )
        threads = START_UP["threads"].fixed("threads", "it is read at start-up only")
        return self._batch_size(replica), REPLICAS, threads, WARMUP

    def read(self, replica: Replica) -> EngineState:
        if beside(replica):
            return self._sidecar.read(replica)
        return _state(self._schedulers(replica), replica)

    def set(
        self,
        replica: Replica,
        wanted: KnobSettings,
        seen: EngineState,
        *,
        ttl_s: float | None,
        reason: str,
    ) -> EngineState:
        """Without a sidecar nothing is temporary: `ttl_s` has no effect, as `seen.ttl` says."""
        if seen.revision is not None:
            return self._sidecar.set(replica, wanted, seen, ttl_s=ttl_s, reason=reason)
        check_wanted(replica, wanted, seen)
        if not wanted:
            return seen
        with speaking_of("batch_size"):
            check_unmoved(replica, wanted, seen, self.read(replica))
        cap, before = wanted["batch_size"], seen.knobs["batch_size"].value
        return settle(
            replica,
            wanted,
            seen,
            lambda: self._set_cap(replica, cap, before),
            lambda: self._read_agreed(replica),
        )

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        if seen.revision is not None:
            return self._sidecar.release(replica, seen)
        knob = seen.knobs.get("batch_size")
        if knob is None or knob.applied != "hot" or knob.base in (None, knob.value):
            return seen
        wanted = KnobSettings(batch_size=knob.base)
        return self.set(replica, wanted, seen, ttl_s=None, reason="release")

    def _batch_size(self, replica: Replica) -> Capability:
        start_up, found = START_UP["batch_size"], self._schedulers(replica)
        doubt = _DOUBT if found.counted_twice else ""
        knob = _state(found, replica).knobs.get("batch_size")
        if found.why_fixed or knob is None:
            return start_up.fixed("batch_size", found.why_fixed + doubt)
        try:
            self._set_cap(replica, knob.value, knob.value)
        except FaultError as trouble:
            if trouble.fault.reason not in _NO:
                raise
            return start_up.fixed("batch_size", str(trouble) + doubt)
        note = "ttl: unsupported, so nothing returns by itself when the controller is gone"
        return movable("batch_size", "hot", ROUTE, knob.low, knob.high, note + doubt)

    def _schedulers(self, replica: Replica) -> _Schedulers:
        reply = self._http.get(replica.name, address(replica, "/server_info"))
        return _parsed(reply, reply.mapping())

    def _read_agreed(self, replica: Replica) -> EngineState:
        """The state; a change counts when every scheduler reports it."""
        found = self._schedulers(replica)
        if len(set(found.caps)) > 1:
            sentence = f"its schedulers disagree on {CAP}: {', '.join(map(str, found.caps))}"
            raise fault(replica, FaultReason.REFUSED, sentence, "batch_size")
        return _state(found, replica)

    def _set_cap(self, replica: Replica, cap: int, before: int) -> None:
        """All schedulers or none: where some refused, the others get the value before."""
        took = self._send_cap(replica, cap)
        if all(took):
            return
        reason = FaultReason.REFUSED
        sentence = f"{ROUTE} answered 200 and {json.dumps(took)}: {CAP} {cap} is refused"
        if any(took) and cap != before and not self._put_back(replica, before, took):
            reason = FaultReason.OUTCOME_UNKNOWN
            sentence += f", and {before} could not be put back where it was taken"
        raise fault(replica, reason, sentence, "batch_size")

    def _put_back(self, replica: Replica, cap: int, took: list[bool]) -> bool:
        """Whether every scheduler that took the new value took the old one again."""
        try:
            back = self._send_cap(replica, cap)
        except FaultError:
            return False
        return len(back) == len(took) and all(
            yes for yes, moved in zip(back, took, strict=True) if moved
        )

    def _send_cap(self, replica: Replica, cap: int) -> list[bool]:
        reply = self._http.write(
            replica.name,
            "POST",
            address(replica, "/set_internal_state"),
            {"server_args": {CAP: cap}},
            auth=self._http.strongest,
        )
        took = reply.json()
        if not isinstance(took, list) or not took or not all(isinstance(x, bool) for x in took):
            raise reply.bad(f"'{reply.text[:80]}'", "a list of booleans, one per scheduler")
        return took


_NO = frozenset(
    {
        FaultReason.REFUSED,
        FaultReason.NOT_FOUND,
        FaultReason.UNAUTHORIZED,
        FaultReason.FORBIDDEN,
        FaultReason.INVALID,
        FaultReason.NOT_MOVABLE,
    }
)
"""Answers that mean: not here."""


def _parsed(reply: Reply, info: Mapping[str, object]) -> _Schedulers:
    if "internal_states" not in info:
        raise reply.bad("no internal_states", "one per scheduler")
    ranks = objects(reply, info, "internal_states")
    named = [count(reply, rank, _CEILING) for rank in ranks]
    ceilings = [ceiling for ceiling in named if ceiling is not None]
    ceiling = min(ceilings) if ceilings else count(reply, info, "max_running_requests")
    base = count(reply, info, CAP)
    return _Schedulers(
        version=str(info.get("version", "")),
        model=str(info.get("served_model_name") or info.get("model_path") or ""),
        stages=integer(reply, {"pp_size": 1, **info}, "pp_size"),
        caps=tuple(count(reply, rank, CAP) for rank in ranks),
        ceiling=ceiling,
        base=ceiling if base is None else base,
        counted_twice=info.get(_COUNTED_TWICE) is True,
    )


def _state(found: _Schedulers, replica: Replica) -> EngineState:
    caps = [cap for cap in found.caps if cap is not None]
    knobs: dict[str, KnobState] = {}
    if caps and found.ceiling is not None:
        # Where ranks disagree the largest counts: to ask for any other then moves them all.
        knobs["batch_size"] = KnobState(
            value=max(caps),
            low=1,
            high=found.ceiling,
            applied="unsupported" if found.why_fixed else "hot",
            base=found.base,
        )
    model = replica.model or found.model
    return replace(silent("sglang", replica), version=found.version, model=model, knobs=knobs)
