"""The same trouble on many replicas, as one sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tuner.core.faults import Fault, FaultReason

NAMED = 3
"""Replicas named in a joint sentence: enough to look at one, few enough to read."""

Kind = tuple[FaultReason, str | None]


def joined(faults: Iterable[Fault], replicas: Collection[str]) -> tuple[Fault, ...]:
    """The faults, with those of one kind (reason and knob) over several replicas made one.

    Args:
        faults: in the order in which they were met, which is kept.
        replicas: names; a fault elsewhere stays as it is.
    """
    faults = tuple(faults)
    kinds: dict[Kind, list[Fault]] = {}
    for fault in faults:
        if fault.where in replicas:
            kinds.setdefault((fault.reason, fault.knob), []).append(fault)
    result: list[Fault] = []
    for fault in faults:
        same = kinds.get((fault.reason, fault.knob), []) if fault.where in replicas else []
        names = list(dict.fromkeys(f.where for f in same))
        if len(names) < 2:
            result.append(fault)
        elif fault is same[0]:
            result.append(_joint(fault, names))
    return tuple(result)


def _joint(first: Fault, names: list[str]) -> Fault:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    named = ", ".join(names[:NAMED])
    sentence = f"{len(names)} replicas ({named}{more}), for example: {first.sentence}"
    return Fault("replicas", first.reason, sentence, first.knob)
