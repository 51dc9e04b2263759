"""The frontend's arithmetic, worked by hand: one request at a time, and more than it can stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.simulator import RequestColumns
from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import Frontend, ServingProfile, StepTime

PACE_S = 0.01
"""Seconds of every iteration."""


def profile(**frontend: float) -> ServingProfile:
    return replace(
        PROFILE,
        step_time=StepTime(base_s=PACE_S),
        frontend=Frontend(cores=2, **frontend),  # type: ignore[arg-type]
    )


def requests(
    rows: list[tuple[float, int, int]], served: ServingProfile, threads: int = 1
) -> RequestColumns:
    fleet = small.fleet(Case(small.trace(rows), served, (small.tick(threads=threads),)))
    fleet.advance(100.0)
    return fleet.requests()


def test_a_request_pays_its_way_in_and_its_tokens_their_way_out() -> None:
    served = profile(
        ingress_s=0.0156, per_request_s=0.002, per_token_s=1e-4, per_output_token_s=0.001
    )
    seen = requests([(0.5, 10, 21)], served)
    into_s = 0.002 + 10 * 1e-4 + 0.0156
    assert seen.ttft_s[0] == pytest.approx(into_s + PACE_S + 0.001)
    assert seen.e2e_s[0] == pytest.approx(into_s + 21 * PACE_S + 0.001)
    assert seen.tpot_s[0] == pytest.approx(PACE_S)


@pytest.mark.parametrize(
    ("threads", "token_s"),
    [(1, 0.004), (2, 0.002), (4, 0.002)],
    ids=["one worker", "two share the tokens", "four on two cores do not do more"],
)
def test_workers_share_the_tokens_of_an_iteration_and_the_cores(
    threads: int, token_s: float
) -> None:
    seen = requests([(0.5, 10, 21)], profile(per_output_token_s=0.004), threads)
    assert seen.e2e_s[0] == pytest.approx(21 * PACE_S + token_s)


def test_more_threads_than_cores_slow_a_single_request_down() -> None:
    served = profile(per_request_s=0.002, per_output_token_s=0.001)
    seen = requests([(0.5, 10, 1)], served, threads=6)
    assert seen.ttft_s[0] == pytest.approx(3 * 0.002 + PACE_S + 3 * 0.001)
    assert seen.e2e_s[0] == seen.ttft_s[0]


def test_streaming_that_lasts_longer_than_an_iteration_piles_up() -> None:
    # The engine gives a token every 10 ms, one worker streams one in 15 ms.
    seen = requests([(0.5, 10, 101)], profile(per_output_token_s=0.015))
    assert seen.ttft_s[0] == pytest.approx(PACE_S + 0.015)
    assert seen.e2e_s[0] == pytest.approx(PACE_S + 101 * 0.015)
    assert seen.tpot_s[0] == pytest.approx(0.015)


def test_a_request_waits_behind_the_tokens_that_came_before_it() -> None:
    served = profile(per_request_s=0.001, per_output_token_s=0.015)
    # Of the first one's run, 20 iterations have ended by then: one prefill and 19 decodes.
    seen = requests([(0.0, 10, 101), (0.001 + 20.5 * PACE_S, 11, 1)], served)
    queued_s = 20 * 0.015 - 19.5 * PACE_S
    border_s = np.ceil((20.5 * PACE_S + queued_s + 0.001) / PACE_S) * PACE_S
    assert border_s < 101 * PACE_S
    waited_s = border_s + PACE_S - 20.5 * PACE_S
    given = 1 + round(border_s / PACE_S)
    backlog_s = PACE_S + (given + 1) * 0.015 + 0.001 - (border_s + PACE_S)
    assert seen.ttft_s[1] == pytest.approx(waited_s + backlog_s)


def test_the_engine_does_not_wait_for_the_streaming() -> None:
    case = Case(
        small.trace([(0.0, 10, 50)]), profile(per_output_token_s=0.05), (small.tick(threads=2),)
    )
    fleet = small.fleet(case)
    fleet.advance(50.5 * PACE_S)
    assert fleet.done()[0]
    assert fleet.gauges().running[0] == 0
    # The first token takes one worker 50 ms, each of the 49 others takes both 25 ms.
    assert fleet.requests().e2e_s[0] == pytest.approx(PACE_S + 0.05 + 49 * 0.025)
