"""Serving profiles: YAML files (`schema: tuner.profile/1`), read strictly and checked as a whole.

Every mistake in a file is reported at once, each with its key path; an unknown key comes with the
nearest known one. The types and the meaning of the keys are in `tuner.core.profile`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tuner.core.errors import ProfileError
from tuner.core.profile import SCHEMA, ServingProfile, StepTime


def builtin_profiles() -> Traversable:
    """The folder of the built-in profiles.

    They lie beside the simulator that they describe; the folder is found by name, because this
    package may not import `envs`.
    """
    return files("envs") / "profiles"


def list_profiles() -> list[str]:
    """Names of the built-in profiles, in alphabetical order."""
    folder = builtin_profiles()
    if not folder.is_dir():
        return []
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_profile(name_or_path: str | Path) -> ServingProfile:
    """The built-in profile of that name, or the profile in that file.

    What looks like a path (ends in .yaml or .yml, or holds a separator) is read as a file.

    Raises:
        ProfileError: no such profile or file; not YAML; or one line per mistake in it.
    """
    source = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in source or source.endswith((".yaml", ".yml")):
        return parse_profile(_read_text(Path(source)), source)
    names = list_profiles()
    if source not in names:
        near = get_close_matches(source, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"profile {source!r} is not built in{hint} "
            f"(built in: {', '.join(names)}; a file is named by its path, ending in .yaml)"
        )
    entry = builtin_profiles() / f"{source}.yaml"
    return parse_profile(entry.read_text(encoding="utf-8"), source)


def parse_profile(text: str, source: str) -> ServingProfile:
    """The profile in a YAML text.

    Args:
        source: file or name, for messages.

    Raises:
        ProfileError: one line per mistake, each with its key path.
    """
    data = _parse_yaml(text, source)
    if "schema" in data and data["schema"] != SCHEMA:
        raise ProfileError(
            f"{source}: schema is {data['schema']!r}; expected {SCHEMA!r}, "
            "so update tuner or convert the profile"
        )
    try:
        # Through JSON, because strict mode takes a list for a tuple only there; strict, because
        # `batch_size_max: "64"` or `true` is a mistake in a file, not a number.
        profile = _adapter().validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems = [_sentence(detail) for detail in error.errors(include_url=False)]
    else:
        problems = list(_contradictions(profile))
    if problems:
        raise ProfileError("\n".join(f"{source}: {problem}" for problem in problems))
    return profile


@cache
def _adapter() -> TypeAdapter[ServingProfile]:
    return TypeAdapter(ServingProfile)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ProfileError(f"{path} is a folder; expected a profile in YAML")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProfileError(
            f"{path} does not exist; expected a profile in YAML "
            f"(built in: {', '.join(list_profiles())})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            f"{path} cannot be read as text ({error}); expected a profile in YAML"
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 6e-5 is a number, and a key given twice is a mistake."""


# YAML 1.1 reads a float without a point as a string; figures like 6e-5 are what profiles are for.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
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


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        # A subclass of SafeLoader: builds plain values only.
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ProfileError(
            f"{source}: line {line} is not valid YAML ({error.problem}); correct it"
        ) from error
    except yaml.YAMLError as error:
        raise ProfileError(f"{source} is not valid YAML ({error}); correct it") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ProfileError(f"{source} holds {found}; expected keys and values (schema: {SCHEMA})")
    return {str(key): value for key, value in data.items()}


def _sentence(detail: ErrorDetails) -> str:
    """One mistake that pydantic found, in our words."""
    path = _key_path(detail["loc"])
    kind = detail["type"]
    if kind == "unexpected_keyword_argument":
        known = _known_keys(detail["loc"][:-1])
        near = get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{path} is not a known key; {hint}"
    if kind == "missing":
        return f"{path} is missing; add it (see `tuner profile show` of a built-in profile)"
    expected = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "dataclass_type": "keys and values",
        "mapping_type": "keys and values",
        "dict_type": "keys and values",
        "tuple_type": "a list",
    }.get(kind, detail["msg"])
    return f"{path} is {detail['input']!r}; expected {expected}"


def _key_path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at `loc`."""
    section: Any = ServingProfile
    for part in loc:
        section = get_type_hints(section).get(str(part), object)
        if get_origin(section) in (Union, UnionType):
            section = next(kind for kind in get_args(section) if kind is not NoneType)
    return [field.name for field in fields(section)] if is_dataclass(section) else []


def _contradictions(profile: ServingProfile) -> Iterator[str]:
    """One sentence per value out of its range, or at odds with another."""
    yield from _non_finite(profile)
    yield from _low_counts(profile)
    yield from _negative_figures(profile)
    kv, limits = profile.kv, profile.limits
    if not 0 <= kv.watermark < 1:
        yield f"kv.watermark is {kv.watermark}; expected a share from 0 to below 1"
    if limits.batch_size_max > kv.blocks:
        yield (
            f"limits.batch_size_max {limits.batch_size_max} is above kv.blocks {kv.blocks}; "
            "every sequence holds at least one block, so lower it"
        )
    if limits.batch_size_max > limits.chunk_tokens:
        yield (
            f"limits.batch_size_max {limits.batch_size_max} is above limits.chunk_tokens "
            f"{limits.chunk_tokens}; every sequence takes a token of each iteration, so lower it"
        )
    yield from _step_time_contradictions(profile.step_time, limits.batch_size_max)
    if profile.startup is not None:
        for stage, (requests, speed) in enumerate(profile.startup.ramp):
            if requests < 1:
                yield f"startup.ramp[{stage}] lasts {requests} requests; expected at least 1"
            if not 0 < speed <= 1:
                yield f"startup.ramp[{stage}] has speed {speed}; expected above 0, at most 1"


def _step_time_contradictions(step: StepTime, batch_size_max: int) -> Iterator[str]:
    table = step.batch_table
    if not table:
        if step.base_s + step.per_sequence_s <= 0:
            yield (
                "step_time gives an iteration of one sequence 0 seconds; "
                "expected base_s, per_sequence_s or batch_table above 0"
            )
        return
    if len(table) < 2:
        yield "step_time.batch_table has one point; expected at least two"
    for row, (sequences, seconds) in enumerate(table):
        if sequences < 1:
            yield f"step_time.batch_table[{row}] is at {sequences} sequences; expected at least 1"
        if seconds <= 0:
            yield f"step_time.batch_table[{row}] is {seconds} s; expected above 0"
        if row and sequences <= table[row - 1][0]:
            yield (
                f"step_time.batch_table[{row}] is at {sequences} sequences, not above the "
                f"{table[row - 1][0]} before it; sort the points"
            )
        if row and seconds < table[row - 1][1]:
            yield (
                f"step_time.batch_table[{row}] is {seconds} s, below the {table[row - 1][1]} s "
                "of a smaller batch; expected times that do not fall"
            )


def _low_counts(profile: ServingProfile) -> Iterator[str]:
    counts = {
        "gpus_per_replica": profile.gpus_per_replica,
        "kv.block_tokens": profile.kv.block_tokens,
        "kv.blocks": profile.kv.blocks,
        "limits.batch_size_max": profile.limits.batch_size_max,
        "limits.chunk_tokens": profile.limits.chunk_tokens,
    }
    if profile.frontend is not None:
        counts["frontend.cores"] = profile.frontend.cores
    for path, value in counts.items():
        if value < 1:
            yield f"{path} is {value}; expected at least 1"


def _negative_figures(profile: ServingProfile) -> Iterator[str]:
    sections = {
        "step_time": profile.step_time,
        "startup": profile.startup,
        "frontend": profile.frontend,
    }
    figures: dict[str, float | None] = {"price_per_gpu_hour_usd": profile.price_per_gpu_hour_usd}
    for name, section in sections.items():
        if section is not None:
            for field in fields(section):
                value = getattr(section, field.name)
                if isinstance(value, float):
                    figures[f"{name}.{field.name}"] = value
    for path, figure in figures.items():
        if figure is not None and figure < 0:
            yield f"{path} is {figure}; expected at least 0"


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
