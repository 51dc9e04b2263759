"""The timetable as a rule: the clock, the scale, the lead, the bounds."""

# A row of a table is a line, however long the sentence.
# ruff: noqa: E501

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policies import build_policy
from tuner.core.decision import Proposal
from tuner.core.errors import ConfigError
from tuner.core.history import History
from tuner.core.observation import Observation
from tuner.knobs import knob_space

KNOBS = knob_space(replicas=(1, 40))
HOUR_S = 3600.0
TIMES = {"times": "08:00=12,20:00=6"}


def proposed(options: dict[str, float | str], hour: float) -> Proposal:
    policy = build_policy("schedule", options, KNOBS, tick_s=15.0)
    return policy.propose(History(KNOBS).observed(Observation(at_s=hour * HOUR_S, window_s=15.0)))


@pytest.mark.parametrize(
    ("options", "hour", "replicas", "words"),
    [
        ({}, 8.0, 12, "timetable 12 from 08:00 to 20:00: 12"),
        ({}, 7.999, 6, "timetable 6 from 20:00 to 08:00: 6"),
        ({}, 24 * 365 + 9, 12, "timetable 12 from 08:00 to 20:00: 12"),
        ({"start": "12:00"}, 0.0, 12, "timetable 12 from 08:00 to 20:00: 12"),
        ({"start": "12:00"}, 8.0, 6, "timetable 6 from 20:00 to 08:00: 6"),
        ({"start": 43200}, 8.0, 6, "timetable 6 from 20:00 to 08:00: 6"),
        ({"lead_s": 600}, 7.9, 12, "timetable 12 from 08:00 to 20:00, 360 s ahead of it: 12"),
        # Naive: the whole table 600 s early takes replicas away while they are still needed.
        ({"lead_s": 600}, 19.9, 12, "timetable 12 from 08:00 to 20:00: 12"),
        ({"scale": 1.5}, 21.0, 9, "timetable 6 from 20:00 to 08:00, x 1.5: 9"),
        ({"scale": 1.1}, 21.0, 7, "timetable 6 from 20:00 to 08:00, x 1.1: 7"),
        ({"scale": 0.1}, 21.0, 1, "timetable 6 from 20:00 to 08:00, x 0.1: 1"),
        # Naive: 6 x (7 / 12) is 3.5, and 12 x (7 / 12) a hair above 7.
        ({"peak": 7}, 9.0, 7, "timetable 12 from 08:00 to 20:00, x 0.5833: 7"),
        ({"peak": 7}, 21.0, 4, "timetable 6 from 20:00 to 08:00, x 0.5833: 4"),
        ({"scale": 5}, 9.0, 40, "timetable 12 from 08:00 to 20:00, x 5: 60, at most 40 allowed"),
        ({"times": "0=0,12:00=5"}, 3.0, 1, "timetable 0 from 00:00 to 12:00: 0, at least 1 allowed"),
        ({"times": "00:00=5"}, 3.0, 5, "timetable 5 at all times: 5"),
        ({"times": "0=5,45=9", "period_s": 60}, 0.015, 9, "timetable 9 from 00:00:45 to 00:00: 9"),
    ],
)  # fmt: skip
def test_the_clock_says_how_many(options, hour, replicas, words):
    proposal = proposed({**TIMES, **options}, hour)
    assert proposal.settings == {"replicas": replicas}
    assert proposal.why == words
    assert proposal.memory == ()


def test_a_peak_is_met_exactly():
    for peak in range(1, 41):
        assert proposed({**TIMES, "peak": peak}, 9.0).settings == {"replicas": peak}


def test_the_day_that_deepseek_published_fits_a_fleet_of_12():
    folder = os.environ.get("TUNER_DATA")
    if not folder:
        pytest.skip("TUNER_DATA is not set: the recordings are not at hand")
    file = str(Path(folder) / "traces/fleet/deepseek_h800_nodes_2025-02-27.csv")
    by_hour = [proposed({"file": file, "peak": 12}, hour).settings for hour in range(24)]
    counts = [settings["replicas"] for settings in by_hour]
    assert counts == [10, 10, 7, 5, 3, 3, 3, 6, 10, *[12] * 15]
    scaled = proposed({"file": file, "scale": 0.05}, 4.0)
    assert scaled.why == "timetable 68 from 03:30 to 06:30, x 0.05: 4"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "schedule: there is no timetable; give times, as in --set schedule.times=08:00=12,20:00=6, or the "),
        ({**TIMES, "file": "t.csv"}, "schedule: times and file are both given"),
        ({**TIMES, "scale": 1, "peak": 3}, "schedule: scale and peak are both given"),
        ({**TIMES, "scale": 0}, "schedule: scale is 0; expected above 0"),
        ({**TIMES, "lead_s": 1e6}, "schedule: lead_s is 1,000,000 s; expected 0 to 86,400"),
        ({**TIMES, "start": "noon"}, "schedule: start is 'noon'; expected the clock time of second 0"),
        ({"file": "nowhere.csv"}, r"schedule: nowhere\.csv does not exist"),
        ({"times": "8=1,8=2"}, "schedule: times: '8=2': that time of the period is given twice"),
        ({**TIMES, "replicas": 3}, "schedule: unknown option 'replicas'"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_timetable(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_policy("schedule", options, KNOBS, tick_s=15.0)
