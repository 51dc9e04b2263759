"""The battery every workload passes."""

from __future__ import annotations

import numpy as np
import pytest

from envs.workloads import WORKLOADS, Workload
from tuner.core.errors import ConfigError
from tuner.core.trace import Trace


@pytest.fixture(params=sorted(WORKLOADS))
def workload(request: pytest.FixtureRequest) -> Workload:
    return WORKLOADS[request.param]


def same_bits(one: Trace, other: Trace) -> bool:
    columns, others = one.columns(), other.columns()
    return columns.keys() == others.keys() and all(
        columns[name].tobytes() == others[name].tobytes() for name in columns
    )


def test_the_same_seed_gives_the_same_bits(workload: Workload) -> None:
    assert same_bits(workload(hours=2, seed=7), workload(hours=2, seed=7))


def test_another_seed_gives_another_trace(workload: Workload) -> None:
    assert not same_bits(workload(hours=1, seed=1), workload(hours=1, seed=2))


def test_within_a_day_a_shorter_trace_is_the_beginning_of_a_longer_one(workload: Workload) -> None:
    short, long = workload(hours=1.5, seed=3), workload(hours=3, seed=3)
    kept = long.arrival_s < 1.5 * 3600
    assert len(short) == kept.sum()
    for name, column in short.columns().items():
        np.testing.assert_array_equal(column, long.columns()[name][kept])


@pytest.mark.parametrize("hours", [0.5, 24, 30], ids=str)
def test_arrivals_stay_inside_the_span(workload: Workload, hours: float) -> None:
    trace = workload(hours=hours, seed=1)
    assert 0 <= trace.arrival_s[0] < 60
    assert hours * 3600 - 60 < trace.last_arrival_s < hours * 3600


@pytest.mark.parametrize("mean_qps", [0.5, 15.0, 60.0], ids=str)
def test_a_day_has_the_mean_rate_asked_for(workload: Workload, mean_qps: float) -> None:
    trace = workload(hours=24, seed=5, mean_qps=mean_qps)
    assert len(trace) / 86_400 == pytest.approx(mean_qps, rel=0.03)


def test_the_header_names_the_workload_and_what_it_was_drawn_with(workload: Workload) -> None:
    trace = workload(hours=0.5, seed=11)
    assert trace.name in WORKLOADS
    assert trace.header["workload"] == trace.name
    assert trace.header["seed"] == "11"
    assert trace.header["hours"] == "0.5"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"hours": 0, "seed": 1}, "hours is 0; expected a number above 0"),
        ({"hours": float("nan"), "seed": 1}, "hours is nan"),
        ({"hours": 1, "seed": -1}, "seed is -1"),
        ({"hours": 1, "seed": 1, "mean_qps": 0.0}, "mean_qps is 0.0"),
    ],
    ids=["no time", "time that is no number", "negative seed", "no load"],
)
def test_refuses_arguments_out_of_range(
    workload: Workload, arguments: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        workload(**arguments)  # type: ignore[arg-type]
