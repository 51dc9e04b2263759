"""Open-loop replay: recorded observations through the same tick, for the same decisions.

It proves that a decision can be reproduced from its record. It says nothing about quality: what
was observed had already been shaped by the decisions of that time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tuner.control.loop import tick
from tuner.core.audit import AuditRecord, MemoryAudit
from tuner.core.decision import Decision, Guardrails, Receipt
from tuner.core.errors import InputError
from tuner.core.faults import Fault, FaultReason
from tuner.core.history import History
from tuner.core.knobs import KnobSettings, KnobSpace
from tuner.core.observation import Observation
from tuner.core.protocols import Policy


class RecordedCluster:
    """A cluster that shows what was recorded and refuses to be moved."""

    def __init__(self, observations: Iterable[Observation]) -> None:
        self._observations = iter(observations)

    def observe(self) -> Observation:
        return next(self._observations)

    def apply(self, decision: Decision) -> Receipt:
        fault = Fault("recording", FaultReason.REFUSED, "a recording cannot be moved")
        return Receipt(decision.at_s, KnobSettings(), (fault,))


def write_records(records: Sequence[AuditRecord], path: Path) -> None:
    """Write the records as JSON Lines: one tick a line, in order, whole or not at all."""
    lines = [json.dumps(record.to_json(), allow_nan=False) for record in records]
    part = path.with_name(path.name + ".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file as plain data.

    Raises:
        InputError: naming the line that cannot be read.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error.msg})") from None
    return records


def replay(
    records: Sequence[dict[str, Any]],
    knobs: KnobSpace,
    policy: Policy,
    guardrails: Guardrails,
    fallback: Policy,
) -> list[AuditRecord]:
    """Decide again on every recorded observation, from an empty history."""
    cluster = RecordedCluster(Observation.from_json(record["observation"]) for record in records)
    audit = MemoryAudit()
    history = History(knobs)
    for record in records:
        history = tick(cluster, history, policy, guardrails, fallback, audit, record["mode"])
    return audit.records
