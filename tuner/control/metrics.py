"""The controller's own figures, `tuner_*`, in a registry of their own.

Labels hold names of targets, knobs, fields and guardrails, reasons and kinds of places: a few
dozen values each. Never the name of a replica, which would grow for ever, and never a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from tuner.control.audit_store import RunIdentity
from tuner.core.clock import Clock, WallClock
from tuner.core.decision import SOURCES, Decision, Receipt
from tuner.core.faults import Fault
from tuner.core.observation import FIELD_NAMES, Observation

PLACES = frozenset(
    {
        "audit",
        "business",
        "collector",
        "dcgm",
        "gateway",
        "gpu",
        "kubernetes",
        "nvml",
        "pool",
        "probe",
        "processes",
        "prometheus",
        "sandbox",
        "scrape",
        "shadow",
        "traffic",
    }
)
"""Places of faults that are told apart; every other place is a replica."""
REPLICA = "replica"

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
"""From a tick without I/O to one in which everything times out twice."""


class ControllerMetrics:
    """What every target of this process counts and shows. May be used from several threads."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock or WallClock()
        self._shown: dict[tuple[str, str], set[str]] = {}
        self._info: dict[str, tuple[str, ...]] = {}
        ProcessCollector(registry=self.registry)
        # A time of creation beside every counter doubles the page and tells nobody anything.
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"tuner_{name}", meaning, ("target", *labels), registry=self.registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"tuner_{name}", meaning, ("target", *labels), registry=self.registry)

        def durations(name: str, meaning: str) -> Histogram:
            return Histogram(
                f"tuner_{name}_duration_seconds",
                meaning,
                ("target",),
                registry=self.registry,
                buckets=BUCKETS_S,
            )

        self.info = gauge(
            "target_info",
            "1; what runs here",
            "mode",
            "policy",
            "policy_digest",
            "config_digest",
            "version",
        )
        self.decisions = counter("decisions", "Decisions, by who decided", "source")
        self.trips = counter(
            "trips", "Decisions that a guardrail took from the policy", "guardrail", "reason"
        )
        self.clamps = counter(
            "clamps", "Wishes that a limit cut, by knob", "guardrail", "reason", "knob"
        )
        self.holds = counter("holds", "Settings held because nothing else was safe", "reason")
        self.faults = counter("faults", "Troubles with the outside", "phase", "where", "reason")
        self.actuations = counter(
            "actuations",
            "Knobs written, renewed, or not: applied, renewed, or the reason why not",
            "knob",
            "outcome",
        )
        self.tick_failures = counter("tick_failures", "Ticks that ended in an unexpected error")
        self.audit_failures = counter("audit_failures", "Records that could not be written")
        self.claims_lost = counter(
            "claims_lost", "Times that another controller took over and this one stopped writing"
        )
        self.ticks = durations("tick", "One whole tick")
        self.observes = durations("observe", "Reading")
        self.applies = durations("apply", "Writing")
        self.last_decision = gauge(
            "last_decision_timestamp_seconds", "Unix time of the last decision"
        )
        self.setting = gauge("setting", "Value in force", "knob")
        self.setting_wanted = gauge("setting_wanted", "Value decided on", "knob")
        self.proposal = gauge("proposal", "Value proposed before any limit", "by", "knob")
        self.field = gauge("field", "Value of a field of the state", "field")
        self.field_age = gauge("field_age_seconds", "Age of a field's newest sample", "field")
        self.metrics_age = gauge("metrics_age_seconds", "Age of the newest sample of all")

    def starts(self, target: str, mode: str, identity: RunIdentity) -> None:
        """A target runs in a mode; what can be counted of it begins at 0."""
        labels = (
            target,
            mode,
            identity.policy,
            identity.policy_digest or "",
            identity.config_digest,
            identity.version,
        )
        if target in self._info:
            _remove(self.info, *self._info[target])
        self._info[target] = labels
        self.info.labels(*labels).set(1)
        for counter in (self.tick_failures, self.audit_failures, self.claims_lost):
            counter.labels(target)
        for source in SOURCES:
            self.decisions.labels(target, str(source))

    def observed(self, target: str, observation: Observation, seconds: float) -> None:
        """One window was read."""
        self.observes.labels(target).observe(seconds)
        self._count_faults(target, "read", observation.faults)
        self._show(self.setting, target, observation.settings)
        self._show(self.field, target, _measured(observation))
        self._show(self.field_age, target, observation.ages_s)
        if observation.age_s is not None:
            self.metrics_age.labels(target).set(observation.age_s)
        else:
            _remove(self.metrics_age, target)

    def decided(self, target: str, decision: Decision) -> None:
        """One decision was recorded."""
        self.decisions.labels(target, str(decision.source)).inc()
        self.last_decision.labels(target).set(self._clock.now_s())
        for trip in decision.trips:
            self.trips.labels(target, trip.guardrail, trip.reason.name).inc()
        for clamp in decision.clamps:
            self.clamps.labels(target, clamp.guardrail, clamp.reason.name, clamp.knob or "").inc()
        for verdict in decision.verdicts:
            if verdict not in decision.trips and verdict not in decision.clamps:
                self.holds.labels(target, verdict.reason.name).inc()
        self._show(self.setting_wanted, target, decision.target)
        for by, proposal in (("policy", decision.proposal), ("fallback", decision.fallback)):
            self._show(self.proposal, target, proposal.settings if proposal else {}, by)

    def applied(self, target: str, decision: Decision, receipt: Receipt) -> None:
        """What became of a decision."""
        self._count_faults(target, "write", receipt.faults)
        for knob in receipt.applied:
            outcome = "applied" if knob in decision.changes else "renewed"
            self.actuations.labels(target, knob, outcome).inc()
        for fault in receipt.faults:
            if fault.knob is not None:
                self.actuations.labels(target, fault.knob, str(fault.reason)).inc()

    def _count_faults(self, target: str, phase: str, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.faults.labels(target, phase, place(fault.where), str(fault.reason)).inc()

    def _show(self, gauge: Gauge, target: str, values: Mapping[str, float], *by: str) -> None:
        """Set one series per name; those of the last time that are gone now are taken away."""
        key = (str(id(gauge)), "/".join((target, *by)))
        for name in self._shown.get(key, set()) - set(values):
            _remove(gauge, target, *by, name)
        self._shown[key] = set(values)
        for name, value in values.items():
            gauge.labels(target, *by, name).set(value)


def place(where: str) -> str:
    """The kind of place that a fault names; whatever is not known is a replica."""
    return where if where in PLACES else REPLICA


def _measured(observation: Observation) -> dict[str, float]:
    values = {name: getattr(observation, name) for name in FIELD_NAMES}
    return {name: value for name, value in values.items() if value is not None}


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return  # was never shown: older versions of prometheus-client complain
