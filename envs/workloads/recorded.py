"""Recorded telemetry turned back into requests: `tuner record`'s exact counts as a trace."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.workloads.rebuilt import (
    LENGTH_WINDOW_S,
    CountedLoad,
    Floats,
    Histograms,
    Ints,
    Lengths,
    blocks_of,
    means_of,
    rebuilt,
)
from tuner.core.errors import InputError
from tuner.core.gaps import SHORTEST_S
from tuner.core.trace import Gap, Trace
from tuner.data.telemetry import Telemetry

NAME = "telemetry"

ARRIVED, FINISHED = "requests_arrived", "requests_finished and those in flight"
"""What arrivals are taken from, for the header."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A trace and what of the recording it is not."""

    trace: Trace
    arrivals_from: str
    """What told the arrivals: see `ARRIVED`, `FINISHED`."""
    left_out: int
    """Requests that were counted only after a gap: when they came is not known."""


def from_telemetry(
    telemetry: Telemetry, seed: int, *, name: str = NAME, match_s: float = LENGTH_WINDOW_S
) -> Recorded:
    """One reconstruction of the recorded load.

    Each row has as many arrivals as it counted. An engine without a counter of arrivals tells them
    by what finished and what was in flight. Rows that saw nothing are counted by the next row that
    did; where that is more than a minute, both are a gap.

    Prompt and output lengths are drawn from the engine's own histograms and scaled so that they add
    up to the token counters over every `match_s`. Engines observe lengths and count output tokens
    when a request runs or ends, not when it arrives: over spans shorter than a request lasts, the
    sums say nothing about those who arrived then.

    Args:
        telemetry: what was recorded.
        seed: of instants and lengths.
        name: of the trace.
        match_s: seconds over which tokens add up exactly; 0: in every row that has arrivals, with
            the tokens of rows without any given to those before.

    Raises:
        InputError: no arrivals or no tokens were counted.
    """
    table = telemetry.table.sort_by("at_s")
    at_s, covered_s = _column(table, "at_s"), _column(table, "counted_s")
    if not len(at_s):
        raise InputError(f"{name} holds no row; record a longer span")
    arrived, arrivals_from = _arrivals(table)
    origin_s = float(at_s[0] - covered_s[0])
    rows, gaps = _watched(at_s, covered_s, np.isfinite(arrived), origin_s)
    left_out = int(np.nansum(arrived)) - int(arrived[rows.index].sum())
    requests = arrived[rows.index].astype(np.int64)
    if not requests.sum():
        raise InputError(f"{name}: no arrivals were counted outside gaps; record a longer span")
    block = _with_requests(blocks_of(rows.end_s - rows.start_s, match_s), requests)
    load = CountedLoad(
        start_s=rows.start_s,
        length_s=rows.end_s - rows.start_s,
        requests=requests,
        block=block,
        prompt=_lengths(table, "prompt", rows.index, requests, block, name),
        output=_lengths(table, "output", rows.index, requests, block, name),
        gaps=gaps,
    )
    header = {
        "origin": f"telemetry of {telemetry.header.target}, {telemetry.header.engine}",
        "since": f"{datetime.fromtimestamp(origin_s, tz=UTC):%Y-%m-%dT%H:%M:%SZ}",
        "arrivals": arrivals_from,
        "left_out": str(left_out),
        "tokens_add_up": "in every row" if match_s == 0 else f"over {match_s:g} s",
    }
    return Recorded(rebuilt(load, seed, name=name, header=header), arrivals_from, left_out)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows whose counts can be placed, `(rows,)` each."""

    index: NDArray[np.intp]
    """In the table."""
    start_s: Floats
    """Of the time that the row counts, on the trace's clock."""
    end_s: Floats


def _watched(
    at_s: Floats, covered_s: Floats, seen: NDArray[np.bool_], origin_s: float
) -> tuple[_Rows, tuple[Gap, ...]]:
    """Rows that counted, each back to the one before it; and the time that none of them covers."""
    index = np.flatnonzero(seen)
    end_s = at_s[index] - origin_s
    start_s = np.concatenate(([0.0], end_s[:-1]))
    silent_s = (end_s - covered_s[index]) - start_s
    after_gap = silent_s > SHORTEST_S
    gaps = [
        Gap(float(low), float(high))
        for low, high in zip(start_s[after_gap], end_s[after_gap], strict=True)
    ]
    last_s = float(at_s[-1] - origin_s)
    known_s = float(end_s[-1]) if len(end_s) else 0.0
    if last_s > known_s:
        gaps.append(Gap(known_s, last_s))
    kept = ~after_gap
    return _Rows(index[kept], start_s[kept], end_s[kept]), tuple(gaps)


def _arrivals(table: pa.Table) -> tuple[Floats, str]:
    """`(rows,)` arrivals, NaN where nothing was counted, and what told them."""
    arrived = _column(table, "requests_arrived")
    if np.isfinite(arrived).any():
        return arrived, ARRIVED
    ended = _column(table, "requests_finished")
    ended = ended + np.nan_to_num(_column(table, "requests_failed"))
    flight = _column(table, "in_flight")
    waiting = _column(table, "running") + _column(table, "queue_depth")
    flight = np.where(np.isfinite(flight), flight, waiting)
    seen = np.flatnonzero(np.isfinite(ended))
    known = np.flatnonzero(np.isfinite(flight))
    if len(seen) and len(known):
        # Where it was not measured, what is in flight is what it was.
        before = np.maximum(np.searchsorted(known, seen, side="right") - 1, 0)
        at_work = np.rint(flight[known[before]])
        came = np.cumsum(ended[seen]) + at_work - at_work[0]
        # Both are read at slightly different moments: nobody un-arrives.
        ended[seen] = np.diff(np.maximum.accumulate(np.maximum(came, 0.0)), prepend=0.0)
    return ended, FINISHED


def _lengths(
    table: pa.Table, kind: str, index: NDArray[np.intp], requests: Ints, block: Ints, name: str
) -> Lengths:
    tokens = _column(table, f"{kind}_tokens")[index]
    means = means_of(requests.astype(np.float64), tokens, block)
    if means is None:
        raise InputError(f"{name}: no {kind} tokens were counted; record an engine that does")
    counted = np.where(np.isfinite(tokens), tokens, means[block] * requests)
    total = np.rint(np.bincount(block, weights=counted, minlength=len(means)))
    return Lengths(
        means, total.astype(np.int64), histograms_of(table, f"{kind}_length", index, block)
    )


def histograms_of(
    table: pa.Table, name: str, index: NDArray[np.intp], block: Ints
) -> Histograms | None:
    """What one of the telemetry's HISTOGRAMS saw, by block.

    Of several sets of buckets, the first counts: an engine that was updated may have others.

    Args:
        index: `(rows,)` of the table.
        block: `(rows,)` of each, rising from 0.

    Returns:
        None where nothing was seen.
    """
    bounds = table[f"{name}_bounds"].take(index).to_pylist()
    counts = table[f"{name}_counts"].take(index).to_pylist()
    first = next((one for one, seen in zip(bounds, counts, strict=True) if one and any(seen)), None)
    if first is None:
        return None
    summed = np.zeros((int(block[-1]) + 1, len(first) + 1), np.int64)
    for place, one, seen in zip(block, bounds, counts, strict=True):
        if one == first:
            summed[place] += seen
    return Histograms(np.array(first), summed)


def _with_requests(block: Ints, requests: Ints) -> Ints:
    """Blocks without a request joined to the one before them, or at the start to the one after."""
    busy = np.bincount(block, weights=requests) > 0
    return np.asarray(np.maximum(np.cumsum(busy) - 1, 0)[block])


def _column(table: pa.Table, name: str) -> Floats:
    """`(rows,)`, NaN where null."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64).copy()
