"""SGLang: its one hot key, `pp_max_micro_batch_size`, through `/set_internal_state`.

From the source of release 0.5.23 (python/sglang/srt/managers/scheduler.py and
python/sglang/srt/entrypoints/http_server.py), not run against the engine. With one pipeline stage
each scheduler reads the key at every admission, so it caps running requests. The answer to a set is
a list of booleans, one per scheduler, with status 200 whatever they say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .contract import EngineError, Knob, RefusedByEngineError, Status
from .engine import About, EngineHttp, integer

CAP = "pp_max_micro_batch_size"
CEILING = "effective_max_running_requests_per_dp"


class Sglang:
    """See `Engine`."""

    name = "sglang"

    def __init__(self, http: EngineHttp) -> None:
        self._http = http

    def about(self) -> About:
        info = self._info()
        model = info.get("served_model_name") or info.get("model_path") or ""
        return About(str(info.get("version", "")), str(model))

    def status(self) -> Status:
        info = self._info()
        counts = self._counts()
        return Status(
            running=counts.get("sglang:num_running_reqs"),
            waiting=counts.get("sglang:num_queue_reqs"),
            ranks=len(_states(info)),
            knobs=knobs(info),
        )

    def apply(self, values: Mapping[str, int]) -> None:
        cap = values["batch_size"]
        took = self._http.ask("/set_internal_state", {"server_args": {CAP: cap}})
        if not isinstance(took, list) or not took or not all(isinstance(x, bool) for x in took):
            raise EngineError(f"/set_internal_state answered {took!r}; a list of booleans expected")
        if not any(took):
            raise RefusedByEngineError(f"{CAP} = {cap}: every scheduler refused ({took})")
        held = [integer(state, CAP) for state in _states(self._info())]
        if not all(took) or any(value != cap for value in held):
            raise EngineError(f"{CAP} = {cap}: schedulers answered {took} and hold {held}")

    def to_start_up(self) -> None:
        """The top level of `/server_info` does not follow a change: it tells the start-up value."""
        info = self._info()
        knob = knobs(info)["batch_size"]
        start = integer(info, CAP) or knob.high
        if knob.actuation == "hot" and knob.value != start:
            self.apply({"batch_size": start})

    def _info(self) -> dict[str, Any]:
        info = self._http.get("/server_info")
        if not isinstance(info, dict):
            raise EngineError("/server_info answered no JSON object")
        return info

    def _counts(self) -> dict[str, int]:
        """Gauges of the page, summed over ranks; empty without --enable-metrics."""
        try:
            page = self._http.text("GET", "/metrics")
        except EngineError:
            return {}
        return sums(page, ("sglang:num_running_reqs", "sglang:num_queue_reqs"))


def knobs(info: Mapping[str, Any]) -> dict[str, Knob]:
    """What `/server_info` tells.

    Raises:
        EngineError: where it names no ceiling, or the schedulers hold different caps.
    """
    states = _states(info)
    ceilings = [c for c in (integer(state, CEILING) for state in states) if c is not None]
    ceiling = min(ceilings) if ceilings else integer(info, "max_running_requests")
    if ceiling is None:
        raise EngineError(f"/server_info names neither {CEILING} nor max_running_requests")
    caps = {integer(state, CAP) for state in states}
    if len(caps) > 1:
        raise EngineError(f"the schedulers hold different caps: {caps}")
    cap = caps.pop()
    # With more stages the cap is per micro-batch; without a value nothing can be read back.
    movable = info.get("pp_size", 1) == 1 and cap is not None
    found = {
        "batch_size": Knob(
            ceiling if cap is None else cap,
            1,
            ceiling,
            "sequences",
            "hot" if movable else "unsupported",
        )
    }
    workers = integer(info, "tokenizer_worker_num")
    if workers is not None:
        found["threads"] = Knob(workers, workers, workers, "workers", "unsupported")
    return found


def sums(page: str, names: Sequence[str]) -> dict[str, int]:
    """Sum over the labels of some metrics of a Prometheus page; a name that is absent is absent."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in names:
            try:
                found[name] = found.get(name, 0.0) + float(line.rpartition("}")[2].split()[-1])
            except (ValueError, IndexError):
                raise EngineError(f"/metrics holds a line that is no sample: {line!r}") from None
    return {name: round(value) for name, value in found.items()}


def _states(info: Mapping[str, Any]) -> list[Any]:
    states = info.get("internal_states")
    if not isinstance(states, list) or not states:
        raise EngineError("/server_info names no internal_states")
    return states
