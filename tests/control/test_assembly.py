"""From a tuner.yaml to a controller that has run: real audit log, real page, stand-in fleet."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import sqlite3
import threading
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.config.files import ENDPOINTS, target, write
from tests.control.standins import Fleet
from tests.control.test_identity import FITS
from tests.policies import bundles
from tuner.config import ControllerConfig, TargetConfig
from tuner.config.file import load_config
from tuner.config.mistakes import knobs_allowed
from tuner.control import health
from tuner.control.assembly import Orders, Reach, chosen, plan_of
from tuner.control.audit_store import AuditStore, Claim, ClaimedError, Promotion, PromotionKind
from tuner.control.claim import hold_of
from tuner.control.logs import logger_to
from tuner.control.metrics import ControllerMetrics
from tuner.control.service import TargetLoop
from tuner.control.start import run_controller
from tuner.core.clock import Clock, WallClock
from tuner.core.decision import Decision, Receipt
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSettings, KnobSpace

FREE = {"host": "127.0.0.1", "port": 0}


class Fleets:
    """Stand-ins for `tuner.live.connect`, by name of the target."""

    def __init__(self) -> None:
        self.made: dict[str, Fleet] = {}
        self.writes: dict[str, bool] = {}

    def connect(self, target: TargetConfig, clock: Clock, writes: bool) -> Fleet:
        fleet = Fleet(clock)
        self.made[target.name], self.writes[target.name] = fleet, writes
        return fleet

    @property
    def reach(self) -> Reach:
        return Reach(self.connect)


def read(folder: Path, *targets: dict[str, Any], **top: Any) -> ControllerConfig:
    return load_config(write(folder, *targets, **{"server": FREE, **top}))


def run(
    config: ControllerConfig, *, ticks: int = 1, output: io.StringIO | None = None, **orders: Any
) -> tuple[int, Fleets, list[dict[str, Any]]]:
    fleets, output = Fleets(), output or io.StringIO()
    given = Orders(**{"mode": "shadow", "ticks": ticks, **orders})
    code = run_controller(config, given, fleets.reach, logger_to(output), output)
    lines = [json.loads(line) for line in output.getvalue().splitlines() if line.startswith("{")]
    return code, fleets, lines


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def test_shadow_decides_for_every_target_and_records_what_ran(tmp_path: Path) -> None:
    config = read(tmp_path, target(tick_s=0.1), target(name="r2", tick_s=0.1))
    code, fleets, lines = run(config, ticks=2)
    assert code == 0
    assert fleets.writes == {"r1": False, "r2": False}
    assert all("release" not in fleet.calls for fleet in fleets.made.values())
    store = AuditStore.open(config.audit, read_only=True)
    for name in ("r1", "r2"):
        first, second = store.decisions(name)
        assert first.record.mode == "shadow"
        assert first.record.receipt is not None
        assert first.identity.policy == "hpa"
        assert first.identity.authority == "none"
        assert second.decision.at_s > first.decision.at_s
    store.close()
    (said,) = [line for line in of(lines, "target") if line["name"] == "r2"]
    assert said["writes"] == []
    assert said["config_digest"] == first.identity.config_digest
    assert said["knobs"]["batch_size"] == {"low": 16, "high": 256}
    assert len(of(lines, "decision")) == 4


def test_a_restart_goes_on_where_the_audit_log_ends(tmp_path: Path) -> None:
    config = read(tmp_path, target(tick_s=0.1))
    assert of(run(config, ticks=3)[2], "resumed") == []
    (resumed,) = of(run(read(tmp_path, target(tick_s=60.0)))[2], "resumed")
    assert resumed["decisions"] == 3


def test_records_that_are_too_old_or_from_the_future_say_nothing_about_now(tmp_path: Path) -> None:
    place: dict[str, Any] = {"kubernetes": ...}
    ahead = target(sandbox={"url": "http://127.0.0.1:1", "speed": 2.0, "epoch_s": 1e9}, **place)
    run(read(tmp_path, {**ahead, "tick_s": 0.1}))
    behind = target(sandbox={"url": "http://127.0.0.1:1"}, **place)
    lines = run(read(tmp_path, {**behind, "tick_s": 0.1}))[2]
    assert of(lines, "resumed") == []
    assert "from the future" in of(lines, "history dropped")[0]["why"]
    assert of(run(read(tmp_path, {**ahead, "tick_s": 0.1}))[2], "resumed") == []


def test_records_that_nobody_understands_are_no_reason_not_to_start(tmp_path: Path) -> None:
    config = read(tmp_path)
    run(config)
    with closing(sqlite3.connect(tmp_path / "tuner-audit.db")) as database, database:
        database.execute("UPDATE tuner_decisions SET intent = '{}'")
    code, _, lines = run(read(tmp_path))
    assert code == 0
    assert "cannot be read" in of(lines, "history dropped")[0]["why"]


def test_a_sandbox_runs_on_its_own_clock(tmp_path: Path) -> None:
    sandbox = {"url": "http://127.0.0.1:1", "speed": 10.0, "epoch_s": 0.0}
    config = read(tmp_path, target(kubernetes=..., sandbox=sandbox, tick_s=0.1))
    run(config)
    store = AuditStore.open(config.audit, read_only=True)
    (stored,) = store.decisions("r1")
    store.close()
    assert stored.decision.at_s == pytest.approx(10 * stored.recorded_at_s, rel=1e-3)


def test_only_the_named_targets_run(tmp_path: Path) -> None:
    config = read(tmp_path, target(), target(name="r2"))
    assert set(run(chosen(config, ["r2"]))[1].made) == {"r2"}
    with pytest.raises(ConfigError, match=r"target 'r3' is not in .* known targets: r1, r2"):
        chosen(config, ["r3"])


def demote(config: ControllerConfig, reason: str) -> None:
    store = AuditStore.open(config.audit)
    word = Promotion(
        target="r1",
        at_s=0.0,
        kind=PromotionKind.DEMOTED,
        policy=None,
        policy_digest=None,
        config_digest=None,
        who="ann@desk",
        version="0",
        reason=reason,
    )
    store.add_promotion(word)
    store.close()


def test_active_is_refused_for_every_target_that_nobody_promoted(tmp_path: Path) -> None:
    config, output = read(tmp_path, target(), target(name="r2")), io.StringIO()
    with pytest.raises(ConfigError) as caught:
        run(config, mode="active", output=output)
    first, second = str(caught.value).splitlines()
    assert "target 'r1' may not act: nobody has promoted it" in first
    assert "target 'r2' may not act: nobody has promoted it" in second
    assert output.getvalue() == ""


def test_active_without_evidence_acts_gives_back_and_is_recorded(tmp_path: Path) -> None:
    config = read(tmp_path)
    code, fleets, _ = run(config, mode="active", without_evidence="staging, nobody uses it")
    assert code == 0
    assert fleets.writes == {"r1": True}
    assert fleets.made["r1"].calls == ["observe", "apply", "release", "close"]
    store = AuditStore.open(config.audit, read_only=True)
    word = store.promotion("r1")
    (stored,) = store.decisions("r1")
    store.close()
    assert word is not None
    assert (word.kind, word.reason) == (
        PromotionKind.WITHOUT_EVIDENCE,
        "staging, nobody uses it",
    )
    assert (stored.record.mode, stored.identity.authority) == ("active", "direct")
    assert word.config_digest == stored.identity.config_digest


def test_active_goes_on_with_a_promotion_of_this_very_policy_and_configuration(
    tmp_path: Path,
) -> None:
    run(read(tmp_path), mode="active", without_evidence="for the test")
    assert run(read(tmp_path), mode="active")[0] == 0
    other = read(tmp_path, target(max_age_s=30.0))
    with pytest.raises(ConfigError, match="with another configuration"):
        run(other, mode="active")


def test_a_bundle_that_is_replaced_between_the_permission_and_the_start_does_not_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    here = bundles.write(tmp_path)
    made = bundles.codec()
    linear = bundles.linear_network(len(made.features), len(made.knobs.names), weight=0.2)
    shutil.move(bundles.write(new, content=linear), old)
    config = read(tmp_path, target(policy=here.name, policy_options=..., knobs=FITS))
    fleets = Fleets()

    def replace_it_first(one: TargetConfig) -> KnobSpace:
        if old.exists():
            shutil.rmtree(here)
            shutil.move(old, here)
        return knobs_allowed(one)

    orders = Orders("active", ticks=1, without_evidence="a test")
    monkeypatch.setattr("tuner.control.assembly.knobs_allowed", replace_it_first)
    reach, output = Reach(fleets.connect), io.StringIO()
    with pytest.raises(ConfigError, match="was replaced while the controller started"):
        run_controller(config, orders, reach, logger_to(output), output)
    assert fleets.made == {}
    assert run_controller(config, orders, reach, logger_to(output), output) == 0


def test_a_target_that_is_demoted_while_it_runs_is_given_back_and_goes_on_in_shadow(
    tmp_path: Path,
) -> None:
    config = read(tmp_path, target(tick_s=0.1))
    fleets, output = Fleets(), io.StringIO()

    def third_look_is_after_the_demotion(number: int) -> None:
        if number == 2:
            demote(config, "TTFT doubled")

    def connect(one: TargetConfig, clock: Clock, writes: bool) -> Fleet:
        fleet = fleets.connect(one, clock, writes)
        seen.append(fleet)
        if writes:
            fleet.before_observe = third_look_is_after_the_demotion
        return fleet

    seen: list[Fleet] = []
    log = logger_to(output)
    store = AuditStore.open(config.audit)
    plan = plan_of(config.targets[0], "active", Reach(connect), store, WallClock(), log)
    metrics = ControllerMetrics()
    TargetLoop(plan, metrics, log).run(threading.Event(), ticks=4)
    active, shadow = seen
    assert active.calls == ["observe", "apply", "observe", "apply", "release", "close"]
    assert shadow.calls == ["observe", "apply", "observe", "apply", "close"]
    modes = [(s.record.mode, s.identity.authority) for s in store.decisions("r1")]
    store.close()
    assert modes == [("active", "direct")] * 2 + [("shadow", "none")] * 2
    (line,) = of([json.loads(text) for text in output.getvalue().splitlines()], "demoted")
    assert line["why"] == "ann@desk demoted it (TTFT doubled)"
    (info,) = [s for f in metrics.info.collect() for s in f.samples]
    assert info.labels["mode"] == "shadow"


def test_a_second_active_controller_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    config = read(tmp_path)
    store = AuditStore.open(config.audit)
    first = hold_of(store, config.targets[0])
    assert first is not None
    first.take()
    output = io.StringIO()
    with pytest.raises(ConfigError, match=r"'r1' is steered by another controller") as caught:
        run(config, mode="active", without_evidence="a test", output=output)
    assert first.claim.holder in str(caught.value)
    assert "stop that one" in str(caught.value)
    assert store.promotions("r1") == []
    assert run(config)[0] == 0, "shadow writes nothing and may run beside"
    first.give_up()
    assert run(config, mode="active", without_evidence="a test")[0] == 0
    first.take()  # the one that ended gave its claim up
    store.close()


def test_a_start_that_is_refused_gives_its_claims_up(tmp_path: Path) -> None:
    config = read(tmp_path, target(), target(name="r2"))
    store = AuditStore.open(config.audit)
    second = hold_of(store, config.targets[1])
    assert second is not None
    second.take()
    with pytest.raises(ConfigError, match="'r2' is steered by another"):
        run(config, mode="active", without_evidence="a test")
    store.take(Claim("r1", "another", 60.0))
    store.close()


def test_a_kubernetes_lease_is_the_only_word_where_there_is_one(tmp_path: Path) -> None:
    place = {"namespace": "llm", "deployment": "r1", "serving_port": 8000, "control_port": 9000}
    store = AuditStore.open(f"sqlite:///{tmp_path / 'other.db'}")
    for lease, claimed in (({}, True), ({"lease": "tuner"}, False)):
        section = target(kubernetes={**place, **lease}, processes=...)
        (one,) = read(tmp_path, section).targets
        assert (hold_of(store, one) is not None) is claimed
    store.close()


def test_a_controller_whose_claim_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    config = read(tmp_path, target(tick_s=0.1))
    fleets, output = Fleets(), io.StringIO()
    log, store = logger_to(output), AuditStore.open(config.audit)
    hold = hold_of(store, config.targets[0])
    assert hold is not None

    def taken_over_before_the_third_decision(number: int) -> None:
        if number == 3:
            store.give_up(hold.claim)
            store.take(Claim("r1", "desk, process 7, ab", 60.0))

    def connect(one: TargetConfig, clock: Clock, writes: bool) -> Fleet:
        fleet = fleets.connect(one, clock, writes)
        seen.append(fleet)
        if writes:
            fleet.before_observe = taken_over_before_the_third_decision
        return fleet

    seen: list[Fleet] = []
    plan = plan_of(config.targets[0], "active", Reach(connect), store, WallClock(), log, hold=hold)
    metrics = ControllerMetrics()
    TargetLoop(plan, metrics, log).run(threading.Event(), ticks=4)
    active, shadow = seen
    assert active.calls == ["observe", "apply", "observe", "apply", "observe", "close"]
    assert shadow.calls == ["observe", "apply", "close"]
    assert [s.record.mode for s in store.decisions("r1")] == ["active", "active", "shadow"]
    (line,) = of([json.loads(text) for text in output.getvalue().splitlines()], "claim lost")
    assert "desk, process 7, ab" in line["why"]
    assert metrics.registry.get_sample_value("tuner_claims_lost_total", {"target": "r1"}) == 1
    with pytest.raises(ClaimedError):
        hold.take()
    store.close()


def test_a_controller_that_finds_at_its_end_that_another_took_over_gives_nothing_back(
    tmp_path: Path,
) -> None:
    config = read(tmp_path, target(tick_s=0.1))
    fleets, output = Fleets(), io.StringIO()
    log, store = logger_to(output), AuditStore.open(config.audit)
    hold = hold_of(store, config.targets[0])
    assert hold is not None
    plan = plan_of(config.targets[0], "active", fleets.reach, store, WallClock(), log, hold=hold)
    loop = TargetLoop(plan, ControllerMetrics(), log)
    hold.take()
    loop.connect()
    store.give_up(hold.claim)
    store.take(Claim("r1", "another", 60.0))
    loop.run(threading.Event(), ticks=1)
    assert "release" not in fleets.made["r1"].calls
    store.close()


def test_where_the_log_cannot_be_asked_only_a_young_claim_is_ours(tmp_path: Path) -> None:
    config = read(tmp_path)
    store = AuditStore.open(config.audit, timeout_s=0.1)
    hold, now_s = hold_of(store, config.targets[0]), [0.0]
    assert hold is not None
    hold.monotonic = lambda: now_s[0]
    hold.take()
    with closing(sqlite3.connect(config.audit.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        now_s[0] = hold.claim.lasts_s - 1
        assert hold.lost() == ""
        now_s[0] = hold.claim.lasts_s
        assert "nobody can tell whether another controller has taken over" in hold.lost()
    store.close()


def test_a_secret_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    config = read(tmp_path, target(engine={"kind": "vllm", "token_file": "absent"}))
    with pytest.raises(ConfigError, match=r"engine\.token_file: .*absent cannot be read"):
        run(config)
    assert not (tmp_path / "tuner-audit.db").exists()


def test_the_page_tells_of_these_very_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output = read(tmp_path, target(tick_s=0.1)), io.StringIO()
    answers: list[tuple[int, int]] = []
    sentences: list[str] = []

    def get(path: str) -> int:
        (line,) = of([json.loads(text) for text in output.getvalue().splitlines()], "page")
        try:
            with urlopen(line["url"] + path, timeout=10) as answer:
                return int(answer.status)
        except HTTPError as refusal:
            sentences.append(refusal.read().decode())
            return refusal.code

    def ask(number: int) -> None:
        monkeypatch.setattr(health, "MARGIN_S", -1e9 if number == 3 else 1e9)
        answers.append((get("/healthz"), get("/readyz")))

    def connect(one: TargetConfig, clock: Clock, writes: bool) -> Fleet:
        return Fleet(clock, before_observe=ask)

    orders = Orders("shadow", ticks=3)
    log = logger_to(output)
    assert run_controller(config, orders, Reach(connect), log, output) == 0
    assert answers == [(200, 503), (200, 200), (503, 200)]
    assert "target r1 has not decided yet" in sentences[0]
    assert "target r1 is stuck" in sentences[1]


def test_a_page_whose_port_is_taken_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = read(tmp_path, server={"port": port})
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on"):
            run(config)


def test_nothing_secret_is_said_at_the_start(tmp_path: Path) -> None:
    secrets = {
        "environment": {"HF_TOKEN": "hunter2", "VLLM_CPU_KVCACHE_SPACE": "1"},
        "command": ["vllm", "--port", "{port}", "--api-key", "hunter3", "--admin-api-key=hunter4"],
    }
    (tmp_path / "token").write_text("hunter5")
    config = read(
        tmp_path,
        target(
            kubernetes=...,
            processes={**ENDPOINTS, **secrets},
            engine={"kind": "vllm", "token_file": "token"},
        ),
    )
    for output in (io.StringIO(), Terminal()):
        run(config, output=output)
        assert "hunter" not in output.getvalue()
        assert "VLLM_CPU_KVCACHE_SPACE" in output.getvalue()
        assert "(hidden)" in output.getvalue()


class Terminal(io.StringIO):
    """A person looks at it."""

    def isatty(self) -> bool:
        return True


def test_a_person_reads_what_runs_and_one_line_per_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    output = Terminal()
    run(read(tmp_path, target(policy="static", policy_options={"replicas": 6})), output=output)
    text = output.getvalue()
    assert "\x1b[3" not in text
    assert "may write       nothing: shadow; when active batch_size 16..256, replicas 1..8" in text
    assert "policy          static replicas=6, digest " in text
    (line,) = [line for line in text.splitlines() if "decision " in line and "source=" in line]
    assert "moves='replicas 4 -> 6'" in line
    assert "source=policy" in line


def test_a_usual_decision_fits_a_terminal_and_a_machine_still_reads_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    def write_nothing(fleet: Fleet, _: Decision) -> Receipt:
        return Receipt(fleet.clock.now_s(), KnobSettings())

    monkeypatch.setattr(Fleet, "apply", write_nothing)  # as a real shadow does
    output = Terminal()
    config = read(tmp_path, target(policy="static", policy_options={"replicas": 4}))
    run(config, output=output)
    (line,) = [line for line in output.getvalue().splitlines() if "] decision " in line]
    assert len(line) <= 120
    assert re.match(r"\d\d:\d\d:\d\dZ \[info\] decision ", line)
    assert "at_s=" not in line
    assert "digest=" not in line
    _, _, lines = run(config)
    (decision,) = of(lines, "decision")
    assert len(decision["policy_digest"]) == 12
    assert datetime.fromisoformat(decision["time"]).timestamp() == pytest.approx(
        decision["at_s"], abs=60
    )
