"""A closed loop: clients that send their next request when the last one has ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tuner.core.profile import EngineLimits, KvCache, StepTime

ROOMY = replace(
    PROFILE,
    kv=KvCache(block_tokens=16, blocks=31_000),
    limits=EngineLimits(batch_size_max=8, chunk_tokens=2048),
    step_time=StepTime(
        per_prefill_token_s=2e-5,
        per_kv_token_s=2e-8,
        prefill_base_s=0.05,
        batch_table=((1, 0.0085), (4, 0.0096), (8, 0.011)),
    ),
)


def served(clients: int, rows: list[tuple[int, int]], **changes: object):
    case = Case(
        trace=small.trace([(100.0 * i, *row) for i, row in enumerate(rows)]),
        profile=ROOMY,
        ticks=(small.tick(),),
        clients=clients,
    )
    fleet = small.fleet(replace(case, **changes))
    fleet.advance(case.end_s)
    assert fleet.done()[0]
    return fleet.requests()


def test_one_client_waits_for_its_own_prompt_only() -> None:
    seen = served(1, [(100, 3), (3000, 2)])
    alone = 0.0085
    first = alone + 0.05 + 100 * 2e-5
    # 3,000 tokens take two iterations of 2,048 at most; the second reads what the first left.
    second = 2 * (alone + 0.05) + 3000 * 2e-5 + 2048 * 2e-8
    assert seen.ttft_s == pytest.approx([first, second], rel=1e-12)
    decodes = [alone + 101 * 2e-8, alone + 102 * 2e-8]
    assert seen.tpot_s == pytest.approx([np.mean(decodes), alone + 3001 * 2e-8], rel=1e-12)


def test_a_client_sends_its_next_request_when_the_last_is_answered() -> None:
    one, two = served(1, [(100, 50)] * 6), served(2, [(100, 50)] * 6)
    np.testing.assert_allclose(one.ttft_s, one.ttft_s[0])  # never more than one in the replica
    np.testing.assert_allclose(two.ttft_s, two.ttft_s[0])  # always the same pair
    assert two.ttft_s[0] > one.ttft_s[0]


def test_clients_go_on_after_a_request_that_no_replica_can_hold() -> None:
    seen = served(1, [(100, 5), (600_000, 5), (100, 5)])
    np.testing.assert_array_equal(seen.rejected, [False, True, False])
    assert np.isfinite(seen.e2e_s[[0, 2]]).all()


def test_more_clients_than_a_batch_keep_a_queue() -> None:
    # Identical requests in lock-step: the ninth waits for the first eight to end.
    seen = served(9, [(100, 50)] * 9)
    np.testing.assert_allclose(seen.ttft_s[8] - seen.ttft_s[0], seen.e2e_s[0], rtol=0.5)
    assert (seen.ttft_s[:8] < seen.e2e_s[0]).all()
    assert seen.ttft_s[8] > seen.e2e_s[0]


def test_refuses_fewer_than_no_clients() -> None:
    with pytest.raises(ValueError, match="clients is -1"):
        served(-1, [(100, 5)])
