"""One simulation of a fleet that stays as it is, request by request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from envs.simulator import Fleet, FleetSettings
from experiments.result import Floats
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import Trace

OVERTIME_S = 86_400.0
"""Requests may end so long after the last arrival."""
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True, eq=False)
class Latencies:
    """What became of each request of a load, in its order; `(requests,)` each, seconds."""

    arrival_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    """NaN of a request with one output token."""
    e2e_s: Floats

    def columns(self) -> Mapping[str, Floats]:
        """By names of LATENCIES."""
        return {name: getattr(self, name) for name in LATENCIES}

    @classmethod
    def of(cls, trace: Trace, ttft_s: Floats, e2e_s: Floats) -> Latencies:
        """From the two that a log holds; TPOT follows."""
        gaps = (trace.output_tokens - 1).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot_s = np.where(gaps > 0, (e2e_s - ttft_s) / gaps, np.nan)
        return cls(np.asarray(trace.arrival_s), ttft_s, tpot_s, e2e_s)


def simulate(
    trace: Trace,
    profile: ServingProfile,
    *,
    replicas: int,
    router: str,
    seed: int = 0,
    jitter: float = 0.0,
) -> Latencies:
    """Every request on so many ready replicas.

    Raises:
        InputError: a request did not end.
    """
    fleet = Fleet(
        trace,
        profile,
        seeds=np.array([seed], np.uint64),
        slots=replicas,
        router=router,
        jitter=jitter,
        record=True,
    )
    settings = FleetSettings.usual(profile, replicas)
    fleet.reset(slice(None), start_s=0.0, seeds=np.array([seed], np.uint64), settings=settings)
    fleet.advance(trace.last_arrival_s + OVERTIME_S)
    seen = fleet.requests()
    missing = int(np.isnan(seen.e2e_s).sum())
    if missing:
        raise InputError(
            f"{missing} of {len(trace)} requests did not end on {replicas} replicas of "
            f"{profile.name}; take a load that fits it, or more replicas"
        )
    return Latencies.of(trace, seen.ttft_s, seen.e2e_s)


def capacity_qps(trace: Trace, profile: ServingProfile, *, replicas: int) -> float:
    """Requests/s that a fleet finishes when all of a load's requests are there from the start.

    The tail, in which the last requests run in a half-empty batch, is left out: the rate is that of
    the first 90 %.
    """
    at_once = replace(trace, arrival_s=np.zeros(len(trace)), gaps=(), name=f"{trace.name}, at once")
    e2e_s = np.sort(simulate(at_once, profile, replicas=replicas, router="least_loaded").e2e_s)
    most = max(1, int(0.9 * len(e2e_s)))
    return most / float(e2e_s[most - 1])


def steady(trace: Trace, requests: int, seed: int) -> Trace:
    """So many requests with lengths drawn from the trace's, in Poisson arrivals of 1 request/s:
    a load without a day, whose share of capacity means something."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(trace), requests)
    return Trace(
        np.cumsum(rng.exponential(1.0, requests)),
        trace.prompt_tokens[rows],
        trace.output_tokens[rows],
        name=f"Poisson, lengths of {trace.name}",
    )


def at_rate(trace: Trace, qps: float) -> Trace:
    """The same requests in the same pattern, faster or slower: `qps` requests/s in the mean."""
    factor = len(trace) / trace.last_arrival_s / qps
    return replace(
        trace,
        arrival_s=np.asarray(trace.arrival_s) * factor,
        gaps=(),
        name=f"{trace.name}, at {qps:.3g} requests/s",
    )
