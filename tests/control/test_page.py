"""The controller's page over real sockets, and what its figures and verdicts say."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pytest

from tests.control.standins import Bench, Fleet, bench
from tuner.control.health import MARGIN_S, MISSED_TICKS, Pulse, not_ready, stuck
from tuner.control.metrics import ControllerMetrics
from tuner.control.page import ControllerPage
from tuner.core.decision import Decision, Proposal, Reason, Receipt, Source, Verdict
from tuner.core.errors import ConfigError
from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation


@contextmanager
def page(
    metrics: ControllerMetrics, stuck: list[str], not_ready: list[str], host: str = "127.0.0.1"
) -> Iterator[ControllerPage]:
    made = ControllerPage(
        host, 0, registry=metrics.registry, stuck=lambda: stuck, not_ready=lambda: not_ready
    )
    made.start()
    try:
        yield made
    finally:
        made.close()


def get(made: ControllerPage, path: str, method: str = "GET") -> tuple[int, str]:
    address = urlsplit(made.url)
    with closing(
        http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    ) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def run(fleet: Fleet | None = None, ticks: int = 1) -> Bench:
    made = bench(fleet=fleet)
    made.loop.run(threading.Event(), ticks=ticks)
    return made


def test_the_page_has_three_paths_and_no_other() -> None:
    with page(run().metrics, [], []) as made:
        assert get(made, "/healthz") == (200, "ok\n")
        assert get(made, "/readyz") == (200, "ok\n")
        status, text = get(made, "/metrics?name=x")
        assert status == 200
        assert 'tuner_decisions_total{source="policy",target="r1"} 1.0' in text
        assert get(made, "/") == (404, "not found\n")
        assert get(made, "/metrics/../etc/passwd")[0] == 404
        assert get(made, "/healthz", "POST")[0] == 501


def test_what_is_wrong_is_told_with_503() -> None:
    with page(ControllerMetrics(), ["target a is stuck"], ["target b waits"]) as made:
        assert get(made, "/healthz") == (503, "target a is stuck\n")
        assert get(made, "/readyz") == (503, "target b waits\n")


def test_a_client_that_says_nothing_keeps_nobody_waiting() -> None:
    with page(ControllerMetrics(), [], []) as made:
        address = urlsplit(made.url)
        with socket.create_connection((address.hostname, address.port or 0), timeout=10):
            assert get(made, "/healthz") == (200, "ok\n")


def test_a_port_that_is_taken_is_a_mistake_in_the_configuration() -> None:
    with page(ControllerMetrics(), [], []) as made:
        port = urlsplit(made.url).port or 0
        with pytest.raises(ConfigError, match=rf"server: 127.0.0.1:{port} cannot be listened on"):
            ControllerPage(
                "127.0.0.1",
                port,
                registry=ControllerMetrics().registry,
                stuck=list,
                not_ready=list,
            )


LIMIT_S = MISSED_TICKS * 15.0 + MARGIN_S


@pytest.mark.parametrize(
    ("pulse", "now_s", "words"),
    [
        (Pulse("r1", 15.0, started_s=0.0), LIMIT_S - 1, None),
        (Pulse("r1", 15.0, started_s=0.0), LIMIT_S, "65 s since its start"),
        (Pulse("r1", 15.0, started_s=0.0, decided_s=100.0), 100.0 + LIMIT_S - 1, None),
        (Pulse("r1", 15.0, 0.0, decided_s=100.0), 100.0 + LIMIT_S, "65 s since its last decision"),
        (Pulse("r1", 15.0, 0.0, failure="disk full"), LIMIT_S, "last failure: disk full"),
        (Pulse("r1", 15.0, 0.0, ended=True), 9999.0, None),
    ],
    ids=["young", "never decided", "just decided", "old decision", "failure", "ended"],
)
def test_a_target_is_stuck_when_its_last_decision_is_three_ticks_old(
    pulse: Pulse, now_s: float, words: str | None
) -> None:
    told = stuck([Pulse("well", 15.0, now_s), pulse], now_s)
    if words is None:
        assert told == []
    else:
        (sentence,) = told
        assert sentence.startswith("target r1 is stuck: ")
        assert words in sentence


@pytest.mark.parametrize(
    ("pulse", "words"),
    [
        (Pulse("r1", 15.0, 0.0), "has not decided yet"),
        (Pulse("r1", 15.0, 0.0, decided_s=1.0), None),
        (Pulse("r1", 15.0, 0.0, decided_s=1.0, audit_fault="disk full"), "written: disk full"),
    ],
    ids=["no decision", "decided", "audit"],
)
def test_it_is_ready_once_every_target_has_decided_and_the_audit_is_written(
    pulse: Pulse, words: str | None
) -> None:
    told = not_ready([pulse])
    assert (told == []) if words is None else (words in told[0])


def test_an_audit_that_can_be_written_again_makes_the_controller_ready_again() -> None:
    made = bench()
    made.audit.broken = "disk is full"

    def repair(number: int) -> None:
        if number == 2:
            assert not_ready([made.loop.pulse]) == [
                "target r1: the audit log cannot be written: disk is full"
            ]
            made.audit.broken = ""

    made.fleet.before_observe = repair
    made.loop.run(threading.Event(), ticks=2)
    assert not_ready([made.loop.pulse]) == []


def observation(**changes: object) -> Observation:
    return Observation(at_s=0.0, window_s=60.0, **changes)  # type: ignore[arg-type]


def decision(**changes: object) -> Decision:
    plain: dict[str, object] = {
        "at_s": 0.0,
        "proposal": Proposal({"replicas": 9.0}),
        "fallback": Proposal({"replicas": 5.0}),
        "settings": KnobSettings(replicas=4, batch_size=64),
        "target": KnobSettings(replicas=8, batch_size=64),
        "source": Source.POLICY,
    }
    return Decision(**{**plain, **changes})  # type: ignore[arg-type]


def figures(metrics: ControllerMetrics, name: str) -> dict[tuple[str, ...], float]:
    """Label values (target left out, by label name) -> figure."""
    return {
        tuple(v for k, v in sorted(sample.labels.items()) if k != "target"): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"tuner_{name}"
    }


def test_decisions_trips_clamps_and_holds_are_counted_by_reason() -> None:
    metrics = ControllerMetrics()
    metrics.decided(
        "r1",
        decision(
            source=Source.FALLBACK,
            verdicts=(
                Verdict("stale_metrics", Reason.MetricsMissing, "no value for qps"),
                Verdict("max_delta", Reason.StepTooLarge, "4 -> 9 is too large", "replicas"),
                Verdict("arbitrate", Reason.SettingsUnknown, "not known", "threads"),
            ),
        ),
    )
    assert figures(metrics, "decisions_total") == {("fallback",): 1}
    assert figures(metrics, "trips_total") == {("stale_metrics", "MetricsMissing"): 1}
    assert figures(metrics, "clamps_total") == {("max_delta", "replicas", "StepTooLarge"): 1}
    assert figures(metrics, "holds_total") == {("SettingsUnknown",): 1}
    assert figures(metrics, "setting_wanted") == {("replicas",): 8, ("batch_size",): 64}
    assert figures(metrics, "proposal") == {("policy", "replicas"): 9, ("fallback", "replicas"): 5}


def test_actuations_are_counted_by_what_became_of_them() -> None:
    metrics = ControllerMetrics()
    faults = (
        Fault("pod-1", FaultReason.OUTCOME_UNKNOWN, "no answer", "batch_size"),
        Fault("kubernetes", FaultReason.CONFLICT, "someone wrote", "replicas"),
    )
    metrics.applied("r1", decision(), Receipt(0.0, KnobSettings(replicas=8, batch_size=64)))
    metrics.applied("r1", decision(), Receipt(0.0, KnobSettings(), faults))
    assert figures(metrics, "actuations_total") == {
        ("replicas", "applied"): 1,
        ("batch_size", "renewed"): 1,
        ("batch_size", "OutcomeUnknown"): 1,
        ("replicas", "Conflict"): 1,
    }
    assert figures(metrics, "faults_total") == {
        ("write", "OutcomeUnknown", "replica"): 1,
        ("write", "Conflict", "kubernetes"): 1,
    }


def test_what_is_no_longer_known_is_no_longer_shown() -> None:
    metrics = ControllerMetrics()
    metrics.observed("r1", observation(age_s=3.0, qps=7.0, ages_s={"qps": 3.0}), 0.1)
    assert figures(metrics, "field") == {("qps",): 7}
    assert figures(metrics, "field_age_seconds") == {("qps",): 3}
    metrics.observed("r1", observation(), 0.1)
    metrics.decided("r1", decision())
    metrics.decided("r1", decision(proposal=None))
    assert figures(metrics, "field") == {}
    assert figures(metrics, "field_age_seconds") == {}
    assert figures(metrics, "metrics_age_seconds") == {}
    assert figures(metrics, "proposal") == {("fallback", "replicas"): 5}


def test_a_thousand_replicas_with_faults_add_no_series() -> None:
    metrics = ControllerMetrics()
    for number in range(1000):
        name = f"r1-7f9c-{number}"
        fault = Fault(name, FaultReason.TIMED_OUT, f"{name} gave no page in 2 s")
        metrics.observed("r1", observation(faults=(fault,)), 0.1)
    assert figures(metrics, "faults_total") == {("read", "TimedOut", "replica"): 1000}


def test_names_and_units_follow_the_guide_of_prometheus() -> None:
    made = run(Fleet(faults=(Fault("kubernetes", FaultReason.FORBIDDEN, "no right"),)))
    for family in made.metrics.registry.collect():
        if family.name.startswith("tuner_"):
            assert re.fullmatch(r"tuner_[a-z_]+", family.name)
            assert family.documentation
            assert not re.search(r"_(ms|milli|percent|count)\b", family.name)
            assert all("target" in sample.labels for sample in family.samples)
