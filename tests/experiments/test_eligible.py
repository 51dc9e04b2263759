"""Static chosen on the compared load, beside rules that were tuned on another one."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.best import lead, ranked
from experiments.eligible import eligible, in_hindsight
from experiments.notes import notes
from experiments.ranking import how_to_read, ranking
from experiments.report.markdown import markdown
from experiments.report.tables import figure_tables
from experiments.sweep import Sweep
from experiments.verdict import Standing, verdicts
from tests.experiments.test_best import BASE, BETTER, DEARER, WORSE, comparison, curve

STATIC = [(0.994, 80.0), (0.994, 80.0), (0.994, 80.0)]


def static_curve(chosen: int) -> Sweep:
    found = curve("static", (0.98, 60.0), (0.994, 80.0), (0.999, 100.0))
    return replace(found, option="replicas", unit="replicas", chosen=found.points[chosen - 1])


def beside(*, trained=True, count=2, **others):
    """static with a count, best on the load at 2, beside hpa and others."""
    sweep = static_curve(2)
    value = comparison(static=STATIC, curves={"static": sweep}, **others)
    outcomes = tuple(
        replace(o, options={"replicas": count}) if o.name == "static" else o for o in value.policies
    )
    tuning = replace(value.tuning, hindsight=not trained, sweeps={"static": sweep})
    return replace(value, policies=outcomes, tuning=tuning)


def test_static_is_a_bound_where_the_others_were_tuned_on_another_trace():
    value = beside(planner=BETTER, oracle_b=[(0.999, 50.0)] * 3)
    assert in_hindsight(value, value["static"])
    assert [o.name for o in ranked(value)] == ["planner", "hpa", "static", "oracle-b"]
    found = lead(value)
    assert found.sentence.startswith("planner is the best of 2: it serves")
    # by hand: 80 of planner's 90
    assert (
        "static, chosen with hindsight on this very load, serves 99.40 % for 11.1 % fewer GPU "
        "hours: a bound, no rival." in found.details
    )


@pytest.mark.parametrize(
    "value",
    [
        beside(planner=BETTER, trained=False),  # all of them know the load
        beside(planner=BETTER, count=3),  # the user's own count
    ],
)
def test_static_wins_where_it_knows_no_more_than_the_others(value):
    assert eligible(value, value["static"])
    assert lead(value).policy == "static"
    assert not any("hindsight" in text for text in lead(value).details)


def test_static_best_may_win():
    value = beside(static_best=STATIC)
    assert lead(value).policy == "static-best"


def test_a_rule_that_is_alone_beside_it_is_not_the_best_of_one():
    assert lead(beside()).sentence.startswith("hpa, the baseline, is not beaten")
    against = replace(beside(planner=BETTER), baseline="static")
    assert lead(replace(against, policies=against.policies[1:])).sentence.startswith(
        "planner is the only one that was not chosen with hindsight: it serves"
    )


def test_every_table_and_verdict_marks_it():
    value = beside(planner=BETTER, kpa=DEARER, keda=WORSE)
    assert "| static (hindsight) |" in markdown(value, {"command": "tuner compare"})
    (verdict,) = (each for each in verdicts(value) if each.policy == "static")
    assert verdict.standing is Standing.HINDSIGHT
    assert verdict.headline.startswith(
        "static against hpa, its count chosen with hindsight: 20.0 % fewer GPU hours"
    )
    assert any("static is a bound here, no rival" in note for note in notes(value))
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(ranking(value, console))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[lines.index("hindsight") - 1].startswith("static ")
    assert "static, chosen with hindsight, and the bounds." in how_to_read(value)


def test_the_least_gpu_hours_are_those_of_a_rival_that_reaches_the_goal():
    value = beside(planner=BETTER, keda=WORSE)
    service = figure_tables(value)[0]
    place = [column.label for column in service.columns].index("GPU hours")
    best = [name for name, row in service.rows if row[place].best]
    # keda holds fewer and misses the goal; static holds fewer and knew the load
    assert best == ["planner"]
    nobody = comparison(base=[(0.9, cost) for _, cost in BASE], keda=WORSE)
    assert not any(row[place].best for _, row in figure_tables(nobody)[0].rows)
