"""Scrapes: what a metrics server keeps of each replica's page and of the gateway's.

Every replica and the gateway are read once per interval, each at a phase of its own, as Prometheus
spreads its targets (scrape/target.go, `offset`). A scrape sees all that happens up to and at its
time; it ends no run, since what a run has brought by then follows from its closed form. Only the
newest scrapes are kept, as many as a window can hold.
"""

from __future__ import annotations

import math

from envs.simulator import draws
from envs.simulator.buckets import BUCKETS
from envs.simulator.compiled import inlined
from envs.simulator.layout import (
    Engine,
    Env,
    GatewayScrape,
    Memory,
    Replica,
    ReplicaState,
    Scrape,
)
from envs.simulator.places import nth
from envs.simulator.run import ended_by, new_blocks

_STARTING = int(ReplicaState.STARTING)

GATEWAY = 2**20
"""Number of the gateway among the slots, for its draws; no fleet has so many."""


@inlined
def begin_gateway_scrapes(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    """Forget every scrape of the env and plan the gateway's first one after `at_s`. For resets."""
    env.pages = 0
    env.scrape_s = math.inf
    env.gateway_arrivals = 0
    env.gateway_oldest = 0
    env.gateway_scrape_s = math.inf
    if engine.scrape_interval_s == math.inf:
        return
    for kept in range(engine.scrapes_kept):
        memory.gateway_scrapes[nth(env.index * engine.scrapes_kept + kept)].at_s = -math.inf
    env.gateway_phase = draws.uniform(env.seed, draws.SCRAPE_PHASE, GATEWAY)
    env.gateway_number = _next_number(engine, env.gateway_phase, at_s)
    env.gateway_scrape_s = _time_s(engine, env.gateway_number, env.gateway_phase)
    env.scrape_s = env.gateway_scrape_s


@inlined
def forget_scrapes(memory: Memory, engine: Engine, env: Env, replica: Replica) -> None:
    """As if the slot had never been scraped. For resets."""
    replica.scrape_s = math.inf
    replica.oldest_scrape = 0
    if engine.scrape_interval_s == math.inf:
        return
    replica.phase = draws.uniform(env.seed, draws.SCRAPE_PHASE, replica.slot)
    for kept in range(engine.scrapes_kept):
        memory.scrapes[nth(replica.index * engine.scrapes_kept + kept)].at_s = -math.inf


@inlined
def begin_scrapes(engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    """A replica came into the slot, with a page of its own."""
    env.pages += 1
    replica.page = env.pages
    if engine.scrape_interval_s == math.inf:
        return
    replica.scrape_number = _next_number(engine, replica.phase, at_s)
    replica.scrape_s = _time_s(engine, replica.scrape_number, replica.phase)
    env.scrape_s = min(env.scrape_s, replica.scrape_s)


@inlined
def end_scrapes(replica: Replica) -> None:
    """The replica left."""
    replica.scrape_s = math.inf


@inlined
def scrape_next(memory: Memory, engine: Engine, env: Env) -> None:
    """Take what is due at the env's next scrape, and find the one after it."""
    at_s = env.scrape_s
    if env.gateway_scrape_s == at_s:
        _scrape_gateway(memory, engine, env, at_s)
        env.gateway_number += 1
        env.gateway_scrape_s = _time_s(engine, env.gateway_number, env.gateway_phase)
    next_s = env.gateway_scrape_s
    first = env.index * engine.slots
    for row in range(first, first + env.top):
        replica = memory.replicas[nth(row)]
        if replica.scrape_s == at_s:
            _scrape(memory, engine, env, replica, at_s)
            replica.scrape_number += 1
            replica.scrape_s = _time_s(engine, replica.scrape_number, replica.phase)
        next_s = min(next_s, replica.scrape_s)
    env.scrape_s = next_s


@inlined
def kv_cache_usage(memory: Memory, engine: Engine, replica: Replica, ended: int) -> float:
    """0-1, when so many iterations of the run that goes on have ended."""
    free = replica.free_blocks
    if ended > 0:  # the iteration that runs now has taken its blocks
        free -= new_blocks(memory, engine, replica, replica.steps + 1, ended)
    return 1.0 - free / engine.blocks


@inlined
def _time_s(engine: Engine, number: int, phase: float) -> float:
    return (number + phase) * engine.scrape_interval_s


@inlined
def _next_number(engine: Engine, phase: float, at_s: float) -> int:
    """Number of the first scrape after `at_s`."""
    number = math.floor(at_s / engine.scrape_interval_s - phase)
    while _time_s(engine, number, phase) <= at_s:
        number += 1
    return number


@inlined
def _is_lost(env: Env, slot: int, number: int) -> bool:
    if env.scrape_loss <= 0.0:
        return False
    return draws.uniform(env.seed, draws.SCRAPE_LOSS, (slot << 40) + number) < env.scrape_loss


@inlined
def _scrape_gateway(memory: Memory, engine: Engine, env: Env, at_s: float) -> None:
    place = env.index * engine.scrapes_kept + env.gateway_oldest
    scrape: GatewayScrape = memory.gateway_scrapes[nth(place)]
    env.gateway_oldest = (env.gateway_oldest + 1) % engine.scrapes_kept
    scrape.at_s = -math.inf
    if _is_lost(env, GATEWAY, env.gateway_number):
        return
    scrape.at_s = at_s
    scrape.arrivals = env.gateway_arrivals
    scrape.in_flight = env.in_flight + env.router_waiting


@inlined
def _scrape(memory: Memory, engine: Engine, env: Env, replica: Replica, at_s: float) -> None:
    place = replica.index * engine.scrapes_kept + replica.oldest_scrape
    scrape: Scrape = memory.scrapes[nth(place)]
    replica.oldest_scrape = (replica.oldest_scrape + 1) % engine.scrapes_kept
    scrape.at_s = -math.inf
    if _is_lost(env, replica.slot, replica.scrape_number):
        return
    scrape.at_s = at_s
    scrape.page = replica.page
    scrape.process = replica.process
    scrape.busy = replica.running > 0
    scrape.answered = replica.state > _STARTING
    if not scrape.answered:
        return
    ended = ended_by(replica, at_s) if replica.running > 0 else 0
    scrape.prompt_tokens = replica.prompt_tokens
    scrape.output_tokens = replica.output_tokens + ended * (replica.decoding - replica.repeating)
    scrape.finished = replica.finished
    scrape.preemptions = replica.preemptions
    scrape.running = replica.running
    scrape.waiting = replica.queue_depth
    scrape.kv_cache_usage = kv_cache_usage(memory, engine, replica, ended)
    counts = replica.index * BUCKETS
    scraped = place * BUCKETS
    for bucket in range(BUCKETS):
        memory.scraped_counts[nth(scraped + bucket)] = memory.counts[nth(counts + bucket)]
