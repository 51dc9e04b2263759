"""May the controller act? What was seen in shadow, the gates it must pass, and who said so.

The gates are pure functions of an `Evidence`: what the audit log shows (`watched`), and what a
replay of the logged load predicts, which whoever can simulate works out and hands in. Records of
promotions stand in the audit log; the latest one of a target holds, and only for the policy and the
configuration that it was given for.
"""

from __future__ import annotations

import getpass
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from tuner.config import PromotionConfig, TargetConfig
from tuner.control.audit_store import (
    AuditStore,
    Promotion,
    PromotionKind,
    RunIdentity,
    StoredDecision,
    write_faults,
)
from tuner.core.clock import Clock, WallClock
from tuner.core.decision import Reason
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSettings
from tuner.core.protocols import BoolArray, FloatArray
from tuner.guardrails.stale_metrics import lacks_only_rates

GAP_TICKS = 3.0
"""A tick that comes later than so many periods follows a gap: nobody watched in between."""

LOAD_BLOCK_S = 300.0
"""The range of load is taken over means of so many seconds: shorter ones differ by chance."""

FIRST_LOOKS = 2
"""Ticks after a start that may have no rates yet: one look, and a second that came too early."""

MEMORY_S = 7 * 86_400.0
"""Older decisions are no evidence: load, fleet and code were others."""

HOUR_S = 3600.0
DAY_HOURS = 24.0
SHADOW = "shadow"


@dataclass(frozen=True)
class Unit:
    """How people read a number."""

    factor: float
    digits: int
    sign: str
    before: str = ""

    def number(self, value: float) -> str:
        if not math.isfinite(value):
            return "endless"
        text = f"{self.factor * value:,.{self.digits}f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        return self.before + _minus(text)

    def __call__(self, value: float) -> str:
        return self.number(value) + self.sign


HOURS = Unit(1, 2, " h")
RATIO = Unit(1, 2, "", "×")
COUNT = Unit(1, 1, "")
PERCENT = Unit(100, 2, " %")
POINTS = Unit(100, 2, " points")


@dataclass(frozen=True)
class Watch:
    """What the audit log shows of one policy under one configuration, in shadow."""

    decisions: int
    hours: float
    """Watched; gaps do not count."""
    gaps: int
    """Times that nobody watched in between."""
    first_at_s: float | None
    """On the controller's clock; None without a decision."""
    last_at_s: float | None
    moves: int
    """Ticks that would have moved a knob."""
    tripped: int
    """Ticks whose decision a trip took from the policy."""
    trip_episodes: int
    """Uninterrupted runs of such ticks; first looks after a start are none."""
    read_faults: int
    """Ticks with a fault of reading."""
    write_faults: int
    """Ticks with a fault of writing; what shadow refuses is none."""
    open: int
    """Intents without a receipt: the controller ended in between."""
    qps_low: float | None
    """10th percentile of the load, requests/s, over means of LOAD_BLOCK_S."""
    qps_high: float | None
    """90th percentile."""
    others: int = 0
    """Decisions of another policy or configuration, which count for nothing."""

    @property
    def trips_per_day(self) -> float | None:
        """Below a day their number: a few minutes say nothing about a day's rate."""
        if self.hours <= 0:
            return None
        return self.trip_episodes / max(self.hours / DAY_HOURS, 1.0)

    @property
    def read_fault_share(self) -> float | None:
        return self.read_faults / self.decisions if self.decisions else None

    @property
    def write_fault_share(self) -> float | None:
        return self.write_faults / self.decisions if self.decisions else None

    @property
    def load_span(self) -> float | None:
        """High over low load; infinite from no load at all."""
        if self.qps_low is None or self.qps_high is None or self.qps_high <= 0:
            return None
        return self.qps_high / self.qps_low if self.qps_low > 0 else float("inf")


@dataclass(frozen=True)
class Predicted:
    """A figure over the seeds of a replay."""

    mean: float
    ci95: tuple[float, float] | None
    """95 % interval of the mean; None for one seed."""

    @property
    def lowest(self) -> float | None:
        """Lower end of the interval."""
        return None if self.ci95 is None else self.ci95[0]


@dataclass(frozen=True)
class Prediction:
    """What the replay of the logged load says about the policy against the rule of today."""

    profile: str
    rule: str
    seeds: int
    requests: int
    """Of one replay."""
    hours: float
    """Of load."""
    rule_gpu_hours: float
    policy_gpu_hours: float
    rule_attainment: float
    """Share (0-1) of requests that met every objective."""
    policy_attainment: float
    gain: Predicted
    """GPU hours saved, share of the rule's, seed by seed."""
    attainment: Predicted
    """The policy's attainment - the rule's, seed by seed."""
    notes: tuple[str, ...] = ()
    """What was assumed."""


@dataclass(frozen=True)
class Evidence:
    """All that a promotion rests on."""

    watch: Watch
    prediction: Prediction | None
    no_prediction: str = ""
    """Why there is none."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Gate:
    """One condition."""

    name: str
    """Key of the bar in `promotion` of the configuration, or what it is about."""
    label: str
    value: float | None
    """What was found, in the unit of the bar; None where there is nothing to say."""
    bar: float
    holds: bool
    found: str
    """The value as people read it."""
    needed: str
    """The bar likewise."""
    reason: str
    """Why it does not hold, and what helps; empty where it holds."""


# Evidence ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenTick:
    """What a decision is as evidence: a few numbers, so that a week of them fits in memory."""

    at_s: float
    settings: KnobSettings
    qps: float | None
    prompt_tokens_per_s: float | None
    output_tokens_per_s: float | None
    moved: bool
    tripped: bool
    read_fault: bool
    write_fault: bool
    open: bool
    first_look: bool = False
    """Tripped for one reason alone: rates need two looks, and this was the first."""

    @classmethod
    def of(cls, stored: StoredDecision) -> SeenTick:
        seen, receipt = stored.record.observation, stored.record.receipt
        trips = stored.decision.trips
        no_rates = lacks_only_rates(seen) and not seen.faults
        return cls(
            at_s=seen.at_s,
            settings=seen.settings,
            qps=seen.qps,
            prompt_tokens_per_s=seen.prompt_tokens_per_s,
            output_tokens_per_s=seen.output_tokens_per_s,
            moved=bool(stored.decision.changes),
            tripped=bool(stored.decision.trips),
            read_fault=bool(seen.faults),
            write_fault=receipt is not None and bool(write_faults(receipt)),
            open=receipt is None,
            first_look=no_rates
            and bool(trips)
            and all(trip.reason is Reason.MetricsMissing for trip in trips),
        )


def spans_s(ticks: Sequence[SeenTick], tick_s: float) -> FloatArray:
    """`(ticks,)` seconds that each tick watched: since the one before, or one period after a gap.

    The first tick follows a gap too; so does one whose clock was set back.
    """
    between = np.diff([tick.at_s for tick in ticks], prepend=np.nan)
    watching = (between > 0) & (between <= GAP_TICKS * tick_s)
    spans: FloatArray = np.where(watching, between, tick_s)
    return spans


def gaps_before(ticks: Sequence[SeenTick], tick_s: float) -> BoolArray:
    """`(ticks,)` where nobody watched just before; never the first."""
    between = np.diff([tick.at_s for tick in ticks], prepend=np.nan)
    gaps: BoolArray = (between <= 0) | (between > GAP_TICKS * tick_s)
    return gaps


def watched(ticks: Sequence[SeenTick], *, tick_s: float, others: int = 0) -> Watch:
    """What the ticks of one target show.

    Args:
        ticks: of one policy and configuration in shadow, in the order they were taken.
        tick_s: seconds between two decisions.
        others: decisions that were left out.
    """
    gaps = gaps_before(ticks, tick_s)
    tripped = np.array([tick.tripped for tick in ticks], dtype=np.bool_)
    begins = tripped & (gaps | ~np.concatenate(([False], tripped[:-1]))[: len(ticks)])
    episode = np.cumsum(begins)[tripped] - 1  # of each tripped tick
    other = np.array([not tick.first_look for tick in ticks], dtype=np.bool_)[tripped]
    causes = np.bincount(episode, weights=other)
    first_looks = int(((causes == 0) & (np.bincount(episode) <= FIRST_LOOKS)).sum())
    low, high = _load_range(ticks)
    return Watch(
        decisions=len(ticks),
        hours=float(spans_s(ticks, tick_s).sum()) / HOUR_S,
        gaps=int(gaps.sum()),
        first_at_s=ticks[0].at_s if ticks else None,
        last_at_s=ticks[-1].at_s if ticks else None,
        moves=sum(tick.moved for tick in ticks),
        tripped=int(tripped.sum()),
        trip_episodes=int(begins.sum()) - first_looks,
        read_faults=sum(tick.read_fault for tick in ticks),
        write_faults=sum(tick.write_fault for tick in ticks),
        open=sum(tick.open for tick in ticks),
        qps_low=low,
        qps_high=high,
        others=others,
    )


def _load_range(ticks: Sequence[SeenTick]) -> tuple[float | None, float | None]:
    """10th and 90th percentile of the load's means over LOAD_BLOCK_S; None without any load."""
    blocks: dict[int, list[float]] = {}
    for tick in ticks:
        if tick.qps is not None:
            blocks.setdefault(int(tick.at_s // LOAD_BLOCK_S), []).append(tick.qps)
    if not blocks:
        return None, None
    low, high = np.percentile([np.mean(block) for block in blocks.values()], [10, 90])
    return float(low), float(high)


def seen_in_shadow(
    store: AuditStore, target: TargetConfig, identity: RunIdentity
) -> tuple[SeenTick, ...]:
    """The decisions of the last MEMORY_S that are evidence for this policy and configuration."""
    after_s = _evidence_begins_s(store, target.name)
    if after_s is None:
        return ()
    found = store.each(
        target.name, mode=SHADOW, after_s=after_s, config_digest=identity.config_digest
    )
    return tuple(
        SeenTick.of(stored)
        for stored in found
        if stored.identity.policy_digest == identity.policy_digest
    )


def seen_of_others(store: AuditStore, target: TargetConfig, own: int) -> int:
    """Decisions of the same time by another policy or under another configuration."""
    after_s = _evidence_begins_s(store, target.name)
    if after_s is None:
        return 0
    return store.count(target.name, mode=SHADOW, after_s=after_s) - own


def _evidence_begins_s(store: AuditStore, target: str) -> float | None:
    newest = store.decisions(target, last=1, mode=SHADOW)
    return newest[0].record.observation.at_s - MEMORY_S if newest else None


# Gates -------------------------------------------------------------------------------------


def gates(evidence: Evidence, config: PromotionConfig) -> tuple[Gate, ...]:
    """Every condition, in the order in which they are shown; all must hold."""
    return (*_watch_gates(evidence.watch, config), *_prediction_gates(evidence, config))


def _watch_gates(watch: Watch, config: PromotionConfig) -> Iterator[Gate]:
    yield _at_least(
        "min_hours",
        "watched in shadow",
        watch.hours,
        config.min_hours,
        HOURS,
        "go on watching",
    )
    yield _at_least(
        "min_load_span",
        "high over low load",
        watch.load_span,
        config.min_load_span,
        RATIO,
        "watch a busier and a quieter hour; a flat load proves little",
    )
    yield _trip_gate(watch, config.max_trips_per_day)
    yield _at_most(
        "max_fault_share",
        "reading faults, of ticks",
        watch.read_fault_share,
        config.max_fault_share,
        PERCENT,
        "`tuner explain` tells which; mend the metrics first",
    )
    yield _at_most(
        "max_fault_share",
        "writing faults, of ticks",
        watch.write_fault_share,
        config.max_fault_share,
        PERCENT,
        "`tuner explain` tells which; mend the way to the engines first",
    )


def _prediction_gates(evidence: Evidence, config: PromotionConfig) -> Iterator[Gate]:
    found = evidence.prediction
    gain = None if found is None else found.gain
    attainment = None if found is None else found.attainment
    yield _predicted(
        "min_gain", "GPU hours saved", gain, config.min_gain, PERCENT, evidence.no_prediction
    )
    yield _predicted(
        "max_attainment_loss",
        "SLO attainment gained",
        attainment,
        -config.max_attainment_loss,
        POINTS,
        evidence.no_prediction,
    )


def _trip_gate(watch: Watch, bar: float) -> Gate:
    name, move = "max_trips_per_day", "`tuner explain` tells why each tripped"
    gate = _at_most(name, "trips a day", watch.trips_per_day, bar, COUNT, move)
    if not 0 < watch.hours < DAY_HOURS:
        return gate
    span = HOURS(watch.hours) if watch.hours >= 1 else f"{60 * watch.hours:.0f} min"
    found = f"{watch.trip_episodes} in {span}"
    reason = "" if gate.holds else f"trips: {found}, needed {gate.needed} a day; {move}"
    return replace(gate, found=found, reason=reason)


def _at_least(
    name: str, label: str, value: float | None, bar: float, shown: Unit, move: str
) -> Gate:
    holds = value is not None and value >= bar
    return _gate(name, label, value, bar, holds, shown, f"at least {shown(bar)}", move)


def _at_most(
    name: str, label: str, value: float | None, bar: float, shown: Unit, move: str
) -> Gate:
    holds = value is not None and value <= bar
    return _gate(name, label, value, bar, holds, shown, f"at most {shown(bar)}", move)


def _gate(
    name: str,
    label: str,
    value: float | None,
    bar: float,
    holds: bool,
    shown: Unit,
    needed: str,
    move: str,
) -> Gate:
    found = "unknown" if value is None else shown(value)
    reason = "" if holds else f"{label}: {found}, needed {needed}; {move}"
    return Gate(name, label, value, bar, holds, found, needed, reason)


def _predicted(
    name: str, label: str, found: Predicted | None, bar: float, shown: Unit, no_prediction: str
) -> Gate:
    """Holds where the lower end of the interval reaches the bar: the gain must not be chance."""
    needed = f"at least {shown(bar)}"
    if found is None:
        reason = f"{label}: not predicted; {no_prediction}"
        return Gate(name, label, None, bar, False, "not predicted", needed, reason)
    if found.ci95 is None:
        reason = f"{label}: one seed shows no spread; set promotion.seeds to 2 or more"
        return Gate(name, label, None, bar, False, shown(found.mean), needed, reason)
    low, high = found.ci95
    text = f"{shown(found.mean)} ({shown.number(low)} to {shown.number(high)})"
    holds = low >= bar
    reason = (
        ""
        if holds
        else f"{label}: {text}, and the lower end must reach {shown(bar)}; train on newer load, "
        "replay more seeds, or stay with the rule"
    )
    return Gate(name, label, low, bar, holds, text, needed, reason)


def _minus(text: str) -> str:
    return "0" if text == "-0" else text.replace("-", "\N{MINUS SIGN}")


# Records -----------------------------------------------------------------------------------


def promote(
    store: AuditStore,
    target: str,
    identity: RunIdentity,
    evidence: Evidence,
    passed: Sequence[Gate],
    *,
    clock: Clock | None = None,
) -> Promotion:
    """Store that this policy may act on this target, with what it rests on.

    Raises:
        ValueError: a gate does not hold.
    """
    failed = [gate.reason for gate in passed if not gate.holds]
    if failed:
        raise ValueError(f"{target} was promoted although {failed[0]}")
    shown = {"evidence": evidence.to_json(), "gates": [asdict(gate) for gate in passed]}
    return _store(store, target, PromotionKind.PROMOTED, identity, clock, evidence=shown)


def record_without_evidence(
    store: AuditStore,
    target: TargetConfig,
    identity: RunIdentity,
    reason: str,
    *,
    clock: Clock | None = None,
) -> Promotion:
    """Store that someone lets this policy act without evidence, and why.

    Raises:
        ConfigError: the reason is empty.
    """
    if not reason.strip():
        raise ConfigError(
            "--without-evidence is empty; say why in a few words, they are kept in the audit log"
        )
    kind = PromotionKind.WITHOUT_EVIDENCE
    return _store(store, target.name, kind, identity, clock, reason=reason.strip())


def demote(
    store: AuditStore, target: str, *, reason: str = "", clock: Clock | None = None
) -> Promotion:
    """Store that nothing may act on this target any more; needs no evidence."""
    return _store(store, target, PromotionKind.DEMOTED, None, clock, reason=reason.strip())


def _store(
    store: AuditStore,
    target: str,
    kind: PromotionKind,
    identity: RunIdentity | None,
    clock: Clock | None,
    *,
    reason: str = "",
    evidence: Mapping[str, object] | None = None,
) -> Promotion:
    made = Promotion(
        target=target,
        at_s=(clock or WallClock()).now_s(),
        kind=kind,
        policy=None if identity is None else identity.policy,
        policy_digest=None if identity is None else identity.policy_digest,
        config_digest=None if identity is None else identity.config_digest,
        who=who(),
        version=metadata.version("deepseek-tuner"),
        reason=reason,
        evidence=evidence,
    )
    store.add_promotion(made)
    return made


def who() -> str:
    """Whoever runs this process, as user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{platform.node() or 'unknown-host'}"


def check_active(store: AuditStore, target: TargetConfig, identity: RunIdentity) -> None:
    """Let pass what may act.

    Raises:
        ConfigError: there is no matching record, why, and what to do.
    """
    refusal = why_not_active(store.promotion(target.name), identity)
    if refusal is not None:
        raise ConfigError(
            f"target '{target.name}' may not act: {refusal}; `tuner promote` shows what is missing "
            "and --apply lets it act, or give --without-evidence REASON"
        )


def why_not_active(latest: Promotion | None, identity: RunIdentity) -> str | None:
    """Why the latest record of a target does not let this policy act; None where it does.

    A record is for one policy and one configuration: another bundle or another target is another
    risk.
    """
    if latest is None:
        return "nobody has promoted it"
    on = day_text(latest.at_s)
    if latest.kind is PromotionKind.DEMOTED:
        why = f" ({latest.reason})" if latest.reason else ""
        return f"{latest.who} demoted it on {on}{why}"
    given = f"it was promoted on {on} by {latest.who}"
    if latest.policy_digest != identity.policy_digest or latest.policy != identity.policy:
        return (
            f"{given} with another policy, {_named(latest.policy, latest.policy_digest)}; "
            f"now it is {_named(identity.policy, identity.policy_digest)}"
        )
    if latest.config_digest != identity.config_digest:
        return (
            f"{given} with another configuration, {_short(latest.config_digest)}; "
            f"now it is {_short(identity.config_digest)}"
        )
    return None


def day_text(at_s: float) -> str:
    """A moment on the wall clock as people read it, in UTC."""
    return f"{datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%d %H:%M} UTC"


def _named(policy: str | None, digest: str | None) -> str:
    name = Path(policy or "unknown").name
    return name if digest is None else f"{name} ({_short(digest)})"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
