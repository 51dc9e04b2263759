"""YAML files read strictly into dataclasses: every mistake at once, each with its key path.

A dataclass that stands for a section of a file refuses unknown keys when it carries
`__pydantic_config__ = {"extra": "forbid"}`; an unknown key comes with the nearest known one.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tuner.core.errors import InputError

T = TypeVar("T")

Location = tuple[int | str, ...]
"""Keys and indices that lead to a value."""

_MOST_REPAIRS = 8
"""Rounds of leaving out what is wrong; each goes one level deeper, and files have a few."""


def read_text(path: Path, what: str, error: type[InputError], *, hint: str = "") -> str:
    """The text of a file.

    Args:
        what: what the file should be, for messages: "a profile in YAML".
        error: what to raise.
        hint: what else could be named, appended where the file does not exist.
    """
    if path.is_dir():
        raise error(f"{path} is a folder; expected {what}")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path} does not exist; expected {what}{hint}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path} cannot be read as text ({problem}); expected {what}") from problem


def parse_yaml(text: str, source: str, error: type[InputError], *, hint: str = "") -> Any:
    """The mapping in a YAML text, plain values only, keys as text.

    Args:
        source: file or name, for messages.
        hint: what the mapping should begin with, for the message about something else.
    """
    try:
        # A subclass of SafeLoader: builds plain values only.
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 0
        raise error(
            f"{source}: line {line} is not valid YAML ({problem.problem}); correct it"
        ) from problem
    except yaml.YAMLError as problem:
        raise error(f"{source} is not valid YAML ({problem}); correct it") from problem
    except (ValueError, TypeError) as problem:
        # Values that YAML reads and Python cannot hold: a 13th month, a list as a key.
        raise error(f"{source} holds an impossible value ({problem}); correct it") from problem
    except RecursionError:
        raise error(f"{source} is nested too deeply; expected a few levels") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise error(f"{source} holds {found}; expected keys and values{hint}")
    return {str(key): value for key, value in data.items()}


def build(
    kind: type[T],
    data: Mapping[str, Any],
    source: str,
    error: type[InputError],
    *,
    contradictions: Callable[[T], Iterable[str]] = lambda value: (),
    hint: str = "",
) -> T:
    """The dataclass that a mapping describes.

    Strict: `"64"` or `true` is a mistake in a file, not a number.

    Args:
        kind: the dataclass.
        source: file or name, for messages.
        contradictions: sentences about values that are out of range or at odds with each other,
            each beginning with the path of its key. Where some types are wrong they are asked
            about the rest, so that a file is mended in one go.
        hint: where to look for a missing key.

    Raises:
        InputError: of the given type, one line per mistake.
    """
    value, details = _validated(kind, data)
    problems = list(dict.fromkeys(_sentence(kind, detail, hint) for detail in details))
    lost = [_blamed(kind, detail) for detail in details]
    if details:
        value = _repaired(kind, data, details)
    if value is not None:
        more = [*_non_finite(value), *contradictions(value)]
        problems += [sentence for sentence in more if not _touches(sentence, lost)]
    if problems or value is None:
        raise error("\n".join(f"{source}: {problem}" for problem in problems))
    return value


def _validated(kind: type[T], data: Mapping[str, Any]) -> tuple[T | None, list[ErrorDetails]]:
    try:
        # Through JSON, because strict mode takes a list for a tuple only there.
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str), strict=True), []
    except ValidationError as failed:
        return None, failed.errors(include_url=False)


def _repaired(kind: type[T], data: Mapping[str, Any], details: list[ErrorDetails]) -> T | None:
    """The dataclass without what is wrong in its file, stand-ins where something is needed.

    Only good for finding the other mistakes. None where it cannot be had.
    """
    rest = copy.deepcopy(dict(data))
    for _ in range(_MOST_REPAIRS):
        for detail in details:
            _repair(kind, rest, detail)
        value, details = _validated(kind, rest)
        if value is not None:
            return value
    return None


def _repair(kind: type[Any], rest: Any, detail: ErrorDetails) -> None:
    """Leave out one wrong value; put a stand-in where it is missing or stands in a list."""
    wanted, loc = _type_at(kind, detail["loc"])
    if not loc:
        return
    for part in loc[:-1]:
        try:
            rest = rest[part]
        except (KeyError, IndexError, TypeError):
            return  # left out already, with what is around it
    key = loc[-1]
    if isinstance(rest, list) and isinstance(key, int):
        rest[key : key + 1] = [_stand_in(wanted)]
    elif isinstance(rest, dict) and detail["type"] == "missing":
        rest[key] = _stand_in(wanted)
    elif isinstance(rest, dict):
        rest.pop(key, None)


def _stand_in(wanted: Any) -> object:
    """A value of this type, whatever it says."""
    origin = get_origin(wanted)
    if origin is Literal:
        return get_args(wanted)[0]
    if origin in (Union, UnionType):
        return _stand_in(get_args(wanted)[0])
    if origin is tuple:
        return []
    return {str: "", int: 1, float: 1.0, bool: False}.get(wanted, {})


def _blamed(kind: type[Any], detail: ErrorDetails) -> str:
    """Key path of what a mistake makes unknown: of an unknown key, the one that was meant."""
    _, loc = _type_at(kind, detail["loc"])
    if detail["type"] == "unexpected_keyword_argument":
        near = get_close_matches(str(loc[-1]), _known_keys(kind, loc[:-1]), n=1)
        return _key_path((*loc[:-1], near[0] if near else loc[-1]))
    return _key_path(loc)


def _touches(sentence: str, lost: Iterable[str]) -> bool:
    """Whether a sentence begins with a lost key path, or one above or below it, or names one later
    on: what it says of that is said of a stand-in."""
    path, *words = (word.strip("(),:;") for word in sentence.split())
    return any(
        _above(path, other) or _above(other, path) or other in words or _name(other) in words
        for other in lost
    )


def _name(path: str) -> str | None:
    """The last part of a key path, where it cannot be mistaken for a word."""
    last = path.rpartition(".")[2]
    return last if "_" in last else None


def _above(path: str, other: str) -> bool:
    return other == path or other.startswith((f"{path}.", f"{path}["))


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 6e-5 is a number, 20:00 a time of day, and a key given twice a
    mistake."""


# YAML 1.1 reads a float without a point as a string; figures like 6e-5 are what these files hold.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)
# It also reads 20:00 as 1200, counting in sixties, and 08:00 as text. A time of day is text.
for _first in "0123456789":
    _Loader.yaml_implicit_resolvers[_first].insert(
        0, ("tag:yaml.org,2002:str", re.compile(r"^\d+(:\d+)+$"))
    )


def _mapping_without_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} appears twice", key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def _sentence(kind: type[Any], detail: ErrorDetails, hint: str) -> str:
    """One mistake that pydantic found, in our words."""
    wanted, loc = _type_at(kind, detail["loc"])
    path = _key_path(loc)
    problem = detail["type"]
    if problem == "unexpected_keyword_argument":
        known = _known_keys(kind, loc[:-1])
        near = get_close_matches(str(loc[-1]), known, n=1)
        did_you_mean = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{path} is not a known key; {did_you_mean}"
    if problem == "missing":
        return f"{path} is missing; add it{hint}"
    if loc != detail["loc"]:
        return f"{path} is {detail['input']!r}; expected {_choice(wanted)}"
    expected = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "dataclass_type": "keys and values",
        "mapping_type": "keys and values",
        "dict_type": "keys and values",
        "tuple_type": "a list",
        "literal_error": f"one of {detail.get('ctx', {}).get('expected')}",
    }.get(problem, detail["msg"])
    return f"{path} is {detail['input']!r}; expected {expected}"


def _choice(union: Any) -> str:
    """A union of plain types in words: a number or text."""
    words = {float: "a number", int: "a number", str: "text", bool: "true or false"}
    return " or ".join(dict.fromkeys(words.get(kind, str(kind)) for kind in get_args(union)))


def _key_path(loc: Location) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _known_keys(kind: type[Any], loc: Location) -> list[str]:
    """Keys of the section at `loc`."""
    section, _ = _type_at(kind, loc)
    return [field.name for field in fields(section)] if is_dataclass(section) else []


def _type_at(kind: Any, loc: Location) -> tuple[Any, Location]:
    """The type that belongs at `loc`, and `loc` without what pydantic appends.

    Of a value that may be one of several types pydantic tells each one's complaint, with the
    name of the type as one more part: the path ends before it.
    """
    section = kind
    for place, part in enumerate(loc):
        if is_dataclass(section):
            section = get_type_hints(section).get(str(part), object)
        elif get_origin(section) in (Union, UnionType):
            return section, loc[:place]
        else:  # a mapping or list of sections: every part leads to its last argument
            arguments = [kind for kind in get_args(section) if kind is not Ellipsis]
            section = arguments[-1] if arguments else object
        if get_origin(section) in (Union, UnionType):
            kinds = [kind for kind in get_args(section) if kind is not NoneType]
            section = kinds[0] if len(kinds) == 1 else section
    return section, loc


def _non_finite(value: Any, path: str = "") -> Iterator[str]:
    """One sentence for each NaN or infinite number, wherever it is."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value}; expected a finite number"
    elif is_dataclass(value):
        for field in fields(value):
            inner = f"{path}.{field.name}" if path else field.name
            yield from _non_finite(getattr(value, field.name), inner)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _non_finite(item, f"{path}.{key}")
