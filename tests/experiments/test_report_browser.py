"""The report of a real comparison in a real browser, without any network."""

import re
import zlib

import pytest
from rich.console import Console

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from envs.workloads import WORKLOADS
from experiments.compare_command import CompareRequest, compare_to_folder
from experiments.executors import Executor
from experiments.report.colours import FIXED
from experiments.report.document import (
    Document,
    Plot,
    Section,
    Table,
    log_axis,
    series,
    write_document,
)
from tests.browser import Browser
from tuner.data import write_trace

CONFIG = """
seeds: 2
run: {max_replicas: 8, price_per_gpu_hour_usd: 2.5}
sweep: {static_counts: [1, 2], hpa_targets: [1000, 2000], trials: 2}
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A real simulation of an hour and a half, compared and written as `tuner compare` does."""
    folder = tmp_path_factory.mktemp("browser")
    write_trace(WORKLOADS["deepseek-r1-day"](1.5, 3, 0.6), folder / "load.parquet")
    (folder / "compare.yaml").write_text(CONFIG, encoding="utf-8")
    request = CompareRequest(
        trace=folder / "load.parquet",
        profile="deepseek-r1-8xh200-sglang",
        policies=("static", "hpa", "keda"),
        options=("keda.threshold=1",),
        out=folder / "out",
        config=folder / "compare.yaml",
        executor=Executor(jobs=1),
    )
    comparison = compare_to_folder(request, console=Console(quiet=True))
    return comparison, folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser, report):
    """The page, shown once; each test leaves it as it found it."""
    browser.open(report[1])
    return browser


def drawn(browser, plot):
    """Names of the traces that a plot draws."""
    return browser.value(f'document.getElementById("plot-{plot}").data.map((trace) => trace.name)')


def titles(browser):
    """Titles of the panels of the timelines."""
    notes = 'document.getElementById("plot-timelines").layout.annotations'
    return browser.value(f"{notes}.map((note) => note.text)")


def stroke(browser):
    """Colour of the lines of hpa, as the browser paints them."""
    return browser.value(
        """[...document.querySelectorAll("#plot-frontier .trace")]
           .map((trace) => trace.querySelector(".js-line"))
           .map((line) => line && getComputedStyle(line).stroke).filter(Boolean)"""
    )


def test_plots_are_drawn_without_a_complaint_or_a_request(opened, report):
    assert opened.complaints() == []
    assert opened.requests() == [report[1].resolve().as_uri()]
    for name in ("static", "hpa", "keda"):
        assert name in drawn(opened, "frontier")
    # What plotly was given is one thing; that there are marks and lines to be seen is another.
    assert opened.value("document.querySelectorAll('#plot-frontier path.point').length") > 8
    assert opened.value("document.querySelectorAll('#plot-timelines .js-line').length") > 8
    assert opened.value("document.querySelectorAll('.chips .swatch').length") >= 4


def test_a_box_hides_and_shows_its_policy(opened):
    box = """document.querySelector('.chips[data-plot="timelines"] input[value="hpa"]')"""
    assert "Replicas of hpa" in titles(opened)
    opened.value(f"{box}.click()")
    assert "Replicas of hpa" not in titles(opened)
    assert "hpa" not in drawn(opened, "timelines")
    assert "hpa" in drawn(opened, "frontier")
    opened.value(f"{ALL}.click()")
    assert {f"Replicas of {name}" for name in ("static", "hpa", "keda")} < set(titles(opened))
    opened.value(f"{USUAL}.click()")
    assert "Replicas of hpa" in titles(opened)
    assert opened.complaints() == []


def test_replica_plots_have_one_scale_which_follows_those_shown(opened):
    """keda with one request per replica starts several where static holds one."""
    panels = "plots.timelines.panels.filter((panel) => panel.most !== null)"
    most = opened.value(
        f"Object.fromEntries({panels}.map((panel) => [panel.traces[0].meta, panel.most]))"
    )
    opened.value(f"{ALL}.click()")
    assert set(scales(opened)) == {1.25 * max(most.values())}
    box = """document.querySelector('.chips[data-plot="timelines"] input[value="NAME"]')"""
    for name in most:
        if name != "static":
            opened.value(f"{box.replace('NAME', name)}.click()")
    assert most["static"] < max(most.values())
    assert set(scales(opened)) == {1.25 * most["static"]}
    opened.value(f"{USUAL}.click()")


def scales(browser):
    """Upper ends of the axes of the replica plots."""
    return browser.value(
        """(() => {
          const layout = document.getElementById("plot-timelines").layout;
          const titles = layout.annotations.map((title) => title.text);
          return titles
            .map((title, place) => [title, layout[`yaxis${place ? place + 1 : ""}`]])
            .filter(([title]) => title.startsWith("Replicas of"))
            .map(([, axis]) => axis.range[1]);
        })()"""
    )


ALL = """document.querySelector('.chips[data-plot="timelines"] [value="all"]')"""
USUAL = """document.querySelector('.chips[data-plot="timelines"] [value="usual"]')"""
RANGE = """document.getElementById("plot-timelines").layout.xaxis.range"""


def test_a_link_to_the_worst_minutes_zooms_the_timelines_there(opened):
    whole = opened.value(RANGE)
    link = opened.value("""({ ...document.querySelector('a[data-plot="timelines"]').dataset })""")
    box = f"""document.querySelector('.chips[data-plot="timelines"] [value="{link["policy"]}"]')"""
    opened.value(f"{box}.checked && {box}.click()")
    opened.value("""document.querySelector('a[data-plot="timelines"]').click()""")
    assert opened.value(RANGE) == [float(link["from"]), float(link["to"])] != whole
    assert f"Replicas of {link['policy']}" in titles(opened)
    opened.scheme("dark")  # a redraw keeps it
    assert opened.value(RANGE) == [float(link["from"]), float(link["to"])]
    opened.scheme("light")
    opened.value(f"{USUAL}.click()")
    assert opened.value(RANGE) == whole


def test_dark_repaints_page_and_plots(opened):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = stroke(opened), opened.value(paper)
    opened.scheme("dark")
    dark = stroke(opened), opened.value(paper)
    opened.scheme("light")
    assert len(light[0]) == len(dark[0]) >= 2
    assert all(one != other for one, other in zip(light[0], dark[0], strict=True))
    assert light[1] != dark[1]
    assert (stroke(opened), opened.value(paper)) == light
    assert opened.complaints() == []


def test_a_phone_scrolls_down_only(opened):
    opened.resize(390)
    assert opened.value("document.documentElement.scrollWidth") == 390
    width = """document.getElementById("plot-timelines").layout.width"""
    assert opened.value(width) < 390
    opened.resize(1280)


def test_tables_of_figures_fit_without_scrolling(opened):
    wide = "[...document.querySelectorAll('#figures .scroll')].filter((t) => {})"
    assert opened.value(wide.format("t.scrollWidth > t.clientWidth") + ".length") == 0
    assert opened.value(wide.format("true") + ".length") >= 2


def test_no_number_of_a_setting_is_broken_in_two(opened):
    row = "document.querySelector('.settings tbody tr')"
    before = opened.value(f"{row}.innerHTML")
    tuned = 'downscale_<wbr>stabilization_s <span class="tag">tuned</span>'
    opened.value(f"{row}.innerHTML = `<th>{tuned}</th><td>0.047612</td><td>0.1</td>`")
    lines = """[...document.querySelectorAll(".settings td:not(.long)")].map((cell) => {
        const text = document.createRange();
        text.selectNodeContents(cell);
        return new Set([...text.getClientRects()].map((part) => part.top)).size;
    })"""
    for width in (1280, 390):
        opened.resize(width)
        assert set(opened.value(lines)) == {1}
    opened.value(f"{row}.innerHTML = `{before}`")
    opened.resize(1280)


def test_the_goal_is_named_beside_the_plot_where_no_mark_lies(opened):
    box = "document.querySelector('#plot-frontier {}').getBoundingClientRect()"
    label = opened.value(box.format(".annotation-text") + ".left")
    assert label > opened.value(box.format(".bglayer ~ .cartesianlayer .gridlayer") + ".right")
    right = opened.value(box.format(".annotation-text") + ".right")
    assert right <= opened.value(box.format(".main-svg") + ".right")


def test_the_logarithmic_latency_has_more_than_one_label(opened):
    place = titles(opened).index("TTFT p99, s (log scale)") + 1
    found = opened.value(
        f"""[...document.querySelectorAll("#plot-timelines .y{place}tick text")]
            .map((tick) => tick.textContent)"""
    )
    assert len(found) > 1
    assert all(re.fullmatch(r"[125]0*|0\.0*[125]", label) for label in found)


def test_other_pages_are_drawn_too(browser, tmp_path):
    line = {"type": "scatter", "x": [1, 2], "y": [3, 1], "line": {"color": series(0)}}
    plot = Plot("any", {"data": [line], "layout": {"height": 200}})
    page = Document("A page", "Of a plot.", "tuner", "tuner", [Section("One", plots=[plot])])
    write_document(page, tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.complaints() == []
    assert browser.value("document.querySelectorAll('#plot-any .js-line').length") == 1


def test_a_wide_table_can_be_scrolled_on_a_phone_and_shows_it(browser, tmp_path):
    columns = ("figure", *(f"a column {number}" for number in range(6)))
    row = ("step_time.per_prefill_token_s.and.more", *["+15.7 % [+3.2 %, +30.0 %]"] * 6)
    page = Document(
        "A page", "Of a table.", "tuner", "t", [Section("One", tables=[Table(columns, [row])])]
    )
    write_document(page, tmp_path / "page.html")
    browser.open(tmp_path / "page.html", width=390)
    assert browser.value("document.documentElement.scrollWidth") == 390
    place = "document.querySelector('.scroll')"
    assert browser.value(f"{place}.tabIndex") == 0
    assert "gradient" in browser.value(f"getComputedStyle({place}).backgroundImage")
    # What stays in place leaves room for what is scrolled.
    assert browser.value(f"{place}.querySelector('tbody th').offsetWidth") < 390 * 0.45
    right = f"{place}.querySelector('td:last-child').getBoundingClientRect().right"
    assert browser.value(f"{place}.scrollLeft = 1e6, {right}") <= 390


@pytest.mark.parametrize(
    ("drawn", "labels"),
    [
        ([15.0, 1100.0], ["20", "50", "100", "200", "500", "1,000"]),
        ([0.03, 4000.0], ["0.1", "1", "10", "100", "1000", "10k"]),
    ],
    ids=["short", "long"],
)
def test_a_logarithmic_axis_is_labelled_with_whole_values(browser, tmp_path, drawn, labels):
    line = {"type": "scatter", "mode": "markers", "x": [1, 2], "y": drawn}
    layout = {"height": 320, "yaxis": {"title": {"text": "ms"}, **log_axis(drawn)}}
    plots = [Plot("any", {"data": [line], "layout": layout})]
    write_document(Document("P", "p", "t", "t", [Section("One", plots=plots)]), tmp_path / "p.html")
    browser.open(tmp_path / "p.html")
    ticks = (
        "[...document.querySelectorAll('#plot-any .ytick text')].map((tick) => tick.textContent)"
    )
    found = browser.value(ticks)
    assert [tick for tick in found if tick.strip()] == labels


def test_it_prints_light_and_with_its_plots(browser, report):
    browser.open(report[1], dark=True)
    pdf = browser.pdf()
    assert browser.complaints() == []
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 15
    drawing = b"".join(
        zlib.decompressobj().decompress(part)
        for part in re.findall(rb"/FlateDecode.*?stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    )
    # The colour of a line, as PDF writes shares of red, green and blue.
    for name in ("static", "hpa", "keda"):
        assert in_pdf(FIXED[name].light) in drawing
        assert in_pdf(FIXED[name].dark) not in drawing


def in_pdf(colour):
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    texts = [f"{share:.4f}".strip("0").rstrip(".") or "0" for share in shares]
    return f"{' '.join(texts)} RG".encode()
