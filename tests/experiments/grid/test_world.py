from dataclasses import replace

import numpy as np
import pytest

from experiments.grid.world import burst_s, generated, of_unit, scaled, with_cold_start
from tuner.core.errors import ConfigError
from tuner.core.step_time import seconds_by_batch
from tuner.core.trace import Gap, Trace
from tuner.data import load_profile

R1 = load_profile("deepseek-r1-8xh200-sglang")


def trace(n=600, **more):
    arrival_s = np.arange(n, dtype=np.float64) * 10.0
    ones = np.ones(n, dtype=np.int32)
    return Trace(arrival_s, ones * np.arange(1, n + 1, dtype=np.int32), ones, **more)


@pytest.mark.parametrize("seconds", [0.0, 120.0, 1200.0])
def test_a_cold_start_keeps_the_shares_of_its_stages(seconds):
    stages = with_cold_start(R1, seconds).startup.stages
    assert stages.sum_s == pytest.approx(seconds)
    assert stages.weights.median_s == pytest.approx(seconds * 170 / 460)
    assert stages.weights.spread == R1.startup.stages.weights.spread


def test_a_profile_that_starts_at_once_gets_a_start():
    at_once = replace(R1, startup=None)
    assert with_cold_start(at_once, 90.0).startup.stages.sum_s == 90.0


def test_a_unit_of_four_nodes_does_the_work_of_four_in_the_same_time():
    four = of_unit(R1, 32)
    assert four.gpus_per_replica == 32
    assert four.kv.blocks == 4 * R1.kv.blocks
    assert four.limits.batch_size_max == 4 * R1.limits.batch_size_max
    one_s, four_s = seconds_by_batch(R1), seconds_by_batch(four)
    # the table's points, and beyond the last of them
    for sequences in (8, 64, 100):
        assert four_s[4 * sequences] == pytest.approx(one_s[sequences])
    assert four.step_time.per_prefill_token_s == pytest.approx(R1.step_time.per_prefill_token_s / 4)
    assert of_unit(R1, 8) is R1


def test_one_gpu_of_eight_takes_an_eighth():
    one = of_unit(R1, 1)
    assert one.limits.batch_size_max == 16
    assert seconds_by_batch(one)[8] == pytest.approx(seconds_by_batch(R1)[64])


def test_a_unit_that_holds_nothing_is_refused():
    tiny = replace(R1, gpus_per_replica=8, limits=replace(R1.limits, batch_size_max=3))
    with pytest.raises(ConfigError, match="holds no sequence; take a larger unit"):
        of_unit(tiny, 1)


def test_less_and_more_load():
    base = trace()
    assert scaled(base, 1.0, 0) is base
    assert 240 < len(scaled(base, 0.5, 0)) < 360
    more = scaled(base, 2.5, 0)
    assert 1400 < len(more) < 1600
    assert more.last_arrival_s <= base.last_arrival_s
    # the copies are an hour and more apart, so the first requests are not simply doubled
    assert len(np.unique(more.prompt_tokens[:3])) == 3
    np.testing.assert_array_equal(more.arrival_s, scaled(base, 2.5, 0).arrival_s)
    with pytest.raises(ConfigError, match="load_scale"):
        scaled(base, 0.0, 0)


def test_more_load_of_a_recording_with_a_gap_keeps_masking_what_nobody_knows():
    gappy = trace(gaps=(Gap(1000.0, 1500.0),))
    assert scaled(gappy, 2.0, 0).gaps


def test_bursts_are_shorter_and_longer_than_the_cold_start():
    assert burst_s("short", 480.0) == 240.0
    assert burst_s("long", 480.0) == 1440.0
    assert burst_s("short", 0.0) == 30.0
    assert burst_s("none", 480.0) == 0.0


def test_a_burst_doubles_the_load_for_its_length():
    options = {"hours": 3.0, "qps": 5.0, "seed": 4, "cold_start_s": 480.0}
    calm = generated("deepseek-r1-day", **options)
    wild = generated("deepseek-r1-day", burst="long", **options)
    added = len(wild) - len(calm)
    # one burst of 24 minutes in 96, before the day's rate has risen to its mean
    assert added / (1440.0 * 5.0) == pytest.approx(0.5, rel=0.3)
    again = generated("deepseek-r1-day", burst="long", **options)
    np.testing.assert_array_equal(wild.arrival_s, again.arrival_s)
    # what is added lies within one stretch of 24 minutes
    extra = wild.arrival_s[~np.isin(wild.arrival_s, calm.arrival_s)]
    assert extra.max() - extra.min() <= 1440.0


def test_a_load_too_short_for_a_burst_is_refused():
    with pytest.raises(ConfigError, match=r"hours is 1: bursts .* come every 4 h"):
        generated("deepseek-r1-day", hours=1.0, qps=5.0, seed=1, burst="long", cold_start_s=1200.0)
