"""Whether the controller lives and may be relied on: the age of each target's last decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MISSED_TICKS = 3
"""A target that has decided nothing for so many ticks is stuck: one late tick is normal."""
MARGIN_S = 20.0
"""Beyond that, s. A tick in which everything times out takes about so long and still decides."""


@dataclass
class Pulse:
    """Signs of life of one target; written by its thread, read by the page's.

    Times are of a monotonic clock, so that a clock set back does not look like a death.
    """

    target: str
    period_s: float
    """Seconds between two ticks, on the wall's scale also where the target's clock runs faster."""
    started_s: float
    decided_s: float | None = None
    """When the last decision was carried out and recorded; None before the first."""
    audit_fault: str = ""
    """Why the audit log could not be written last time; empty where it could."""
    failure: str = ""
    """Why the last tick failed; empty where it did not."""
    ended: bool = False
    """The target has done all it was asked to, and left."""


def stuck(pulses: Iterable[Pulse], now_s: float) -> list[str]:
    """One sentence for each target whose last decision is too old."""
    sentences = []
    for pulse in pulses:
        limit_s = MISSED_TICKS * pulse.period_s + MARGIN_S
        since_s = pulse.started_s if pulse.decided_s is None else pulse.decided_s
        age_s = now_s - since_s
        if pulse.ended or age_s < limit_s:
            continue
        last = "start" if pulse.decided_s is None else "last decision"
        sentences.append(
            f"target {pulse.target} is stuck: {age_s:.0f} s since its {last}, expected a decision "
            f"within {limit_s:.0f} s{_last(pulse.failure)}"
        )
    return sentences


def not_ready(pulses: Iterable[Pulse]) -> list[str]:
    """One sentence for each target that has not decided yet, or whose audit cannot be written."""
    sentences = []
    for pulse in pulses:
        if pulse.audit_fault:
            sentences.append(
                f"target {pulse.target}: the audit log cannot be written: {pulse.audit_fault}"
            )
        elif pulse.decided_s is None:
            sentences.append(
                f"target {pulse.target} has not decided yet; the first tick is under way"
                f"{_last(pulse.failure)}"
            )
    return sentences


def _last(failure: str) -> str:
    return f"; last failure: {failure}" if failure else ""
