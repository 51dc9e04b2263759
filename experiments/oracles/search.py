"""The oracles of a load: plans for many prices of a missed request, each run in the simulator.

A plan is made from a table (`misses`) that knows nothing of what a queue leaves to the next tick,
so its own count of misses is a guess; what it is judged by is its run, with the seeds that the
policies run. The price is the dial: it is turned until the runs hold the goals, and every plan on
the way is a point of the oracle's frontier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.config import CompareConfig, RunConfig
from experiments.fanout import Watch, fan_out, silent
from experiments.oracles.fleet import FleetRun, FleetTask
from experiments.oracles.misses import MissTable, measure_misses
from experiments.oracles.result import Frontier, OraclePoint, Oracles
from experiments.oracles.start import start_of
from experiments.sweep import SEED
from policies.oracle import Plan, Start, cheapest_plan
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

GOALS = (0.99, 0.995)
"""Attainments that reports compare costs at, beside the comparison's own goal."""
PRICES = (1.25, 1.5, 2.0, 4.0, 8.0, 20.0, 60.0)
"""Of a missed request, in the cost of one that is served: below 1 a plan serves nobody; from about
2 on it gives up what is dearest only."""
GENEROUS = (4.0, 20.0, 60.0)
"""The same for oracle A, of which the goals are asked only."""
PILOT = 8.0
"""The price of the plan that shows how long drains take."""
ROUNDS = 2
"""Times that the price is narrowed down around each goal; each halves the gap, in logarithms."""
BEYOND = 4.0
"""Factor on the last price where no price or every price reaches a goal."""


def find_oracles(
    trace: Trace,
    profile: ServingProfile,
    config: CompareConfig,
    *,
    seeds: Sequence[int],
    initial_replicas: int,
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
        jobs=jobs,
        watch=watch,
    )
    instant = replace(profile, startup=None)
    bound = _Planner("oracle B", trace, profile, run, table, jobs, watch)
    free = _Planner("oracle A", trace, instant, run, table, jobs, watch)
    return Oracles(
        goals=goals,
        seeds=tuple(seeds),
        tick_s=run.tick_s,
        initial_replicas=initial_replicas,
        clairvoyant=bound.frontier(PRICES, goals, seeds),
        instant=free.frontier(GENEROUS, goals, seeds[:1]),
    )


@dataclass(frozen=True)
class _Planner:
    """Plans and runs one kind of oracle."""

    name: str
    trace: Trace
    profile: ServingProfile
    config: RunConfig
    table: MissTable
    jobs: int
    watch: Watch

    def frontier(
        self, prices: Sequence[float], goals: Sequence[float], seeds: Sequence[int]
    ) -> Frontier:
        """Points at these prices (in the cost of a served request), and around the goals."""
        need = float(self.table.need.sum())
        unit = need / len(self.trace)
        start = start_of(
            self.profile, self.config.tick_s, len(self.trace) / (need * self.config.tick_s)
        )
        pilot = self._plan(start, PILOT * unit, float(start.ticks))
        (drained,) = self._runs([pilot], [f"{self.name}: how long drains take"], [SEED])
        drain = drained[0].drain_s / self.config.tick_s
        found: dict[float, OraclePoint] = {}
        known: dict[bytes, tuple[FleetRun, ...]] = {}

        def add(new: Sequence[float]) -> None:
            plans = {price: self._plan(start, price, drain) for price in new}
            # Neighbouring prices often give the same plan.
            fresh = {plan.wanted.tobytes(): (price, plan) for price, plan in plans.items()}
            unknown = [fresh[key] for key in fresh if key not in known]
            labels = [f"{self.name}: price {price:.3g}" for price, _ in unknown]
            runs = self._runs([plan for _, plan in unknown], labels, seeds)
            for (_, plan), own in zip(unknown, runs, strict=True):
                known[plan.wanted.tobytes()] = own
            for price, plan in plans.items():
                runs_of = known[plan.wanted.tobytes()]
                found[price] = OraclePoint(self._gpu_s(price), plan, runs_of)

        add([price * unit for price in prices])
        for _ in range(ROUNDS):
            add(list(dict.fromkeys(_next_prices(found, goals))))
        return Frontier(tuple(found[price] for price in sorted(found)))

    def _plan(self, start: Start, price: float, drain: float) -> Plan:
        assert self.config.initial_replicas is not None
        first = self.config.initial_replicas
        return cheapest_plan(self.table.missed, start, price=price, first=first, drain=drain)

    def _runs(
        self, plans: Sequence[Plan], labels: Sequence[str], seeds: Sequence[int]
    ) -> list[tuple[FleetRun, ...]]:
        """The runs of each plan, one per seed."""
        tasks = [
            FleetTask(
                self.trace, self.profile, plan.wanted, self.config, seed, f"{label}, seed {seed}"
            )
            for plan, label in zip(plans, labels, strict=True)
            for seed in seeds
        ]
        runs = fan_out(tasks, self.jobs, self.watch)
        n = len(seeds)
        return [tuple(runs[place : place + n]) for place in range(0, len(runs), n)]

    def _gpu_s(self, price: float) -> float:
        return price * self.config.tick_s * self.profile.gpus_per_replica


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
