"""Requests, read strictly: which route, what is wished, and what is wrong with it."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from .values import PATH, ROLLBACK, RefusalError, Wish

MAX_TTL_S = 7 * 86400.0
"""Longest time-to-live: a week. What is to stay longer is set without one."""
MAX_REASON = 200
"""Characters of `reason` that reach the audit line."""
PATCH_KEYS = ("knobs", "dry_run", "request_id", "ttl_s", "epoch", "reason", "max_num_running_seqs")
ROLLBACK_KEYS = ("dry_run", "request_id", "epoch", "reason")


def route_of(method: str, path: str) -> Literal["read", "patch", "rollback"]:
    routes: dict[str, dict[str, Literal["read", "patch", "rollback"]]] = {
        PATH: {"GET": "read", "PATCH": "patch"},
        ROLLBACK: {"POST": "rollback"},
    }
    methods = routes.get(path)
    if methods is None:
        raise RefusalError(404, f"no such path; there are {PATH} and {ROLLBACK}")
    route = methods.get(method)
    if route is None:
        allowed = ", ".join(methods)
        raise RefusalError(
            405, f"{method} is not for this path; {allowed}", headers={"Allow": allowed}
        )
    return route


def later(seconds: float, sentence: str) -> RefusalError:
    wait_s = max(math.ceil(seconds), 1)
    return RefusalError(429, f"{sentence}; wait {wait_s} s", headers={"Retry-After": str(wait_s)})


def sentence_of(wrong: Mapping[str, object]) -> str:
    allowed = wrong["allowed"]
    if wrong["found"] == wrong["knob"] and isinstance(allowed, list):
        return f"unknown knob {wrong['knob']!r}; there are {', '.join(allowed)}"
    if isinstance(allowed, list):
        return f"{wrong['knob']} = {wrong['found']} is outside {allowed[0]}..{allowed[1]}"
    return f"{wrong['knob']} = {wrong['found']!r} is not {allowed}"


def wish_of(path: str, body: bytes, keys: tuple[str, ...]) -> Wish:
    data = _json_object(body)
    for key in data:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(keys)}"
            raise RefusalError(400, f"unknown key {key!r}{hint}")
    return Wish(
        knobs=_knobs(data),
        dry_run=_typed(data, "dry_run", bool, "true or false", False),
        request_id=_request_id(data),
        ttl_s=_ttl_s(data),
        epoch=_epoch(data),
        reason=_typed(data, "reason", str, "a text", "")[:MAX_REASON],
        digest=hashlib.sha256(path.encode() + b"\0" + body).hexdigest(),
    )


def _knobs(data: Mapping[str, Any]) -> dict[str, object]:
    """What is wanted, with the draft's top-level name of the batch size under ours."""
    knobs: dict[str, object] = _typed(data, "knobs", dict, "an object", {})
    if "max_num_running_seqs" not in data:
        return knobs
    value = data["max_num_running_seqs"]
    if knobs.get("batch_size", value) != value:
        raise RefusalError(
            400,
            f"max_num_running_seqs = {value!r} and knobs.batch_size = {knobs['batch_size']!r} "
            "are one knob; send one of them",
        )
    return {**knobs, "batch_size": value}


def _json_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        data = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_twice)
    except (ValueError, RecursionError) as fault:
        raise RefusalError(400, f"the body is not JSON: {fault}") from None
    if not isinstance(data, dict):
        raise RefusalError(400, "the body is not a JSON object")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a key stands twice")
    return data


def _typed(data: Mapping[str, Any], key: str, kind: type, what: str, default: Any) -> Any:
    value = data.get(key, default)
    if not isinstance(value, kind):
        raise RefusalError(400, f"{key} = {value!r} is not {what}")
    return value


def _request_id(data: Mapping[str, Any]) -> str | None:
    value = data.get("request_id")
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise RefusalError(400, f"request_id = {value!r} is not a text of 1 to 128 characters")
    return value


def _ttl_s(data: Mapping[str, Any]) -> float | None:
    value = data.get("ttl_s")
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not 0 < value <= MAX_TTL_S:
        raise RefusalError(
            400, f"ttl_s = {value!r} is not a number above 0 and up to {MAX_TTL_S:g}"
        )
    return float(value)


def _epoch(data: Mapping[str, Any]) -> int | None:
    value = data.get("epoch")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RefusalError(400, f"epoch = {value!r} is not an integer from 0 up")
    return value
