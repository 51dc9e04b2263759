"""Fields from raw samples: rates, gauges, quantiles, arrivals; replicas that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from tests.live.engine_page import SUCCESS, VLLM
from tuner.core.faults import FaultReason
from tuner.engines.engine import Metrics, Series
from tuner.live.metrics.fields import Traffic, fields_of, wanted_names
from tuner.live.metrics.samples import SampleSeries

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
TOKENS = "vllm:generation_tokens_total"


def series(name: str, replica: str, times: list[float], values: list[float], **labels: str):
    return SampleSeries(name, labels, replica, np.array(times, float), np.array(values, float))


def ended(replica: str, times: list[float], values: list[float], reason: str = "stop"):
    return series(SUCCESS, replica, times, values, finished_reason=reason)


def buckets(name: str, replica: str, times: list[float], counts: dict[str, list[float]]):
    return [
        series(f"{name}_bucket", replica, times, values, le=le) for le, values in counts.items()
    ]


T = [0.0, 15.0, 30.0, 45.0, 60.0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # 60 tokens in 60 s. The window may be longer: the first and last sample count.
        ([series(TOKENS, "a", T, [100, 115, 130, 145, 160])], 1.0),
        # Seen for 30 s only because the source is young: 30 tokens in 30 s, not in 60.
        ([series(TOKENS, "a", T[2:], [130, 145, 160])], 1.0),
        # Restart after 15 s: 15 + 7 (whole) + 10 + 10. A naive last - first is negative.
        ([series(TOKENS, "a", T, [1000, 1015, 7, 17, 27])], 42 / 60),
        # Two replicas, half an interval out of phase: each by its own clock.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60]),
                series(TOKENS, "b", [7.5, 22.5, 37.5, 52.5], [0, 15, 30, 45]),
            ],
            2.0,
        ),
        # b came after 45 s and made 1/s since: 15 tokens of b within the fleet's 60 s.
        # Its own rate would count a replica-minute that never was.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60]),
                series(TOKENS, "b", T[3:], [500, 515]),
            ],
            1.25,
        ),
        # b left after 15 s: what it did still counts, once.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60]),
                series(TOKENS, "b", T[:2], [0, 15]),
            ],
            1.25,
        ),
        # One lost scrape on top of b's phase is no absence, at either end: b still made 1/s.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60]),
                series(TOKENS, "b", [29.0, 44.0, 59.0], [500, 515, 530]),
            ],
            2.0,
        ),
        # One lost scrape at b's end is no absence: it still made one a second.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60]),
                series(TOKENS, "b", T[:4], [0, 15, 30, 45]),
            ],
            2.0,
        ),
        # A replica seen once says nothing yet.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60]),
                series(TOKENS, "b", T[4:], [90_000]),
            ],
            1.0,
        ),
        # A second rank that shows up on a page seen before began at zero: 60 + 9 + 6.
        (
            [
                series(TOKENS, "a", T, [0, 15, 30, 45, 60], engine="0"),
                series(TOKENS, "a", T[3:], [9, 15], engine="1"),
            ],
            75 / 60,
        ),
    ],
    ids=[
        "steady",
        "young source",
        "restart",
        "phases",
        "came",
        "left",
        "lost scrape and phase",
        "lost scrape",
        "seen once",
        "born",
    ],
)
def test_a_rate_is_what_the_fleet_did_over_the_time_it_was_watched(rows, expected):
    found = fields_of(rows, VLLM, at_s=61.0)
    assert found.values["output_tokens_per_s"] == pytest.approx(expected)


def test_one_look_gives_gauges_and_no_rates():
    rows = [
        series(TOKENS, "a", [60], [100]),
        series(RUNNING, "a", [60], [3]),
        series(WAITING, "a", [60], [2]),
    ]
    found = fields_of(rows, VLLM, at_s=62.0)
    assert dict(found.values) == {"running": 3.0, "queue_depth": 2.0, "in_flight": 5.0}
    assert found.estimates == ("in_flight",)


def test_half_of_what_is_inside_is_no_estimate_of_it():
    found = fields_of([series(RUNNING, "a", [60], [3])], VLLM, at_s=62.0)
    assert dict(found.values) == {"running": 3.0}


def test_series_that_share_a_page_s_labels_but_not_its_times_are_not_taken_for_born():
    rows = [series(RUNNING, "a", [50], [3]), series(TOKENS, "a", [60], [9_000_000])]
    assert "output_tokens_per_s" not in fields_of(rows, VLLM, at_s=62.0).values


def test_gauges_are_the_newest_samples_of_the_replicas_that_are_there():
    rows = [
        series(RUNNING, "a", T, [9, 9, 9, 9, 4]),
        series(RUNNING, "b", [1, 16, 31, 46], [7, 7, 7, 2]),
        # Gone for 45 s: it runs nothing any more, whatever it said last.
        series(RUNNING, "dead", T[:2], [32, 32]),
        # No member of the target.
        series(RUNNING, "stranger", T, [8, 8, 8, 8, 8]),
    ]
    found = fields_of(rows, VLLM, at_s=60.0, current={"a", "b", "dead"})
    assert found.values["running"] == 6.0
    assert dict(found.replicas) == {"a": {"running": 4.0}, "b": {"running": 2.0}}
    assert found.heard == {"a", "b", "stranger"}


def test_kv_cache_usage_is_the_mean_over_replicas_of_the_mean_over_ranks():
    kv = "vllm:kv_cache_usage_perc"
    rows = [
        series(kv, "a", [60], [0.2], engine="0"),
        series(kv, "a", [60], [0.4], engine="1"),
        series(kv, "b", [60], [0.9]),
    ]
    found = fields_of(rows, VLLM, at_s=60.0)
    assert found.values["kv_cache_usage"] == pytest.approx((0.3 + 0.9) / 2)
    assert found.replicas["a"] == {"kv_cache_usage": pytest.approx(0.3)}


def test_each_field_carries_the_age_of_its_newest_sample():
    rows = [
        series(TOKENS, "a", [0, 15, 30], [0, 1, 2]),
        series(RUNNING, "a", [0, 15], [1, 1]),
        series(WAITING, "a", [0, 15, 30], [0, 0, 0]),
    ]
    found = fields_of(rows, VLLM, at_s=40.0)
    assert found.age_s == 10.0
    assert found.ages_s["output_tokens_per_s"] == 10.0
    assert found.ages_s["running"] == found.ages_s["in_flight"] == 25.0


@pytest.mark.parametrize(
    ("finished", "failed", "expected"),
    [
        ([10, 20], [0, 0], 0.0),
        ([10, 13], [5, 6], 0.25),
        ([10, 10], [5, 6], 1.0),
        ([10, 10], [5, 5], None),
        # The counter of failures does not exist before the first one.
        ([10, 20], None, 0.0),
    ],
    ids=["none failed", "a quarter", "all", "none ended", "not born"],
)
def test_error_rate_is_failed_of_ended(finished, failed, expected):
    rows = [ended("a", [0, 15], finished)]
    rows += [ended("a", [0, 15], failed, reason="error")] if failed else []
    assert fields_of(rows, VLLM, at_s=15.0).values.get("error_rate") == expected


def test_an_engine_without_a_counter_of_failures_has_no_error_rate():
    metrics = Metrics(path="/metrics", finished=(Series("done_total"),))
    rows = [series("done_total", "a", [0, 15], [0, 9])]
    assert "error_rate" not in fields_of(rows, metrics, at_s=15.0).values


def overloaded(replica: str, *, waiting: list[float]) -> list[SampleSeries]:
    """2 requests/s end whatever comes."""
    return [
        ended(replica, T, [500, 530, 560, 590, 620]),
        ended(replica, T, [3, 3, 3, 3, 3], reason="error"),
        series(RUNNING, replica, T, [32, 32, 32, 32, 32]),
        series(WAITING, replica, T, waiting),
    ]


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([0, 0, 0, 0, 0], 2.0),
        # 5 requests/s come: the queue grows by 3/s.
        ([10, 55, 100, 145, 190], 5.0),
        # Load is gone, the queue drains: nothing comes any more.
        ([120, 90, 60, 30, 0], 0.0),
    ],
    ids=["keeps up", "overload", "drains"],
)
def test_arrivals_are_told_from_completions_while_the_queue_moves(waiting, expected):
    found = fields_of(overloaded("a", waiting=waiting), VLLM, at_s=60.0)
    assert found.values["qps"] == pytest.approx(expected)
    assert "qps" in found.estimates


def test_a_restart_that_loses_its_queue_is_no_drop_in_arrivals():
    # 1/s arrives throughout, 0.5/s ends; at 30 s a restart throws 40 waiting requests away.
    rows = [
        ended("a", T, [100, 107.5, 3, 10.5, 18]),
        series(WAITING, "a", T, [25, 32.5, 3, 10.5, 18]),
    ]
    # 15 in the first interval, 6 since the restart, 15, 15. Without care the lost queue is -40.
    assert fields_of(rows, VLLM, at_s=60.0).values["qps"] == pytest.approx((15 + 6 + 30) / 60)


def test_arrivals_come_from_the_gateway_where_there_is_one():
    gateway = [
        series("sent_total", "", T, [0, 75, 150, 225, 300]),
        series("open", "", T, [1, 40, 80, 120, 170]),
    ]
    found = fields_of(
        overloaded("a", waiting=[0, 0, 0, 0, 0]),
        VLLM,
        at_s=60.0,
        traffic=Traffic(Series("sent_total"), Series("open")),
        traffic_series=gateway,
    )
    assert found.values["qps"] == pytest.approx(5.0)
    assert found.values["in_flight"] == 170.0
    assert found.estimates == ()


def test_a_gateway_that_says_nothing_leaves_the_estimate():
    found = fields_of(
        overloaded("a", waiting=[0, 0, 0, 0, 0]),
        VLLM,
        at_s=60.0,
        traffic=Traffic(Series("sent_total"), Series("open")),
    )
    assert found.values["qps"] == pytest.approx(2.0)
    assert set(found.estimates) == {"qps", "in_flight"}


def test_arrivals_come_from_the_engine_where_it_counts_them():
    metrics = Metrics(path="/metrics", arrived=(Series("in_total"),), finished=(Series("out"),))
    rows = [series("in_total", "a", [0, 10], [0, 50]), series("out", "a", [0, 10], [0, 20])]
    found = fields_of(rows, metrics, at_s=10.0)
    assert found.values["qps"] == 5.0
    assert found.estimates == ()


def test_quantiles_are_read_off_the_increases_of_all_replicas_together():
    metrics = Metrics(path="/metrics", ttft_s=Series("ttft"))
    rows = [
        # Five below 1 and five up to 2 in a, ten up to 4 in b; what was before does not count.
        *buckets("ttft", "a", [0, 15], {"1.0": [90, 95], "2": [90, 100], "4.0": [90, 100]}),
        series("ttft_bucket", "a", [0, 15], [90, 100], le="+Inf"),
        *buckets("ttft", "b", [3, 18], {"1": [0, 0], "2": [0, 0], "4": [0, 10], "+Inf": [0, 10]}),
    ]
    found = fields_of(rows, metrics, at_s=18.0)
    # Rank 10 of 20 is the end of the second bucket; rank 19.8 lies 9.8 of 10 through 2..4.
    assert found.values["ttft_p50_s"] == pytest.approx(2.0)
    assert found.values["ttft_p99_s"] == pytest.approx(3.96)


def test_a_page_in_milliseconds_gives_seconds():
    metrics = Metrics(path="/metrics", ttft_s=Series("ttft_ms", unit=1e-3))
    rows = buckets("ttft_ms", "a", [0, 15], {"100": [0, 10], "+Inf": [0, 10]})
    assert fields_of(rows, metrics, at_s=15.0).values["ttft_p50_s"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("values", "expected", "estimates"),
    [([2.5e6], 2.5, ()), ([2.5e6, 4e6], 4.0, ("e2e_p99_s",)), ([float("nan")], None, ())],
    ids=["one", "the highest of two", "idle"],
)
def test_a_quantile_that_the_engine_reckons_is_taken_where_there_is_no_histogram(
    values, expected, estimates
):
    metrics = Metrics(path="/", e2e_p99_s=Series("us", {"quantile": "0.99"}, unit=1e-6))
    rows = [
        series("us", f"r{index}", [60], [value], quantile="0.99")
        for index, value in enumerate(values)
    ]
    rows.append(series("us", "r0", [60], [9e9], quantile="0.5"))
    found = fields_of(rows, metrics, at_s=60.0)
    assert found.values.get("e2e_p99_s") == expected
    assert found.estimates == estimates


def test_a_window_without_observations_has_no_quantile_and_no_fault():
    rows = buckets("vllm:time_to_first_token_seconds", "a", [0, 15], {"1": [5, 5], "+Inf": [5, 5]})
    found = fields_of(rows, VLLM, at_s=15.0)
    assert "ttft_p99_s" not in found.values
    assert found.faults == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [(("1", "2", "+Inf"), ("1", "4", "+Inf")), (("1", "+Inf"), ("1", "2", "+Inf"))],
    ids=["another bound", "one bound more"],
)
def test_replicas_with_different_buckets_are_a_fault_that_spares_the_other_fields(one, other):
    name = "vllm:time_to_first_token_seconds"
    rows = [
        *buckets(name, "a", [0, 15], {le: [0, 5] for le in one}),
        *buckets(name, "b", [0, 15], {le: [0, 5] for le in other}),
        series(TOKENS, "a", [0, 15], [0, 30]),
    ]
    found = fields_of(rows, VLLM, at_s=15.0, source="prometheus")
    (fault,) = found.faults
    assert (fault.where, fault.reason) == ("prometheus", FaultReason.BAD_ANSWER)
    assert name in fault.sentence
    assert "alike" in fault.sentence
    assert "ttft_p99_s" not in found.values
    assert found.values["output_tokens_per_s"] == 2.0


@pytest.mark.parametrize("le", ["", "wide", "NaN"])
def test_a_bound_that_is_no_number_is_a_fault(le):
    rows = buckets("vllm:time_to_first_token_seconds", "a", [0, 15], {le: [0, 5], "+Inf": [0, 5]})
    (fault,) = fields_of(rows, VLLM, at_s=15.0).faults
    assert fault.reason is FaultReason.BAD_ANSWER


def test_nothing_seen_is_nothing_measured():
    found = fields_of([], VLLM, at_s=15.0)
    assert not found.values
    assert not found.faults
    assert found.age_s is None


def test_the_names_to_ask_for_are_those_of_the_engine_and_the_buckets():
    metrics = Metrics(path="/", finished=(Series("b"),), running=Series("a"), e2e_s=Series("c"))
    assert wanted_names(metrics) == ("a", "b", "c_bucket")
