"""The rule-set `vllm-v1`: worked cases, and the compiled rules against a naive loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from envs.simulator import EnvFactors
from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tests.envs.simulator.test_exactness import assert_same_requests, cases, run_both
from tests.envs.simulator.worked import TEN_MS, Worked, check
from tuner.core.errors import ProfileError
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime

SYNC = {"async": False}


def profile(
    *,
    block_tokens: int = 16,
    blocks: int = 101,
    watermark: float = 0.0,
    prefix_cache: bool = False,
    batch: int = 4,
    chunk: int = 64,
    step_time: StepTime = TEN_MS,
    **options: bool | int,
) -> ServingProfile:
    return replace(
        PROFILE,
        scheduler="vllm-v1",
        scheduler_options={name.removesuffix("_"): value for name, value in options.items()},
        kv=KvCache(block_tokens, blocks, watermark, prefix_cache),
        limits=EngineLimits(batch, chunk),
        step_time=step_time,
    )


# Two requests decode from 14 ms on, the second ends with the step that ends at 24 ms; a third has
# waited for its place since 1 ms.
PLACE = ((0.0, 20, 8), (0.0, 20, 2), (1.0, 20, 1))
# 6 usable blocks of 4. The first takes 3 for its prompt, and a 4th with its first decode.
CHUNKS = ((0.0, 12, 4), (0.0, 16, 1))

WORKED = {
    # 64 tokens until 16.4 ms, 36 until 30: no token before the prompt is done. Decodes of 10 ms.
    "a prompt in two chunks": Worked(((0.0, 100, 3),), (30.0,), (50.0,), profile()),
    # Steps of the first: 0-12 (prompt), 12-22, 22-32, ... The second comes during step 2. It joins
    # step 4, formed at 22 while step 3 starts: 32-45. Every step is also a token of the first.
    "an arrival joins the step after the next": Worked(
        ((0.0, 20, 10), (15.0, 30, 1)), (12.0, 45.0), (105.0, 45.0), profile()
    ),
    # Step 3 takes it in: 22-35.
    "without async it joins the next": Worked(
        ((0.0, 20, 10), (15.0, 30, 1)), (12.0, 35.0), (105.0, 35.0), profile(async_=False)
    ),
    # Step 3 (24-34) is formed at 14, when the second's last token is on the way: its place is
    # taken. Step 4, formed at 24: 34-46.
    "an ended request keeps its place for a step": Worked(
        PLACE, (14.0, 14.0, 46.0), (86.0, 24.0, 46.0), profile(batch=2), batch_size=2
    ),
    # Step 3 has the third: 24-36.
    "without async it does not": Worked(
        PLACE, (14.0, 14.0, 36.0), (86.0, 24.0, 36.0), profile(batch=2, async_=False), batch_size=2
    ),
    # One place: step 3 would be formed at 12 and has nothing to compute, so the next is formed and
    # started when the first ends at 22: nothing is lost.
    "an empty step takes no time": Worked(
        ((0.0, 20, 2), (1.0, 20, 1)), (12.0, 34.0), (22.0, 34.0), profile(batch=1), batch_size=1
    ),
    # 5 usable blocks of 4, two each for the prompts (0-11.6). With its 9th token the first takes
    # the fifth; the second finds none, gives its two up, and needs three for its 9 tokens. Blocks
    # are enough when the first is done, in step 8, at 81.6. It computes 9 tokens anew (-92.5) and
    # gets its second token then, six more until 152.5. Its first token came before.
    "a preempted request computes prompt and output anew": Worked(
        ((0.0, 8, 8), (0.0, 8, 8)),
        (11.6, 11.6),
        (81.6, 152.5),
        profile(block_tokens=4, blocks=6, async_=False),
        preemptions=(0, 1),
    ),
    # Step 2 is formed, and preempts, while step 1 runs; the token of step 1 still counts.
    "a token on the way outlives a preemption": Worked(
        ((0.0, 8, 8), (0.0, 8, 8)),
        (11.6, 11.6),
        (81.6, 152.5),
        profile(block_tokens=4, blocks=6),
        preemptions=(0, 1),
    ),
    # 4 usable blocks, all taken by step 1. Step 2 is formed while it runs, and needs one for the
    # first: the second is the last of the running, though its only token is on the way.
    "an ended request is preempted before it is gone": Worked(
        ((0.0, 8, 2), (0.0, 8, 1)),
        (11.6, 11.6),
        (21.6, 11.6),
        profile(block_tokens=4, blocks=5),
        preemptions=(0, 1),
    ),
    "without async it is gone": Worked(
        ((0.0, 8, 2), (0.0, 8, 1)),
        (11.6, 11.6),
        (21.6, 11.6),
        profile(block_tokens=4, blocks=5, async_=False),
        preemptions=(0, 0),
    ),
    # A decode whose tokens still fit into its block goes on with no free block at all: 2 usable
    # blocks of 4, one each for prompts of 2 tokens (0-10.4); 2 + 2 tokens are computed at the end.
    "a decode that needs no block demands none": Worked(
        ((0.0, 2, 3), (0.0, 2, 3)),
        (10.4, 10.4),
        (30.4, 30.4),
        profile(block_tokens=4, blocks=3),
        preemptions=(0, 0),
    ),
    # The second's 16 tokens need 4 blocks; 3 are free, then 2. It enters when the first is done:
    # 0-11.2, three decodes until 41.2, then 16 tokens until 52.8.
    "all of a prompt must fit": Worked(
        CHUNKS,
        (11.2, 52.8),
        (41.2, 52.8),
        profile(block_tokens=4, blocks=7, chunk=16, async_=False),
        preemptions=(0, 0),
    ),
    # 4 tokens of the second go with the first's 12 (0-11.6), for one block. In step 2 the first
    # takes a block, and the second's other 12 tokens need 3 of the one left: it preempts itself,
    # and starts over when the first is done at 41.6. 16 tokens until 53.2.
    "or only its first chunk": Worked(
        CHUNKS,
        (11.6, 53.2),
        (41.6, 53.2),
        profile(block_tokens=4, blocks=7, chunk=16, async_=False, reserve_full_isl=False),
        preemptions=(0, 1),
    ),
    # 10 usable blocks of 4, watermark 5 of all 11. Nothing runs: 6 blocks for the first, 0-12.4.
    # The second needs 1 + 5 of 4 and waits until the first is done at 22.4.
    "the watermark holds while something runs": Worked(
        ((0.0, 24, 2), (1.0, 4, 1)),
        (12.4, 32.8),
        (22.4, 32.8),
        profile(block_tokens=4, blocks=11, watermark=0.5, async_=False),
    ),
    # Alone, all 30 tokens: 0-13. The second: 10 (13-24), 10 (24-35), 5 (35-45.5). The first decodes
    # in them, and ends with its 20th token after 16 more steps.
    "long prompts go in smaller chunks, unless alone": Worked(
        ((0.0, 30, 20), (1.0, 25, 1)),
        (13.0, 45.5),
        (205.5, 45.5),
        profile(async_=False, long_prefill_token_threshold=10),
    ),
    # Threshold 6 of 8 tokens. The first alone: 4 tokens, 0-10.4, and decodes. The second and third,
    # 9 tokens each, join at 10.4: 1 + 6 + 1 (-21.1); 1 + 3 + 4 (-31.8): the second has its only
    # token; then the third's last 4 (-42.2). The first's 5 tokens: 10.4, 21.1, 31.8, 42.2, 52.2.
    "the budget is shared in order of admission": Worked(
        ((0.0, 4, 5), (1.0, 9, 1), (1.0, 9, 1)),
        (10.4, 31.8, 42.2),
        (52.2, 31.8, 42.2),
        profile(chunk=8, async_=False, long_prefill_token_threshold=6),
    ),
    # Threshold 3 of 4 tokens. The first alone takes 4 of 9 (0-10.4). Then both: 3 + 1 (-20.8),
    # 2 + 2 (-31.2): the first decodes behind that, the second has 5 tokens left: 1 + 3 (-41.5),
    # 1 + 2 (-51.7) and its first token.
    "two prompts go side by side": Worked(
        ((0.0, 9, 4), (1.0, 8, 1)),
        (31.2, 51.7),
        (61.7, 51.7),
        profile(chunk=4, async_=False, long_prefill_token_threshold=3),
    ),
    # Whole blocks of 16, and the last token is computed always: 40 hit 32, 16 hit 16 of 17.
    "prefix hits are whole blocks before the last token": Worked(
        ((0.0, 40, 1), (100.0, 40, 1), (200.0, 17, 1), (300.0, 32, 1)),
        (10.8, 112.4, 210.1, 311.6),
        (10.8, 112.4, 210.1, 311.6),
        profile(prefix_cache=True),
        hits=(40, 31, 16, 32),
    ),
    "without a cache nothing hits": Worked(
        ((0.0, 40, 1),), (14.0,), (14.0,), profile(), hits=(40,)
    ),
    # 1 ms per KV token: none before the prompt, 10 before the first decode, 11 before the second.
    "a token counts once it is computed": Worked(
        ((0.0, 10, 3),),
        (10.0,),
        (51.0,),
        profile(step_time=StepTime(base_s=0.01, per_kv_token_s=1e-3)),
    ),
    # 16 tokens of the prompt come from the cache: 0.01 + 16 ms, then 40 and 41.
    "hits count as tokens in the cache": Worked(
        ((0.0, 40, 3),),
        (26.0,),
        (127.0,),
        profile(prefix_cache=True, step_time=StepTime(base_s=0.01, per_kv_token_s=1e-3)),
        hits=(20,),
    ),
}


@pytest.mark.parametrize("worked", WORKED.values(), ids=WORKED.keys())
def test_worked_cases(worked: Worked) -> None:
    check(worked)


@st.composite
def vllm_cases(draw: st.DrawFn) -> Case:
    """A cluster under fire, with every option and prefix hits."""
    case = draw(cases())
    options: dict[str, bool | int] = {
        "async": draw(st.booleans()),
        "reserve_full_isl": draw(st.booleans()),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 1, 5, 30])),
    }
    if draw(st.integers(0, 5)) == 0:
        options["max_queued_requests"] = draw(st.integers(1, 8))
    profile = replace(
        case.profile,
        scheduler="vllm-v1",
        scheduler_options=options,
        kv=replace(case.profile.kv, prefix_cache=draw(st.booleans())),
    )
    prompts = case.trace.prompt_tokens
    shares = draw(st.lists(st.floats(0, 1), min_size=len(prompts), max_size=len(prompts)))
    hits = np.floor(prompts * np.array(shares)).astype(np.int32)
    return replace(case, profile=profile, trace=replace(case.trace, prefix_hit_tokens=hits))


@hypothesis_settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vllm_cases())
def test_equals_the_naive_loop(case: Case) -> None:
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    # Where no start succeeds, requests wait for ever.
    assert fleet.done()[0] or case.profile.limits.batch_size_oom is not None
    event(f"async: {case.profile.scheduler_options['async']}")
    event(f"preemptions: {min(oracle.sums.preemptions, 10)}")
    event(f"rejected: {oracle.sums.rejected > 0}")


def test_refuses_what_its_queue_limit_leaves_no_room_for() -> None:
    # The third finds two that are not done, the fourth comes when both are.
    rows = [(0.0, 20, 5), (0.001, 20, 5), (0.002, 20, 5), (1.0, 20, 5)]
    case = Case(small.trace(rows), profile(max_queued_requests=2), (small.tick(),))
    fleet = small.fleet(case)
    fleet.advance(10.0)
    assert fleet.requests().rejected.tolist() == [False, False, True, False]
    assert fleet.window().rejected[0] == 1
    assert fleet.requests().replica.tolist() == [0, 0, -1, 0]


@pytest.mark.parametrize(
    ("output", "rejected"), [(40, False), (41, False), (42, True)], ids=["less", "all", "more"]
)
def test_rejects_what_would_not_end_on_an_empty_replica(output: int, rejected: bool) -> None:
    # 7 usable blocks of 16 hold 72 + 40 tokens; the last output token takes no room.
    case = Case(small.trace([(0.0, 72, output)]), profile(blocks=8), (small.tick(),))
    fleet = small.fleet(case)
    fleet.advance(10.0)
    assert fleet.requests().rejected.tolist() == [rejected]
    assert fleet.done()[0]


@pytest.mark.parametrize(
    ("factor", "ttft_s"), [(0.0, 0.0140), (0.5, 0.0124), (1.0, 0.0108), (3.0, 0.0108)]
)
def test_the_factor_on_prefix_hits_counts_before_the_blocks(factor: float, ttft_s: float) -> None:
    # 38 of 40 tokens would hit: two blocks of 16; half of them is one; three times is no more.
    case = Case(small.trace([(0.0, 40, 1)], hits=[38]), profile(prefix_cache=True), (small.tick(),))
    fleet = small.fleet(case)
    fleet.reset(
        slice(None),
        start_s=0.0,
        seeds=np.zeros(1, np.uint64),
        settings=small.settings(small.tick()),
        factors=replace(EnvFactors.none(1), prefix_hits=np.full(1, factor)),
    )
    fleet.advance(1.0)
    assert fleet.requests().ttft_s[0] == pytest.approx(ttft_s, abs=1e-12)


@pytest.mark.parametrize(
    ("scheduler", "options", "words"),
    [
        ("vllm-v1", {"asnyc": True}, "asnyc is unknown to vllm-v1; did you mean 'async'"),
        ("vllm-v1", {"policy": 1}, "policy is unknown to vllm-v1; expected one of: async, long_"),
        ("vllm-v1", {"async": 1}, "async is 1; expected true or false"),
        ("vllm-v1", {"long_prefill_token_threshold": -1}, "is -1; expected a whole number of at"),
        ("vllm-v1", {"long_prefill_token_threshold": 2.5}, "is 2.5; expected a whole number"),
        ("vllm-v1", {"max_queued_requests": 0}, "at least 1, or leave it out for no limit"),
        ("vidur-sarathi", {"async": True}, "async is unknown; vidur-sarathi has no options"),
    ],
    ids=["typo", "unknown", "flag", "below", "fraction", "no limit", "none"],
)
def test_refuses_options_it_does_not_know(
    scheduler: str, options: dict[str, bool | int | float], words: str
) -> None:
    bad = replace(PROFILE, scheduler=scheduler, scheduler_options=options)
    with pytest.raises(ProfileError, match=words):
        small.fleet(Case(small.trace([(0.0, 5, 3)]), bad, (small.tick(),)))


def test_refuses_with_all_mistakes_at_once() -> None:
    bad = profile(batch=128, asnyc=True, reserve_full_isl=2)
    with pytest.raises(ProfileError, match=r"asnyc(.|\n)*reserve_full_isl(.|\n)*chunk_tokens"):
        small.fleet(Case(small.trace([(0.0, 5, 3)]), bad, (small.tick(),)))
