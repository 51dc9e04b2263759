"""Fleets and loads of a scenario: another cold start, another unit, bursts, more or less load."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from envs.workloads import WORKLOADS
from envs.workloads.edits import overlaid, phase_shifted, thinned
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile, Stage, Stages, Startup, StepTime
from tuner.core.trace import Trace

Burst = Literal["none", "short", "long"]

BURST_FACTOR = 2.0
"""Load within a burst, in loads outside of it: what a product launch or a retry storm brings, and
more than any headroom that somebody would pay for all day."""
SHORT_S, LONG_S = 30.0, 600.0
"""Least length of a short and of a long burst, s: where replicas start at once, something still has
to be shorter or longer than a tick."""
SHORT, LONG = 0.5, 3.0
"""Length of a short and of a long burst, in cold starts."""
REST = 4.0
"""Time from one burst to the next, in lengths of a long one: by then its traces have gone."""


def with_cold_start(profile: ServingProfile, cold_start_s: float) -> ServingProfile:
    """The profile with another cold start: its stages stretched, or as one where it has none.

    Args:
        profile: whose stages share the new whole as they share the old one.
        cold_start_s: sum of the stages' medians, s, >= 0.
    """
    startup = profile.startup or Startup()
    whole_s = startup.stages.sum_s
    if whole_s > 0:
        stretch = cold_start_s / whole_s
        stages = Stages(
            *(
                replace(stage, median_s=stage.median_s * stretch)
                for stage in (
                    startup.stages.schedule,
                    startup.stages.image,
                    startup.stages.weights,
                    startup.stages.compile,
                )
            )
        )
    else:
        stages = Stages(weights=Stage(cold_start_s))
    return replace(profile, startup=replace(startup, stages=stages))


def of_unit(profile: ServingProfile, gpus: int) -> ServingProfile:
    """The profile of a replica of so many GPUs: as many of the given one's working as one.

    A unit of k times the GPUs takes k times the sequences, prompt tokens and cache in the time of
    one iteration. That is perfect scaling, which no engine reaches; it sets apart what the size of
    the unit does to scaling, and nothing else.

    Raises:
        ConfigError: a replica of so few GPUs would hold no sequence or no prompt.
    """
    ratio = gpus / profile.gpus_per_replica
    if ratio == 1:
        return profile
    limits, law = profile.limits, profile.step_time
    blocks = round(profile.kv.blocks * ratio)
    sequences = round(limits.batch_size_max * ratio)
    chunk = round(limits.chunk_tokens * ratio)
    if min(blocks, sequences, chunk) < 1:
        raise ConfigError(
            f"gpus_per_replica {gpus}: an n-th of {profile.name} ({profile.gpus_per_replica} GPUs, "
            f"{limits.batch_size_max} sequences) holds no sequence; take a larger unit"
        )
    oom = limits.batch_size_oom
    return replace(
        profile,
        name=f"{profile.name}-as-{gpus}-gpus",
        gpus_per_replica=gpus,
        kv=replace(profile.kv, blocks=blocks),
        limits=replace(
            limits,
            batch_size_max=sequences,
            chunk_tokens=chunk,
            batch_size_oom=None if oom is None else max(1, round(oom * ratio)),
        ),
        step_time=_shared(law, ratio),
        assumed=(*profile.assumed, "gpus_per_replica"),
    )


def _shared(law: StepTime, ratio: float) -> StepTime:
    """The law of `ratio` replicas that share every iteration's work."""
    return replace(
        law,
        per_prefill_token_s=law.per_prefill_token_s / ratio,
        per_sequence_s=law.per_sequence_s / ratio,
        per_kv_token_s=law.per_kv_token_s / ratio,
        per_context_s=law.per_context_s / ratio,
        batch_table=_stretched(law.batch_table, ratio),
        prefill_table=_stretched(law.prefill_table, ratio),
        straggler=_stretched(law.straggler, ratio),
    )


def _stretched(table: tuple[tuple[int, float], ...], ratio: float) -> tuple[tuple[int, float], ...]:
    """The table with its sizes times ratio; of sizes that become one, the largest stands."""
    points = {max(1, round(size * ratio)): value for size, value in table}
    return tuple(sorted(points.items()))


def scaled(trace: Trace, factor: float, seed: int) -> Trace:
    """More or less load of the same kind.

    Below 1 requests are left out by chance; above 1 the trace is laid over copies of itself an
    hour and more apart, so that the sum keeps its shape and no surge is simply doubled.

    Raises:
        ConfigError: the factor is not above 0, or nothing would be left.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"load_scale is {factor}; expected above 0")
    if factor == 1:
        return trace
    if factor < 1:
        return thinned(trace, factor, seed)
    copies = [trace]
    whole, rest = int(factor), factor - int(factor)
    for number in range(1, whole + (rest > 0)):
        copy = _rotated(trace, 3600.0 * number)
        copies.append(copy if number < whole else thinned(copy, rest, seed))
    return overlaid(copies)


def _rotated(trace: Trace, shift_s: float) -> Trace:
    """The trace with its beginning moved to its end."""
    if trace.gaps:
        return phase_shifted(trace, shift_s)
    span_s = trace.last_arrival_s + 1e-9
    arrival_s = (trace.arrival_s + shift_s) % span_s
    order = np.argsort(arrival_s, kind="stable")
    columns: dict[str, Any] = {name: column[order] for name, column in trace.columns().items()}
    columns["arrival_s"] = arrival_s[order]
    return replace(trace, **columns)


def burst_s(burst: Burst, cold_start_s: float) -> float:
    """Length of a burst that is shorter or longer than the cold start, s; 0 for none."""
    if burst == "none":
        return 0.0
    if burst == "short":
        return max(SHORT_S, SHORT * cold_start_s)
    return max(LONG_S, LONG * cold_start_s)


def generated(
    workload: str,
    *,
    hours: float,
    qps: float,
    seed: int,
    burst: Burst = "none",
    cold_start_s: float = 0.0,
) -> Trace:
    """A built-in workload, with bursts of the same kind of requests laid over it.

    Bursts come once every REST lengths of a long one, each at a time drawn within its share, and
    hold BURST_FACTOR times the load. Short and long ones come equally often, so that only their
    length differs.

    Raises:
        ConfigError: an argument is out of its range, or the time holds no burst.
    """
    base = WORKLOADS[workload](hours, seed, qps)
    length_s = burst_s(burst, cold_start_s)
    if length_s == 0:
        return replace(base, name=f"{workload}, seed {seed}")
    end_s = 3600.0 * hours
    every_s = REST * burst_s("long", cold_start_s)
    count = int(end_s / every_s)
    if count == 0:
        raise ConfigError(
            f"hours is {hours:g}: bursts for a cold start of {cold_start_s:g} s come every "
            f"{every_s / 3600:g} h; take at least so long a load"
        )
    rng = np.random.default_rng([seed, round(length_s)])
    room_s = end_s / count - length_s
    begins_s = end_s / count * np.arange(count) + rng.uniform(0.0, room_s, count)
    more = WORKLOADS[workload](hours, seed + 1_000_000, qps * (BURST_FACTOR - 1))
    begun = np.searchsorted(begins_s, more.arrival_s, side="right") - 1
    inside = (begun >= 0) & (more.arrival_s < begins_s[np.maximum(begun, 0)] + length_s)
    whole = overlaid([base, more.take(inside)]) if inside.any() else base
    return replace(whole, name=f"{workload} with {burst} bursts, seed {seed}")
