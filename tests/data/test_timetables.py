"""Timetables as people write them, and the sentences that a wrong one gets."""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tuner.core.errors import ConfigError
from tuner.core.timetable import Timetable
from tuner.data.timetables import parse_timetable, read_timetable, seconds

DAY_S = 86_400.0
TWO = Timetable((28_800.0, 72_000.0), (12.0, 6.0), DAY_S)


def counts(table: Timetable, *hours: float) -> list[float]:
    place = table.now(np.array(hours) * 3600.0)
    return [table.counts[which] for which in place]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("08:30", 30_600.0),
        ("8:30", 30_600.0),
        ("00:00:40", 40.0),
        ("100:00", 360_000.0),
        (" 90.5 ", 90.5),
        ("8h", None),
        ("-1", None),
        ("nan", None),
        ("08:75", None),
    ],
)
def test_a_time_is_a_clock_s_or_seconds(text, value):
    assert seconds(text) == value


def test_a_line_of_text_is_a_timetable():
    assert parse_timetable("20:00=6, 08:00=12") == TWO
    assert parse_timetable("28800=12,72000=6") == TWO


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "time,replicas\n08:00,12\n20:00,6\n"),
        ("t.csv", "from_s,why,nodes\n72000,evening,6\n\n28800,day,12\n"),
        ("t.csv", "from,to,replicas\n2026-11-20T20:00,x,6\n2026-11-21T08:00,x,12\n"),
        ("t.csv", "from,replicas\n2026-11-20 08:00+08:00,12\n2026-11-20 20:00+08:00,6\n"),
        ("t.yaml", "20:00: 6\n08:00: 12\n"),
        ("t.yml", '"20:00": 6.0\n"28800": 12\n'),
    ],
    ids=["clock", "seconds", "dates over midnight", "zone", "yaml", "yaml text"],
)
def test_a_file_is_a_timetable(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_timetable(tmp_path / name) == TWO


def test_a_count_holds_until_the_next_one_and_over_the_end_of_the_period():
    assert counts(TWO, 0, 7.99, 8, 19.99, 20, 24, 32, -1) == [6, 6, 12, 12, 6, 6, 12, 6]


def test_what_begins_soon_counts_where_it_is_more():
    hours = np.array([7.4, 7.5, 12.0, 19.9, 20.0])
    place = TWO.soon(hours * 3600.0, 1800.0)
    assert [TWO.counts[which] for which in place] == [6, 12, 12, 12, 6]


def test_a_week_is_a_period_too():
    week = parse_timetable("00:00=2,120:00=1", 7 * DAY_S)
    assert counts(week, 119, 120, 167, 168) == [2, 1, 1, 2]
    with pytest.raises(ConfigError, match="'120:00' is no time of the period"):
        parse_timetable("00:00=2,120:00=1")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.txt", "", r"t\.txt ends in '\.txt'; expected a timetable as \.csv or \.yaml"),
        ("t.csv", "", r"t\.csv: it is empty; expected when in the first column and how many in one named replicas or nodes"),
        ("t.csv", "08:00,12\n", r"its header is 08:00,12; expected when"),
        ("t.csv", "time,replicas\n", "there is no time in it"),
        ("t.csv", "time,replicas\n08:00,12\n09:00\n", "row 3 has 1 columns; expected the 2 of the header"),
        ("t.csv", "time,replicas\n08:00,many\n", "row 2: 'many' is no count; expected a number, 0 or more"),
        ("t.csv", "time,replicas\n08:00,-2\n", "row 2: '-2' is no count"),
        ("t.csv", "time,replicas\n08:00,inf\n", "row 2: 'inf' is no count"),
        ("t.csv", "time,replicas\n08:00,0\n", "every count is 0"),
        ("t.csv", "time,replicas\n08:00,1\n8:00,2\n", "row 3: that time of the period is given twice"),
        ("t.csv", "time,replicas\n08:00,1\nnoon,2\n", "row 3: 'noon' is no time of the period; expected HH:MM, or seconds below 86400"),
        ("t.csv", "time,replicas\n25:00,1\n", "row 2: '25:00' is no time of the period"),
        ("t.csv", "time,replicas\nnoon,1\n", "row 2: 'noon' is no time; expected HH:MM, seconds, or a date"),
        ("t.csv", "time,replicas\n2026-11-20T08:00,1\n2026-11-21T08:00,2\n", "2026-11-21T08:00 lies outside the period of 86400 s that begins with the first row"),
        ("t.yaml", "- 1\n", "holds list; expected keys and values such as"),
        ("t.yaml", "08:00: many\n", "08:00: 'many' is no count"),
        ("t.yaml", "8pm: 3\n", "'8pm' is no time of the period"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        read_timetable(tmp_path / name)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; expected a timetable"):
        read_timetable(tmp_path / "t.csv")


def test_wrong_text_is_one_sentence():
    with pytest.raises(ConfigError, match="times: '20:00' is no WHEN=REPLICAS; expected such as"):
        parse_timetable("08:00=12,20:00")


def test_reads_the_day_that_deepseek_published():
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the recordings are not at hand")
    table = read_timetable(Path(folder) / "traces/fleet/deepseek_h800_nodes_2025-02-27.csv")
    assert counts(table, 12, 18, 0, 4, 6.75, 11.99) == [278, 278, 218, 68, 98, 278]
    minutes = table.now(np.arange(1440) * 60.0)
    assert np.mean([table.counts[which] for which in minutes]) == 226.75  # as published
