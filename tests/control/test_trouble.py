"""The whole controller over real sockets, allowed to act, while something outside is wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from tests.control.whole import Ended
from tests.engines.fakes.sglang import FakeSglang
from tests.live.engine_page import Answer, serving
from tests.live.fake_engine import FakeEngine, Trouble

WANTED = {"fallback": "static", "fallback_options": {"batch_size": 16}}
"""Whoever decides wants the same, so that every tick wants to write."""


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeEngine(name=f"e{i}")) for i in range(2)]


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return f"http://127.0.0.1:{gone.getsockname()[1]}"


@pytest.mark.parametrize(
    ("trouble", "reason", "words"),
    [
        ("hang", "TimedOut", "within 0.5 s"),
        ("error", "ServerError", "500"),
        ("garbage", "BadAnswer", "expected JSON"),
    ],
    ids=["hung", "500", "no JSON"],
)
def test_an_engine_in_trouble_is_a_verdict_a_figure_and_a_sentence(
    tmp_path: Path, engines: list[FakeEngine], trouble: Trouble, reason: str, words: str
) -> None:
    for engine in engines:
        engine.trouble = trouble
    ended = Ended(tmp_path, engines)
    assert ended.went_well()
    assert ended.nothing_was_written()
    assert [str(stored.decision.source) for stored in ended.decisions] == ["hold", "hold"]
    assert ended.faults("read", reason, "replica") > 0
    assert words in ended.sentences


def test_a_lost_answer_to_a_change_is_read_back_and_the_change_sent_once(
    tmp_path: Path, engines: list[FakeEngine]
) -> None:
    seen: list[int] = []

    def lose() -> None:
        seen.append(engines[0].batch_size)
        engines[0].trouble = "lost answer" if len(seen) == 1 else ""

    ended = Ended(tmp_path, engines, before_apply=lose, **WANTED)
    assert ended.went_well()
    assert seen == [32, 16]
    for engine in engines:
        asked = [body["reason"] for body in engine.patches if not body.get("dry_run")]
        assert asked == ["decision", "renewal", "release"]


def test_a_replica_killed_within_a_tick_is_a_fault_and_the_other_is_set_and_given_back(
    tmp_path: Path, engines: list[FakeEngine]
) -> None:
    def kill() -> None:
        engines[1].trouble = "closed"
        seen.append(engines[0].batch_size)

    seen: list[int] = []
    ended = Ended(tmp_path, engines, before_apply=kill, **WANTED)
    assert ended.went_well()
    assert seen == [32, 16]
    assert engines[0].batch_size == 32
    assert ended.faults("write", "OutcomeUnknown", "replica") == 1
    assert "e1" in ended.sentences


def test_an_agreement_that_is_a_refusal_is_told_and_nothing_moves(tmp_path: Path) -> None:
    fake = FakeSglang()
    fake.refusing = {0}
    section = {"endpoints": [{"name": "e0", "url": fake.server.url}]}
    engine = {"kind": "sglang", "timeout_s": 2.0}
    ended = Ended(tmp_path, [], engine=engine, processes=section, **WANTED)
    fake.close()
    assert ended.went_well()
    assert fake.caps == [32]
    refused = [f for s in ended.decisions for f in s.record.receipt.faults]
    assert {fault.knob for fault in refused} == {"batch_size"}
    assert "batch_size" in ended.sentences
    assert 'tuner_actuations_total{knob="batch_size",outcome="applied"' not in ended.page


def held_without_metrics(ended: Ended, reason: str) -> None:
    """Whatever is wrong with Prometheus ends so."""
    assert ended.went_well()
    assert ended.nothing_was_written()
    for stored in ended.decisions:
        assert str(stored.decision.source) == "hold"
        assert [verdict.reason.name for verdict in stored.decision.trips] == ["MetricsMissing"]
    assert ended.faults("read", reason, "prometheus") >= 2
    assert any(line["where"] == "prometheus" for line in ended.of("fault"))


def test_a_prometheus_that_is_down_leaves_everything_as_it_is(
    tmp_path: Path, engines: list[FakeEngine], nobody: str
) -> None:
    config = {"url": nobody, "timeout_s": 0.5}
    held_without_metrics(Ended(tmp_path, engines, scrape=..., prometheus=config), "Unreachable")


def test_a_prometheus_that_hangs_leaves_everything_as_it_is(
    tmp_path: Path, engines: list[FakeEngine]
) -> None:
    over = Event()

    def hang(path: str, headers: object) -> Answer:
        over.wait(30.0)
        return Answer(b"")

    with serving(hang) as url:
        config = {"url": url, "timeout_s": 0.3}
        ended = Ended(tmp_path, engines, scrape=..., prometheus=config)
        over.set()
    held_without_metrics(ended, "TimedOut")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"<html>welcome</html>", 200, "BadAnswer"),
        (b'{"status": "success", "data": []}', 200, "BadAnswer"),
        (b'{"status": "success", "data": {"result": [{"metric": 1}]}}', 200, "BadAnswer"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', 200, "NoSeries"),
        (b'{"status": "error", "error": "too many samples"}', 500, "ServerError"),
        (b"no", 401, "Unauthorized"),
    ],
    ids=["HTML", "other JSON", "no series in it", "empty", "500", "401"],
)
def test_a_prometheus_that_says_nothing_of_use_leaves_everything_as_it_is(
    tmp_path: Path, engines: list[FakeEngine], body: bytes, status: int, reason: str
) -> None:
    def answer(*_: object) -> Answer:
        return Answer(body, status)

    with serving(answer) as url:
        config = {"url": url, "timeout_s": 2.0}
        ended = Ended(tmp_path, engines, scrape=..., prometheus=config)
    held_without_metrics(ended, reason)
