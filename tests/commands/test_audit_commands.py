"""`tuner status` and `tuner explain`, as a user calls them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click import unstyle

from tests.commands import operating
from tests.commands.operating import call
from tests.control import logs
from tests.control.test_audit_store import decision, seen
from tuner.config.file import load_config
from tuner.control import status
from tuner.control.audit_store import AuditStore, StoredDecision
from tuner.control.promote import record_without_evidence
from tuner.core.audit import AuditRecord
from tuner.core.clock import VirtualClock
from tuner.core.decision import Proposal, Reason, Receipt, Verdict
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import ReplicaObservation, ReplicaState

WALL_S = 1_795_000_100.0
SHADOW = Fault("kubernetes", FaultReason.SHADOW, "shadow mode: nothing is written")
CONFLICT = Fault("kubernetes", FaultReason.CONFLICT, "someone else wrote", "replicas")


@pytest.fixture
def store(tmp_path: Path):
    opened = AuditStore.open(logs.url_of(tmp_path), clock=VirtualClock(WALL_S))
    yield opened
    opened.close()


def record(store: AuditStore, target: str, receipt: Receipt | None, **changes: object) -> int:
    writer = store.writer(target, identity=logs.IDENTITY)
    made = decision(**{"at_s": WALL_S - 90.0, **changes})
    writer.intent("shadow", seen(made.at_s, qps=4.0), made)
    if receipt is not None:
        writer.receipt(made, receipt)
    return writer.last_id


def shown(store: AuditStore, *arguments: str) -> str:
    result = call(*arguments, "--audit", store.name)
    assert result.exit_code == 0, result.exception
    return result.output


@pytest.mark.parametrize(
    ("receipt", "settings", "words"),
    [
        (None, {}, "no receipt"),
        (Receipt(1.0, KnobSettings(replicas=3)), {}, "applied"),
        (Receipt(1.0, KnobSettings(), (SHADOW,)), {}, "not written"),
        (Receipt(1.0, KnobSettings(), (CONFLICT,)), {}, "failed: Conflict"),
        (Receipt(1.0, KnobSettings()), {}, "not applied: replicas"),
        (Receipt(1.0, KnobSettings(replicas=2)), {"replicas": 2}, "nothing to do"),
        (
            Receipt(1.0, KnobSettings(batch_size=8), (CONFLICT,)),
            {"replicas": 3, "batch_size": 8},
            "batch_size applied, failed: Conflict",
        ),
    ],
    ids=["crash", "applied", "shadow", "conflict", "silent", "no change", "half"],
)
def test_what_became_of_a_decision_is_told_in_a_few_words(receipt, settings, words):
    target = KnobSettings(settings or {"replicas": 3})
    made = decision(target=target, settings=KnobSettings(replicas=2, batch_size=4))
    stored = StoredDecision(1, "r1", logs.IDENTITY, 0.0, AuditRecord("a", seen(), made, receipt))
    assert status.became(stored) == words


def test_status_tells_age_trips_and_faults_of_a_day(store):
    trip = (Verdict("stale_metrics", Reason.MetricsMissing, "no value for qps"),)
    done = Receipt(WALL_S, KnobSettings(), (SHADOW,))
    for at_s, verdicts in (
        (WALL_S - 90_000.0, trip),  # a day and an hour ago
        (WALL_S - 300.0, trip),
        (WALL_S - 200.0, trip),
        (WALL_S - 100.0, ()),
        (WALL_S - 50.0, trip),
    ):
        record(store, "r1", done, at_s=at_s, verdicts=verdicts)
    record(store, "r1", Receipt(WALL_S, KnobSettings(), (CONFLICT,)), at_s=WALL_S)
    now = status.status_of(store, "r1", clock=VirtualClock(WALL_S + 12.0))
    assert now.age_s == 12.0
    assert (now.day.ticks, now.day.tripped, now.day.trips) == (5, 3, 2)
    assert (now.day.read_faults, now.day.write_faults, now.day.open) == (0, 1, 0)
    assert now.may_not_act == "nobody has promoted it"


def test_status_shows_every_target_in_a_table(store):
    record(store, "r1", Receipt(WALL_S, KnobSettings(), (SHADOW,)))
    record(store, "a-target-with-a-long-name", None)
    output = shown(store, "status")
    assert "replicas 2 -> 3" in output
    assert "a-target-with-a-long-name" in output
    # Long ago on any real clock: a controller that is gone.
    assert "r1: silent: the last decision was" in output
    assert "without a receipt: the controller ended between deciding and acting" in output
    only = shown(store, "status", "--target", "r1")
    assert "long-name" not in only
    assert max(map(len, output.splitlines()[:4])) <= 80


@pytest.mark.parametrize("width", [60, 80])
def test_status_names_the_target_in_a_narrow_terminal_too(store, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    record(store, "r1", Receipt(WALL_S, KnobSettings(), (SHADOW,)))
    table = shown(store, "status").partition("age: of")[0]
    assert max(map(len, table.splitlines())) <= width
    assert " ".join(table.split()).count("r1 shadow") == 1
    assert "…" not in table


def test_a_place_is_named_once(store):
    gone = Fault("sandbox", FaultReason.UNREACHABLE, "sandbox: GET /pool: no connection")
    record(store, "r1", Receipt(WALL_S, KnobSettings(), (gone,)))
    assert "r1: sandbox: GET /pool: no connection" in shown(store, "status")
    assert "sandbox: Unreachable: GET /pool: no connection" in shown(store, "explain", "1")


def test_status_as_json_has_what_a_script_wants(store):
    record(store, "r1", Receipt(WALL_S, KnobSettings(), (CONFLICT,)))
    (plain,) = json.loads(shown(store, "status", "--json"))
    assert plain["in_force"] == {"replicas": 2}
    assert plain["wanted"] == {"replicas": 3}
    assert plain["became"] == "failed: Conflict"
    assert plain["day"]["ticks_with_write_faults"] == 1
    assert (plain["may_act"], plain["promotion"]) == (False, None)


def test_status_of_a_configuration_names_targets_that_never_decided_and_who_allowed_acting(
    tmp_path,
):
    config = operating.write(tmp_path)
    operating.opened(config).close()
    assert "never" in call("status", "--config", str(config)).output
    operating.watched(config, 30)
    opened = operating.opened(config)
    target = load_config(config).targets[0]
    record_without_evidence(opened, target, operating.identity(config), "a drill")
    opened.close()
    output = call("status", "--config", str(config)).output
    assert "may act: without evidence by" in output
    assert ": a drill" in output
    assert "batch_size" not in output  # it may not be written, and does not move


def test_explain_lists_one_line_each_oldest_first(store):
    verdict = Verdict("max_delta", Reason.StepTooLarge, "replicas 2 -> 9 is too large", "replicas")
    first = record(store, "r1", Receipt(WALL_S, KnobSettings(replicas=3)), verdicts=(verdict,))
    last = record(store, "r2", None)
    assert shown(store, "explain").splitlines() == [
        f"{first}  2026-11-18 11:06:50  r1  replicas 2 -> 3 by policy: applied; "
        "replicas 2 -> 9 is too large",
        f"{last}  2026-11-18 11:06:50  r2  replicas 2 -> 3 by policy: no receipt",
    ]
    (line,) = shown(store, "explain", "--last", "1").splitlines()
    assert line.startswith(f"{last}  ")
    (line,) = shown(store, "explain", "--target", "r1").splitlines()
    assert line.startswith(f"{first}  ")


def test_where_the_guardrails_are_quiet_the_rule_says_why(store):
    words = "42,161 output tokens/s over 23 replicas is 1,833 each, target 1,600: 27"
    wants = Proposal({"replicas": 3.0}, why=words)
    held = Proposal({"replicas": 2.0}, why="fixed settings")
    number = record(store, "r1", None, proposal=wants, fallback=held)
    (line,) = shown(store, "explain").splitlines()
    assert line.endswith(f"replicas 2 -> 3 by policy: no receipt; {words}")
    flat = " ".join(shown(store, "explain", str(number)).split())
    assert f"the policy's why: {words} the fallback's why: fixed settings" in flat
    data = json.loads(shown(store, "explain", str(number), "--json"))
    assert data["sentence"] == f"replicas 2 -> 3 (policy): {words}"
    assert data["decision"]["fallback"]["why"] == "fixed settings"
    assert words in " ".join(shown(store, "status").split())
    (told,) = json.loads(shown(store, "status", "--json"))
    assert told["why"] == words


@pytest.mark.parametrize("width", [80, 160])
def test_on_a_terminal_explain_loses_no_word_however_narrow(store, width):
    sentence = "no value for qps, output_tokens_per_s, in_flight; is every pod scraped?"
    verdict = Verdict("stale_metrics", Reason.MetricsMissing, sentence)
    for target in ("deepseek-r1-decode", "qwen-235b"):
        record(store, target, Receipt(WALL_S, KnobSettings(), (CONFLICT,)), verdicts=(verdict,))
    terminal = {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}
    output = unstyle(call("explain", "--audit", store.name, env=terminal).output)
    assert max(map(len, output.splitlines())) <= width
    flat = " ".join(output.split())
    for word in ("2026-11-18", "deepseek-r1-decode", "11:06:50", "Conflict;", "scraped?"):
        assert word in flat
    assert len(output.splitlines()) == (3 if width == 160 else 7)


def test_explain_shows_all_behind_one_decision(store):
    writer = store.writer("r1", identity=replace(logs.IDENTITY, policy_digest="d" * 64))
    observation = seen(
        WALL_S,
        qps=4.25,
        kv_cache_usage=0.5,
        age_s=3.0,
        ages_s={"qps": 7.0},
        estimates=("qps",),
        faults=(Fault("prometheus", FaultReason.NO_SERIES, "no series for ttft_p99_s"),),
        replicas=tuple(
            ReplicaObservation(f"pod-{i}", ReplicaState.READY, 60.0, running=3.0) for i in range(9)
        ),
    )
    verdict = Verdict("max_delta", Reason.StepTooLarge, "too large a step", "replicas")
    made = decision(WALL_S, verdicts=(verdict,))
    writer.intent("active", observation, made)
    writer.receipt(made, Receipt(WALL_S + 0.5, KnobSettings(), (CONFLICT,)))
    flat = " ".join(shown(store, "explain", str(writer.last_id)).split())
    for part in (
        "decision 1 on r1, 2026-11-18 11:08:20 UTC, mode active",
        "replicas 2 -> 3 by policy: failed: Conflict",
        "qps 4.25 requests/s 7 s estimate",
        "kv_cache_usage 0.5 0-1 3 s",
        "not measured: prompt_tokens_per_s,",
        "9 replicas: 9 ready (--full lists them)",
        "prometheus: NoSeries: no series for ttft_p99_s",
        "replicas 2 3 2 3",
        "log-probability of the action: -0.5",
        "max_delta StepTooLarge too large a step",
        "nothing, 0.5 s after the look",
        "kubernetes: Conflict: someone else wrote",
        "policy digest dddddddddddd configuration cccccccccccc",
    ):
        assert part in flat
    full = " ".join(shown(store, "explain", str(writer.last_id), "--full").split())
    assert "pod-8 ready 60 s 3" in full
    assert "fallback 2 ." in full
    assert "d" * 64 in full.replace(" ", "")


def test_explain_as_json_is_the_record(store):
    id_ = record(store, "r1", None)
    plain = json.loads(shown(store, "explain", str(id_), "--json"))
    assert plain["became"] == "no receipt"
    assert plain["receipt"] is None
    assert plain["decision"]["proposal"]["log_prob"] == -0.5
    assert plain["config_digest"] == "c" * 64
    assert [d["id"] for d in json.loads(shown(store, "explain", "--json"))] == [id_]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "99"], "no decision 99; `tuner explain` lists them"),
        (["explain", "1", "--last", "3"], "leave out --last and --target"),
        (["explain", "--target", "r9"], "target 'r9' is not known; known: r1"),
        (["status", "--target", "r9"], "target 'r9' is not known; known: r1"),
        (["status", "--config", "x.yaml"], "give one of them"),
    ],
    ids=["no such id", "id and last", "explain target", "status target", "two logs"],
)
def test_a_mistake_is_one_sentence(store, arguments, message):
    record(store, "r1", None)
    result = call(*arguments, "--audit", store.name)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_an_empty_log_says_what_begins_it(store):
    assert "holds no target yet" in shown(store, "status")
    assert "`tuner run --mode shadow` begins to watch" in shown(store, "explain")
