"""Trace files: what is written is read back, and what cannot be read is said in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.core.errors import InputError, TraceError
from tuner.core.trace import MAX_TOKENS, Gap, Trace
from tuner.data import read_trace, traces, write_trace


def assert_same(one: Trace, other: Trace) -> None:
    assert dict(one.header) == dict(other.header)
    assert one.gaps == other.gaps
    columns, others = one.columns(), other.columns()
    assert list(columns) == list(others)
    for name, column in columns.items():
        assert column.dtype == others[name].dtype
        assert column.tobytes() == others[name].tobytes()


@st.composite
def any_trace(draw: st.DrawFn) -> Trace:
    times = st.floats(0, 3e7, allow_nan=False)
    arrival_s = sorted(draw(st.lists(times, min_size=1, max_size=40)))
    tokens = st.lists(
        st.integers(1, MAX_TOKENS), min_size=len(arrival_s), max_size=len(arrival_s)
    ).map(lambda values: np.array(values, np.int32))
    ids = st.lists(
        st.integers(-(2**31), 2**31 - 1), min_size=len(arrival_s), max_size=len(arrival_s)
    ).map(lambda values: np.array(values, np.int32))
    prompts = draw(tokens)
    edges = draw(st.lists(times, max_size=6, unique=True).map(sorted))
    gaps = tuple(Gap(*pair) for pair in zip(edges[::2], edges[1::2], strict=False))
    return Trace(
        arrival_s=np.array(arrival_s),
        prompt_tokens=prompts,
        output_tokens=draw(tokens),
        prefix_hit_tokens=draw(st.sampled_from([None, prompts // 2])),
        client_id=draw(st.none() | ids),
        header=draw(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)),
        gaps=gaps,
    )


@given(trace=any_trace())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(
    trace: Trace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "trace.parquet"
    write_trace(trace, path)
    assert_same(read_trace(path), trace)


def test_pieces_are_put_together_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "ROW_GROUP_ROWS", 7)
    arrival_s = np.arange(50, dtype=np.float64)
    tokens = np.arange(1, 51, dtype=np.int32)
    trace = Trace(arrival_s, tokens, tokens[::-1].copy())
    write_trace(trace, tmp_path / "t.parquet")
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 8
    assert_same(read_trace(tmp_path / "t.parquet"), trace)


def table(**columns: Any) -> pa.Table:
    given = {
        "arrival_s": pa.array([0.0, 1.0, 2.0]),
        "prompt_tokens": pa.array([3, 4, 5], pa.int32()),
        "output_tokens": pa.array([6, 7, 8], pa.int32()),
    }
    merged = {name: column for name, column in (given | columns).items() if column is not None}
    return pa.table(merged)


def test_reads_files_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "theirs.parquet"
    theirs = table(
        arrival_s=pa.array([0, 1, 2], pa.int64()),
        prompt_tokens=pa.array([3, 4, 5], pa.int64()),
        output_tokens=pa.array([6, 7, 8], pa.uint16()),
        model=pa.array(["a", "b", None]),
        client_id=pa.array([1, 1, 2], pa.int16()),
    )
    pq.write_table(theirs, path)
    trace = read_trace(path)
    assert list(trace.columns()) == ["arrival_s", "prompt_tokens", "output_tokens", "client_id"]
    assert trace.prompt_tokens.dtype == np.int32
    assert trace.name == "theirs.parquet"


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path) -> None:
    trace = Trace(
        np.arange(5.0),
        np.arange(1, 6, dtype=np.int32),
        np.arange(1, 6, dtype=np.int32),
        header={"b": "1", "a": "2"},
    )
    write_trace(trace, tmp_path / "one.parquet")
    write_trace(trace, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(table(**columns), path)


def truncated(path: Path) -> None:
    parquet()(path)
    path.write_bytes(path.read_bytes()[:-20])


def damaged(path: Path) -> None:
    rows = 20_000
    values = np.random.default_rng(1)
    pq.write_table(
        pa.table(
            {
                "arrival_s": np.sort(values.random(rows)),
                "prompt_tokens": values.integers(1, 9999, rows).astype(np.int32),
                "output_tokens": values.integers(1, 9999, rows).astype(np.int32),
            }
        ),
        path,
        compression="zstd",
    )
    content = bytearray(path.read_bytes())
    content[2_000:60_000] = bytes(58_000)
    path.write_bytes(bytes(content))


def other_version(path: Path) -> None:
    pq.write_table(table().replace_schema_metadata({"tuner.schema": "tuner.trace/9"}), path)


def broken_header(path: Path) -> None:
    pq.write_table(table().replace_schema_metadata({"tuner.gaps": "[[1]]"}), path)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "bad.parquet does not exist; expected a Parquet file"),
    "a folder": (lambda path: path.mkdir(), "bad.parquet is a folder"),
    "empty file": (lambda path: path.write_bytes(b""), "bad.parquet is an empty file"),
    "not Parquet": (
        lambda path: path.write_text("arrival_s,prompt_tokens\n"),
        "is not a Parquet file; convert it with `tuner trace import",
    ),
    "truncated": (truncated, "is a Parquet file that is cut off or damaged"),
    "damaged inside": (damaged, "is damaged after row 0 of 20000"),
    "no rows": (
        parquet(
            arrival_s=pa.array([], pa.float64()),
            prompt_tokens=pa.array([], pa.int32()),
            output_tokens=pa.array([], pa.int32()),
        ),
        "bad.parquet: the trace holds no request",
    ),
    "column missing": (
        parquet(output_tokens=None, output_token=pa.array([1, 2, 3])),
        "column 'output_tokens' is missing (found arrival_s, prompt_tokens, output_token); "
        "rename column 'output_token'",
    ),
    "text for numbers": (
        parquet(prompt_tokens=pa.array(["3", "4", "5"])),
        "column 'prompt_tokens' holds string; expected whole numbers (int32)",
    ),
    "dates for seconds": (
        parquet(arrival_s=pa.array([0, 1, 2], pa.timestamp("ms"))),
        "column 'arrival_s' holds timestamp[ms]; expected seconds (float64)",
    ),
    "NaN tokens": (
        parquet(output_tokens=pa.array([1.0, float("nan"), 2.0])),
        "output_tokens in row 1 is nan; expected a whole number",
    ),
    "fraction of a token": (
        parquet(output_tokens=pa.array([1.0, 2.0, 2.5])),
        "output_tokens in row 2 is 2.5",
    ),
    "whole tokens as floats": (
        parquet(output_tokens=pa.array([1.0, 2.0, 3.0])),
        "column 'output_tokens' holds double; expected whole numbers (int32)",
    ),
    "missing tokens": (
        parquet(prompt_tokens=pa.array([1, 2, None], pa.int32())),
        "prompt_tokens in row 2 is missing; fill or drop the row",
    ),
    "missing arrival": (parquet(arrival_s=pa.array([0.0, None, 2.0])), "arrival_s in row 1"),
    "NaN arrival": (parquet(arrival_s=pa.array([0.0, float("nan"), 2.0])), "row 1 is nan"),
    "zero tokens": (
        parquet(prompt_tokens=pa.array([1, 0, 2])),
        "prompt_tokens in row 1 is 0; expected 1 to",
    ),
    "tokens beyond int32": (
        parquet(prompt_tokens=pa.array([1, 2, 2**40])),
        f"prompt_tokens in row 2 is {2**40}",
    ),
    "unsorted": (parquet(arrival_s=pa.array([0.0, 2.0, 1.0])), "sort the rows by arrival_s"),
    "negative arrival": (parquet(arrival_s=pa.array([-1.0, 0.0, 1.0])), "arrival_s in row 0 is -1"),
    "client without number": (
        parquet(client_id=pa.array(["a", "b", "c"])),
        "column 'client_id' holds string",
    ),
    "schema of another version": (other_version, "schema 'tuner.trace/9' is not known"),
    "broken header": (broken_header, "the header in the file's metadata is damaged"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_says_what_is_wrong_with(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    make(path)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert sentence in str(caught.value)
    assert "bad.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array([0.0]), *[pa.array([1], pa.int32())] * 3]
    names = ["arrival_s", "prompt_tokens", "output_tokens", "output_tokens"]
    pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="column 'output_tokens' appears twice"):
        read_trace(tmp_path / "t.parquet")


def small() -> Trace:
    return Trace(np.zeros(1), np.ones(1, np.int32), np.ones(1, np.int32))


def test_an_old_file_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    write_trace(small(), path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_trace(small(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("none/t.parquet", "folder .* does not exist"), (".", "is a folder; name a file")],
    ids=["no folder", "a folder"],
)
def test_says_where_it_cannot_write(tmp_path: Path, place: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        write_trace(small(), tmp_path / place)
    assert os.listdir(tmp_path) == []


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("something else")
    write_trace(small(), path)
    assert len(read_trace(path)) == 1
