"""Serving profiles: YAML files (`schema: tuner.profile/1`), read strictly and checked as a whole.

Every mistake in a file is reported at once, each with its key path; an unknown key comes with the
nearest known one. The types and the meaning of the keys are in `tuner.core.profile`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from tuner.core.errors import ProfileError
from tuner.core.profile import SCHEMA, ServingProfile, Startup, StepTime
from tuner.data.files import replacing
from tuner.data.strict import build, parse_yaml, read_text


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


def load_profile(name_or_path: str | Path, *, step_time: StepTime | None = None) -> ServingProfile:
    """The built-in profile of that name, or the profile in that file.

    What looks like a path (ends in .yaml or .yml, or holds a separator) is read as a file.

    Args:
        step_time: stands in where a file has none, for whoever is about to fit it.

    Raises:
        ProfileError: no such profile or file; not YAML; or one line per mistake in it.
    """
    source = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in source or source.endswith((".yaml", ".yml")):
        built_in = f" (built in: {', '.join(list_profiles())})"
        text = read_text(Path(source), "a profile in YAML", ProfileError, hint=built_in)
        return parse_profile(text, source, step_time=step_time)
    names = list_profiles()
    if source not in names:
        # A name that was begun is meant before one that merely looks alike.
        begun = [name for name in names if source and name.startswith(source)]
        near = begun or get_close_matches(source, names, n=1)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ProfileError(
            f"profile {source!r} is not built in{hint} "
            f"(built in: {', '.join(names)}; a file is named by its path, ending in .yaml)"
        )
    entry = builtin_profiles() / f"{source}.yaml"
    return parse_profile(entry.read_text(encoding="utf-8"), source)


def parse_profile(text: str, source: str, *, step_time: StepTime | None = None) -> ServingProfile:
    """The profile in a YAML text.

    Args:
        source: file or name, for messages.
        step_time: stands in where the text has none.

    Raises:
        ProfileError: one line per mistake, each with its key path.
    """
    data = parse_yaml(text, source, ProfileError, hint=f" (schema: {SCHEMA})")
    if "schema" in data and data["schema"] != SCHEMA:
        raise ProfileError(
            f"{source}: schema is {data['schema']!r}; expected {SCHEMA!r}, "
            "so update tuner or convert the profile"
        )
    if step_time is not None:
        data.setdefault("step_time", _plain(step_time))
    return build(
        ServingProfile,
        data,
        source,
        ProfileError,
        contradictions=_contradictions,
        hint=" (see `tuner profile show` of a built-in profile)",
    )


def write_profile(profile: ServingProfile, path: Path, comment: str = "") -> None:
    """Write a profile that `load_profile` reads back as it is; whole or not at all.

    Args:
        comment: lines of text for the head of the file.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(profile_yaml(profile, comment), encoding="utf-8")


def profile_yaml(profile: ServingProfile, comment: str = "") -> str:
    """A profile as YAML: keys in the order of the type, those that hold their default left out."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.dump(
        _plain(profile), Dumper=_Dumper, sort_keys=False, width=96, allow_unicode=True
    )


def _plain(section: Any) -> dict[str, Any]:
    values = {}
    for entry in fields(section):
        value = getattr(section, entry.name)
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if value == default:
            continue
        if is_dataclass(value):
            value = _plain(value)
        elif hasattr(value, "items"):
            value = dict(value)
        values[entry.name] = value
    return values


class _Dumper(yaml.SafeDumper):
    """Tables with a line per point, and every number in a form that YAML reads as one."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_pair(dumper: yaml.SafeDumper, values: tuple[Any, ...]) -> yaml.Node:
    flow = all(isinstance(value, int | float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", list(values), flow_style=flow)


_Dumper.add_representer(tuple, _represent_pair)


MOST_KV_TOKENS = 2**31 - 1
MOST_SEQUENCES = 65_536
MOST_CHUNK_TOKENS = 2**20
"""What the simulator counts with and keeps tables for; no server comes near."""

Points = tuple[tuple[int, float], ...]


def _contradictions(profile: ServingProfile) -> Iterator[str]:
    """One sentence per value out of its range, or at odds with another."""
    yield from _low_counts(profile)
    if profile.kv.tokens > MOST_KV_TOKENS:
        yield (
            f"kv.blocks x kv.block_tokens is {profile.kv.tokens:,} tokens; "
            f"expected at most {MOST_KV_TOKENS:,}"
        )
    if profile.limits.batch_size_max > MOST_SEQUENCES:
        yield (
            f"limits.batch_size_max is {profile.limits.batch_size_max:,}; "
            f"expected at most {MOST_SEQUENCES:,}"
        )
    if profile.limits.chunk_tokens > MOST_CHUNK_TOKENS:
        yield (
            f"limits.chunk_tokens is {profile.limits.chunk_tokens:,}; "
            f"expected at most {MOST_CHUNK_TOKENS:,}"
        )
    yield from _negative_figures(profile)
    kv, limits = profile.kv, profile.limits
    if not 0 <= kv.watermark < 1:
        yield f"kv.watermark is {kv.watermark}; expected a share from 0 to below 1"
    if limits.batch_size_max > kv.blocks:
        yield (
            f"limits.batch_size_max {limits.batch_size_max} is above kv.blocks {kv.blocks}; "
            "every sequence holds at least one block, so lower it"
        )
    yield from _step_time_contradictions(profile.step_time)
    oom = limits.batch_size_oom
    if limits.batch_size_applied == "hot" and oom is not None and limits.batch_size_max > oom:
        yield (
            f"limits.batch_size_max {limits.batch_size_max} is above limits.batch_size_oom {oom}; "
            "every replica would be started with that ceiling and run out of memory, so lower it, "
            "or set limits.batch_size_applied to restart if the batch size itself is the ceiling"
        )
    if profile.startup is not None:
        yield from _startup_contradictions(profile.startup)
    yield from _unfounded(profile)


LONGEST_MEDIAN_S = 86_400.0
WIDEST_SPREAD = 2.0
"""Beyond these a start is a slip: a day, and a draw 400 times the median at 3 sigma."""


def _startup_contradictions(startup: Startup) -> Iterator[str]:
    for one in fields(startup.stages):
        stage = getattr(startup.stages, one.name)
        path = f"startup.stages.{one.name}"
        if not 0 <= stage.median_s <= LONGEST_MEDIAN_S:
            yield (
                f"{path}.median_s is {stage.median_s}; expected seconds from 0 to "
                f"{LONGEST_MEDIAN_S:.0f}"
            )
        if not 0 <= stage.spread <= WIDEST_SPREAD:
            yield f"{path}.spread is {stage.spread}; expected a sigma from 0 to {WIDEST_SPREAD:g}"
    for step, (requests, speed) in enumerate(startup.ramp):
        if requests < 1:
            yield f"startup.ramp[{step}] lasts {requests} requests; expected at least 1"
        if not 0 < speed <= 1:
            yield f"startup.ramp[{step}] has speed {speed}; expected above 0, at most 1"


def _step_time_contradictions(step: StepTime) -> Iterator[str]:
    if step.batch_table:
        yield from _two_laws(step, "batch_table", ("base_s", "per_sequence_s"))
        yield from _bad_points("batch_table", step.batch_table, "sequences")
    elif step.base_s + step.per_sequence_s <= 0:
        yield (
            f"step_time gives an iteration of one sequence {step.base_s + step.per_sequence_s:g} "
            "seconds; expected base_s, per_sequence_s or batch_table above 0"
        )
    if step.prefill_table:
        yield from _two_laws(step, "prefill_table", ("prefill_base_s", "per_prefill_token_s"))
        yield from _bad_points("prefill_table", step.prefill_table, "prompt tokens")
    yield from _bad_sizes("straggler", step.straggler, "sequences")
    for row, (_, factor) in enumerate(step.straggler):
        if factor < 1:
            yield f"step_time.straggler[{row}] is a factor of {factor}; expected at least 1"


def _two_laws(step: StepTime, table: str, instead_of: tuple[str, ...]) -> Iterator[str]:
    for name in instead_of:
        if getattr(step, name) != 0:
            yield f"step_time.{name} is {getattr(step, name)} beside {table}; give one of the two"


def _bad_points(name: str, points: Points, unit: str) -> Iterator[str]:
    """Of a table of seconds that must not fall with the size."""
    yield from _bad_sizes(name, points, unit)
    for row, (_, seconds) in enumerate(points):
        if seconds <= 0:
            yield f"step_time.{name}[{row}] is {seconds} s; expected above 0"
        if row and seconds < points[row - 1][1]:
            yield (
                f"step_time.{name}[{row}] is {seconds} s, below the {points[row - 1][1]} s of "
                f"fewer {unit}; expected times that do not fall"
            )


def _bad_sizes(name: str, points: Points, unit: str) -> Iterator[str]:
    if len(points) == 1:
        yield f"step_time.{name} has one point; expected at least two"
    for row, (size, _) in enumerate(points):
        if size < 1:
            yield f"step_time.{name}[{row}] is at {size} {unit}; expected at least 1"
        if row and size <= points[row - 1][0]:
            yield (
                f"step_time.{name}[{row}] is at {size} {unit}, not above the "
                f"{points[row - 1][0]} before it; sort the points"
            )


def _unfounded(profile: ServingProfile) -> Iterator[str]:
    """Where the profile does not say, or says wrongly, what its figures rest on."""
    told = {key.split(".")[0] for key in profile.origin}
    if profile.frontend is not None and "frontend" not in told:
        yield (
            "origin.frontend is missing; expected where the figures come from "
            "(no public measurement of a frontend is known)"
        )
    known = list(_key_paths(profile))
    for row, key in enumerate(profile.assumed):
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ", such as startup.ramp"
            yield f"assumed[{row}] is {key!r}; expected a key of this file{hint}"


def _key_paths(profile: ServingProfile) -> Iterator[str]:
    for field in fields(profile):
        value = getattr(profile, field.name)
        if value is not None:
            yield field.name
        if is_dataclass(value):
            yield from (f"{field.name}.{inner.name}" for inner in fields(value))


def _low_counts(profile: ServingProfile) -> Iterator[str]:
    counts = {
        "gpus_per_replica": profile.gpus_per_replica,
        "kv.block_tokens": profile.kv.block_tokens,
        "kv.blocks": profile.kv.blocks,
        "limits.batch_size_max": profile.limits.batch_size_max,
        "limits.chunk_tokens": profile.limits.chunk_tokens,
    }
    if profile.limits.batch_size_oom is not None:
        counts["limits.batch_size_oom"] = profile.limits.batch_size_oom
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
