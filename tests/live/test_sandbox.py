"""The controller's side of a sandbox, against a real one and against one that goes wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from envs.sandbox import SandboxServer
from tests.envs.sandbox.small import EPOCH_S, World
from tuner.config import SandboxConfig
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.live.pool import PoolState
from tuner.live.sandbox import SandboxPool


class Target:
    """A served world, and the pool on top of it."""

    def __init__(self) -> None:
        self.world = World()
        self.server = SandboxServer(self.world.cluster, speed=10.0, epoch_s=EPOCH_S)
        self.config = SandboxConfig(url=self.server.url, speed=10.0, epoch_s=EPOCH_S)
        self.pool = SandboxPool(self.config, timeout_s=10.0)


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    with target.server:
        yield target
        target.pool.close()


def pool_at(url: str, timeout_s: float = 5.0) -> SandboxPool:
    return SandboxPool(SandboxConfig(url=url), timeout_s=timeout_s)


def test_looks_at_the_replicas(target):
    target.pool.check(writes=True)
    target.pool.scale(4, target.pool.look())
    target.world.clock.sleep_until(EPOCH_S + 5.0)
    now = target.pool.look()
    assert now.wanted == 4
    assert now.version == "2"
    states = [member.state for member in now.members]
    assert states == [ReplicaState.READY] * 3 + [ReplicaState.STARTING]
    ready, starting = now.members[0], now.members[3]
    assert ready.replica.serving_url == f"{target.server.url}/replicas/replica-0"
    assert ready.replica.model == "small"
    assert ready.age_s == pytest.approx(5.0)
    assert starting.replica is None


def test_scales_and_says_what_is_wanted_now(target):
    assert target.pool.scale(5, target.pool.look()) == 5
    assert target.world.cluster.wanted == 5


def test_a_stale_look_is_a_conflict_and_writes_nothing(target):
    old = target.pool.look()
    target.pool.scale(4, old)
    with pytest.raises(FaultError) as caught:
        target.pool.scale(6, old)
    assert caught.value.fault.reason is FaultReason.CONFLICT
    assert caught.value.fault.knob == "replicas"
    assert target.world.cluster.wanted == 4


def test_a_number_out_of_range_is_invalid(target):
    with pytest.raises(FaultError) as caught:
        target.pool.scale(99, target.pool.look())
    assert caught.value.fault.reason is FaultReason.INVALID
    assert "expected 1 to 6" in caught.value.fault.sentence


def test_warm_up_requests_are_set_and_read(target):
    assert target.pool.warmup() == 0
    target.pool.set_warmup(7)
    assert target.pool.warmup() == 7


@pytest.mark.parametrize("other", [{"speed": 5.0}, {"epoch_s": EPOCH_S + 60.0}])
def test_the_configuration_of_another_sandbox_is_refused(target, other):
    settings = {"url": target.server.url, "speed": 10.0, "epoch_s": EPOCH_S, **other}
    pool = SandboxPool(SandboxConfig(**settings), timeout_s=5.0)
    with pytest.raises(ConfigError, match=r"use the tuner\.yaml that it wrote"):
        pool.check(writes=False)


class Crooked:
    """Takes connections and answers each request with the next line of its script.

    A line is the bytes of an answer, None to cut the connection, or an Event to wait for first.
    Requests that reach it are kept.
    """

    def __init__(self, *script: bytes | threading.Event | None) -> None:
        self._script = list(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Crooked:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(20.0)
        self._listener.close()

    def _serve(self) -> None:
        for line in self._script:
            connection, _ = self._listener.accept()
            with connection:
                self.requests.append(connection.recv(65536))
                if isinstance(line, threading.Event):
                    line.wait(20.0)
                elif line is not None:
                    connection.sendall(line)


def answer(status: str, body: str) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


def pool_of(wanted: int, version: int) -> bytes:
    return answer(
        "200 OK", f'{{"wanted": {wanted}, "version": "{version}", "model": "m", "members": []}}'
    )


SEEN = PoolState(wanted=3, members=(), version="1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(answer("401 Unauthorized", ""), FaultReason.UNAUTHORIZED, id="401"),
        pytest.param(answer("403 Forbidden", ""), FaultReason.FORBIDDEN, id="403"),
        pytest.param(answer("404 Not Found", ""), FaultReason.NOT_FOUND, id="404"),
        pytest.param(answer("429 Slow", ""), FaultReason.RATE_LIMITED, id="429"),
        pytest.param(answer("500 Oops", ""), FaultReason.SERVER_ERROR, id="500"),
        pytest.param(answer("302 Found", ""), FaultReason.BAD_ANSWER, id="a redirect"),
        pytest.param(answer("200 OK", "<html>"), FaultReason.BAD_ANSWER, id="not JSON"),
        pytest.param(answer("200 OK", "[1]"), FaultReason.BAD_ANSWER, id="a list"),
        pytest.param(answer("200 OK", "{}"), FaultReason.BAD_ANSWER, id="nothing in it"),
        pytest.param(
            answer("200 OK", '{"wanted": -1, "version": "1", "model": "m", "members": []}'),
            FaultReason.BAD_ANSWER,
            id="a number that cannot be",
        ),
        pytest.param(
            answer(
                "200 OK",
                '{"wanted": 1, "version": "1", "model": "m", "members": '
                '[{"name": "a", "state": "lost", "age_s": 1, "url": "u", "control_url": "u"}]}',
            ),
            FaultReason.BAD_ANSWER,
            id="a state that is none",
        ),
        pytest.param(b"what?\r\n\r\n", FaultReason.BAD_ANSWER, id="not HTTP"),
    ],
)
def test_an_answer_that_is_no_pool_is_a_fault(line, reason):
    with Crooked(line) as crooked, pytest.raises(FaultError) as caught:
        pool_at(crooked.url).look()
    assert caught.value.fault.reason is reason
    assert caught.value.fault.knob is None
    assert caught.value.fault.sentence.startswith("sandbox: GET /pool")


def test_a_sandbox_that_is_gone_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pool = pool_at(f"http://127.0.0.1:{port}")
    for call in (pool.look, pool.warmup, lambda: pool.check(writes=False)):
        with pytest.raises(FaultError) as caught:
            call()
        assert caught.value.fault.reason is FaultReason.UNREACHABLE
    with pytest.raises(FaultError) as caught:
        pool.scale(4, SEEN)
    # Never sent, so not unknown.
    assert caught.value.fault.reason is FaultReason.UNREACHABLE
    assert caught.value.fault.knob == "replicas"


@contextmanager
def hanging() -> Iterator[tuple[Crooked, threading.Event]]:
    over = threading.Event()
    with Crooked(over) as crooked:
        try:
            yield crooked, over
        finally:
            over.set()


def test_a_sandbox_that_hangs_times_out():
    with hanging() as (crooked, _), pytest.raises(FaultError) as caught:
        pool_at(crooked.url, timeout_s=0.3).look()
    assert caught.value.fault.reason is FaultReason.TIMED_OUT


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        pytest.param(None, pool_of(5, 2), None, id="lost, and done"),
        pytest.param(None, pool_of(3, 1), FaultReason.OUTCOME_UNKNOWN, id="lost, not done as yet"),
        pytest.param(None, pool_of(9, 2), FaultReason.CONFLICT, id="lost, somebody else wrote"),
        pytest.param(None, None, FaultReason.OUTCOME_UNKNOWN, id="lost, reading back lost too"),
        pytest.param(answer("500 Oops", ""), pool_of(5, 2), None, id="an error after it was done"),
        pytest.param(answer("200 OK", "what?"), pool_of(5, 2), None, id="a garbled answer"),
    ],
)
def test_a_lost_answer_is_read_back_and_never_sent_again(first, then, reason):
    with Crooked(first, then) as crooked:
        pool = pool_at(crooked.url)
        if reason is None:
            assert pool.scale(5, SEEN) == 5
        else:
            with pytest.raises(FaultError) as caught:
                pool.scale(5, SEEN)
            assert caught.value.fault.reason is reason
            assert caught.value.fault.knob == "replicas"
    methods = [request.split()[0] for request in crooked.requests]
    assert methods == [b"PUT", b"GET"]


@pytest.mark.parametrize(
    ("stands", "reason"),
    [
        pytest.param(b'{"requests": 7}', None, id="done"),
        pytest.param(b'{"requests": 0}', FaultReason.OUTCOME_UNKNOWN, id="not done as yet"),
    ],
)
def test_a_lost_answer_about_warm_up_is_read_back(stands, reason):
    with Crooked(None, answer("200 OK", stands.decode())) as crooked:
        pool = pool_at(crooked.url)
        if reason is None:
            pool.set_warmup(7)
        else:
            with pytest.raises(FaultError) as caught:
                pool.set_warmup(7)
            assert caught.value.fault.reason is reason
            assert caught.value.fault.knob == "warmup_requests"


def test_a_profile_without_starts_has_no_warm_up():
    with Crooked(
        answer("200 OK", '{"requests": null}'), answer("501 No", "no startup section")
    ) as crooked:
        pool = pool_at(crooked.url)
        assert pool.warmup() is None
        with pytest.raises(FaultError) as caught:
            pool.set_warmup(3)
    assert caught.value.fault.reason is FaultReason.NOT_MOVABLE


def test_something_else_on_that_port_is_no_sandbox():
    with Crooked(answer("200 OK", '{"engine": "x"}')) as crooked, pytest.raises(FaultError) as got:
        pool_at(crooked.url).check(writes=False)
    assert got.value.fault.reason is FaultReason.BAD_ANSWER
