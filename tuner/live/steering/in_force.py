"""Which settings a target runs with, out of what each of its replicas says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tuner.core.faults import Fault, FaultReason
from tuner.core.knobs import KnobSettings
from tuner.engines.engine import EngineState


def most_common(values: Iterable[int]) -> int:
    """The value that occurs most often; of several such, the smallest.

    The smaller of two caps is the safer one to start a step from.

    Raises:
        ValueError: if there is no value.
    """
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def settings_in_force(
    states: Mapping[str, EngineState], knobs: Iterable[str]
) -> tuple[KnobSettings, tuple[Fault, ...]]:
    """What most replicas report, and a fault for each knob on which they disagree.

    Args:
        states: replica -> what it says; the ready ones that could be read.
        knobs: names to look for. One that no replica reports is absent from the settings.
    """
    settings: dict[str, int] = {}
    faults = []
    for knob in knobs:
        values = [s.knobs[knob].value for s in states.values() if knob in s.knobs]
        if not values:
            continue
        settings[knob] = most_common(values)
        if len(set(values)) > 1:
            faults.append(_disagreement(knob, values, settings[knob]))
    return KnobSettings(settings), tuple(faults)


def _disagreement(knob: str, values: list[int], taken: int) -> Fault:
    counts = ", ".join(f"{value} on {count}" for value, count in sorted(Counter(values).items()))
    sentence = (
        f"{knob} differs among {len(values)} replicas ({counts}): {taken} counts as in force; the "
        "next write makes them equal"
    )
    return Fault("replicas", FaultReason.CONFLICT, sentence, knob)
