import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.statistics import (
    BIN_RATIO,
    Blocks,
    blocks_of,
    bootstrap,
    draw_blocks,
    load_interval,
    pool,
    seeds_interval,
    t_975,
)
from tests.experiments import toy
from tuner.core.slo import Slo


@pytest.mark.parametrize(
    ("df", "expected"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (9, 2.2622),
        (30, 2.0423),
        (40, 2.0211),
        (60, 2.0003),
        (120, 1.9799),
    ],
)
def test_students_t_agrees_with_the_textbook_table(df, expected):
    assert t_975(df) == pytest.approx(expected, abs=1e-4)


def test_students_t_needs_a_degree_of_freedom():
    with pytest.raises(ValueError, match="0"):
        t_975(0)


def test_interval_of_three_seeds_by_hand():
    # mean 2, s = 1, half width 4.3027 / sqrt(3)
    low, high = seeds_interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 2.4842, abs=1e-4)
    assert high == pytest.approx(2 + 2.4842, abs=1e-4)


def test_equal_seeds_give_an_interval_of_no_width():
    assert seeds_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan]], ids=["one seed", "a missing value"])
def test_gives_no_interval_where_there_is_no_spread_to_see(values):
    assert seeds_interval(values) is None


def test_pairing_takes_out_what_a_seed_does_to_both():
    ours, theirs = [10.0, 20.0, 33.0], [9.0, 19.0, 32.0]
    assert seeds_interval([a - b for a, b in zip(ours, theirs, strict=True)]) == (1.0, 1.0)
    assert seeds_interval(ours)[0] < 0  # unpaired, nothing could be said


def blocks(met, requests, gpu_hours=None):
    n = len(met)
    cost = np.array(gpu_hours if gpu_hours is not None else [1.0] * n)
    return Blocks(
        requests=np.array(requests),
        met=np.array(met),
        span_s=np.full(n, 3600.0),
        gpu_hours=cost,
        replica_hours=cost / 8,
        latencies=np.zeros((3, n, 2400), np.int64),
    )


def test_each_draw_is_the_figure_of_the_drawn_blocks():
    run = blocks(met=[10, 0, 30], requests=[10, 10, 40], gpu_hours=[1.0, 2.0, 4.0])
    values = bootstrap(run, np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]]))
    assert values["slo_attainment"].tolist() == pytest.approx([40 / 60, 1.0, 60 / 90])
    assert values["gpu_hours"].tolist() == pytest.approx([7.0, 3.0, 10.0])
    assert values["replica_hours"].tolist() == pytest.approx([7 / 8, 3 / 8, 10 / 8])
    assert values["goodput_qps"].tolist() == pytest.approx([40 / 10800, 30 / 10800, 60 / 10800])


def test_latencies_of_draws_are_right_to_one_percent():
    run = blocks(met=[1, 1], requests=[1, 1])
    trace = toy.toy_trace(minutes=2)
    served = toy.ToyRunner()(trace, toy.PROFILE, toy.job("static", replicas=1), lambda share: None)
    whole = blocks_of(served, Slo(), block_s=60.0)
    values = bootstrap(replace(run, latencies=whole.latencies), np.array([[1, 1]]))
    for name, column in (("ttft", served.requests.ttft_s), ("e2e", served.requests.e2e_s)):
        for percent in (50, 99):
            exact = np.percentile(column, percent)
            assert values[f"{name}_p{percent}_s"][0] == pytest.approx(exact, rel=BIN_RATIO - 1)


def test_a_draw_without_a_finished_request_has_no_latency_and_no_interval():
    values = bootstrap(blocks(met=[0, 0], requests=[1, 1]), np.array([[1, 1]]))
    assert np.isnan(values["ttft_p99_s"]).all()
    assert load_interval(values["ttft_p99_s"]) is None


def test_equal_blocks_leave_nothing_to_chance():
    run = blocks(met=[9] * 12, requests=[10] * 12)
    low, high = load_interval(bootstrap(run, draw_blocks(12, 500))["slo_attainment"])
    assert low == pytest.approx(0.9)
    assert high == pytest.approx(0.9)


def test_a_few_decisive_blocks_widen_the_interval_as_the_binomial_says():
    # Two of sixteen equal blocks miss everything: each draw misses Binomial(16, 1/8) / 16.
    run = blocks(met=[0, 0] + [10] * 14, requests=[10] * 16)
    low, high = load_interval(bootstrap(run, draw_blocks(16, 4000))["slo_attainment"])
    # P(X = 0) = 0.118, so the best 2.5 % miss nothing; P(X >= 5) = 0.039 and P(X >= 6) = 0.010.
    assert high == 1.0
    assert low == pytest.approx(1 - 5 / 16)


def test_draws_are_always_the_same():
    assert np.array_equal(draw_blocks(10, 50), draw_blocks(10, 50))
    assert (draw_blocks(10, 50).sum(axis=1) == 10).all()


def test_pooled_seeds_count_requests_of_all_and_cost_per_run():
    both = pool([blocks([1, 2], [5, 5], [4.0, 6.0]), blocks([3, 4], [5, 5], [6.0, 8.0])])
    assert both.met.tolist() == [4, 6]
    assert both.requests.tolist() == [10, 10]
    assert both.gpu_hours.tolist() == [5.0, 7.0]


def test_blocks_of_a_run_hold_all_of_it():
    trace = toy.toy_trace(minutes=30, surge=3.0)
    result = toy.ToyRunner()(trace, toy.PROFILE, toy.job("hpa", target=10.0), lambda share: None)
    cut = blocks_of(result, Slo(), block_s=600.0)
    assert len(cut) == 3
    # The last arrival is at 1799 s: borders at 599.7 s and 1199.3 s, not on the minute.
    assert cut.requests.tolist() == [600, 1798, 602]
    assert cut.met.sum() == result.requests.met(Slo()).sum()
    assert cut.gpu_hours.sum() == pytest.approx(result.gpu_hours)
    assert cut.gpu_hours[1] > 2 * cut.gpu_hours[0]  # the surge held more replicas
    assert cut.latencies.sum(axis=(1, 2)).tolist() == [3000, 3000, 3000]


def test_a_run_shorter_than_a_block_is_one_block():
    result = toy.ToyRunner()(
        toy.toy_trace(minutes=2), toy.PROFILE, toy.job("static", replicas=1), lambda share: None
    )
    assert len(blocks_of(result, Slo(), block_s=3600.0)) == 1
