"""The figures of one run, and what each of them means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from experiments.result import Floats, RunResult
from tuner.core.slo import Slo

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Figures:
    """One run in numbers. NaN where there is nothing to measure: no request finished, no span.

    Percentiles are exact, over requests, linear between the two nearest (numpy's default).
    """

    slo_attainment: float
    """Share of the trace's requests (0-1) that met every objective."""
    goodput_qps: float
    """Requests that met every objective / seconds to the last arrival."""
    gpu_hours: float
    """GPUs held x hours to the last arrival, ready or not."""
    replica_hours: float
    """The same in replicas."""
    ttft_p50_s: float
    """Of finished requests, as the other latencies."""
    ttft_p99_s: float
    tpot_p50_s: float
    """Of finished requests of more than one output token."""
    tpot_p99_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    requests: int
    """Requests of the trace: completed, failed, rejected and unfinished ones. All but the completed
    count as missed."""
    completed: int
    """Requests that gave their last token."""
    failed: int
    """Requests whose replica was killed under them."""
    rejected: int
    """Requests that can never fit into a replica."""
    unfinished: int
    """Requests that had not ended when the run did, overtime after the last arrival."""
    prompt_tokens: int
    """Of completed requests."""
    output_tokens: int
    """Of completed requests."""
    preemptions: int
    """Times a request lost its place in a batch, over the trace's requests."""
    actions: int
    """Ticks in which a knob moved."""
    clamps: int
    """Ticks in which a limit changed what was wanted."""
    trips: int
    """Ticks in which a trip handed over to the fallback."""


@dataclass(frozen=True)
class Metric:
    """How a figure is named and read in tables."""

    name: str
    """Field of Figures."""
    label: str
    unit: str
    better: Better
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "slo_attainment",
        "SLO attainment",
        "0-1",
        "higher",
        "share of all requests that met every objective; unfinished, rejected and failed ones miss",
    ),
    Metric(
        "goodput_qps",
        "goodput",
        "requests/s",
        "higher",
        "requests that met every objective, per second to the last arrival",
    ),
    Metric(
        "gpu_hours",
        "GPU hours",
        "GPU·h",
        "lower",
        "GPUs held × time to the last arrival, ready or not",
    ),
    Metric("replica_hours", "replica hours", "replica·h", "lower", "the same in replicas"),
    Metric("ttft_p50_s", "TTFT p50", "s", "lower", "time to first token, finished requests"),
    Metric("ttft_p99_s", "TTFT p99", "s", "lower", "time to first token, finished requests"),
    Metric(
        "tpot_p50_s",
        "TPOT p50",
        "s/token",
        "lower",
        "time per output token after the first, finished requests of more than one",
    ),
    Metric(
        "tpot_p99_s",
        "TPOT p99",
        "s/token",
        "lower",
        "time per output token after the first, finished requests of more than one",
    ),
    Metric("e2e_p50_s", "E2E p50", "s", "lower", "submit to last token, finished requests"),
    Metric("e2e_p99_s", "E2E p99", "s", "lower", "submit to last token, finished requests"),
    Metric("requests", "requests", "requests", "neither", "requests of the trace"),
    Metric("completed", "completed", "requests", "higher", "requests that gave their last token"),
    Metric("failed", "failed", "requests", "lower", "requests whose replica was killed under them"),
    Metric(
        "rejected", "rejected", "requests", "lower", "requests that can never fit into a replica"
    ),
    Metric(
        "unfinished",
        "unfinished",
        "requests",
        "lower",
        "requests that had not ended when the run did, overtime after the last arrival",
    ),
    Metric("prompt_tokens", "prompt tokens", "tokens", "neither", "prompts of completed requests"),
    Metric("output_tokens", "output tokens", "tokens", "neither", "answers of completed requests"),
    Metric(
        "preemptions", "preemptions", "times", "lower", "times a request lost its place in a batch"
    ),
    Metric("actions", "actions", "ticks", "neither", "ticks in which a knob moved"),
    Metric(
        "clamps", "clamps", "ticks", "neither", "ticks in which a limit changed what was wanted"
    ),
    Metric(
        "trips", "trips", "ticks", "neither", "ticks in which a trip handed over to the fallback"
    ),
)
"""In the order of Figures."""


def figures_of(result: RunResult, slo: Slo) -> Figures:
    """The figures of one run."""
    requests = result.requests
    finished = requests.finished
    many = finished & (requests.output_tokens > 1)
    met = int(requests.met(slo).sum())
    ttft_p50_s, ttft_p99_s = _percentiles(requests.ttft_s[finished])
    tpot_p50_s, tpot_p99_s = _percentiles(requests.tpot_s[many])
    e2e_p50_s, e2e_p99_s = _percentiles(requests.e2e_s[finished])
    return Figures(
        slo_attainment=met / len(requests) if len(requests) else math.nan,
        goodput_qps=met / result.span_s if result.span_s > 0 else math.nan,
        gpu_hours=result.gpu_hours,
        replica_hours=result.replica_hours,
        ttft_p50_s=ttft_p50_s,
        ttft_p99_s=ttft_p99_s,
        tpot_p50_s=tpot_p50_s,
        tpot_p99_s=tpot_p99_s,
        e2e_p50_s=e2e_p50_s,
        e2e_p99_s=e2e_p99_s,
        requests=len(requests),
        completed=int(finished.sum()),
        failed=int(requests.failed.sum()),
        rejected=int(requests.rejected.sum()),
        unfinished=int((~(finished | requests.failed | requests.rejected)).sum()),
        prompt_tokens=int(requests.prompt_tokens[finished].sum(dtype=np.int64)),
        output_tokens=int(requests.output_tokens[finished].sum(dtype=np.int64)),
        preemptions=int(requests.preemptions.sum()),
        actions=result.actions,
        clamps=result.clamps,
        trips=result.trips,
    )


def figures_from(values: Mapping[str, Any]) -> Figures:
    """Figures as JSON or YAML holds them: null is NaN.

    Raises:
        TypeError: a figure is missing, or one is not known.
    """
    known: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
    return Figures(**known)


def _percentiles(values: Floats) -> tuple[float, float]:
    """Median and 99th percentile; NaN where there is no value."""
    if len(values) == 0:
        return math.nan, math.nan
    p50, p99 = np.percentile(values, [50, 99])
    return float(p50), float(p99)


def plain(value: object) -> object:
    """The value as JSON holds it: no NaN or infinity (null), no tuples, no numpy."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def simulation_summary(result: RunResult, slo: Slo) -> object:
    """`summary.json` of one simulated run."""
    return plain(
        {
            "schema": "tuner.simulate/1",
            "objectives": asdict(slo),
            "policy": result.policy,
            "seed": result.seed,
            **asdict(figures_of(result, slo)),
        }
    )
