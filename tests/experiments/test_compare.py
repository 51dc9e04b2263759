import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.compare import compare, named_policies
from experiments.comparison_summary import comparison_summary
from experiments.config import CompareConfig, RunConfig, StatisticsConfig, SweepConfig
from experiments.equal_attainment import equal_costs
from experiments.fanout import silent
from experiments.notes import notes
from experiments.runner import SimulationRunner
from experiments.summary import METRICS
from experiments.tuned import Outcome, Source, Tuned, read_tuned, write_tuned
from experiments.workbench import Bench
from policies import POLICIES
from tests.experiments import toy
from tuner.core.errors import ConfigError
from tuner.data import load_profile

RULES = {"static": "static", "hpa": "hpa"}
CONFIG = CompareConfig(
    run=RunConfig(max_replicas=8),
    sweep=SweepConfig(trials=16),
    statistics=StatisticsConfig(block_s=120.0, resamples=200),
)


def toy_compare(folder, policies=RULES, *, trace=None, **changed):
    folder.mkdir(exist_ok=True)
    # 10 tokens/s of load, 300 in the surge: three replicas are just enough for it.
    options = {"config": CONFIG, "runner": toy.ToyRunner(), **changed}
    load = trace if trace is not None else toy.toy_trace(surge=30.0)
    return compare(load, toy.PROFILE, policies, folder, **options)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return toy_compare(folder), folder


def test_rules_are_tuned_before_they_run(compared):
    comparison, _ = compared
    assert comparison.tuning.hindsight
    assert comparison["static"].options == {"replicas": 3}
    # The toy's hpa is one tick late: for that tick of the surge it has too few replicas, so it
    # keeps more of them than the load asks for.
    search = comparison.tuning.searches["hpa"]
    assert len(search.trials) == search.budget == CONFIG.sweep.trials
    assert search.trials[0].options == {}, "the rule as shipped is tried first"
    assert comparison["hpa"].options == search.chosen.options
    assert not search.reached
    best = max(trial.figures.slo_attainment for trial in search.trials)
    assert search.chosen.figures.slo_attainment == best
    assert comparison.tuning.fallback_target == comparison["hpa"].options["target"]
    assert comparison.tuning.curves["static"] == comparison.tuning.sweeps["static"]


def test_a_curve_turns_the_dial_around_the_tuned_value_and_nothing_else(tmp_path):
    jobs = []

    class Spy(toy.ToyRunner):
        def __call__(self, trace, profile, job, progress):
            jobs.append(job)
            return super().__call__(trace, profile, job, progress)

    comparison = toy_compare(tmp_path, runner=Spy(), train_trace=toy.toy_trace(name="calm"))
    curve = comparison.tuning.curves["hpa"]
    tuned = comparison["hpa"].options
    assert tuned["target"] in [point.value for point in curve.points]
    assert len(curve.points) == 7
    drawn = [job for job in jobs if job.name == "hpa" and job.seed == 0][-7:]
    assert [job.options["target"] for job in drawn] == [point.value for point in curve.points]
    for job in drawn:
        assert {**job.options, "target": tuned["target"]} == tuned


def test_a_curve_ends_where_the_dial_contradicts_what_else_was_tuned(tmp_path):
    whole = toy_compare(tmp_path / "whole", train_trace=toy.toy_trace(name="calm"))
    targets = [point.value for point in whole.tuning.curves["hpa"].points]

    class Narrow(toy.ToyRunner):
        def check(self, profile, job):
            if job.name == "hpa" and job.options.get("target", targets[1]) < targets[1]:
                raise ConfigError("hpa: target is too low for this tolerance")

    shorter = toy_compare(
        tmp_path / "shorter", runner=Narrow(), train_trace=toy.toy_trace(name="calm")
    )
    assert [point.value for point in shorter.tuning.curves["hpa"].points] == targets[1:]


def test_rules_run_at_their_own_tick_without_our_guardrails_and_the_rest_with(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(POLICIES, "quick", replace(POLICIES["hpa"], tick_s=5.0))
    jobs = []

    class Spy(toy.ToyRunner):
        def __call__(self, trace, profile, job, progress):
            jobs.append(job)
            return super().__call__(trace, profile, job, progress)

    config = replace(CONFIG, run=replace(CONFIG.run, tick_s=20.0))
    named = {**RULES, "quick": "quick", "mine-1.0.0": "/bundles/mine-1.0.0"}
    toy_compare(tmp_path, named, runner=Spy(), config=config)
    seen = {(job.name, job.config.tick_s, job.guarded) for job in jobs}
    assert seen == {
        ("static", 20.0, False),
        ("hpa", 15.0, False),
        ("quick", 5.0, False),
        ("mine-1.0.0", 20.0, True),
    }


def test_static_is_set_with_hindsight_and_static_best_by_the_training_trace(tmp_path):
    calm = toy.toy_trace(surge=12.0, name="calm")
    both = {"static": "static", "static-best": "static-best"}
    comparison = toy_compare(tmp_path, both, train_trace=calm)
    assert comparison["static-best"].options == {"replicas": 2}
    assert comparison["static"].options == {"replicas": 3}
    assert comparison.tuning.initial_replicas == 2
    # 120 tokens/s in the one, 300 in the other: each place says which count is from where.
    found = {
        name: (s.policy, s.chosen.value, s.trace) for name, s in comparison.tuning.sweeps.items()
    }
    assert found == {"static": ("static", 3, "toy-load"), "static-best": ("static-best", 2, "calm")}
    said = notes(comparison)
    assert any(note.startswith("static was tuned on the very load") for note in said)
    assert any(note.startswith("static-best was tuned on calm, not") for note in said)


def test_a_timetable_that_asks_for_more_than_there_may_be_is_told(tmp_path):
    given = {"times": "00:00=4,00:10=12", "scale": 1, "lead_s": 0}
    comparison = toy_compare(
        tmp_path, {"schedule": "schedule", "static": "static"}, overrides={"schedule": given}
    )
    assert comparison.tuning.searches == {}
    assert dict(comparison["schedule"].options) == given
    (note,) = (note for note in notes(comparison) if "timetable" in note)
    assert note.startswith("The timetable of schedule asks for up to 12 replicas; run.max_replicas")


def test_nothing_is_said_of_static_where_it_is_not_compared(tmp_path):
    comparison = toy_compare(
        tmp_path, {"hpa": "hpa"}, train_trace=toy.toy_trace(surge=12.0, name="calm")
    )
    assert comparison.tuning.sweeps == {}
    assert comparison.tuning.initial_replicas == 2
    assert not any("static" in note for note in notes(comparison))


def test_a_setting_that_is_given_is_not_searched_and_the_others_are(tmp_path):
    comparison = toy_compare(tmp_path, overrides={"hpa": {"tolerance": 0.15}})
    search = comparison.tuning.searches["hpa"]
    assert {name for trial in search.trials for name in trial.options} == {
        *("target", "downscale_stabilization_s")
    }
    assert comparison["hpa"].options["tolerance"] == 0.15


def test_what_was_tuned_before_takes_the_place_of_a_search(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = toy_compare(tmp_path / "first")
    search = first.tuning.searches["hpa"]
    tuned = Tuned(
        schema="tuner.tuned/1",
        policy="hpa",
        goal=0.99,
        reached=True,
        trials=16,
        simulated_s=search.simulated_s,
        seed=0,
        tuned=Outcome.of(search.chosen),
        shipped=Outcome.of(search.trials[0]),
        trace=Source("sunday", "0" * 64),
        profile=Source("toy", "0" * 64),
    )
    write_tuned(tuned, tmp_path / "hpa.yaml")
    labels = []
    second = toy_compare(
        tmp_path / "second",
        tuned=read_tuned([tmp_path / "hpa.yaml"]),
        watch=lambda label, share, *_: labels.append(label),
    )
    assert not any(label.startswith("tuning: hpa") for label in labels)
    assert second["hpa"].options == first["hpa"].options
    assert second["hpa"].estimates == first["hpa"].estimates
    assert second.tuning.searches["hpa"].trace == "sunday"
    assert second.tuning.curves["hpa"] == first.tuning.curves["hpa"]


def test_cost_and_attainment_of_static_by_hand(compared):
    comparison, _ = compared
    static = comparison["static"]
    assert static.mean("slo_attainment") == 1.0
    # 3 replicas of 2 GPUs, to the last arrival at 1199 s
    assert static.mean("gpu_hours") == pytest.approx(3 * 2 * 1199 / 3600)
    assert static.estimates["gpu_hours"].ci95 == pytest.approx((1.9983, 1.9983), abs=1e-4)


def test_policies_run_the_same_seeds_and_none_is_the_sweeps(compared):
    comparison, _ = compared
    assert comparison.seeds == (1, 2, 3)
    for outcome in comparison.policies:
        assert [run.seed for run in outcome.runs] == [1, 2, 3]


def test_differences_are_to_the_baseline_seed_by_seed(compared):
    comparison, _ = compared
    assert comparison.baseline == "hpa"
    assert comparison["hpa"].differences == {}
    ours, theirs = comparison["static"], comparison["hpa"]
    for metric in ("gpu_hours", "ttft_p50_s", "goodput_qps"):
        pairs = [
            getattr(a.figures, metric) - getattr(b.figures, metric)
            for a, b in zip(ours.runs, theirs.runs, strict=True)
        ]
        assert ours.differences[metric].mean == pytest.approx(np.mean(pairs))


def test_the_baseline_against_itself_under_another_name_differs_by_nothing(tmp_path):
    comparison = toy_compare(
        tmp_path,
        {"static": "static", "twin": "twin"},
        baseline="static",
        overrides={"static": {"replicas": 3}, "twin": {"replicas": 3}},
    )
    twin = comparison["twin"]
    served = ("slo_attainment", "gpu_hours", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s")
    assert all(twin.differences[name].ci95 == (0, 0) for name in served)
    assert twin.differences["ttft_p99_s"].ci95_load == (0, 0)


def test_intervals_stay_where_the_figure_can_be(compared):
    comparison, _ = compared
    for outcome in comparison.policies:
        for metric, estimate in outcome.estimates.items():
            assert estimate.ci95[0] >= 0
            assert estimate.ci95[0] <= estimate.mean <= estimate.ci95[1]
            if metric == "slo_attainment":
                assert estimate.ci95[1] <= 1


def test_a_load_of_few_blocks_says_nothing_of_other_loads(tmp_path):
    config = CompareConfig(run=RunConfig(max_replicas=4), statistics=StatisticsConfig(600.0))
    comparison = toy_compare(tmp_path, config=config, trace=toy.toy_trace())
    assert all(e.ci95_load is None for e in comparison["static"].estimates.values())


def test_one_seed_has_no_interval(tmp_path):
    comparison = toy_compare(tmp_path, config=CompareConfig(seeds=1, run=RunConfig(max_replicas=4)))
    assert all(e.ci95 is None for e in comparison["static"].estimates.values())


def test_numbers_and_files_are_the_same_for_any_number_of_jobs(tmp_path, compared):
    (tmp_path / "two").mkdir()
    two = toy_compare(tmp_path / "two", jobs=2)
    one, folder = compared
    assert json.dumps(comparison_summary(two)) == json.dumps(comparison_summary(one))
    for name in ("requests.parquet", "ticks.parquet"):
        assert (tmp_path / "two" / name).read_bytes() == (folder / name).read_bytes()


def test_tables_hold_every_run_in_order(compared):
    comparison, folder = compared
    requests = pq.read_table(folder / "requests.parquet")
    assert requests.column_names == [
        *("policy", "seed", "arrival_s", "ttft_s", "e2e_s", "tpot_s", "replica", "preemptions"),
        *("rejected", "failed"),
    ]
    n = len(comparison.trace)
    assert requests.num_rows == 2 * 3 * n
    assert requests["policy"].to_pylist()[:: 3 * n] == ["static", "hpa"]
    assert requests["seed"].to_pylist()[::n] == [1, 2, 3, 1, 2, 3]
    first = requests.slice(0, n)
    assert np.array_equal(first["arrival_s"].to_numpy(), comparison.trace.arrival_s)
    ticks = pq.read_table(folder / "ticks.parquet")
    assert ticks.num_rows == 2 * 3 * 80  # 20 minutes of 15 s
    assert {"policy", "seed", "wanted_replicas", "sentence"} <= set(ticks.column_names)
    assert sorted(path.name for path in folder.iterdir()) == ["requests.parquet", "ticks.parquet"]


def test_the_summary_has_every_figure_of_every_policy(compared):
    comparison, _ = compared
    summary = json.loads(json.dumps(comparison_summary(comparison), allow_nan=False))
    assert summary["schema"] == "tuner.compare/1"
    assert summary["objectives"] == {"ttft_s": 2.5, "tpot_s": 0.075}
    assert list(summary["policies"]) == ["static", "hpa"]
    names = [metric.name for metric in METRICS]
    for policy in summary["policies"].values():
        assert all(isinstance(policy[name], int | float) for name in names)
        assert list(policy["ci95"]) == names
        assert all(len(bounds) == 2 for bounds in policy["ci95"].values())
        assert [run["seed"] for run in policy["per_seed"]] == [1, 2, 3]
        assert set(policy["per_seed"][0]) == {"seed", *names}
    assert summary["policies"]["hpa"]["difference"] is None
    equal = equal_costs(comparison)
    for name, policy in summary["policies"].items():
        stored = policy["equal_attainment"]
        assert [at["slo_attainment"] for at in stored] == [0.99, 0.995]
        assert [(at["gpu_hours"], at["at_most"]) for at in stored] == [
            (cost.gpu_hours, cost.at_most) for cost in equal[name]
        ]
    assert summary["policies"]["static"]["requests"] == len(comparison.trace)
    assert summary["tuning"]["sweeps"]["static"]["chosen"] == 3
    assert len(summary["tuning"]["searches"]["hpa"]["trials"]) == 16
    assert summary["pinned"] == {"threads": "profile toy has no frontend section"}


def test_settings_that_are_given_skip_their_sweeps(tmp_path):
    labels = []
    comparison = toy_compare(
        tmp_path,
        overrides={"static": {"replicas": 5}, "hpa": {"target": 40.0}},
        watch=lambda label, share, *_: labels.append(label),
    )
    assert comparison.tuning.sweeps == {}
    assert comparison["static"].options == {"replicas": 5}
    assert comparison["hpa"].options == {"target": 40.0}
    assert comparison.tuning.initial_replicas == 5
    assert comparison.tuning.fallback_target == 40.0
    assert set(labels) == {f"{name}, seed {seed}" for name in RULES for seed in (1, 2, 3)}


def test_rules_tuned_on_another_trace_keep_its_settings_and_show_the_curve_here(tmp_path):
    calm = toy.toy_trace(surge=12.0, name="calm")
    comparison = toy_compare(tmp_path, train_trace=calm)
    assert not comparison.tuning.hindsight
    assert comparison.tuning.trace == "calm"
    assert comparison.tuning.initial_replicas == 2
    assert comparison.tuning.searches["hpa"].trace == "calm"
    assert not comparison.tuning.searches["hpa"].hindsight
    assert comparison["static"].options == {"replicas": 3}, "the best fixed count in hindsight"
    assert comparison.tuning.sweeps["static"].sentence.startswith("static with 3 replicas")
    assert "tried on toy-load that" in comparison.tuning.sweeps["static"].sentence
    assert comparison.tuning.curves["static"].chosen.value == 3


def test_static_alone_needs_no_sweep_of_hpa(tmp_path):
    comparison = toy_compare(tmp_path, {"static": "static"})
    assert set(comparison.tuning.sweeps) == {"static"}
    assert comparison.tuning.fallback_target is None
    assert comparison.baseline == "static"


def test_another_policy_gets_a_start_and_a_fallback_from_the_rules(tmp_path):
    jobs = []

    class Spy(toy.ToyRunner):
        def __call__(self, trace, profile, job, progress):
            jobs.append(job)
            return super().__call__(trace, profile, job, progress)

    comparison = toy_compare(tmp_path, {"mine-1.0.0": "/bundles/mine-1.0.0"}, runner=Spy())
    mine = [job for job in jobs if job.name == "mine-1.0.0"]
    assert [job.policy for job in mine] == ["/bundles/mine-1.0.0"] * 3
    for job in mine:
        assert job.config.initial_replicas == 3
        options = comparison.tuning.options["hpa"]
        assert {**job.fallback, "target": job.config.fallback_target} == options


def test_a_start_count_in_the_configuration_holds_for_all_but_static(tmp_path):
    config = CompareConfig(
        run=RunConfig(max_replicas=8, initial_replicas=6), sweep=SweepConfig(hpa_targets=(40.0,))
    )
    comparison = toy_compare(tmp_path, config=config)
    assert comparison.tuning.initial_replicas == 6
    first_tick = {o.name: o.runs[0].ticks.ready_replicas[0] for o in comparison.policies}
    assert first_tick == {"static": 3.0, "hpa": 6.0}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"baseline": "keda"}, "baseline 'keda' is not compared; compared are static, hpa"),
        ({"overrides": {"hap": {"target": 1}}}, "no such policy is compared; did you mean 'hpa'?"),
        ({"overrides": {"static": {"replicas": 2.5}}}, "expected a whole number from 1 to"),
        ({"overrides": {"static": {"replicas": 99}}}, "expected a whole number from 1 to"),
        ({"overrides": {"hpa": {"target": "much"}}}, "expected a number above 0"),
        ({"overrides": {"hpa": {"metric": "qps"}}}, "give hpa.target too"),
        ({"overrides": {"hpa": {"bad": 1}}}, "hpa: option bad is unknown"),
    ],
)
def test_a_mistake_is_found_before_any_run(tmp_path, changed, sentence):
    ran = []
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        toy_compare(tmp_path, watch=lambda label, share, *_: ran.append(label), **changed)
    assert ran == []


def test_policies_are_known_names_or_folders(tmp_path):
    bundle = tmp_path / "r1-1.0.0"
    bundle.mkdir()
    named = named_policies(["static", f"{bundle}/"], ["hpa", "static"])
    assert named == {"static": "static", "r1-1.0.0": f"{bundle}/"}


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        (["statik"], "did you mean 'static'?"),
        (["/nowhere/else"], "policies: hpa, static"),
        (["hpa", "hpa"], "'hpa' is named twice"),
        ([], "no policy is named"),
    ],
)
def test_refuses_policies_that_are_neither(specs, sentence):
    with pytest.raises(ConfigError) as caught:
        named_policies(specs, ["hpa", "static"])
    assert sentence in str(caught.value)


def test_static_best_is_refused_before_any_run_without_a_load_to_choose_on():
    bench = Bench(
        load_profile("reference-affine"),
        CONFIG,
        SimulationRunner(),
        {},
        None,
        jobs=1,
        watch=silent,
    )
    with pytest.raises(ConfigError, match="its count is chosen on another trace"):
        bench.check({"static-best": "static-best"})
    bench.check({"static-best": "static-best"}, trained=True)
