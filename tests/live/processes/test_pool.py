"""Engine processes on this host: started, warmed, steered, drained, stopped, found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.live.contract_engine import ContractEngine
from tests.live.fake_engine import FakeEngine
from tuner.config import EndpointConfig, ProcessesConfig
from tuner.core.clock import WallClock
from tuner.core.errors import ConfigError
from tuner.core.faults import FaultError, FaultReason
from tuner.core.observation import ReplicaState
from tuner.engines.engine import Health, Replica
from tuner.live.pool import Member, Pool, PoolState
from tuner.live.processes.engine_life import Patience
from tuner.live.processes.pool import ProcessPool
from tuner.live.processes.started import mark_of

ROOT = Path(__file__).parents[3]
FAKE = str(ROOT / "tests/live/fake_engine.py")
DEADLINE_S = 60.0
PATIENCE = Patience(
    start_s=40.0, warmup_s=30.0, drain_s=30.0, stop_s=10.0, quiet_s=0.3, poll_s=0.05
)


class Host:
    """A folder, an engine that runs already, and the controllers that come and go."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.base = stack.enter_context(FakeEngine(name="base"))
        self.adapter = ContractEngine()
        stack.callback(self.adapter.http.close)
        self.config = self.configured()

    def configured(self, *options: str, **changes: object) -> ProcessesConfig:
        config = ProcessesConfig(
            endpoints=(EndpointConfig("base", self.base.url, self.base.control_url),),
            command=(
                sys.executable,
                FAKE,
                "--port",
                "{port}",
                "--control-port",
                "{control_port}",
                *options,
            ),
            environment={"PYTHONPATH": str(ROOT)},
            state_dir=str(self.folder / "state"),
            endpoints_file=str(self.folder / "endpoints.json"),
        )
        return replace(config, **changes)  # type: ignore[arg-type]

    def pool(
        self,
        config: ProcessesConfig | None = None,
        *,
        writes: bool = True,
        patience: Patience = PATIENCE,
        first_retry_s: float = 0.0,
    ) -> ProcessPool:
        pool = ProcessPool(
            config or self.config,
            self.adapter,
            clock=WallClock(),
            patience=patience,
            first_retry_s=first_retry_s,
        )
        self.stack.callback(pool.close)
        pool.check(writes=writes)
        return pool

    def noted(self) -> list[dict[str, object]]:
        path = self.folder / "state/processes.json"
        return json.loads(path.read_text())["processes"] if path.exists() else []

    def routed(self) -> list[str]:
        return json.loads((self.folder / "endpoints.json").read_text())

    def end_what_was_started(self) -> None:
        for process in self.noted():
            if mark_of(process["pid"]) == process["mark"]:
                with suppress(ProcessLookupError):
                    os.killpg(process["pid"], signal.SIGKILL)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as stack:
        host = Host(tmp_path, stack)
        try:
            yield host
        finally:
            host.end_what_was_started()


def until(ask: Callable[[], object], what: str) -> None:
    """Ask again and again until the answer is true; fails at the deadline."""
    pause, ends_s = threading.Event(), monotonic() + DEADLINE_S
    while not ask():
        assert monotonic() < ends_s, f"not within {DEADLINE_S:g} s: {what}"
        pause.wait(0.05)


def extra(state: PoolState) -> list[Member]:
    return [member for member in state.members if member.name != "base"]


def ready(pool: Pool, replicas: int) -> PoolState:
    """The pool once so many members are ready and no other is there."""
    found: list[PoolState] = []

    def all_ready() -> bool:
        found.append(pool.look())
        members = found[-1].members
        return len(members) == replicas and all(m.state == "ready" for m in members)

    until(all_ready, f"{replicas} ready replicas")
    return found[-1]


def told(pool: Pool, text: str) -> str:
    """The sentence of the first fault that contains the text."""
    found: list[str] = []

    def said() -> bool:
        found.extend(f.sentence for f in pool.look().faults if text in f.sentence)
        return bool(found)

    until(said, f"a fault that says '{text}'")
    return found[0]


def complete(url: str) -> int:
    return httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=30.0).status_code


def finished(url: str) -> int:
    page = httpx.get(f"{url}/metrics", timeout=10.0).text
    return int(page.split("vllm:request_success_total")[1].split()[1])


def test_an_engine_that_runs_already_is_a_ready_member(host):
    pool = host.pool()
    state = pool.look()
    assert (state.wanted, [(m.name, m.state) for m in state.members]) == (1, [("base", "ready")])
    assert state.faults == ()
    assert host.routed() == [host.base.url]


def test_a_new_engine_is_ready_after_a_completion_and_its_warm_up(host):
    pool = host.pool()
    pool.set_warmup(7)
    assert pool.scale(2, pool.look()) == 2
    first = pool.look()
    assert (first.wanted, [m.state for m in extra(first)]) == (2, ["starting"])
    assert host.routed() == [host.base.url]
    (member,) = extra(ready(pool, 2))
    assert member.replica is not None
    assert finished(member.replica.serving_url) == 1 + 7
    assert host.routed() == [host.base.url, member.replica.serving_url]
    assert host.adapter.read(member.replica).knobs["batch_size"].value == 32


def test_an_engine_that_served_keeps_its_traffic_while_its_first_look_is_late(host, monkeypatch):
    monkeypatch.setattr("tuner.live.processes.pool.LOOK_S", 0.05)
    over, health = threading.Event(), host.adapter.health

    def late(replica: Replica) -> Health:
        if threading.current_thread().name.startswith("health"):  # the pool's own looks
            over.wait(DEADLINE_S)
        return health(replica)

    monkeypatch.setattr(host.adapter, "health", late)
    host.stack.callback(over.set)
    pool = host.pool()
    pool.scale(2, pool.look())
    until(lambda: len(host.routed()) == 2, "that the new engine takes traffic")
    assert [member.state for member in extra(pool.look())] == ["ready"]
    assert len(host.routed()) == 2
    pool.close()
    following = host.pool()
    assert [member.state for member in extra(following.look())] == ["ready"]
    assert len(host.routed()) == 2


def test_a_new_engine_lives_in_a_session_of_its_own(host):
    pool = host.pool()
    pool.scale(2, pool.look())
    (process,) = host.noted()
    assert os.getsid(process["pid"]) == process["pid"] != os.getsid(0)


def test_one_two_one_without_a_failed_request(host):
    # As quiet as in production: a client that is starved of CPU has read the list a while ago.
    quiet_s = Patience().quiet_s
    pool = host.pool(
        host.configured("--seconds", "0.05"), patience=replace(PATIENCE, quiet_s=quiet_s)
    )
    statuses: list[object] = []
    over = threading.Event()

    def client() -> None:
        for turn in count():
            if over.is_set():
                return
            urls = host.routed()
            try:
                statuses.append(complete(urls[turn % len(urls)]))
            except httpx.HTTPError as error:
                statuses.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    pool.scale(2, pool.look())
    (member,) = extra(ready(pool, 2))
    assert member.replica is not None
    url = member.replica.serving_url
    until(lambda: finished(url) > 20, "traffic on the new engine")
    pool.scale(1, pool.look())
    assert host.routed() == [host.base.url]
    ready(pool, 1)
    over.set()
    for thread in clients:
        thread.join(30.0)
    assert {str(status) for status in statuses} == {"200"}
    # It is no member as soon as it is dead, and put away a moment later.
    until(lambda: host.noted() == [], "the end of the second engine in the book")


def test_a_leaving_engine_finishes_what_is_inside_before_it_ends(host):
    pool = host.pool(host.configured("--seconds", "1.5"), patience=replace(PATIENCE, quiet_s=2.0))
    pool.scale(2, pool.look())
    (member,) = extra(ready(pool, 2))
    assert member.replica is not None
    statuses: list[int] = []
    url = member.replica.serving_url
    request = threading.Thread(target=lambda: statuses.append(complete(url)))
    request.start()
    until(lambda: host.adapter.read(member.replica).running, "a request inside")
    pool.scale(1, pool.look())
    assert [m.state for m in extra(pool.look())] == ["draining"]
    ready(pool, 1)
    request.join(30.0)
    assert statuses == [200]


def test_an_engine_that_is_not_wanted_any_more_while_it_starts_is_stopped_at_once(host):
    pool = host.pool(host.configured("--unhealthy"), patience=replace(PATIENCE, drain_s=3600.0))
    pool.scale(2, pool.look())
    (process,) = host.noted()
    pool.scale(1, pool.look())
    ready(pool, 1)
    assert mark_of(process["pid"]) is None


def test_requests_that_do_not_end_are_cut_off_when_the_time_to_drain_is_up(host):
    pool = host.pool(host.configured("--seconds", "1"), patience=replace(PATIENCE, drain_s=0.2))
    pool.scale(2, pool.look())
    (member,) = extra(ready(pool, 2))
    assert member.replica is not None
    url = member.replica.serving_url
    over = threading.Event()

    def keep_busy() -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):
                complete(url)

    clients = [threading.Thread(target=keep_busy, daemon=True) for _ in range(3)]
    for thread in clients:
        thread.start()
    until(lambda: host.adapter.read(member.replica).running, "requests inside")
    pool.scale(1, pool.look())
    assert told(pool, "requests after 0.2 s of draining")
    over.set()
    ready(pool, 1)


def test_an_engine_that_ignores_the_request_to_end_is_killed(host):
    pool = host.pool(host.configured("--stubborn"), patience=replace(PATIENCE, stop_s=0.5))
    pool.scale(2, pool.look())
    ready(pool, 2)
    (process,) = host.noted()
    pool.scale(1, pool.look())
    ready(pool, 1)
    assert mark_of(process["pid"]) is None


def test_the_newest_leaves_first_and_the_first_is_never_stopped(host):
    pool = host.pool()
    pool.scale(2, pool.look())
    (old,) = extra(ready(pool, 2))
    pool.scale(3, pool.look())
    ready(pool, 3)
    pool.scale(2, pool.look())
    assert [member.name for member in extra(ready(pool, 2))] == [old.name]
    with pytest.raises(FaultError, match="never stopped") as refused:
        pool.scale(0, pool.look())
    assert (refused.value.fault.reason, refused.value.fault.knob) == (
        FaultReason.REFUSED,
        "replicas",
    )


def test_engines_outlive_the_controller_and_the_next_one_finds_them(host):
    first = host.pool()
    first.set_warmup(3)
    first.scale(2, first.look())
    (before,) = extra(ready(first, 2))
    first.close()
    (process,) = host.noted()
    assert mark_of(process["pid"]) == process["mark"]

    second = host.pool()
    state = second.look()
    assert (state.wanted, second.warmup()) == (2, 3)
    assert [(m.name, m.state) for m in extra(state)] == [(before.name, ReplicaState.READY)]
    second.scale(1, state)
    ready(second, 1)
    until(lambda: mark_of(process["pid"]) is None, "the end of the engine")


def test_a_controller_that_goes_while_an_engine_starts_leaves_it_to_the_next(host):
    first = host.pool()
    first.scale(2, first.look())
    first.close()
    second = host.pool()
    ready(second, 2)
    assert len(host.noted()) == 1


def test_a_metrics_page_of_its_own_has_its_own_address(host):
    endpoint = replace(host.config.endpoints[0], metrics_url="http://127.0.0.1:9")
    environment = {**host.config.environment, "METRICS_PORT": "{metrics_port}"}
    pool = host.pool(host.configured(endpoints=(endpoint,), environment=environment))
    pool.scale(2, pool.look())
    (process,) = host.noted()
    pages = [m.replica.page("/metrics") for m in pool.look().members if m.replica is not None]
    assert pages == [
        "http://127.0.0.1:9/metrics",
        f"http://127.0.0.1:{process['metrics_port']}/metrics",
    ]
    assert len({process[kind] for kind in ("port", "control_port", "metrics_port")}) == 3


def test_a_process_number_that_somebody_else_has_now_is_never_signalled(host):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (host.folder / "state").mkdir()
        process = {
            "name": "127.0.0.1:1",
            "pid": stranger.pid,
            "mark": "an earlier boot:123",
            "port": 1,
            "control_port": 2,
            "metrics_port": 3,
            "asked_s": 1.0,
            "state": "ready",
        }
        book = {
            "schema": "tuner.processes/1",
            "wanted": 0,
            "version": 4,
            "warmup_requests": 0,
            "processes": [process],
        }
        (host.folder / "state/processes.json").write_text(json.dumps(book))
        pool = host.pool(patience=replace(PATIENCE, stop_s=0.2))
        assert extra(pool.look()) == []
        assert told(pool, "died while it served")
        until(lambda: host.noted() == [], "that it is forgotten")
        assert stranger.poll() is None
        (host.folder / "state/processes.json").write_text(json.dumps(book))
    finally:
        stranger.communicate(b"\n", timeout=30.0)
    assert stranger.returncode == 0


def test_an_engine_that_dies_is_told_not_counted_and_replaced(host):
    pool = host.pool()
    pool.scale(2, pool.look())
    (member,) = extra(ready(pool, 2))
    (process,) = host.noted()
    os.kill(process["pid"], signal.SIGKILL)
    assert told(pool, f"{member.name} died while it served (signal 9)")
    state = ready(pool, 2)
    assert [m.name for m in extra(state)] != [member.name]
    assert state.wanted == 2


def test_a_failed_start_is_tried_again_only_after_a_pause(host):
    pool = host.pool(host.configured("--exit", "3"), first_retry_s=3600.0)
    pool.scale(2, pool.look())
    assert "engine-" in told(pool, "died before it was ready (exit status 3)")
    for _ in range(3):
        state = pool.look()
        assert (state.wanted, extra(state), state.faults) == (2, [], ())


@pytest.mark.parametrize(
    ("option", "why"),
    [("--unhealthy", "not ready"), ("--refuse", "500")],
    ids=["health says no", "health says yes and the completion fails"],
)
def test_an_engine_that_is_never_ready_is_stopped_when_its_time_is_up(host, option, why):
    pool = host.pool(
        host.configured(option), patience=replace(PATIENCE, start_s=1.5), first_retry_s=3600.0
    )
    pool.scale(2, pool.look())
    (process,) = host.noted()
    assert why in told(pool, "was not ready after 1.5 s and is stopped")
    assert mark_of(process["pid"]) is None


def test_an_engine_that_calls_itself_ready_and_answers_nothing_is_told_while_it_starts(host):
    pool = host.pool(host.configured("--refuse"))
    pool.scale(2, pool.look())
    assert "500" in told(pool, "calls itself ready and completes no request")
    state = pool.look()
    assert ([m.state for m in extra(state)], state.faults) == (["starting"], ())


def test_an_endpoint_that_stops_answering_is_not_ready(host):
    pool = host.pool()
    assert pool.look().members[0].state is ReplicaState.READY
    host.base.healthy = False
    state = pool.look()
    assert state.members[0].state is ReplicaState.STARTING
    assert state.faults[0].reason is FaultReason.NOT_READY
    assert host.routed() == [host.base.url]


def test_an_unwell_engine_of_ours_takes_no_traffic_until_it_is_well(host):
    pool = host.pool(host.configured(endpoints=()))
    pool.scale(1, pool.look())
    state = pool.look()
    until(lambda: pool.look().members[0].state == "ready", "a ready engine")
    assert state.wanted == 1
    (process,) = host.noted()
    os.kill(process["pid"], signal.SIGSTOP)
    try:
        host.adapter.http.timeout_s = 0.2
        until(lambda: pool.look().members[0].state == "starting", "that it is unwell")
        assert host.routed() == []
    finally:
        os.kill(process["pid"], signal.SIGCONT)
    until(lambda: pool.look().members[0].state == "ready", "that it is well")
    assert len(host.routed()) == 1


def test_in_shadow_nothing_is_written_and_the_engines_are_seen(host):
    active = host.pool()
    active.scale(2, active.look())
    ready(active, 2)
    before = {path: path.read_bytes() for path in host.folder.rglob("*.json")}
    shadow = host.pool(writes=False)
    assert [m.state for m in ready(shadow, 2).members] == ["ready", "ready"]
    with pytest.raises(FaultError, match="watching only"):
        shadow.scale(1, shadow.look())
    with pytest.raises(FaultError):
        shadow.set_warmup(5)
    shadow.close()
    assert {path: path.read_bytes() for path in host.folder.rglob("*.json")} == before


def test_a_shadow_alone_makes_no_file(host):
    host.pool(writes=False).look()
    assert list(host.folder.iterdir()) == []


def test_the_number_that_was_changed_since_the_look_is_a_conflict(host):
    pool = host.pool()
    seen = pool.look()
    pool.scale(2, seen)
    with pytest.raises(FaultError) as conflict:
        pool.scale(3, seen)
    assert conflict.value.fault.reason is FaultReason.CONFLICT


def test_without_a_command_the_number_cannot_be_moved(host):
    pool = host.pool(host.configured(command=()))
    with pytest.raises(FaultError) as refused:
        pool.scale(2, pool.look())
    assert refused.value.fault.reason is FaultReason.NOT_MOVABLE
    assert pool.warmup() is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"command": ("no-such-engine", "{port}")}, "'no-such-engine' is not a program"),
        ({"command": (sys.executable,)}, "nothing says {port}"),
        ({"command": (), "endpoints": ()}, "there is no replica"),
        ({"endpoints_file": "/no/such/folder/e.json"}, "folder /no/such/folder does not exist"),
        ({"state_dir": "/proc/state"}, "/proc/state cannot be written"),
    ],
    ids=["no program", "no port", "nothing", "no folder", "folder not writable"],
)
def test_a_configuration_that_cannot_work_is_refused_before_the_start(host, changes, sentence):
    with pytest.raises(ConfigError) as refused:
        host.pool(host.configured(**changes))
    assert sentence in str(refused.value)


def test_a_second_controller_on_the_same_folder_is_refused(host):
    host.pool()
    with pytest.raises(ConfigError, match="another controller works with"):
        host.pool()


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"schema": "other"}'], ids=["not JSON", "empty", "another schema"]
)
def test_notes_that_cannot_be_read_are_refused_and_left_alone(host, text):
    (host.folder / "state").mkdir()
    path = host.folder / "state/processes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        host.pool()
    with pytest.raises(FaultError, match="cannot be read"):
        host.pool(writes=False).look()
    assert path.read_text() == text
    path.unlink()
