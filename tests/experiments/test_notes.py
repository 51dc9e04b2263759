"""Notes on what figures leave out: work after the last arrival, idle policies, short loads."""

from dataclasses import fields, replace

import pytest

from experiments.notes import late_share, notes
from experiments.result import TickTable
from experiments.sweep import Sweep
from tests.experiments import toy
from tests.experiments.test_verdict import CURVE, comparison
from tuner.core.profile import Stage, Stages, Startup


def ticks(finished, wanted):
    """Ticks of a minute with these counts."""
    texts = {"source": "policy", "sentence": ""}
    rows = [
        {
            **{field.name: texts.get(field.name, 0) for field in fields(TickTable)},
            "at_s": 60.0 * (place + 1),
            "finished": done,
            "wanted_replicas": count,
        }
        for place, (done, count) in enumerate(zip(finished, wanted, strict=True))
    ]
    return TickTable.of(rows)


def with_run(value, *, actions=1, **changed):
    """The comparison with a run of `mine` changed."""
    mine = value["mine"]
    run = mine.runs[0]
    run = replace(run, figures=replace(run.figures, actions=actions), **changed)
    mine = replace(mine, runs=(run,))
    return replace(value, policies=(value["hpa"], mine))


def said(value, words):
    return [note for note in notes(value) if words in note]


@pytest.fixture
def hour():
    """100 requests in 100 minutes: the last one comes at 5,940 s, the start of the 100th tick."""
    return comparison(trace=toy.toy_trace(minutes=100, per_minute=1))


def test_work_after_the_last_arrival_is_told_where_costs_leave_it_out(hour):
    # the tick that ends at 5,940 s and those before do not count, the two after do
    late = with_run(hour, ticks=ticks([1] * 98 + [0, 1, 1], [4] * 101))
    assert late_share(late["mine"], late.trace) == pytest.approx(0.02)
    (note,) = said(late, "after the last arrival")
    assert note.startswith("mine (2.0 %) finished that share of the requests, at least, after")
    assert "that time is not in its GPU hours and money" in note
    few = with_run(hour, ticks=ticks([1] * 99 + [1, 0], [4] * 101))
    assert not said(few, "after the last arrival")


def test_a_tick_that_holds_the_last_arrival_is_not_late(hour):
    # 5,999 s lies inside the 100th tick
    trace = replace(hour.trace, arrival_s=hour.trace.arrival_s + 59.0)
    run = with_run(hour, ticks=ticks([0] * 99 + [100], [4] * 100))
    assert late_share(run["mine"], trace) == 0.0


STATIC = Sweep("static", "replicas", "replicas", 0.99, CURVE, CURVE[3], True)


@pytest.mark.parametrize(
    ("changed", "whose"),
    [
        (
            {"hindsight": True, "sweeps": {"static": STATIC}, "initial_replicas": 200},
            "the 200 replicas that everybody starts with, which were chosen with hindsight: the "
            "fixed fleet that is best on this very load.",
        ),
        (
            {"hindsight": False, "sweeps": {"static": STATIC}, "initial_replicas": 200},
            "the 200 replicas that everybody starts with, which are the fixed fleet that is best "
            "on toy-load.",
        ),
    ],
)
def test_who_never_moved_is_told_and_whose_count_it_kept(changed, whose):
    value = with_run(comparison(), actions=0)
    value = replace(value, tuning=replace(value.tuning, **changed))
    (note,) = said(value, "never changed")
    assert note == (
        f"mine never changed a replica while the load lasted: its figures are those of {whose}"
    )


def test_a_count_given_for_static_is_called_so():
    value = with_run(comparison(), actions=0)
    static = replace(value["hpa"], name="static", policy="static")
    tuning = replace(value.tuning, sweeps={}, initial_replicas=7)
    value = replace(value, policies=(*value.policies, static), tuning=tuning)
    (note,) = said(value, "never changed")
    assert note.endswith("the 7 replicas that everybody starts with, which were given for static.")


def test_a_configured_count_is_called_so():
    value = with_run(comparison(), actions=0)
    config = replace(value.config, run=replace(value.config.run, initial_replicas=3))
    assert said(replace(value, config=config), "which run.initial_replicas gives.")


def test_who_moved_after_the_last_arrival_only_never_moved(hour):
    assert said(with_run(hour, ticks=ticks([1] * 101, [3] * 99 + [2, 2])), "mine never changed")
    assert not said(with_run(hour, ticks=ticks([1] * 101, [3] * 98 + [2] * 3)), "never changed")
    # a count of its own from the first tick on
    assert not said(with_run(hour, ticks=ticks([1] * 101, [5] * 101)), "never changed")
    assert not said(hour, "never changed")


def test_static_is_meant_to_stand_still():
    value = with_run(comparison(), actions=0)
    still = replace(value["mine"], policy="static-best")
    assert not said(replace(value, policies=(value["hpa"], still)), "never changed")


def test_a_load_too_short_to_scale_in_says_so():
    slow = replace(toy.PROFILE, startup=Startup(Stages(weights=Stage(900.0))))
    # ticks of 15 s: 30 of them are 7.5 min
    short = comparison(trace=toy.toy_trace(minutes=5), profile=slow)
    (note,) = said(short, "nothing here tells how policies scale")
    assert note.startswith(
        "The load lasts 4.98 min, less than 30 ticks of 15 s and than a replica takes to start "
        "(15 min, median)"
    )
    (note,) = said(comparison(trace=toy.toy_trace(minutes=10), profile=slow), "how policies scale")
    assert "ticks" not in note
    assert not said(comparison(trace=toy.toy_trace(minutes=10)), "how policies scale")
    assert not said(comparison(trace=toy.toy_trace(minutes=16), profile=slow), "how policies scale")
