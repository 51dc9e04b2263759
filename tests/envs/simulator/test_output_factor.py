"""Longer or shorter outputs in one env: as if the trace had been written so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.simulator import Fleet
from envs.simulator.fleet import EnvFactors
from tests.envs.simulator import small
from tests.envs.simulator.test_determinism import busy_case
from tuner.core.trace import Trace

FACTORS = (1.0, 0.8, 1.2, 0.004, 9.0)


def outcomes(fleet: Fleet, n: int, factors: EnvFactors | None) -> list[list[np.ndarray]]:
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=np.full(n, 7, np.uint64),
        settings=small.settings(small.tick(replicas=2, threads=2), n),
        factors=factors,
    )
    fleet.advance(3000.0)
    window = fleet.window()
    return [
        [*vars(fleet.requests(env)).values(), window.output_tokens[env], window.rejected[env]]
        for env in range(n)
    ]


def fleet_of(trace: Trace, n: int) -> Fleet:
    case = replace(busy_case(count=400), trace=trace)
    return Fleet(
        trace,
        case.profile,
        seeds=np.full(n, 7, np.uint64),
        slots=case.slots,
        record=True,
        jitter=0.1,
    )


def test_an_env_with_longer_outputs_is_one_whose_trace_has_them() -> None:
    """The longest ones no longer fit into a replica, and are rejected in both."""
    trace = busy_case(count=400).trace
    n = len(FACTORS)
    factors = replace(EnvFactors.none(n), output_tokens=np.array(FACTORS))
    mine = outcomes(fleet_of(trace, n), n, factors)
    for env, factor in enumerate(FACTORS):
        outputs = np.maximum(1, np.floor(trace.output_tokens * factor + 0.5)).astype(np.int32)
        scaled = replace(trace, output_tokens=outputs)
        (theirs,) = outcomes(fleet_of(scaled, 1), 1, None)
        for one, other in zip(mine[env], theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    rejected = [int(env[-1]) for env in mine]
    served = [int(env[-2]) for env in mine]
    assert rejected[FACTORS.index(9.0)] > 0 == rejected[0]
    assert served[FACTORS.index(0.004)] == len(trace)
