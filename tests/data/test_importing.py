"""Importers: units, failed rows, order, and what cannot be imported."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tuner.core.errors import TraceError
from tuner.core.trace import Trace
from tuner.data.formats import TRACE_FORMATS
from tuner.data.importing import ImportReport, import_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
OWN = "arrival_s,prompt_tokens,output_tokens\n"


def run(folder: Path, content: str, format_name: str) -> tuple[Trace, ImportReport]:
    path = folder / "recording"
    path.write_text(content, newline="")
    return import_trace(path, format_name)


SAMPLES: dict[str, str] = {
    "azure": AZURE
    + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:48.1805900,396,109\r\n",
    "burstgpt": BURSTGPT + "5,ChatGPT,374,44,418,Conversation log\n6.5,GPT-4,396,109,505,API log\n",
    "mooncake": json.dumps({"timestamp": 5000, "input_length": 374, "output_length": 44})
    + "\n"
    + json.dumps({"timestamp": 6500, "input_length": 396, "output_length": 109}),
    "csv": OWN + "5,374,44\n6.5,396,109\n",
    "jsonl": json.dumps({"arrival_s": 5, "prompt_tokens": 374, "output_tokens": 44})
    + "\n"
    + json.dumps({"arrival_s": 6.5, "prompt_tokens": 396, "output_tokens": 109}),
}
"""The same two requests, 1.5 s apart, in every format."""


def test_every_format_has_a_sample() -> None:
    assert SAMPLES.keys() == TRACE_FORMATS.keys()


@pytest.mark.parametrize("format_name", SAMPLES)
def test_reads_the_same_requests_from(format_name: str, tmp_path: Path) -> None:
    trace, report = run(tmp_path, SAMPLES[format_name], format_name)
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert trace.header["format"] == format_name
    assert (report.rows, report.kept, dict(report.dropped)) == (2, 2, {})


@pytest.mark.parametrize("format_name", SAMPLES)
def test_reads_packed_files_of(format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "recording.gz"
    path.write_bytes(gzip.compress(SAMPLES[format_name].encode()))
    trace, _ = import_trace(path, format_name)
    assert trace.output_tokens.tolist() == [44, 109]


@pytest.mark.parametrize("format_name", SAMPLES)
def test_tells_how_far_it_is_in(format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(SAMPLES[format_name], newline="")
    told: list[tuple[int, int]] = []
    import_trace(path, format_name, lambda done, total: told.append((done, total)))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize("format_name", SAMPLES)
def test_an_empty_file_is_refused_as(format_name: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is empty; expected"):
        run(tmp_path, "", format_name)


@pytest.mark.parametrize("format_name", SAMPLES)
def test_a_missing_file_is_refused_as(format_name: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist; name the file to import"):
        import_trace(tmp_path / "none", format_name)


@pytest.mark.parametrize("format_name", SAMPLES)
def test_another_formats_file_is_refused_as(format_name: str, tmp_path: Path) -> None:
    other = "mooncake" if format_name in ("azure", "burstgpt", "csv") else "azure"
    with pytest.raises(TraceError) as caught:
        run(tmp_path, SAMPLES[other], format_name)
    assert "\n" not in str(caught.value)


def test_drops_failed_rows_and_counts_them_by_reason(tmp_path: Path) -> None:
    rows = [
        "2023-11-16 18:15:46.0000001,374,44",
        "2023-11-16 18:15:47.0,374,0",  # failed
        "2023-11-16 18:15:48.0,0,5",
        "2023-11-16 18:15:49.0,,5",
        "2023-11-16 18:15:50.0,12.5,5",
        "2023-11-16 18:15:51.0,20000000,5",
        "yesterday,10,5",
        "2023-11-16 18:15:53.0,10",  # a field short
        "2023-11-16 18:15:54.0,7,NaN",
        "2023-11-16 18:15:55.0,8,9",
    ]
    trace, report = run(tmp_path, AZURE + "\r\n".join(rows), "azure")
    assert trace.prompt_tokens.tolist() == [374, 8]
    assert report.rows == len(rows)
    assert report.dropped == {
        "malformed lines": 1,
        "without a readable time": 1,
        "without a readable number of prompt tokens": 2,
        "without a readable number of output tokens": 1,
        "without output tokens (failed requests)": 1,
        "without prompt tokens": 1,
        "with more than 10000000 tokens": 1,
    }
    assert report.kept + sum(report.dropped.values()) == report.rows


def test_lines_that_are_no_json_are_counted(tmp_path: Path) -> None:
    content = SAMPLES["jsonl"] + '\n\n[1]\n{"arrival_s": 7, "prompt_tok'
    trace, report = run(tmp_path, content, "jsonl")
    assert len(trace) == 2
    assert report.dropped == {"malformed lines": 2}


def test_a_file_without_a_usable_row_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        run(tmp_path, BURSTGPT + "5,GPT-4,100,0,100,API log\n", "burstgpt")
    assert "no row can be used (1 without output tokens (failed requests))" in str(caught.value)


def test_a_recording_out_of_order_is_sorted_and_ties_keep_their_order(tmp_path: Path) -> None:
    trace, report = run(tmp_path, OWN + "9,1,1\n3,2,2\n9,3,3\n3,4,4\n", "csv")
    assert trace.arrival_s.tolist() == [0, 0, 6, 6]
    assert trace.prompt_tokens.tolist() == [2, 4, 1, 3]
    assert report.out_of_order == 2
    assert report.start_s == 3


@pytest.mark.parametrize(
    "dates",
    [
        ["2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00"],
        ["2024-05-10T00:00:00.009930Z", "2024-05-10T02:00:01+02:00"],
        ["2024-05-10 00:00:00.009930", "2024-05-10 00:00:01"],
        ["2024-05-10 00:00:00.009930", "2024-05-10 00:00:01Z"],
    ],
    ids=["Azure 2024", "other zones", "without zone", "with and without zone"],
)
def test_dates_become_seconds(dates: list[str], tmp_path: Path) -> None:
    trace, _ = run(tmp_path, AZURE + "".join(f"{date},1,1\r\n" for date in dates), "azure")
    assert trace.arrival_s == pytest.approx([0.0, 0.99007], abs=1e-9)


def test_ticks_of_100_ns_survive_in_dates(tmp_path: Path) -> None:
    rows = "2023-11-16 18:15:46.6805900,1,1\r\n2023-11-17 18:15:46.6805901,1,1\r\n"
    trace, _ = run(tmp_path, AZURE + rows, "azure")
    assert trace.arrival_s[1] - 86_400 == pytest.approx(1e-7, rel=1e-3)


def test_prefix_hits_are_the_leading_run_of_blocks_seen_before(tmp_path: Path) -> None:
    requests = [
        (1300, [1, 2, 3]),
        (1300, [1, 2, 4]),  # two blocks seen
        (1000, [9, 2]),  # block 2 is seen, but not leading
        (700, [1, 2]),  # the last block is not full: no more than the prompt
        (512, "no list"),
    ]
    lines = [
        json.dumps({"timestamp": 0, "input_length": n, "output_length": 1, "hash_ids": blocks})
        for n, blocks in requests
    ]
    trace, _ = run(tmp_path, "\n".join(lines), "mooncake")
    assert trace.prefix_hit_tokens is not None
    assert trace.prefix_hit_tokens.tolist() == [0, 1024, 0, 700, 0]


def test_client_names_are_numbered_as_they_appear(tmp_path: Path) -> None:
    content = "arrival_s,prompt_tokens,output_tokens,client_id\n0,1,1,b\n1,1,1,a\n2,1,1,b\n3,1,1,\n"
    trace, report = run(tmp_path, content, "csv")
    assert trace.client_id is not None
    assert trace.client_id.tolist() == [0, 1, 0, 2]
    assert report.clients == {"b": 0, "a": 1, "": 2}


def test_client_numbers_stay(tmp_path: Path) -> None:
    content = "\n".join(
        json.dumps({"arrival_s": i, "prompt_tokens": 1, "output_tokens": 1, "client_id": client})
        for i, client in enumerate([7, -3, 7])
    )
    trace, report = run(tmp_path, content, "jsonl")
    assert trace.client_id is not None
    assert trace.client_id.tolist() == [7, -3, 7]
    assert report.clients == {}


def test_prefix_hits_of_ones_own_file_are_kept_within_the_prompt(tmp_path: Path) -> None:
    content = OWN.strip() + ",prefix_hit_tokens\n0,100,1,50\n1,100,1,500\n2,100,1,\n"
    trace, _ = run(tmp_path, content, "csv")
    assert trace.prefix_hit_tokens is not None
    assert trace.prefix_hit_tokens.tolist() == [50, 100, 0]


@pytest.mark.parametrize(
    ("format_name", "content", "sentence"),
    [
        ("azure", "TIMESTAMP,ContextTokens\n1,2\n", "column 'GeneratedTokens' is missing (found"),
        ("burstgpt", AZURE + "1,1,1\n", "column 'Timestamp' is missing"),
        ("csv", "arrival,prompt_tokens,output_tokens\n1,1,1\n", "did you mean 'arrival'?"),
        ("jsonl", '{"arrival_s": 1, "prompt": 2}', "field 'prompt_tokens' is missing"),
        ("zip", "", "format 'zip' is not known; expected one of azure"),
    ],
    ids=["short header", "another header", "near name", "field", "format"],
)
def test_says_what_is_missing(
    format_name: str, content: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError) as caught:
        run(tmp_path, content, format_name)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"\x00\xff\xfe\x9c" * 100),
        lambda path: path.write_bytes(gzip.compress(SAMPLES["csv"].encode())[:-15]),
    ],
    ids=["folder", "binary", "cut archive"],
)
@pytest.mark.parametrize("format_name", ["csv", "jsonl"])
def test_a_file_that_is_no_text_is_one_sentence(
    make: Callable[[Path], object], format_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "recording.gz"
    make(path)
    with pytest.raises(TraceError) as caught:
        import_trace(path, format_name)
    assert "recording.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_larger_than_a_piece_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.data.formats import rows

    monkeypatch.setattr(rows, "PIECE_BYTES", 512)
    monkeypatch.setattr(rows, "PIECE_LINES", 10)
    prompts = np.arange(1, 301)
    start = "2024-05-10T00:"
    lines = [f"{start}{i // 60:02d}:{i % 60:02d}Z,{p},1\n" for i, p in enumerate(prompts)]
    trace, _ = run(tmp_path, OWN + "".join(lines), "csv")
    assert trace.arrival_s.tolist() == list(range(300))
    assert trace.prompt_tokens.tolist() == prompts.tolist()
    objects = [
        json.dumps({"arrival_s": i, "prompt_tokens": int(p), "output_tokens": 1})
        for i, p in enumerate(prompts)
    ]
    trace, _ = run(tmp_path, "\n".join(objects), "jsonl")
    assert trace.prompt_tokens.tolist() == prompts.tolist()
