"""The keys of tuner.yaml with default and meaning, from the strings under the fields themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter

from tuner.config import ControllerConfig
from tuner.core.errors import ConfigError

Schema = Mapping[str, Any]
"""JSON schema, as pydantic writes it."""

_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false"}


@dataclass(frozen=True)
class Key:
    """One key of the file."""

    path: str
    """From the top; `[]` stands for each item of a list, `NAME` for a key of your own."""
    kind: str
    default: str | None
    """As it would be written; None where the key must be given."""
    meaning: str


def explained(section: str | None = None) -> list[Key]:
    """Every key of the file, or of one section of it.

    Args:
        section: a path such as `server` or `targets.engine`, or its end: `engine`.

    Raises:
        ConfigError: there is no such section.
    """
    schema = TypeAdapter(ControllerConfig).json_schema()
    keys = list(_keys(schema, schema["$defs"], ""))
    if section is None:
        return keys
    wanted = section.replace("[]", "").replace(".NAME", "")
    chosen = [key for key in keys if _within(key.path, wanted)]
    if not chosen:
        sections = _sections(keys)
        ends = [section.rpartition(".")[2] for section in sections]
        near = get_close_matches(wanted, [*sections, *ends], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known sections: {', '.join(sections)}"
        raise ConfigError(f"section '{section}' is not known; {hint}")
    return chosen


def _keys(schema: Schema, parts: Mapping[str, Schema], path: str) -> Iterator[Key]:
    required = schema.get("required", [])
    for name, entry in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        inner, suffix = _section(entry)
        # A section that must be given loses the string under its field to its own docstring.
        told = entry.get("description") or (parts[inner]["description"] if inner else "")
        yield Key(
            path=here,
            kind=_kind(entry),
            default=None if name in required else _default(entry),
            meaning=str(told).replace("\n", " "),
        )
        if inner is not None:
            yield from _keys(parts[inner], parts, f"{here}{suffix}")


def _section(entry: Schema) -> tuple[str | None, str]:
    """Name of the section that an entry holds, and what its path goes on with."""
    for schema in (entry, *entry.get("anyOf", [])):
        if "$ref" in schema:
            return str(schema["$ref"]).rpartition("/")[2], ""
        if "$ref" in schema.get("items", {}):
            return _section(schema["items"])[0], "[]"
        if isinstance(inner := schema.get("additionalProperties"), Mapping) and "$ref" in inner:
            return _section(inner)[0], ".NAME"
    return None, ""


def _kind(entry: Schema) -> str:
    if "const" in entry:
        return json.dumps(entry["const"])
    if "enum" in entry:
        return " or ".join(str(value) for value in entry["enum"])
    if "$ref" in entry:
        return "section"
    if "anyOf" in entry:
        kinds = [_kind(e) for e in entry["anyOf"] if e.get("type") != "null"]
        if {"number", "whole number"} <= set(kinds):
            kinds.remove("whole number")
        return " or ".join(dict.fromkeys(kinds))
    if entry.get("type") == "array":
        inner = _kind(entry["items"]) if entry.get("items") else "value"
        return "list of sections" if inner == "section" else f"list of {inner}"
    if entry.get("type") == "object":
        values = entry.get("additionalProperties")
        kind = _kind(values) if isinstance(values, Mapping) else "value"
        return "sections by name" if kind == "section" else f"{kind} by name"
    return _KINDS.get(str(entry.get("type")), str(entry.get("type")))


def _default(entry: Schema) -> str:
    if "default" in entry:
        default = entry["default"]
        return "none" if default is None else json.dumps(default)
    return "{}" if entry.get("type") == "object" else "its own defaults"


def _within(path: str, section: str) -> bool:
    """Whether a key lies in a section, or is it, the section named in full or by its end."""
    bare = path.replace("[]", "").replace(".NAME", "")
    return f".{section}." in f".{bare}."


def _sections(keys: list[Key]) -> list[str]:
    bare = [key.path.replace("[]", "").replace(".NAME", "") for key in keys]
    return sorted({path.rpartition(".")[0] for path in bare} - {""})
