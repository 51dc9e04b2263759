from dataclasses import fields, replace

import numpy as np
import pytest

from experiments.result import RequestTable, TickTable
from tests.experiments import toy
from tuner.core.slo import Slo

NAN = float("nan")


def requests(*rows):
    """Rows of (ttft_s, tpot_s, e2e_s)."""
    ttft_s, tpot_s, e2e_s = (np.array(column, float) for column in zip(*rows, strict=True))
    n = len(rows)
    return RequestTable(
        arrival_s=np.arange(n, dtype=float),
        prompt_tokens=np.full(n, 10, np.int32),
        output_tokens=np.full(n, 5, np.int32),
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        tpot_s=tpot_s,
        replica=np.zeros(n, np.int32),
        preemptions=np.zeros(n, np.int32),
        rejected=np.zeros(n, np.bool_),
        failed=np.zeros(n, np.bool_),
    )


def test_a_request_meets_the_objectives_only_when_all_of_them_hold():
    table = requests(
        (2.5, 0.075, 9.0),  # both exactly at the bound
        (2.6, 0.01, 9.0),  # late first token
        (0.1, 0.08, 9.0),  # slow tokens
        (0.1, 0.0, 0.1),  # one output token: TPOT is 0
        (NAN, NAN, NAN),  # did not finish
        (0.1, NAN, NAN),  # first token, then nothing
    )
    assert table.met(Slo()).tolist() == [True, False, False, True, False, False]
    assert table.finished.tolist() == [True, True, True, True, False, False]


def test_refuses_columns_of_different_length():
    table = requests((0.1, 0.01, 1.0), (0.1, 0.01, 1.0))
    with pytest.raises(ValueError, match="ttft_s"):
        replace(table, ttft_s=np.zeros(3))


def tick_row(**changed):
    row = {field.name: 1 for field in fields(TickTable)}
    return {**row, "source": "policy", "sentence": "no change (policy)", **changed}


def test_a_tick_table_keeps_what_was_not_measured_as_nan_and_counts_whole():
    table = TickTable.of([tick_row(qps=None), tick_row(qps=3, missed=7, tripped=True)])
    assert np.isnan(table.qps[0])
    assert table.qps[1] == 3.0
    assert table.missed.dtype == np.int64
    assert table.tripped.tolist() == [True, True]
    assert table.source == ("policy", "policy")


def test_a_tick_table_of_no_ticks_has_empty_columns():
    table = TickTable.of([])
    assert len(table) == 0
    assert table.qps.dtype == np.float64
    assert table.clamped.dtype == np.bool_


def test_a_tick_without_a_column_is_an_error():
    row = tick_row()
    del row["queue_depth"]
    with pytest.raises(KeyError, match="queue_depth"):
        TickTable.of([row])


def test_the_toy_fleet_repeats_itself_bit_by_bit():
    trace, job = toy.toy_trace(), toy.job("static", replicas=1)
    first, second = (toy.ToyRunner()(trace, toy.PROFILE, job, lambda share: None) for _ in range(2))
    assert np.array_equal(first.requests.ttft_s, second.requests.ttft_s)
