"""How long a replica takes to start: stages, warm-up requests, and the wait after a crash.

A container restarts in place, as Kubernetes' `restartPolicy: Always` has it: node and image are
there, weights and compilation come anew. After the first crash in a row at once, then after 10 s,
doubling to 5 minutes; a container that ran for 10 minutes begins a new row (Kubernetes
documentation, Pod Lifecycle, "How Pods handle problems with containers").
"""

from __future__ import annotations

import math

from envs.simulator import draws
from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine, Env, Memory, Replica
from envs.simulator.places import nth

SCHEDULE, WEIGHTS, COMPILE, STAGES = 0, 2, 3, 4
"""Rows of `Memory.stages`, and their number."""

FIRST_BACK_OFF_S = 10.0
LONGEST_BACK_OFF_S = 300.0
_MOST_DOUBLINGS = 5
"""10 s x 2^5 is beyond the longest."""
FRESH_AFTER_S = 600.0
"""A container that has run so long has no crashes behind it."""


@inlined
def stages_s(memory: Memory, env: Env, number: int, first: int, last: int) -> float:
    """Seconds of the stages first..last - 1 of the env's start of that number."""
    total_s = 0.0
    for place in range(first, last):
        stage = memory.stages[nth(place)]
        draw = draws.truncated_normal(env.seed, draws.COLD_START, number * STAGES + place)
        total_s += stage.median_s * math.exp(stage.spread * draw)
    return total_s * env.cold_start


@inlined
def warm_up_s(memory: Memory, engine: Engine, warmups: int) -> float:
    """Seconds that so many warm-up requests take, one after the other, up the ramp."""
    at_full_speed = 0.0
    counted = 0
    for stage in range(len(memory.ramp_requests)):
        reached = min(warmups, memory.ramp_requests[nth(stage)])
        at_full_speed += (reached - counted) / memory.ramp_speed[nth(stage)]
        counted = reached
    return (at_full_speed + (warmups - counted)) * engine.warmup_request_s


@inlined
def count_crash(replica: Replica, at_s: float) -> None:
    """One crash more in a row, or the first of a new one."""
    if at_s - replica.container_s >= FRESH_AFTER_S:
        replica.crashes = 0
    replica.crashes += 1


@inlined
def back_off_s(crashes: int) -> float:
    """Seconds before a container restarts after so many crashes in a row, none for 0 and 1."""
    if crashes < 2:
        return 0.0
    doublings = min(crashes - 2, _MOST_DOUBLINGS)
    return min(FIRST_BACK_OFF_S * 2.0**doublings, LONGEST_BACK_OFF_S)
