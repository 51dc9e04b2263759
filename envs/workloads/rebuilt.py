"""Requests out of counts over spans of time: how many came, and what is known of their lengths.

A rebuilt trace has the counts of the load that was watched; its single requests are drawn. Where a
request comes in its span is even, which is a Poisson process given its count. Lengths are drawn
from histograms where there are some, else from the geometric distribution, the one that says
nothing but its mean; where token counts are exact, lengths are then scaled to add up to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.core.trace import MAX_TOKENS, Gap, Trace

LENGTH_WINDOW_S = 300.0
"""Lengths are taken over so long: tokens are counted later than the arrivals they belong to, by as
long as a request lasts."""

BEYOND = 2.0
"""Lengths above the last bound of a histogram lie between it and so many times it."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histograms:
    """Lengths that were observed, by block."""

    bounds: Floats
    """`(buckets,)` tokens, rising; a bucket holds its upper bound and not its lower one."""
    counts: Ints
    """`(blocks, buckets + 1)`, the last one above every bound. A block without any is like all."""


@dataclass(frozen=True, eq=False)
class Lengths:
    """What is known of prompts, or of outputs, block by block."""

    mean: Floats
    """`(blocks,)` tokens of a request, >= 1."""
    total: Ints | None = None
    """`(blocks,)` exact sums; None: only the mean is known."""
    histograms: Histograms | None = None


@dataclass(frozen=True, eq=False)
class CountedLoad:
    """Arrivals by span and lengths by block of spans."""

    start_s: Floats
    """`(spans,)` rising; spans do not overlap."""
    length_s: Floats
    """`(spans,)`."""
    requests: Ints
    """`(spans,)`."""
    block: Ints
    """`(spans,)` rising from 0; where `total` is given, each block has a request."""
    prompt: Lengths
    output: Lengths
    gaps: tuple[Gap, ...] = ()


def rebuilt(load: CountedLoad, seed: int, *, name: str, header: Mapping[str, str]) -> Trace:
    """One reconstruction of the load: same counts, other draws per seed.

    Raises:
        TraceError: the load holds no request.
    """
    rng = np.random.default_rng(seed)
    place = np.repeat(np.arange(len(load.requests)), load.requests)
    arrival_s = load.start_s[place] + rng.random(len(place)) * load.length_s[place]
    block = load.block[place]
    prompt, output = (_drawn(one, block, rng) for one in (load.prompt, load.output))
    order = np.argsort(arrival_s, kind="stable")
    return Trace(
        arrival_s[order],
        prompt[order],
        output[order],
        name=name,
        header={**header, "seed": str(seed)},
        gaps=load.gaps,
    )


def blocks_of(length_s: Floats, over_s: float) -> Ints:
    """`(spans,)` runs of spans that last `over_s` together, numbered from 0; 0 s: each its own."""
    if over_s == 0:
        return np.arange(len(length_s))
    number = (np.cumsum(length_s) / over_s).astype(np.int64)
    return np.unique(number, return_inverse=True)[1].astype(np.int64)


def means_of(requests: Floats, tokens: Floats, block: Ints) -> Floats | None:
    """`(blocks,)` tokens per request; None where nothing is known.

    Args:
        requests: `(spans,)`.
        tokens: `(spans,)`; NaN where they were not measured.
        block: `(spans,)`.
    """
    known = np.isfinite(tokens) & (tokens >= 0)
    if not requests[known].sum() or not tokens[known].sum():
        return None
    overall = tokens[known].sum() / requests[known].sum()
    blocks = int(block[-1]) + 1
    asked = np.bincount(block[known], weights=requests[known], minlength=blocks)
    given = np.bincount(block[known], weights=tokens[known], minlength=blocks)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where((asked >= 1) & (given > 0), given / asked, overall)
    return np.clip(means, 1.0, MAX_TOKENS)


def _drawn(lengths: Lengths, block: Ints, rng: np.random.Generator) -> NDArray[np.int32]:
    """`(requests,)` tokens; block is each request's, never falling."""
    if lengths.histograms is None:
        tokens = rng.geometric(1 / lengths.mean[block]).astype(np.int64)
    else:
        mean = float(lengths.mean[block].mean())
        tokens = _from_histograms(lengths.histograms, mean, block, rng.random(len(block)))
    if lengths.total is not None:
        tokens = _adding_up(tokens, block, lengths.total)
    return np.minimum(tokens, MAX_TOKENS).astype(np.int32)


def _from_histograms(histograms: Histograms, mean: float, block: Ints, shares: Floats) -> Ints:
    """Lengths at these shares of their block's histogram.

    Inside a bucket they crowd towards one end, in all buckets alike, so that all observed lengths
    have about the known mean; spread evenly they would be too long, and scaling them down would
    move them over the borders of their buckets.
    """
    counts = histograms.counts.astype(np.float64)
    edges = np.concatenate(([0.0], histograms.bounds, [BEYOND * histograms.bounds[-1]]))
    observed = counts.sum(axis=0) / counts.sum()
    place = (mean - observed @ edges[:-1]) / (observed @ np.diff(edges))
    crowding = 1 / np.clip(place, 0.1, 0.9) - 1  # the mean of share^c is 1 / (1 + c)
    counts[counts.sum(axis=1) == 0] = counts.sum(axis=0)
    reached = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    last = reached.shape[1] - 1
    # Block b takes the numbers from b to b + 1, so that one search finds all buckets.
    flat = (reached + np.arange(len(reached))[:, None]).ravel()
    found = np.searchsorted(flat, block + shares, side="right") - block * (last + 1)
    bucket = np.clip(found, 0, last)
    before = np.where(bucket > 0, reached[block, np.maximum(bucket - 1, 0)], 0.0)
    inside = (shares - before) / np.maximum(reached[block, bucket] - before, 1e-12)
    low, high = np.floor(edges[bucket]), np.floor(edges[bucket + 1])
    # A length is above the lower bound and at most the upper one.
    tokens = low + np.ceil(np.clip(inside, 1e-9, 1.0) ** crowding * (high - low))
    return np.asarray(np.maximum(tokens, 1.0).astype(np.int64))


def _adding_up(tokens: Ints, block: Ints, total: Ints) -> Ints:
    """Lengths scaled so that each block's add up to its total, or to a token each where that is
    more. What exceeds one token is scaled; every block has a request."""
    blocks = len(total)
    requests = np.bincount(block, minlength=blocks)
    room = np.maximum(total - requests, 0)
    excess = (tokens - 1).astype(np.float64)
    sums = np.bincount(block, weights=excess, minlength=blocks)
    # Where all drawn lengths are one token, all get an equal share.
    excess = np.where(sums[block] > 0, excess, 1.0)
    sums = np.where(sums > 0, sums, requests)
    reached = np.cumsum(excess * (room / np.maximum(sums, 1.0))[block])
    last = np.cumsum(requests) - 1
    reached -= np.concatenate(([0.0], reached[last[:-1]]))[block]
    # Rounded as a running total, which ends on the block's own: no token is lost.
    whole = np.minimum(np.floor(reached + 1e-6).astype(np.int64), room[block])
    whole[last] = room
    before = np.concatenate(([0], whole[:-1]))
    before[last[:-1] + 1] = 0
    return np.asarray(1 + whole - before)
