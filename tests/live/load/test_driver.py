"""The load driver against a real streaming server whose truth is known."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.scripted_engine import Behaviour, ScriptedEngine
from tests.ports import free_port
from tuner.core.errors import ConfigError
from tuner.core.trace import Trace
from tuner.live.load.driver import LoadOptions, LoadRun, plan_of, prompt_of
from tuner.live.load.endpoints import Endpoints
from tuner.live.load.page import LoadPage
from tuner.live.load.report import summarise, warnings, write


def trace_of(*rows: tuple[float, int, int]) -> Trace:
    """From (arrival_s, prompt_tokens, output_tokens)."""
    arrival_s, prompt, output = zip(*rows, strict=True)
    return Trace(
        np.array(arrival_s, np.float64), np.array(prompt, np.int32), np.array(output, np.int32)
    )


MIXED = trace_of(*[(0.01 * i, 5 + i % 7, 1 + i % 5) for i in range(40)])


def load(
    trace: Trace,
    *urls: str,
    file: Path | None = None,
    page: LoadPage | None = None,
    **options: object,
) -> LoadRun:
    chosen = LoadOptions(**{"timeout_s": 20.0, **options})
    run = LoadRun(plan_of(trace, chosen), Endpoints(urls, file=file), chosen, page or LoadPage())
    run.run()
    return run


def values_on(page: str) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    "otherwise",
    [
        pytest.param(Behaviour(), id="a token per chunk, counted along"),
        pytest.param(Behaviour(usage=False), id="counted at the end only"),
        pytest.param(Behaviour(per_chunk=3), id="several tokens per chunk"),
        pytest.param(Behaviour(text=""), id="tokens without text"),
        pytest.param(Behaviour(text="\u2028\x85"), id="line separators inside the text"),
        pytest.param(Behaviour(per_chunk=3, usage=False), id="several tokens, counted at the end"),
    ],
)
def test_counts_and_tokens_equal_the_servers(otherwise):
    with ScriptedEngine(otherwise=otherwise) as engine:
        run = load(MIXED, engine.url)
    summary = summarise(run, trace="mixed")
    assert summary["sent"] == summary["finished"] == engine.truth.requests == 40
    assert summary["failed"] == {}
    assert summary["short_answers"] == 0
    assert engine.truth.prompt_tokens == MIXED.prompt_tokens.sum()
    assert summary["tokens"]["prompt_counted"] == engine.truth.prompt_tokens
    assert summary["tokens"]["output_received"] == engine.truth.output_tokens
    assert engine.truth.output_tokens == MIXED.output_tokens.sum()


def test_asks_for_exactly_the_tokens_of_the_trace():
    with ScriptedEngine() as engine:
        load(trace_of((0.0, 9, 4)), engine.url)
    (body,) = engine.truth.bodies
    assert body["model"] == "scripted"
    assert body["max_tokens"] == body["min_tokens"] == 4
    assert body["ignore_eos"] is True
    assert body["stream"] is True
    assert len(body["prompt"]) == 9
    assert all(3 <= token <= 255 for token in body["prompt"])


def test_prompts_repeat_with_the_seed_and_differ_between_requests():
    one, other = LoadOptions(seed=1), LoadOptions(seed=2)
    assert prompt_of(50, one, 0) == prompt_of(50, one, 0)
    assert prompt_of(50, one, 0) != prompt_of(50, one, 1)
    assert prompt_of(50, one, 0) != prompt_of(50, other, 0)
    words = prompt_of(50, LoadOptions(prompt="text"), 0)
    assert isinstance(words, str)
    assert len(words.split()) == 50


def test_first_token_and_gaps_are_those_of_the_script():
    slow = Behaviour(first_s=0.3, gap_s=0.1)
    with ScriptedEngine(otherwise=slow) as engine:
        run = load(trace_of((0.0, 5, 4)), engine.url)
    answer = run.rows[0].answer
    # Below by the script; above only so far that a wrong unit or a lost wait shows.
    assert 0.3 <= answer.ttft_s < 10.0
    assert len(answer.gaps_s) == 3
    assert answer.e2e_s >= 0.6
    assert sum(answer.gaps_s) == pytest.approx(answer.e2e_s - answer.ttft_s, rel=1e-4)
    assert answer.tpot_s == pytest.approx((answer.e2e_s - answer.ttft_s) / 3)


def test_a_late_answer_delays_no_later_request():
    # A closed loop would wait for the first answer, which waits for the third request.
    with ScriptedEngine(otherwise=Behaviour(after=3)) as engine:
        run = load(trace_of((0.0, 5, 1), (0.1, 5, 1), (0.2, 6, 1)), engine.url, timeout_s=15.0)
    assert [row.answer.outcome for row in run.rows] == ["finished"] * 3


@pytest.mark.parametrize(
    ("does", "expected", "tokens"),
    [
        pytest.param(Behaviour(status=500), "http_500", 0, id="500"),
        pytest.param(Behaviour(status=503), "http_503", 0, id="503"),
        pytest.param(Behaviour(hang=True), "timed_out", 0, id="hangs"),
        pytest.param(Behaviour(gap_s=30.0), "timed_out", 1, id="hangs in mid-stream"),
        pytest.param(Behaviour(drop_after=2), "dropped", 2, id="cut in mid-stream"),
        pytest.param(Behaviour(error_after=2), "engine_error", 2, id="error in mid-stream"),
        pytest.param(Behaviour(garbage=True), "bad_answer", 0, id="not the API"),
    ],
)
def test_each_failure_is_counted_as_its_kind(does, expected, tokens):
    with ScriptedEngine({6: does}) as engine:
        trace = trace_of((0.0, 5, 3), (0.0, 6, 3), (0.0, 7, 3))
        timeout_s = 3.0 if expected == "timed_out" else 30.0
        run = load(trace, engine.url, timeout_s=timeout_s)
    assert [row.answer.outcome for row in run.rows] == ["finished", expected, "finished"]
    assert run.rows[1].answer.output_tokens == tokens
    summary = summarise(run, trace="t")
    assert summary["sent"] == 3
    assert summary["finished"] == 2
    assert summary["failed"] == {expected: 1}


def test_a_port_where_nothing_listens_is_refused():
    run = load(trace_of((0.0, 5, 3)), f"http://127.0.0.1:{free_port()}", model="m")
    assert run.rows[0].answer.outcome == "refused"


def test_the_address_with_the_fewest_requests_in_flight_is_next():
    endpoints = Endpoints(["http://a:1", "http://b:1"])
    a, b = endpoints.pick(), None
    a.in_flight, a.sent = 1, 1
    b = endpoints.pick()
    assert (a.url, b.url) == ("http://a:1", "http://b:1")
    b.in_flight, b.sent = 2, 2
    assert endpoints.pick() is a
    a.in_flight = b.in_flight = 1
    assert endpoints.pick() is a  # of equals the one that has had fewer


def test_several_addresses_share_the_load():
    with ScriptedEngine(otherwise=Behaviour(after=99)) as stuck, ScriptedEngine() as free:
        trace = trace_of(*[(0.02 * i, 5, 1) for i in range(20)])
        run = load(trace, stuck.url, free.url, timeout_s=2.0, model="m")
    by_url = summarise(run, trace="t")["by_url"]
    assert sum(by_url.values()) == 20
    assert 1 <= by_url[stuck.url] <= by_url[free.url]


def test_follows_the_endpoints_file_and_leaves_requests_where_they_are(tmp_path):
    file = tmp_path / "endpoints.json"
    with ScriptedEngine(otherwise=Behaviour(gap_s=0.5)) as first, ScriptedEngine() as second:
        file.write_text(json.dumps([first.url]))
        # The first one lasts for 4 s, and is under way when the list changes.
        trace = trace_of((0.0, 5, 9), *[(3.0 + 0.05 * i, 5, 1) for i in range(10)])

        def move() -> None:
            first.wait_for(1)
            part = tmp_path / "part"
            part.write_text(json.dumps([second.url]))
            part.replace(file)

        mover = threading.Thread(target=move)
        mover.start()
        run = load(trace, file=file, model="m")
        mover.join()
    assert all(row.answer.failure is None for row in run.rows)
    assert run.rows[0].url == first.url
    assert {row.url for row in run.rows[1:]} == {second.url}


def test_a_broken_endpoints_file_leaves_the_list_in_use_and_is_told(tmp_path):
    file = tmp_path / "endpoints.json"

    def write_at(text: str, at_s: int) -> None:
        file.write_text(text)
        os.utime(file, (at_s, at_s))  # two writes can fall into one tick of the file system

    write_at('["http://127.0.0.1:1/"]', 1)
    endpoints = Endpoints(file=file)
    write_at('["http://127.0.0.1:1", ', 2)
    endpoints.refresh()
    assert endpoints.urls == ("http://127.0.0.1:1",)
    assert "is not JSON" in endpoints.trouble
    write_at('["http://127.0.0.1:2"]', 3)
    endpoints.refresh()
    assert endpoints.urls == ("http://127.0.0.1:2",)
    assert endpoints.trouble is None


def test_an_empty_endpoints_file_sends_nothing_and_counts_it(tmp_path):
    file = tmp_path / "endpoints.json"
    file.write_text("[]")
    run = load(trace_of((0.0, 5, 1), (0.0, 5, 1)), file=file, model="m")
    summary = summarise(run, trace="t")
    assert summary["sent"] == 0
    assert summary["not_sent"] == {"no_endpoint": 2}


def test_what_is_over_the_bound_is_not_sent_and_said():
    with ScriptedEngine(otherwise=Behaviour(after=99)) as engine:
        chosen = LoadOptions(model="m", max_in_flight=2)
        run = LoadRun(
            plan_of(trace_of(*[(0.0, 5, 1)] * 5), chosen),
            Endpoints([engine.url]),
            chosen,
            LoadPage(),
            told=lambda run: run.stop() if len(run.rows) == 3 else None,
        )
        run.run()
    summary = summarise(run, trace="t")
    assert summary["sent"] == 2
    assert summary["not_sent"] == {"not_sent": 3}
    assert engine.truth.requests <= 2
    assert any("3 requests of the trace were not sent" in line for line in warnings(summary, run))


def test_the_page_counts_requests_when_they_are_sent():
    with (
        ScriptedEngine({6: Behaviour(hang=True), 7: Behaviour(status=500)}) as engine,
        LoadPage(port=0) as page,
    ):
        chosen = LoadOptions(model="m", timeout_s=30.0)
        trace = trace_of((0.0, 5, 3), (0.0, 6, 3), (0.0, 7, 3))
        run = LoadRun(plan_of(trace, chosen), Endpoints([engine.url]), chosen, page)
        thread = threading.Thread(target=run.run)
        thread.start()
        seen = {}
        for _ in range(600):
            with urlopen(page.url, timeout=5) as answer:
                seen = values_on(answer.read().decode())
            if seen.get("tuner_load_failed_totalhttp_500") and seen["tuner_load_finished_total"]:
                break
            thread.join(0.05)
        run.stop()
        thread.join(10)
    assert seen["tuner_load_requests_total"] == 3
    assert seen["tuner_load_in_flight"] == 1
    assert seen["tuner_load_finished_total"] == 1
    assert seen["tuner_load_prompt_tokens_total"] == 5
    assert seen["tuner_load_output_tokens_total"] == 3
    assert [row.answer.outcome for row in run.rows] == ["finished", "interrupted", "http_500"]
    summary = summarise(run, trace="t")
    assert summary["interrupted"]
    assert summary["failed"] == {"http_500": 1, "interrupted": 1}


def test_a_stopped_run_sends_no_more():
    with ScriptedEngine() as engine:
        chosen = LoadOptions(model="m")
        trace = trace_of((0.0, 5, 1), (3600.0, 5, 1))
        run: LoadRun = LoadRun(
            plan_of(trace, chosen),
            Endpoints([engine.url]),
            chosen,
            LoadPage(),
            told=lambda run: run.stop(),
        )
        run.run()
    assert engine.truth.requests == 1
    assert [row.answer.outcome for row in run.rows] == ["finished"]


@pytest.mark.parametrize(
    ("options", "due_s"),
    [
        pytest.param({}, [0.0, 2.0, 4.0, 8.0], id="the first is due at once"),
        pytest.param({"speed": 2.0}, [0.0, 1.0, 2.0, 4.0], id="twice as fast"),
        pytest.param({"limit": 2}, [0.0, 2.0], id="the first two"),
        pytest.param({"duration_s": 4.0}, [0.0, 2.0], id="four seconds, the fourth excluded"),
        pytest.param({"speed": 4.0, "duration_s": 1.5}, [0.0, 0.5, 1.0], id="of real time"),
    ],
)
def test_the_plan_is_the_trace_in_real_time(options, due_s):
    trace = trace_of((10.0, 5, 1), (12.0, 5, 1), (14.0, 5, 1), (18.0, 5, 1))
    assert plan_of(trace, LoadOptions(**options)).due_s.tolist() == due_s


def test_lengths_are_cut_only_when_asked_and_it_is_said():
    trace = trace_of((0.0, 5, 100), (0.0, 50, 1))
    whole = plan_of(trace, LoadOptions())
    assert whole.prompt_tokens.tolist() == [5, 50]
    assert whole.output_tokens.tolist() == [100, 1]
    assert whole.clipped_prompts == whole.clipped_outputs == 0
    with ScriptedEngine() as engine:
        run = load(trace, engine.url, max_prompt_tokens=20, max_output_tokens=10)
    assert engine.truth.prompt_tokens == 25
    assert engine.truth.output_tokens == 11
    summary = summarise(run, trace="t")
    assert summary["clipped"] == {"prompts": 1, "outputs": 1}
    assert sum("were cut" in line for line in warnings(summary, run)) == 2


def test_a_driver_that_is_late_says_so():
    with ScriptedEngine() as engine:
        run = load(trace_of((0.0, 5, 1)), engine.url)
    summary = summarise(run, trace="t")
    calm = {**summary, "dispatch_lag_s": {"p99": 0.001}, "ttft_s": {"p50": 1.0}}
    late = {**summary, "dispatch_lag_s": {"p99": 0.2}, "ttft_s": {"p50": 1.0}}
    assert not any("late" in line for line in warnings(calm, run))
    assert any("0.2 s at the 99th percentile" in line for line in warnings(late, run))


def test_the_folder_holds_a_row_per_request_and_the_summary(tmp_path):
    with ScriptedEngine({6: Behaviour(status=500)}) as engine:
        run = load(trace_of((0.0, 5, 3), (0.0, 6, 3), (0.1, 7, 1)), engine.url)
    summary = summarise(run, trace="t.parquet")
    write(tmp_path / "deep" / "run", run, summary)
    rows = pq.read_table(tmp_path / "deep" / "run" / "requests.parquet").to_pylist()
    assert [row["outcome"] for row in rows] == ["finished", "http_500", "finished"]
    assert [row["request"] for row in rows] == [0, 1, 2]
    assert len(rows[0]["itl_s"]) == 2
    assert rows[1]["itl_s"] == []
    assert rows[1]["ttft_s"] is None
    assert rows[1]["http_status"] == 500
    assert rows[2]["tpot_s"] is None  # one token has none
    told = json.loads((tmp_path / "deep" / "run" / "summary.json").read_text())
    assert told == summary
    assert told["ttft_s"]["p50"] > 0


@pytest.mark.parametrize(
    ("urls", "file", "message"),
    [
        pytest.param((), None, "give --url", id="none"),
        pytest.param(("127.0.0.1:8000",), None, "is no address", id="no scheme"),
        pytest.param(("http://127.0.0.1:65536",), None, "is no address", id="no such port"),
        pytest.param(("http://127.0.0.1:0",), None, "is no address", id="port 0"),
        pytest.param(("http://[::1:80",), None, "is no address", id="open bracket"),
        pytest.param((), Path("missing.json"), "No such file", id="no such file"),
    ],
)
def test_what_cannot_be_an_address_is_refused(urls, file, message):
    with pytest.raises(ConfigError, match=message):
        Endpoints(urls, file=file)


def test_without_a_model_anywhere_the_next_move_is_said():
    with pytest.raises(ConfigError, match="name the model with --model"):
        load(trace_of((0.0, 5, 3)), f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("name", ["speed", "limit", "duration_s", "max_in_flight", "timeout_s"])
def test_options_that_are_not_above_zero_are_refused(name):
    with pytest.raises(ConfigError, match="expected a number above 0"):
        LoadOptions(**{name: 0})
