"""Load from counts: exactly as many requests of each client in each 10 minutes as were counted.

Where in its window a request comes is drawn from the Gamma or Weibull distribution that was fitted
to the gaps of that client there, as ServeGen does (alibaba/ServeGen, Apache-2.0; Xiang et al.,
arXiv 2505.09999, section 5), and so are prompt and output lengths. Each window's draws depend on
the seed and the window alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from envs.workloads.deepseek_r1_day import MOST_REQUESTS
from envs.workloads.lengths import Lengths, TrafficLengths
from tuner.core.errors import ConfigError
from tuner.core.trace import Gap, Trace
from tuner.data.counts import WINDOW_S, ClientCounts

NAME = "windows"

NEARLY_NOTHING = 0.05
"""A window with less than this share of the median window was not recorded, or only in part. The
quietest windows of ServeGen's pools have a third of their median, broken ones below 2 %."""

_ROUNDING, _WINDOW = range(2)
"""Streams under the seed."""


def generate(
    counts: ClientCounts,
    seed: int,
    *,
    lengths: Lengths | None = None,
    mean_qps: float | None = None,
    hours: float | None = None,
) -> Trace:
    """A trace with the counts of every client in every window.

    Windows in which nothing, or nearly nothing, was counted are gaps of the trace and hold no
    request. The same seed gives the same trace, and as counted a shorter one is the beginning of a
    longer one.

    Args:
        counts: what was counted.
        seed: of instants, lengths, and the rounding of scaled counts.
        lengths: of prompts and outputs; None: the kinds of traffic of `deepseek-r1-day`.
        mean_qps: scales the counts so that what is asked for of the recording has this rate outside
            gaps; the running total of a client is rounded, so none is lost, and its gaps keep their
            shape. None: as counted.
        hours: how much of the recording; None: all.

    Raises:
        ConfigError: an argument is out of its range, or nothing is left.
    """
    for name, value in (("hours", hours), ("mean_qps", mean_qps)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{NAME}: {name} is {value}; expected a number above 0")
    if seed < 0:
        raise ConfigError(f"{NAME}: seed is {seed}; expected a whole number from 0 on")
    lengths = lengths or TrafficLengths()
    end_s = WINDOW_S * counts.windows if hours is None else hours * 3600.0
    missed = missed_windows(counts)
    requests = _scaled(counts, missed, mean_qps, seed, end_s)
    inside = counts.window * WINDOW_S < end_s
    if requests[inside].sum() > MOST_REQUESTS:
        raise ConfigError(
            f"{counts.name}: {requests[inside].sum():,} requests; expected at most "
            f"{MOST_REQUESTS:,}, so ask for a lower rate or fewer hours"
        )
    parts = list(_windows(counts, requests, lengths, seed, end_s))
    if not parts:
        raise ConfigError(
            f"{counts.name} holds no request in the first {end_s / 3600:g} hours at this rate; "
            "ask for more of either"
        )
    arrival_s, prompts, outputs, clients = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    masked = np.flatnonzero(missed)
    masked = masked[masked * WINDOW_S < end_s]
    unused = counts.totals()[masked].sum()
    return Trace(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        client_id=clients,
        name=NAME,
        header={
            "workload": NAME,
            "counts": counts.name,
            "lengths": lengths.name,
            "seed": str(seed),
            "mean_qps": "as counted" if mean_qps is None else f"{mean_qps:g}",
            "gaps": f"{len(masked)} windows with {unused:,} counted requests",
        },
        gaps=_gaps(missed, end_s),
    )


def missed_windows(counts: ClientCounts) -> NDArray[np.bool_]:
    """`(windows,)` where the recording was down: no row, or nearly none of the usual load."""
    totals = counts.totals()
    usual = float(np.median(totals[totals > 0]))
    return totals < NEARLY_NOTHING * usual


def _gaps(missed: NDArray[np.bool_], end_s: float) -> tuple[Gap, ...]:
    """Missed windows that touch as one gap each, as far as the trace goes."""
    borders = np.flatnonzero(np.diff(np.concatenate(([False], missed, [False]))))
    spans = borders.reshape(-1, 2) * WINDOW_S
    return tuple(
        Gap(float(start), float(min(stop, end_s))) for start, stop in spans if start < end_s
    )


def _scaled(
    counts: ClientCounts,
    missed: NDArray[np.bool_],
    mean_qps: float | None,
    seed: int,
    end_s: float,
) -> NDArray[np.int64]:
    """`(rows,)` requests to draw: none in missed windows, the others scaled."""
    requests = np.where(missed[counts.window], 0, counts.requests)
    if mean_qps is None:
        return requests
    # The last window may be asked for in part.
    inside = np.clip(end_s / WINDOW_S - np.arange(counts.windows), 0.0, 1.0)
    counted = float(requests @ inside[counts.window])
    if counted == 0:
        return np.zeros(len(requests), np.int64)
    factor = mean_qps * WINDOW_S * float(inside[~missed].sum()) / counted
    clients, place = np.unique(counts.client_id, return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ROUNDING,)))
    # Each client's running total begins at a fraction of its own: otherwise the small ones would
    # all reach their first request late, and together.
    fractions = rng.random(len(clients))
    scaled = np.zeros(len(requests), np.int64)
    for client in range(len(clients)):
        rows = np.flatnonzero(place == client)
        total = np.floor(np.cumsum(requests[rows]) * factor + fractions[client])
        scaled[rows] = np.diff(total, prepend=0.0)
    return scaled


def _windows(
    counts: ClientCounts,
    requests: NDArray[np.int64],
    lengths: Lengths,
    seed: int,
    end_s: float,
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Arrivals, prompt and output tokens and clients of each window that has any, sorted."""
    kinds = lengths.kinds(counts)
    rows = np.flatnonzero(requests)
    for part in np.split(rows, np.flatnonzero(np.diff(counts.window[rows])) + 1):
        if not len(part) or counts.window[part[0]] * WINDOW_S >= end_s:
            return
        window = int(counts.window[part[0]])
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_WINDOW, window)))
        arrival_s = _instants(requests[part], counts.weibull[part], counts.shape[part], rng)
        arrival_s += window * WINDOW_S
        np.minimum(arrival_s, np.nextafter((window + 1) * WINDOW_S, 0.0), out=arrival_s)
        kind = np.repeat(kinds[part], requests[part])
        prompts, outputs = lengths.draw(kind, rng.random((len(kind), 2)))
        client_id = np.repeat(counts.client_id[part], requests[part]).astype(np.int32)
        order = np.argsort(arrival_s, kind="stable")
        order = order[: np.searchsorted(arrival_s[order], end_s)]
        if len(order):
            yield arrival_s[order], prompts[order], outputs[order], client_id[order]


def _instants(
    requests: NDArray[np.int64],
    weibull: NDArray[np.bool_],
    shape: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Seconds into the window of each request, client by client, `(sum of requests,)`.

    n requests are the borders between n + 1 gaps that fill the window.
    """
    gaps_each = requests + 1
    shapes = np.repeat(shape, gaps_each)
    is_weibull = np.repeat(weibull, gaps_each)
    gaps = np.empty(len(shapes))
    gaps[~is_weibull] = rng.standard_gamma(shapes[~is_weibull])
    gaps[is_weibull] = rng.standard_exponential(int(is_weibull.sum())) ** (1 / shapes[is_weibull])
    ends = np.cumsum(gaps_each)
    starts = ends - gaps_each
    totals = np.add.reduceat(gaps, starts)
    # A shape near 0 can underflow to gaps of nothing at all: they are spread evenly then.
    empty = np.repeat(~((totals > 0) & np.isfinite(totals)), gaps_each)
    gaps[empty] = 1.0
    gaps /= np.repeat(np.add.reduceat(gaps, starts), gaps_each)
    passed = np.cumsum(gaps)
    passed -= np.repeat(passed[starts] - gaps[starts], gaps_each)
    inner = np.ones(len(gaps), np.bool_)
    inner[ends - 1] = False
    return np.asarray(WINDOW_S * passed[inner])
