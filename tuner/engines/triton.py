"""Triton Inference Server: metrics and endpoints of release 2.51.0 (triton-inference-server/server
`docs/user_guide/metrics.md`, `docs/protocol/extension_model_repository.md`).

A knob is moved by loading the model anew with another configuration, given whole. Instances change
in place; another batch size is a full reload, during which both copies are in memory and the old
one serves. So is the first change of all, which writes the values before into the model's own
parameters. A refused load leaves the old one serving.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from time import perf_counter
from typing import Any

from tuner.core.faults import FaultError, FaultReason
from tuner.core.knobs import Applied, KnobSettings
from tuner.engines.answers import integer, objects, text
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
from tuner.engines.http import EngineHttp, Reply
from tuner.engines.openai import address
from tuner.engines.runtime_config import RuntimeConfig, beside
from tuner.engines.settle import check_unmoved, check_wanted, moving, settle, speaking_of
from tuner.engines.states import health_by_sidecar, silent
from tuner.knobs import KNOBS

METRICS = Metrics(
    path="/metrics",  # on the metrics port, 8002 unless told otherwise
    # Success and failure are counted when a request ends: under overload they are no arrivals.
    arrived=(),
    finished=(Series("nv_inference_request_success"),),
    failed=(Series("nv_inference_request_failure"),),
    waiting=Series("nv_inference_pending_request_count"),
    # Milliseconds, decoupled models only.
    ttft_s=Series("nv_inference_first_response_histogram_ms", unit=1e-3),
    # No histogram of the whole request: quantiles as the server reckons them, in microseconds.
    e2e_p99_s=Series("nv_inference_request_summary_us", {"quantile": "0.99"}, unit=1e-6),
)

LOAD_TIMEOUT_S = 120.0
"""Longest wait for a load, s: a tiny model takes 2 to 22, real weights as long as at start-up."""
LOAD = "POST /v2/repository/models/{model}/load"
START_UP: dict[str, StartUp] = {
    "batch_size": StartUp("max_batch_size", "start with --model-control-mode=explicit"),
    "threads": StartUp("instance_group", "start with --model-control-mode=explicit"),
}
BASE = "tuner_base"
"""Parameter of the model that holds the values of its start once they were changed: whoever
releases it, after a restart too, finds them there. No backend knows that name."""
NO_SUCH_MODEL = "tuner-asks-whether-models-can-be-loaded"
"""Loading it fails in either control mode, with different errors: that is how one asks."""

_ZEROS: Mapping[str, object] = {"BYTES": "", "BOOL": False, "FP32": 0.0, "FP64": 0.0}
"""What a request is filled with, by type; whole numbers by default: 0 is in every vocabulary."""


class Triton:
    """One kind of engine; see `Engine`.

    Args:
        load_timeout_s: longest wait for a load.
    """

    name = "triton"
    standing: Standing = "verified"
    metrics = METRICS

    def __init__(self, http: EngineHttp, *, load_timeout_s: float = LOAD_TIMEOUT_S) -> None:
        self._http = http
        self._sidecar = RuntimeConfig(http, native=False)
        self._load_timeout_s = load_timeout_s

    def health(self, replica: Replica) -> Health:
        try:
            self._get(replica, "/v2/health/live")
        except FaultError as trouble:
            return Health(live=False, ready=False, why=str(trouble))
        try:
            self._get(replica, "/v2/health/ready")
            self._get(replica, f"/v2/models/{self._model(replica)}/ready")
        except FaultError as trouble:
            return Health(live=True, ready=False, why=str(trouble))
        if not beside(replica):
            return Health(live=True, ready=True)
        return health_by_sidecar(self._sidecar, replica)

    def complete(self, replica: Replica, *, output_tokens: int = 1) -> float:
        """One inference on zeros, with every dimension that is open set to 1.

        How many tokens come back is the model's affair. An answer without output is a fault: a
        Python stub with numpy 2 answers 200 with empty output, and its success counter rises.
        """
        model = self._model(replica)
        about = self._get(replica, f"/v2/models/{model}")
        body = {"inputs": [_zeros(about, i) for i in objects(about, about.mapping(), "inputs")]}
        begun = perf_counter()
        reply = self._http.ask(replica.name, address(replica, f"/v2/models/{model}/infer"), body)
        took_s = perf_counter() - begun
        outputs = objects(reply, reply.mapping(), "outputs")
        if not outputs or not all(out.get("data") for out in outputs):
            raise reply.bad("empty output", "data in every output (numpy 2 in the Python stub?)")
        return took_s

    def capabilities(self, replica: Replica) -> tuple[Capability, ...]:
        """Asks by loading a model that does not exist: nothing changes, and the control mode
        shows."""
        if beside(replica):
            state = self._sidecar.read(replica)
            return from_contract(
                state, START_UP, lambda wanted: self._sidecar.check(replica, wanted, state)
            )
        state, why = self.read(replica), self._why_fixed(replica)
        batch, threads = (_capability(state, name, why) for name in ("batch_size", "threads"))
        return batch, REPLICAS, threads, WARMUP

    def read(self, replica: Replica) -> EngineState:
        if beside(replica):
            return self._sidecar.read(replica)
        model = self._model(replica)
        server = self._get(replica, "/v2")
        reply = self._config(replica, model)
        return replace(
            silent("triton", replica),
            version=text(server, server.mapping(), "version"),
            model=model,
            knobs=_knobs(reply, reply.mapping()),
        )

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
        with speaking_of(moving(seen, wanted)):
            model = self._model(replica)
            reply = self._config(replica, model)
            now = replace(seen, knobs=_knobs(reply, reply.mapping()))
        check_unmoved(replica, wanted, seen, now)
        body = _load_body(with_knobs(reply.mapping(), wanted))
        return settle(
            replica,
            wanted,
            seen,
            lambda: self._load(replica, model, body),
            lambda: self.read(replica),
        )

    def release(self, replica: Replica, seen: EngineState) -> EngineState:
        """Back to the values that were written down at the first change. Loading the model without
        a configuration does not do it: Triton keeps the one it was given."""
        if seen.revision is not None:
            return self._sidecar.release(replica, seen)
        model = self._model(replica)
        reply = self._config(replica, model)
        config = reply.mapping()
        if _written_down(config) is None:
            return seen
        base = KnobSettings(
            {name: knob.base for name, knob in _knobs(reply, config).items() if knob.base}
        )
        body = _load_body(restored(config))
        return settle(
            replica,
            base,
            seen,
            lambda: self._load(replica, model, body),
            lambda: self.read(replica),
        )

    def _get(self, replica: Replica, path: str) -> Reply:
        return self._http.get(replica.name, address(replica, path))

    def _config(self, replica: Replica, model: str) -> Reply:
        return self._get(replica, f"/v2/models/{model}/config")

    def _model(self, replica: Replica) -> str:
        if replica.model:
            return replica.model
        url = address(replica, "/v2/repository/index")
        reply = self._http.ask(replica.name, url, {"ready": True})
        for model in objects(reply, {"models": reply.json()}, "models"):
            name = model.get("name")
            if isinstance(name, str):
                return name
        raise reply.bad("no model", "at least one that is ready")

    def _load(self, replica: Replica, model: str, body: Mapping[str, object]) -> None:
        """One load; a 500 is Triton's way of refusing, and leaves the old model serving."""
        try:
            self._http.write(
                replica.name,
                "POST",
                address(replica, f"/v2/repository/models/{model}/load"),
                body,
                auth=self._http.strongest,
                timeout_s=self._load_timeout_s,
            )
        except FaultError as trouble:
            if trouble.fault.reason is not FaultReason.SERVER_ERROR:
                raise
            sentence = f"{trouble.fault.sentence}; the old model goes on serving"
            refused = replace(trouble.fault, reason=FaultReason.SERVER_ERROR, sentence=sentence)
            raise FaultError(refused) from None

    def _why_fixed(self, replica: Replica) -> str:
        """Why no model can be loaded; empty: one can."""
        try:
            self._load(replica, NO_SUCH_MODEL, {})
        except FaultError as trouble:
            if trouble.fault.reason in _CANNOT:
                return str(trouble)
            if trouble.fault.reason in _CAN:
                return ""
            raise
        return ""


_CAN = frozenset({FaultReason.INVALID, FaultReason.NOT_FOUND, FaultReason.SERVER_ERROR})
"""Answers to the load of a model that does not exist, where models can be loaded."""
_CANNOT = frozenset({FaultReason.NOT_READY, FaultReason.UNAUTHORIZED, FaultReason.FORBIDDEN})
"""`explicit model load / unload is not allowed` comes as 503."""


def with_knobs(config: Mapping[str, object], wanted: KnobSettings) -> dict[str, Any]:
    """The whole configuration with other knobs, and the values of the start written down in it.

    Preferred batch sizes are cut along with the batch size, or the load fails; the one that stood
    for "full" at the start goes on doing so.

    Args:
        config: as the server gives it, with at most one instance group.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    base = _written_down(config)
    if base is None:
        base = _base_of(config)
        note = {"string_value": json.dumps(base)}
        changed["parameters"] = {**_mapping(changed.get("parameters")), BASE: note}
    if "batch_size" in wanted:
        cap = wanted["batch_size"]
        changed["max_batch_size"] = cap
        full = base["max_batch_size"]
        _set_preferred(
            changed, {cap if size >= full else min(size, cap) for size in base["preferred"]}
        )
    if "threads" in wanted:
        changed["instance_group"][0]["count"] = wanted["threads"]
    return changed


def restored(config: Mapping[str, object]) -> dict[str, Any]:
    """The configuration with the values that are written down in it, and without that note."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    base = _written_down(config)
    if base is None:
        return changed
    changed["max_batch_size"] = base["max_batch_size"]
    _set_preferred(changed, set(base["preferred"]))
    if base.get("count") is not None:
        changed["instance_group"][0]["count"] = base["count"]
    del changed["parameters"][BASE]
    return changed


def _set_preferred(config: dict[str, Any], sizes: set[int]) -> None:
    batching = config.get("dynamic_batching")
    if isinstance(batching, dict) and sizes:
        batching["preferred_batch_size"] = sorted(sizes)


def _base_of(config: Mapping[str, object]) -> dict[str, Any]:
    preferred = _mapping(config.get("dynamic_batching")).get("preferred_batch_size")
    groups = config.get("instance_group")
    only = groups[0] if isinstance(groups, list) and len(groups) == 1 else None
    return {
        "max_batch_size": config.get("max_batch_size", 0),
        "preferred": preferred if _whole(preferred) else [],
        "count": _mapping(only).get("count"),
    }


def _written_down(config: Mapping[str, object]) -> dict[str, Any] | None:
    """The values of the start, where a change has written them down."""
    note = _mapping(_mapping(config.get("parameters")).get(BASE)).get("string_value")
    try:
        base = _mapping(json.loads(note if isinstance(note, str) else "null"))
    except (ValueError, RecursionError):
        return None
    numbers = [base.get("max_batch_size"), *([] if base.get("count") is None else [base["count"]])]
    return dict(base) if _whole(numbers) and _whole(base.get("preferred")) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(values: object) -> bool:
    """Whether this is a list of whole numbers."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) for value in values
    )


def _load_body(config: Mapping[str, object]) -> dict[str, object]:
    return {"parameters": {"config": json.dumps(config)}}


def _knobs(reply: Reply, config: Mapping[str, object]) -> dict[str, KnobState]:
    base = _written_down(config) or _base_of(config)
    batch = integer(reply, {"max_batch_size": 0, **config}, "max_batch_size")
    knobs = {
        "batch_size": _knob(
            "batch_size", batch, base["max_batch_size"], "reload" if batch > 0 else None
        )
    }
    groups = objects(reply, config, "instance_group")
    counts = [integer(reply, group, "count", "instance_group.") for group in groups]
    if counts:
        applied: Applied | None = "hot" if len(counts) == 1 else None
        knobs["threads"] = _knob("threads", sum(counts), base.get("count"), applied)
    return knobs


def _knob(name: str, value: int, base: int | None, applied: Applied | None) -> KnobState:
    """Triton declares no ceiling: what does not fit fails to load. The range is the knob's own."""
    spec = KNOBS[name]
    return KnobState(value, spec.low, spec.high, applied or "unsupported", base)


def _capability(state: EngineState, name: str, why: str) -> Capability:
    knob = state.knobs.get(name)
    if why:
        return START_UP[name].fixed(name, why)
    if knob is None or knob.applied == "unsupported":
        sentence = {
            "batch_size": "the model's max_batch_size is 0: it takes no batches",
            "threads": "the model has not exactly one instance group",
        }[name]
        return replace(
            START_UP[name].fixed(name, sentence), sentence=f"{sentence}; correct config.pbtxt"
        )
    note = {
        "batch_size": "a full reload with both copies in memory",
        "threads": "instances change in place, but for the first change",
    }[name]
    note += "; ttl: unsupported, so nothing returns by itself when the controller is gone"
    return movable(name, "hot" if name == "threads" else "reload", LOAD, knob.low, knob.high, note)


def _zeros(reply: Reply, tensor: Mapping[str, object]) -> dict[str, object]:
    """A tensor of zeros for one input, open dimensions set to 1."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise reply.bad(f"shape {shape!r}", "a list of whole numbers")
    closed = [max(size, 1) for size in shape]
    kind = text(reply, tensor, "datatype")
    return {
        "name": text(reply, tensor, "name"),
        "datatype": kind,
        "shape": closed,
        "data": [_ZEROS.get(kind, 0)] * prod(closed),
    }
