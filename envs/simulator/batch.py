"""The batch of a replica: the bookkeeping that every rule-set needs."""

from __future__ import annotations

import math

import numpy as np

from envs.simulator.blocks import in_block
from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Env, Flight, Memory, Replica
from envs.simulator.places import flight_in, nth


@inlined
def flight_at(memory: Memory, env: Env, replica: Replica, position: int) -> Flight:
    """The request in that position of the batch."""
    return flight_in(memory, env, memory.batch[nth(replica.lane + position)])


@inlined
def count_decode(memory: Memory, engine: Engine, replica: Replica, offset: int) -> None:
    """One more request decodes, with `steps + offset` tokens done."""
    memory.residues[nth(replica.residue_base + in_block(engine, offset))] += 1
    replica.offsets += offset
    replica.decoding += 1


@inlined
def uncount_decode(memory: Memory, engine: Engine, replica: Replica, offset: int) -> None:
    """A request with that offset decodes no more."""
    memory.residues[nth(replica.residue_base + in_block(engine, offset))] -= 1
    replica.offsets -= offset
    replica.decoding -= 1


@inlined
def smallest_end(memory: Memory, replica: Replica, positions: int) -> int:
    """The smallest of the first so many `batch_ends`."""
    smallest = np.int32(2**31 - 1)
    for position in range(replica.lane, replica.lane + positions):
        smallest = min(smallest, memory.batch_ends[nth(position)])
    return int(smallest)


@inlined
def rest(memory: Memory, env: Env, replica: Replica) -> None:
    """Nothing runs: sleep until the head leaves the frontend, or a request comes."""
    if replica.busy_since_s >= 0.0:
        env.window_busy_s += replica.start_s - replica.busy_since_s
        replica.busy_since_s = -1.0
    memory.due_s[nth(replica.index)] = math.inf
    if replica.queue_depth > 0:
        head = flight_in(memory, env, replica.queue_head)
        if head.visible_s > replica.start_s:
            memory.due_s[nth(replica.index)] = head.visible_s
