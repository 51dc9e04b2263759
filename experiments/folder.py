"""Result folders: whole or absent.

run.json          what was run: command, configuration, inputs, seeds, commit, versions
summary.json      the figures
requests.parquet  a row per request in trace order: arrival_s, ttft_s, e2e_s, tpot_s, replica,
                  preemptions; a comparison puts policy and seed in front, and its rows are in
                  the order of policies, then seeds, then the trace
ticks.parquet     a row per control tick; policy and seed in front likewise
report.html       of a comparison, and report.md: the same in short
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.result import RequestTable, RunResult, TickTable
from experiments.summary import plain, simulation_summary
from tuner.core.clock import WallClock
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile
from tuner.core.slo import Slo
from tuner.core.trace import Trace

REQUEST_COLUMNS = (
    "arrival_s",
    "ttft_s",
    "e2e_s",
    "tpot_s",
    "replica",
    "preemptions",
    "rejected",
    "failed",
)

PACKAGES = (
    "deepseek-tuner",
    "numpy",
    "numba",
    "pyarrow",
    "pydantic",
    "onnxruntime",
    "optuna",
    "plotly",
    "torch",
    "stable-baselines3",
    "gymnasium",
    "onnxscript",
)
"""Packages whose version can change a number or a picture."""


@contextmanager
def result_folder(out: Path) -> Iterator[Path]:
    """Gives a folder to write into; its files are at `out` once the block ends well.

    The folder lies beside `out`, and moves there in one rename. Where `out` exists already, its
    other files stay and those of the same name are replaced, one rename each, after all of them
    are complete. If the block raises, or is interrupted, nothing at `out` changes.

    Raises:
        InputError: `out` is a file, or its place cannot be written.
    """
    out = Path(os.path.abspath(out))
    refuse_file(out)
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = out.parent / f".{out.name}.{os.getpid()}.part"
        scratch.mkdir()
    except OSError as error:
        raise InputError(
            f"{out}: a folder cannot be made in {out.parent} ({error.strerror}); name another one"
        ) from error
    if out.exists() and not os.access(out, os.W_OK):
        scratch.rmdir()
        raise InputError(f"{out} is not writable; name another folder")
    try:
        yield scratch
        if out.exists():
            for path in sorted(scratch.iterdir()):
                os.replace(path, out / path.name)
        else:
            os.rename(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not out.exists():
            for parent in made:
                with suppress(OSError):  # somebody else's file is in it by now
                    parent.rmdir()


def refuse_file(out: Path) -> None:
    """Refuse a result folder that is a file, before the work for it begins.

    Raises:
        InputError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the result")


def write_json(path: Path, value: object) -> None:
    """Two-space JSON; NaN becomes null."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_simulation(
    out: Path,
    result: RunResult,
    slo: Slo,
    run: Mapping[str, object],
) -> None:
    """The result folder of one simulated run.

    Args:
        out: the folder.
        result: what the run gave.
        slo: objectives for the summary.
        run: content of `run.json`, see `provenance`.
    """
    with result_folder(out) as folder:
        (folder / "requests.parquet").write_bytes(parquet_bytes(requests_table(result.requests)))
        (folder / "ticks.parquet").write_bytes(parquet_bytes(ticks_table(result.ticks)))
        write_json(folder / "run.json", run)
        write_json(folder / "summary.json", simulation_summary(result, slo))


RunKey = tuple[str, int]
"""Policy and seed."""


def requests_table(requests: RequestTable) -> pa.Table:
    """The requests of one run."""
    return pa.table({name: getattr(requests, name) for name in REQUEST_COLUMNS})


def ticks_table(ticks: TickTable) -> pa.Table:
    """The ticks of one run."""
    return pa.table({field.name: pa.array(getattr(ticks, field.name)) for field in fields(ticks)})


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_encoding(table.schema))
    return bytes(sink.getvalue())


def join_requests(parts: Iterable[tuple[RunKey, Path]], path: Path) -> None:
    """The requests of several runs one after the other as one file, a row group at a time."""
    writer: pq.ParquetWriter | None = None
    try:
        for key, part in parts:
            with pq.ParquetFile(part) as source:
                for group in range(source.num_row_groups):
                    table = _keyed(source.read_row_group(group), key)
                    if writer is None:
                        writer = pq.ParquetWriter(path, table.schema, **_encoding(table.schema))
                    writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def write_ticks(path: Path, runs: Iterable[tuple[RunKey, TickTable]]) -> None:
    """The ticks of some runs as Parquet."""
    tables = [_keyed(ticks_table(ticks), key) for key, ticks in runs]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _keyed(table: pa.Table, key: RunKey) -> pa.Table:
    """The table with policy and seed in front."""
    policy, seed = key
    rows = table.num_rows
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([policy]))
    return table.add_column(0, "policy", names.cast(pa.string())).add_column(
        1, "seed", pa.array(np.full(rows, seed, np.int32))
    )


def _encoding(schema: pa.Schema) -> dict[str, object]:
    """Times are random in their low bytes: split by byte they take a fifth less than as they are,
    and dictionaries of them are wasted work."""
    times = [field.name for field in schema if pa.types.is_floating(field.type)]
    others = [name for name in schema.names if name not in times]
    return {
        "compression": "zstd",
        "use_dictionary": others,
        "use_byte_stream_split": times,
    }


def provenance(
    command: str,
    trace: Trace,
    profile: ServingProfile,
    config: object,
    **more: object,
) -> dict[str, object]:
    """What `run.json` says of a result: enough to repeat it, and to see what it rests on.

    Args:
        command: the command line that makes it again.
        config: a configuration dataclass, written out in full.
        more: further entries, such as seeds and pinned knobs.
    """
    return {
        "schema": "tuner.run/1",
        "command": command,
        "written_at": datetime.fromtimestamp(WallClock().now_s(), tz=UTC).isoformat(
            timespec="seconds"
        ),
        "config": asdict(config) if is_dataclass(config) and not isinstance(config, type) else {},
        "trace": describe_trace(trace),
        "profile": describe_profile(profile),
        **more,
        "commit": git_commit(),
        "versions": versions(),
    }


def describe_trace(trace: Trace) -> dict[str, object]:
    """The load in a few figures."""
    return {
        "name": trace.name,
        "requests": len(trace),
        "span_s": trace.last_arrival_s,
        "prompt_tokens": int(trace.prompt_tokens.sum(dtype=np.int64)),
        "output_tokens": int(trace.output_tokens.sum(dtype=np.int64)),
        "gaps": [[gap.start_s, gap.end_s] for gap in trace.gaps],
        "header": dict(trace.header),
    }


def describe_profile(profile: ServingProfile) -> dict[str, object]:
    """What replicas are simulated from, and how far off it is known to be."""
    return {
        "name": profile.name,
        "scheduler": profile.scheduler,
        "gpus_per_replica": profile.gpus_per_replica,
        "origin": dict(profile.origin),
        "error": dict(profile.error),
        "assumptions": profile.assumptions(),
        "not_modelled": profile.not_modelled,
    }


def git_commit() -> str | None:
    """Commit of the code that runs, `-dirty` where files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    asked = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def versions() -> dict[str, str]:
    """Python, platform, and the packages that can change a number; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
