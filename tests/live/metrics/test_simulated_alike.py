"""One stream of requests, seen by the simulator and by the live side: the same observation.

A fleet that is scaled, restarted and scraped with losses is observed in two ways. The simulator
keeps its own scrapes and makes the fields in compiled code. Beside it a second fleet, equal to the
bit, is stopped at each instant of a scrape, and its true state is written down as samples of vLLM's
pages, of the gateway's and of the GPU exporter's; the live cluster and its collector look at those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from math import floor, inf

import numpy as np
import pytest

from envs.config import ScrapeConfig
from envs.simulator import E2E_BOUNDS_S, TPOT_BOUNDS_S, TTFT_BOUNDS_S, Fleet, FleetSettings
from envs.simulator.layout import ReplicaState as State
from envs.simulator.observe import ObservedFleet
from tests.envs import worlds
from tests.envs.simulator import oracle_draws
from tests.live.fake_engine import FakeEngine
from tests.live.stand_ins import MemoryPool
from tuner.core.clock import VirtualClock
from tuner.core.faults import FaultReason
from tuner.core.observation import FIELD_NAMES, REPLICA_STATES, Observation, ReplicaState
from tuner.core.profile import Frontend, Stage, Stages, Startup
from tuner.engines.engine import Series
from tuner.engines.vllm import METRICS
from tuner.knobs import knob_space
from tuner.live.cluster import LiveCluster
from tuner.live.metrics.collector import Collector
from tuner.live.metrics.extras import DCGM_UTILISATION, Extra, mean_utilisation
from tuner.live.metrics.fields import Samples, Traffic
from tuner.live.metrics.samples import SampleSeries
from tuner.live.pool import Member

TICK_S = 15.0
SLOTS = 6
SEED = 11
SCRAPE_PHASE, SCRAPE_LOSS, GATEWAY = 4, 5, 2**20
KNOBS = knob_space(replicas=(1, SLOTS), batch_size=(1, 32), threads=(1, 8))
PROFILE = replace(
    worlds.PROFILE,
    frontend=Frontend(cores=4, per_request_s=0.001),
    startup=Startup(stages=Stages(weights=Stage(9.0, 0.5)), warmup_request_s=0.2),
)
FATES = {
    4: (4, 2),
    8: (4, 3),
    14: (1, 3),
    17: (5, 3),
    18: (2, 3),
    26: (6, 4),
    33: (3, 4),
    41: (5, 2),
}
"""Tick -> replicas and threads from then on; a change of threads restarts them one by one."""
HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", TTFT_BOUNDS_S),
    ("vllm:request_time_per_output_token_seconds", TPOT_BOUNDS_S),
    ("vllm:e2e_request_latency_seconds", E2E_BOUNDS_S),
)

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Page, name and labels of a series."""


class Kept:
    """Samples as a metrics server keeps them."""

    def __init__(self) -> None:
        self._rows: dict[Key, list[tuple[float, float]]] = defaultdict(list)

    def add(self, page: str, name: str, at_s: float, value: float, **labels: str) -> None:
        self._rows[page, name, tuple(labels.items())].append((at_s, float(value)))

    def between(self, from_s: float, to_s: float) -> list[SampleSeries]:
        found = []
        for (page, name, labels), rows in self._rows.items():
            inside = [row for row in rows if from_s < row[0] <= to_s]
            if inside:
                found.append(SampleSeries(name, dict(labels), page, *np.array(inside).T))
        return found


class Server:
    """The samples of one kind, to the collector's questions."""

    name = "prometheus"
    missed = ()

    def __init__(self, lag_s: float) -> None:
        self.kept = Kept()
        self._lag_s = lag_s

    def seen(self, at_s: float, window_s: float) -> list[SampleSeries]:
        return self.kept.between(at_s - window_s, at_s - self._lag_s)

    def samples(
        self, names: Collection[str], members: Sequence[Member], *, at_s: float, window_s: float
    ) -> list[SampleSeries]:
        return [one for one in self.seen(at_s, window_s) if one.name in names]

    def close(self) -> None:
        pass


class Gateway(Server):
    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> list[SampleSeries]:
        return self.seen(at_s, window_s)


class Cards(Server):
    def read(self, *, at_s: float, window_s: float, timeout_s: float) -> Extra | None:
        found = mean_utilisation(Samples(self.seen(at_s, window_s)))
        return found and Extra("gpu_util", found[0], at_s - found[1])


class Live:
    """The live side of it: the truth, sampled at the scrapes' instants."""

    def __init__(self, scrape: ScrapeConfig, start_s: float) -> None:
        self._scrape = scrape
        self._from_s = start_s
        self._fleet = Fleet(worlds.trace(qps=7.0), PROFILE, slots=SLOTS, seeds=seeds(), jitter=0.1)
        self._fleet.reset(
            slice(None), start_s=start_s, seeds=seeds(), settings=settings(3, 2, warmups=4)
        )
        self._arrivals = 0
        self._engines, self._gateway, self._cards = (
            kind(scrape.lag_s) for kind in (Server, Gateway, Cards)
        )
        self._pool = MemoryPool(warmups=None)
        self._clock = VirtualClock(start_s)
        collector = Collector(
            self._engines,
            METRICS,
            window_s=scrape.window_s,
            timeout_s=inf,
            traffic=(Traffic(Series("sent_total"), Series("open")), self._gateway),
            extras=[self._cards],
        )
        self._cluster = LiveCluster(
            self._pool,
            FakeEngine("none"),
            collector,
            KNOBS,
            self._clock,
            move=(),
            ttl_s=60.0,
            concurrency=1,
            window_s=scrape.window_s,
        )

    def apply(self, wanted: FleetSettings) -> None:
        self._fleet.apply(wanted)

    def observe(self, at_s: float) -> Observation:
        for instant_s, scraped, number in sorted(self._instants(at_s)):
            self._fleet.advance(instant_s)
            self._arrivals += int(self._fleet.window().arrivals[0])
            place = (scraped << 40) + number
            if oracle_draws.uniform(SEED, SCRAPE_LOSS, place) >= self._scrape.loss:
                self._write(instant_s, scraped)
        self._fleet.advance(at_s)
        self._arrivals += int(self._fleet.window().arrivals[0])
        self._from_s = at_s
        self._clock.sleep_until(at_s)
        gauges = self._fleet.gauges()
        self._pool.members = {
            self._page(slot): Member(
                self._page(slot),
                REPLICA_STATES[state],
                at_s - float(gauges.replica_started_s[0, slot]),
                None,
            )
            for slot, state in enumerate(gauges.replica_state[0])
            if state != State.OFF
        }
        return self._cluster.observe()

    def _instants(self, to_s: float) -> Iterator[tuple[float, int, int]]:
        """Time, slot and number of every scrape up to then."""
        every_s = self._scrape.interval_s
        for scraped in (*range(SLOTS), GATEWAY):
            phase = oracle_draws.uniform(SEED, SCRAPE_PHASE, scraped)
            for number in range(floor(self._from_s / every_s) - 1, floor(to_s / every_s) + 1):
                if self._from_s < (number + phase) * every_s <= to_s:
                    yield (number + phase) * every_s, scraped, number

    def _page(self, slot: int) -> str:
        return f"{slot}.{self._fleet._memory.replicas['page'][slot]}"

    def _write(self, at_s: float, scraped: int) -> None:
        gauges = self._fleet.gauges()
        if scraped == GATEWAY:
            self._gateway.kept.add("", "sent_total", at_s, self._arrivals)
            self._gateway.kept.add("", "open", at_s, gauges.in_flight[0])
            return
        state, page = gauges.replica_state[0, scraped], self._page(scraped)
        running = int(gauges.replica_running[0, scraped])
        if state != State.OFF:
            self._cards.kept.add(page, DCGM_UTILISATION.name, at_s, 100.0 * (running > 0))
        if state < State.WARMING:
            return
        counted = self._fleet.counters()
        usage = float(gauges.replica_kv_cache_usage[0, scraped])
        for name, value in {
            "vllm:prompt_tokens_total": counted.prompt_tokens[0, scraped],
            "vllm:generation_tokens_total": counted.output_tokens[0, scraped],
            "vllm:num_preemptions_total": counted.preemptions[0, scraped],
            "vllm:num_requests_running": running,
            "vllm:num_requests_waiting": gauges.replica_queue_depth[0, scraped],
            "vllm:kv_cache_usage_perc": 0.0 if np.isnan(usage) else usage,
        }.items():
            self._engines.kept.add(page, name, at_s, value)
        finished = counted.finished[0, scraped]
        for reason, value in {"stop": 0, "length": finished, "error": 0, "abort": 0}.items():
            self._engines.kept.add(
                page, "vllm:request_success_total", at_s, value, finished_reason=reason
            )
        first = 0
        for name, bounds in HISTOGRAMS:
            below = counted.counts[0, scraped, first : first + len(bounds) + 1].cumsum()
            first += len(bounds) + 1
            for bound, value in zip((*bounds, inf), below, strict=True):
                self._engines.kept.add(page, f"{name}_bucket", at_s, value, le=str(bound))


def seeds() -> np.ndarray:
    return np.array([SEED], dtype=np.uint64)


def settings(replicas: int, threads: int, warmups: int) -> FleetSettings:
    return FleetSettings(*(np.array([value]) for value in (replicas, 32, threads, warmups)))


def simulated(scrape: ScrapeConfig, start_s: float) -> ObservedFleet:
    fleet = Fleet(
        worlds.trace(qps=7.0), PROFILE, slots=SLOTS, seeds=seeds(), jitter=0.1, scrape=scrape
    )
    view = ObservedFleet(fleet, KNOBS, outage=scrape.outage)
    row = KNOBS.row({"replicas": 3, "batch_size": 32, "threads": 2, "warmup_requests": 4})
    view.reset(
        np.array([0]),
        start_s=np.array([start_s]),
        seeds=seeds(),
        settings=row[None, :],
        keep=np.ones(1),
    )
    return view


@pytest.mark.parametrize(
    "scrape",
    [
        ScrapeConfig(),
        ScrapeConfig(loss=0.15),
        ScrapeConfig(loss=0.6),
        ScrapeConfig(lag_s=20.0, loss=0.1),
        ScrapeConfig(interval_s=4.0, window_s=18.0, loss=0.1),
        ScrapeConfig(interval_s=1.0, window_s=60.0, loss=0.3),
    ],
    ids=["regular", "losses", "heavy losses", "late", "short", "dense"],
)
def test_simulator_and_live_collector_see_the_same(scrape):
    start_s = 97.0
    view, live = simulated(scrape, start_s), Live(scrape, start_s)
    seen = defaultdict(int)
    for tick in range(1, 60):
        at_s = start_s + TICK_S * tick
        view.fleet.advance(np.array([at_s]))
        now, _ = view.look()
        expected = live.observe(at_s)
        assert {fault.reason for fault in expected.faults} <= {FaultReason.NO_SERIES}
        age_s = np.nan if expected.age_s is None else expected.age_s
        assert now.age_s[0] == pytest.approx(age_s, nan_ok=True)
        for name, mine, theirs in zip(FIELD_NAMES, now.values[0], expected.row(), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12, nan_ok=True), (tick, name)
            seen[name] += not np.isnan(theirs)
        slots = [int(one.name.partition(".")[0]) for one in expected.replicas]
        assert slots == np.flatnonzero(now.replicas.state[0] >= 0).tolist()
        for slot, one in zip(slots, expected.replicas, strict=True):
            assert REPLICA_STATES[now.replicas.state[0, slot]] is one.state
            assert now.replicas.age_s[0, slot] == pytest.approx(one.age_s)
            for mine, theirs in zip(now.replicas.values[0, slot], values(one), strict=True):
                assert mine == pytest.approx(theirs, nan_ok=True)
            seen[one.state] += 1
        seen["qps estimated"] += "qps" in expected.estimates
        seen["in_flight estimated"] += "in_flight" in expected.estimates
        if tick in FATES:
            replicas, threads = FATES[tick]
            view.apply(
                KNOBS.row(
                    {
                        "replicas": replicas,
                        "batch_size": 32,
                        "threads": threads,
                        "warmup_requests": 4,
                    }
                )[None, :]
            )
            live.apply(settings(replicas, threads, warmups=4))
    # Nothing was compared that was never there.
    assert all(seen[name] > 10 for name in FIELD_NAMES if name != "business"), seen
    assert seen[ReplicaState.STARTING] > 0
    assert seen[ReplicaState.DRAINING] > 0
    if scrape.loss > 0.5:
        assert seen["qps estimated"] > 0
        assert seen["in_flight estimated"] > 0


def values(one) -> list[float]:
    found = [
        one.running,
        one.queue_depth,
        one.queued_prompt_tokens,
        one.kv_cache_usage,
        one.kv_tokens,
    ]
    return [np.nan if value is None else value for value in found]
