"""Gaps in a recording: spans without an arrival that the load around them does not explain.

A recorder that was down leaves the same trace as a service without load. What tells them apart is
the traffic on both sides: where requests came every second, an hour of nothing is no lull.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import TraceError
from tuner.core.trace import Gap, Trace

GapMode = Literal["keep", "mask", "error"]
"""keep: take silence for no load. mask: note gaps in the trace. error: refuse the trace."""

SHORTEST_S = 60.0
"""Shorter silence is never called a gap: it is less than the windows that rates are taken over."""

NEIGHBOURS = 200
"""Intervals looked at on each side, as many as the recording has there."""

FEWEST_NEIGHBOURS = 100
"""With fewer on a side nothing is said: what is usual there is not known."""

EXCEPTIONS = 2
"""So many neighbours on a side may be nearly as long: other gaps, or lulls."""

TIMES_USUAL = 10.0
"""How much longer than its neighbours, exceptions apart, a gap is."""


def find_gaps(arrival_s: NDArray[np.float64]) -> tuple[Gap, ...]:
    """Spans between two arrivals that are longer than the load around them explains.

    An interval is a gap if it exceeds `SHORTEST_S` and if on each side at most `EXCEPTIONS` of the
    `NEIGHBOURS` nearest intervals reach a tenth of it. For Poisson arrivals that takes about 40
    times the mean interval at any rate, a chance of e^-40; for Gamma intervals whose standard
    deviation is 5 times the mean it happens once in 100,000 (seen in simulation). The edge of a
    quiet night is none, because its own side is as quiet.

    Args:
        arrival_s: `(requests,)`, never falling.
    """
    leading = _leading_gap(arrival_s)
    intervals = np.diff(arrival_s)
    suspects = np.flatnonzero(intervals > SHORTEST_S)
    suspects = suspects[
        (suspects >= FEWEST_NEIGHBOURS) & (suspects < len(intervals) - FEWEST_NEIGHBOURS)
    ]
    long_s = intervals[suspects] / TIMES_USUAL
    for side in (-1, 1):
        as_long = np.zeros(len(suspects), dtype=np.int64)
        for distance in range(1, NEIGHBOURS + 1):
            at = suspects + side * distance
            inside = (at >= 0) & (at < len(intervals))
            as_long += inside & (intervals[np.where(inside, at, 0)] >= long_s)
        suspects, long_s = suspects[as_long <= EXCEPTIONS], long_s[as_long <= EXCEPTIONS]
    inside_gaps = tuple(Gap(float(arrival_s[i]), float(arrival_s[i + 1])) for i in suspects)
    return leading + inside_gaps


def _leading_gap(arrival_s: NDArray[np.float64]) -> tuple[Gap, ...]:
    """The silence before the first arrival, where the traffic after it does not explain it: a trace
    cut out of a longer one that kept its clock."""
    after = np.diff(arrival_s[: NEIGHBOURS + 1])
    first_s = float(arrival_s[0])
    if first_s <= SHORTEST_S or len(after) < FEWEST_NEIGHBOURS:
        return ()
    if np.sum(after >= first_s / TIMES_USUAL) > EXCEPTIONS:
        return ()
    return (Gap(0.0, first_s),)


def treat_gaps(trace: Trace, mode: GapMode) -> tuple[Trace, tuple[Gap, ...]]:
    """The trace as `mode` wants it, and the gaps found that it does not mask already.

    `keep` and `error` leave the trace as it is; `mask` adds those found to its `gaps`.

    Raises:
        TraceError: mode is `error` and there is a gap.
    """
    found = unmasked(find_gaps(trace.arrival_s), trace.gaps)
    if found and mode == "error":
        gap = found[0]
        raise TraceError(
            f"{trace.name}: {len(found)} gap{'s' if len(found) > 1 else ''} in the recording, the "
            f"first from {gap.start_s:.0f} s to {gap.end_s:.0f} s; expected none, so record it "
            "again, cut the trace there, or choose --gaps mask or --gaps keep"
        )
    if mode == "mask":
        return replace(trace, gaps=merged((*trace.gaps, *found))), found
    return trace, found


def unmasked(found: tuple[Gap, ...], masked: tuple[Gap, ...]) -> tuple[Gap, ...]:
    """Gaps of which masked ones leave more than `SHORTEST_S` open.

    A gap is found from one arrival to the next; what was masked while it was recorded ends a
    little before and after.
    """
    return tuple(
        gap
        for gap in found
        if gap.length_s - sum(_overlap_s(gap, other) for other in masked) > SHORTEST_S
    )


def merged(gaps: tuple[Gap, ...]) -> tuple[Gap, ...]:
    """The same spans in order and apart."""
    apart: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: gap.start_s):
        if apart and gap.start_s <= apart[-1].end_s:
            apart[-1] = Gap(apart[-1].start_s, max(apart[-1].end_s, gap.end_s))
        else:
            apart.append(gap)
    return tuple(apart)


def _overlap_s(one: Gap, other: Gap) -> float:
    return max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s))
