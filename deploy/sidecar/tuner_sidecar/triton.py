"""Triton: batch size and instances, by loading the model anew with its whole configuration.

Needs `--model-control-mode=explicit`. `POST /v2/repository/models/M/load` (the model repository
extension of the KServe protocol, docs/protocol/extension_model_repository.md in
triton-inference-server/server) takes the configuration as a JSON text in a parameter. Another
instance count is applied in place, everything else reloads, with both copies in memory; a load that
fails answers 400 or 500 and leaves the old model serving.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from .contract import Actuation, EngineError, Knob, RefusedByEngineError, Status
from .engine import About, EngineHttp, integer

LOAD_S = 900.0
"""Longest wait for a load: as long as the weights take."""

Limits = Mapping[str, tuple[int, int]]
"""Knob -> smallest, largest. Triton declares none: what does not fit fails to load."""


class Triton:
    """See `Engine`.

    Args:
        limits: range per knob; without one, 1 to the value found at the start.
    """

    name = "triton"

    def __init__(
        self, http: EngineHttp, model: str, limits: Limits, *, load_s: float = LOAD_S
    ) -> None:
        self._http = http
        self._model = model
        self._limits = dict(limits)
        self._load_s = load_s

    def about(self) -> About:
        server = self._http.get("/v2")
        version = server.get("version", "") if isinstance(server, dict) else ""
        for name, value in _values(self._config()).items():
            self._limits.setdefault(name, (1, max(value, 1)))
        return About(str(version), self._model)

    def status(self) -> Status:
        self._http.text("GET", f"/v2/models/{self._model}/ready")
        return Status(knobs=self._knobs(self._config()))

    def apply(self, values: Mapping[str, int]) -> None:
        config = with_values(self._config(), values)
        body = {"parameters": {"config": json.dumps(config)}}
        before = _values(self._config())
        try:
            self._http.ask(
                f"/v2/repository/models/{self._model}/load", body, timeout_s=self._load_s
            )
        except EngineError as trouble:
            # A failed load is told as 500 too: what is in force then tells the two apart.
            if " answered 5" in str(trouble) and _values(self._config()) == before:
                raise RefusedByEngineError(f"{trouble}; the old model goes on serving") from None
            raise
        held = _values(self._config())
        if any(held.get(name) != value for name, value in values.items()):
            raise EngineError(f"loaded {dict(values)}, and the configuration says {held}")

    def to_start_up(self) -> None:
        """Triton does not tell its start-up configuration; what is in force counts as it."""

    def _config(self) -> dict[str, Any]:
        config = self._http.get(f"/v2/models/{self._model}/config")
        if not isinstance(config, dict):
            raise EngineError(f"the configuration of {self._model} is no JSON object")
        return config

    def _knobs(self, config: Mapping[str, Any]) -> dict[str, Knob]:
        values = _values(config)
        one_group = len(_groups(config)) == 1
        batches: Actuation = "reload" if values["batch_size"] > 0 else "unsupported"
        found = {"batch_size": self._knob("batch_size", values, "sequences", batches)}
        if "threads" in values:
            instances: Actuation = "hot" if one_group else "unsupported"
            found["threads"] = self._knob("threads", values, "instances", instances)
        return found

    def _knob(self, name: str, values: Mapping[str, int], unit: str, actuation: Actuation) -> Knob:
        value = values[name]
        low, high = self._limits.get(name, (1, max(value, 1)))
        return Knob(value, low, high, unit, actuation, slow=True)


def with_values(config: Mapping[str, Any], values: Mapping[str, int]) -> dict[str, Any]:
    """The whole configuration with other values.

    Preferred batch sizes above the new batch size are lowered with it, or the load fails; the one
    that stood for "full" stays "full".
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    if "batch_size" in values:
        cap, before = values["batch_size"], changed.get("max_batch_size")
        changed["max_batch_size"] = cap
        batching = changed.get("dynamic_batching")
        if isinstance(batching, dict) and batching.get("preferred_batch_size"):
            sizes = batching["preferred_batch_size"]
            fitting = {cap if size == before else min(size, cap) for size in sizes}
            batching["preferred_batch_size"] = sorted(fitting)
    if "threads" in values:
        changed["instance_group"][0]["count"] = values["threads"]
    return changed


def _values(config: Mapping[str, Any]) -> dict[str, int]:
    values = {"batch_size": integer(config, "max_batch_size") or 0}
    counts = [integer(group, "count") for group in _groups(config)]
    if counts and None not in counts:
        values["threads"] = sum(count for count in counts if count is not None)
    return values


def _groups(config: Mapping[str, Any]) -> list[Any]:
    groups = config.get("instance_group")
    return groups if isinstance(groups, list) else []
