"""`Fleet`: n independent simulated clusters over one trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from envs.config import ScrapeConfig
from envs.simulator import events, telemetry
from envs.simulator.allocation import (
    allocate,
    arrivals_of,
    bytes_of_envs,
    with_larger_pools,
    with_workers,
)
from envs.simulator.fields import Seen, empty_seen
from envs.simulator.layout import Memory
from envs.simulator.routing import ROUTERS
from envs.simulator.schedulers import check_scheduler
from envs.simulator.telemetry import Counters, Gauges, RequestColumns, Window
from tuner.core.profile import ServingProfile
from tuner.core.scrapes import SILENT_INTERVALS
from tuner.core.slo import Slo
from tuner.core.trace import Trace

DEFAULT_SLO = Slo()
_LEAST_FACTOR = {"kv": 0, "prefix_hits": 0, "slow": 1, "slow_slot": -1}
"""Least value of a factor; the others must be above 0."""


@dataclass(frozen=True, eq=False)
class FleetSettings:
    """Knobs in force, one entry per env, int64."""

    replicas: NDArray[np.int64]
    """Replicas wanted, 0 to the fleet's slots; draining ones do not count."""
    batch_size: NDArray[np.int64]
    """Most sequences a replica runs at once, >= 1; above the profile's batch_size_max: that. Where
    the engine takes it at its start only, a change is a rolling restart."""
    threads: NDArray[np.int64]
    """Frontend workers per replica, >= 1; a change is a rolling restart. Without effect if the
    profile has no frontend."""
    warmup_requests: NDArray[np.int64]
    """Warm-up requests of a replica that starts from now on, >= 0."""

    def __len__(self) -> int:
        return len(self.replicas)

    @classmethod
    def usual(cls, profile: ServingProfile, replicas: int, envs: int = 1) -> FleetSettings:
        """So many replicas as the profile describes one: its batch size, a worker per core, and
        no warm-up request."""
        ones = np.ones(envs, np.int64)
        return cls(
            replicas=replicas * ones,
            batch_size=profile.limits.batch_size_max * ones,
            threads=(profile.frontend.cores if profile.frontend else 1) * ones,
            warmup_requests=0 * ones,
        )


@dataclass(frozen=True, eq=False)
class EnvFactors:
    """What sets one simulated world apart from its profile and trace; `(n,)` each, 1 changes
    nothing.

    Raises:
        ValueError: a factor is out of its range.
    """

    step_time: NDArray[np.float64]
    """Times the seconds of every iteration, > 0."""
    prefill: NDArray[np.float64]
    """Times the terms of prompt tokens, > 0."""
    kv: NDArray[np.float64]
    """Times the term of KV tokens, >= 0."""
    cold_start: NDArray[np.float64]
    """Times the seconds of every cold start, > 0."""
    output_tokens: NDArray[np.float64]
    """Times every request's output tokens, rounded, at least 1; > 0."""
    prefix_hits: NDArray[np.float64]
    """Times every request's prefix hits, rounded down, at most its prompt; >= 0."""
    slow_slot: NDArray[np.int64]
    """The one slot whose replicas are slow; -1: none."""
    slow: NDArray[np.float64]
    """Times the seconds of every iteration there, >= 1."""

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            least = _LEAST_FACTOR.get(name)
            good = column > 0 if least is None else column >= least
            if not np.all(good):
                wanted = "above 0" if least is None else f"at least {least}"
                raise ValueError(f"factor {name} is {column[~good][0]}; expected {wanted}")

    @classmethod
    def none(cls, n: int) -> EnvFactors:
        """The profile and the trace as they are."""
        factors = {one.name: np.ones(n) for one in fields(cls)}
        return cls(**{**factors, "slow_slot": np.full(n, -1)})


class Fleet:
    """n independent simulated clusters that share one read-only trace.

    An env's result depends on its own seed, start, thinning and settings alone: it has the same
    bits for any n, any number of threads and any borders at which `advance` stops. At its time an
    env has seen all that happens up to and at that time; settings come after.

    Args:
        trace: the load of every env.
        profile: every replica's.
        seeds: `(n,)` uint64, one per env; draws cold starts, jitter and thinning.
        slots: most replicas held at once per env, draining ones included; a start that finds none
            free waits for one.
        router: `round_robin`, `least_pending` or `least_loaded`.
        slo: objectives that `met` and `missed` of a window count against.
        jitter: sigma of the logarithm of an iteration's random factor; 0: none.
        drain_timeout_s: longest time that a leaving replica may serve what it has, s; what has not
            ended by then fails. None: as long as it takes.
        crash_per_hour: crashes per hour of a serving replica, exponential; 0: none.
        record: keep every request's outcome, 40 bytes per request of the trace and env.
        scrape: how a metrics source sees the fleets; None: none does.
        threads: of this process, to share the envs among.

    Raises:
        ProfileError: the profile's scheduler is not known, or an iteration would take no time.
        ValueError: another argument is out of range.
    """

    def __init__(
        self,
        trace: Trace,
        profile: ServingProfile,
        *,
        seeds: NDArray[np.uint64],
        slots: int,
        router: str = "least_loaded",
        slo: Slo = DEFAULT_SLO,
        jitter: float = 0.0,
        drain_timeout_s: float | None = None,
        crash_per_hour: float = 0.0,
        record: bool = False,
        scrape: ScrapeConfig | None = None,
        threads: int = 1,
    ) -> None:
        check_scheduler(profile)
        if router not in ROUTERS:
            raise ValueError(f"router is {router!r}; expected one of {', '.join(ROUTERS)}")
        if len(seeds) < 1 or slots < 1 or threads < 1 or not jitter >= 0.0:
            raise ValueError(
                f"{len(seeds)} seeds, {slots} slots, {threads} threads, jitter {jitter}; "
                "expected at least one of each, and jitter >= 0"
            )
        longest_drain_s = math.inf if drain_timeout_s is None else drain_timeout_s
        if not longest_drain_s >= 0.0 or not 0.0 <= crash_per_hour < math.inf:
            raise ValueError(
                f"drain_timeout_s is {drain_timeout_s}, crash_per_hour {crash_per_hour}; "
                "expected both >= 0, and crash_per_hour finite"
            )
        self.profile = profile
        self.n = len(seeds)
        self.slots = slots
        self._arrival_s = trace.arrival_s
        self._requests = len(trace)
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None
        self._parts = _parts(self.n, threads)
        self._scrape = scrape
        self._memory = allocate(trace, profile, self.n, slots, router, slo, jitter, record, scrape)
        self._memory.engine["drain_timeout_s"] = longest_drain_s
        self._memory.engine["crash_per_s"] = crash_per_hour / 3600.0
        self._seen = empty_seen(0, 0, 0)
        self._seen_now = False
        self.reset(
            slice(None),
            start_s=0.0,
            seeds=seeds,
            settings=FleetSettings.usual(self.profile, 1, self.n),
        )

    def reset(
        self,
        envs: NDArray[np.intp] | slice,
        *,
        start_s: NDArray[np.float64] | float,
        seeds: NDArray[np.uint64],
        settings: FleetSettings,
        keep: NDArray[np.float64] | float = 1.0,
        factors: EnvFactors | None = None,
        clients: NDArray[np.int64] | int = 0,
        scrape_lag_s: NDArray[np.float64] | None = None,
        scrape_loss: NDArray[np.float64] | None = None,
    ) -> None:
        """Start the named envs afresh, the others are left alone.

        Args:
            envs: which, k of them.
            start_s: `(k,)` trace time at which they start; the first request is the first that
                arrives then or later.
            seeds: `(k,)` uint64.
            settings: k entries. `replicas` of them are READY at once, warm and past their ramp.
            keep: `(k,)` share of the requests that arrive, 0 < keep <= 1; which ones is a
                function of the seed and the request's row.
            factors: k entries; None: the profile and the trace as they are.
            scrape_lag_s, scrape_loss: `(k,)` in place of the metrics source's own.
            clients: `(k,)` of a closed loop: so many send one request each at the start, in the
                trace's order, and the next one at the moment theirs ends; the trace's times do not
                count, and nobody sends while no replica is ready. 0: an open loop, by those times.
        """
        rows = np.array(np.arange(self.n)[envs])
        if len(seeds) != len(rows):
            raise ValueError(f"{len(seeds)} seeds for {len(rows)} envs; expected one each")
        start_s = _column(start_s, len(rows))
        keep = _column(keep, len(rows))
        if not np.all((keep > 0) & (keep <= 1)):
            raise ValueError(f"keep is {keep.min()} to {keep.max()}; expected 0 < keep <= 1")
        clients = np.array(np.broadcast_to(clients, len(rows)))
        if np.any(clients < 0):
            raise ValueError(f"clients is {clients.min()}; expected at least 0")
        settings = self._checked(settings, len(rows))
        self._memory.envs["clients"][rows] = clients
        self._seen_now = False
        for name, column in vars(factors or EnvFactors.none(len(rows))).items():
            self._memory.envs[name][rows] = column
        for name, values in {"scrape_lag_s": scrape_lag_s, "scrape_loss": scrape_loss}.items():
            if values is not None:
                self._memory.envs[name][rows] = values
        events.reset(
            self._memory,
            rows,
            start_s,
            np.searchsorted(self._arrival_s, start_s, side="left"),
            np.array(seeds, dtype=np.uint64),
            keep,
            settings.replicas,
            settings.batch_size,
            settings.threads,
            settings.warmup_requests,
        )

    def apply(self, settings: FleetSettings) -> None:
        """Put settings in force, each env at its own time.

        A batch size holds from every replica's next iteration on and evicts nobody. Replicas
        start in the lowest free slots; those that start or warm up go first and at once, then the
        ready ones drain, newest first. A change of what the engine takes at its start (`threads`,
        and `batch_size` where the profile says so) restarts the ready replicas one by one; those
        that start or warm up begin anew at once.
        """
        settings = self._checked(settings, self.n)
        self._seen_now = False
        events.apply(
            self._memory,
            settings.replicas,
            settings.batch_size,
            settings.threads,
            settings.warmup_requests,
        )

    def advance(self, until_s: NDArray[np.float64] | float) -> None:
        """Bring every env to its time, `(n,)` seconds, finite and not before its present one."""
        until_s = _column(until_s, self.n)
        clock_s = self._memory.envs["clock_s"]
        if not ((until_s >= clock_s) & np.isfinite(until_s)).all():
            raise ValueError("until_s lies before an env's time or is not finite")
        window_s = 0.0
        if self._scrape is not None:
            window_s = self._scrape.window_s
            self._seen = empty_seen(self.n, self.slots, self._scrape.kept)
        seen = self._seen
        pending = list(self._parts)
        while pending:
            memory = self._memory

            def run(part: tuple[int, int], memory: Memory = memory) -> int:
                return int(
                    events.advance(
                        memory, part[0], part[1], until_s, window_s, SILENT_INTERVALS, seen
                    )
                )

            full = self._map(run, pending)
            pending = [
                (index, last) for index, (_, last) in zip(full, pending, strict=True) if index >= 0
            ]
            if pending:
                self._memory = with_larger_pools(memory, [index for index, _ in pending])
        self._seen_now = True

    def follow_with(self, trace: Trace) -> None:
        """Go on with the next part of the load; what waits and runs at the replicas stays.

        So a day of a hundred million requests is simulated with one part of it in memory.

        Args:
            trace: the next part, with the clock of the whole.

        Raises:
            ValueError: a part before it has not arrived or is not dispatched yet, an env thins its
                requests or keeps their outcomes, or the part begins before an env's time.
        """
        envs = self._memory.envs
        if self._memory.engine["recording"][0] or np.any(envs["keep"] < 1.0):
            raise ValueError("a fleet that records or thins its requests takes one trace")
        if np.any(envs["next_request"] < self._requests) or np.any(envs["router_waiting"] > 0):
            raise ValueError("requests of the part before are still to arrive or at the router")
        if np.any(envs["clock_s"] > trace.arrival_s[0]):
            raise ValueError(f"the part begins at {trace.arrival_s[0]} s, before an env's time")
        self._memory = self._memory._replace(trace=arrivals_of(trace, self.profile))
        self._arrival_s, self._requests = trace.arrival_s, len(trace)
        envs["next_request"] = 0

    def window(self) -> Window:
        """Sums since the last call, or since the reset; the next window begins."""
        window = telemetry.empty_window(self.n)
        telemetry.close_windows(self._memory, window)
        return window

    def memory_bytes(self) -> int:
        """Bytes that the envs take now, without what they share: the trace, the profile's tables.

        The pools of requests in flight grow with the load; recorded outcomes count.
        """
        return bytes_of_envs(self._memory)

    def replica_seconds(self) -> NDArray[np.float64]:
        """`(n,)` replica-seconds held in the present window so far; the window goes on."""
        envs = self._memory.envs
        held_s: NDArray[np.float64] = envs["window_replica_s"] + envs["held"] * (
            envs["clock_s"] - envs["held_since_s"]
        )
        return held_s

    def gauges(self) -> Gauges:
        """State of every env at its time."""
        gauges = telemetry.empty_gauges(self.n, self.slots)
        telemetry.read_gauges(self._memory, gauges)
        return gauges

    def counters(self) -> Counters:
        """What every replica's engine has counted since it started."""
        counters = telemetry.empty_counters(self.n, self.slots)
        telemetry.read_counters(self._memory, counters)
        return counters

    def seen(self) -> Seen:
        """Every env through its metrics source, at its time; needs `scrape`."""
        if self._scrape is None:
            raise ValueError("nothing scrapes the fleet; make it with scrape=ScrapeConfig()")
        if not self._seen_now:
            self.advance(self._memory.envs["clock_s"])
        return self._seen

    def requests(
        self, env: int = 0, rows: NDArray[np.intp] | slice = slice(None)
    ) -> RequestColumns:
        """Outcome of every request of the trace, or of `rows`, in one env; needs `record=True`."""
        if not self._memory.engine["recording"][0]:
            raise ValueError("the fleet keeps no requests; make it with record=True")
        outcomes = self._memory.outcomes.reshape(self.n, self._requests)[env][rows]
        return RequestColumns(
            ttft_s=outcomes["ttft_s"].copy(),
            e2e_s=outcomes["e2e_s"].copy(),
            tpot_s=outcomes["tpot_s"].copy(),
            replica=outcomes["replica"].copy(),
            preemptions=outcomes["preemptions"].copy(),
            rejected=outcomes["rejected"].astype(np.bool_),
            failed=outcomes["failed"].astype(np.bool_),
        )

    def done(self) -> NDArray[np.bool_]:
        """`(n,)` whether all requests of the trace have ended."""
        envs = self._memory.envs
        done: NDArray[np.bool_] = (
            (envs["next_request"] >= self._requests)
            & (envs["router_waiting"] == 0)
            & (envs["in_flight"] == 0)
        )
        return done

    def _map(
        self, run: Callable[[tuple[int, int]], int], parts: list[tuple[int, int]]
    ) -> list[int]:
        if self._executor is None or len(parts) == 1:
            return [run(part) for part in parts]
        return list(self._executor.map(run, parts))

    def _checked(self, settings: FleetSettings, count: int) -> FleetSettings:
        ranges = {"replicas": (0, self.slots), "batch_size": (1, None)}
        ranges |= {"threads": (1, None), "warmup_requests": (0, None)}
        columns = {}
        for name, (low, high) in ranges.items():
            column = np.array(getattr(settings, name), dtype=np.int64)
            if column.shape != (count,):
                raise ValueError(f"settings.{name} has shape {column.shape}; expected ({count},)")
            if np.any(column < low) or (high is not None and np.any(column > high)):
                raise ValueError(
                    f"settings.{name} is {column.min()} to {column.max()}; expected {low} to "
                    f"{'any' if high is None else high}"
                )
            columns[name] = column
        np.minimum(
            columns["batch_size"], self.profile.limits.batch_size_max, out=columns["batch_size"]
        )
        if self.profile.frontend is not None:
            self._memory = with_workers(self._memory, self.slots, int(columns["threads"].max()))
        return FleetSettings(**columns)


def _parts(n: int, threads: int) -> list[tuple[int, int]]:
    """The envs in a few contiguous parts per thread, to even out their loads: first, and one after
    the last."""
    parts = min(n, 1 if threads == 1 else 4 * threads)
    return [(int(part[0]), int(part[-1]) + 1) for part in np.array_split(np.arange(n), parts)]


def _column(values: NDArray[np.float64] | float, count: int) -> NDArray[np.float64]:
    """One float64 per env, from one each or one for all.

    A copy: a read-only array would be another type to Numba, and compile everything once more.
    """
    return np.full(count, values, dtype=np.float64)
