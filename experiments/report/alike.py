"""Counts that are the same of every policy, in a sentence: a column of one value tells nothing."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.readable import listed
from experiments.summary import METRICS

_FATES = ("failed", "rejected", "unfinished")
_LABELS = {metric.name: metric.label for metric in METRICS}


def alike_sentence(counts: Mapping[str, str]) -> str:
    """`The same for every policy: 193,660 requests, all completed; no trips.`

    Args:
        counts: metric -> its value as tables show it; empty gives an empty sentence.
    """
    some = [
        "all completed"
        if name == "completed" and text == counts.get("requests")
        else f"{text} {_LABELS[name]}"
        for name, text in counts.items()
        if text != "0"
    ]
    none = [name for name, text in counts.items() if text == "0"]
    fates = [_LABELS[name] for name in none if name in _FATES]
    events = [_LABELS[name] for name in none if name not in _FATES]
    parts = [", ".join(some)] if some else []
    if fates:
        parts.append(f"no {listed(fates, 'or')} requests")
    if events:
        parts.append(f"no {listed(events, 'or')}")
    return f"The same for every policy: {'; '.join(parts)}." if parts else ""
