import json
import math
from dataclasses import fields

import numpy as np
import pytest

from experiments.result import RequestTable, RunResult, TickTable
from experiments.summary import METRICS, Figures, figures_of, plain, simulation_summary
from tuner.core.slo import Slo

NAN = math.nan


def run_of(rows, *, span_s=10.0):
    """A run with rows of (output_tokens, ttft_s, tpot_s, e2e_s, preemptions)."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    n = len(rows)
    return RunResult(
        policy="p",
        seed=3,
        requests=RequestTable(
            arrival_s=np.arange(n, dtype=float),
            prompt_tokens=np.full(n, 10, np.int32),
            output_tokens=np.array(columns[0], np.int32),
            ttft_s=np.array(columns[1], float),
            e2e_s=np.array(columns[3], float),
            tpot_s=np.array(columns[2], float),
            replica=np.zeros(n, np.int32),
            preemptions=np.array(columns[4], np.int32),
            rejected=np.zeros(n, np.bool_),
            failed=np.zeros(n, np.bool_),
        ),
        ticks=TickTable.of([]),
        replica_hours=1.5,
        gpu_hours=12.0,
        span_s=span_s,
        actions=2,
        clamps=1,
        trips=0,
        pinned={},
        settings={},
    )


ROWS = [
    (5, 1.0, 0.05, 1.2, 0),
    (5, 3.0, 0.05, 3.2, 2),  # late
    (1, 2.0, 0.0, 2.0, 0),  # one token: met, and no voice in TPOT
    (5, NAN, NAN, NAN, 1),  # did not finish: missed, and no voice in any latency
]


def test_the_figures_of_four_requests_by_hand():
    figures = figures_of(run_of(ROWS), Slo())
    assert figures.slo_attainment == 2 / 4
    assert figures.goodput_qps == 2 / 10.0
    assert figures.requests == 4
    assert figures.completed == 3
    assert figures.preemptions == 3
    assert figures.ttft_p50_s == 2.0
    assert figures.ttft_p99_s == pytest.approx(2.0 + 0.98 * 1.0)  # linear between 2 and 3
    assert figures.tpot_p50_s == 0.05
    assert figures.tpot_p99_s == 0.05
    assert figures.e2e_p50_s == 2.0
    assert (figures.gpu_hours, figures.replica_hours) == (12.0, 1.5)
    assert (figures.actions, figures.clamps, figures.trips) == (2, 1, 0)


def test_where_every_request_went():
    run = run_of([*ROWS, (5, NAN, NAN, NAN, 0), (5, NAN, NAN, NAN, 0)])
    run.requests.failed[4] = True
    run.requests.rejected[5] = True
    figures = figures_of(run, Slo())
    assert (figures.failed, figures.rejected, figures.unfinished) == (1, 1, 1)
    parts = figures.completed + figures.failed + figures.rejected + figures.unfinished
    assert parts == figures.requests == 6
    assert simulation_summary(run, Slo())["unfinished"] == 1


def test_percentiles_of_nothing_are_not_zero():
    figures = figures_of(run_of([(5, NAN, NAN, NAN, 0)]), Slo())
    assert figures.slo_attainment == 0.0
    assert math.isnan(figures.ttft_p50_s)
    assert math.isnan(figures.tpot_p99_s)


def test_a_trace_of_one_moment_has_no_goodput():
    assert math.isnan(figures_of(run_of(ROWS, span_s=0.0), Slo()).goodput_qps)


def test_every_figure_has_a_name_for_tables_in_the_same_order():
    assert [metric.name for metric in METRICS] == [field.name for field in fields(Figures)]


def test_the_summary_of_a_run_is_strict_json():
    summary = simulation_summary(run_of([(5, NAN, NAN, NAN, 0)]), Slo())
    read = json.loads(json.dumps(summary, allow_nan=False))
    assert read["schema"] == "tuner.simulate/1"
    assert read["objectives"] == {"ttft_s": 2.5, "tpot_s": 0.075}
    assert read["ttft_p99_s"] is None
    assert (read["policy"], read["seed"], read["requests"]) == ("p", 3, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, None),
        (np.float64(2.5), 2.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ((1, (2.0, math.nan)), [1, [2.0, None]]),
        ({1: (None,)}, {"1": [None]}),
    ],
    ids=["infinity", "numpy float", "numpy int", "numpy bool", "tuples", "keys"],
)
def test_plain_data_holds_only_what_json_knows(value, expected):
    assert plain(value) == expected
