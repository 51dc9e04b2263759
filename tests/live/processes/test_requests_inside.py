"""Requests inside an engine: by its own word, by its page, or not known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.live.contract_engine import ContractEngine
from tests.live.fake_engine import FakeEngine
from tuner.engines.engine import Metrics, Replica, Series
from tuner.live.processes.requests_inside import requests_inside


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        engine.load.running, engine.load.waiting = 3, 2
        yield engine


@pytest.fixture
def adapter() -> Iterator[ContractEngine]:
    adapter = ContractEngine()
    yield adapter
    adapter.http.close()


def place(engine: FakeEngine) -> Replica:
    return Replica("r0", engine.url, engine.control_url)


def test_the_engines_own_word_counts_first(engine, adapter):
    adapter.metrics = Metrics("/no-page")
    assert requests_inside(adapter, place(engine)) == 5


@pytest.mark.parametrize("silent", ["control port", "no counts"])
def test_its_page_counts_where_the_engine_does_not_say(engine, adapter, silent, monkeypatch):
    if silent == "control port":
        engine.trouble = "error"
    else:
        state = adapter.read(place(engine))
        monkeypatch.setattr(adapter, "read", lambda _: replace(state, running=None))
    assert requests_inside(adapter, place(engine)) == 5


def test_its_page_may_have_a_port_of_its_own(engine, adapter):
    nowhere = "http://127.0.0.1:9"
    replica = Replica("r0", nowhere, nowhere, metrics_url=engine.url)
    assert requests_inside(adapter, replica) == 5


@pytest.mark.parametrize(
    "metrics",
    [
        Metrics("/metrics"),
        Metrics("/no-page", running=Series("a"), waiting=Series("b")),
        Metrics("/metrics", running=Series("no:such"), waiting=Series("no:such")),
        Metrics(
            "/metrics",
            running=Series("vllm:num_requests_running", {"model_name": "other"}),
            waiting=Series("vllm:num_requests_waiting"),
        ),
    ],
    ids=["no series known", "no page", "not on the page", "of another model"],
)
def test_what_nobody_says_is_not_known(engine, adapter, metrics):
    engine.trouble = "error"
    adapter.metrics = metrics
    assert requests_inside(adapter, place(engine)) is None


def test_an_engine_that_is_gone_has_an_unknown_number(adapter):
    nowhere = Replica("r0", "http://127.0.0.1:9", "http://127.0.0.1:9")
    assert requests_inside(adapter, nowhere) is None


def test_a_page_that_counts_no_number_says_nothing(engine, adapter):
    engine.trouble = "error"
    engine.load.running = float("nan")
    assert requests_inside(adapter, place(engine)) is None
