"""The audit log on real databases: what is written stays, and a restart goes on from it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.control import logs, postgres
from tests.envs import worlds
from tuner.control.audit_store import (
    AuditStore,
    AuditWriter,
    Claim,
    ClaimedError,
    Promotion,
    PromotionKind,
    write_faults,
)
from tuner.control.replay import replay
from tuner.core.audit import MemoryAudit
from tuner.core.clock import VirtualClock
from tuner.core.decision import Decision, Proposal, Receipt, Source
from tuner.core.errors import ConfigError, PermanentError, TemporaryError
from tuner.core.faults import Fault, FaultReason
from tuner.core.history import LENGTH
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation
from tuner.guardrails import default_guardrails
from tuner.knobs import knob_space

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Postgres]:
    reason = postgres.missing()
    if reason is not None:
        pytest.skip(reason)
    with postgres.postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return logs.url_of(tmp_path)
    return request.getfixturevalue("server").new_database()


@pytest.fixture
def store(url: str) -> Iterator[AuditStore]:
    opened = AuditStore.open(url)
    yield opened
    opened.close()


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[AuditStore]:
    opened = AuditStore.open(logs.url_of(tmp_path), timeout_s=0.2)
    yield opened
    opened.close()


def decision(at_s: float = 1.0, **changes: object) -> Decision:
    made = Decision(
        at_s=at_s,
        proposal=Proposal({"replicas": 3.0}, memory=(1.0,), log_prob=-0.5),
        fallback=Proposal({"replicas": 2.0}, memory=(2.0, float("nan"))),
        settings=KnobSettings(replicas=2),
        target=KnobSettings(replicas=3),
        source=Source.POLICY,
    )
    return replace(made, **changes)


def seen(at_s: float = 1.0, **fields: object) -> Observation:
    return Observation(at_s=at_s, window_s=15.0, settings=KnobSettings(replicas=2), **fields)


def test_an_intent_is_there_before_the_receipt_and_whole_after_it(store, url):
    writer = store.writer("r1", identity=logs.IDENTITY)
    writer.intent("shadow", seen(qps=2.0), decision())
    other = AuditStore.open(url, read_only=True)
    (half,) = other.decisions("r1")
    assert half.id == writer.last_id
    assert half.record.receipt is None
    assert half.record.mode == "shadow"
    assert half.record.observation == seen(qps=2.0)
    assert half.decision.target == KnobSettings(replicas=3)
    assert half.decision.proposal.log_prob == -0.5
    assert half.identity == logs.IDENTITY
    assert other.activity("r1", after_s=0.0).open == 1

    fault = Fault("kubernetes", FaultReason.CONFLICT, "someone else wrote")
    receipt = Receipt(1.5, KnobSettings(), (fault,))
    writer.receipt(decision(), receipt)
    assert other.decision(half.id).record.receipt == receipt
    activity = other.activity("r1", after_s=0.0)
    assert (activity.open, activity.write_faults, activity.moves) == (0, 1, 1)
    other.close()


def test_a_claim_is_one_holder_s_until_it_is_given_up_or_runs_out(url):
    clock = VirtualClock(1000.0)
    store = AuditStore.open(url, clock=clock)
    ann, bob = Claim("r1", "ann", 65.0), Claim("r1", "bob", 65.0)
    store.take(ann)
    store.take(Claim("r2", "bob", 65.0))
    with pytest.raises(ClaimedError, match=r"steered by another controller \(ann, .* in 66 s"):
        store.take(bob)
    clock.sleep_until(1060.0)
    store.take(ann)
    clock.sleep_until(1125.0)
    with pytest.raises(ClaimedError):
        store.take(bob)
    clock.sleep_until(1125.5)
    store.take(bob)
    store.give_up(ann)  # no longer ann's to give
    with pytest.raises(ClaimedError, match="bob"):
        store.take(ann)
    store.give_up(bob)
    store.take(ann)
    store.close()


def test_of_many_who_claim_at_once_one_wins(url):
    stores = [AuditStore.open(url) for _ in range(6)]
    ready, won = threading.Barrier(len(stores)), []

    def claim(number: int) -> None:
        ready.wait(10)
        try:
            stores[number].take(Claim("r1", f"holder {number}", 60.0))
            won.append(number)
        except ClaimedError:
            pass

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for opened in stores:
        opened.close()
    assert len(won) == 1


def test_an_intent_renews_the_claim_and_is_not_written_without_it(url):
    clock = VirtualClock(1000.0)
    store = AuditStore.open(url, clock=clock)
    ann, bob = Claim("r1", "ann", 65.0), Claim("r1", "bob", 65.0)
    writer = store.writer("r1", identity=logs.IDENTITY, claim=ann)
    store.take(ann)
    clock.sleep_until(1060.0)
    writer.intent("active", seen(), decision())
    clock.sleep_until(1120.0)
    with pytest.raises(ClaimedError):
        store.take(bob)
    clock.sleep_until(1126.0)
    store.take(bob)
    with pytest.raises(ClaimedError, match="bob"):
        writer.intent("active", seen(), decision())
    assert len(store.decisions("r1")) == 1
    store.close()


def test_a_log_from_before_there_were_claims_gets_their_table(tmp_path):
    AuditStore.open(logs.url_of(tmp_path)).close()
    spoil(tmp_path / "audit.db", "DROP TABLE tuner_claims")
    store = AuditStore.open(logs.url_of(tmp_path))
    store.take(Claim("r1", "ann", 65.0))
    store.close()


def test_a_receipt_without_an_intent_is_a_mistake_of_the_program(store):
    with pytest.raises(ValueError, match="without an intent"):
        store.writer("r1", identity=logs.IDENTITY).receipt(decision(), Receipt(1.0, KnobSettings()))


def test_a_receipt_whose_intent_is_gone_is_told(store):
    with pytest.raises(PermanentError, match="no longer holds decision 77"):
        store.add_receipt(77, Receipt(1.0, KnobSettings()))


def test_what_shadow_refuses_is_no_fault_of_writing():
    shadow = Fault("kubernetes", FaultReason.SHADOW, "nothing is written")
    lost = Fault("pod-1", FaultReason.OUTCOME_UNKNOWN, "no answer")
    assert write_faults(Receipt(1.0, KnobSettings(), (shadow, lost))) == (lost,)


def test_ids_rise_and_targets_keep_apart(store):
    for target in ("b", "a", "b"):
        store.writer(target, identity=logs.IDENTITY).intent("shadow", seen(), decision())
    assert store.targets() == ["a", "b"]
    assert [d.target for d in store.decisions()] == ["b", "a", "b"]
    ids = [d.id for d in store.decisions("b")]
    assert ids == sorted(ids)
    assert len(ids) == 2
    assert [d.id for d in store.decisions("b", last=1)] == ids[-1:]
    assert store.decision(10**6) is None


def test_every_decision_is_read_in_chunks_and_by_mode(store, monkeypatch):
    monkeypatch.setattr("tuner.control.audit_store.CHUNK", 3)
    writer = store.writer("r1", identity=logs.IDENTITY)
    for at in range(10):
        writer.intent("shadow" if at % 2 else "active", seen(at), decision(at))
    assert [d.decision.at_s for d in store.each("r1")] == list(range(10))
    assert [d.decision.at_s for d in store.each("r1", mode="shadow")] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_measurement_that_is_no_number_does_not_cost_the_decision(store, value):
    store.writer("r1", identity=logs.IDENTITY).intent("shadow", seen(business=value), decision())
    assert store.decisions("r1")[0].record.observation.business is None


def test_text_that_no_database_takes_is_made_fit(store):
    store.writer("r\0\ud800", identity=logs.IDENTITY).intent("shadow", seen(), decision())
    (name,) = store.targets()
    assert name == "r\N{REPLACEMENT CHARACTER}?"


def test_the_latest_word_on_a_target_holds(store):
    assert store.promotion("r1") is None
    first = Promotion(
        target="r1",
        at_s=5.0,
        kind=PromotionKind.PROMOTED,
        policy="hpa",
        policy_digest="d",
        config_digest="c",
        who="ann@host",
        version="0.1.0",
        evidence={"gates": [{"name": "hours", "value": None}]},
    )
    second = replace(first, kind=PromotionKind.DEMOTED, at_s=4.0, evidence=None, reason="why")
    store.add_promotion(first)
    assert store.promotion("r1") == first
    store.add_promotion(second)
    assert store.promotion("r1") == second
    assert store.promotions("r1") == [first, second]
    assert store.targets() == ["r1"]


# Restart and replay ------------------------------------------------------------------------


def stored_run(store: AuditStore, n: int, restart_at: int | None) -> None:
    """`n` ticks on one simulated fleet; the controller is a new one from tick `restart_at` on."""
    clock = VirtualClock(worlds.TICK_S)
    cluster = logs.simulated(clock)
    first = n if restart_at is None else restart_at
    list(islice(logs.run(cluster, clock, store.writer("r1", identity=logs.IDENTITY)), first))
    if restart_at is None:
        return
    clock.sleep_until(clock.now_s() + worlds.TICK_S)
    history = store.history("r1", worlds.knobs(), policy_digest=None, after_s=0.0)
    writer = store.writer("r1", identity=logs.IDENTITY)
    list(islice(logs.run(cluster, clock, writer, history=history), n - first))


@pytest.mark.parametrize("restart_at", [1, 7, 40, 80])
def test_a_restart_in_the_middle_decides_as_a_run_without_one(tmp_path, restart_at):
    runs = []
    for name, at in (("whole", None), ("restarted", restart_at)):
        (tmp_path / name).mkdir()
        opened = AuditStore.open(logs.url_of(tmp_path / name))
        stored_run(opened, 100, at)
        runs.append([repr(d.decision) for d in opened.decisions("r1", last=200)])
        opened.close()
    whole, restarted = runs
    assert len(whole) == 100
    assert len(set(whole)) == 100
    assert restarted == whole


def test_the_windows_in_hpas_memory_are_what_the_restart_is_about(tmp_path):
    """Without the stored memory the same restart decides otherwise: the test above can fail."""
    opened = AuditStore.open(logs.url_of(tmp_path))
    stored_run(opened, 40, None)
    history = opened.history("r1", worlds.knobs(), policy_digest=None, after_s=0.0)
    opened.close()
    assert history.memory
    now = history.now
    asked = [
        logs.hpa().propose(h.observed(replace(now, at_s=now.at_s + 15.0, output_tokens_per_s=1.0)))
        for h in (history, replace(history, memory=()))
    ]
    assert asked[0].memory != asked[1].memory


def test_a_rebuilt_history_is_the_one_that_the_loop_held(store):
    clock = VirtualClock(worlds.TICK_S)
    writer = store.writer("r1", identity=logs.IDENTITY)
    histories = list(islice(logs.run(logs.simulated(clock), clock, writer), LENGTH + 9))
    again = store.history("r1", worlds.knobs(), policy_digest=None, after_s=0.0)
    assert len(again.observations) == LENGTH
    assert repr(again) == repr(histories[-1])


def test_stored_observations_replayed_give_the_stored_decisions(store):
    logs.shadow(store, "r1", 60)
    stored = [d.record.to_json() for d in store.each("r1")]
    again = replay(
        [json.loads(json.dumps(record)) for record in stored],
        worlds.knobs(),
        logs.hpa(),
        default_guardrails(),
        logs.hpa(300.0),
    )
    assert [r.to_json()["decision"] for r in again] == [r["decision"] for r in stored]
    assert {r["decision"]["source"] for r in stored} > {"policy"}, "a trip should be among them"


def write(store: AuditStore, at_s: float, identity=logs.IDENTITY, **changes: object) -> None:
    writer = store.writer("r1", identity=identity)
    writer.intent("shadow", seen(at_s), decision(at_s, **changes))


NEW = replace(logs.IDENTITY, policy="bundle", policy_digest="d" * 64)
OTHER_CONFIG = replace(NEW, config_digest="e" * 64)
FOREIGN = {"settings": KnobSettings(gears=2)}


@pytest.mark.parametrize(
    ("records", "asked", "times", "memory", "fallback_memory"),
    [
        ([(1.0, NEW, {}), (2.0, NEW, {})], {}, [1.0, 2.0], (1.0,), 2.0),
        ([(1.0, NEW, {}), (2.0, NEW, {})], {"after_s": 1.0}, [2.0], (1.0,), 2.0),
        ([(1.0, NEW, {})], {"after_s": 5.0}, [], (), None),
        ([(1.0, logs.IDENTITY, {})], {}, [1.0], (), 2.0),
        ([(1.0, NEW, {})], {"config_digest": "c" * 64}, [1.0], (1.0,), 2.0),
        ([(1.0, NEW, {})], {"config_digest": "e" * 64}, [1.0], (), None),
        ([(1.0, NEW, FOREIGN), (2.0, NEW, {})], {}, [2.0], (1.0,), 2.0),
        ([(1.0, NEW, {}), (2.0, NEW, FOREIGN)], {}, [], (), None),
        ([(1.0, NEW, {}), (2.0, NEW, {"proposal": None})], {}, [1.0, 2.0], (1.0,), 2.0),
        (
            [(1.0, logs.IDENTITY, {}), (2.0, NEW, {"proposal": None})],
            {},
            [1.0, 2.0],
            (),
            2.0,
        ),
        (
            [(1.0, NEW, {}), (2.0, OTHER_CONFIG, {}), (3.0, NEW, {"proposal": None})],
            {"config_digest": "c" * 64},
            [1.0, 2.0, 3.0],
            (),
            2.0,
        ),
        ([], {}, [], (), None),
    ],
    ids=[
        "same policy",
        "too old",
        "all too old",
        "other policy: facts, not its memory",
        "same configuration",
        "other configuration: windows may differ",
        "another knob before",
        "another knob last",
        "a failed policy keeps its memory",
        "a failed policy takes no memory of the one before",
        "a failed policy takes none from under another configuration",
        "nothing",
    ],
)
def test_what_a_history_is_rebuilt_from(file_store, records, asked, times, memory, fallback_memory):
    for at_s, identity, changes in records:
        write(file_store, at_s, identity, **changes)
    question = {"policy_digest": "d" * 64, "after_s": 0.0, **asked}
    history = file_store.history("r1", knob_space(), **question)
    assert [o.at_s for o in history.observations] == times
    assert [d.at_s for d in history.decisions] == times
    assert history.memory == memory
    assert history.fallback_memory[:1] == (() if fallback_memory is None else (fallback_memory,))


# Two processes -----------------------------------------------------------------------------

WRITER = """
import sys
from tests.control import logs, test_audit_store as t
from tuner.control.audit_store import AuditStore
store = AuditStore.open(sys.argv[1])
writer = store.writer("r1", identity=logs.IDENTITY)
print("ready", flush=True)
at = 0
while not sys.stdin.isatty() and at < int(sys.argv[2]):
    at += 1
    writer.intent("shadow", t.seen(at), t.decision(at))
    if sys.argv[3] == "crash" and at == int(sys.argv[2]):
        import os
        os.kill(os.getpid(), 9)
    writer.receipt(t.decision(at), t.Receipt(at, t.KnobSettings()))
"""


def other_process(url: str, n: int, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(n), how],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_reader_sees_whole_decisions_while_another_process_writes(url):
    with other_process(url, 200, "run") as writing:
        assert writing.stdout.readline() == "ready\n"
        reader = AuditStore.open(url, read_only=True)
        counts = []
        while writing.poll() is None:
            found = reader.decisions("r1", last=1000)
            counts.append(len(found))
            # Only the newest may be between its intent and its receipt.
            assert all(d.record.receipt is not None for d in found[:-1])
        assert writing.returncode == 0
        found = reader.decisions("r1", last=1000)
        reader.close()
    assert [d.decision.at_s for d in found] == list(range(1, 201))
    assert all(d.record.receipt is not None for d in found)
    assert counts == sorted(counts)


def test_a_controller_that_is_killed_while_acting_leaves_an_intent_without_a_receipt(url):
    with other_process(url, 3, "crash") as writing:
        assert writing.wait(timeout=60) == -9
    reader = AuditStore.open(url, read_only=True)
    assert [d.record.receipt is None for d in reader.decisions("r1")] == [False, False, True]
    assert reader.activity("r1", after_s=0.0).open == 1
    reader.close()


def test_many_targets_write_from_many_threads(store):
    troubles: list[BaseException] = []

    def decide(name: str) -> None:
        try:
            writer = store.writer(name, identity=logs.IDENTITY)
            for at in range(20):
                writer.intent("shadow", seen(at), decision(at))
                writer.receipt(decision(at), Receipt(at, KnobSettings()))
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=decide, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    for i in range(8):
        assert store.activity(f"t{i}", after_s=-1.0).ticks == 20


# Trouble -----------------------------------------------------------------------------------


def test_a_lock_that_another_process_holds_is_trouble_that_passes(file_store, tmp_path):
    other = sqlite3.connect(tmp_path / "audit.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = file_store.writer("r1", identity=logs.IDENTITY)
    with pytest.raises(TemporaryError, match=r"cannot be written \(database is locked\)") as told:
        writer.intent("shadow", seen(), decision())
    assert told.value.delay_s > 0
    assert writer.last_id is None
    assert file_store.decisions() == []  # reading is not held up
    other.execute("ROLLBACK")
    writer.intent("shadow", seen(), decision())
    assert len(file_store.decisions()) == 1
    other.close()


def test_a_full_disk_is_told_and_nothing_half_is_left(tmp_path):
    script = """
import resource, sys
from tests.control import logs, test_audit_store as t
from tuner.control.audit_store import AuditStore
from tuner.core.errors import PermanentError
store = AuditStore.open(sys.argv[1])
writer = store.writer("r1", identity=logs.IDENTITY)
writer.intent("shadow", t.seen(), t.decision())
resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
try:
    while True:
        writer.intent("shadow", t.seen(), t.decision())
except PermanentError as error:
    print(error)
"""
    url = logs.url_of(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "cannot be written (disk I/O error); look at the disk it is on" in done.stdout
    after = AuditStore.open(url)
    kept = after.decisions("r1", last=10_000)
    assert len(kept) > 1
    after.writer("r1", identity=logs.IDENTITY).intent("shadow", seen(), decision())
    assert len(after.decisions("r1", last=10_000)) == len(kept) + 1
    after.close()


def test_no_room_for_another_page_says_to_free_space(file_store, tmp_path):
    from sqlalchemy import event

    engine = file_store._database._engine
    engine.dispose()
    event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA max_page_count = 12"))
    writer = file_store.writer("r1", identity=logs.IDENTITY)
    with pytest.raises(PermanentError, match=r"disk is full\); free disk space"):
        _fill(writer)


def _fill(writer: AuditWriter) -> None:
    for at in range(1000):
        writer.intent("shadow", seen(at), decision(at))


def spoil(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def test_a_record_that_was_edited_by_hand_is_named(file_store, tmp_path):
    write(file_store, 1.0)
    spoil(tmp_path / "audit.db", "UPDATE tuner_decisions SET intent = '{\"observation\": 1'")
    with pytest.raises(PermanentError, match="decision 1 cannot be read"):
        file_store.decisions()


def test_a_log_of_a_newer_tuner_is_refused_and_left_alone(tmp_path):
    AuditStore.open(logs.url_of(tmp_path)).close()
    spoil(tmp_path / "audit.db", "UPDATE tuner_schema SET version = 2")
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="has schema 2; this tuner knows 1 to 1"):
            AuditStore.open(logs.url_of(tmp_path), read_only=read_only)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "kept in memory"),
        ("sqlite:///:memory:", "kept in memory"),
        ("sqlite:///{folder}", "is a folder"),
        ("sqlite:///{folder}/nowhere/a.db", "does not exist; create it"),
        ("sqlite:///{folder}/text", "the file is something else"),
        ("sqlite:///file:{folder}/good.db?mode=ro&uri=true", "make file and folder writable"),
        ("mysql://ann:hush@db/x", "of kind 'mysql'"),
        ("postgresql://ann:hush@127.0.0.1:1/x?password=hush", "is it up, and reachable"),
        ("postgresql://ann:hush@[::1/x", "is no database URL"),
        ("hush", "is no database URL"),
    ],
    ids=[
        *("memory", "named memory", "folder", "no folder", "not a database", "read-only"),
        *("other kind", "nothing there", "broken address", "no URL"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_without_its_secrets(tmp_path, url, message):
    (tmp_path / "text").write_text("this file is a letter to a friend, not a database\n" * 20)
    AuditStore.open(f"sqlite:///{tmp_path}/good.db").close()
    with pytest.raises(ConfigError) as told:
        AuditStore.open(url.format(folder=tmp_path))
    assert message in str(told.value)
    assert "hush" not in str(told.value)


def test_looking_makes_no_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; `tuner run` writes it"):
        AuditStore.open(logs.url_of(tmp_path), read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(store, url):
    reader = AuditStore.open(url, read_only=True)
    with pytest.raises(PermanentError, match="cannot be written"):
        reader.writer("r1", identity=logs.IDENTITY).intent("shadow", seen(), decision())
    reader.close()


def test_postgresql_says_what_is_wrong_without_the_password(server):
    with pytest.raises(
        ConfigError, match=r"failed for user.*check user, password and database"
    ) as told:
        AuditStore.open(server.url("postgres", password="hush-word"))
    assert "hush-word" not in str(told.value)
    with pytest.raises(ConfigError, match=r"does not exist.*check user, password and database"):
        AuditStore.open(server.url("nowhere"))


def test_a_postgresql_that_dropped_the_connection_costs_no_decision(server):
    url = server.new_database()
    opened = AuditStore.open(url)
    writer = opened.writer("r1", identity=logs.IDENTITY)
    writer.intent("shadow", seen(), decision())
    server.execute(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tuner'",
    )
    writer.receipt(decision(), Receipt(1.0, KnobSettings()))
    assert opened.activity("r1", after_s=0.0).open == 0
    opened.close()


def test_a_memory_audit_and_the_store_record_the_same(store):
    memory, clock = MemoryAudit(), VirtualClock(worlds.TICK_S)
    list(islice(logs.run(logs.simulated(clock), clock, memory), 20))
    clock = VirtualClock(worlds.TICK_S)
    writer = store.writer("r1", identity=logs.IDENTITY)
    list(islice(logs.run(logs.simulated(clock), clock, writer), 20))
    stored = [d.record.to_json() for d in store.each("r1")]
    assert stored == [record.to_json() for record in memory.records]
