"""A recorded workload simulated again: distributions of the measured and the simulated requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.calibrate.columns import Cell, read_columns
from envs.simulator import Fleet, FleetSettings
from envs.simulator.telemetry import RequestColumns
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile
from tuner.core.trace import LONGEST_S, MAX_TOKENS, Trace

Floats = NDArray[np.float64]

FIGURES = ("mean", "p50", "p95", "p99")
_WORKLOAD = {
    "arrival_s": ("arrival_s", "arrived_at"),
    "prompt_tokens": ("prompt_tokens", "num_prefill_tokens"),
    "output_tokens": ("output_tokens", "num_decode_tokens"),
}
_MEASURED = {"ttft_s": ("ttft_s",), "e2e_s": ("e2e_s",)}
SHORTEST_LATENCY_S, LONGEST_LATENCY_S = 1e-6, 86_400.0
"""Of a request that was served; a longer one is a unit error in the recording."""
_CELLS = {
    "arrival_s": Cell("seconds since the start", 0, LONGEST_S, slip="milliseconds, a clock"),
    "prompt_tokens": Cell("tokens", 1, MAX_TOKENS, whole=True),
    "output_tokens": Cell("tokens", 1, MAX_TOKENS, whole=True),
    "ttft_s": Cell("seconds", SHORTEST_LATENCY_S, LONGEST_LATENCY_S, slip="milliseconds"),
    "e2e_s": Cell("seconds", SHORTEST_LATENCY_S, LONGEST_LATENCY_S, slip="milliseconds"),
}
_ENDLESS_S = 1e9


@dataclass(frozen=True, eq=False)
class Recording:
    """Requests that were served, and how long they took; `(requests,)` each, by arrival."""

    trace: Trace
    ttft_s: Floats
    e2e_s: Floats

    @property
    def tpot_s(self) -> Floats:
        """Of the requests with more than one output token."""
        return _tpot(self.trace, self.ttft_s, self.e2e_s)


@dataclass(frozen=True, eq=False)
class Replay:
    """The same requests, measured and simulated."""

    measured: dict[str, Floats]
    """ttft, tpot and e2e in seconds."""
    simulated: dict[str, Floats]

    def errors(self) -> dict[str, float]:
        """`ttft_mean`, `ttft_p50`, ...: relative error of each figure, > 0: simulated too slow."""
        return {
            f"{name}_{figure}": _figure(self.simulated[name], figure)
            / _figure(self.measured[name], figure)
            - 1
            for name in self.measured
            for figure in FIGURES
        }


def read_recording(requests: Path, workload: Path | None = None) -> Recording:
    """Served requests with the columns arrival_s, prompt_tokens, output_tokens, ttft_s, e2e_s.

    Args:
        requests: NPZ, Parquet or CSV.
        workload: a file with the first three columns in the same order, if `requests` lacks them;
            Vidur's names (arrived_at, num_prefill_tokens, num_decode_tokens) are read too.

    Raises:
        InputError: a file cannot be read, lacks a column, holds a value out of range, or they
            differ in length.
    """
    measured = _checked(requests, _MEASURED, "served requests")
    load = _checked(workload or requests, _WORKLOAD, "a workload")
    if len(load["arrival_s"]) != len(measured["ttft_s"]):
        raise InputError(
            f"{requests} has {len(measured['ttft_s'])} requests and {workload} has "
            f"{len(load['arrival_s'])}; expected the same ones in the same order"
        )
    early = np.flatnonzero(measured["e2e_s"] < measured["ttft_s"])
    if len(early):
        raise InputError(
            f"{requests}: e2e_s is {measured['e2e_s'][early[0]]:.10g} in row {early[0] + 1}, below "
            f"its ttft_s of {measured['ttft_s'][early[0]]:.10g}; expected both in seconds since "
            "the arrival (one of them in milliseconds?)"
        )
    if load["output_tokens"].max() < 2:
        raise InputError(
            f"{workload or requests}: no request has two output tokens; expected some: TPOT is "
            "compared too"
        )
    order = np.argsort(load["arrival_s"], kind="stable")
    trace = Trace(
        load["arrival_s"][order],
        load["prompt_tokens"][order].astype(np.int32),
        load["output_tokens"][order].astype(np.int32),
    )
    return Recording(trace, measured["ttft_s"][order], measured["e2e_s"][order])


def _checked(path: Path, wanted: Mapping[str, Sequence[str]], what: str) -> dict[str, Floats]:
    columns = read_columns(path, wanted, {}, what)
    for name, column in columns.items():
        _CELLS[name].refuse(path, name, column, np.arange(1, len(column) + 1))
    return columns


def replay(
    recording: Recording, profile: ServingProfile, *, replicas: int, router: str, seed: int = 0
) -> Replay:
    """Simulate the recorded workload on warm replicas.

    Raises:
        InputError: the simulated fleet cannot serve a request that was served.
    """
    seen = served(recording.trace, profile, replicas=replicas, router=router, seed=seed)
    if not np.isfinite(seen.e2e_s).all():
        raise InputError(
            f"profile {profile.name}: {int(np.isnan(seen.e2e_s).sum())} recorded requests exceed "
            f"the KV cache of {profile.kv.tokens} tokens; raise kv.blocks"
        )
    return Replay(
        {"ttft": recording.ttft_s, "tpot": recording.tpot_s, "e2e": recording.e2e_s},
        {
            "ttft": seen.ttft_s,
            "tpot": _tpot(recording.trace, seen.ttft_s, seen.e2e_s),
            "e2e": seen.e2e_s,
        },
    )


def served(
    trace: Trace, profile: ServingProfile, *, replicas: int, router: str, seed: int = 0
) -> RequestColumns:
    """What becomes of each request on warm replicas; NaN of one that they cannot hold."""
    seeds = np.array([seed], np.uint64)
    fleet = Fleet(trace, profile, seeds=seeds, slots=replicas, router=router, record=True)
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=seeds,
        settings=FleetSettings.usual(profile, replicas),
    )
    fleet.advance(_ENDLESS_S)
    return fleet.requests()


def _tpot(trace: Trace, ttft_s: Floats, e2e_s: Floats) -> Floats:
    many = trace.output_tokens > 1
    return (e2e_s[many] - ttft_s[many]) / (trace.output_tokens[many] - 1)


def _figure(values: Floats, name: str) -> float:
    if name == "mean":
        return float(values.mean())
    return float(np.quantile(values, int(name[1:]) / 100))
