"""The oracles of a load: plans for many prices of a missed request, each run in the simulator.

A plan is made from a table (`misses`) that knows nothing of what a queue leaves to the next tick,
so its own count of misses is a guess; what it is judged by is its run, with the seeds that the
policies run. The price is the dial: it is turned until the runs hold the goals, and every plan on
the way is a point of the oracle's frontier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.cells import Cells
from experiments.config import CompareConfig, RunConfig
from experiments.digest import RunDigest
from experiments.fanout import Watch, silent
from experiments.job import Job, RunTask
from experiments.oracles.misses import MissTable, measure_misses
from experiments.oracles.result import CLAIRVOYANT, INSTANT, Frontier, OraclePoint, Oracles
from experiments.oracles.runner import PlannedFleet, PlanRunner
from experiments.oracles.start import start_of
from experiments.result import Floats
from experiments.sweep import SEED
from policies.oracle import Plan, Start, cheapest_plan
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

GOALS = (0.99, 0.995)
"""Attainments that reports compare costs at, beside the comparison's own goal."""
PRICES = (1.25, 2.0, 4.0, 8.0, 24.0)
"""Of a missed request, in the cost of one that is served: below 1 a plan serves nobody; from about
2 on it gives up what is dearest only."""
INSTANT_PRICES = (4.0, 16.0, 64.0)
"""The same for oracle A, of which nothing but the goals is asked."""
AHEAD_S = 120.0
"""Replicas are there so long before the first requests that would miss an objective without them:
an answer is late by what the fleet was like all the time since it was asked for. On 16 hours of
DeepSeek-R1, oracle A reached 98.4 % for 1,510 GPU hours without it and 99.4 % for 1,485 with it;
oracle B costs the same with and without, and twice as much costs oracle A 1 % more."""
PILOT = 8.0
"""The price of the plan that shows how long drains take."""
ROUNDS = 2
"""Times that the price is narrowed down around each goal; each halves the gap, in logarithms."""
HELD = 0.0
"""Stands for the price of the plan that was not made by one: nothing moves."""
BEYOND = 4.0
"""Factor on the last price where no price or every price reaches a goal."""


def find_oracles(
    trace: Trace,
    profile: ServingProfile,
    config: CompareConfig,
    *,
    seeds: Sequence[int],
    initial_replicas: int,
    cells: Cells,
    jobs: int = 1,
    watch: Watch = silent,
) -> Oracles:
    """Oracles A and B of a load, for the goals of a comparison.

    Args:
        trace: the load, all of which they know.
        profile: how fast a replica serves and starts.
        config: objectives, router, tick, guardrails, failures, and the goal.
        seeds: of the runs that plans are judged by: those of the policies.
        initial_replicas: ready at the first arrival, as for the policies.
        cells: where finished runs are kept and found again.
        jobs: processes at once.
        watch: told how far each run is.
    """
    run = replace(config.run, initial_replicas=initial_replicas, fallback_target=None)
    goals = tuple(sorted({config.sweep.goal, *GOALS}))
    table = measure_misses(
        trace,
        profile,
        run,
        around=initial_replicas,
        goal=max(goals),
        seed=SEED,
        cells=cells,
        jobs=jobs,
        watch=watch,
    )
    planners = {
        name: _Planner(name, trace, profile, run, table, cells, jobs, watch)
        for name in (INSTANT, CLAIRVOYANT)
    }
    return Oracles(
        goals=goals,
        goal=config.sweep.goal,
        seeds=tuple(seeds),
        tick_s=run.tick_s,
        frontiers={
            # Without a cold start to draw, one seed shows what the others would.
            INSTANT: planners[INSTANT].frontier(INSTANT_PRICES, goals, seeds[:1]),
            CLAIRVOYANT: planners[CLAIRVOYANT].frontier(PRICES, goals, seeds),
        },
    )


@dataclass(frozen=True)
class _Planner:
    """Plans and runs one kind of oracle."""

    name: str
    trace: Trace
    profile: ServingProfile
    config: RunConfig
    table: MissTable
    cells: Cells
    jobs: int
    watch: Watch

    def frontier(
        self, prices: Sequence[float], goals: Sequence[float], seeds: Sequence[int]
    ) -> Frontier:
        """Points at these prices (in the cost of a served request), and around the goals."""
        need, tick_s = float(self.table.need.sum()), self.config.tick_s
        unit = need / len(self.trace)
        start = Start.after(0)
        if self.name != INSTANT:
            start = start_of(self.profile, tick_s, len(self.trace) / (need * tick_s))
        pilot = self._plan(start, PILOT * unit, float(start.ticks))
        ((piloted,),) = self._runs({PILOT * unit: pilot}, [SEED], block_s=tick_s)
        drain = _drain_ticks(piloted)
        found: dict[float, OraclePoint] = {}
        known: dict[bytes, tuple[RunDigest, ...]] = {}

        def add(plans: dict[float, Plan]) -> None:
            # Neighbouring prices often give the same plan.
            first = {plan.wanted.tobytes(): price for price, plan in reversed(plans.items())}
            new = {price: plans[price] for key, price in first.items() if key not in known}
            for price, runs in zip(new, self._runs(new, seeds), strict=True):
                known[plans[price].wanted.tobytes()] = runs
            for price, plan in plans.items():
                runs = known[plan.wanted.tobytes()]
                found[price] = OraclePoint(self._gpu_s(price), plan, runs)

        def planned(prices: Iterable[float]) -> dict[float, Plan]:
            return {price: self._plan(start, price, drain) for price in prices}

        add(planned(price * unit for price in prices))
        for _ in range(ROUNDS):
            add(planned(_next_prices(found, goals)))
        # The table is a guess, so a fleet that never moves may do better than any plan made of it.
        add({HELD: self._held()})
        return Frontier(tuple(found[price] for price in sorted(found)))

    def _plan(self, start: Start, price: float, drain: float) -> Plan:
        assert self.config.initial_replicas is not None
        first = self.config.initial_replicas
        missed = missed_within(self.table.missed, round(AHEAD_S / self.config.tick_s))
        return cheapest_plan(missed, start, price=price, first=first, drain=drain)

    def _held(self) -> Plan:
        """The fleet that everybody begins with, kept."""
        assert self.config.initial_replicas is not None
        counts = np.full(len(self.table.missed), self.config.initial_replicas, dtype=np.int64)
        return Plan(serving=counts, wanted=counts)

    def _runs(
        self, plans: Mapping[float, Plan], seeds: Sequence[int], block_s: float | None = None
    ) -> list[tuple[RunDigest, ...]]:
        """The runs of each plan, one per seed; plans by their price."""
        tasks = []
        for price, planned in plans.items():
            fleet = PlannedFleet(planned.wanted, self.name == INSTANT, self._gpu_s(price))
            runner = PlanRunner({self.name: fleet})
            for seed in seeds:
                job = Job(self.name, self.name, fleet.options, self.config, seed)
                plan = f"plan at {fleet.price_gpu_s:.3g} GPU-s per request in time"
                if price == HELD:
                    plan = "the first fleet, kept"
                label = f"bound {self.name}: seed {seed}, {plan}"
                tasks.append(RunTask(runner, self.trace, self.profile, job, label, block_s=block_s))
        runs = self.cells.run(tasks, self.jobs, self.watch)
        n = len(seeds)
        return [tuple(runs[place : place + n]) for place in range(0, len(runs), n)]

    def _gpu_s(self, price: float) -> float:
        return price * self.config.tick_s * self.profile.gpus_per_replica


def missed_within(missed: Floats, ahead: int) -> Floats:
    """`(ticks, most)` the most that is missed in a tick or one of the next `ahead` ones."""
    worst = missed.copy()
    for later in range(1, min(ahead, len(missed) - 1) + 1):
        worst[:-later] = np.maximum(worst[:-later], missed[later:])
    return worst


def _drain_ticks(run: RunDigest) -> float:
    """Mean ticks that a dropped replica was still held; 0 where none was dropped."""
    assert run.ticks is not None
    dropped = float(np.maximum(-np.diff(run.ticks.wanted_replicas), 0).sum())
    return float(run.ticks.draining_replicas.sum()) / dropped if dropped else 0.0


def _next_prices(found: dict[float, OraclePoint], goals: Sequence[float]) -> Iterator[float]:
    """A price closer to each goal than the prices tried."""
    for goal in goals:
        good = [price for price, point in found.items() if point.attainment >= goal]
        if not good:
            yield max(found) * BEYOND
            continue
        enough = min(good, key=lambda price: found[price].gpu_hours)
        short = [price for price in found if price < enough and price not in good]
        yield math.sqrt(enough * max(short)) if short else enough / BEYOND
