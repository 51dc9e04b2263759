"""Reading metrics pages directly: the format, the window, and replicas that fail one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from threading import Event

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.engine_page import VLLM, Answer, EnginePage, member, serving
from tuner.config import ScrapeConfig
from tuner.core.faults import FaultError, FaultReason
from tuner.engines.engine import Replica
from tuner.live.metrics.fields import fields_of, wanted_names
from tuner.live.metrics.scrape import PageParser, PageSource, ScrapeSource

NAMES = wanted_names(VLLM)


def parsed(text: str, *names: str) -> dict:
    page = PageParser(names).parse(text)
    return dict(zip(page.keys, page.values.tolist(), strict=True))


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("a 1", {}, 1.0),
        ("a{} 1.5e3", {}, 1500.0),
        ('a{b="c"} 2', {"b": "c"}, 2.0),
        ('a{b="c",d="e",} 2', {"b": "c", "d": "e"}, 2.0),
        ('a{b="say \\"}\\" \\\\ and\\nmore"} 3', {"b": 'say "}" \\ and\nmore'}, 3.0),
        ("a\t7", {}, 7.0),
        ("a 7 1700000000000", {}, 7.0),
        ("a 7  ", {}, 7.0),
        ("a 7\r", {}, 7.0),
        ("a +Inf", {}, math.inf),
    ],
    ids=[
        *("bare", "empty labels", "a label", "last comma", "escapes"),
        *("tab", "time", "blanks", "carriage return", "infinity"),
    ],
)
def test_a_line_is_understood_the_first_time_and_the_second(line, labels, value):
    parser = PageParser(["a"])
    for _ in range(2):
        page = parser.parse(f"# TYPE a gauge\n{line}\nb 9\n")
        assert page.keys == (("a", tuple(labels.items())),)
        assert page.values.tolist() == [value]


def test_a_value_that_changes_beside_a_time_is_never_taken_from_memory():
    parser = PageParser(["a"])
    for value in (1.0, 2.0, 3.0):
        assert parser.parse(f"a {value} 1700000000000\n").values.tolist() == [value]


def test_a_whole_page_gives_what_the_client_library_reads():
    page = EnginePage()
    for index in range(20):
        page.finish(ttft_s=0.01 * index, reason="length" if index % 3 else "abort")
    expected = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text())
        for sample in family.samples
        if sample.name in NAMES
    }
    assert parsed(page.text(), *NAMES) == expected
    assert len(expected) > 80


@pytest.mark.parametrize(
    "text",
    ["", "<html><body>It works!</body></html>", '{"data": [1, 2]}', "a one\n"],
    ids=["empty", "HTML", "JSON", "no number"],
)
def test_what_is_no_page_is_refused(text):
    with pytest.raises(ValueError, match=r"no samples|could not convert"):
        parsed(text, "a")


def rows(source: PageSource, url: str, at_s: float, window_s: float = 60.0):
    series, faults = source.look({"r": url}, at_s=at_s, window_s=window_s)
    assert faults == ()
    return {one.name: (one.at_s.tolist(), one.values.tolist()) for one in series}


def test_a_look_keeps_the_samples_of_the_window_and_forgets_older_ones():
    values = iter(range(100))
    with serving(lambda path, headers: Answer(f"a {next(values)}\n".encode())) as url:
        source = PageSource(["a"], timeout_s=5.0, concurrency=2)
        assert rows(source, url, 100.0) == {"a": ([100.0], [0.0])}
        assert rows(source, url, 130.0) == {"a": ([100.0, 130.0], [0.0, 1.0])}
        # (100, 160]: the first one has left.
        assert rows(source, url, 160.0) == {"a": ([130.0, 160.0], [1.0, 2.0])}
        source.close()


def test_a_series_that_appears_later_has_its_own_samples():
    pages = iter(["a 1\n", 'a 2\nb{x="1"} 5\n', 'b{x="1"} 6\na 3\n'])
    with serving(lambda path, headers: Answer(next(pages).encode())) as url:
        source = PageSource(["a", "b"], timeout_s=5.0, concurrency=2)
        rows(source, url, 1.0)
        rows(source, url, 2.0)
        found = rows(source, url, 3.0)
        source.close()
    assert found == {"a": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), "b": ([2.0, 3.0], [5.0, 6.0])}


def test_two_looks_at_an_engine_give_rates_and_quantiles():
    page = EnginePage()
    asked = []

    def answer(path, headers):
        asked.append(path)
        return Answer(page.text().encode())

    with serving(answer) as url:
        source = ScrapeSource(ScrapeConfig(timeout_s=10.0), NAMES, "/metrics")
        members = [member("r0", url)]
        for at_s in (1000.0, 1015.0):
            series = source.samples(NAMES, members, at_s=at_s, window_s=60.0)
            for _ in range(30):
                page.finish(prompt=24, output=16, ttft_s=0.03)
        source.close()
    found = fields_of(series, VLLM, at_s=1015.0).values
    assert asked == ["/metrics", "/metrics"]
    assert found["output_tokens_per_s"] == pytest.approx(30 * 16 / 15)
    assert found["error_rate"] == 0.0
    assert 0.02 < found["ttft_p50_s"] <= 0.04


BROKEN = {
    "500": (Answer(b"oops", 500), FaultReason.SERVER_ERROR, "answered 500"),
    "401": (Answer(b"", 401), FaultReason.UNAUTHORIZED, "answered 401"),
    "404": (Answer(b"", 404), FaultReason.NOT_FOUND, "answered 404"),
    "redirect": (Answer(b"", 302, {"Location": "/x"}), FaultReason.BAD_ANSWER, "answered 302"),
    "HTML": (Answer(b"<html>"), FaultReason.BAD_ANSWER, "no metrics page"),
    "another engine": (Answer(b"other_metric 1\n"), FaultReason.NO_SERIES, "another engine"),
    "no number": (
        Answer(b"vllm:num_requests_running many\n"),
        FaultReason.BAD_ANSWER,
        "no metrics page",
    ),
    "hangs up": (None, FaultReason.UNREACHABLE, "nothing answers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_broken_replica_is_one_fault_and_the_others_are_read(case):
    broken, reason, words = BROKEN[case]
    good = Answer(EnginePage().text().encode())
    with serving(lambda path, headers: broken if path.startswith("/bad") else good) as url:
        source = ScrapeSource(ScrapeConfig(timeout_s=10.0), NAMES, "/metrics")
        members = [member("r0", url), member("r1", f"{url}/bad"), member("r2", url)]
        found = source.samples(NAMES, members, at_s=1.0, window_s=60.0)
        source.close()
    assert {one.replica for one in found} == {"r0", "r2"}
    (fault,) = source.missed
    assert (fault.where, fault.reason) == ("r1", reason)
    assert words in fault.sentence


def test_replicas_that_hang_cost_the_others_nothing_and_are_asked_last_the_next_time():
    release = Event()
    good = Answer(EnginePage().text().encode())

    def answer(path, headers):
        if path.startswith("/hung"):
            release.wait(60)
        return good

    with serving(answer) as url:
        source = ScrapeSource(ScrapeConfig(timeout_s=0.5, concurrency=1), NAMES, "/metrics")
        hung = [member(f"a{index}", f"{url}/hung") for index in range(3)]
        members = [*hung, member("z", url)]
        with pytest.raises(FaultError):
            source.samples(NAMES, members, at_s=1.0, window_s=60.0)
        # One after the other they used the whole batch: z was never asked, and says so.
        told = {fault.where: fault for fault in source.missed}
        assert set(told) == {one.name for one in members}
        assert "was not asked" in told["z"].sentence
        found = source.samples(NAMES, members, at_s=2.0, window_s=60.0)
        release.set()
        source.close()
    assert {one.replica for one in found} == {"z"}


def test_only_replicas_that_serve_are_read():
    asked = []

    def answer(path, headers):
        asked.append(path)
        return Answer(EnginePage().text().encode())

    with serving(answer) as url:
        source = ScrapeSource(ScrapeConfig(timeout_s=10.0), NAMES, "/metrics")
        members = [
            member(state, f"{url}/{state}", state)
            for state in ("pending", "starting", "warming", "ready", "draining")
        ]
        source.samples(NAMES, members, at_s=1.0, window_s=60.0)
        source.close()
    assert sorted(asked) == ["/draining/metrics", "/ready/metrics"]


def test_a_page_on_a_port_of_its_own_is_read_there():
    good = Answer(EnginePage().text().encode())
    with (
        serving(lambda path, headers: Answer(b"", 404)) as api,
        serving(lambda path, headers: good) as metrics,
    ):
        source = ScrapeSource(ScrapeConfig(timeout_s=10.0), NAMES, "/metrics")
        replica = Replica("r0", api, api, metrics_url=metrics)
        members = [replace(member("r0"), replica=replica)]
        found = source.samples(NAMES, members, at_s=1.0, window_s=60.0)
        source.close()
    assert source.missed == ()
    assert {one.replica for one in found} == {"r0"}


def test_a_proxy_of_the_environment_is_not_asked_for_a_neighbours_page(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(lambda path, headers: Answer(EnginePage().text().encode())) as url:
        source = ScrapeSource(ScrapeConfig(timeout_s=10.0), NAMES, "/metrics")
        found = source.samples(NAMES, [member("r0", url)], at_s=1.0, window_s=60.0)
        source.close()
    assert {one.replica for one in found} == {"r0"}


def test_no_replica_that_serves_is_a_fault_of_its_own():
    source = ScrapeSource(ScrapeConfig(), NAMES, "/metrics")
    with pytest.raises(FaultError) as error:
        source.samples(NAMES, [member("r0", state="starting")], at_s=1.0, window_s=60.0)
    source.close()
    assert error.value.fault.reason is FaultReason.NOT_READY
