import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from experiments.compare import compare
from experiments.comparison import Estimate
from experiments.config import CompareConfig, RunConfig, StatisticsConfig
from experiments.folder import provenance
from experiments.report.colours import colours_of
from experiments.report.frontier import cost_view, outside_words
from experiments.report.page import render, setting_rows, usual
from experiments.report.tables import HAPPENED, figure_tables
from experiments.report.timelines import POINTS, timelines
from tests.experiments import toy
from tests.pages import Page, plots_of

CONFIG = CompareConfig(
    run=RunConfig(max_replicas=8), statistics=StatisticsConfig(block_s=120.0, resamples=200)
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    load = toy.toy_trace(minutes=150, per_minute=12, surge=150.0, name="busy <day> & night")
    return compare(
        replace(load, header={"licence": "CC0 </script>"}),
        toy.PROFILE,
        {"static": "static", "hpa": "hpa", "r1-1.0.0": "/bundles/r1-1.0.0"},
        tmp_path_factory.mktemp("report"),
        config=CONFIG,
        runner=toy.ToyRunner(),
        train_trace=toy.toy_trace(surge=12.0, name="calm"),
        overrides={"r1-1.0.0": {"replicas": 2}},
    )


@pytest.fixture(scope="module")
def html(comparison):
    command = "tuner compare --trace 'busy <day>' --out runs/x"
    run = provenance(command, comparison.trace, comparison.profile, comparison.config)
    return render(comparison, run)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def text(page):
    return page.text


@pytest.fixture(scope="module")
def plots(html):
    return plots_of(html)


def test_fetches_nothing_and_lets_nothing_be_fetched(html, page):
    assert page.fetched == []
    assert "default-src 'none'" in html
    assert html.count("<script>") == 2  # ours; plotly.js is packed


def test_says_what_ran_from_what_and_how_to_repeat_it(text):
    for words in (
        "busy <day> & night",
        "Simulated from the profile toy with the scheduler rules toy-fluid",
        "whose largest error against measurements is 12.5 % (ttft mean)",
        "TTFT ≤ 2.5 s and TPOT ≤ 75 ms",
        "tuner compare --trace 'busy <day>' --out runs/x",
        "ttft mean 12.5 %",
        "invented <for tests> & nothing else",
        "CC0 </script>",
        "The knob threads is pinned: profile toy has no frontend section.",
        "Assumed, not measured: limits.batch_size_max, kv (no origin).",
        "Whatever happens between <two> replicas.",
        "1, 2, 3; sweeps ran seed 0",
        "hpa was tuned on calm, not on the load that is compared here.",
        "Every policy but static started with 2 ready replicas.",
    ):
        assert words in text


def test_every_policy_has_its_verdict_figures_and_settings(text):
    for name in ("static", "r1-1.0.0"):
        assert re.search(rf"\w {re.escape(name)} (beats|loses|costs|serves|does|against)", text)
    assert "hpa baseline" in text
    assert "replicas 2" in text


def test_sections_that_plots_and_links_need_are_there(page):
    assert {"plot-frontier", "plot-timelines", "plots", "simulated"} <= page.ids


def test_sweeps_of_both_traces_are_shown_when_rules_were_tuned_elsewhere(text, comparison):
    assert "The curves on the compared load, with hindsight" in text
    for sweep in (*comparison.tuning.sweeps.values(), *comparison.tuning.curves.values()):
        assert f"{sweep.sentence}." in text


def painted(value):
    """The plot with a real colour for each name of a CSS variable."""
    if isinstance(value, dict):
        return {key: painted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [painted(inner) for inner in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


def stacked(plots):
    """The timelines as charts.js hands them to plotly: every panel's traces."""
    traces = [trace for panel in plots["timelines"]["panels"] for trace in panel["traces"]]
    return {"data": [{"type": "scatter", "mode": "lines", **trace} for trace in traces]}


@pytest.mark.parametrize("name", ["frontier", "timelines"])
def test_plots_are_what_plotly_understands(plots, name):
    from plotly import graph_objects

    plot = stacked(plots) if name == "timelines" else plots[name]
    figure = graph_objects.Figure(painted(plot))  # raises on an unknown attribute
    assert len(figure.data) > 3


def test_every_colour_of_a_plot_is_defined_in_the_style_sheet(html, plots):
    used = set(re.findall(r"--[a-z0-9-]+", json.dumps(plots)))
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    dark = style[style.rindex("prefers-color-scheme: dark") :] + style
    assert used
    for name in used:
        assert f"{name}:" in dark


def panel(plots, title):
    return next(p for p in plots["timelines"]["panels"] if p["title"].startswith(title))


def test_timelines_have_units_objectives_and_few_points(plots, comparison):
    panels = plots["timelines"]["panels"]
    assert len(comparison.policies[0].runs[0].ticks) < POINTS
    assert max(len(trace["y"]) for p in panels for trace in p["traces"]) <= POINTS
    titles = [p["title"] for p in panels]
    for words in ("TTFT p99, s (log scale)", "Batch size, sequences", "Queue, requests waiting"):
        assert words in titles
    assert [f"Replicas of {o.name}" in titles for o in comparison.policies] == [True] * 3
    assert [p["objective"] for p in panels if p["objective"] is not None] == [2.5, 0.075]


def test_a_long_run_is_gathered_into_as_many_points(comparison):
    ticks = comparison["static"].runs[0].ticks
    week = replace(
        ticks,
        **{
            field.name: np.tile(np.asarray(getattr(ticks, field.name)), 30)
            for field in fields(ticks)
            if field.name not in ("at_s", "sentence", "source")
        },
        at_s=np.arange(1, 30 * len(ticks) + 1) * 15.0,
        sentence=ticks.sentence * 30,
        source=ticks.source * 30,
    )
    outcome = comparison["static"]
    runs = (replace(outcome.runs[0], ticks=week),)
    long = replace(comparison, policies=(replace(outcome, runs=runs),), baseline="static")
    found = timelines(long, colours_of(["static"]))
    assert len(week) > POINTS
    assert {len(trace["y"]) for p in found["panels"] for trace in p["traces"] if trace["y"]} == {
        POINTS
    }
    worst = next(p for p in found["panels"] if p["title"].startswith("TTFT"))["traces"][0]
    # No bucket hides the worst tick.
    shown = max(value for value in worst["y"] if value is not None)
    assert shown == pytest.approx(ticks.ttft_p99_s.max(), rel=1e-3)


def test_marks_stand_where_guardrails_spoke(plots, comparison):
    ticks = comparison["r1-1.0.0"].runs[0].ticks
    assert ticks.tripped.sum() > 0
    marks = {
        trace["name"]: len(trace["x"])
        for trace in panel(plots, "Replicas of r1-1.0.0")["traces"]
        if trace["name"].startswith("a ")
    }
    assert marks == {
        "a guardrail tripped": ticks.tripped.sum(),
        "a limit clamped": ticks.clamped.sum(),
    }


def test_every_trace_but_the_load_says_whose_it_is(plots, comparison):
    names = {outcome.name for outcome in comparison.policies}
    for each in plots["timelines"]["panels"]:
        owners = {trace.get("meta") for trace in each["traces"]}
        assert owners <= names or each["title"].startswith("Load")
    assert {trace["meta"] for trace in plots["frontier"]["data"]} == names


def test_the_frontier_holds_the_curves_and_the_means(plots, comparison):
    named = {trace["name"]: trace for trace in plots["frontier"]["data"]}
    for sweep in comparison.tuning.curves.values():
        assert len(named[f"{sweep.policy}, every setting tried"]["x"]) == len(sweep.points)
    for outcome in comparison.policies:
        assert named[outcome.name]["x"] == [outcome.mean("gpu_hours")]


def test_the_frontier_leaves_out_what_costs_more_and_serves_worse(plots, comparison):
    named = {trace["name"]: trace for trace in plots["frontier"]["data"]}
    for sweep in comparison.tuning.curves.values():
        line = named[f"{sweep.policy}, frontier"]
        assert line["x"] == sorted(line["x"])
        assert line["y"] == sorted(set(line["y"]))


def priced(comparison, costs, attainment=0.995):
    """Policies of these GPU hours; whatever else they are."""
    outcome = comparison["static"]
    policies = tuple(
        replace(
            outcome,
            name=name,
            estimates={
                **outcome.estimates,
                "gpu_hours": Estimate(cost, None, None),
                "slo_attainment": Estimate(attainment, None, None),
            },
        )
        for name, cost in costs.items()
    )
    tuning = replace(comparison.tuning, curves={}, sweeps={})
    return replace(comparison, policies=policies, tuning=tuning)


def test_one_dear_policy_does_not_push_the_others_into_a_corner(comparison):
    costs = {"hpa": 100.0, "keda": 110.0, "kpa": 120.0, "planner": 130.0, "schedule": 600.0}
    many = priced(comparison, costs)
    view = cost_view(many, usual(many))
    assert view.outside == ("schedule",)
    assert 80 < view.low < 100 < 130 < view.high < 150
    assert outside_words(many, view) == "Outside this view, in GPU hours, lies schedule at 600.0."
    html = render(many, {"command": "x", "commit": None, "written_at": "", "versions": {}})
    assert "lies schedule at 600.0." in Page(html).text
    assert plots_of(html)["frontier"]["layout"]["xaxis"]["range"] == [view.low, view.high]


def test_a_dear_policy_that_one_looks_at_first_is_inside(comparison):
    many = priced(comparison, {"hpa": 100.0, "keda": 110.0, "kpa": 130.0, "learned": 600.0})
    view = cost_view(many, ["hpa", "learned"])
    assert view.outside == ()
    assert view.high > 600
    assert outside_words(many, view) == ""


def test_policies_that_all_miss_the_goal_are_all_inside(comparison):
    view = cost_view(priced(comparison, {"hpa": 100.0, "keda": 140.0}, attainment=0.5), [])
    assert view.low < 100 < 140 < view.high


def test_each_replica_plot_tells_its_largest_count(plots, comparison):
    for outcome in comparison.policies:
        ticks = outcome.runs[0].ticks
        largest = max(
            ticks.wanted_replicas.max(), (ticks.ready_replicas + ticks.starting_replicas).max()
        )
        assert panel(plots, f"Replicas of {outcome.name}")["most"] == largest


def test_the_page_stays_small(html):
    # plotly.js is most of it: 2.0 MB of 4.8, packed.
    assert len(html) < 2_300_000


def test_the_same_comparison_gives_the_same_page(comparison, html):
    run = provenance("x", comparison.trace, comparison.profile, comparison.config)
    assert render(comparison, run) == render(comparison, run)


def test_without_a_price_the_page_says_how_to_state_one(text, comparison):
    assert "No price is known" in text
    assert "price_per_gpu_hour_usd" in text
    assert "USD" not in text


def test_with_a_price_it_says_what_a_million_tokens_cost(comparison):
    run = replace(comparison.config.run, price_per_gpu_hour_usd=3.0)
    priced = replace(comparison, config=replace(comparison.config, run=run))
    text = Page(render(priced, {"command": "x", "commit": None, "written_at": "", "versions": {}}))
    assert "At USD 3 per GPU hour" in text.text
    assert "per million output tokens" in text.text
    assert "extrapolation" in text.text


def test_settings_stand_beside_their_defaults_and_say_what_was_tuned(text, comparison):
    target = comparison["hpa"].options["target"]
    assert f"target tuned output tokens/s per replica {target:g} 1000" in text
    assert "tolerance 0.1" in text


@pytest.mark.parametrize("replicas", [1, 4])
def test_what_was_tuned_is_shown_whatever_its_default(comparison, replicas):
    sweep = comparison.tuning.sweeps["static"]
    point = replace(sweep.chosen, value=replicas)
    tuned = replace(
        comparison,
        tuning=replace(comparison.tuning, sweeps={"static": replace(sweep, chosen=point)}),
    )
    static = replace(comparison["static"], options={"replicas": replicas})
    changed, _ = setting_rows(tuned, static)
    assert [(row.name, row.value, row.tuned) for row in changed] == [
        ("replicas", str(replicas), True)
    ]


def test_what_was_given_is_shown_whatever_its_default(comparison):
    hpa = replace(comparison["hpa"], options={"tolerance": 0.1, "metric": "qps", "target": 5})
    changed, _ = setting_rows(comparison, hpa)
    shown = {row.name: (row.value, row.unit) for row in changed}
    assert shown["tolerance"] == ("0.1", "")
    assert shown["target"] == ("5", "")  # nobody knows the unit of another metric's target


def test_a_default_that_is_nothing_is_left_out(comparison):
    planner = replace(comparison["hpa"], name="planner", policy="planner", options={"trend": 0.4})
    changed, unchanged = setting_rows(comparison, planner)
    assert [row.name for row in changed] == ["trend"]
    assert "headroom" in (names := [row.name for row in unchanged])
    assert "profile" not in names  # by default the one that is simulated


def test_counts_that_are_the_same_for_all_are_a_sentence_and_no_column(text, comparison):
    (happened,) = (t for t in figure_tables(comparison) if t.title == HAPPENED)
    assert [column.label for column in happened.columns] == ["actions", "clamps", "trips"]
    requests = f"{len(comparison.trace):,} requests, all completed"
    assert f"The same for every policy: {requests}" in text


def test_a_count_that_differs_by_seed_only_stays_a_column(comparison):
    outcomes = []
    for outcome in comparison.policies:
        spread = {**outcome.estimates, "failed": Estimate(2.0, (1.0, 3.0), None)}
        outcomes.append(replace(outcome, estimates=spread))
    happened = figure_tables(replace(comparison, policies=tuple(outcomes)))[-1]
    assert "failed" in [column.label for column in happened.columns]


def test_worst_minutes_link_to_the_timelines(html, comparison):
    links = re.findall(r'<a href="#time" data-plot="timelines" data-policy="([^"]+)"', html)
    missed = [o.name for o in comparison.policies if o.runs[0].ticks.missed.sum()]
    assert sorted(links) == sorted(missed)


def test_four_policies_are_all_shown_and_of_more_the_best_and_the_baseline_first(comparison):
    assert sorted(usual(comparison)) == ["hpa", "r1-1.0.0", "static"]
    many = tuple(
        replace(comparison["static"], name=name) for name in ("keda", "kpa", "wva-v1", "planner")
    )
    shown = usual(replace(comparison, policies=comparison.policies + many))
    assert len(shown) == 3
    assert {"hpa", "r1-1.0.0"} < set(shown)
