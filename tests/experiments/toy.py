"""A fleet simple enough to reckon by hand: the runner that tests of comparisons use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.fanout import Progress
from experiments.job import Job
from experiments.result import RequestTable, RunResult, TickTable
from tuner.core.errors import ConfigError
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.core.trace import Trace

TOKENS_PER_REPLICA_S = 100.0
"""Output tokens/s that one toy replica serves; what it cannot serve waits, first come first."""

PROFILE = ServingProfile(
    schema="tuner.profile/1",
    name="toy",
    scheduler="toy-fluid",
    gpus_per_replica=2,
    kv=KvCache(block_tokens=16, blocks=1000),
    limits=EngineLimits(batch_size_max=64, chunk_tokens=512),
    step_time=StepTime(base_s=0.01),
    origin={"step_time": "invented <for tests> & nothing else"},
    error={"ttft_mean": 0.125},
    assumed=("limits.batch_size_max",),
    not_modelled=("Whatever happens between <two> replicas.",),
)


def toy_trace(
    *, minutes: int = 20, per_minute: int = 60, surge: float = 1.0, name: str = "toy-load"
) -> Trace:
    """Even arrivals of 10 output tokens, `surge` times as many in the middle third."""
    arrivals = []
    for minute in range(minutes):
        busy = minutes // 3 <= minute < 2 * minutes // 3
        count = round(per_minute * (surge if busy else 1.0))
        arrivals.append(60 * minute + np.arange(count) * 60 / count)
    arrival_s = np.concatenate(arrivals)
    n = len(arrival_s)
    return Trace(
        arrival_s=arrival_s,
        prompt_tokens=np.full(n, 100, np.int32),
        output_tokens=np.full(n, 10, np.int32),
        name=name,
    )


@dataclass(frozen=True)
class ToyRunner:
    """Serves tokens as a fluid. `static` holds its count, `hpa` follows tokens/s one tick late,
    anything else holds `replicas` of its options and trips or clamps now and then."""

    noise: float = 0.01
    """Relative noise of the latencies, drawn from the seed."""

    def check(self, profile: ServingProfile, job: Job) -> None:
        if job.options.get("bad"):
            raise ConfigError(f"{job.name}: option bad is unknown")

    def identity(self, policy: str) -> str:
        return policy

    def __call__(
        self, trace: Trace, profile: ServingProfile, job: Job, progress: Progress
    ) -> RunResult:
        rng = np.random.default_rng(job.seed)
        tick_s, span_s = job.config.tick_s, trace.last_arrival_s
        ticks = max(1, int(np.ceil(span_s / tick_s)))
        tick = np.minimum((trace.arrival_s / tick_s).astype(int), ticks - 1)
        tokens = np.bincount(tick, weights=trace.output_tokens, minlength=ticks)
        replicas = np.full(ticks, float(job.config.initial_replicas or 1))
        if job.policy == "static":
            replicas[:] = float(job.options["replicas"])
        elif job.policy == "hpa":
            target = float(job.options.get("target", 1000.0))
            wanted = np.ceil(tokens / tick_s / target - 1e-9)
            replicas[1:] = np.clip(wanted[:-1], 1, job.config.max_replicas)
        elif "replicas" in job.options:
            replicas[:] = float(job.options["replicas"])
        backlog, waits = 0.0, np.empty(ticks)
        for place in range(ticks):
            capacity = replicas[place] * TOKENS_PER_REPLICA_S
            waits[place] = backlog / capacity
            backlog = max(0.0, backlog + tokens[place] - capacity * tick_s)
            progress((place + 1) / ticks)
        noise = 1 + self.noise * rng.standard_normal(len(trace))
        ttft_s = (0.1 + waits[tick]) * noise
        tpot_s = np.full(len(trace), 0.02) * noise
        requests = RequestTable(
            arrival_s=trace.arrival_s,
            prompt_tokens=trace.prompt_tokens,
            output_tokens=trace.output_tokens,
            ttft_s=ttft_s,
            e2e_s=ttft_s + tpot_s * (trace.output_tokens - 1),
            tpot_s=tpot_s,
            replica=(np.arange(len(trace)) % 3).astype(np.int32),
            preemptions=np.zeros(len(trace), np.int32),
            rejected=np.zeros(len(trace), np.bool_),
            failed=np.zeros(len(trace), np.bool_),
        )
        met = np.bincount(tick[requests.met(job.config.slo)], minlength=ticks)
        odd = job.policy not in ("static", "hpa")
        rows = [
            self._row(place, tick_s, replicas, tokens, tick, met, ttft_s, odd)
            for place in range(ticks)
        ]
        held_s = np.minimum(np.arange(1, ticks + 1) * tick_s, span_s) - np.arange(ticks) * tick_s
        replica_hours = float((replicas * held_s).sum() / 3600)
        moves = int((np.diff(replicas) != 0).sum())
        return RunResult(
            policy=job.name,
            seed=job.seed,
            requests=requests,
            ticks=TickTable.of(rows),
            replica_hours=replica_hours,
            gpu_hours=replica_hours * profile.gpus_per_replica,
            span_s=span_s,
            actions=moves,
            clamps=sum(bool(row["clamped"]) for row in rows),
            trips=sum(bool(row["tripped"]) for row in rows),
            pinned={"threads": "profile toy has no frontend section"},
            settings=dict(job.options),
        )

    def _row(
        self,
        place: int,
        tick_s: float,
        replicas: np.ndarray[Any, Any],
        tokens: np.ndarray[Any, Any],
        tick: np.ndarray[Any, Any],
        met: np.ndarray[Any, Any],
        ttft_s: np.ndarray[Any, Any],
        odd: bool,
    ) -> dict[str, object]:
        here = ttft_s[tick == place]
        p99 = float(np.percentile(here, 99)) if len(here) else None
        before = replicas[max(place - 1, 0)]
        moved = before != replicas[place]
        return {
            "at_s": (place + 1) * tick_s,
            "window_s": tick_s,
            "qps": len(here) / tick_s,
            "prompt_tokens_per_s": None,
            "output_tokens_per_s": tokens[place] / tick_s,
            "ttft_p50_s": p99,
            "ttft_p95_s": p99,
            "ttft_p99_s": p99,
            "tpot_p50_s": 0.02,
            "tpot_p99_s": 0.02,
            "queue_depth": 0,
            "running": 1,
            "kv_cache_usage": 0.1,
            "gpu_util": 1.0,
            "wanted_replicas": replicas[place],
            "ready_replicas": before,
            "starting_replicas": max(0.0, replicas[place] - before),
            "draining_replicas": 0,
            "batch_size": 64 if not odd else 32 + 16 * (place // 7 % 3),
            "threads": 4,
            "warmup_requests": 0,
            "met": int(met[place]),
            "missed": len(here) - int(met[place]),
            "finished": len(here),
            "source": "fallback" if odd and place % 29 == 3 else "policy",
            "clamped": odd and place % 17 == 5,
            "tripped": odd and place % 29 == 3,
            "sentence": f"replicas {before:.0f} -> {replicas[place]:.0f} (policy)"
            if moved
            else "no change (policy)",
        }


def job(policy: str, *, seed: int = 1, initial: int = 1, **options: float) -> Job:
    """A job of a toy policy."""
    return Job(policy, policy, options, RunConfig(initial_replicas=initial), seed)
