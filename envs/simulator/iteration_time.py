"""Seconds of an engine iteration, and of a run of identical ones: one law for every rule-set.

    t = (batch[sequences] + prefill[prompt tokens] + prefill base + per KV token x KV tokens
         + per context x pairs of a prompt token and a token before it)
        x straggler[sequences] x the env's factors / speed of the ramp x jitter

batch, prefill and straggler are tables. In a run of decodes all of it but the KV tokens stays the
same, and these grow by one per sequence and iteration; so a run remains an arithmetic series
(`run.py`) with every term and factor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.simulator import draws
from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Env, Memory, Replica
from envs.simulator.places import nth

_JITTERS = 1024
"""Runs of fewer iterations find their sigma in a table."""


def jitter_by_iterations(jitter: float) -> NDArray[np.float64]:
    """`(_JITTERS,)` sigma of the logarithm of the random factor of a run of so many iterations."""
    sigmas = np.zeros(_JITTERS)
    sigmas[1:] = jitter / np.sqrt(np.arange(1, _JITTERS))
    return sigmas


@inlined
def time_run(
    memory: Memory,
    engine: Engine,
    env: Env,
    replica: Replica,
    sequences: int,
    prefill_tokens: int,
    context_pairs: int,
    kv_tokens: int,
    iterations: int,
) -> None:
    """Set the seconds of the run's first iteration and its half slope.

    The rule-set calls it when it knows the batch and, in `replica.runs`, the number of the run;
    more than once per run is allowed and draws the same jitter.

    Args:
        sequences: in the batch, decodes and prefills, 1 to batch_size_max.
        prefill_tokens: prompt tokens of the iteration, 0 to chunk_tokens.
        context_pairs: sum over the prefilling requests of the tokens they prefill in the iteration
            x the tokens they had before it.
        kv_tokens: tokens in the cache before the run, summed over the batch.
        iterations: of the run; 1 if there are prompt tokens.
    """
    step_s = (
        memory.batch_s[nth(sequences)]
        + env.prefill * memory.prefill_s[nth(prefill_tokens)]
        + env.kv * engine.per_kv_token_s * kv_tokens
    )
    half_slope_s = 0.0
    if prefill_tokens > 0:
        prefill_s = engine.prefill_base_s + engine.per_context_s * context_pairs
        step_s += env.prefill * prefill_s
    else:
        half_slope_s = 0.5 * env.kv * engine.per_kv_token_s * sequences
    pace = memory.straggler[nth(sequences)] * env.step_time
    if replica.slot == env.slow_slot:
        pace *= env.slow
    replica.step_s = step_s * pace
    replica.half_slope_s = half_slope_s * pace
    _slow_down(memory, engine, env, replica, iterations)


@inlined
def _slow_down(memory: Memory, engine: Engine, env: Env, replica: Replica, iterations: int) -> None:
    """Stretch the run by the ramp's stage and by jitter.

    One factor of mean 1 stands for the independent ones of the run's iterations, so its sigma is
    1 / sqrt(iterations) of theirs.
    """
    for stage in range(len(memory.ramp_requests)):
        if replica.admitted <= memory.ramp_requests[nth(stage)]:
            replica.step_s /= memory.ramp_speed[nth(stage)]
            replica.half_slope_s /= memory.ramp_speed[nth(stage)]
            break
    if engine.jitter > 0.0:
        factor = _jitter(memory, engine, env, replica, iterations)
        replica.step_s *= factor
        replica.half_slope_s *= factor


@inlined
def _jitter(memory: Memory, engine: Engine, env: Env, replica: Replica, iterations: int) -> float:
    """Lognormal factor with mean 1.

    When a run ends depends on it and what happens next on that, so all that need not wait for the
    run is made before: its sigma in a table, and its draw while the run before it is timed. Made
    here instead, they would take a tenth of the time of an env step.
    """
    if iterations < _JITTERS:
        sigma = memory.jitter[nth(iterations)]
    else:
        sigma = engine.jitter / math.sqrt(float(iterations))
    number = (replica.slot << 40) + replica.runs
    if replica.noise_of != number:
        replica.noise = draws.quick_normal(env.jitter_stream, number)
    factor = math.exp(sigma * replica.noise - 0.5 * sigma * sigma)
    replica.noise = draws.quick_normal(env.jitter_stream, number + 1)
    replica.noise_of = number + 1
    return factor
