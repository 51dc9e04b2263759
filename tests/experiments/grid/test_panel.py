import math

import numpy as np
import pytest

from experiments.grid.findings import caveats, findings_of, tables, title, verdict
from experiments.grid.panel import (
    Case,
    aggregate,
    cost_ratios,
    equal_attainment,
    interquartile_mean,
    performance_profile,
    relative_cost,
)


def case(label, **policies):
    """A scenario from policy -> list of (attainment, GPU hours), one per seed."""
    curve = [(0.9, 4.0), (0.985, 6.0), (0.995, 10.0)]
    return Case(
        label,
        {
            "baseline": "hpa",
            "goal": 0.99,
            "policies": {
                name: {
                    "per_seed": [
                        {"seed": seed, "slo_attainment": served, "gpu_hours": hours}
                        for seed, (served, hours) in enumerate(runs, start=1)
                    ]
                }
                for name, runs in policies.items()
            },
            "tuning": {
                "curves": {
                    "hpa": {
                        "option": "target",
                        "points": [{"slo_attainment": a, "gpu_hours": hours} for a, hours in curve],
                    }
                }
            },
        },
    )


def test_the_interquartile_mean_drops_a_quarter_at_either_end():
    # of eight values two go at each end: (3 + 4 + 5 + 6) / 4
    values = np.array([100.0, 3, 4, -50, 5, 6, 1, 99])
    assert interquartile_mean(values) == pytest.approx(4.5)
    # of seven, one (7 // 4)
    assert interquartile_mean(np.arange(7.0)) == pytest.approx(3.0)
    assert interquartile_mean(np.array([2.0, 8.0])) == pytest.approx(5.0)


def test_the_interval_over_seeds_draws_within_a_scenario():
    # No scenario has a spread of its own, so other seeds change nothing, other scenarios do.
    runs = {f"s{n}": np.full(3, float(n)) for n in range(8)}
    found = aggregate(runs, worst=lambda means: int(np.argmin(means)))
    assert found.ci95 == pytest.approx((3.5, 3.5))
    low, high = found.ci95_scenarios
    assert low < 2.5
    assert high > 4.5
    assert (found.worst, found.worst_value) == ("s0", 0.0)
    few = aggregate(dict(list(runs.items())[:4]), worst=lambda means: 0)
    assert few.ci95_scenarios is None


def test_ratios_are_to_the_cheapest_that_reaches_the_goal_seed_by_seed():
    one = case("a", hpa=[(0.995, 10.0), (0.98, 9.0)], static=[(0.99, 8.0), (0.991, 12.0)])
    ratios = cost_ratios(one, ["hpa", "static"], 0.99)
    np.testing.assert_allclose(ratios["hpa"], [1.25, math.inf])
    np.testing.assert_allclose(ratios["static"], [1.0, 1.0])
    np.testing.assert_allclose(relative_cost(one, "static", "hpa"), [0.8, 12 / 9])


def test_nobody_who_reaches_the_goal_leaves_the_run_out():
    lost = case("a", hpa=[(0.9, 10.0)], static=[(0.8, 8.0)])
    ratios = cost_ratios(lost, ["hpa", "static"], 0.99)
    assert np.isnan(ratios["hpa"]).all()
    assert np.isnan(performance_profile([ratios["hpa"]], np.array([1.0]))).all()
    profile = performance_profile(
        [ratios["hpa"], np.array([1.0, 1.5, math.inf])], np.array([1.0, 1.5, 3.0])
    )
    np.testing.assert_allclose(profile, [1 / 3, 2 / 3, 2 / 3])


def test_a_grid_in_words_and_tables():
    cases = [
        case("calm", hpa=[(0.995, 10.0)] * 2, static=[(0.999, 15.0)] * 2),
        case("wild", hpa=[(0.95, 10.0)] * 2, static=[(0.992, 12.0)] * 2),
    ]
    findings = findings_of(cases)
    # static: 1.5 and 1.2 times hpa's hours, two seeds each; the middle half of four is both means
    assert findings.cost["static"].iqm == pytest.approx(1.35)
    assert "static is the only policy that keeps" in verdict(findings)
    rows, overall, *_ = tables(findings)
    assert rows.rows[1] == ["wild", "95.00 % * / 10.00", "99.20 % / 12.00"]
    by_policy = {row[0]: row for row in overall.rows}
    assert by_policy["hpa"][5] == "50.0 %"  # reaches the goal in one scenario of two
    assert by_policy["hpa"][7] == "95.00 % (wild)"


def test_curves_reach_an_attainment_or_not():
    assert equal_attainment(case("a", hpa=[(1.0, 1.0)]), 0.99) == {"hpa": pytest.approx(8.0)}
    assert equal_attainment(case("a", hpa=[(1.0, 1.0)]), 0.999) == {}


def test_a_count_chosen_with_hindsight_is_not_the_best_and_is_explained():
    found = findings_of([case("one", static=[(0.995, 5.0)], hpa=[(0.995, 10.0)])])
    assert verdict(found).startswith("hpa is the only policy that keeps 99.0 %")
    assert any(sentence.startswith("static holds the count") for sentence in caveats(found))
    assert title(found) == "2 policies in 1 scenario"
    assert not any("static" in s for s in caveats(findings_of([case("one", hpa=[(1.0, 1.0)])])))
