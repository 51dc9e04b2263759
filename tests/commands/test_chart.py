"""The terminal chart against drawings made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.commands.chart import columns, duration


def test_draws_columns_with_both_axes() -> None:
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    lines = columns(values, width=20, height=2, span_s=5.0, axis="requests/s")
    assert lines == [
        "requests/s",
        "4 │   ▄█",
        "0 │ ▄███",
        "  └─────",
        "   0 s",
    ]


def test_averages_what_does_not_fit_the_width() -> None:
    values = np.repeat([1.0, 3.0], 50)
    lines = columns(values, width=6, height=1, span_s=100.0, axis="x")
    assert lines[1].count("█") >= 1
    assert all(len(line) <= 10 for line in lines)


def test_unknown_stretches_are_shaded_and_not_zero() -> None:
    values = np.array([2.0, np.nan, 2.0])
    assert columns(values, width=20, height=1, span_s=3.0, axis="x")[1] == "2 │█░█"


def test_a_terminal_without_blocks_gets_ascii() -> None:
    lines = columns(
        np.array([1.0, 2.0]), width=20, height=2, span_s=7200, axis="x", ascii_only=True
    )
    assert all(ord(letter) < 128 for line in lines for letter in line)


@pytest.mark.parametrize(
    ("span_s", "labels"),
    [
        (57_600.0, ["0 h", "2 h", "4 h", "14 h"]),
        (3_500.0, ["0 min", "12 min", "48 min"]),
        (7 * 86_400.0, ["0 d", "1 d", "6 d"]),
        (90.0, ["0 s", "12 s"]),
    ],
    ids=["hours", "minutes", "days", "seconds"],
)
def test_the_time_axis_has_round_labels(span_s: float, labels: list[str]) -> None:
    axis = columns(np.ones(76), width=80, height=1, span_s=span_s, axis="x")[-1]
    for label in labels:
        assert label in axis


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (119, "119 s"), (600, "10 min"), (57_600, "16 h 0 min"), (300_000, "3 d 11 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_all_zero_is_drawn_empty() -> None:
    assert columns(np.zeros(3), width=20, height=1, span_s=3.0, axis="x")[1] == "1 │   "
