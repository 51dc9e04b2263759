"""Several targets in one process: what one of them does to the others, and how it all ends."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control.standins import KNOBS, Bench, Fleet, bench
from tuner.control.audit_store import AuditStore, RunIdentity
from tuner.control.logs import logger_to
from tuner.control.metrics import ControllerMetrics
from tuner.control.service import Service, TargetLoop
from tuner.core.errors import ConfigError, InputError, TemporaryError
from tuner.core.faults import Fault, FaultError, FaultReason
from tuner.core.history import History

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""Far longer than anything here takes on a busy machine; only a failure waits so long."""


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to that"
        threading.Event().wait(0.005)


def service(*benches: Bench, stop: threading.Event, ticks: int | None = None) -> Service:
    loops = [made.loop for made in benches]
    return Service(loops, stop, page=None, log=logger_to(benches[0].output), ticks=ticks)


@contextmanager
def running(made: Service) -> Iterator[list[int]]:
    """The service in a thread; its exit code once the block is left."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(made.run()), daemon=True)
    thread.start()
    yield codes
    made.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_slow_target_delays_no_other() -> None:
    stop, go = threading.Event(), threading.Event()
    metrics = ControllerMetrics()
    slow = bench("slow", stop=stop, metrics=metrics)
    slow.fleet.before_observe = lambda number: assert_(go.wait(PATIENCE_S))
    quick = bench("quick", stop=stop, metrics=metrics)
    with running(service(slow, quick, stop=stop)) as codes:
        eventually(lambda: len(quick.audit.records) >= 5)
        assert slow.audit.records == []
        go.set()
        eventually(lambda: len(slow.audit.records) >= 1)
    assert codes == [0]


def assert_(true: bool) -> None:
    assert true


def test_a_tick_that_raises_is_told_counted_and_followed_by_the_next_one() -> None:
    def raise_twice(number: int) -> None:
        if number in (3, 4):
            raise ZeroDivisionError("nobody thought of this")

    broken = bench(fleet=Fleet(before_observe=raise_twice))
    broken.loop.run(threading.Event(), ticks=6)
    assert broken.figure("tick_failures_total") == 2
    assert broken.figure("tick_duration_seconds_count") == 6
    wanted = [decision.target["batch_size"] for decision in broken.audit.decisions]
    assert wanted == [60, 59, 58, 57], "the policy's memory outlives the failure"
    first, _ = broken.lines("tick failed")
    assert first["why"] == "ZeroDivisionError: nobody thought of this"
    assert "raise_twice" in first["traceback"]


def test_an_intent_that_cannot_be_recorded_is_not_carried_out() -> None:
    made = bench()
    made.audit.broken = "audit log sqlite:///a.db cannot be written (disk is full)"
    made.loop.run(threading.Event(), ticks=2)
    assert made.fleet.calls == ["observe", "observe", "release", "close"]
    assert made.figure("audit_failures_total") == 2
    assert "disk is full" in made.loop.pulse.audit_fault
    assert made.loop.pulse.decided_s is None
    assert made.lines("tick failed")[0]["traceback"] is None, "known trouble needs no traceback"


def test_a_tick_under_way_is_finished_before_the_target_is_released_and_left() -> None:
    stop, inside, go = threading.Event(), threading.Event(), threading.Event()

    def wait(number: int) -> None:
        inside.set()
        assert go.wait(PATIENCE_S)

    made = bench(stop=stop, fleet=Fleet(before_observe=wait), every_s=3600.0)
    with running(service(made, stop=stop)) as codes:
        assert inside.wait(PATIENCE_S)
        stop.set()
        go.set()
        eventually(lambda: made.loop.pulse.ended)
    assert codes == [0]
    assert made.fleet.calls == ["observe", "apply", "release", "close"]
    assert made.audit.records[0].receipt is not None
    assert made.fleet.settings["batch_size"] == 64
    assert made.lines("released")[0]["settings"] == {"batch_size": 64}


def test_a_loop_that_sleeps_for_an_hour_ends_at_once() -> None:
    stop = threading.Event()
    made = bench(stop=stop, every_s=3600.0)
    with running(service(made, stop=stop)):
        eventually(lambda: made.loop.pulse.decided_s is not None)
    assert made.fleet.calls[-2:] == ["release", "close"]


def test_shadow_gives_nothing_back_because_it_took_nothing() -> None:
    made = bench(writes=False)
    made.loop.run(threading.Event(), ticks=1)
    assert made.fleet.calls == ["observe", "apply", "close"]


def test_a_release_that_fails_is_told_and_the_connection_still_closed() -> None:
    def refuse() -> None:
        raise OSError("the node is gone")

    made = bench(fleet=Fleet(before_release=refuse))
    made.loop.run(threading.Event(), ticks=1)
    assert made.fleet.calls[-2:] == ["release", "close"]
    assert made.lines("release failed")[0]["why"] == "OSError: the node is gone"


def test_a_target_that_does_not_leave_in_time_is_a_failure() -> None:
    stop, never = threading.Event(), threading.Event()
    made = bench(stop=stop, fleet=Fleet(before_observe=lambda n: assert_(never.wait(PATIENCE_S))))
    slow = Service([made.loop], stop, page=None, log=logger_to(made.output), grace_s=0.0)
    with running(slow) as codes:
        eventually(lambda: made.fleet.observed == 1)
    never.set()
    assert codes == [1]
    assert "hot values end by themselves" in made.lines("not left in time")[0]["why"]


def test_every_target_on_which_it_may_not_run_is_named_and_the_others_are_let_go() -> None:
    def refuse(why: str) -> Callable[[], Fleet]:
        def connect() -> Fleet:
            raise ConfigError(why)

        return connect

    stop = threading.Event()
    good = bench("good", stop=stop)
    one = bench("one", stop=stop, connect=refuse("an HPA scales it"))
    two = bench("two", stop=stop, connect=refuse("no right to patch"))
    with pytest.raises(InputError) as caught:
        service(good, one, two, stop=stop).connect()
    assert str(caught.value).splitlines() == [
        "target one: an HPA scales it",
        "target two: no right to patch",
    ]
    assert good.fleet.calls == ["close"]


def test_a_target_that_does_not_answer_yet_is_tried_again_at_its_ticks() -> None:
    attempts: list[int] = []
    fleet = Fleet()

    def connect() -> Fleet:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise TemporaryError("the API server does not answer", delay_s=1.0)
        return fleet

    made = bench(connect=connect, fleet=fleet)
    service(made, stop=threading.Event()).connect()
    made.loop.run(threading.Event(), ticks=3)
    assert made.lines("not reached yet")[0]["why"] == "the API server does not answer"
    assert made.figure("tick_failures_total") == 1
    assert len(made.audit.records) == 2


@pytest.mark.parametrize(("broken", "code"), [("", 0), ("disk is full", 1)])
def test_so_many_ticks_without_a_decision_are_a_failure(broken: str, code: int) -> None:
    made = bench()
    made.audit.broken = broken
    assert service(made, stop=threading.Event(), ticks=2).run() == code


def test_each_decision_is_one_line_with_from_to_who_and_why() -> None:
    made = bench()
    made.loop.run(threading.Event(), ticks=1)
    (line,) = made.lines("decision")
    assert line["id"] == 1
    assert line["target"] == "r1"
    assert line["moves"] == "batch_size 64 -> 60"
    assert line["source"] == "policy"
    assert line["why"] == "the count is at 60"


def test_what_can_be_moved_is_told_once_at_the_start() -> None:
    made = bench()
    made.loop.run(threading.Event(), ticks=2)
    (line,) = made.lines("capability")
    assert (line["knob"], line["movable"]) == ("batch_size", True)
    assert line["why"] == "the engine takes it while it runs"


def test_a_probe_that_fails_keeps_nothing_from_running() -> None:
    def refuse() -> None:
        raise FaultError(Fault("pod-1", FaultReason.TIMED_OUT, "pod-1 gave no answer in 10 s"))

    made = bench(fleet=Fleet(before_probe=refuse))
    made.loop.run(threading.Event(), ticks=1)
    assert made.lines("capability probe failed")[0]["why"] == "pod-1 gave no answer in 10 s"
    assert len(made.audit.records) == 1


class Deaf(io.StringIO):
    """A reader that went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_of_the_log_that_went_away_ends_nothing() -> None:
    made = bench()
    loop = TargetLoop(made.loop.plan, made.metrics, logger_to(Deaf()))
    loop.run(threading.Event(), ticks=2)
    assert len(made.audit.records) == 2
    assert made.fleet.calls[-2:] == ["release", "close"]
    assert made.figure("tick_failures_total") == 0


def test_a_trouble_is_told_when_it_begins_and_when_it_is_over() -> None:
    fault = Fault("pod-7", FaultReason.TIMED_OUT, "pod-7 gave no page within 2 s")
    fleet = Fleet(faults=(fault,))
    made = bench(fleet=fleet)

    def heal(number: int) -> None:
        if number == 3:
            fleet.faults = ()

    fleet.before_observe = heal
    made.loop.run(threading.Event(), ticks=4)
    assert [line["sentence"] for line in made.lines("fault")] == [fault.sentence]
    assert [line["where"] for line in made.lines("fault is over")] == ["pod-7"]


def test_a_restarted_controller_goes_on_from_its_audit_log(tmp_path: Path) -> None:
    store = AuditStore.open(f"sqlite:///{tmp_path}/audit.db")
    identity = RunIdentity("counts", "d1", "c1", "0", "direct")

    def run(history: History, ticks: int) -> list[int]:
        made = bench(history=history)
        plan = made.loop.plan
        loop = type(made.loop)(
            type(plan)(**{**vars(plan), "audit": store.writer("r1", identity=identity)}),
            made.metrics,
            logger_to(made.output),
        )
        loop.run(threading.Event(), ticks=ticks)
        return [stored.decision.target["batch_size"] for stored in store.decisions("r1")]

    assert run(History(KNOBS), 2) == [60, 59]
    again = store.history("r1", KNOBS, policy_digest="d1", after_s=0.0)
    assert run(again, 2) == [60, 59, 58, 57]
    store.close()


@contextmanager
def process(kind: str) -> Iterator[subprocess.Popen[str]]:
    """The service in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.control.standins", kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait(PATIENCE_S)
        assert child.stdout is not None
        child.stdout.close()
        assert child.stdin is not None
        child.stdin.close()


def read_until(child: subprocess.Popen[str], event: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if f'"event": "{event}"' in line:
            return
    raise AssertionError(f"the process ended before it said {event!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_lets_the_controller_leave_the_target_with_its_own_rule(
    number: signal.Signals,
) -> None:
    with process("well") as child:
        read_until(child, "decision")
        child.send_signal(number)
        for event in ("stopping", "releasing", "released", "stopped"):
            read_until(child, event)
        assert child.wait(PATIENCE_S) == 0


def test_a_signal_while_the_target_is_being_reached_lets_nothing_begin() -> None:
    with process("far") as child:
        read_until(child, "reaching")
        child.send_signal(signal.SIGTERM)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        said = child.stdout.read()
        assert child.wait(PATIENCE_S) == 0
    assert '"event": "stopped"' in said
    assert '"event": "released"' in said
    assert '"event": "decision"' not in said


def test_a_second_signal_ends_the_controller_at_once() -> None:
    with process("hung") as child:
        read_until(child, "hanging")
        child.send_signal(signal.SIGTERM)
        read_until(child, "stopping")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_the_controller_needs_no_training_library_and_compiles_nothing() -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, tuner.control.start, tuner.control.promote, tuner.commands.run\n"
            "import tuner.live.connect, tuner.live.metrics.collector, tuner.live.kubernetes.pool\n"
            "print(*sorted({name.split('.')[0] for name in sys.modules}))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout.split()
    banned = {"torch", "stable_baselines3", "numba", "gymnasium", "onnx", "optuna", "envs"}
    assert not banned & set(loaded)
    assert "structlog" in loaded
