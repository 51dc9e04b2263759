"""Fields of JSON answers, each checked: what is not as expected is a BAD_ANSWER that says so."""

from __future__ import annotations

from collections.abc import Mapping

from tuner.engines.http import Reply


def integer(reply: Reply, data: Mapping[str, object], key: str, within: str = "") -> int:
    """A whole number that must be there.

    Args:
        within: key path of `data` in the answer, with its dot: `knobs.batch_size.`.
    """
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise reply.bad(f"{within}{key} {value!r}", "a whole number")
    return value


def count(reply: Reply, data: Mapping[str, object], key: str, within: str = "") -> int | None:
    """A whole number; None where it is null or absent."""
    return None if data.get(key) is None else integer(reply, data, key, within)


def seconds(reply: Reply, data: Mapping[str, object], key: str, within: str = "") -> float | None:
    """A number of seconds; None where it is null or absent."""
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise reply.bad(f"{within}{key} {value!r}", "seconds or null")
    return float(value)


def text(reply: Reply, data: Mapping[str, object], key: str) -> str:
    """A text that must be there."""
    value = data.get(key)
    if not isinstance(value, str):
        raise reply.bad(f"{key} {value!r}", "a text")
    return value


def flag(reply: Reply, data: Mapping[str, object], key: str) -> bool:
    """A truth value that must be there."""
    value = data.get(key)
    if not isinstance(value, bool):
        raise reply.bad(f"{key} {value!r}", "true or false")
    return value


def objects(reply: Reply, data: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    """A list of objects; empty where the key is absent."""
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise reply.bad(f"{key} {value!r}"[:200], "a list of objects")
    return value
