"""`Fleet`: n independent simulated clusters over one trace."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.simulator import events, telemetry
from envs.simulator.buckets import KINDS, WIDTH
from envs.simulator.layout import (
    ARRIVAL,
    ENGINE,
    ENV,
    FLIGHT,
    OUTCOME,
    REPLICA,
    Memory,
)
from envs.simulator.routing import ROUTERS
from envs.simulator.schedulers import check_scheduler
from envs.simulator.step_time import ramp_table, seconds_by_batch
from envs.simulator.telemetry import Gauges, RequestColumns, Window
from tuner.core.profile import ServingProfile
from tuner.core.slo import Slo
from tuner.core.trace import Trace

DEFAULT_SLO = Slo()
_FIRST_POOL = 256
"""Requests in flight that an env has room for at first; doubled when full."""


@dataclass(frozen=True, eq=False)
class FleetSettings:
    """Knobs in force, one entry per env, int64."""

    replicas: NDArray[np.int64]
    """Replicas wanted, 0 to the fleet's slots; draining ones do not count."""
    batch_size: NDArray[np.int64]
    """Most sequences a replica runs at once, >= 1; above the profile's batch_size_max: that."""
    threads: NDArray[np.int64]
    """Frontend workers per replica, >= 1; without effect if the profile has no frontend."""
    warmup_requests: NDArray[np.int64]
    """Warm-up requests of a replica that starts from now on, >= 0."""

    def __len__(self) -> int:
        return len(self.replicas)


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
        record: keep every request's outcome, 32 bytes per request of the trace and env.
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
        record: bool = False,
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
        self.profile = profile
        self.n = len(seeds)
        self.slots = slots
        self._arrival_s = trace.arrival_s
        self._requests = len(trace)
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None
        self._threads = threads
        self._memory = _memory(trace, profile, self.n, slots, router, slo, jitter, record)
        self.reset(slice(None), start_s=0.0, seeds=seeds, settings=self._start_settings())

    def reset(
        self,
        envs: NDArray[np.intp] | slice,
        *,
        start_s: NDArray[np.float64] | float,
        seeds: NDArray[np.uint64],
        settings: FleetSettings,
        keep: NDArray[np.float64] | float = 1.0,
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
        """
        rows = np.arange(self.n)[envs]
        start_s = np.broadcast_to(np.asarray(start_s, dtype=np.float64), rows.shape)
        keep = np.broadcast_to(np.asarray(keep, dtype=np.float64), rows.shape)
        if len(seeds) != len(rows):
            raise ValueError(f"{len(seeds)} seeds for {len(rows)} envs; expected one each")
        if not np.all((keep > 0) & (keep <= 1)):
            raise ValueError(f"keep is {keep.min()} to {keep.max()}; expected 0 < keep <= 1")
        settings = self._checked(settings, len(rows))
        first = np.searchsorted(self._arrival_s, start_s, side="left")
        for i, row in enumerate(rows):
            env = self._memory.envs[row]
            env["batch_size"] = settings.batch_size[i]
            env["threads"] = settings.threads[i]
            env["warmup_requests"] = settings.warmup_requests[i]
            events.reset(
                self._memory,
                int(row),
                np.uint64(seeds[i]),
                float(start_s[i]),
                int(first[i]),
                float(keep[i]),
                int(settings.replicas[i]),
            )

    def apply(self, settings: FleetSettings) -> None:
        """Put settings in force, each env at its own time.

        A batch size holds from every replica's next iteration on and evicts nobody. Replicas
        start in the lowest free slots; those that start or warm up go first and at once, then the
        ready ones drain, newest first. A change of `threads` restarts the replicas one by one.
        """
        settings = self._checked(settings, self.n)
        events.apply(
            self._memory,
            settings.replicas,
            settings.batch_size,
            settings.threads,
            settings.warmup_requests,
        )

    def advance(self, until_s: NDArray[np.float64] | float) -> None:
        """Bring every env to its time, `(n,)` seconds, finite and not before its present one."""
        until_s = np.ascontiguousarray(
            np.broadcast_to(np.asarray(until_s, dtype=np.float64), (self.n,))
        )
        clock_s = self._memory.envs["clock_s"]
        if not np.all((until_s >= clock_s) & np.isfinite(until_s)):
            raise ValueError("until_s lies before an env's time or is not finite")
        pending = [(int(part[0]), int(part[-1]) + 1) for part in self._parts()]
        while pending:
            memory = self._memory

            def run(part: tuple[int, int], memory: Memory = memory) -> int:
                return int(events.advance(memory, part[0], part[1], until_s))

            full = self._map(run, pending)
            pending = [
                (index, last) for index, (_, last) in zip(full, pending, strict=True) if index >= 0
            ]
            if pending:
                self._memory = _with_larger_pools(memory, [index for index, _ in pending])

    def window(self) -> Window:
        """Sums since the last call, or since the reset; the next window begins."""
        window = telemetry.empty_window(self.n)
        telemetry.close_windows(self._memory, window)
        return window

    def gauges(self) -> Gauges:
        """State of every env at its time."""
        gauges = telemetry.empty_gauges(self.n, self.slots)
        telemetry.read_gauges(self._memory, gauges)
        return gauges

    def requests(self, env: int = 0) -> RequestColumns:
        """Outcome of every request of the trace in one env; needs `record=True`."""
        if not self._memory.engine["recording"][0]:
            raise ValueError("the fleet keeps no requests; make it with record=True")
        outcomes = self._memory.outcomes.reshape(self.n, self._requests)[env]
        return RequestColumns(
            ttft_s=outcomes["ttft_s"].copy(),
            e2e_s=outcomes["e2e_s"].copy(),
            tpot_s=outcomes["tpot_s"].copy(),
            replica=outcomes["replica"].copy(),
            preemptions=outcomes["preemptions"].copy(),
            rejected=outcomes["rejected"].astype(np.bool_),
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

    def _parts(self) -> list[NDArray[np.intp]]:
        """The envs in a few contiguous parts per thread, to even out their loads."""
        parts = min(self.n, 1 if self._executor is None else 4 * self._threads)
        return np.array_split(np.arange(self.n), parts)

    def _map(
        self, run: Callable[[tuple[int, int]], int], parts: list[tuple[int, int]]
    ) -> list[int]:
        if self._executor is None or len(parts) == 1:
            return [run(part) for part in parts]
        return list(self._executor.map(run, parts))

    def _start_settings(self) -> FleetSettings:
        frontend = self.profile.frontend
        return FleetSettings(
            replicas=np.ones(self.n, np.int64),
            batch_size=np.full(self.n, self.profile.limits.batch_size_max, np.int64),
            threads=np.full(self.n, frontend.cores if frontend else 1, np.int64),
            warmup_requests=np.zeros(self.n, np.int64),
        )

    def _checked(self, settings: FleetSettings, count: int) -> FleetSettings:
        ranges = {"replicas": (0, self.slots), "batch_size": (1, None)}
        ranges |= {"threads": (1, None), "warmup_requests": (0, None)}
        columns = {}
        for name, (low, high) in ranges.items():
            column = np.ascontiguousarray(getattr(settings, name), dtype=np.int64)
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
            self._memory = _with_workers(self._memory, self.slots, int(columns["threads"].max()))
        return FleetSettings(**columns)


def _memory(
    trace: Trace,
    profile: ServingProfile,
    n: int,
    slots: int,
    router: str,
    slo: Slo,
    jitter: float,
    record: bool,
) -> Memory:
    """Memory of a fleet whose envs are yet to be reset."""
    ramp_requests, ramp_speed = ramp_table(profile)
    rows = np.zeros(len(trace), ARRIVAL)
    rows["arrival_s"] = trace.arrival_s
    rows["prompt_tokens"] = trace.prompt_tokens
    rows["output_tokens"] = trace.output_tokens
    envs = np.zeros(n, ENV)
    envs["flight_base"] = np.arange(n) * _FIRST_POOL
    envs["flight_capacity"] = _FIRST_POOL
    replicas = n * slots
    cap = profile.limits.batch_size_max
    return Memory(
        engine=_engine(profile, slots, router, slo, jitter, record),
        batch_s=seconds_by_batch(profile),
        ramp_requests=ramp_requests,
        ramp_speed=ramp_speed,
        trace=rows,
        envs=envs,
        replicas=np.zeros(replicas, REPLICA),
        due_s=np.full(replicas, np.inf),
        batch=np.zeros(replicas * cap, np.int32),
        batch_ends=np.zeros(replicas * cap, np.int32),
        residues=np.zeros(replicas * profile.kv.block_tokens, np.int32),
        workers=np.zeros(0),
        flights=np.zeros(n * _FIRST_POOL, FLIGHT),
        outcomes=np.zeros(n * len(trace) if record else 0, OUTCOME),
        histograms=np.zeros(n * KINDS * WIDTH, np.int64),
    )


def _engine(
    profile: ServingProfile, slots: int, router: str, slo: Slo, jitter: float, record: bool
) -> NDArray[np.void]:
    engine = np.zeros(1, ENGINE)
    row = engine[0]
    row["block_tokens"] = profile.kv.block_tokens
    row["blocks"] = profile.kv.blocks
    row["watermark_blocks"] = profile.kv.watermark_blocks
    row["chunk_tokens"] = profile.limits.chunk_tokens
    row["batch_size_max"] = profile.limits.batch_size_max
    row["prefill_base_s"] = profile.step_time.prefill_base_s
    row["per_prefill_token_s"] = profile.step_time.per_prefill_token_s
    row["per_kv_token_s"] = profile.step_time.per_kv_token_s
    row["jitter"] = jitter
    row["router"] = ROUTERS[router]
    row["slots"] = slots
    row["slo_ttft_s"] = slo.ttft_s
    row["slo_tpot_s"] = slo.tpot_s
    row["recording"] = record
    if profile.startup is not None:
        row["has_startup"] = 1
        row["cold_start_s"] = profile.startup.cold_start_s
        row["spread"] = profile.startup.spread
        row["warmup_request_s"] = profile.startup.warmup_request_s
    if profile.frontend is not None:
        row["has_frontend"] = 1
        row["cores"] = profile.frontend.cores
        row["per_request_s"] = profile.frontend.per_request_s
        row["per_token_s"] = profile.frontend.per_token_s
    return engine


def _with_workers(memory: Memory, slots: int, workers: int) -> Memory:
    """The same memory with room for so many frontend workers per replica."""
    present = int(memory.engine["workers"][0])
    if workers <= present:
        return memory
    replicas = len(memory.replicas)
    grown = np.full((replicas, workers), -np.inf)
    grown[:, :present] = memory.workers.reshape(replicas, present)
    memory.engine["workers"] = workers
    memory.replicas["worker_base"] = np.arange(replicas) * workers
    return memory._replace(workers=grown.reshape(-1))


def _with_larger_pools(memory: Memory, full: list[int]) -> Memory:
    """The same memory with twice the room for requests in flight in the named envs."""
    envs = memory.envs
    capacity = envs["flight_capacity"].copy()
    capacity[full] *= 2
    base = np.concatenate(([0], np.cumsum(capacity)))
    flights = np.zeros(base[-1], FLIGHT)
    for index in range(len(envs)):
        env = envs[index]
        old, used = int(env["flight_base"]), int(env["flight_used"])
        flights[base[index] : base[index] + used] = memory.flights[old : old + used]
    envs["flight_base"] = base[:-1]
    envs["flight_capacity"] = capacity
    return memory._replace(flights=flights)
