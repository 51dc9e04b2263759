"""What a grid runs: loads, fleets and policies, and the values that are combined."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from envs.workloads import WORKLOADS
from envs.workloads.deepseek_r1_day import NAME as DAY
from experiments.config import Authority, CompareConfig, compare_mistakes
from experiments.grid.world import Burst, generated, of_unit, scaled, with_cold_start
from policies.options import OptionValue
from tuner.core.errors import ConfigError
from tuner.core.gaps import GapMode, treat_gaps
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace
from tuner.data import load_profile, read_trace
from tuner.data.strict import build, parse_yaml, read_text

AXES = (
    "policies",
    "loads",
    "cold_start_s",
    "burst",
    "gpus_per_replica",
    "load_scale",
    "authority",
)


@dataclass(frozen=True)
class LoadConfig:
    """One load: a recorded trace, or a built-in workload with bursts laid over it."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    name: str
    trace: str | None = None
    """A Parquet file; `$VARIABLE` is replaced from the environment. None: drawn."""
    train_trace: str | None = None
    """What rules are tuned on; None: `trace` itself, which is hindsight."""
    gaps: GapMode = "mask"
    """What becomes of the spans in which a recording is silent."""
    workload: str = DAY
    hours: float = 3.0
    qps: float = 8.0
    """Requests/s in the mean of a day."""
    seed: int = 1
    """Of the drawn load; rules are tuned on the one of `train_seed`."""
    train_seed: int = 101


@dataclass(frozen=True)
class GridConfig:
    """One grid; every list is an axis."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    policies: tuple[str, ...]
    loads: tuple[LoadConfig, ...]
    profile: str = "deepseek-r1-8xh200-sglang"
    baseline: str | None = None
    """None: hpa where it is among the policies, else the first of them."""
    cold_start_s: tuple[float | None, ...] = (None,)
    """Sums of the stages' medians, s; None: the profile's own."""
    burst: tuple[Burst, ...] = ("none",)
    """Of drawn loads: none, or shorter or longer than the cold start."""
    gpus_per_replica: tuple[int | None, ...] = (None,)
    """Sizes of the unit that is added or taken away; None: the profile's own."""
    load_scale: tuple[float, ...] = (1.0,)
    authority: tuple[Authority, ...] = ("direct",)
    max_gpus: int = 256
    """Most GPUs that any policy may hold; `run.max_replicas` follows from it."""
    options: Mapping[str, Mapping[str, OptionValue]] = field(default_factory=dict)
    """Policy -> option -> value, in place of what would be searched."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """Everything that steers each comparison."""


@dataclass(frozen=True)
class Scenario:
    """One point of the grid."""

    load: LoadConfig
    cold_start_s: float | None
    burst: Burst
    gpus: int | None
    load_scale: float
    authority: Authority

    @property
    def label(self) -> str:
        """In words, unlike any other scenario's of a grid."""
        parts = [
            self.load.name,
            None if self.cold_start_s is None else f"cold start {self.cold_start_s:g} s",
            None if self.burst == "none" else f"{self.burst} bursts",
            None if self.gpus is None else f"unit {self.gpus}",
            None if self.load_scale == 1 else f"load x{self.load_scale:g}",
            None if self.authority == "direct" else self.authority,
        ]
        return ", ".join(part for part in parts if part)

    @property
    def slug(self) -> str:
        """The label as a folder's name: `day-cold-start-480-s-short-bursts-unit-8`."""
        return slug(self.label)

    def profile(self, base: ServingProfile) -> ServingProfile:
        """The fleet's profile, made from the grid's."""
        profile = base if self.gpus is None else of_unit(base, self.gpus)
        return profile if self.cold_start_s is None else with_cold_start(profile, self.cold_start_s)

    def traces(self, profile: ServingProfile) -> tuple[Trace, Trace | None]:
        """The load, and the one that rules are tuned on; None: the load itself."""
        load, seed = self.load, self.load.seed
        if load.trace is not None:
            trace = scaled(_recorded(load.trace, load.gaps), self.load_scale, seed)
            if load.train_trace is None:
                return trace, None
            train = _recorded(load.train_trace, load.gaps)
            return trace, scaled(train, self.load_scale, load.train_seed)
        start_s = profile.startup.stages.sum_s if profile.startup else 0.0
        drawn = [
            generated(
                load.workload,
                hours=load.hours,
                qps=load.qps * self.load_scale,
                seed=each,
                burst=self.burst,
                cold_start_s=start_s,
            )
            for each in (seed, load.train_seed)
        ]
        return drawn[0], drawn[1]

    def config(self, grid: GridConfig, profile: ServingProfile) -> CompareConfig:
        """The comparison's configuration in this scenario."""
        most = max(1, grid.max_gpus // profile.gpus_per_replica)
        run = replace(grid.compare.run, max_replicas=most, authority=self.authority)
        return replace(grid.compare, run=run)


def slug(text: str) -> str:
    """Letters, digits, dots and hyphens alone, so that no shell needs quotes."""
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def scenarios(grid: GridConfig) -> list[Scenario]:
    """Every combination, loads outermost. A recorded load has no bursts of ours."""
    found = []
    for load in grid.loads:
        bursts: tuple[Burst, ...] = grid.burst if load.trace is None else ("none",)
        found += [
            Scenario(load, *rest)
            for rest in product(
                grid.cold_start_s, bursts, grid.gpus_per_replica, grid.load_scale, grid.authority
            )
        ]
    return found


def load_grid_config(path: str | Path) -> GridConfig:
    """A grid from a YAML file.

    Raises:
        ConfigError: the file cannot be read, or one line per mistake in it.
    """
    text = read_text(Path(path), "a grid in YAML", ConfigError)
    data: Any = parse_yaml(text, str(path), ConfigError)
    return build(GridConfig, data, str(path), ConfigError, contradictions=grid_mistakes)


def grid_mistakes(grid: GridConfig) -> Iterator[str]:
    """One sentence for each value that is out of its range."""
    yield from compare_mistakes(grid.compare)
    for axis in AXES:
        values = getattr(grid, axis)
        if not values:
            yield f"{axis} is empty; expected at least one"
        elif len(set(values)) < len(values):
            yield f"{axis} names a value twice; name each once"
    names = [slug(load.name) for load in grid.loads]
    for load, name in zip(grid.loads, names, strict=True):
        if names.count(name) > 1 and name:
            yield f"loads: the name {load.name!r} is there twice; give each load a name of its own"
            break
    for place, load in enumerate(grid.loads):
        yield from _load_mistakes(load, f"loads[{place}]")
    for value in grid.cold_start_s:
        if value is not None and not 0 <= value <= 86_400:
            yield f"cold_start_s holds {value}; expected 0 to 86400"
    for gpus in grid.gpus_per_replica:
        if gpus is not None and not 1 <= gpus <= grid.max_gpus:
            yield f"gpus_per_replica holds {gpus}; expected 1 to max_gpus ({grid.max_gpus})"
    for factor in grid.load_scale:
        if not 0 < factor <= 100:
            yield f"load_scale holds {factor}; expected above 0, at most 100"
    if grid.baseline is not None and grid.baseline not in grid.policies:
        yield f"baseline is {grid.baseline!r}; expected one of policies"


def _load_mistakes(load: LoadConfig, path: str) -> Iterator[str]:
    if not slug(load.name) or "/" in load.name or load.name.startswith("."):
        yield f"{path}.name is {load.name!r}; expected a name that can be a folder's"
    if load.train_trace is not None and load.trace is None:
        yield f"{path}.train_trace is given without trace; a drawn load is tuned on train_seed"
    if load.workload not in WORKLOADS:
        yield f"{path}.workload is {load.workload!r}; expected one of {', '.join(WORKLOADS)}"
    if not 0 < load.hours <= 24 * 31:
        yield f"{path}.hours is {load.hours}; expected above 0, at most 744"
    if not 0 < load.qps <= 10_000:
        yield f"{path}.qps is {load.qps}; expected above 0, at most 10000"
    if load.trace is None and load.seed == load.train_seed:
        yield f"{path}.train_seed is that of the load itself; tuning on it would be hindsight"


def _recorded(path: str, gaps: GapMode) -> Trace:
    """A trace from a file whose name may hold variables of the environment.

    Raises:
        ConfigError: a variable is not set.
        TraceError: the file cannot be used.
    """
    whole = os.path.expandvars(path)
    if "$" in whole:
        raise ConfigError(f"{path}: a variable in it is not set; export it, or write the path out")
    return treat_gaps(read_trace(Path(whole)), gaps)[0]


def grid_profile(grid: GridConfig) -> ServingProfile:
    """The profile that every scenario starts from.

    Raises:
        ProfileError: it cannot be used.
    """
    return load_profile(grid.profile)
