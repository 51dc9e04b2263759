"""From somebody's recording to a trace: drops rows that failed, sorts, starts the clock at 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import TraceError
from tuner.core.trace import MAX_TOKENS, Trace
from tuner.data.formats import TRACE_FORMATS
from tuner.data.formats.rows import Progress, Rows

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class ImportReport:
    """What an import did to the rows of a file."""

    rows: int
    """Rows in the file, malformed lines included."""
    kept: int
    dropped: Mapping[str, int]
    """Reason -> rows."""
    out_of_order: int
    """Kept rows that came before the row above them; the trace is sorted."""
    start_s: float
    """Time of the first request on the file's own clock (dates: since the file's first date)."""
    clients: Mapping[str, int]
    """Name in the file -> client_id, where names were numbered; else empty."""


def import_trace(
    path: Path, format_name: str, progress: Progress = lambda done, total: None
) -> tuple[Trace, ImportReport]:
    """The trace in a file of one of `TRACE_FORMATS`.

    Rows without a readable time or length, without prompt or output tokens, or with more than
    MAX_TOKENS are dropped and counted; a recording that is out of order is sorted.

    Raises:
        TraceError: the format or the file is not known, the file cannot be read, lacks a column,
            or has no row that can be used.
    """
    if format_name not in TRACE_FORMATS:
        raise TraceError(
            f"format {format_name!r} is not known; expected one of {', '.join(TRACE_FORMATS)}"
        )
    pieces, rows, dropped = _usable(TRACE_FORMATS[format_name](path, progress))
    if not pieces:
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no rows"
        raise TraceError(
            f"{path}: no row can be used ({reasons}); is it a file of --format {format_name}?"
        )
    arrival_s = np.concatenate([piece.arrival_s for piece in pieces])
    out_of_order = int(np.count_nonzero(np.diff(arrival_s) < 0))
    order = np.argsort(arrival_s, kind="stable") if out_of_order else slice(None)
    arrival_s = arrival_s[order]
    client_id, names = _clients(pieces)
    hits = _prefix_hits(pieces)
    trace = Trace(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=_joined([piece.prompt_tokens for piece in pieces])[order],
        output_tokens=_joined([piece.output_tokens for piece in pieces])[order],
        prefix_hit_tokens=None if hits is None else hits[order],
        client_id=None if client_id is None else client_id[order],
        name=path.name,
        header={"source": path.name, "format": format_name},
    )
    return trace, ImportReport(
        rows=rows,
        kept=len(trace),
        dropped=dropped,
        out_of_order=out_of_order,
        start_s=float(arrival_s[0]),
        clients=names,
    )


def _usable(pieces: Iterable[Rows]) -> tuple[list[Rows], int, dict[str, int]]:
    """The pieces without rows to drop (and without empty pieces), all rows, the reasons."""
    kept, rows, dropped = [], 0, Counter[str]()
    for piece in pieces:
        rows += len(piece.arrival_s) + piece.malformed
        dropped["malformed lines"] += piece.malformed
        usable = np.ones(len(piece.arrival_s), dtype=np.bool_)
        for reason, bad in _reasons(piece):
            dropped[reason] += int(np.count_nonzero(bad & usable))
            usable &= ~bad
        if usable.any():
            kept.append(_only(piece, usable))
    return kept, rows, {reason: count for reason, count in dropped.items() if count}


def _reasons(piece: Rows) -> Iterable[tuple[str, NDArray[np.bool_]]]:
    """Why rows are dropped; a row counts for the first reason that fits."""
    yield "without a readable time", np.isnan(piece.arrival_s)
    for name, tokens in (("prompt", piece.prompt_tokens), ("output", piece.output_tokens)):
        yield (
            f"without a readable number of {name} tokens",
            np.isnan(tokens) | (tokens != np.floor(tokens)),
        )
    yield "without output tokens (failed requests)", piece.output_tokens < 1
    yield "without prompt tokens", piece.prompt_tokens < 1
    longest = np.maximum(piece.prompt_tokens, piece.output_tokens)
    yield f"with more than {MAX_TOKENS} tokens", longest > MAX_TOKENS


def _only(piece: Rows, usable: NDArray[np.bool_]) -> Rows:
    hits, client = piece.prefix_hit_tokens, piece.client
    return Rows(
        arrival_s=piece.arrival_s[usable],
        prompt_tokens=piece.prompt_tokens[usable],
        output_tokens=piece.output_tokens[usable],
        prefix_hit_tokens=None if hits is None else hits[usable],
        client=None if client is None else [client[int(row)] for row in np.flatnonzero(usable)],
    )


def _joined(columns: list[NDArray[np.float64]]) -> NDArray[np.int32]:
    return np.concatenate([column.astype(np.int32) for column in columns])


def _prefix_hits(pieces: list[Rows]) -> NDArray[np.int32] | None:
    """Whole tokens from 0 to the prompt's; what cannot be read hits nothing."""
    columns = []
    for piece in pieces:
        if piece.prefix_hit_tokens is None:
            return None
        hits = np.nan_to_num(piece.prefix_hit_tokens, nan=0.0)
        columns.append(np.clip(np.floor(hits), 0, piece.prompt_tokens))
    return _joined(columns)


def _clients(pieces: list[Rows]) -> tuple[NDArray[np.int32] | None, dict[str, int]]:
    """client_id of every row, and how names were numbered.

    Whole numbers stay as they are; names are numbered from 0 in the order in which they appear. A
    row without a client gets the name "".
    """
    numbered: dict[str, int] = {}
    codes = []
    for piece in pieces:
        if piece.client is None:
            return None, {}
        codes.append([numbered.setdefault(name or "", len(numbered)) for name in piece.client])
    ids = np.concatenate([np.array(part, dtype=np.int32) for part in codes])
    if all(_is_int32(name) for name in numbered):
        return np.array([int(name) for name in numbered], dtype=np.int32)[ids], {}
    return ids, numbered


def _is_int32(name: str) -> bool:
    return name.lstrip("-").isdecimal() and _INT32.min <= int(name) <= _INT32.max
