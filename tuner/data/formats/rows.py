"""What the importers share: pieces of rows, streams that know how far they are, parsing of text."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from tuner.core.errors import TraceError

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of the file."""

Reader = Callable[[Path, Progress], Iterator["Rows"]]
"""Reads a file piece by piece, in its order."""

PIECE_BYTES = 8 << 20
"""Read at once; some 200,000 lines of a CSV."""

PIECE_LINES = 50_000
"""JSON lines given on at once."""

COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Suffixes of files that are unpacked while they are read."""


@dataclass(frozen=True)
class Rows:
    """A piece of a file, before anything is dropped.

    Attributes:
        arrival_s: `(rows,)` float64 seconds from any origin; NaN where it cannot be read.
        prompt_tokens: `(rows,)` float64; NaN where it cannot be read.
        output_tokens: the same.
        prefix_hit_tokens: `(rows,)` float64, or None where the file has no such column.
        client: `(rows,)` names, None where missing; or None where the file has no such column.
        malformed: lines of this piece that are no row at all; they are in no column.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.float64]
    output_tokens: NDArray[np.float64]
    prefix_hit_tokens: NDArray[np.float64] | None = None
    client: Sequence[str | None] | None = None
    malformed: int = 0


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A binary stream of the file's content, unpacked, and how many of its bytes are read.

    Raises:
        TraceError: no such file, a folder, or not readable.
    """
    if path.is_dir():
        raise TraceError(f"{path} is a folder; name the file to import")
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise TraceError(f"{path} does not exist; name the file to import") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be opened ({error.strerror}); check it") from error
    with raw:
        compression = COMPRESSION.get(path.suffix)
        stream = pa.CompressedInputStream(raw, compression) if compression else raw
        yield stream, raw.tell


def csv_pieces(
    path: Path, columns: Sequence[str], optional: Sequence[str], progress: Progress
) -> Iterator[tuple[Mapping[str, pa.Array], int]]:
    """Text of the named columns piece by piece, and lines with another number of fields.

    Raises:
        TraceError: the file is empty, not text, or lacks a column.
    """
    header = _header(path, columns)
    wanted = [name for name in (*columns, *optional) if name in header]
    malformed = 0

    def skip(row: Any) -> str:
        nonlocal malformed
        malformed += 1
        return "skip"

    total = path.stat().st_size
    with opened(path) as (stream, position):
        try:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=PIECE_BYTES, use_threads=False),
                parse_options=pacsv.ParseOptions(invalid_row_handler=skip),
                convert_options=pacsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=True,
                ),
            )
            for batch in reader:
                progress(min(position(), total), total)
                yield {name: batch.column(name) for name in wanted}, malformed
                malformed = 0
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{path} cannot be read as CSV ({error}); check the file") from error
    if malformed:
        yield {name: pa.array([], pa.string()) for name in wanted}, malformed


def _header(path: Path, columns: Sequence[str]) -> list[str]:
    with opened(path) as (stream, _):
        try:
            start = bytes(stream.read(1 << 16))
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{path} cannot be unpacked ({error}); check the file") from error
    if not start.strip():
        raise TraceError(f"{path} is empty; expected a CSV with {', '.join(columns)}")
    try:
        line = start.splitlines()[0].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not text in UTF-8; expected a CSV") from error
    names = next(csv.reader([line]), [])
    for name in columns:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TraceError(
                f"{path}: column {name!r} is missing (found {', '.join(names)[:200]}){hint} "
                "Choose the --format that the file has, or rename the column"
            )
    return names


def json_pieces(
    path: Path, fields: Callable[[Mapping[str, Any]], None], progress: Progress
) -> Iterator[int]:
    """Hands every JSON object of a file of JSON lines to `fields`, in order.

    Yields, after every `PIECE_LINES` lines and at the end, how many of them were no JSON object.

    Raises:
        TraceError: the file is empty or not text.
    """
    total = path.stat().st_size if path.is_file() else 0
    malformed = lines = 0
    with opened(path) as (stream, position):
        for line in _lines(path, stream):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                fields(value)
            else:
                malformed += 1
            lines += 1
            if lines % PIECE_LINES == 0:
                progress(min(position(), total), total)
                yield malformed
                malformed = 0
    if not lines:
        raise TraceError(f"{path} is empty; expected one JSON object per line")
    progress(total, total)
    yield malformed


def _lines(path: Path, stream: Any) -> Iterator[bytes]:
    """Lines that are not blank."""
    rest = b""
    try:
        while block := bytes(stream.read(1 << 20)):
            *lines, rest = (rest + block).split(b"\n")
            yield from filter(bytes.strip, lines)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path} cannot be unpacked ({error}); check the file") from error
    if rest.strip():
        yield rest


def numbers(texts: pa.Array) -> NDArray[np.float64]:
    """Numbers in text; NaN where there is none."""
    try:
        parsed = pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        return np.array([number(text) for text in texts.to_pylist()], dtype=np.float64)
    values: NDArray[np.float64] = parsed.to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def number(value: object) -> float:
    """A finite number as JSON or text has it, else NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return parsed if math.isfinite(parsed) else math.nan


class Times:
    """Reads a column of times, as seconds or as ISO 8601 dates; the first piece says which.

    Dates become seconds since the first of them, so that their nanoseconds survive as float64.
    A date without a zone is taken as UTC.
    """

    def __init__(self) -> None:
        self._dates: bool | None = None
        self._origin_ns: int | None = None

    def seconds(self, texts: pa.Array) -> NDArray[np.float64]:
        """`(rows,)` float64; NaN where a time cannot be read."""
        if self._dates is None:
            found = numbers(texts)
            if not len(found) or np.isfinite(found).any():
                self._dates = False if len(found) else None
                return found
            self._dates = True
        if not self._dates:
            return numbers(texts)
        nanoseconds = _dates_ns(texts)
        known = nanoseconds.drop_null()
        if self._origin_ns is None and len(known):
            self._origin_ns = known[0].as_py()
        origin_ns = self._origin_ns or 0
        present = nanoseconds.is_valid().to_numpy(zero_copy_only=False)
        since_ns = nanoseconds.fill_null(origin_ns).to_numpy(zero_copy_only=False) - origin_ns
        return np.where(present, since_ns / 1e9, np.nan)


def _dates_ns(texts: pa.Array) -> pa.Array:
    """Nanoseconds since 1970 as int64, null where there is no date."""
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", tz="UTC")):
        try:
            return pc.cast(texts, kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
    return pa.array([_date_ns(text) for text in texts.to_pylist()], pa.int64())


def _date_ns(text: str | None) -> int | None:
    try:
        date = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    since = date - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
