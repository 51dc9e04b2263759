"""Telemetry turned back into requests: counts as recorded, lengths as observed, sums exact."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from envs.workloads.recorded import ARRIVED, FINISHED, from_telemetry
from tests.envs import worlds
from tuner.core.errors import InputError
from tuner.core.trace import Gap, Trace
from tuner.data import read_trace
from tuner.data.telemetry import Buckets, Telemetry, TelemetryHeader, TelemetryRow, table_of

EVERY_S = 15.0
SINCE_S = 1_800_000_000.0
BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
"""vLLM's, in tokens."""


def telemetry_of(
    trace: Trace,
    *,
    lost: tuple[int, ...] = (),
    histograms: bool = True,
    arrivals: bool = True,
    delay_rows: int = 0,
) -> Telemetry:
    """What a recording of the trace would hold, had every request been answered at once.

    Args:
        lost: rows that saw nothing; the next one books what they missed.
        arrivals: whether the engine counts them; else it tells what finished and is in flight.
        delay_rows: rows by which requests end after they came.
    """
    row_of = (trace.arrival_s // EVERY_S).astype(int)
    rows = int(row_of[-1]) + 1 + delay_rows
    booked = np.arange(rows)
    for row in sorted(lost, reverse=True):
        booked[row] = booked[row + 1]
    came = np.bincount(booked[row_of], minlength=rows)
    end_of = booked[row_of + delay_rows]
    made = []
    for row in range(rows):
        at_s = SINCE_S + EVERY_S * (row + 1)
        if row in lost:
            made.append(TelemetryRow(at_s=at_s, window_s=60.0, counted_s=EVERY_S))
            continue
        mine = end_of == row
        counts = {
            "requests_finished": int(mine.sum()),
            "requests_failed": 0,
            "prompt_tokens": int(trace.prompt_tokens[mine].sum()),
            "output_tokens": int(trace.output_tokens[mine].sum()),
        }
        flight = int(came[: row + 1].sum() - (end_of <= row).sum())
        made.append(
            TelemetryRow(
                at_s=at_s,
                window_s=60.0,
                counted_s=EVERY_S,
                values={"in_flight": float(flight)},
                counts=counts | ({"requests_arrived": int(came[row])} if arrivals else {}),
                histograms=observed(trace, mine) if histograms else {},
            )
        )
    until_s = SINCE_S + rows * EVERY_S
    header = TelemetryHeader("r1", "vllm", "http://p:9090", {}, SINCE_S, until_s, EVERY_S, 60.0)
    return Telemetry(header, table_of(made), {})


def observed(trace: Trace, mine: np.ndarray) -> Mapping[str, Buckets]:
    return {
        f"{kind}_length": Buckets(
            BOUNDS,
            np.bincount(
                np.searchsorted(BOUNDS, trace.columns()[f"{kind}_tokens"][mine]),
                minlength=len(BOUNDS) + 1,
            ).tolist(),
        )
        for kind in ("prompt", "output")
    }


def sums(trace: Trace, kind: str, over_s: float, count: int) -> np.ndarray:
    place = (trace.arrival_s // over_s).astype(int)
    tokens = trace.columns()[f"{kind}_tokens"] if kind else np.ones(len(trace))
    return np.bincount(place, weights=tokens, minlength=count)


@pytest.mark.parametrize("histograms", [True, False])
@pytest.mark.parametrize("match_s", [0.0, 300.0])
def test_requests_and_tokens_are_those_that_were_counted(histograms, match_s):
    sent = worlds.trace(2000.0)
    found = from_telemetry(telemetry_of(sent, histograms=histograms), 1, match_s=match_s)
    rows = int(sent.last_arrival_s // EVERY_S) + 1
    np.testing.assert_array_equal(
        sums(found.trace, "", EVERY_S, rows), sums(sent, "", EVERY_S, rows)
    )
    assert (found.arrivals_from, found.left_out, found.trace.gaps) == (ARRIVED, 0, ())
    over_s = match_s or EVERY_S
    for kind in ("prompt", "output"):
        mine = sums(found.trace, kind, over_s, 200)
        # Every row has arrivals, but a block may end a row late.
        if match_s == 0:
            np.testing.assert_array_equal(mine, sums(sent, kind, over_s, 200))
        assert mine.sum() == sums(sent, kind, over_s, 200).sum()


def test_tokens_add_up_over_blocks_of_minutes():
    sent = worlds.trace(3000.0)
    found = from_telemetry(telemetry_of(sent), 1, match_s=300.0).trace
    # Block b holds the rows that end before 300 (b + 1) s, the one that ends there goes on.
    block = (np.ceil((sent.arrival_s + 1e-9) / EVERY_S) * EVERY_S // 300).astype(int)
    mine = (np.ceil((found.arrival_s + 1e-9) / EVERY_S) * EVERY_S // 300).astype(int)
    for kind in ("prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(
            np.bincount(mine, weights=found.columns()[kind]),
            np.bincount(block, weights=sent.columns()[kind]),
        )


def test_lengths_are_spread_as_they_were_observed():
    sent = worlds.trace(4000.0)
    found = from_telemetry(telemetry_of(sent), 1).trace
    for kind in ("prompt_tokens", "output_tokens"):
        shares = [
            np.histogram(one.columns()[kind], (0, *(b + 0.5 for b in BOUNDS)))[0] / len(one)
            for one in (sent, found)
        ]
        np.testing.assert_allclose(*shares, atol=0.03)
    # A geometric distribution of that mean has a tenth of its draws below a tenth of the mean.
    blind = from_telemetry(telemetry_of(sent, histograms=False), 1).trace
    assert np.mean(sent.prompt_tokens < 46) < 0.04
    assert np.mean(blind.prompt_tokens < 46) > 0.08


def test_without_a_counter_of_arrivals_they_follow_from_what_finished_and_is_in_flight():
    sent = worlds.trace(2000.0)
    telemetry = telemetry_of(sent, arrivals=False, delay_rows=4)
    found = from_telemetry(telemetry, 1)
    assert found.arrivals_from == FINISHED
    rows = int(sent.last_arrival_s // EVERY_S) + 1
    came, sent_rows = (sums(one, "", EVERY_S, rows + 4) for one in (found.trace, sent))
    # What was in flight when the recording began had come before it.
    np.testing.assert_array_equal(came[1:], sent_rows[1:])
    assert came[0] == 0


def test_a_short_silence_is_counted_by_the_next_row():
    sent = worlds.trace(2000.0)
    found = from_telemetry(telemetry_of(sent, lost=(20, 21)), 1)
    assert found.trace.gaps == ()
    assert len(found.trace) == len(sent)
    rows = sums(found.trace, "", EVERY_S, 200)
    assert rows[20:23].sum() == sums(sent, "", EVERY_S, 200)[20:23].sum()
    assert rows[20:23].min() > 0


def test_a_long_silence_is_a_gap_with_the_row_that_books_it():
    sent = worlds.trace(2000.0)
    found = from_telemetry(telemetry_of(sent, lost=(0, *range(40, 60))), 1)
    assert found.trace.gaps == (Gap(600.0, 915.0),)
    inside = (sent.arrival_s >= 600) & (sent.arrival_s < 915)
    assert found.left_out == inside.sum()
    assert len(found.trace) == (~inside).sum()
    assert found.trace.output_tokens.sum() == sent.output_tokens[~inside].sum()
    assert found.trace.header["left_out"] == str(inside.sum())


def test_silence_at_the_end_is_a_gap():
    sent = worlds.trace(500.0)
    telemetry = telemetry_of(sent, delay_rows=3)
    rows = telemetry.table.num_rows
    silent = telemetry_of(sent, delay_rows=3, lost=(rows - 3, rows - 2))
    last = silent.table.slice(0, rows - 1)
    found = from_telemetry(Telemetry(silent.header, last, {}), 1)
    assert found.trace.gaps == (Gap((rows - 3) * EVERY_S, (rows - 1) * EVERY_S),)


def test_tokens_of_rows_without_arrivals_belong_to_those_before():
    tokens = np.array([100, 200], np.int32)
    sent = Trace(np.array([1.0, 100.0]), tokens, tokens.copy())
    found = from_telemetry(telemetry_of(sent, delay_rows=2), 1, match_s=0.0).trace
    assert found.output_tokens.tolist() == [100, 200]
    assert (found.arrival_s // EVERY_S).tolist() == [0, 6]


def rows_of(*counts: Mapping[str, int], histograms: Mapping[int, Buckets] | None = None):
    """A row of 15 s for each; the histogram of outputs by row."""
    made = [
        TelemetryRow(
            at_s=SINCE_S + EVERY_S * (row + 1),
            window_s=60.0,
            counted_s=EVERY_S,
            counts=one,
            histograms={"output_length": (histograms or {})[row]} if histograms else {},
        )
        for row, one in enumerate(counts)
    ]
    until_s = SINCE_S + EVERY_S * len(made)
    header = TelemetryHeader("r1", "sglang", "", {}, SINCE_S, until_s, EVERY_S, 60.0)
    return Telemetry(header, table_of(made), {})


def test_fewer_tokens_than_requests_leave_one_each():
    counts = {"requests_arrived": 50, "prompt_tokens": 5000, "output_tokens": 20}
    found = from_telemetry(rows_of(counts), 1).trace
    assert set(found.output_tokens) == {1}
    assert found.prompt_tokens.sum() == 5000


def test_a_row_without_a_token_count_is_like_the_others():
    counts = {"requests_arrived": 50, "prompt_tokens": 5000, "output_tokens": 500}
    lacking = {name: count for name, count in counts.items() if name != "output_tokens"}
    found = from_telemetry(rows_of(counts, lacking), 1).trace
    assert found.output_tokens.sum() == 1000


def test_of_several_sets_of_buckets_the_first_counts():
    """An engine that was updated has others; their counts cannot be added."""
    counts = {"requests_arrived": 50, "prompt_tokens": 5000, "output_tokens": 400}
    old, new = Buckets((4, 16), (0, 50, 0)), Buckets((1, 2, 3), (50, 0, 0, 0))
    found = from_telemetry(rows_of(counts, counts, histograms={0: old, 1: new}), 1).trace
    assert np.quantile(found.output_tokens, 0.1) > 4


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    telemetry = telemetry_of(worlds.trace(1000.0))
    one, again, other = (from_telemetry(telemetry, seed).trace for seed in (1, 1, 2))
    for name, column in one.columns().items():
        assert column.tobytes() == again.columns()[name].tobytes()
        assert column.tobytes() != other.columns()[name].tobytes()


def silent(**counts: int) -> Telemetry:
    row = TelemetryRow(at_s=15.0, window_s=60.0, counted_s=15.0, counts=counts)
    return Telemetry(
        TelemetryHeader("r1", "vllm", "", {}, 0.0, 15.0, 15.0, 60.0), table_of([row]), {}
    )


@pytest.mark.parametrize(
    ("telemetry", "sentence"),
    [
        (silent(), "no arrivals were counted"),
        (silent(requests_arrived=0), "no arrivals were counted"),
        (silent(requests_arrived=5), "no prompt tokens were counted"),
        (silent(requests_arrived=5, prompt_tokens=9), "no output tokens were counted"),
        (Telemetry(silent().header, table_of([]), {}), "holds no row"),
    ],
    ids=["nothing seen", "no load", "no tokens", "no output", "no row"],
)
def test_a_recording_without_load_is_refused(telemetry, sentence):
    with pytest.raises(InputError, match=sentence):
        from_telemetry(telemetry, 1)


def test_a_real_hour_comes_back_with_its_lengths():
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the recordings are not at hand")
    sent = read_trace(Path(folder) / "traces/requests/servegen_deepseek_r1_h00_16.parquet")
    sent = sent.take(sent.arrival_s < 3600)
    found = from_telemetry(telemetry_of(sent), 1).trace
    assert len(found) == len(sent)
    for kind in ("prompt_tokens", "output_tokens"):
        mine, theirs = found.columns()[kind], sent.columns()[kind]
        assert mine.sum() == theirs.sum()
        for q in (0.05, 0.5, 0.95, 0.99):
            # Buckets reach over a factor of 2 to 2.5.
            assert np.quantile(mine, q) == pytest.approx(np.quantile(theirs, q), rel=0.2)
