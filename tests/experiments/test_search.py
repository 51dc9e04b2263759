"""Searching a rule's parameters, held against rules whose best setting is known."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
from optuna.storages import InMemoryStorage

from experiments.run import target_knobs
from experiments.search import WALK, Searching, Space
from experiments.summary import Figures
from experiments.sweep import curve_values
from policies import POLICIES, Entry, Load, Options, Parameter, Target
from tests.experiments import toy
from tuner.core.errors import ConfigError, InputError

ZEROS = {field.name: 0.0 for field in fields(Figures)}
LOAD = Load(4.0, 2.0, 4000.0, 1500.0, 40.0, 0.2)
TARGET = Target(target_knobs(toy.PROFILE, max_replicas=32), 15.0, toy.PROFILE)
TRACE = toy.toy_trace(minutes=2)


def figures(attainment, cost):
    return Figures(**{**ZEROS, "slo_attainment": attainment, "gpu_hours": cost})


def space(**given):
    return Space.of("hpa", LOAD, TARGET, given)


def runs(searching, answer, *, batches=None):
    """Takes a search on; gives what it asked for, batch by batch."""
    asked = []
    while not searching.done and (batches is None or len(asked) < batches):
        asked.append(searching.batch())
        searching.tell([answer(options) for options in asked[-1]])
    return asked


def highest(limit):
    """A rule that serves up to the target `limit`, costs less the higher it is, and costs more the
    further the tolerance is from 0.05."""

    def answer(options):
        target = options.get("target", 1000.0)
        off = abs(options.get("tolerance", 0.1) - 0.05)
        return figures(1.0 if target <= limit else limit / target, 1000.0 / target * (1 + off))

    return answer


def searching(trials=24, seed=0, **changed):
    return Searching(space(), trials=trials, goal=0.99, seed=seed, **changed)


def test_the_rule_as_shipped_comes_first_then_its_dial_then_everything():
    asked = [options for batch in runs(searching(), highest(2000.0)) for options in batch]
    assert len(asked) == 24
    assert asked[0] == {}
    walk = asked[1 : 1 + WALK]
    assert [options["target"] for options in walk] == sorted(o["target"] for o in walk)
    assert {(o["tolerance"], o["downscale_stabilization_s"]) for o in walk} == {(0.1, 300.0)}
    assert all(750 <= options["target"] <= 4500 for options in asked[1:])
    assert len({options["tolerance"] for options in asked[1 + WALK :]}) > 8


@pytest.mark.parametrize("limit", [1100.0, 2000.0, 3300.0])
def test_finds_a_cheap_setting_that_reaches_the_goal(limit):
    search = searching()
    runs(search, highest(limit))
    found = search.result(TRACE, hindsight=True)
    assert found.reached
    assert found.budget == 24
    assert found.simulated_s == 24 * TRACE.last_arrival_s
    assert found.chosen.figures.gpu_hours < 1.15 * 1000 / limit
    cheaper = [t for t in found.trials if t.figures.gpu_hours < found.chosen.figures.gpu_hours]
    assert all(trial.figures.slo_attainment < 0.99 for trial in cheaper)


@pytest.mark.parametrize("limit", [150.0, 400.0, 9000.0, 20_000.0])
def test_the_range_grows_where_the_best_setting_lies_at_its_end(limit):
    search = searching()
    runs(search, highest(limit))
    found = search.result(TRACE, hindsight=True)
    assert found.reached
    assert found.chosen.options["target"] > limit / 1.6


def test_a_goal_that_nothing_reaches_gives_the_best_attainment_and_says_so():
    search = searching()
    runs(search, highest(0.1))
    found = search.result(TRACE, hindsight=True)
    assert not found.reached
    best = max(trial.figures.slo_attainment for trial in found.trials)
    assert found.chosen.figures.slo_attainment == best
    assert found.sentence.startswith("None of 24 settings tried on toy-load meets")
    assert ", below the goal" in found.sentence


def test_a_setting_at_the_end_of_what_was_tried_says_so():
    search = searching(trials=8)
    runs(search, highest(1e9))
    found = search.result(TRACE, hindsight=True)
    assert found.at_end
    assert "at the end of the range that was tried" in found.sentence
    search = searching()
    runs(search, highest(2000.0))
    found = search.result(TRACE, hindsight=True)
    assert not found.at_end
    assert "range that was tried" not in found.sentence


def test_a_parameter_that_contradicts_what_is_given_is_not_searched():
    def names(**given):
        table = {"times": "00:00=4,08:00=9", **given}
        return [p.name for p in Space.of("schedule", LOAD, TARGET, table).parameters]

    assert names() == ["peak", "lead_s"]
    assert names(scale=1) == ["lead_s"]
    assert names(scale=1, lead_s=0) == []
    # The shipped spare of 0.1 is above every threshold here, a smaller one is not: of wva-v1 only
    # the tolerance of an HPA that is not there goes.
    low = replace(LOAD, kv_cache_usage=0.002)
    whole = [p.name for p in Space.of("wva-v1", low, TARGET, {}).parameters]
    given = Space.of("wva-v1", low, TARGET, {"apply": "direct"}).parameters
    assert [p.name for p in given] == [name for name in whole if name != "tolerance"]


def test_of_a_timetable_only_the_shape_is_kept_and_that_is_said():
    given = {"times": "00:00=4,08:00=9"}
    search = Searching(Space.of("schedule", LOAD, TARGET, given), trials=2, goal=0.99, seed=0)
    runs(search, lambda options: figures(1.0, float(options.get("peak", 99.0))))
    sentence = search.result(TRACE, hindsight=True).sentence
    assert "only the shape of its timetable is kept, schedule.scale=1 keeps the counts" in sentence


def test_a_setting_that_a_rule_refuses_is_not_walked_to(monkeypatch):
    def build(options, target):
        if options.number("target", 1000.0) > 5000:
            raise ConfigError("too much")
        return POLICIES["hpa"].build(options, target)

    monkeypatch.setitem(POLICIES, "picky", replace(POLICIES["hpa"], build=build))
    picky = Space.of("picky", LOAD, TARGET, {})
    search = Searching(picky, trials=24, goal=0.99, seed=0)
    asked = [options for batch in runs(search, highest(1e9)) for options in batch]
    assert max(options.get("target", 0) for options in asked) <= 4500


@pytest.mark.parametrize("usage", [0.002, 0.05, 0.95])
# The counts of static and static-best are swept, not searched.
@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"static", "static-best"}))
def test_every_setting_that_is_tried_can_be_built(policy, usage):
    # `wva-v1` ships a spare of 0.1, which is more than any threshold around 0.002 or 0.05.
    given = {"times": "00:00=4"} if policy == "schedule" else {}
    tried = Space.of(policy, replace(LOAD, kv_cache_usage=usage), TARGET, given)
    search = Searching(tried, trials=24, goal=0.99, seed=0)

    def lower_is_better(options):
        return figures(1.0, float(options.get(tried.dial.name, 9.0)))

    for batch in runs(search, lower_is_better):
        for options in batch:
            POLICIES[policy].build(Options(policy, {**given, **options}), TARGET)


def test_a_rule_that_refuses_every_setting_is_told_at_once(monkeypatch):
    def build(options, target):
        if options.number("target", 1000.0) != 1000.0:
            raise ConfigError("never")
        return POLICIES["hpa"].build(options, target)

    monkeypatch.setitem(POLICIES, "never", replace(POLICIES["hpa"], build=build))
    search = Searching(Space.of("never", LOAD, TARGET, {}), trials=24, goal=0.99, seed=0)
    with pytest.raises(InputError, match="100 settings in a row contradict themselves"):
        runs(search, highest(1.0))


def test_same_seed_same_trials_and_another_seed_others():
    one, again, other = (runs(searching(seed=seed), highest(2000.0)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert one[:2] == other[:2], "what is shipped and the walk are drawn by nobody"


@pytest.mark.parametrize("batches", [0, 1, 3])
@pytest.mark.parametrize("told", [0, 2])
def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, batches, told):
    whole = [options for batch in runs(searching(16), highest(150.0)) for options in batch]
    # One case in a file, which takes seconds; the others in memory that outlives the search.
    file = (batches, told) == (1, 2)
    storage = f"sqlite:///{tmp_path}/trials.db" if file else InMemoryStorage()
    killed = searching(16, storage=storage)
    runs(killed, highest(150.0), batches=batches)
    batch = killed.batch()
    # Killed between two answers of a batch: some trials are told, the others are open.
    for trial, options in list(zip(killed._batch, batch, strict=True))[:told]:
        single = searching(16, storage=storage)
        single._batch = [trial]
        single.tell([highest(150.0)(options)])
    resumed = searching(16, storage=storage)
    runs(resumed, highest(150.0))
    found = [dict(trial.options) for trial in resumed.result(TRACE, hindsight=True).trials]
    assert found == whole


def test_more_trials_go_on_from_those_that_are_there():
    storage = InMemoryStorage()
    runs(searching(8, storage=storage), highest(2000.0))
    more = runs(searching(16, storage=storage), highest(2000.0))
    assert sum(len(batch) for batch in more) == 8


def test_what_the_user_has_set_is_not_searched():
    fixed = space(tolerance=0.2)
    assert [parameter.name for parameter in fixed.parameters] == [
        *("target", "downscale_stabilization_s")
    ]


def test_a_rule_with_no_default_of_its_own_is_still_run_as_shipped(monkeypatch):
    def search(load):
        return (Parameter("goal", 1.0, 9.0, ""), Parameter("limit", 1, 5, "", whole=True))

    def build(options, target):
        return POLICIES["static"].build(Options("open", {}), target)

    monkeypatch.setitem(POLICIES, "open", Entry(build, search))
    found = Searching(Space.of("open", LOAD, TARGET, {}), trials=12, goal=0.99, seed=0)
    asked = runs(found, lambda options: figures(1.0, options.get("goal", 20.0)))
    assert asked[0][0] == {}
    assert all(set(options) == {"goal", "limit"} for options in asked[1])
    assert all(isinstance(options["limit"], int) for options in asked[1])
    assert found.result(TRACE, hindsight=False).chosen.options["goal"] < 3


def test_a_storage_that_cannot_be_used_is_told():
    with pytest.raises(InputError, match=r"expected a URL such as sqlite:///tuning\.db"):
        searching(storage="nonsense")


DIAL = Parameter("target", 100.0, 900.0, "", log=True)


@pytest.mark.parametrize(
    ("dial", "tuned", "count"),
    [
        (DIAL, 300.0, 7),
        (DIAL, 100.0, 7),
        (DIAL, 900.0, 7),
        (DIAL, 2000.0, 7),  # tuned on another load: the range reaches as far
        (replace(DIAL, log=False), 500.0, 7),
        (Parameter("count", 2, 6, "", whole=True), 4, 5),
        (Parameter("share", 0.0, 1.0, ""), 0.5, 7),
    ],
)
def test_a_curve_holds_the_tuned_value_and_the_ends_of_the_range(dial, tuned, count):
    values = curve_values(dial, tuned)
    assert tuned in values
    assert len(values) == count
    assert values[0] == min(dial.low, tuned)
    assert values[-1] == max(dial.high, tuned)
    place = values.index(tuned)
    gaps = [abs(b - a) for a, b in pairwise(values)]
    if 0 < place < len(gaps):
        assert gaps[place] <= gaps[-1], "points are closest where costs are compared"
