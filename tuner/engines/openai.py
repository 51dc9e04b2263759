"""The serving face that most engines share: `/v1/models` and `/v1/completions`."""

from __future__ import annotations

from time import perf_counter

from tuner.engines.answers import objects
from tuner.engines.engine import Replica
from tuner.engines.http import EngineHttp

PROMPT = "1"
"""As short as a prompt can be."""


def address(replica: Replica, path: str) -> str:
    """A path on the serving port."""
    return replica.serving_url.rstrip("/") + path


def served_model(http: EngineHttp, replica: Replica) -> str:
    """The model to ask for: the configured one, else the first that the replica names."""
    if replica.model:
        return replica.model
    reply = http.get(replica.name, address(replica, "/v1/models"))
    for model in objects(reply, reply.mapping(), "data"):
        name = model.get("id")
        if isinstance(name, str):
            return name
    raise reply.bad("no model", "at least one served model")


def complete(http: EngineHttp, replica: Replica, *, output_tokens: int) -> float:
    """One small real completion; seconds to its last token.

    Raises:
        FaultError: BAD_ANSWER where it answered and generated nothing.
    """
    body = {
        "model": served_model(http, replica),
        "prompt": PROMPT,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": False,
    }
    begun = perf_counter()
    reply = http.ask(replica.name, address(replica, "/v1/completions"), body)
    took_s = perf_counter() - begun
    data = reply.mapping()
    usage = data.get("usage")
    made = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not objects(reply, data, "choices") or not isinstance(made, int) or made < 1:
        raise reply.bad(f"{made!r} completion tokens", "a completion of at least one token")
    return took_s
