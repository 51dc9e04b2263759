"""Trace files: Parquet, one row per request, the trace's header in the file's metadata.

    arrival_s          float64  seconds since the trace's start, never falling
    prompt_tokens      int32    input tokens
    output_tokens      int32    generated tokens
    prefix_hit_tokens  int32    optional: input tokens that an endless prefix cache would hold
    client_id          int32    optional: who sent the request

Other columns are ignored, so that files of other tools that have these can be read as they are.
Metadata keys: `tuner.schema` ("tuner.trace/1"), `tuner.header` (JSON object of strings) and
`tuner.gaps` (JSON list of [start_s, end_s]); a file without them has no header and no gaps.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tuner.core.errors import TraceError
from tuner.core.trace import Gap, Trace
from tuner.data.files import replacing

SCHEMA = "tuner.trace/1"

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("prefix_hit_tokens", "client_id")

ROW_GROUP_ROWS = 131_072
"""About an hour of 35 requests/s; a few MB, so that a month-long file is read in small pieces."""

_INT32 = np.iinfo(np.int32)


def read_trace(path: str | Path) -> Trace:
    """The trace in a Parquet file, named after the file.

    Reads a piece at a time into columns of the final size: memory is the trace plus one piece.

    Raises:
        TraceError: the file is missing, empty, cut off or not Parquet; a column is missing or of
            another type; a value is missing or impossible. One sentence with file, column and row
            (counted from 0).
    """
    path = Path(path)
    with _open(path) as file:
        schema = file.schema_arrow
        names = _columns_to_read(path, schema)
        header, gaps = _read_metadata(path, schema.metadata or {})
        rows = file.metadata.num_rows
        columns: dict[str, NDArray[Any]] = {
            name: np.empty(rows, np.float64 if name == "arrival_s" else np.int32) for name in names
        }
        start = 0
        for batch in _batches(path, file, names):
            for name in names:
                _fill(path, name, columns[name], start, batch.column(name))
            start += batch.num_rows
        _refuse_float_tokens(path, schema, names)
    return Trace(**columns, name=path.name, header=header, gaps=gaps)


def write_trace(trace: Trace, path: str | Path) -> None:
    """Writes the trace as zstd-compressed Parquet; an old file stays until the new one is whole.

    The same trace gives the same bytes (with the same pyarrow version).

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    fields = [
        pa.field(name, pa.float64() if name == "arrival_s" else pa.int32(), nullable=False)
        for name in trace.columns()
    ]
    metadata = {
        "tuner.schema": SCHEMA,
        "tuner.header": json.dumps(dict(trace.header), sort_keys=True),
        "tuner.gaps": json.dumps([[gap.start_s, gap.end_s] for gap in trace.gaps]),
    }
    schema = pa.schema(fields, metadata=metadata)
    with (
        replacing(Path(path)) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for start in range(0, len(trace), ROW_GROUP_ROWS):
            piece = {
                name: column[start : start + ROW_GROUP_ROWS]
                for name, column in trace.columns().items()
            }
            writer.write_table(pa.table(piece, schema=schema))


def _open(path: Path) -> pq.ParquetFile:
    if path.is_dir():
        raise TraceError(f"{path} is a folder; expected a Parquet file of requests")
    if not path.exists():
        raise TraceError(f"{path} does not exist; expected a Parquet file of requests")
    if path.stat().st_size == 0:
        raise TraceError(f"{path} is an empty file; expected Parquet, so write or copy it again")
    try:
        with path.open("rb") as raw:
            starts_as_parquet = raw.read(4) == b"PAR1"
        return pq.ParquetFile(path)
    except PermissionError:
        raise TraceError(f"{path} may not be read; check the file's permissions") from None
    except (pa.ArrowException, OSError) as error:
        if starts_as_parquet:
            raise TraceError(
                f"{path} is a Parquet file that is cut off or damaged; copy or write it again"
            ) from error
        raise TraceError(
            f"{path} is not a Parquet file; "
            "convert it with `tuner trace import --format csv|jsonl|azure|burstgpt|mooncake`"
        ) from error


def _columns_to_read(path: Path, schema: pa.Schema) -> list[str]:
    """Columns of the trace that the file has; raises for a missing one or one of another type."""
    for name in REQUIRED:
        if name not in schema.names:
            near = get_close_matches(name, schema.names, n=1)
            hint = f"rename column {near[0]!r}" if near else "rename the column that holds it"
            raise TraceError(
                f"{path}: column {name!r} is missing (found {', '.join(schema.names) or 'none'}); "
                f"{hint} or convert the file with `tuner trace import`"
            )
    names = [name for name in (*REQUIRED, *OPTIONAL) if name in schema.names]
    for name in names:
        if schema.names.count(name) > 1:
            raise TraceError(f"{path}: column {name!r} appears twice; keep one of them")
        kind = schema.field(name).type
        if pa.types.is_integer(kind):
            continue
        # A float column of tokens is read first: "row 7 is nan" helps more than a column's type.
        if not pa.types.is_floating(kind):
            expected = "seconds (float64)" if name == "arrival_s" else "whole numbers (int32)"
            raise TraceError(
                f"{path}: column {name!r} holds {kind}; expected {expected}, so cast the column"
            )
    return names


def _batches(path: Path, file: pq.ParquetFile, names: list[str]) -> Any:
    """Record batches of the named columns; raises TraceError where a page cannot be read."""
    row = 0
    try:
        for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=names):
            yield batch
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise TraceError(
            f"{path} is damaged after row {row} of {file.metadata.num_rows}; "
            "copy or write the file again"
        ) from error


def _fill(path: Path, name: str, column: NDArray[Any], start: int, values: pa.Array) -> None:
    """Copies one piece into column[start:], checked for what the column's type cannot hold."""
    if values.null_count:
        row = start + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise TraceError(f"{path}: {name} in row {row} is missing; fill or drop the row")
    piece = values.to_numpy(zero_copy_only=False)
    if name != "arrival_s":
        _check_whole_numbers(path, name, start, piece)
    column[start : start + len(piece)] = piece


def _check_whole_numbers(path: Path, name: str, start: int, piece: NDArray[Any]) -> None:
    if piece.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(piece) | (piece != np.floor(piece)))
        expected = "a whole number"
    else:
        bad = np.flatnonzero((piece < _INT32.min) | (piece > _INT32.max))
        expected = "a number that fits in int32"
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{path}: {name} in row {start + row} is {piece[row]}; "
            f"expected {expected}, so repair or drop the row"
        )


def _refuse_float_tokens(path: Path, schema: pa.Schema, names: list[str]) -> None:
    for name in names:
        if name != "arrival_s" and pa.types.is_floating(schema.field(name).type):
            raise TraceError(
                f"{path}: column {name!r} holds {schema.field(name).type}; "
                "expected whole numbers (int32), so cast the column"
            )


def _read_metadata(
    path: Path, metadata: dict[bytes, bytes]
) -> tuple[dict[str, str], tuple[Gap, ...]]:
    schema = metadata.get(b"tuner.schema", SCHEMA.encode()).decode(errors="replace")
    if schema != SCHEMA:
        raise TraceError(
            f"{path}: schema {schema!r} is not known; "
            f"this version of tuner reads {SCHEMA!r}, so update tuner or write the file again"
        )
    try:
        header = json.loads(metadata.get(b"tuner.header", b"{}"))
        gaps = json.loads(metadata.get(b"tuner.gaps", b"[]"))
        return (
            {str(key): str(value) for key, value in header.items()},
            tuple(Gap(float(start_s), float(end_s)) for start_s, end_s in gaps),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise TraceError(
            f"{path}: the header in the file's metadata is damaged; write the file again"
        ) from error
