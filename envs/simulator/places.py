"""Where in the arrays of `Memory` a record or a number is.

Numba lets a signed index count from the end, as Python does. That costs a load, a comparison and a
selection at every access, an eighth of the time of an env step; an unsigned index does without. No
place in `Memory` is negative.
"""

from __future__ import annotations

import numpy as np

from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Env, Flight, Memory, Replica


@inlined
def nth(place: int) -> np.uintp:
    """An index that is known not to be negative; only to stand between brackets."""
    return np.uintp(place)


@inlined
def replica_in(memory: Memory, engine: Engine, env: Env, slot: int) -> Replica:
    """What is in that slot of the env."""
    replica: Replica = memory.replicas[nth(env.index * engine.slots + slot)]
    return replica


@inlined
def flight_in(memory: Memory, env: Env, entry: int) -> Flight:
    """The request in that entry of the env's pool."""
    flight: Flight = memory.flights[nth(env.flight_base + entry)]
    return flight
