import math

import pytest

from experiments.readable import (
    brief,
    difference,
    difference_interval,
    duration,
    figure,
    interval,
    percent,
    setting_text,
    shown_interval,
)


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("slo_attainment", 0.99312, "99.31 %"),
        ("slo_attainment", 1.0, "100.00 %"),
        ("slo_attainment", 0.999981, "99.998 %"),  # two decimals would call it all
        ("slo_attainment", 0.9999999999, "100.000000 %"),
        ("ttft_p50_s", 0.0357, "35.7 ms"),
        ("ttft_p99_s", 0.412, "412 ms"),
        ("ttft_p99_s", 2.314, "2.31 s"),
        ("ttft_p99_s", 4097.6, "4,098 s"),
        ("tpot_p99_s", 0.0612, "61.2 ms"),
        ("tpot_p99_s", 1.5, "1500 ms"),
        ("e2e_p99_s", 299.7, "299.7 s"),
        ("gpu_hours", 1669.6, "1,670"),
        ("goodput_qps", 14.984, "14.98 /s"),
        ("requests", 864556.0, "864,556"),
        ("actions", 131.6667, "131.7"),
        ("ttft_p99_s", math.nan, "n/a"),
    ],
)
def test_figures_read_as_people_write_them(metric, value, expected):
    assert figure(metric, value) == expected


def test_bounds_are_in_the_unit_of_their_figure():
    assert interval("ttft_p99_s", (0.8, 1.3), around=0.95) == "800 to 1300"
    assert interval("ttft_p99_s", (0.8, 1.3), around=1.05) == "0.80 to 1.30"
    assert interval("ttft_p99_s", None, around=1.0) == "n/a"


def test_an_interval_narrower_than_its_digits_is_not_shown():
    assert shown_interval("gpu_hours", (1669.61, 1669.63), 1669.62) == ""
    assert shown_interval("gpu_hours", None, 1669.62) == ""
    assert shown_interval("gpu_hours", (1660.0, 1680.0), 1670.0) == "1,660 to 1,680"


def test_differences_carry_their_sign_and_shares_are_points():
    assert difference("slo_attainment", 0.0139) == "+1.39 points"
    assert difference("slo_attainment", -0.2748) == "−27.48 points"
    assert difference("gpu_hours", -341.8) == "−341.8"
    assert difference("ttft_p99_s", 0.25) == "+250 ms"
    assert difference_interval("gpu_hours", (-359.2, 12.0)) == "−359.2 to +12.0"
    assert difference_interval("slo_attainment", (-0.5, 0.02)) == "−50.00 to +2.00 points"


def test_percent_and_spans():
    assert percent(0.123) == "12.3 %"
    assert percent(-0.123) == "−12.3 %"
    assert [duration(s) for s in (9, 600, 3600, 57000, 864000)] == [
        "9 s",
        "10 min",
        "1 h",
        "15.8 h",
        "10 days",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.163, "0.163"),
        (5.80812, "5.808"),
        (54.2943, "54.29"),
        (1590.0, "1,590"),
        (12345, "12,345"),
    ],
)
def test_a_setting_in_a_sentence_has_four_digits(value, text):
    assert brief(value) == text


@pytest.mark.parametrize("value", ["", (), {}])
def test_a_setting_of_nothing_is_said_to_be_none(value):
    assert setting_text(value) == "none"
