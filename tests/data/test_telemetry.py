"""Telemetry files: what is written is read again, and what is no such file is refused."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuner.core.errors import InputError
from tuner.core.observation import FIELD_NAMES
from tuner.data.telemetry import (
    COUNTS,
    Buckets,
    Telemetry,
    TelemetryHeader,
    TelemetryRow,
    joined,
    read_telemetry,
    table_of,
    write_telemetry,
)

HEADER = TelemetryHeader("r1", "vllm", "http://p:9090", {"app": "r1"}, 0.0, 15.0, 15.0, 60.0, 2.0)
ROW = TelemetryRow(
    at_s=15.0,
    window_s=60.0,
    counted_s=15.0,
    age_s=3.5,
    values={"qps": 2.5, "ttft_p99_s": 0.25},
    ages_s={"qps": 3.5},
    estimates=("qps",),
    counts={"requests_finished": 37, "output_tokens": 2**53 - 1},
    histograms={"ttft_s": Buckets((0.1, 1.0), (30, 6, 1))},
)


def part(row: TelemetryRow = ROW, header: TelemetryHeader = HEADER) -> Telemetry:
    return Telemetry(header, table_of([row]), {"a": 7.5})


def test_what_was_written_is_read_and_what_was_not_measured_is_null(tmp_path):
    path = tmp_path / "t.parquet"
    write_telemetry(part(), path)
    found = read_telemetry(path)
    assert found.header == HEADER
    assert found.carry == {"a": 7.5}
    (row,) = found.table.to_pylist()
    assert (row["at_s"], row["window_s"], row["counted_s"], row["age_s"]) == (15, 60, 15, 3.5)
    assert {name: row[name] for name in FIELD_NAMES if row[name] is not None} == ROW.values
    assert {name: row[name] for name in COUNTS if row[name] is not None} == ROW.counts
    assert row["ages_s"] == [("qps", 3.5)]
    assert row["estimates"] == ["qps"]
    assert (row["ttft_s_bounds"], row["ttft_s_counts"]) == ([0.1, 1.0], [30, 6, 1])
    assert row["tpot_s_counts"] is None
    assert {one.name for one in tmp_path.iterdir()} == {"t.parquet"}


def test_parts_join_into_one_whose_totals_are_the_sums():
    later = part(
        replace(ROW, at_s=30.0, counts={"requests_finished": 3}),
        replace(HEADER, since_s=15.0, until_s=30.0),
    )
    whole = joined([part(), replace(later, carry={"a": 9.0})])
    assert (whole.header.since_s, whole.header.until_s) == (0.0, 30.0)
    assert whole.carry == {"a": 9.0}
    totals = whole.totals()
    assert (totals["requests_finished"], totals["requests_failed"]) == (40, None)


def broken(path, kind: str) -> None:
    write_telemetry(part(), path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "text":
        path.write_text("at_s,qps\n")
    elif kind == "another table":
        pq.write_table(pa.table({"arrival_s": [1.0]}), path)
    elif kind == "missing":
        path.unlink()
    else:
        table = pq.read_table(path)
        metadata = {**table.schema.metadata, b"tuner.header": b'{"target": 1}'}
        pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("kind", ["cut off", "text", "another table", "missing", "header"])
def test_what_is_no_telemetry_is_refused_with_its_name(tmp_path, kind):
    path = tmp_path / "t.parquet"
    broken(path, kind)
    with pytest.raises(InputError, match=r"t\.parquet"):
        read_telemetry(path)
