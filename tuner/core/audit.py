"""What is written down about each decision, as plain data with stable keys, and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tuner.core.decision import Decision, Proposal, Reason, Receipt, Source, Verdict
from tuner.core.faults import Fault
from tuner.core.knobs import KnobSettings
from tuner.core.observation import Observation


@dataclass(frozen=True)
class AuditRecord:
    """One decision with everything that led to it and what became of it."""

    mode: str
    observation: Observation
    decision: Decision
    receipt: Receipt | None = None
    """None until the cluster answered: an intent without a receipt is a crash in between."""

    def to_json(self) -> dict[str, object]:
        """Plain data; absent values are null, keys never vary."""
        return {
            "mode": self.mode,
            "observation": self.observation.to_json(),
            "decision": decision_to_json(self.decision),
            "receipt": None if self.receipt is None else receipt_to_json(self.receipt),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AuditRecord:
        """The inverse of `to_json`.

        Raises:
            KeyError: if a key is missing, or a reason is not known.
            TypeError: if a key is not known.
            ValueError: if a source, state or number is not one.
        """
        receipt = data["receipt"]
        return cls(
            mode=data["mode"],
            observation=Observation.from_json(data["observation"]),
            decision=decision_from_json(data["decision"]),
            receipt=None if receipt is None else receipt_from_json(receipt),
        )


def decision_to_json(decision: Decision) -> dict[str, object]:
    """A decision as plain data."""
    return {
        "at_s": decision.at_s,
        "proposal": _proposal_json(decision.proposal),
        "fallback": _proposal_json(decision.fallback),
        "settings": dict(decision.settings),
        "target": dict(decision.target),
        "source": str(decision.source),
        "verdicts": [
            {**{f.name: getattr(v, f.name) for f in fields(v)}, "reason": v.reason.name}
            for v in decision.verdicts
        ],
    }


def decision_from_json(data: Mapping[str, Any]) -> Decision:
    """The inverse of `decision_to_json`; raises as `AuditRecord.from_json`."""
    return Decision(
        at_s=data["at_s"],
        proposal=_proposal(data["proposal"]),
        fallback=_proposal(data["fallback"]),
        settings=KnobSettings(data["settings"]),
        target=KnobSettings(data["target"]),
        source=Source(data["source"]),
        verdicts=tuple(
            Verdict(**{**verdict, "reason": Reason[verdict["reason"]]})
            for verdict in data["verdicts"]
        ),
    )


def receipt_to_json(receipt: Receipt) -> dict[str, object]:
    """A receipt as plain data."""
    return {
        "at_s": receipt.at_s,
        "applied": dict(receipt.applied),
        "faults": [fault.to_json() for fault in receipt.faults],
    }


def receipt_from_json(data: Mapping[str, Any]) -> Receipt:
    """The inverse of `receipt_to_json`; raises as `AuditRecord.from_json`."""
    return Receipt(
        at_s=data["at_s"],
        applied=KnobSettings(data["applied"]),
        faults=tuple(Fault.from_json(fault) for fault in data["faults"]),
    )


def _proposal_json(proposal: Proposal | None) -> dict[str, object] | None:
    if proposal is None:
        return None
    return {
        "settings": {knob: _number_json(value) for knob, value in proposal.settings.items()},
        # An empty place in a memory is NaN.
        "memory": [_number_json(value) for value in proposal.memory],
        "raw": _number_json(proposal.raw),
        "log_prob": _number_json(proposal.log_prob),
        "why": proposal.why,
    }


def _proposal(data: Mapping[str, Any] | None) -> Proposal | None:
    if data is None:
        return None
    return Proposal(
        settings={knob: _number(value) for knob, value in data["settings"].items()},
        memory=tuple(_number(value) for value in data["memory"]),
        raw=None if data["raw"] is None else _number(data["raw"]),
        log_prob=None if data["log_prob"] is None else _number(data["log_prob"]),
        why=data.get("why", ""),  # records of before rules had a word lack it
    )


def _number_json(value: float | None) -> float | str | None:
    """JSON has no NaN, which becomes null, and no infinity, which becomes text."""
    if value is None or value != value:
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


class NoAudit:
    """Keeps nothing, for simulations that take from each tick what they need."""

    def intent(self, mode: str, observation: Observation, decision: Decision) -> None:
        pass

    def receipt(self, decision: Decision, receipt: Receipt) -> None:
        pass


class MemoryAudit:
    """Keeps the records of a run in memory, for simulations and tests."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    def intent(self, mode: str, observation: Observation, decision: Decision) -> None:
        self.records.append(AuditRecord(mode, observation, decision))

    def receipt(self, decision: Decision, receipt: Receipt) -> None:
        last = self.records[-1]
        self.records[-1] = AuditRecord(last.mode, last.observation, decision, receipt)

    @property
    def decisions(self) -> list[Decision]:
        return [record.decision for record in self.records]
