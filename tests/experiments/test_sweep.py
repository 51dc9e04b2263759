import math
from dataclasses import fields, replace

import pytest

from experiments.config import SweepConfig
from experiments.summary import Figures
from experiments.sweep import sweep_hpa, sweep_static

ZEROS = {field.name: 0.0 for field in fields(Figures)}


def figures(attainment, cost):
    return Figures(**{**ZEROS, "slo_attainment": attainment, "gpu_hours": cost})


class Fleet:
    """Answers with the attainment that `served` gives for a value; remembers what was tried."""

    def __init__(self, served, cost):
        self.served, self.cost, self.tried = served, cost, []

    def __call__(self, values):
        self.tried.extend(values)
        return [figures(self.served(value), self.cost(value)) for value in values]


def statics(enough):
    """Attains everything from `enough` replicas on; each replica costs 1."""
    return Fleet(lambda count: min(1.0, count / enough), lambda count: float(count))


def hpas(highest):
    """Attains everything up to the target `highest`; a higher target costs less."""
    return Fleet(lambda target: 1.0 if target <= highest else 0.5, lambda target: 1000 / target)


@pytest.mark.parametrize("enough", range(1, 33))
def test_finds_the_least_count_that_is_enough(enough):
    fleet = statics(enough)
    sweep = sweep_static(fleet, SweepConfig(), max_replicas=32)
    assert sweep.chosen.value == enough
    assert sweep.reached
    assert len(fleet.tried) == len(set(fleet.tried)) <= 13
    assert all(1 <= count <= 32 for count in fleet.tried)


def test_shows_the_knee_on_both_sides():
    sweep = sweep_static(statics(14), SweepConfig(), max_replicas=32)
    assert {12, 13, 14, 15, 16} <= {point.value for point in sweep.points}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_small_ranges_end(most):
    sweep = sweep_static(statics(2), SweepConfig(), max_replicas=most)
    assert sweep.chosen.value == min(2, most)
    assert sweep.reached == (most >= 2)


def test_without_a_count_that_is_enough_the_best_is_taken_and_marked():
    sweep = sweep_static(statics(100), SweepConfig(), max_replicas=32)
    assert sweep.chosen.value == 32
    assert not sweep.reached
    assert "comes closest" in sweep.sentence


def test_given_counts_are_tried_and_no_others():
    fleet = statics(5)
    sweep = sweep_static(fleet, SweepConfig(static_counts=(4, 6, 8)), max_replicas=32)
    assert fleet.tried == [4, 6, 8]
    assert sweep.chosen.value == 6


def test_of_settings_that_reach_the_goal_the_cheapest_is_taken():
    # A luckier, smaller fleet above a failing one: what is cheapest counts, not what is next.
    served = {4: 0.991, 5: 0.95, 6: 0.999}
    fleet = Fleet(served.__getitem__, lambda count: float(count))
    sweep = sweep_static(fleet, SweepConfig(static_counts=(4, 5, 6)), max_replicas=8)
    assert sweep.chosen.value == 4


@pytest.mark.parametrize("factor", [0.15, 0.4, 0.9, 1.3, 2.7, 6.0, 9.0])
def test_the_target_comes_within_a_sixteenth_of_the_highest_that_serves(factor):
    fleet = hpas(1000 * factor)
    sweep = sweep_hpa(fleet, SweepConfig(), around=1000.0)
    assert sweep.reached
    # 1.25 ** 0.25 is 1.057: three points lie between two of the grid; three digits are kept.
    assert 1000 * factor / 1.07 <= sweep.chosen.value <= 1000 * factor
    assert len(fleet.tried) == len(set(fleet.tried))


def test_a_target_that_nothing_reaches_ends_and_is_marked():
    fleet = hpas(1e-9)
    sweep = sweep_hpa(fleet, SweepConfig(), around=1000.0)
    assert not sweep.reached
    assert len(fleet.tried) == 9 + 3 * 3


def test_given_targets_are_tried_and_no_others():
    fleet = hpas(950)
    sweep = sweep_hpa(fleet, SweepConfig(hpa_targets=(800.0, 900.0, 1000.0)), around=math.nan)
    assert fleet.tried == [800.0, 900.0, 1000.0]
    assert sweep.chosen.value == 900.0


def test_targets_are_numbers_a_person_would_write():
    fleet = hpas(500)
    sweep_hpa(fleet, SweepConfig(), around=1234.5678)
    assert all(float(f"{target:.3g}") == target for target in fleet.tried)


def test_the_sentence_says_what_was_taken_and_what_it_costs():
    sweep = sweep_static(statics(14), SweepConfig(goal=0.99), max_replicas=32)
    assert sweep.sentence == (
        f"static with 14 replicas is the cheapest of {len(sweep.points)} tried that meets the "
        "objectives for 99.0 % of the requests: 100.00 % for 14.00 GPU hours"
    )


@pytest.mark.parametrize(
    ("option", "unit", "value", "text"),
    [
        ("replicas", "replicas", 14, "14 replicas"),
        ("replicas", "replicas", 1, "1 replica"),
        ("kv_threshold", "0-1", 0.163, "kv_threshold 0.163"),
        ("headroom", "", 0.6, "headroom 0.6"),
        ("threshold", "requests per replica", 54.2943, "threshold 54.29 requests per replica"),
    ],
)
def test_a_setting_is_named_and_has_its_unit_where_that_is_a_word(option, unit, value, text):
    sweep = replace(sweep_static(statics(14), SweepConfig(), 32), option=option, unit=unit)
    assert sweep.setting(value) == f"static with {text}"
