"""Where each target stands, and what became of each decision, read from the audit log."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.control.audit_store import (
    Activity,
    AuditStore,
    Promotion,
    StoredDecision,
    write_faults,
)
from tuner.control.promote import why_not_active
from tuner.core.clock import Clock, WallClock
from tuner.core.decision import Decision
from tuner.core.faults import FaultReason

DAY_S = 86_400.0


@dataclass(frozen=True)
class TargetStatus:
    """One target now."""

    target: str
    last: StoredDecision | None
    """The newest decision; None before the first."""
    age_s: float | None
    """Since it was written, on the wall clock."""
    day: Activity
    """The 24 hours up to it."""
    promotion: Promotion | None
    """The latest word on it."""
    may_not_act: str | None
    """Why the policy that decided last may not act; None where it may."""


def status_of(store: AuditStore, target: str, *, clock: Clock | None = None) -> TargetStatus:
    """Where a target stands.

    Args:
        store: the audit log.
        target: its name.
        clock: the wall clock; None: the system's.
    """
    newest = store.decisions(target, last=1)
    last = newest[0] if newest else None
    promotion = store.promotion(target)
    if last is None:
        return TargetStatus(
            target, None, None, Activity(0, 0, 0, 0, 0, 0, 0), promotion, "it never decided"
        )
    return TargetStatus(
        target=target,
        last=last,
        age_s=max(0.0, (clock or WallClock()).now_s() - last.recorded_at_s),
        day=store.activity(target, after_s=last.decision.at_s - DAY_S),
        promotion=promotion,
        may_not_act=why_not_active(promotion, last.identity),
    )


def moves(decision: Decision) -> str:
    """From -> to, of every knob that moves."""
    shown = [f"{knob} {old} -> {new}" for knob, (old, new) in decision.changes.items()]
    return ", ".join(shown) or "no change"


def became(stored: StoredDecision) -> str:
    """What became of a decision, in a few words."""
    changes, receipt = stored.decision.changes, stored.record.receipt
    if receipt is None:
        return "no receipt"
    if not changes and not receipt.faults:
        return "nothing to do"
    trouble = {fault.knob: fault for fault in write_faults(receipt)}
    if trouble:
        reasons = ", ".join(dict.fromkeys(str(fault.reason) for fault in trouble.values()))
        done = [knob for knob in changes if receipt.applied.get(knob) == changes[knob][1]]
        partly = f"{', '.join(done)} applied, " if done and set(done) - set(trouble) else ""
        return f"{partly}failed: {reasons}"
    if any(fault.reason is FaultReason.SHADOW for fault in receipt.faults):
        return "not written"
    missing = [knob for knob, (_, new) in changes.items() if receipt.applied.get(knob) != new]
    return f"not applied: {', '.join(missing)}" if missing else "applied"
