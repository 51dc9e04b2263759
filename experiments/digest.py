"""What a comparison keeps of a run, in memory and as files: JSON and Parquet, exact to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.folder import parquet_bytes, requests_table, ticks_table
from experiments.result import RunResult, TickTable
from experiments.statistics import Blocks
from experiments.summary import Figures, figures_from, plain
from policies import Load

SUMMARY = "run.json"
REQUESTS = "requests.parquet"
TICKS = "ticks.parquet"
BLOCKS = "blocks.parquet"

LEAST_IN_FLIGHT = 0.01
LEAST_KV_CACHE_USAGE = 0.001
"""What a search can begin from: a range around 0 is none."""


@dataclass(frozen=True)
class RunDigest:
    """What a comparison keeps of a run; its requests stay in a file."""

    policy: str
    seed: int
    figures: Figures
    pinned: Mapping[str, str]
    settings: Mapping[str, object]
    load: Load | None = None
    """What one of its replicas carried; None where nobody asks."""
    blocks: Blocks | None = None
    """None of a run that tunes, as the two below."""
    ticks: TickTable | None = None
    requests_file: Path | None = None


def load_of(result: RunResult) -> Load:
    """What one replica of a run carried, means over its time, each above 0."""
    requests, ticks = result.requests, result.ticks
    # A trace of one moment has no rate: its first tick stands in.
    span_s = result.span_s if result.span_s > 0 else float(ticks.length_s[0])
    replicas = max(result.replica_hours * 3600 / span_s, 1.0)

    def per_s(total: float) -> float:
        return total / span_s / replicas

    return Load(
        replicas=replicas,
        qps=per_s(len(requests)),
        prompt_tokens_per_s=per_s(float(requests.prompt_tokens.sum(dtype=np.int64))),
        output_tokens_per_s=per_s(float(requests.output_tokens.sum(dtype=np.int64))),
        in_flight=max(_mean(ticks.running + ticks.queue_depth) / replicas, LEAST_IN_FLIGHT),
        kv_cache_usage=max(_mean(ticks.kv_cache_usage), LEAST_KV_CACHE_USAGE),
    )


def _mean(values: np.ndarray[Any, Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def packed(digest: RunDigest, result: RunResult | None) -> dict[str, bytes]:
    """Files of a run: name -> content.

    Args:
        result: whose requests and ticks are kept too; None: neither.
    """
    summary = plain(
        {
            "figures": asdict(digest.figures),
            "pinned": digest.pinned,
            "settings": digest.settings,
            "load": None if digest.load is None else asdict(digest.load),
        }
    )
    files = {SUMMARY: json.dumps(summary, indent=1, ensure_ascii=False).encode()}
    if digest.blocks is not None:
        files[BLOCKS] = _blocks_bytes(digest.blocks)
    if result is not None:
        files[TICKS] = parquet_bytes(ticks_table(result.ticks))
        files[REQUESTS] = parquet_bytes(requests_table(result.requests))
    return files


def unpacked(folder: Path, policy: str, seed: int) -> RunDigest:
    """The digest in a folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is not there or not whole.
    """
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    load = summary["load"]
    kept = (folder / REQUESTS).is_file()
    return RunDigest(
        policy=policy,
        seed=seed,
        figures=figures_from(summary["figures"]),
        pinned=summary["pinned"],
        settings=summary["settings"],
        load=None if load is None else Load(**load),
        blocks=_read_blocks(folder / BLOCKS) if kept else None,
        ticks=_read_ticks(folder / TICKS) if kept else None,
        requests_file=folder / REQUESTS if kept else None,
    )


def _blocks_bytes(blocks: Blocks) -> bytes:
    """A row per block; a latency's histogram is a list of counts."""
    columns: dict[str, pa.Array] = {}
    for field in fields(blocks):
        values = getattr(blocks, field.name)
        if field.name != "latencies":
            columns[field.name] = pa.array(values)
            continue
        for kind, counts in enumerate(values):
            flat = pa.array(counts.reshape(-1))
            columns[f"latencies_{kind}"] = pa.FixedSizeListArray.from_arrays(flat, counts.shape[1])
    return parquet_bytes(pa.table(columns))


def _read_blocks(path: Path) -> Blocks:
    table = pq.read_table(path)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    histograms = [
        column.flatten().to_numpy().reshape(table.num_rows, -1)
        for name, column in columns.items()
        if name.startswith("latencies_")
    ]
    others = {
        name: column.to_numpy().copy()
        for name, column in columns.items()
        if not name.startswith("latencies_")
    }
    return Blocks(**others, latencies=np.stack(histograms))


def _read_ticks(path: Path) -> TickTable:
    table = pq.read_table(path)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        text = pa.types.is_string(column.type)
        columns[name] = tuple(column.to_pylist()) if text else column.to_numpy().copy()
    return TickTable(**columns)
