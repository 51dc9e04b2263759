"""Observation fields from the scrapes that are kept: the rules of `tuner.live.metrics.fields`.

Counters: their increase over the samples of the window, a value below the one before being a
restart that counts whole, over the time between the first and the last sample. Gauges: the newest
sample of the replicas that are there. A page whose replica came or went within the window is
spread over the time it was away as well. Arrivals and requests in flight are the gateway's; where
it was not heard, they are estimated from the engines.

A vLLM page has all its series from its first sample on, so none is born later than its page.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.simulator.buckets import BOUNDS, BUCKETS, FIRST_BUCKET
from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Env, Memory, Replica, ReplicaState, Scrape
from envs.simulator.places import nth, replica_in
from envs.simulator.quantiles import write_quantiles
from tuner.core.scrapes import QUANTILES

_OFF = int(ReplicaState.OFF)
_STARTING = int(ReplicaState.STARTING)
_WARMING = int(ReplicaState.WARMING)
_READY = int(ReplicaState.READY)
_DRAINING = int(ReplicaState.DRAINING)
_LAST_BUCKET = tuple(
    first + len(bounds) for first, bounds in zip(FIRST_BUCKET, BOUNDS, strict=True)
)


class Seen(NamedTuple):
    """What one look at the scrapes gives, `(n,)` float64 each but as said; NaN: not measured."""

    now_s: NDArray[np.float64]
    age_s: NDArray[np.float64]
    """Age of the engines' newest sample."""
    qps: NDArray[np.float64]
    prompt_tokens_per_s: NDArray[np.float64]
    output_tokens_per_s: NDArray[np.float64]
    preemptions_per_s: NDArray[np.float64]
    finished: NDArray[np.float64]
    """Requests that ended well, by the increases."""
    kv_cache_usage: NDArray[np.float64]
    queue_depth: NDArray[np.float64]
    running: NDArray[np.float64]
    in_flight: NDArray[np.float64]
    gpu_util: NDArray[np.float64]
    ready: NDArray[np.int64]
    starting: NDArray[np.int64]
    draining: NDArray[np.int64]
    counts: NDArray[np.int64]
    """`(n, BUCKETS)` increases of the histograms, summed over the pages."""
    quantiles_s: NDArray[np.float64]
    """`(n, len(QUANTILES))` of those, in the order of `tuner.core.scrapes.QUANTILES`."""
    replica_state: NDArray[np.int64]
    """`(n, slots)` codes of ReplicaState."""
    replica_started_s: NDArray[np.float64]
    """`(n, slots)`, NaN where OFF."""
    replica_running: NDArray[np.float64]
    """`(n, slots)`."""
    replica_queue_depth: NDArray[np.float64]
    """`(n, slots)`."""
    replica_kv_cache_usage: NDArray[np.float64]
    """`(n, slots)`."""
    intervals_s: NDArray[np.float64]
    """`(n, slots x scrapes_kept / 2)` working space."""


def empty_seen(n: int, slots: int, kept: int) -> Seen:
    """For `read_fields` to fill; `kept` 0 where nothing is scraped."""
    real: dict[str, NDArray[np.float64]] = {
        name: np.empty(n)
        for name in (
            *("now_s", "age_s", "qps", "prompt_tokens_per_s", "output_tokens_per_s"),
            *("preemptions_per_s", "finished", "kv_cache_usage", "queue_depth", "running"),
            *("in_flight", "gpu_util"),
        )
    }
    return Seen(
        **real,
        ready=np.empty(n, np.int64),
        starting=np.empty(n, np.int64),
        draining=np.empty(n, np.int64),
        counts=np.empty((n, BUCKETS), np.int64),
        quantiles_s=np.empty((n, len(QUANTILES))),
        replica_state=np.empty((n, slots), np.int64),
        replica_started_s=np.empty((n, slots)),
        replica_running=np.empty((n, slots)),
        replica_queue_depth=np.empty((n, slots)),
        replica_kv_cache_usage=np.empty((n, slots)),
        intervals_s=np.empty((n, slots * (kept // 2))),
    )


@inlined
def read_fields(
    memory: Memory, engine: Engine, env: Env, window_s: float, silent_intervals: float, out: Seen
) -> None:
    """Write the env's fields as they are seen at its time."""
    from_s = env.clock_s - window_s
    to_s = env.clock_s - env.scrape_lag_s
    out.now_s[env.index] = env.clock_s
    _read_states(memory, engine, env, out)
    _read_cards(memory, engine, env, from_s, to_s, silent_intervals, out)
    _read_engines(memory, engine, env, from_s, to_s, silent_intervals, out)
    write_quantiles(out.counts[env.index], out.quantiles_s[env.index])
    _read_gateway(memory, engine, env, from_s, to_s, out)


@inlined
def _read_states(memory: Memory, engine: Engine, env: Env, out: Seen) -> None:
    """What the orchestrator says; it is asked, not scraped."""
    index = env.index
    starting = 0
    draining = 0
    for slot in range(engine.slots):
        replica = replica_in(memory, engine, env, slot)
        starting += replica.state == _STARTING or replica.state == _WARMING
        draining += replica.state == _DRAINING
        out.replica_state[index, slot] = replica.state
        out.replica_started_s[index, slot] = replica.started_s
        out.replica_running[index, slot] = math.nan
        out.replica_queue_depth[index, slot] = math.nan
        out.replica_kv_cache_usage[index, slot] = math.nan
    out.ready[index] = env.ready
    out.starting[index] = starting
    out.draining[index] = draining


@inlined
def _read_cards(
    memory: Memory,
    engine: Engine,
    env: Env,
    from_s: float,
    to_s: float,
    silent_intervals: float,
    out: Seen,
) -> None:
    """Share of the cards that are busy; those of a replica that starts are there and idle."""
    _, newest_s, interval_s = _times(memory, engine, env, from_s, to_s, False, out)
    cards = 0
    busy = 0
    for slot in range(engine.slots):
        replica = replica_in(memory, engine, env, slot)
        at = _next(memory, engine, replica, 0, from_s, to_s, False)
        while at < engine.scrapes_kept:
            scrape = _scrape(memory, engine, replica, at)
            at = _next(memory, engine, replica, at + 1, from_s, to_s, False)
            more = at < engine.scrapes_kept
            if more and _scrape(memory, engine, replica, at).page == scrape.page:
                continue
            if newest_s - scrape.at_s <= silent_intervals * interval_s:
                cards += 1
                busy += scrape.busy
    out.gpu_util[env.index] = busy / cards if cards > 0 else math.nan


@inlined
def _read_engines(
    memory: Memory,
    engine: Engine,
    env: Env,
    from_s: float,
    to_s: float,
    silent_intervals: float,
    out: Seen,
) -> None:
    """Everything that the engines' pages tell, with estimates where the gateway knows better."""
    index = env.index
    oldest_s, newest_s, interval_s = _times(memory, engine, env, from_s, to_s, True, out)
    silent_s = silent_intervals * interval_s
    out.counts[index] = 0
    rising = 0
    prompts_per_s = 0.0
    outputs_per_s = 0.0
    preemptions_per_s = 0.0
    ended_per_s = 0.0
    growth_per_s = 0.0
    finished_in_all = 0
    heard = 0
    running = 0
    waiting = 0
    usage = 0.0
    for slot in range(engine.slots):
        replica = replica_in(memory, engine, env, slot)
        at = _next(memory, engine, replica, 0, from_s, to_s, True)
        while at < engine.scrapes_kept:  # page by page
            first = _scrape(memory, engine, replica, at)
            since = at  # of the process that runs at the sample under way
            before_at = at
            before = first
            samples = 1
            prompts = 0
            outputs = 0
            preemptions = 0
            finished = 0
            growth = 0
            at = _next(memory, engine, replica, at + 1, from_s, to_s, True)
            while at < engine.scrapes_kept:
                scrape = _scrape(memory, engine, replica, at)
                if scrape.page != first.page:
                    break
                prompts += _risen(before.prompt_tokens, scrape.prompt_tokens)
                outputs += _risen(before.output_tokens, scrape.output_tokens)
                preemptions += _risen(before.preemptions, scrape.preemptions)
                finished += _risen(before.finished, scrape.finished)
                growth += scrape.running + scrape.waiting
                if scrape.finished >= before.finished:  # a restart loses what was inside
                    growth -= before.running + before.waiting
                if scrape.process != before.process:
                    _add_rises(memory, engine, replica, since, before_at, index, out)
                    _add_restart(memory, engine, replica, before_at, at, index, out)
                    since = at
                before = scrape
                before_at = at
                samples += 1
                at = _next(memory, engine, replica, at + 1, from_s, to_s, True)
            if samples > 1:
                _add_rises(memory, engine, replica, since, before_at, index, out)
                span_s = before.at_s - first.at_s
                for away_s in (first.at_s - oldest_s, newest_s - before.at_s):
                    if away_s > silent_s:
                        span_s += away_s
                rising += 1
                prompts_per_s += prompts / span_s
                outputs_per_s += outputs / span_s
                preemptions_per_s += preemptions / span_s
                ended_per_s += finished / span_s
                growth_per_s += growth / span_s
                finished_in_all += finished
            fresh = newest_s - before.at_s <= silent_s
            if fresh and replica.state != _OFF and replica.page == before.page:
                heard += 1
                running += before.running
                waiting += before.waiting
                usage += before.kv_cache_usage
                out.replica_running[index, slot] = before.running
                out.replica_queue_depth[index, slot] = before.waiting
                out.replica_kv_cache_usage[index, slot] = before.kv_cache_usage
    for bucket in range(BUCKETS):
        out.counts[index, bucket] = max(out.counts[index, bucket], 0)
    out.age_s[index] = env.clock_s - newest_s if newest_s > -math.inf else math.nan
    out.prompt_tokens_per_s[index] = prompts_per_s if rising > 0 else math.nan
    out.output_tokens_per_s[index] = outputs_per_s if rising > 0 else math.nan
    out.preemptions_per_s[index] = preemptions_per_s if rising > 0 else math.nan
    out.finished[index] = finished_in_all if rising > 0 else math.nan
    out.running[index] = running if heard > 0 else math.nan
    out.queue_depth[index] = waiting if heard > 0 else math.nan
    out.kv_cache_usage[index] = usage / heard if heard > 0 else math.nan
    # What came in = what ended + what is there now and was not before.
    out.qps[index] = max(ended_per_s + growth_per_s, 0.0) if rising > 0 else math.nan
    out.in_flight[index] = running + waiting if heard > 0 else math.nan


@inlined
def _read_gateway(
    memory: Memory, engine: Engine, env: Env, from_s: float, to_s: float, out: Seen
) -> None:
    """Arrivals and requests in flight, in place of the estimates."""
    base = env.index * engine.scrapes_kept
    samples = 0
    first = base
    last = base
    for step in range(engine.scrapes_kept):
        place = base + _turned(engine, env.gateway_oldest + step)
        at_s = memory.gateway_scrapes[nth(place)].at_s
        if from_s < at_s and at_s <= to_s:
            if samples == 0:
                first = place
            last = place
            samples += 1
    if samples == 0:
        return
    newest = memory.gateway_scrapes[nth(last)]
    out.in_flight[env.index] = newest.in_flight
    if samples > 1:
        oldest = memory.gateway_scrapes[nth(first)]
        arrivals = newest.arrivals - oldest.arrivals
        out.qps[env.index] = arrivals / (newest.at_s - oldest.at_s)


@inlined
def _times(
    memory: Memory,
    engine: Engine,
    env: Env,
    from_s: float,
    to_s: float,
    answered: bool,
    out: Seen,
) -> tuple[float, float, float]:
    """Oldest and newest sample, and the median over the pages of the time between two samples."""
    oldest_s = math.inf
    newest_s = -math.inf
    intervals_s = out.intervals_s[env.index]
    pages = 0
    for slot in range(engine.slots):
        replica = replica_in(memory, engine, env, slot)
        at = _next(memory, engine, replica, 0, from_s, to_s, answered)
        while at < engine.scrapes_kept:
            first = _scrape(memory, engine, replica, at)
            last_s = first.at_s
            samples = 1
            at = _next(memory, engine, replica, at + 1, from_s, to_s, answered)
            while at < engine.scrapes_kept:
                scrape = _scrape(memory, engine, replica, at)
                if scrape.page != first.page:
                    break
                last_s = scrape.at_s
                samples += 1
                at = _next(memory, engine, replica, at + 1, from_s, to_s, answered)
            oldest_s = min(oldest_s, first.at_s)
            newest_s = max(newest_s, last_s)
            if samples > 1:
                _insert(intervals_s, pages, (last_s - first.at_s) / (samples - 1))
                pages += 1
    if pages == 0:
        return oldest_s, newest_s, math.inf
    middle = pages // 2
    median_s = intervals_s[middle]
    if pages % 2 == 0:
        median_s = 0.5 * (intervals_s[middle - 1] + median_s)
    return oldest_s, newest_s, median_s


@inlined
def _insert(rising: NDArray[np.float64], count: int, value: float) -> None:
    """Add a value to the first `count`, which are in order."""
    at = count
    while at > 0 and rising[at - 1] > value:
        rising[at] = rising[at - 1]
        at -= 1
    rising[at] = value


@inlined
def _place(engine: Engine, replica: Replica, at: int) -> int:
    """Row of the slot's scrape number `at`, the oldest being 0."""
    return replica.index * engine.scrapes_kept + _turned(engine, replica.oldest_scrape + at)


@inlined
def _turned(engine: Engine, place: int) -> int:
    """A place beyond the ring's end; a division would cost more than the rest of a look."""
    return place if place < engine.scrapes_kept else place - engine.scrapes_kept


@inlined
def _scrape(memory: Memory, engine: Engine, replica: Replica, at: int) -> Scrape:
    scrape: Scrape = memory.scrapes[nth(_place(engine, replica, at))]
    return scrape


@inlined
def _next(
    memory: Memory,
    engine: Engine,
    replica: Replica,
    at: int,
    from_s: float,
    to_s: float,
    answered: bool,
) -> int:
    """First scrape from `at` on that lies in the window and, if so asked, has an engine's page."""
    while at < engine.scrapes_kept:
        scrape = _scrape(memory, engine, replica, at)
        if from_s < scrape.at_s and scrape.at_s <= to_s and (scrape.answered or not answered):
            break
        at += 1
    return at


@inlined
def _risen(before: int, now: int) -> int:
    return now if now < before else now - before


@inlined
def _add_rises(
    memory: Memory, engine: Engine, replica: Replica, since: int, to: int, index: int, out: Seen
) -> None:
    """Count what the histograms rose by between two scrapes of one process."""
    before = _place(engine, replica, since) * BUCKETS
    now = _place(engine, replica, to) * BUCKETS
    for bucket in range(BUCKETS):
        out.counts[index, bucket] += (
            memory.scraped_counts[nth(now + bucket)] - memory.scraped_counts[nth(before + bucket)]
        )


@inlined
def _add_restart(
    memory: Memory, engine: Engine, replica: Replica, since: int, to: int, index: int, out: Seen
) -> None:
    """The same where the engine started anew in between; each series is a sum up to its bound."""
    before = _place(engine, replica, since) * BUCKETS
    now = _place(engine, replica, to) * BUCKETS
    for kind in range(len(FIRST_BUCKET)):
        below_before = 0
        below_now = 0
        risen_below = 0
        for bucket in range(FIRST_BUCKET[kind], _LAST_BUCKET[kind] + 1):
            below_before += memory.scraped_counts[nth(before + bucket)]
            below_now += memory.scraped_counts[nth(now + bucket)]
            risen = _risen(below_before, below_now)
            out.counts[index, bucket] += risen - risen_below
            risen_below = risen
