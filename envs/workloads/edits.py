"""Traces made of traces: pieces, thinned, shifted, burstier, longer.

Pure functions: the same trace, arguments and seed give the same bits. Each notes in the header
("edits") what it did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import ConfigError
from tuner.core.gaps import SHORTEST_S, merged
from tuner.core.trace import MAX_TOKENS, Gap, Trace
from tuner.data.traces import OPTIONAL, REQUIRED

DAY_S = 86_400.0

PROFILE_S = 600.0
"""`with_bursts` keeps the load of each so many seconds; what varies faster is bursts."""

Tokens = NDArray[np.int32]


def cut(trace: Trace, start_s: float = 0.0, end_s: float = math.inf) -> Trace:
    """The requests from one time until before another, on a clock that starts there.

    Raises:
        ConfigError: there are none.
    """
    inside = (trace.arrival_s >= start_s) & (trace.arrival_s < end_s)
    end = "s on" if math.isinf(end_s) else f"to {end_s:g} s"
    if not inside.any():
        raise ConfigError(
            f"{trace.name} holds no request from {start_s:g} {end}; its last one is at "
            f"{trace.last_arrival_s:.0f} s"
        )
    piece = replace(trace, gaps=()).take(inside)
    spans = [(max(gap.start_s, start_s), min(gap.end_s, end_s)) for gap in trace.gaps]
    return replace(
        piece,
        arrival_s=piece.arrival_s - start_s,
        gaps=tuple(Gap(low - start_s, high - start_s) for low, high in spans if low < high),
        header=_noted(trace, f"cut {start_s:g} {end}"),
    )


def spliced(pieces: Sequence[Trace]) -> Trace:
    """Traces end to end: each begins where the one before ended, by its mean interval after its
    last request."""
    start_s, starts_s = 0.0, []
    for piece in pieces:
        starts_s.append(start_s)
        start_s += length_s(piece)
    columns = _joined(pieces)
    columns["arrival_s"] = np.concatenate(
        [piece.arrival_s + start for piece, start in zip(pieces, starts_s, strict=True)]
    )
    gaps = tuple(
        Gap(gap.start_s + start, gap.end_s + start)
        for piece, start in zip(pieces, starts_s, strict=True)
        for gap in piece.gaps
    )
    note = "spliced with " + ", ".join(piece.name for piece in pieces[1:])
    return replace(pieces[0], **columns, gaps=gaps, header=_noted(pieces[0], note))


def overlaid(traces: Sequence[Trace]) -> Trace:
    """Traces at the same time: the load of all. Where one has a gap, the sum is not known."""
    columns = _joined(traces)
    order = np.argsort(columns["arrival_s"], kind="stable")
    for name, one in columns.items():
        columns[name] = None if one is None else one[order]
    note = "overlaid with " + ", ".join(trace.name for trace in traces[1:])
    return replace(
        traces[0],
        **columns,
        gaps=merged(tuple(gap for trace in traces for gap in trace.gaps)),
        header=_noted(traces[0], note),
    )


def thinned(trace: Trace, keep: float, seed: int) -> Trace:
    """Each request is kept with the same chance: less load of the same kind.

    Raises:
        ConfigError: keep is not above 0 and at most 1, or nothing is kept.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"thin: {keep} of the requests; expected a share above 0, at most 1")
    kept = np.random.default_rng(seed).random(len(trace)) < keep
    if not kept.any():
        raise ConfigError(f"thin: {keep:g} of {len(trace)} requests leaves none; keep more")
    return replace(trace.take(kept), header=_noted(trace, f"thinned to {keep:g}, seed {seed}"))


def phase_shifted(trace: Trace, shift_s: float) -> Trace:
    """The same load at another time of the day: what is pushed over the end comes at the start.

    A rotation of as many days as the trace reaches into. Time that the last day lacks is a gap.
    """
    reach_s = max(trace.last_arrival_s, *(gap.end_s for gap in trace.gaps), 0.0)
    period_s = DAY_S * max(math.ceil(reach_s / DAY_S), 1)
    shift_s %= period_s
    arrival_s = trace.arrival_s + shift_s
    over = arrival_s >= period_s
    arrival_s[over] -= period_s
    first = int(np.argmax(over)) if over.any() else len(trace)
    order = np.r_[first : len(trace), 0:first]
    gaps = list(trace.gaps)
    if period_s - reach_s > SHORTEST_S:
        gaps.append(Gap(reach_s, period_s))
    columns: dict[str, Any] = {name: one[order] for name, one in trace.columns().items()}
    columns["arrival_s"] = arrival_s[order]
    return replace(
        trace,
        **columns,
        gaps=merged(tuple(part for gap in gaps for part in _rotated(gap, shift_s, period_s))),
        header=_noted(trace, f"shifted by {shift_s / 3600:g} h of {period_s / 3600:g} h"),
    )


def with_bursts(trace: Trace, cv: float, seed: int, *, profile_s: float = PROFILE_S) -> Trace:
    """The same requests in the same order at new instants, in bursts.

    Instants are a Gamma renewal process whose clock runs at the trace's load, constant over
    `profile_s`; the number of requests stays.

    Args:
        trace: the load.
        cv: standard deviation over mean of the gaps at a steady load; 1 is Poisson.
        seed: of the gaps.
        profile_s: shorter ups and downs of the load are replaced.

    Raises:
        ConfigError: cv or profile_s is out of its range.
    """
    if not 0 < cv <= 100:
        raise ConfigError(f"bursts: a CV of {cv}; expected above 0, at most 100")
    if not 0 < profile_s < math.inf:
        raise ConfigError(f"bursts: a profile of {profile_s} s; expected seconds > 0")
    end_s = length_s(trace)
    borders = [gap_s for gap in trace.gaps for gap_s in (gap.start_s, gap.end_s)]
    edges = np.unique([*np.arange(0.0, end_s, profile_s), end_s, *borders])
    expected = np.searchsorted(trace.arrival_s, edges, side="left").astype(np.float64)
    gaps = np.random.default_rng(seed).standard_gamma(cv**-2, len(trace) + 1)
    passed = np.cumsum(gaps)
    if not passed[-1] > 0:
        raise ConfigError(f"bursts: {len(trace)} requests are too few for a CV of {cv:g}")
    arrival_s = np.interp(passed[:-1] * (len(trace) / passed[-1]), expected, edges)
    note = f"gaps of CV {cv:g} over {profile_s:g} s, seed {seed}"
    return replace(trace, arrival_s=np.maximum.accumulate(arrival_s), header=_noted(trace, note))


def with_lengths(
    trace: Trace,
    *,
    outputs: float = 1.0,
    output_tail: float = 1.0,
    prompts: float = 1.0,
    prompt_tail: float = 1.0,
) -> Trace:
    """Longer or shorter requests.

    Args:
        trace: the load; prefix hits are scaled with their prompts.
        outputs: factor on every output.
        output_tail: exponent on how often an output longer than the median holds it; above 1 the
            long ones become longer.
        prompts: as outputs.
        prompt_tail: as output_tail.

    Raises:
        ConfigError: one of them is not above 0 and at most 100.
    """
    given = {
        "outputs": outputs,
        "output_tail": output_tail,
        "prompts": prompts,
        "prompt_tail": prompt_tail,
    }
    for name, value in given.items():
        if not 0 < value <= 100:
            raise ConfigError(f"lengths: {name} is {value}; expected above 0, at most 100")
    prompt_tokens = _lengthened(trace.prompt_tokens, prompts, prompt_tail)
    hits = trace.prefix_hit_tokens
    if hits is not None:
        scaled = np.floor(hits * (prompt_tokens / trace.prompt_tokens))
        hits = np.minimum(scaled, prompt_tokens).astype(np.int32)
    changed = ", ".join(f"{name} {value:g}" for name, value in given.items() if value != 1)
    return replace(
        trace,
        prompt_tokens=prompt_tokens,
        output_tokens=_lengthened(trace.output_tokens, outputs, output_tail),
        prefix_hit_tokens=hits,
        header=_noted(trace, f"lengths: {changed or 'as they were'}"),
    )


def length_s(trace: Trace) -> float:
    """Seconds until another trace may follow: a mean interval after the last request."""
    known_s = trace.last_arrival_s - sum(
        max(0.0, min(gap.end_s, trace.last_arrival_s) - gap.start_s) for gap in trace.gaps
    )
    end_s = trace.last_arrival_s + max(known_s / len(trace), 1e-9)
    return max(end_s, *(gap.end_s for gap in trace.gaps), 0.0)


def _lengthened(tokens: Tokens, factor: float, tail: float) -> Tokens:
    median = float(np.median(tokens))
    over = np.maximum(tokens / median, 1.0)
    longer = factor * tokens * over ** (tail - 1)
    return np.clip(np.rint(longer), 1, MAX_TOKENS).astype(np.int32)


def _joined(traces: Sequence[Trace]) -> dict[str, Any]:
    """Columns behind each other, None for those that a trace lacks. A client of one trace is none
    of another."""
    if not traces:
        raise ValueError("no trace is given; expected at least one")
    columns = [trace.columns() for trace in traces]
    first_client = 0
    for one in columns:
        if "client_id" in one:
            one["client_id"] = one["client_id"] + np.int32(first_client)
            first_client = int(one["client_id"].max()) + 1
    return {
        name: np.concatenate([one[name] for one in columns])
        if all(name in one for one in columns)
        else None
        for name in (*REQUIRED, *OPTIONAL)
    }


def _rotated(gap: Gap, shift_s: float, period_s: float) -> list[Gap]:
    start_s, end_s = gap.start_s + shift_s, gap.end_s + shift_s
    if end_s <= period_s:
        return [Gap(start_s, end_s)]
    if start_s >= period_s:
        return [Gap(start_s - period_s, end_s - period_s)]
    return [Gap(start_s, period_s), Gap(0.0, end_s - period_s)]


def _noted(trace: Trace, note: str) -> dict[str, str]:
    """The header with one more edit."""
    before = trace.header.get("edits")
    return {**trace.header, "edits": note if before is None else f"{before}; {note}"}
