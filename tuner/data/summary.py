"""What a trace holds, in figures: load, lengths, burstiness, gaps, clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.core.gaps import find_gaps
from tuner.core.trace import Gap, Trace

DISPERSION_WINDOWS_S = (15.0, 60.0, 600.0)
"""A control tick, a rate window, and a cold start's order of magnitude."""

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class TokenSummary:
    """Lengths of prompts or outputs, in tokens."""

    mean: float
    quantiles: Mapping[str, float]
    """Keys of `QUANTILES`."""
    max: int
    tokens_per_s: float
    """Over the time outside masked gaps."""


@dataclass(frozen=True)
class ClientSummary:
    """Who sends."""

    clients: int
    largest_share: float
    """Requests of the client with most of them, 0-1."""


@dataclass(frozen=True)
class TraceSummary:
    """Figures of one trace. Windows that overlap a masked gap are left out of all of them."""

    name: str
    header: Mapping[str, str]
    requests: int
    span_s: float
    """First to last arrival."""
    masked_s: float
    """Of the span, inside masked gaps."""
    mean_qps: float
    peak_qps_15s: float | None
    """Most requests in 15 s, over 15 s; None if the trace is shorter."""
    peak_qps_60s: float | None
    largest_rise_10min: float | None
    """Most that one 10 minutes had over the 10 minutes before, as a factor; None if not known."""
    gap_cv: float | None
    """Standard deviation over mean of the intervals between arrivals; 1 for Poisson arrivals."""
    dispersion: Mapping[str, float | None]
    """Window -> variance over mean of the requests per window; 1 for Poisson arrivals of one rate.
    None where the trace has fewer than two windows."""
    prompt: TokenSummary
    output: TokenSummary
    prefix_hit_share: float | None
    """Prompt tokens that an endless prefix cache would hold, 0-1; None if not recorded."""
    clients: ClientSummary | None
    gaps: tuple[Gap, ...]
    """Silence that the load around it does not explain, masked or not."""
    masked: tuple[Gap, ...]


def summarise(trace: Trace) -> TraceSummary:
    """Figures of the trace."""
    span_s = trace.last_arrival_s - float(trace.arrival_s[0])
    masked_s = sum(gap.length_s for gap in trace.gaps)
    seconds = span_s - masked_s
    ten_minutes = window_counts(trace, 600.0)
    return TraceSummary(
        name=trace.name,
        header=dict(trace.header),
        requests=len(trace),
        span_s=span_s,
        masked_s=masked_s,
        mean_qps=_per_second(len(trace), seconds),
        peak_qps_15s=_peak_qps(trace, 15.0),
        peak_qps_60s=_peak_qps(trace, 60.0),
        largest_rise_10min=_largest_rise(ten_minutes),
        gap_cv=_gap_cv(trace),
        dispersion={
            f"{window_s:g}s": _dispersion(window_counts(trace, window_s))
            for window_s in DISPERSION_WINDOWS_S
        },
        prompt=_tokens(trace.prompt_tokens, seconds),
        output=_tokens(trace.output_tokens, seconds),
        prefix_hit_share=_prefix_hit_share(trace),
        clients=None if trace.client_id is None else _clients(trace.client_id),
        gaps=find_gaps(trace.arrival_s),
        masked=trace.gaps,
    )


def window_counts(trace: Trace, window_s: float) -> NDArray[np.float64]:
    """Requests in each whole window from the first arrival on, `(windows,)`.

    NaN where the window overlaps a masked gap. The last, incomplete window is left out.
    """
    start_s = float(trace.arrival_s[0])
    windows = int((trace.last_arrival_s - start_s) // window_s)
    index = ((trace.arrival_s - start_s) // window_s).astype(np.int64)
    counts = np.bincount(index, minlength=windows)[:windows].astype(np.float64)
    for gap in trace.gaps:
        first, last = (int((edge - start_s) // window_s) for edge in (gap.start_s, gap.end_s))
        counts[max(first, 0) : last + 1] = np.nan
    return counts


def _per_second(amount: float, seconds: float) -> float:
    """0 where there is no time to speak of: a trace of one instant has no rate."""
    return float(amount / seconds) if seconds > 0 else 0.0


def _peak_qps(trace: Trace, window_s: float) -> float | None:
    counts = window_counts(trace, window_s)
    return float(np.nanmax(counts) / window_s) if np.isfinite(counts).any() else None


def _largest_rise(counts: NDArray[np.float64]) -> float | None:
    before, after = counts[:-1], counts[1:]
    known = np.isfinite(before) & np.isfinite(after) & (before > 0)
    return float(np.max(after[known] / before[known])) if known.any() else None


def _gap_cv(trace: Trace) -> float | None:
    known = np.ones(len(trace) - 1, np.bool_)
    for gap in trace.gaps:
        # Every interval that reaches into the gap.
        first = np.searchsorted(trace.arrival_s[1:], gap.start_s, side="right")
        last = np.searchsorted(trace.arrival_s[:-1], gap.end_s, side="left")
        known[first:last] = False
    intervals = np.diff(trace.arrival_s)[known]
    if len(intervals) < 2 or intervals.mean() == 0:
        return None
    return float(intervals.std() / intervals.mean())


def _dispersion(counts: NDArray[np.float64]) -> float | None:
    known = counts[np.isfinite(counts)]
    return float(known.var() / known.mean()) if len(known) > 1 and known.any() else None


def _tokens(tokens: NDArray[np.int32], seconds: float) -> TokenSummary:
    return TokenSummary(
        mean=float(tokens.mean()),
        quantiles={
            name: float(value)
            for name, value in zip(
                QUANTILES, np.quantile(tokens, list(QUANTILES.values())), strict=True
            )
        },
        max=int(tokens.max()),
        tokens_per_s=_per_second(float(tokens.sum(dtype=np.int64)), seconds),
    )


def _prefix_hit_share(trace: Trace) -> float | None:
    if trace.prefix_hit_tokens is None:
        return None
    hits = trace.prefix_hit_tokens.sum(dtype=np.int64)
    return float(hits / trace.prompt_tokens.sum(dtype=np.int64))


def _clients(client_id: NDArray[np.int32]) -> ClientSummary:
    _, requests = np.unique(client_id, return_counts=True)
    return ClientSummary(
        clients=len(requests), largest_share=float(requests.max() / requests.sum())
    )
