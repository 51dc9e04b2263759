"""How many requests are inside an engine."""

from __future__ import annotations

from math import isfinite

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tuner.core.faults import FaultError
from tuner.engines.engine import Engine, Replica, Series
from tuner.engines.tls import trusted_roots

PAGE_S = 5.0
"""Longest wait for a metrics page, s."""


def requests_inside(engine: Engine, replica: Replica) -> int | None:
    """Running and waiting requests, from the engine's own word or else from its page.

    None where neither says.
    """
    try:
        state = engine.read(replica)
    except FaultError:
        return _from_page(engine, replica)
    if state.running is None or state.waiting is None:
        return _from_page(engine, replica)
    return state.running + state.waiting


def _from_page(engine: Engine, replica: Replica) -> int | None:
    running, waiting = engine.metrics.running, engine.metrics.waiting
    if running is None or waiting is None:
        return None
    try:
        response = httpx.get(
            replica.page(engine.metrics.path),
            timeout=PAGE_S,
            trust_env=False,
            verify=trusted_roots(),
        )
        counts = [_sum(response.text, series) for series in (running, waiting)]
    except (httpx.HTTPError, ValueError):
        return None
    if response.status_code != httpx.codes.OK or None in counts:
        return None
    return round(sum(count for count in counts if count is not None))


def _sum(page: str, series: Series) -> float | None:
    """The series' samples added up; None if the page has none, or one that is no number."""
    found = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == series.name
        and all(sample.labels.get(label) == value for label, value in series.labels.items())
    ]
    total = sum(found)
    return total if found and isfinite(total) else None
