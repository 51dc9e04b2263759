"""The server side of the runtime-config contract, as a state machine and over a socket."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.engines.contract import (
    PATH,
    ROLLBACK,
    AuditLine,
    Contract,
    EngineError,
    Knob,
    RefusedByEngineError,
    Response,
    Status,
)
from tuner.engines.contract.http import ControlServer, token_from

ROOT = Path(__file__).parents[2]
TOKEN = "correct horse"
KNOBS = {
    "batch_size": Knob(32, 1, 64, "sequences"),
    "max_num_batched_tokens": Knob(512, 512, 8192, "tokens"),
    "threads": Knob(2, 2, 2, "workers", "unsupported"),
}


class Engine:
    """Holds values as an engine would; can be told to fail, to hang and to start anew."""

    def __init__(self, knobs: Mapping[str, Knob] = KNOBS) -> None:
        self.values = {name: knob.value for name, knob in knobs.items()}
        self.knobs = dict(knobs)
        self.status = Status(running=3, waiting=1)
        self.tells_values = True
        self.calls: list[dict[str, int]] = []
        self.faults: list[EngineError | None] = []
        self.half_done = False
        self.gate: threading.Event | None = None
        self.bug: Exception | None = None
        self.apply_bug: Exception | None = None
        self.meanwhile: Callable[[], object] | None = None

    def apply(self, values: Mapping[str, int]) -> None:
        if self.apply_bug is not None:
            raise self.apply_bug
        self.calls.append(dict(values))
        if self.gate is not None and not self.gate.wait(20):
            raise EngineError("the gate stayed shut")
        fault = self.faults.pop(0) if self.faults else None
        if fault is None or self.half_done:
            self.values.update(values)
        if fault is not None:
            raise fault

    def read(self) -> Status:
        if self.bug is not None:
            raise self.bug
        if not self.tells_values:
            return self.status
        knobs = {n: replace(knob, value=self.values[n]) for n, knob in self.knobs.items()}
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return replace(self.status, knobs=knobs)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A contract over an engine, on a clock that stands still."""

    def __init__(self, knobs: Mapping[str, Knob] = KNOBS, **options: Any) -> None:
        self.engine = Engine(knobs)
        self.clock = Clock()
        self.audit: list[AuditLine] = []
        ids = iter(f"i{n}" for n in range(100))
        self.contract = Contract(
            knobs,
            self.engine.apply,
            self.engine.read,
            engine="toy",
            engine_version="1.0",
            model="tiny",
            audit=self.audit.append,
            new_instance_id=lambda: next(ids),
            **{"token": lambda: TOKEN, "clock": self.clock, **options},
        )

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.contract.handle(
            method, path, {"Authorization": f"Bearer {TOKEN}", **named}, raw, peer="10.0.0.9"
        )

    def get(self) -> dict[str, Any]:
        answer = self.send("GET", PATH)
        assert answer.status == 200, answer
        return dict(answer.body)

    def tag(self) -> str:
        return self.send("GET", PATH).headers["ETag"]

    def patch(self, body: object, tag: str | None = None) -> Response:
        return self.send("PATCH", PATH, body, If_Match=tag or self.tag())

    def set(self, value: int, **more: object) -> Response:
        return self.patch({"knobs": {"batch_size": value}, **more})

    def rollback(self, body: object = None, tag: str | None = None) -> Response:
        return self.send("POST", ROLLBACK, body, If_Match=tag or self.tag())

    def later(self, seconds: float) -> None:
        self.clock.now += seconds

    def batch(self) -> dict[str, Any]:
        knob: dict[str, Any] = self.get()["knobs"]["batch_size"]
        return knob


@pytest.fixture
def world() -> World:
    return World()


# Reading.


def test_get_says_everything_the_contract_names(world):
    answer = world.send("GET", PATH)
    assert answer.headers["ETag"] == '"i0:0"'
    body = dict(answer.body)
    assert body.pop("knobs")["batch_size"] == {
        "value": 32,
        "min": 1,
        "max": 64,
        "unit": "sequences",
        "actuation": "hot",
        "base": 32,
        "previous": None,
        "expires_in_s": None,
        "source": "startup",
        "changed_s_ago": 0.0,
    }
    assert body == {
        "contract": "1",
        "engine": "toy",
        "engine_version": "1.0",
        "model": "tiny",
        "instance_id": "i0",
        "revision": 0,
        "paused": False,
        "sleeping": False,
        "draining": False,
        "running": 3,
        "waiting": 1,
        "changing": False,
        "unsettled": [],
        "failures": 0,
        "last_failure": None,
        "max_num_running_seqs": 32,
        "max_num_seqs": 64,
    }


def test_get_answers_while_the_engine_is_paused(world):
    world.engine.status = Status(paused=True, sleeping=True, draining=True)
    body = world.get()
    assert (body["paused"], body["sleeping"], body["draining"]) == (True, True, True)
    assert body["running"] is None


def test_get_answers_503_with_a_sentence_when_the_engine_does_not(world):
    world.engine.bug = EngineError("the scheduler did not answer within 10 s")
    answer = world.send("GET", PATH)
    assert answer.status == 503
    assert "did not answer within 10 s" in str(answer.body["error"])


# Refusals: every row must leave the engine untouched.

OK = {"knobs": {"batch_size": 16}}


def nested(depth: int) -> bytes:
    return b'{"knobs":' + b"[" * depth + b"]" * depth + b"}"


BODIES = {
    "above the ceiling": ({"knobs": {"batch_size": 65}}, 400, "batch_size = 65 is outside 1..64"),
    "below the floor": ({"knobs": {"batch_size": 0}}, 400, "batch_size = 0 is outside 1..64"),
    "negative": ({"knobs": {"batch_size": -1}}, 400, "outside 1..64"),
    "a float": ({"knobs": {"batch_size": 16.0}}, 400, "batch_size = 16.0 is not an integer"),
    "true": ({"knobs": {"batch_size": True}}, 400, "is not an integer"),
    "a text": ({"knobs": {"batch_size": "batch_size"}}, 400, "is not an integer"),
    "null": ({"knobs": {"batch_size": None}}, 400, "is not an integer"),
    "unknown knob": ({"knobs": {"batchsize": 4}}, 400, "unknown knob 'batchsize'; there are batch"),
    "one good, one bad": (
        {"knobs": {"batch_size": 16, "max_num_batched_tokens": 1}},
        400,
        "512..8",
    ),
    "two bad": ({"knobs": {"batch_size": 99, "x": 1}}, 400, "outside 1..64; unknown knob 'x'"),
    "cannot be moved": ({"knobs": {"threads": 4}}, 501, "threads: not movable"),
    "one of two cannot": ({"knobs": {"batch_size": 16, "threads": 2}}, 501, "threads: not movable"),
    "bad before unmovable": ({"knobs": {"batch_size": 0, "threads": 4}}, 400, "outside 1..64"),
    "no knob": ({"knobs": {}}, 400, "no knob given"),
    "empty": (b"", 400, "no knob given"),
    "knobs a list": ({"knobs": [16]}, 400, "knobs = [16] is not an object"),
    "not JSON": (b"{knobs}", 400, "not JSON"),
    "not UTF-8": (b'{"knobs": "\xff"}', 400, "not JSON"),
    "a list": ([1], 400, "not a JSON object"),
    "a key twice": (b'{"knobs": {"batch_size": 1, "batch_size": 2}}', 400, "stands twice"),
    "nan": (b'{"knobs": {"batch_size": 1}, "ttl_s": NaN}', 400, "NaN is not a number of JSON"),
    "endless digits": (b'{"knobs": {"batch_size": ' + b"9" * 5000 + b"}}", 400, "not JSON"),
    "deeply nested": (nested(30000), 400, "not JSON"),
    "unknown key": ({**OK, "dryrun": True}, 400, "unknown key 'dryrun'; did you mean 'dry_run'?"),
    "dry_run a number": ({**OK, "dry_run": 1}, 400, "dry_run = 1 is not true or false"),
    "ttl zero": ({**OK, "ttl_s": 0}, 400, "ttl_s = 0 is not a number above 0"),
    "ttl negative": ({**OK, "ttl_s": -5}, 400, "ttl_s = -5"),
    "ttl a text": ({**OK, "ttl_s": "60"}, 400, "ttl_s = '60'"),
    "ttl true": ({**OK, "ttl_s": True}, 400, "ttl_s = True"),
    "ttl of a month": ({**OK, "ttl_s": 2.6e6}, 400, "up to 604800"),
    "ttl infinite": (b'{"knobs": {"batch_size": 16}, "ttl_s": 1e999}', 400, "ttl_s = inf"),
    "epoch a text": ({**OK, "epoch": "1"}, 400, "epoch = '1' is not an integer"),
    "epoch negative": ({**OK, "epoch": -1}, 400, "epoch = -1"),
    "request_id empty": ({**OK, "request_id": ""}, 400, "request_id = ''"),
    "request_id long": ({**OK, "request_id": "x" * 129}, 400, "1 to 128 characters"),
    "reason a number": ({**OK, "reason": 1}, 400, "reason = 1 is not a text"),
    "two names, two values": ({**OK, "max_num_running_seqs": 8}, 400, "are one knob"),
    "alias out of range": ({"max_num_running_seqs": 65}, 400, "outside 1..64"),
}


@pytest.mark.parametrize(("body", "status", "words"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("dry_run", [False, True], ids=["", "dry"])
def test_a_body_that_does_not_fit_is_refused_and_says_why(world, body, status, words, dry_run):
    if dry_run and isinstance(body, dict):
        body = {"dry_run": True, **body}
    answer = world.patch(body)
    assert answer.status == status
    assert words in str(answer.body["error"])
    assert world.engine.calls == []
    assert world.tag() == '"i0:0"'


def test_a_refusal_lists_what_was_found_and_what_is_allowed(world):
    answer = world.patch({"knobs": {"batch_size": 65, "max_num_batched_tokens": 2.5, "x": 1}})
    assert answer.body["details"] == [
        {"knob": "batch_size", "found": 65, "allowed": [1, 64]},
        {"knob": "max_num_batched_tokens", "found": 2.5, "allowed": "an integer"},
        {"knob": "x", "found": "x", "allowed": ["batch_size", "max_num_batched_tokens", "threads"]},
    ]


HEADERS = {
    "no token": ({"Authorization": ""}, 401),
    "another scheme": ({"Authorization": f"Basic {TOKEN}"}, 401),
    "no scheme": ({"Authorization": TOKEN}, 401),
    "an empty token": ({"Authorization": "Bearer "}, 401),
    "a wrong token": ({"Authorization": "Bearer wrong"}, 403),
    "a token with more behind": ({"Authorization": f"Bearer {TOKEN}x"}, 403),
    "a token of other letters": ({"Authorization": "Bearer \u00fc"}, 403),
}


@pytest.mark.parametrize(("headers", "status"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_without_the_right_token_nothing_is_said_and_nothing_done(world, headers, status, method):
    body = {"knobs": {"batch_size": 16}}
    answer = world.send(method, PATH, body, **{"If_Match": '"i0:0"', **headers})
    assert answer.status == status
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert set(answer.body) == {"error"}
    assert TOKEN not in str(answer)
    assert world.engine.calls == []


def test_a_token_that_cannot_be_read_lets_nobody_in(tmp_path):
    world = World(token=token_from(tmp_path / "gone"))
    assert world.send("GET", PATH).status == 503
    (tmp_path / "gone").write_text(" \n")
    assert world.send("GET", PATH).status == 503


def test_a_token_may_change_while_it_runs(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("first\n")
    world = World(token=token_from(secret))
    assert world.send("GET", PATH, Authorization="Bearer first").status == 200
    secret.write_text("second\n")
    assert world.send("GET", PATH, Authorization="Bearer first").status == 403
    assert world.send("GET", PATH, Authorization="bearer second").status == 200


def test_header_names_count_in_any_case(world):
    headers = {"AUTHORIZATION": f"Bearer {TOKEN}", "if-match": '"i0:0"'}
    assert world.contract.handle("PATCH", PATH, headers, json.dumps(OK).encode()).status == 200


ROUTES = {
    "another path": ("GET", "/v1/other", 404, None),
    "a longer path": ("GET", PATH + "/x", 404, None),
    "a slash behind": ("GET", PATH + "/", 404, None),
    "put": ("PUT", PATH, 405, "GET, PATCH"),
    "delete": ("DELETE", PATH, 405, "GET, PATCH"),
    "get of rollback": ("GET", ROLLBACK, 405, "POST"),
    "a query": ("GET", PATH + "?x=1", 200, None),
}


@pytest.mark.parametrize(("method", "path", "status", "allow"), ROUTES.values(), ids=ROUTES)
def test_only_the_two_paths_answer(world, method, path, status, allow):
    answer = world.send(method, path)
    assert (answer.status, answer.headers.get("Allow")) == (status, allow)


@pytest.mark.parametrize(
    "call", [("PATCH", PATH, OK), ("POST", ROLLBACK, None)], ids=["set", "back"]
)
def test_a_change_without_if_match_is_428(world, call):
    assert world.send(*call).status == 428
    assert world.engine.calls == []


@pytest.mark.parametrize("tag", ['"i0:1"', '"i9:0"', "*", "i0:0", 'W/"i0:0"', ""])
def test_any_other_tag_is_409_with_the_state_now(world, tag):
    answer = world.send("PATCH", PATH, OK, If_Match=tag)
    assert answer.status == 409
    assert answer.headers["ETag"] == '"i0:0"'
    assert answer.body["state"] == world.get()
    assert world.engine.calls == []


def test_of_two_writers_with_one_tag_the_second_is_refused(world):
    tag = world.tag()
    assert world.patch(OK, tag).status == 200
    world.later(60)
    assert world.patch({"knobs": {"batch_size": 8}}, tag).status == 409
    assert world.engine.values["batch_size"] == 16


# Setting.


def test_a_set_is_applied_read_back_and_becomes_the_base(world):
    world.later(7)
    answer = world.patch({"knobs": {"batch_size": 16, "max_num_batched_tokens": 1024}})
    assert answer.status == 200
    assert answer.headers["ETag"] == '"i0:1"'
    assert answer.body == {
        "applied": {"batch_size": 16, "max_num_batched_tokens": 1024},
        "previous": {"batch_size": 32, "max_num_batched_tokens": 512},
        "instance_id": "i0",
        "revision": 1,
        "expires_in_s": None,
        "draining_down": False,
        "dry_run": False,
    }
    assert world.engine.calls == [{"batch_size": 16, "max_num_batched_tokens": 1024}]
    world.later(5)
    assert world.batch() == {
        "value": 16,
        "min": 1,
        "max": 64,
        "unit": "sequences",
        "actuation": "hot",
        "base": 16,
        "previous": 32,
        "expires_in_s": None,
        "source": "patch",
        "changed_s_ago": 5.0,
    }


@pytest.mark.parametrize("value", [1, 64])
def test_both_ends_of_the_range_are_allowed(world, value):
    assert world.set(value).status == 200
    assert world.get()["max_num_running_seqs"] == value


@pytest.mark.parametrize("more", [{}, {"knobs": {"batch_size": 8}}], ids=["alone", "beside ours"])
def test_the_draft_name_means_batch_size(world, more):
    answer = world.patch({"max_num_running_seqs": 8, **more})
    assert answer.body["applied"] == {"batch_size": 8}
    assert world.batch()["value"] == 8


def test_only_what_differs_reaches_the_engine(world):
    world.patch({"knobs": {"batch_size": 16, "max_num_batched_tokens": 512}})
    assert world.engine.calls == [{"batch_size": 16}]


DRAINING = {
    "above the new cap": (17, 1, True),
    "at the new cap": (16, 1, False),
    "two ranks hold twice": (32, 2, False),
    "two ranks, one more": (33, 2, True),
    "not known": (None, 1, False),
}


@pytest.mark.parametrize(("running", "ranks", "expected"), DRAINING.values(), ids=DRAINING)
def test_draining_down_says_that_more_run_than_the_new_cap(world, running, ranks, expected):
    world.engine.status = Status(running=running, ranks=ranks)
    assert world.set(16).body["draining_down"] is expected


def test_a_dry_run_answers_like_the_real_one_and_changes_nothing(world):
    world.engine.status = Status(running=20)
    dry = world.set(16, dry_run=True, ttl_s=9, request_id="a", epoch=5)
    assert world.engine.calls == []
    assert world.tag() == '"i0:0"'
    real = world.set(16, ttl_s=9, request_id="a", epoch=4)
    assert real.status == 200
    same = ("applied", "previous", "expires_in_s", "draining_down")
    assert {k: dry.body[k] for k in same} == {k: real.body[k] for k in same}
    assert (dry.body["dry_run"], real.body["dry_run"]) == (True, False)


@pytest.mark.parametrize("why", ["paused", "sleeping"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_paused_or_sleeping_engine_is_not_changed(world, why, dry_run):
    world.engine.status = Status(**{why: True})
    answer = world.set(16, dry_run=dry_run)
    assert answer.status == 503
    assert {"paused": "paused", "sleeping": "asleep"}[why] in str(answer.body["error"])
    assert world.engine.calls == []


def test_changes_too_close_together_are_429_with_the_time_to_wait(world):
    world = World(min_interval_s=10)
    assert world.set(16).status == 200
    world.later(2.5)
    answer = world.set(8)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "8")
    world.later(7.5)
    assert world.set(8).status == 200
    assert world.engine.calls == [{"batch_size": 16}, {"batch_size": 8}]


def test_renewing_and_rolling_back_never_wait():
    world = World(min_interval_s=10)
    assert world.set(16, ttl_s=30).status == 200
    assert world.set(16, ttl_s=30).status == 200
    assert world.rollback().status == 200
    assert world.engine.values["batch_size"] == 32


# Repeating.


def test_a_repeated_request_id_gets_the_first_result_and_does_nothing(world):
    tag = world.tag()
    first = world.patch({"knobs": {"batch_size": 16}, "request_id": "r"}, tag)
    world.later(60)
    world.set(8)
    assert world.patch({"knobs": {"batch_size": 16}, "request_id": "r"}, tag) == first
    assert world.engine.values["batch_size"] == 8


def test_a_refused_request_id_may_be_tried_again(world):
    stale = world.patch({**OK, "request_id": "r"}, '"i0:9"')
    assert stale.status == 409
    assert world.patch({**OK, "request_id": "r"}).status == 200


def test_a_request_id_cannot_stand_for_two_requests(world):
    world.set(16, request_id="r")
    assert world.set(8, request_id="r").status == 400
    assert world.rollback({"request_id": "r"}).status == 400


def test_old_request_ids_are_forgotten(world):
    tag = world.tag()
    for n in range(257):
        world.later(2)
        assert world.set(1 + n % 2, request_id=f"r{n}").status == 200
    body = {"knobs": {"batch_size": 1}}
    assert world.patch({**body, "request_id": "r0"}, tag).status == 409
    assert world.patch({**body, "request_id": "r256"}, tag).status == 200


# Epochs.


def test_a_writer_of_an_older_epoch_is_refused(world):
    assert world.set(16, epoch=7).status == 200
    world.later(60)
    late = world.set(8, epoch=6)
    assert late.status == 409
    assert "epoch 6 is behind 7" in str(late.body["error"])
    assert world.rollback({"epoch": 6}).status == 409
    assert world.set(8, epoch=7).status == 200
    assert world.engine.values["batch_size"] == 8


def test_an_epoch_counts_even_if_its_request_was_too_late(world):
    assert world.patch({**OK, "epoch": 9}, '"i0:5"').status == 409
    assert world.set(16, epoch=8).status == 409


# Temporary values.


def test_a_temporary_value_ends_at_its_base_without_any_request(world):
    answer = world.set(8, ttl_s=30)
    assert answer.body["expires_in_s"] == 30
    assert world.batch()["base"] == 32
    world.later(29.9)
    assert world.contract.expire() == pytest.approx(0.1)
    assert world.engine.values["batch_size"] == 8
    world.later(0.1)
    assert world.contract.expire() is None
    assert world.engine.values["batch_size"] == 32
    knob = world.batch()
    assert (knob["value"], knob["source"], knob["previous"]) == (32, "ttl", 8)
    assert knob["expires_in_s"] is None
    assert world.tag() == '"i0:2"'


def test_renewing_moves_the_end_and_leaves_the_revision(world):
    world.set(8, ttl_s=30)
    for _ in range(5):
        world.later(20)
        assert world.set(8, ttl_s=30).body["revision"] == 1
    assert world.engine.calls == [{"batch_size": 8}]
    world.later(29)
    knob = world.batch()
    assert (knob["value"], knob["previous"], knob["changed_s_ago"]) == (8, 32, 129)
    world.later(1)
    assert world.batch()["value"] == 32


def test_another_temporary_value_keeps_the_first_base(world):
    world.set(8, ttl_s=30)
    world.later(10)
    world.set(4, ttl_s=30)
    world.later(29)
    assert world.batch()["value"] == 4
    world.later(1)
    assert world.batch()["value"] == 32


def test_without_ttl_a_temporary_value_becomes_the_base_and_a_new_revision(world):
    world.set(8, ttl_s=30)
    assert world.set(8).body["revision"] == 2
    world.later(31)
    knob = world.batch()
    assert (knob["value"], knob["base"], knob["expires_in_s"]) == (8, 8, None)
    assert world.engine.calls == [{"batch_size": 8}]


def test_each_knob_ends_at_its_own_time(world):
    world.set(8, ttl_s=30)
    world.later(10)
    world.patch({"knobs": {"max_num_batched_tokens": 1024}, "ttl_s": 30})
    world.later(20)
    assert world.contract.expire() == pytest.approx(10)
    assert world.engine.values == {"batch_size": 32, "max_num_batched_tokens": 1024, "threads": 2}
    world.later(10)
    world.contract.expire()
    assert world.engine.values["max_num_batched_tokens"] == 512


def test_a_temporary_value_equal_to_its_base_ends_without_a_change(world):
    world.set(32, ttl_s=30)
    world.later(31)
    assert world.tag() == '"i0:0"'
    assert world.engine.calls == []
    assert world.batch()["expires_in_s"] is None


def test_the_end_is_not_kept_by_a_paused_engine_or_by_the_spacing():
    world = World(min_interval_s=60)
    world.set(8, ttl_s=5)
    world.engine.status = Status(paused=True)
    world.later(5)
    world.contract.expire()
    assert world.engine.values["batch_size"] == 32


def test_an_engine_that_does_not_take_its_base_is_asked_again_and_again(world):
    world.set(8, ttl_s=30)
    world.engine.faults = [EngineError("timed out"), RefusedByEngineError("not now"), None]
    world.later(30)
    waits = []
    for _ in range(2):
        waits.append(world.contract.expire())
        world.contract.expire()  # not before its time
        world.later(waits[-1])
    assert waits == [1.0, 2.0]
    assert world.contract.expire() is None
    assert world.engine.calls == [{"batch_size": 8}] + [{"batch_size": 32}] * 3
    assert world.batch()["source"] == "ttl"
    assert world.get()["failures"] == 2


def test_a_real_process_goes_back_by_itself_when_nobody_calls(tmp_path):
    # The process sets a value through the contract, then only waits for its own end.
    program = """
        import json, sys, threading
        from tuner.engines.contract import Contract, Knob, Status, PATH
        back = threading.Event()
        seen = []
        def apply(values):
            seen.append(values["batch_size"])
            if seen == [4, 32]:
                back.set()
        contract = Contract({"batch_size": Knob(32, 1, 64, "sequences")}, apply, Status,
                            engine="toy", engine_version="1", model="m", token=None)
        contract.start()
        tag = contract.handle("GET", PATH, {}).headers["ETag"]
        body = json.dumps({"knobs": {"batch_size": 4}, "ttl_s": 0.2}).encode()
        assert contract.handle("PATCH", PATH, {"If-Match": tag}, body).status == 200
        print(back.wait(20), seen)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == ("True [4, 32]", "")


def test_an_owner_that_goes_ends_what_is_temporary_at_once(world):
    world.patch({"knobs": {"max_num_batched_tokens": 1024}})
    world.later(5)
    world.set(8, ttl_s=600)
    world.contract.release()
    assert world.engine.values == {"batch_size": 32, "max_num_batched_tokens": 1024, "threads": 2}
    assert world.batch()["source"] == "ttl"


def test_an_owner_that_goes_waits_for_a_change_under_way():
    world = World(SLOW)
    world.engine.gate = threading.Event()
    world.patch({"knobs": {"threads": 4}, "ttl_s": 600})
    reach(lambda: bool(world.engine.calls))
    leaving = threading.Thread(target=world.contract.release)
    leaving.start()
    world.engine.gate.set()
    leaving.join(20)
    assert world.engine.calls == [{"threads": 4}, {"threads": 2}]


# Rolling back.


def test_rollback_brings_the_values_before_as_a_new_revision(world):
    world.patch({"knobs": {"batch_size": 16, "max_num_batched_tokens": 1024}})
    answer = world.rollback({"reason": "worse"})
    assert answer.status == 200
    assert answer.body["applied"] == {"batch_size": 32, "max_num_batched_tokens": 512}
    assert answer.body["revision"] == 2
    assert world.engine.values == {"batch_size": 32, "max_num_batched_tokens": 512, "threads": 2}
    knob = world.batch()
    assert (knob["value"], knob["base"], knob["source"]) == (32, 32, "rollback")


def test_rollback_restores_base_and_end_of_a_temporary_value(world):
    world.set(8, ttl_s=100)
    world.later(60)
    world.set(16)
    answer = world.rollback()
    assert answer.body["expires_in_s"] == pytest.approx(40)
    knob = world.batch()
    assert (knob["value"], knob["base"], knob["expires_in_s"]) == (8, 32, pytest.approx(40))
    world.later(40)
    assert world.batch()["value"] == 32


def test_rollback_to_a_temporary_value_that_has_ended_meanwhile_is_its_base(world):
    world.set(8, ttl_s=100)
    world.later(60)
    world.set(16)
    world.later(60)
    world.rollback()
    knob = world.batch()
    assert (knob["value"], knob["expires_in_s"]) == (32, None)
    assert world.engine.calls[-1] == {"batch_size": 32}


def test_there_is_nothing_to_take_back_at_first_or_after_an_end(world):
    assert world.rollback().status == 409
    world.set(8, ttl_s=5)
    world.later(5)
    assert world.rollback().status == 409
    assert world.engine.values["batch_size"] == 32


def test_rollback_keeps_the_rules_of_every_change(world):
    world.set(16)
    assert world.rollback(tag='"i0:0"').status == 409
    assert world.rollback({"ttl_s": 5}).status == 400
    assert world.rollback({"dry_run": True}).status == 200
    world.engine.status = Status(paused=True)
    assert world.rollback().status == 503
    assert world.engine.values["batch_size"] == 16


# The engine's side.


def test_a_refusal_of_the_engine_changes_nothing(world):
    world.engine.faults = [RefusedByEngineError("it answered [false]")]
    answer = world.set(16, ttl_s=5)
    assert answer.status == 502
    assert "it answered [false]" in str(answer.body["error"])
    assert world.tag() == '"i0:0"'
    assert world.batch()["expires_in_s"] is None
    assert world.set(16).status == 200


@pytest.mark.parametrize("half_done", [False, True], ids=["not received", "received"])
@pytest.mark.parametrize("tells_values", [False, True])
def test_a_lost_answer_is_504_and_the_values_before_are_put_back(half_done, tells_values):
    world = World()
    world.engine.tells_values = tells_values
    world.engine.half_done = half_done
    world.engine.faults = [EngineError("no answer within 10 s"), EngineError("again none")]
    answer = world.set(16)
    assert answer.status == 504
    assert world.contract.expire() == 1.0
    assert world.get()["unsettled"] == ["batch_size"]
    assert world.set(8).status == 503
    world.later(1)
    body = world.get()
    assert (body["unsettled"], body["revision"], body["failures"]) == ([], 0, 2)
    assert world.engine.values["batch_size"] == 32
    assert world.engine.calls == [{"batch_size": 16}, {"batch_size": 32}, {"batch_size": 32}]
    assert world.set(8).status == 200


def test_a_fault_in_the_owner_leaves_the_contract_able_to_put_back(world):
    tag = world.tag()
    world.engine.tells_values = False
    world.engine.apply_bug = KeyError("a bug")
    with pytest.raises(KeyError):
        world.patch(OK, tag)
    world.engine.apply_bug = None
    assert world.get()["unsettled"] == []
    assert world.engine.calls == [{"batch_size": 32}]


def test_an_engine_started_anew_is_a_new_instance_with_nothing_remembered(world):
    world.set(8, ttl_s=30, request_id="r")
    world.engine.values["batch_size"] = 48
    world.engine.knobs["batch_size"] = Knob(48, 1, 48, "sequences")
    answer = world.patch({"knobs": {"batch_size": 4}}, '"i0:1"')
    assert answer.status == 409
    body = world.get()
    assert (body["instance_id"], body["revision"]) == ("i1", 0)
    knob = body["knobs"]["batch_size"]
    assert (knob["value"], knob["max"], knob["base"], knob["source"]) == (48, 48, 48, "startup")
    world.later(31)
    assert world.batch()["value"] == 48
    assert world.rollback().status == 409


def test_a_put_back_that_is_refused_is_tried_again(world):
    world.engine.half_done = True
    world.engine.faults = [EngineError("lost")]
    assert world.set(16, ttl_s=30).status == 504
    world.engine.half_done = False
    world.engine.faults = [RefusedByEngineError("not now")]
    world.contract.expire()
    body = world.get()
    assert (body["unsettled"], body["instance_id"]) == (["batch_size"], "i0")
    world.later(1)
    world.contract.expire()
    assert world.engine.values["batch_size"] == 32


def test_what_an_engine_started_anew_cannot_take_back_is_not_forced_on_it(world):
    world.engine.faults = [EngineError("lost"), RefusedByEngineError("above my new ceiling")]
    assert world.set(16).status == 504
    world.engine.knobs["batch_size"] = Knob(8, 1, 8, "sequences")
    world.engine.values["batch_size"] = 8
    world.contract.expire()
    body = world.get()
    assert (body["unsettled"], body["instance_id"]) == ([], "i1")
    assert body["knobs"]["batch_size"]["value"] == 8


def test_values_read_before_a_change_are_not_taken_for_a_new_instance(world):
    tag = world.tag()
    world.engine.meanwhile = lambda: world.patch(OK, tag)
    assert world.tag() == '"i0:1"'
    assert world.batch()["value"] == 16


# What takes long.

SLOW = {**KNOBS, "threads": Knob(2, 1, 8, "workers", "reload")}
SLOW_BUT_HOT = {**KNOBS, "threads": Knob(2, 1, 8, "workers", "hot", slow=True)}


def reach(condition: Callable[[], bool]) -> None:
    """Wait for another thread, by a deadline."""
    done = threading.Event()
    for _ in range(2000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not reached within 20 s")


@pytest.mark.parametrize("knobs", [SLOW, SLOW_BUT_HOT], ids=["reload", "slow"])
def test_what_takes_long_is_202_and_get_tells_when_it_is_done(knobs):
    world = World(knobs)
    world.engine.gate = threading.Event()
    tag = world.tag()
    answer = world.patch({"knobs": {"threads": 4}, "request_id": "r"}, tag)
    assert (answer.status, answer.body["revision"]) == (202, 0)
    assert world.get()["changing"] is True
    other = world.set(16)
    assert (other.status, other.headers["Retry-After"]) == (429, "1")
    assert world.patch({"knobs": {"threads": 4}, "request_id": "r"}, tag) == answer
    world.engine.gate.set()
    reach(lambda: world.get()["revision"] == 1)
    body = world.get()
    assert (body["changing"], body["knobs"]["threads"]["value"]) == (False, 4)
    assert world.engine.calls == [{"threads": 4}]


def test_a_reload_that_fails_leaves_the_revision_and_says_why():
    world = World(SLOW)
    world.engine.faults = [RefusedByEngineError("the model did not load")]
    body = {"knobs": {"threads": 4}, "request_id": "r"}
    assert world.patch(body).status == 202
    reach(lambda: not world.get()["changing"])
    state = world.get()
    assert (state["revision"], state["last_failure"]) == (0, "the model did not load")
    assert world.patch(body).status == 202
    reach(lambda: world.get()["revision"] == 1)


def test_reading_goes_on_while_a_change_is_under_way(world):
    world.engine.gate = threading.Event()
    tag = world.tag()
    answers: list[Response] = []
    thread = threading.Thread(target=lambda: answers.append(world.patch(OK, tag)))
    thread.start()
    reach(lambda: bool(world.engine.calls))
    assert world.get()["changing"] is True
    assert world.patch({"knobs": {"batch_size": 8}}, tag).status == 429
    world.engine.gate.set()
    thread.join(20)
    assert answers[0].status == 200
    assert world.get()["revision"] == 1


# The audit line.


def test_each_change_leaves_one_line_with_who_what_and_why(world):
    body = {"knobs": {"batch_size": 8}, "ttl_s": 30, "epoch": 3, "request_id": "r", "reason": "slo"}
    world.send("PATCH", PATH, body, If_Match=world.tag(), User_Agent="tuner/1")
    world.set(8, ttl_s=30)
    world.later(30)
    world.get()
    patch, end = [line.to_json() for line in world.audit]
    assert patch == {
        "event": "runtime_config",
        "who": "10.0.0.9 tuner/1",
        "source": "patch",
        "from": {"batch_size": 32},
        "to": {"batch_size": 8},
        "revision": 1,
        "instance_id": "i0",
        "reason": "slo",
        "request_id": "r",
        "epoch": 3,
        "ttl_s": 30.0,
        "result": "applied",
    }
    assert (end["who"], end["source"], end["from"], end["to"], end["revision"]) == (
        "contract",
        "ttl",
        {"batch_size": 8},
        {"batch_size": 32},
        2,
    )
    assert end["request_id"] is None


def test_a_change_that_failed_leaves_its_line_too(world):
    world.engine.faults = [RefusedByEngineError("no")]
    world.set(16, reason="x" * 500)
    (line,) = world.audit
    assert (line.result, line.revision, len(line.reason)) == ("no", 0, 200)


def test_a_base_that_becomes_permanent_leaves_a_line(world):
    world.set(8, ttl_s=30)
    world.set(8)
    assert [line.revision for line in world.audit] == [1, 2]
    assert (world.audit[1].before, world.audit[1].after) == ({"batch_size": 8}, {"batch_size": 8})


# Over a socket.


@pytest.fixture
def server(world: World) -> Iterator[ControlServer]:
    with ControlServer(world.contract) as running:
        yield running


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **named})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    return answer.status, dict(answer.headers), data


def test_the_contract_over_a_socket(server, world):
    status, headers, _ = ask(server.port, "GET", PATH)
    assert (status, headers["ETag"]) == (200, '"i0:0"')
    status, headers, body = ask(
        server.port, "PATCH", PATH, json.dumps(OK).encode(), If_Match=headers["ETag"]
    )
    assert (status, headers["ETag"], body["applied"]) == (200, '"i0:1"', {"batch_size": 16})
    status, _, _ = ask(server.port, "POST", ROLLBACK, b"", If_Match='"i0:1"')
    assert status == 200
    assert world.audit[0].who.startswith("127.0.0.1")
    assert ask(server.port, "GET", PATH, Authorization="Bearer x")[0] == 403
    assert ask(server.port, "DELETE", PATH)[0] == 405
    assert ask(server.port, "GET", "/metrics")[0] == 404


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(3):
        connection.request("GET", PATH, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
    connection.close()


RAW = {
    "too large": (b"Content-Length: 70000\r\n", b"", 413),
    "length of letters": (b"Content-Length: ten\r\n", b"", 411),
    "negative length": (b"Content-Length: -1\r\n", b"", 411),
    "chunked": (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", 411),
    "no length": (b"", b"", 400),
}


@pytest.mark.parametrize(("header", "body", "status"), RAW.values(), ids=RAW)
def test_a_body_is_read_only_with_an_honest_length(server, header, body, status):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        auth = f"Authorization: Bearer {TOKEN}\r\n".encode()
        head = b"PATCH /v1/runtime_config HTTP/1.1\r\nHost: x\r\nIf-Match: x\r\n"
        raw.sendall(head + auth + header + b"\r\n" + body)
        assert raw.recv(65536).split()[1] == str(status).encode()


def test_a_fault_of_this_side_is_500_without_a_traceback(server, world):
    world.engine.bug = KeyError("secret detail")
    status, _, body = ask(server.port, "GET", PATH)
    assert (status, body) == (500, {"error": "fault of this side: KeyError"})


def test_an_open_address_needs_a_token():
    world = World(token=None)
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 is not loopback"):
        ControlServer(world.contract, host="0.0.0.0")
    with ControlServer(world.contract) as server:
        assert ask(server.port, "GET", PATH, Authorization="")[0] == 200


def test_a_closed_server_answers_nothing_and_its_port_is_free_again(world):
    server = ControlServer(world.contract)
    server.start()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
    again = ControlServer(World().contract, port=server.port)
    again.close()


# Whatever happens.

VALUES = st.integers(1, 64)
TTLS = st.one_of(st.none(), st.floats(1, 100))
EVENTS = st.one_of(
    st.tuples(st.just("set"), VALUES, TTLS),
    st.tuples(st.just("rollback"), st.none(), st.none()),
    st.tuples(st.just("later"), st.floats(0, 120), st.none()),
    st.tuples(st.just("fault"), st.sampled_from(["refused", "lost", "half done"]), st.none()),
)


def happen(world: World, event: tuple[str, Any, float | None]) -> None:
    kind, value, ttl_s = event
    if kind == "set":
        world.set(value, **({} if ttl_s is None else {"ttl_s": ttl_s}))
    elif kind == "rollback":
        world.rollback()
    elif kind == "later":
        world.later(value)
        world.contract.expire()
    else:
        world.engine.half_done = value == "half done"
        fault = RefusedByEngineError if value == "refused" else EngineError
        world.engine.faults = [fault(value)]


@given(events=st.lists(EVENTS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_engine_and_contract_agree_and_everything_temporary_ends(events):
    world = World(min_interval_s=0.0)
    revision = 0
    for event in events:
        happen(world, event)
        state = world.get()
        knob = state["knobs"]["batch_size"]
        assert state["instance_id"] == "i0"
        assert state["revision"] >= revision
        assert knob["min"] <= knob["value"] <= knob["max"]
        assert knob["value"] == knob["base"] or knob["expires_in_s"] is not None
        if not state["unsettled"]:
            assert world.engine.values["batch_size"] == knob["value"]
        revision = state["revision"]
    world.engine.faults = []
    for _ in range(3):
        world.later(200)
        world.contract.expire()
    knob = world.batch()
    assert world.engine.values["batch_size"] == knob["value"] == knob["base"]
    assert knob["expires_in_s"] is None


def test_of_many_writers_at_once_each_success_is_one_revision():
    world = World(min_interval_s=0.0, clock=time.monotonic)
    world.contract.start()
    good: list[int] = []

    def writer(number: int) -> None:
        for turn in range(30):
            answer = world.set(1 + (number * 30 + turn) % 64, ttl_s=0.01)
            if answer.status == 200:
                good.append(number)

    writers = [threading.Thread(target=writer, args=(number,)) for number in range(6)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join(60)
    reach(lambda: world.engine.values["batch_size"] == 32)
    reach(lambda: world.batch()["expires_in_s"] is None)
    world.contract.close()
    changes = [line for line in world.audit if line.result == "applied"]
    assert len(changes) == world.get()["revision"]
    assert [line.revision for line in changes] == sorted(line.revision for line in changes)
    assert len(good) > 0
