import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from experiments.compare import compare
from experiments.config import CompareConfig, RunConfig, StatisticsConfig
from experiments.folder import provenance
from experiments.report.colours import FIXED, colours_of, token
from experiments.report.page import render
from experiments.report.timelines import POINTS
from tests.experiments import toy

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


class Page(HTMLParser):
    """Text outside of scripts and styles, elements, and what they fetch."""

    def __init__(self, html):
        super().__init__()
        self.text, self.fetched, self.ids, self.inside = [], [], set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside.append(tag)
        given = dict(attrs)
        self.ids.add(given.get("id"))
        links = [given.get(key) for key in ("src", "href", "srcset", "data")]
        self.fetched += [link for link in links if link and not link.startswith("#")]

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def text(page):
    return " ".join(" ".join(page.text).split())


@pytest.fixture(scope="module")
def plots(html):
    return json.loads(re.search(r'id="plots">(.*?)</script>', html, re.DOTALL)[1])


def test_fetches_nothing_and_lets_nothing_be_fetched(html, page):
    assert page.fetched == []
    assert "default-src 'none'" in html
    assert html.count("<script>") == 2  # plotly.js once, and ours


def test_says_what_ran_from_what_and_how_to_repeat_it(text):
    for words in (
        "busy <day> & night",
        "simulated from the profile toy with the scheduler rules toy-fluid",
        "TTFT ≤ 2.5 s and TPOT ≤ 75 ms",
        "tuner compare --trace 'busy <day>' --out runs/x",
        "ttft mean 12.5 %",
        "invented <for tests> & nothing else",
        "CC0 </script>",
        "The knob threads is pinned: profile toy has no frontend section.",
        "Assumed, not measured: limits.batch_size_max, kv (no origin).",
        "Whatever happens between <two> replicas.",
        "1, 2, 3; sweeps ran seed 0",
        "static was tuned on the very load that is compared here.",
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
    tuning = comparison.tuning
    assert "Each rule's dial on the compared load, with hindsight" in text
    assert "hpa" in tuning.searches
    for found in (*tuning.sweeps.values(), *tuning.searches.values(), *tuning.curves.values()):
        assert f"{found.sentence}." in text


def painted(value):
    """The plot with a real colour for each name of a CSS variable."""
    if isinstance(value, dict):
        return {key: painted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [painted(inner) for inner in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


@pytest.mark.parametrize("name", ["frontier", "timelines"])
def test_plots_are_what_plotly_understands(plots, name):
    from plotly import graph_objects

    figure = graph_objects.Figure(painted(plots[name]))  # raises on an unknown attribute
    assert len(figure.data) > 3


def test_every_colour_of_a_plot_is_defined_in_the_style_sheet(html, plots):
    used = set(re.findall(r"--[a-z0-9-]+", json.dumps(plots)))
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    dark = style[style.rindex("prefers-color-scheme: dark") :] + style
    assert used
    for name in used:
        assert f"{name}:" in dark


def test_timelines_have_units_objectives_and_few_points(plots, comparison):
    layout, data = plots["timelines"]["layout"], plots["timelines"]["data"]
    assert len(comparison.policies[0].runs[0].ticks) > POINTS
    assert max(len(trace["x"]) for trace in data) <= POINTS
    titles = [note["text"] for note in layout["annotations"]]
    assert "TTFT p99, s (log scale)" in titles
    assert "Batch size, sequences" in titles
    assert [f"Replicas of {o.name}" in titles for o in comparison.policies] == [True] * 3
    assert [shape["y0"] for shape in layout["shapes"]] == [2.5, 0.075]


def test_marks_stand_where_guardrails_spoke(plots, comparison):
    ticks = comparison["r1-1.0.0"].runs[0].ticks
    assert ticks.tripped.sum() > 0
    marks = {
        trace["name"]: len(trace["x"])
        for trace in plots["timelines"]["data"]
        if trace["name"].startswith("a ") and trace["x"]
    }
    assert marks == {
        "a guardrail tripped": ticks.tripped.sum(),
        "a limit clamped": ticks.clamped.sum(),
    }


def test_no_bucket_hides_the_worst_tick(plots, comparison):
    name = "static"
    ticks = comparison[name].runs[0].ticks
    axis = plots["timelines"]["layout"]["annotations"].index(
        next(
            note
            for note in plots["timelines"]["layout"]["annotations"]
            if note["text"].startswith("TTFT p99")
        )
    )
    line = next(
        trace
        for trace in plots["timelines"]["data"]
        if trace["yaxis"] == f"y{axis + 1}" and trace["name"] == name
    )
    shown = max(value for value in line["y"] if value is not None)
    assert shown == pytest.approx(ticks.ttft_p99_s.max(), rel=1e-3)


def test_the_frontier_holds_the_curves_and_the_means(plots, comparison):
    named = {trace["name"]: trace for trace in plots["frontier"]["data"]}
    for sweep in comparison.tuning.curves.values():
        assert len(named[f"{sweep.policy}, every setting tried"]["x"]) == len(sweep.points)
    for outcome in comparison.policies:
        assert named[outcome.name]["x"] == [outcome.mean("gpu_hours")]


def test_a_policy_keeps_its_colour_whoever_else_is_compared():
    alone, together = colours_of(["hpa"]), colours_of(["static", "mine", "hpa"])
    assert alone["hpa"] == together["hpa"] == FIXED["hpa"]
    assert together["mine"] not in FIXED.values()
    tokens = [token(name, together) for name in together]
    assert len(set(tokens)) == len(together)


def test_the_page_stays_small(html):
    from plotly.offline import get_plotlyjs

    assert len(html) - len(get_plotlyjs()) < 400_000
