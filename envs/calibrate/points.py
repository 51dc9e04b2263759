"""Closed-loop benchmark points: read, and simulated as they were measured.

A point is a benchmark in which `clients` clients send one request each and the next one when it is
answered; TTFT and TPOT are its means. The points are simulated as InferenceX measures them
(SemiAnalysisAI/InferenceX, benchmarks/benchmark_lib.sh and utils/bench_serving at 161e7f6): all
clients start at once, ten requests per client, prompt and output lengths uniform from 0.8 to 1 of
the nominal ones, nothing shared between prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.calibrate.columns import Cell, as_numbers
from envs.simulator import Fleet, FleetSettings
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

REQUESTS_PER_CLIENT = 10
"""InferenceX: --num-prompts $((CONC * 10))."""
SHORTEST = 0.8
"""InferenceX: --random-range-ratio 0.8, the shortest length as a share of the nominal one."""
DRAWS = 4
"""Simulated repeats of a point. One draw of the smallest point (40 requests) is off by 2 %."""

_FILTERS = {
    "model": "model_path",
    "system": "system",
    "engine": "backend",
    "engine_version": "backend_version",
    "precision": "precision",
    "mode": "mode",
    "tp": "tp_size",
    "dp": "attention_dp_size",
    "ep": "moe_ep_size",
}
"""Our name of a filter -> column."""
_CELLS = {
    "isl": Cell("tokens", 1, 1_000_000, whole=True),
    "osl": Cell("tokens", 1, 1_000_000, whole=True),
    "concurrency": Cell("clients", 1, 100_000, whole=True),
    "ttft_ms": Cell("milliseconds", 0.1, 3.6e6, slip="another unit"),
    "tpot_ms": Cell("milliseconds", 0.1, 1e4, slip="another unit"),
}
"""Column -> what its values must be; ten times what was ever published, and an hour of TTFT."""
_WORKERS, _WORKERS_CELL = "decode_num_workers", Cell("workers", 1, 10_000, whole=True)
_FLAGS = ("gpus_suspect", "ttft_saturated")
_ENDLESS_S = 1e9


@dataclass(frozen=True)
class Point:
    """One measured closed-loop benchmark."""

    prompt_tokens: int
    output_tokens: int
    clients: int
    ttft_s: float
    tpot_s: float
    replicas: int = 1
    """Over which the clients are spread."""
    decode_only: bool = False
    """Prompts were prefilled elsewhere: the replicas only decode, and TTFT is not theirs."""
    budget_tokens: int | None = None
    """Token budget of an iteration of this benchmark's server; None: the profile's."""

    @property
    def shape(self) -> str:
        """Prompt and output tokens, as `8192/1024`."""
        return f"{self.prompt_tokens}/{self.output_tokens}"

    def one_prompt_budget(self, ranks: int = 1) -> int:
        """A budget of one prompt per data-parallel rank and a token per client.

        InferenceX starts TensorRT-LLM so (benchmarks/dsr1_fp8_b200_trt_mtp.sh at 111f031:
        max_num_tokens is the prompt length, the tokens of a decode, and 64 to 127 more).
        """
        return ranks * (self.prompt_tokens + 64) + self.clients


@dataclass(frozen=True)
class Simulated:
    """A point as a profile gives it; means over the requests."""

    point: Point
    ttft_s: float
    tpot_s: float

    @property
    def ttft_error(self) -> float:
        """Relative, > 0: too slow."""
        return self.ttft_s / self.point.ttft_s - 1

    @property
    def tpot_error(self) -> float:
        """Relative, > 0: too slow."""
        return self.tpot_s / self.point.tpot_s - 1


def read_points(path: Path, filters: Mapping[str, str | float | None]) -> list[Point]:
    """Measured points of one engine, by shape and clients.

    Points whose parallel sizes cannot be right (`gpus_suspect`) or at which the benchmark queued
    (`ttft_saturated`) are left out where the file marks them, and so are those that do not tell
    their clients. With mode `disagg` the decode workers of a point are its replicas.

    Args:
        path: Parquet with isl, osl, concurrency, ttft_ms, tpot_ms and the columns of the filters.
        filters: of model, system, engine, engine_version, precision, mode, tp, dp, ep; a value
            None stands for an empty cell. What is not named is not filtered; mode is `agg` then.

    Raises:
        InputError: the file cannot be read, lacks a column, holds no such point, or a value of one
            is out of range.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); expected points") from error
    if not len(table):
        raise InputError(f"{path} holds no rows; expected measured points")
    filters = {"mode": "agg", **filters}
    decode_only = filters["mode"] == "disagg"
    cells = {**_CELLS, **({_WORKERS: _WORKERS_CELL} if decode_only else {})}
    for column in (*(_FILTERS[name] for name in filters), *cells):
        if column not in table.column_names:
            raise InputError(f"{path}: column {column!r} is missing; expected measured points")
    matched = np.ones(len(table), np.bool_)
    for name, value in filters.items():
        matched &= _equal(path, table, _FILTERS[name], value)
        if not matched.any():
            raise InputError(f"{path} has no point of {_named(filters)}: {_hint(table, name)}")
    for flag in _FLAGS:
        if flag in table.column_names:
            matched &= ~_marked(path, table, flag)
    for column in ("concurrency", *([_WORKERS] if decode_only else [])):
        matched &= table[column].is_valid().to_numpy()
    if not matched.any():
        raise InputError(
            f"{path}: every point of {_named(filters)} is marked as unusable or lacks its clients"
        )
    columns = _numbers(path, table, cells, np.flatnonzero(matched))
    points = [
        Point(
            int(row["isl"]),
            int(row["osl"]),
            int(row["concurrency"]),
            row["ttft_ms"] / 1e3,
            row["tpot_ms"] / 1e3,
            int(row.get(_WORKERS, 1)),
            decode_only,
        )
        for row in (
            dict(zip(columns, values, strict=True))
            for values in np.column_stack(list(columns.values())).tolist()
        )
    ]
    return sorted(points, key=lambda point: (point.prompt_tokens, point.clients, point.tpot_s))


def _equal(
    path: Path, table: pa.Table, column: str, value: str | float | None
) -> NDArray[np.bool_]:
    """`(rows,)`; None equals an empty cell."""
    if value is None:
        return np.asarray(pc.is_null(table[column]))
    try:
        return np.asarray(pc.fill_null(pc.equal(table[column], value), False))
    except pa.ArrowException as error:
        kind = "text" if isinstance(value, str) else "numbers"
        raise InputError(
            f"{path}: column {column!r} holds {table[column].type}; expected {kind}, as {value!r}"
        ) from error


def _marked(path: Path, table: pa.Table, flag: str) -> NDArray[np.bool_]:
    """`(rows,)`; an empty cell marks nothing."""
    if not pa.types.is_boolean(table[flag].type) and not pa.types.is_null(table[flag].type):
        raise InputError(
            f"{path}: column {flag!r} holds {table[flag].type}; expected true and false"
        )
    return np.asarray(pc.fill_null(table[flag].cast(pa.bool_()), False))


def _numbers(
    path: Path, table: pa.Table, cells: Mapping[str, Cell], taken: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The taken rows of each column, in range."""
    columns = {}
    for name, cell in cells.items():
        numbers = as_numbers(path, name, table[name].to_numpy(zero_copy_only=False))
        columns[name] = numbers[taken]
        cell.refuse(path, name, columns[name], taken + 1)
    return columns


def _named(filters: Mapping[str, str | float | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in filters.items())


def _hint(table: pa.Table, name: str) -> str:
    values = [str(v) for v in pc.unique(table[_FILTERS[name]]).to_pylist() if v is not None]
    if not values:
        return f"no row of it has a {name}"
    return f"{name} is one of {', '.join(sorted(values)[:12])}"


def simulate_point(profile: ServingProfile, point: Point, seed: int = 0) -> Simulated:
    """TTFT and TPOT of the benchmark; the same lengths on every call with one seed.

    Raises:
        InputError: a request does not fit the profile's KV cache.
    """
    profile = replace(profile, startup=None, limits=replace(profile.limits, batch_size_oom=None))
    ttft_s, tpot_s = [], []
    for draw in range(DRAWS):
        trace = _requests(point.prompt_tokens, point.output_tokens, point.clients, seed, draw)
        fleet = Fleet(
            trace,
            profile,
            seeds=np.zeros(1, np.uint64),
            slots=point.replicas,
            record=True,
        )
        fleet.reset(
            slice(None),
            start_s=0.0,
            seeds=np.zeros(1, np.uint64),
            settings=FleetSettings.usual(profile, point.replicas),
            clients=point.clients,
        )
        fleet.advance(_ENDLESS_S)
        served = fleet.requests()
        if not np.isfinite(served.e2e_s).all():
            raise InputError(
                f"profile {profile.name}: {int(np.isnan(served.e2e_s).sum())} requests of "
                f"{point.shape} tokens exceed the KV cache of {profile.kv.tokens}; raise kv.blocks "
                "or leave that shape out"
            )
        ttft_s.append(served.ttft_s.mean())
        tpot_s.append(served.tpot_s.mean())
    return Simulated(point, float(np.mean(ttft_s)), float(np.mean(tpot_s)))


@lru_cache(maxsize=1024)
def _requests(prompt: int, output: int, clients: int, seed: int, draw: int) -> Trace:
    rng = np.random.default_rng([seed, draw, prompt, clients])
    requests = REQUESTS_PER_CLIENT * clients
    prompts = rng.integers(int(SHORTEST * prompt), prompt + 1, requests)
    outputs = rng.integers(int(SHORTEST * output), output + 1, requests)
    return Trace(np.zeros(requests), prompts.astype(np.int32), outputs.astype(np.int32))


def errors(results: Sequence[Simulated], suffix: str = "") -> dict[str, float]:
    """Mean and worst relative error over the points, as in the `error` section of a profile."""
    figures: dict[str, float] = {}
    kinds: dict[str, Callable[[Simulated], float]] = {"tpot": lambda r: r.tpot_error}
    if not any(result.point.decode_only for result in results):
        kinds["ttft"] = lambda r: r.ttft_error
    for name, error in kinds.items():
        sizes = np.abs([error(result) for result in results])
        figures[f"{name}_mean{suffix}"] = float(sizes.mean())
        figures[f"{name}_worst{suffix}"] = float(sizes.max())
    return figures
