"""Closed form of a run of k identical decode iterations.

The batch is the same B decoding requests; S, the KV tokens, grows by B per iteration, so iteration
j (0-based) takes `step_s + 2 j half_slope_s` and the run lasts D(k) = k step_s +
half_slope_s k (k - 1).
"""

from __future__ import annotations

import math

from envs.simulator.blocks import full_blocks, in_block
from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Memory, Replica
from envs.simulator.places import nth


@inlined
def border_s(replica: Replica, iterations: int) -> float:
    """When so many iterations of the run have ended."""
    k = float(iterations)
    return replica.start_s + k * (replica.step_s + replica.half_slope_s * (k - 1.0))


@inlined
def _iterations_around(replica: Replica, at_s: float) -> int:
    """Iterations that end by `at_s`, up to rounding: positive root of D(k) = at_s - start_s.

    In the form without a difference of near-equal numbers, which also holds for a slope of 0.
    """
    elapsed_s = at_s - replica.start_s
    b = replica.step_s - replica.half_slope_s
    return int(2.0 * elapsed_s / (b + math.sqrt(b * b + 4.0 * replica.half_slope_s * elapsed_s)))


@inlined
def ended_by(replica: Replica, at_s: float) -> int:
    """Largest k within the run with its k-th border <= at_s; at_s >= the run's start."""
    if replica.prefill_tokens > 0 or replica.iterations <= 1:
        return 0 if border_s(replica, 1) > at_s else replica.iterations
    k = min(_iterations_around(replica, at_s), replica.iterations)
    while k < replica.iterations and border_s(replica, k + 1) <= at_s:
        k += 1
    while k > 0 and border_s(replica, k) > at_s:
        k -= 1
    return k


@inlined
def tokens_so_far(replica: Replica, at_s: float) -> int:
    """New output tokens that the run, if any, has given by `at_s`, before it is accounted for."""
    if replica.running == 0:
        return 0
    return ended_by(replica, at_s) * (replica.decoding - replica.repeating)


@inlined
def first_border(replica: Replica, at_s: float, strictly_after_s: float) -> int:
    """Smallest k >= 1 with the run's k-th border at or after `at_s` and after `strictly_after_s`;
    the run's length if all its borders lie before."""
    if border_s(replica, 1) >= at_s:
        k = 1
    else:
        k = min(_iterations_around(replica, at_s), replica.iterations)
        while k > 1 and border_s(replica, k - 1) >= at_s:
            k -= 1
        while k < replica.iterations and border_s(replica, k) < at_s:
            k += 1
    while k < replica.iterations and border_s(replica, k) <= strictly_after_s:
        k += 1
    return k


@inlined
def cut_to(memory: Memory, replica: Replica, iterations: int) -> None:
    """End a run of decodes after so many iterations, if it is longer."""
    if iterations < replica.iterations:
        replica.iterations = iterations
        memory.due_s[nth(replica.index)] = border_s(replica, iterations)


@inlined
def cut_at(memory: Memory, replica: Replica, at_s: float, strictly_after_s: float) -> None:
    """End a run of decodes at its first border at or after `at_s` and after `strictly_after_s`."""
    cut_to(memory, replica, first_border(replica, at_s, strictly_after_s))


@inlined
def new_blocks(memory: Memory, engine: Engine, replica: Replica, step: int, iterations: int) -> int:
    """KV blocks that the decodes take in the iterations step, step + 1, ..., while all go on.

    A decoding request takes a block in the iteration that finds its `done` at 1 modulo
    block_tokens, so in any block_tokens iterations every request takes one.
    """
    if iterations <= 0:
        return 0
    size = engine.block_tokens
    blocks = full_blocks(engine, iterations) * replica.decoding
    rest = in_block(engine, iterations)
    residue = in_block(engine, 1 - step)
    for _ in range(rest):
        blocks += memory.residues[nth(replica.residue_base + residue)]
        residue = residue - 1 if residue > 0 else size - 1
    return blocks


@inlined
def iterations_that_fit(
    memory: Memory, engine: Engine, replica: Replica, most: int, spare: int
) -> int:
    """Iterations, up to `most`, whose decodes take no more than `spare` blocks in all.

    The first one runs already and has its blocks.
    """
    size = engine.block_tokens
    if (full_blocks(engine, most - 1) + 1) * replica.decoding <= spare:
        return most
    if spare < 0:
        return 1
    rounds = spare // replica.decoding
    left = spare - rounds * replica.decoding
    fit = 1 + rounds * size
    residue = in_block(engine, 1 - (replica.steps + fit))
    while fit < most:
        left -= memory.residues[nth(replica.residue_base + residue)]
        if left < 0:
            break
        fit += 1
        residue = residue - 1 if residue > 0 else size - 1
    return min(fit, most)
