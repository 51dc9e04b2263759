from dataclasses import fields, replace

import pytest

from envs.config import FailureConfig
from experiments.comparison import Comparison, Estimate, PolicyOutcome
from experiments.config import CompareConfig, RunConfig
from experiments.curve import cost_at
from experiments.digest import RunDigest
from experiments.notes import notes
from experiments.search import Search, Trial
from experiments.summary import METRICS, Figures
from experiments.sweep import Point, Sweep
from experiments.tuning import Tuning
from experiments.verdict import Standing, verdicts
from tests.experiments import toy
from tuner.core.trace import Gap
from tuner.train.digests import trace_digest

FIGURES = Figures(**{field.name: 0.0 for field in fields(Figures)})


def outcome(name, attainment, cost, differences=None, pinned=None):
    means = {"slo_attainment": attainment, "gpu_hours": cost}
    run = RunDigest(name, 1, replace(FIGURES, actions=1), pinned or {}, {})
    return PolicyOutcome(
        name=name,
        policy=name,
        options={},
        runs=(run,),
        estimates={m.name: Estimate(means.get(m.name, 0.0), None, None) for m in METRICS},
        differences=differences or {},
    )


def gap(mean, *, half, load=None):
    return Estimate(mean, None if half is None else (mean - half, mean + half), load)


def comparison(points=1.0, cost=-10.0, *, half=0.1, load=None, attainment=0.995, **changed):
    """`mine` against `hpa` (99.5 %, 100 GPU hours): `points` better and `cost` dearer."""
    gaps = {
        "slo_attainment": gap(points / 100, half=None if half is None else half / 100, load=load),
        "gpu_hours": gap(cost, half=half, load=load),
    }
    outcomes = (
        outcome("hpa", attainment, 100.0),
        outcome("mine", attainment + points / 100, 100.0 + cost, gaps),
    )
    value = Comparison(
        trace=toy.toy_trace(minutes=600, per_minute=1),
        profile=toy.PROFILE,
        config=CompareConfig(seeds=5),
        baseline="hpa",
        seeds=(1, 2, 3, 4, 5),
        policies=outcomes,
        tuning=Tuning("toy-load", True, {}, {}, 3, 40.0),
    )
    return replace(value, **changed)


@pytest.mark.parametrize(
    ("points", "cost", "standing", "headline"),
    [
        (
            0.3,
            -10,
            "wins",
            "mine beats hpa: 10.0 % fewer GPU hours, attainment 0.30 points higher.",
        ),
        (0.0, -10, "wins", "mine beats hpa: 10.0 % fewer GPU hours, attainment the same."),
        (0.3, 0.0, "wins", "mine beats hpa: the same GPU hours, attainment 0.30 points higher."),
        (
            -3,
            10,
            "loses",
            "mine loses to hpa: 10.0 % more GPU hours, attainment 3.00 points lower.",
        ),
        (0.0, 10, "loses", "mine loses to hpa: 10.0 % more GPU hours, attainment the same."),
        (-3, 0.0, "loses", "mine loses to hpa: the same GPU hours, attainment 3.00 points lower."),
        (
            *(-3, -10, "trade-off"),
            "mine costs less and serves worse than hpa: "
            "10.0 % fewer GPU hours, attainment 3.00 points lower.",
        ),
        (
            *(0.3, 10, "trade-off"),
            "mine serves better and costs more than hpa: "
            "10.0 % more GPU hours, attainment 0.30 points higher.",
        ),
        (
            *(0.04, 0.4, "no difference"),
            "mine does as hpa does: the same GPU hours, attainment the same.",
        ),
    ],
)
def test_losses_are_said_as_plainly_as_wins(points, cost, standing, headline):
    (verdict,) = verdicts(comparison(points, cost))
    assert (verdict.standing, verdict.headline) == (standing, headline)


def test_a_difference_within_its_interval_decides_nothing():
    (verdict,) = verdicts(comparison(0.3, -10, half=20))
    assert verdict.standing is Standing.OPEN
    assert verdict.headline == (
        "mine against hpa: no clear difference in GPU hours, no clear difference in attainment."
    )


@pytest.mark.parametrize(
    ("cost", "headline"),
    [
        (-10.0, "mine costs less than hpa: 10.0 % fewer GPU hours, no clear difference in "),
        (50.0, "mine costs more than hpa: 50.0 % more GPU hours, no clear difference in "),
    ],
)
def test_a_clear_cost_beside_an_unclear_attainment_is_said(cost, headline):
    value = comparison(0.3, cost)
    mine = value["mine"]
    unclear = {**mine.differences, "slo_attainment": gap(0.003, half=0.01)}
    value = replace(value, policies=(value["hpa"], replace(mine, differences=unclear)))
    (verdict,) = verdicts(value)
    assert verdict.standing == headline[len("mine ") :][: len("costs less")]
    assert verdict.headline == f"{headline}attainment."


@pytest.mark.parametrize(
    ("points", "cost", "figures"),
    [
        (0.0, -59.4, "59.4 % fewer GPU hours, attainment the same."),
        (3.0, 0.0, "the same GPU hours, attainment 3.00 points higher."),
        (0.0, 0.0, "the same GPU hours, attainment the same."),
    ],
)
def test_where_neither_reaches_the_goal_nobody_wins(points, cost, figures):
    (verdict,) = verdicts(comparison(points, cost, attainment=0.2167))
    assert verdict.standing is Standing.MISSES
    assert verdict.headline == f"mine and hpa both miss the goal of 99.0 %: {figures}"


def test_who_alone_reaches_the_goal_may_win():
    (verdict,) = verdicts(comparison(1.0, -10.0, attainment=0.985))
    assert verdict.standing is Standing.WINS


def test_one_clear_difference_beside_an_unclear_one_decides_nothing_either():
    value = comparison(0.3, -10)
    mine = value["mine"]
    unclear = {**mine.differences, "gpu_hours": gap(-10.0, half=20.0)}
    value = replace(value, policies=(value["hpa"], replace(mine, differences=unclear)))
    (verdict,) = verdicts(value)
    assert verdict.standing is Standing.OPEN


def test_says_when_a_difference_may_not_hold_on_another_load():
    (verdict,) = verdicts(comparison(0.3, -10, load=(-30.0, 5.0)))
    assert any("may not hold on another one" in detail for detail in verdict.details)
    (verdict,) = verdicts(comparison(0.3, -10, load=(-30.0, -5.0)))
    assert not any("may not hold" in detail for detail in verdict.details)


def point(attainment, cost):
    return Point(cost, replace(FIGURES, slo_attainment=attainment, gpu_hours=cost))


CURVE = (point(0.5, 50.0), point(0.9, 100.0), point(0.8, 120.0), point(1.0, 200.0))


@pytest.mark.parametrize(
    ("attainment", "cost"),
    [
        (0.3, 50.0),  # less than the cheapest point serves: its cost
        (0.5, 50.0),
        (0.7, 75.0),  # halfway from 0.5 to 0.9
        (0.9, 100.0),
        (0.95, 150.0),  # from 0.9 to 1.0; the dearer and worse point does not count
        (1.0, 200.0),
    ],
)
def test_reads_a_rules_cost_off_its_curve(attainment, cost):
    assert cost_at(CURVE, attainment) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("attainment", "cost"),
    [(0.3, 50.0), (0.5, 50.0), (0.7, 100.0), (0.9, 100.0), (0.95, 200.0)],
)
def test_between_two_whole_fleets_there_is_none(attainment, cost):
    assert cost_at(CURVE, attainment, whole_fleets=True) == cost
    assert cost_at(CURVE[:3], 0.95, whole_fleets=True) is None


def test_a_curve_that_ends_below_has_no_cost():
    assert cost_at(CURVE[:3], 0.95) is None
    assert cost_at((), 0.5) is None


def test_every_policy_is_held_against_the_curves_of_the_rules():
    curve = Sweep("static", "replicas", "replicas", 0.99, CURVE, CURVE[3], True)
    tuning = Tuning("toy-load", True, {"static": curve}, {"static": curve}, 3, 40.0)
    (verdict,) = verdicts(comparison(0.0, 20.0, attainment=0.95, tuning=tuning))
    assert verdict.details[-1] == (
        "static, set with hindsight to the same attainment, needs about 200.0 GPU hours: "
        "mine costs 40.0 % less."
    )


def test_notes_hold_what_must_be_known_first():
    value = comparison(-3, -10)
    found = " ".join(notes(value))
    assert "mine (96.50 %) misses the goal of 99.0 %." in found
    assert "hpa misses" not in found
    assert "seed" not in found  # five seeds, ten hours, no gap: nothing more to say
    assert "Assumed, not measured: limits.batch_size_max, kv (no origin)." in found
    assert "Rules ran at their own periods (hpa 15 s)" in found
    assert len(notes(value)) == 3


def test_notes_on_hindsight_seeds_span_gaps_and_pinned_knobs():
    curve = Sweep("static", "replicas", "replicas", 0.99, CURVE, CURVE[3], True)
    value = comparison(
        trace=replace(toy.toy_trace(minutes=20), gaps=(Gap(60.0, 180.0),)),
        seeds=(1,),
        tuning=Tuning("toy-load", True, {"static": curve}, {}, 3, None),
        policies=(outcome("hpa", 1.0, 1.0, pinned={"threads": "the profile has no frontend"}),),
    )
    found = " ".join(notes(value))
    assert "static was tuned on the very load" in found
    assert "One seed shows no spread" in found
    assert "The load is too short (20 min) to say how it would be on other days" in found
    assert "The recording is silent for 2 min in 1 span;" in found
    assert "The knob threads is pinned: the profile has no frontend." in found


def test_a_world_that_was_asked_to_go_wrong_is_told():
    run = RunConfig(
        startup="cold",
        drain_timeout_s=180.0,
        failures=FailureConfig(crash_per_hour=0.01, slow_replica=0.1),
    )
    plain = comparison(-3, -10)
    assert "crash" not in " ".join(notes(plain))
    found = " ".join(notes(replace(plain, config=replace(plain.config, run=run))))
    assert "the named start cold, not by the profile's own" in found
    assert "What a leaving replica has not answered within 3 min fails." in found
    assert "Serving replicas crash 0.01 times an hour; what they have fails" in found
    assert "With a chance of 0.1 one replica of a run is slower by a factor of 1.2 to 2." in found


def test_rules_tuned_elsewhere_are_not_called_hindsight():
    curve = Sweep("static", "replicas", "replicas", 0.99, CURVE, CURVE[3], True)
    targets = replace(curve, policy="hpa", option="target")
    tuning = Tuning("sunday", False, {"static": curve, "hpa": targets}, {}, 3, 40.0)
    found = " ".join(notes(comparison(tuning=tuning)))
    assert "static was tuned on the very load that is compared here. That is hindsight" in found
    assert "hpa was tuned on sunday, not on the load that is compared here." in found
    assert "--train-trace" not in found


def test_the_budget_of_rules_stands_beside_that_of_learned_policies():
    trial = Trial({"target": 40.0}, FIGURES)
    search = Search("hpa", "sunday", False, 0.99, 24, 24 * 7200.0, (trial,), trial, True)
    base = Tuning("sunday", False, {}, {}, 3, 40.0, searches={"hpa": search})
    value = comparison(tuning=base)
    mine = value.policies[1]
    run = replace(mine.runs[0], settings={"simulated hours": 1666.7})
    value = replace(value, policies=(value.policies[0], replace(mine, runs=(run,))))
    found = " ".join(notes(value))
    assert "hpa was tuned on sunday" in found
    assert "hpa was tuned in 24 trials, 48.0 simulated hours." in found
    assert "mine was trained in 1,666.7 simulated hours." in found


def test_what_many_rules_share_is_said_once():
    trial = Trial({"target": 40.0}, FIGURES)
    names = ("hpa", "keda", "kpa")
    searches = {
        name: Search(name, "sunday", False, 0.99, 24, 7200.0, (trial,), trial, True)
        for name in names
    }
    value = comparison(tuning=Tuning("sunday", False, {}, {}, 3, 40.0, searches=searches))
    outcomes = tuple(outcome(name, 0.995, 100.0) for name in names)
    found = " ".join(notes(replace(value, policies=outcomes)))
    assert "All 3 searched rules were tuned in 24 trials, 2.0 simulated hours each." in found
    assert "at their own periods (kpa 2 s; hpa and keda 15 s)" in found


def with_settings(settings: dict[str, object]) -> Comparison:
    """The comparison of `mine` and `hpa` with what `mine` says it was trained from."""
    plain = comparison(0.3, -10)
    mine = next(outcome for outcome in plain.policies if outcome.name == "mine")
    runs = tuple(replace(run, settings=settings) for run in mine.runs)
    others = tuple(o if o is not mine else replace(mine, runs=runs) for o in plain.policies)
    return replace(plain, policies=others)


def test_a_policy_that_meets_the_load_it_learned_is_called_hindsight():
    known = with_settings({"trained on sha256": trace_digest(comparison(0.3, -10).trace)})
    assert any("mine was trained on the very load" in note for note in notes(known))
    assert not any("trained on the very load" in note for note in notes(with_settings({})))


@pytest.mark.parametrize(("beats", "told"), [(False, True), (True, False)])
def test_a_bundle_without_a_network_that_won_is_called_its_base_rule(beats, told):
    found = notes(with_settings({"beats its base rule": beats}))
    assert any("mine holds its base rule alone" in note for note in found) is told


def test_a_policy_on_a_fleet_that_it_never_saw_is_told():
    strange = with_settings({"trained with": "another-fleet"})
    assert any("mine was trained with the profile another-fleet" in n for n in notes(strange))
