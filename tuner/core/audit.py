"""What is written down about each decision, as plain data with stable keys."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tuner.core.decision import Decision, Proposal, Receipt
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
        receipt = self.receipt
        return {
            "mode": self.mode,
            "observation": self.observation.to_json(),
            "decision": _decision_json(self.decision),
            "receipt": None
            if receipt is None
            else {
                "at_s": receipt.at_s,
                "applied": dict(receipt.applied),
                "refused": receipt.refused,
            },
        }


def _decision_json(decision: Decision) -> dict[str, object]:
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


def _proposal_json(proposal: Proposal | None) -> dict[str, object] | None:
    if proposal is None:
        return None
    return {
        "settings": dict(proposal.settings),
        # JSON has no NaN: an empty place in a memory is null.
        "memory": [None if value != value else value for value in proposal.memory],
        "raw": proposal.raw,
        "log_prob": proposal.log_prob,
    }


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
