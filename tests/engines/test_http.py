"""Every trouble on the wire becomes one fault with the right reason, and no secret gets out."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.engines.fakes.server import Answer, FakeServer, Trouble
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError, FaultReason
from tuner.engines import http as module
from tuner.engines.http import EngineHttp

TOKEN = "token-that-nobody-sees"
KEY = "key-that-nobody-sees"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    for method in ("GET", "POST"):
        fake.on(method, "/x", lambda request: Answer(200, {"fine": True}))
    yield fake
    fake.close()


@pytest.fixture
def http() -> Iterator[EngineHttp]:
    with EngineHttp(timeout_s=10.0, token=TOKEN, api_key=KEY) as client:
        yield client


def read(http: EngineHttp, url: str) -> FaultError:
    with pytest.raises(FaultError) as caught:
        http.get("pod-1", url).mapping()
    return caught.value


def write(http: EngineHttp, url: str) -> FaultError:
    with pytest.raises(FaultError) as caught:
        http.write("pod-1", "POST", url, {"n": 1})
    return caught.value


STATUSES = [
    (301, FaultReason.BAD_ANSWER),
    (400, FaultReason.INVALID),
    (401, FaultReason.UNAUTHORIZED),
    (403, FaultReason.FORBIDDEN),
    (404, FaultReason.NOT_FOUND),
    (405, FaultReason.NOT_FOUND),
    (409, FaultReason.CONFLICT),
    (412, FaultReason.CONFLICT),
    (418, FaultReason.INVALID),
    (422, FaultReason.INVALID),
    (428, FaultReason.INVALID),
    (429, FaultReason.RATE_LIMITED),
    (500, FaultReason.SERVER_ERROR),
    (501, FaultReason.NOT_MOVABLE),
    (502, FaultReason.SERVER_ERROR),
    (503, FaultReason.NOT_READY),
    (507, FaultReason.SERVER_ERROR),
]


@pytest.mark.parametrize(("status", "reason"), STATUSES, ids=lambda value: str(value))
def test_a_status_means_the_same_to_reads_and_writes(http, server, status, reason):
    for method in ("GET", "POST"):
        server.always(method, "/x", Trouble.says(status, {"error": "the reason given"}))
    for found in (read(http, server.url + "/x"), write(http, server.url + "/x")):
        assert found.fault.reason is reason
        assert found.fault.where == "pod-1"
        assert f"/x answered {status} (the reason given)" in str(found)


def test_a_gateway_that_gave_up_is_no_answer(http, server):
    for method in ("GET", "POST"):
        server.always(method, "/x", Trouble.says(504))
    assert read(http, server.url + "/x").fault.reason is FaultReason.TIMED_OUT
    assert write(http, server.url + "/x").fault.reason is FaultReason.OUTCOME_UNKNOWN


BROKEN = {
    "lost": (Trouble("lost"), FaultReason.BAD_ANSWER),
    "cut off": (Trouble("broken"), FaultReason.BAD_ANSWER),
    "not http": (Trouble("not http"), FaultReason.BAD_ANSWER),
}


@pytest.mark.parametrize(("trouble", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_write_without_an_answer_is_unknown_and_sent_once(http, server, trouble, reason):
    for method in ("GET", "POST"):
        server.always(method, "/x", trouble)
    assert read(http, server.url + "/x").fault.reason is reason
    assert write(http, server.url + "/x").fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert len(server.asked("POST", "/x")) == 1


def test_a_hung_engine_times_out(server):
    for method in ("GET", "POST"):
        server.always(method, "/x", Trouble("hangs"))
    with EngineHttp(timeout_s=0.2) as http:
        assert read(http, server.url + "/x").fault.reason is FaultReason.TIMED_OUT
        found = write(http, server.url + "/x")
    assert found.fault.reason is FaultReason.OUTCOME_UNKNOWN
    assert "no answer within 0.2 s" in str(found)


def test_a_refused_connection_was_never_sent(http):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/x"
        assert read(http, url).fault.reason is FaultReason.UNREACHABLE
        assert write(http, url).fault.reason is FaultReason.UNREACHABLE


@pytest.mark.parametrize(
    "url",
    ["", "pod-1", "http://", "ftp://127.0.0.1/x", "http://h:abc/x", "http://127.0.0.1:99999/x"],
)
def test_an_address_that_cannot_be_one_was_never_sent(http, url):
    assert read(http, url).fault.reason is FaultReason.UNREACHABLE
    assert write(http, url).fault.reason is FaultReason.UNREACHABLE


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1", b"[]", b"3", b"\xff\xfe"])
def test_an_answer_that_is_no_json_object_is_a_bad_answer(http, server, body):
    server.always("GET", "/x", Trouble.says(200, body))
    assert read(http, server.url + "/x").fault.reason is FaultReason.BAD_ANSWER


def test_an_endless_answer_is_cut(http, server, monkeypatch):
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
    server.always("GET", "/x", Trouble.says(200, b"{}" + b" " * 999))
    assert read(http, server.url + "/x").fault.reason is FaultReason.BAD_ANSWER
    server.always("GET", "/x", Trouble.says(200, b"{}" + b" " * 998))
    assert http.get("pod-1", server.url + "/x").mapping() == {}


RETRIES = {
    "seconds": ({"Retry_After": "7"}, 7.0),
    "a date": (
        {
            "Retry_After": "Sat, 21 Nov 2026 10:00:30 GMT",
            "Date": "Sat, 21 Nov 2026 10:00:00 GMT",
        },
        30.0,
    ),
    "nonsense": ({"Retry_After": "soon"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("headers", "wait_s"), RETRIES.values(), ids=RETRIES)
def test_the_wait_that_was_asked_for_is_told(http, server, headers, wait_s):
    server.always("POST", "/x", Trouble.says(429, b"", **headers))
    found = write(http, server.url + "/x").retry_after_s
    assert found == wait_s


@pytest.mark.parametrize(
    ("call", "secret"),
    [
        (lambda http, url: http.get("p", url), KEY),
        (lambda http, url: http.ask("p", url, {}), KEY),
        (lambda http, url: http.write("p", "POST", url, {}), TOKEN),
    ],
    ids=["read", "completion", "control"],
)
def test_each_kind_of_call_carries_its_own_secret(http, server, call, secret):
    call(http, server.url + "/x")
    assert server.requests[-1].bearer == secret


def test_without_secrets_no_header_goes_along(server):
    with EngineHttp(timeout_s=10.0) as http:
        http.write("p", "POST", server.url + "/x", {})
    assert "authorization" not in server.requests[-1].headers


def test_secrets_are_in_no_message_and_no_repr(http, server):
    server.always("POST", "/x", Trouble.says(401, {"error": f"bad token {TOKEN}, {KEY}"}))
    found = write(http, server.url + "/x")
    for text in (repr(http), str(http), str(found), repr(found), repr(found.fault)):
        assert TOKEN not in text
        assert KEY not in text
    assert "bad token ***, ***" in str(found)


@pytest.mark.parametrize("secret", ["", " ", "x7\n", "x7\ny8", " x7", "schlüssel"])
def test_a_secret_that_cannot_stand_in_a_header_is_refused_unseen(secret):
    with pytest.raises(ConfigError) as caught:
        EngineHttp(timeout_s=1.0, token=secret)
    assert "token of run-time control" in str(caught.value)
    assert not secret.strip() or secret.strip() not in str(caught.value)


def test_a_password_in_an_address_is_not_told(http):
    found = read(http, "http://user:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(found)


def test_what_an_error_page_says_is_one_short_line(http, server):
    server.always("GET", "/x", Trouble.says(500, b"Traceback\n  \x1b[31mline" + b"e" * 5000))
    text = str(read(http, server.url + "/x"))
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 400


def test_a_thread_that_goes_on_after_the_close_gets_a_fault():
    http = EngineHttp(timeout_s=1.0)
    http.close()
    with pytest.raises(FaultError, match="let go of its engines") as caught:
        http.get("r0", "http://127.0.0.1:9/health")
    assert caught.value.fault.reason is FaultReason.UNREACHABLE
