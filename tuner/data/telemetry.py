"""Telemetry files: Parquet, one row per window of one target, as a controller would have seen it.

    at_s               float64   end of the window, Unix s
    window_s           float64   that rates and quantiles of the row cover
    age_s              float64   of the newest sample; null without any
    ages_s             map       scalar field -> age of its newest sample, s
    estimates          list      scalar fields worked out from others
    (every FIELDS)     float64   null where not measured
    counted_s          float64   seconds before at_s that the exact counts below cover
    requests_arrived ...         int64 counts, see COUNTS; null where nothing was seen
    ttft_s_bounds ...            list of float64, upper bounds of HISTOGRAMS without infinity
    ttft_s_counts ...            list of int64, observations per bucket, the last above every bound

Counts are increases between samples, each booked where the later sample lies: they add up to what
the counters rose by, over restarts and gaps.
Metadata keys: `tuner.schema` ("tuner.telemetry/1"), `tuner.header` (JSON object, see
TelemetryHeader) and `tuner.carry` (JSON object: series -> its last value, for going on).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuner.core.errors import InputError
from tuner.core.observation import FIELD_NAMES
from tuner.data.files import replacing

SCHEMA = "tuner.telemetry/1"

COUNTS = (
    "requests_arrived",
    "requests_finished",
    "requests_failed",
    "prompt_tokens",
    "output_tokens",
    "preemptions",
)
"""Exact counts of a row."""

HISTOGRAMS = ("ttft_s", "tpot_s", "e2e_s", "prompt_length", "output_length")
"""Bucket increases of a row: seconds, seconds per token, seconds, tokens, tokens."""

ROW_GROUP_ROWS = 8192
"""A day and a half of 15 s; some MB."""

_ARROW = pa.schema(
    [
        pa.field("at_s", pa.float64(), nullable=False),
        pa.field("window_s", pa.float64(), nullable=False),
        pa.field("age_s", pa.float64()),
        pa.field("ages_s", pa.map_(pa.string(), pa.float64())),
        pa.field("estimates", pa.list_(pa.string())),
        *(pa.field(name, pa.float64()) for name in FIELD_NAMES),
        pa.field("counted_s", pa.float64(), nullable=False),
        *(pa.field(name, pa.int64()) for name in COUNTS),
        *(
            one
            for name in HISTOGRAMS
            for one in (
                pa.field(f"{name}_bounds", pa.list_(pa.float64())),
                pa.field(f"{name}_counts", pa.list_(pa.int64())),
            )
        ),
    ]
)


@dataclass(frozen=True)
class TelemetryHeader:
    """What a file holds and where it comes from."""

    target: str
    engine: str
    source: str
    """Address of the metrics server; never a token."""
    selector: Mapping[str, str]
    since_s: float
    """Start of the first window."""
    until_s: float
    """End of the last window."""
    every_s: float
    """Between two rows."""
    window_s: float
    """That rates and quantiles cover."""
    baseline_s: float | None = None
    """A series that first appears after this began at zero; None while nothing was seen."""

    def mismatch(self, other: TelemetryHeader) -> str | None:
        """The first member, times apart, in which two files differ; None where they fit."""
        # The address may differ: a forwarded port is another one each time.
        for name in ("target", "engine", "selector", "every_s", "window_s"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {mine!r} there and {theirs!r} now"
        return None


@dataclass(frozen=True)
class Buckets:
    """One histogram in one window."""

    bounds: Sequence[float]
    counts: Sequence[int]


@dataclass(frozen=True)
class TelemetryRow:
    """One window."""

    at_s: float
    window_s: float
    counted_s: float
    age_s: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """By names of FIELDS."""
    ages_s: Mapping[str, float] = field(default_factory=dict)
    estimates: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """By names of COUNTS; what is absent was not seen."""
    histograms: Mapping[str, Buckets] = field(default_factory=dict)
    """By names of HISTOGRAMS."""


@dataclass(frozen=True, eq=False)
class Telemetry:
    """A file's content."""

    header: TelemetryHeader
    table: pa.Table
    carry: Mapping[str, float]
    """Series -> last value seen: where counting goes on."""

    def totals(self) -> dict[str, int | None]:
        """Sums of COUNTS; None where nothing counted."""
        return {name: pc.sum(self.table[name]).as_py() for name in COUNTS}


def table_of(rows: Iterable[TelemetryRow]) -> pa.Table:
    """Rows as the file's columns."""
    return pa.Table.from_pylist([_plain(row) for row in rows], schema=_ARROW)


def _plain(row: TelemetryRow) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "at_s": row.at_s,
        "window_s": row.window_s,
        "age_s": row.age_s,
        "ages_s": list(row.ages_s.items()),
        "estimates": list(row.estimates),
        "counted_s": row.counted_s,
        **row.values,
        **row.counts,
    }
    for name, buckets in row.histograms.items():
        plain[f"{name}_bounds"] = list(buckets.bounds)
        plain[f"{name}_counts"] = list(buckets.counts)
    return plain


def write_telemetry(telemetry: Telemetry, path: Path) -> None:
    """Writes zstd-compressed Parquet; an old file stays until the new one is whole.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    metadata = {
        "tuner.schema": SCHEMA,
        "tuner.header": json.dumps(asdict(telemetry.header), sort_keys=True),
        "tuner.carry": json.dumps(dict(telemetry.carry), sort_keys=True),
    }
    with replacing(path) as temporary:
        pq.write_table(
            telemetry.table.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
        )


def read_telemetry(path: Path) -> Telemetry:
    """The content of a telemetry file.

    Raises:
        InputError: the file is missing, cut off, no Parquet, or of another schema.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is a folder; expected a telemetry file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file or is damaged; record it again") from error
    metadata = table.schema.metadata or {}
    schema = metadata.get(b"tuner.schema", b"nothing").decode(errors="replace")
    if schema != SCHEMA or not table.schema.equals(_ARROW):
        raise InputError(
            f"{path}: schema is {schema!r} with {len(table.column_names)} columns; this version "
            f"of tuner reads {SCHEMA!r} with {len(_ARROW.names)}, so record it again"
        )
    try:
        header = TelemetryHeader(**json.loads(metadata[b"tuner.header"]))
        carry = {str(k): float(v) for k, v in json.loads(metadata[b"tuner.carry"]).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its header is damaged; record it again") from error
    return Telemetry(header, table.replace_schema_metadata(None), carry)


def joined(parts: Sequence[Telemetry]) -> Telemetry:
    """Parts that follow each other as one; the last one's carry goes on."""
    first, last = parts[0], parts[-1]
    return Telemetry(
        replace(last.header, since_s=first.header.since_s),
        pa.concat_tables([part.table for part in parts]),
        last.carry,
    )
