"""The Prometheus source against real sockets: what it asks, and how each way to fail ends."""

from __future__ import annotations

import json
import socket
import time
from threading import Event, Thread
from urllib.parse import parse_qs, urlparse

import pytest

from tests.live.engine_page import Answer, serving
from tuner.config import PrometheusConfig
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError, FaultReason
from tuner.live.metrics.prometheus import PrometheusSource, escaped, selecting

MATRIX = {
    "status": "success",
    "data": {
        "resultType": "matrix",
        "result": [
            {
                "metric": {"__name__": "up_total", "pod": "r-0", "engine": "0"},
                "values": [[40, "1"], [55, "2"], [70.5, "3.5"], [85, "+Inf"]],
            }
        ],
    },
}


def source(url: str, **config: object) -> PrometheusSource:
    return PrometheusSource(PrometheusConfig(url=url, **config))  # type: ignore[arg-type]


def ask(source_: PrometheusSource):
    return source_.samples(["up_total", "down_total"], (), at_s=100.0, window_s=60.0)


def test_one_question_brings_the_raw_samples_of_the_window():
    asked = []

    def answer(path, headers):
        asked.append(parse_qs(urlparse(path).query))
        return Answer(json.dumps(MATRIX).encode())

    with serving(answer) as url:
        (found,) = ask(source(f"{url}/", selector={"app": 'r"1'}))
    (query,) = asked
    assert query["query"] == ['{__name__=~"down_total|up_total", app="r\\"1"}[60000ms]']
    assert query["time"] == ["100.000"]
    assert found.name == "up_total"
    assert found.replica == "r-0"
    assert dict(found.labels) == {"pod": "r-0", "engine": "0"}
    # The sample at 40 lies on the window's border, outside.
    assert found.at_s.tolist() == [55.0, 70.5, 85.0]
    assert found.values.tolist() == [2.0, 3.5, float("inf")]


def test_the_token_is_read_anew_for_every_question_and_never_shown(tmp_path):
    seen = []

    def answer(path, headers):
        seen.append(headers["Authorization"])
        return Answer(json.dumps(MATRIX).encode() if len(seen) < 3 else b"", 200)

    token = tmp_path / "token"
    with serving(answer) as url:
        asking = source(url, token_file=str(token))
        for secret in ("first-secret", "second-secret\n"):
            token.write_text(secret)
            ask(asking)
        with pytest.raises(FaultError) as error:
            ask(asking)
        token.unlink()
        with pytest.raises(FaultError) as unreadable:
            ask(asking)
    assert seen == ["Bearer first-secret", "Bearer second-secret", "Bearer second-secret"]
    assert "secret" not in str(error.value) + repr(asking) + repr(vars(asking))
    assert unreadable.value.fault.reason is FaultReason.UNAUTHORIZED
    assert "cannot be read" in str(unreadable.value)


REFUSALS = {
    "HTML": (Answer(b"<html>hello</html>"), FaultReason.BAD_ANSWER, "not JSON"),
    "nothing in it": (Answer(b""), FaultReason.BAD_ANSWER, "not JSON"),
    "JSON of another kind": (Answer(b'{"a": 1}'), FaultReason.BAD_ANSWER, "without data.result"),
    "a JSON list": (Answer(b"[1]"), FaultReason.BAD_ANSWER, "without data.result"),
    "result is an object": (
        Answer(b'{"data": {"result": {"a": 1}}}'),
        FaultReason.BAD_ANSWER,
        "not a list",
    ),
    "a vector": (
        Answer(b'{"data": {"result": [{"metric": {"__name__": "a"}, "value": [1, "2"]}]}}'),
        FaultReason.BAD_ANSWER,
        "no name, labels or samples",
    ),
    "a value that is no number": (
        Answer(b'{"data": {"result": [{"metric": {"__name__": "a"}, "values": [[1, "x"]]}]}}'),
        FaultReason.BAD_ANSWER,
        "no name, labels or samples",
    ),
    "no series": (
        Answer(b'{"status": "success", "data": {"resultType": "matrix", "result": []}}'),
        FaultReason.NO_SERIES,
        "are the pods scraped",
    ),
    "400": (
        Answer(b'{"status": "error", "error": "parse error at char 3"}', 400),
        FaultReason.INVALID,
        "parse error at char 3",
    ),
    "401": (Answer(b"Unauthorized", 401), FaultReason.UNAUTHORIZED, "token_file"),
    "403": (Answer(b"", 403), FaultReason.FORBIDDEN, "answered 403"),
    "404": (Answer(b"404 page", 404), FaultReason.NOT_FOUND, "prometheus.url"),
    "422": (
        Answer(b'{"error": "query processing would load too many samples"}', 422),
        FaultReason.INVALID,
        "too many samples",
    ),
    "500": (Answer(b"[1, 2]", 500), FaultReason.SERVER_ERROR, "answered 500"),
    "503": (Answer(b"starting", 503), FaultReason.SERVER_ERROR, "answered 503"),
    "its own time-out": (
        Answer(b'{"error": "query timed out in expression evaluation"}', 503),
        FaultReason.TIMED_OUT,
        "query timed out",
    ),
    "hangs up": (None, FaultReason.UNREACHABLE, "nothing answers"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_answer_is_a_fault_with_its_reason(case):
    answer, reason, words = REFUSALS[case]
    asked = []
    with (
        serving(lambda path, headers: asked.append(path) or answer) as url,
        pytest.raises(FaultError) as error,
    ):
        ask(source(url))
    fault = error.value.fault
    assert (fault.where, fault.reason) == ("prometheus", reason)
    assert words in fault.sentence
    assert url in fault.sentence
    # Never repeated within a look.
    assert len(asked) == 1


def test_a_server_that_is_down_is_unreachable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(FaultError) as error:
        ask(source(f"http://127.0.0.1:{port}"))
    assert error.value.fault.reason is FaultReason.UNREACHABLE
    assert "refused" in error.value.fault.sentence


def test_a_host_that_does_not_exist_is_unreachable():
    with pytest.raises(FaultError) as error:
        ask(source("http://no-such-host.invalid:9090"))
    assert error.value.fault.reason is FaultReason.UNREACHABLE


def test_a_server_that_says_nothing_is_timed_out_and_waited_for_once():
    done = Event()
    asked = []

    def answer(path, headers):
        asked.append(path)
        done.wait(30)
        return Answer(b"")

    with serving(answer) as url:
        began_s = time.monotonic()
        with pytest.raises(FaultError) as error:
            ask(source(url, timeout_s=0.2))
        waited_s = time.monotonic() - began_s
        done.set()
    assert error.value.fault.reason is FaultReason.TIMED_OUT
    assert len(asked) == 1
    # It would be 30 s; even a starved machine tells that apart from one time-out.
    assert waited_s < 15.0


def test_a_server_that_trickles_is_timed_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                try:
                    while not stop.wait(0.05):
                        connection.sendall(b" ")
                except OSError:
                    return  # the other side has gone, as it should

        thread = Thread(target=trickle, daemon=True)
        thread.start()
        try:
            with pytest.raises(FaultError) as error:
                ask(source(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.3))
        finally:
            stop.set()
            thread.join(10)
    assert error.value.fault.reason is FaultReason.TIMED_OUT


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"resultType": "vector", "result": [{"metric": {}, "value": [1, "2.5"]}]}, 2.5),
        ({"resultType": "scalar", "result": [1, "7"]}, 7.0),
        ({"resultType": "vector", "result": []}, FaultReason.NO_SERIES),
        (
            {
                "resultType": "vector",
                "result": [{"metric": {}, "value": [1, "1"]}, {"metric": {}, "value": [1, "2"]}],
            },
            FaultReason.BAD_ANSWER,
        ),
        ({"resultType": "matrix", "result": MATRIX["data"]["result"]}, FaultReason.BAD_ANSWER),
    ],
    ids=["vector", "scalar", "empty", "two", "matrix"],
)
def test_a_query_of_the_user_gives_one_number(body, expected):
    answer = Answer(json.dumps({"status": "success", "data": body}).encode())
    with serving(lambda path, headers: answer) as url:
        if isinstance(expected, float):
            assert source(url).number("sum(sales)", at_s=1.0) == expected
            return
        with pytest.raises(FaultError) as error:
            source(url).number("sum(sales)", at_s=1.0)
    assert error.value.fault.reason is expected
    assert "sum(sales)" in str(error.value)


def test_label_values_cannot_leave_their_quotes():
    assert escaped('a"b\\c\nd') == 'a\\"b\\\\c\\nd'
    with pytest.raises(ConfigError, match="no metric name"):
        selecting(['a"} or vector(1'], {})
    with pytest.raises(ConfigError, match="no label name"):
        selecting(["a"], {'x="1", y': "2"})
    with pytest.raises(ConfigError, match="no label name"):
        source("http://127.0.0.1:9", selector={"pod-name": "a"})
