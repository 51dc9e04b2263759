"""The rule-set `sglang`: worked cases, and the compiled rules against a naive loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.envs.simulator import small
from tests.envs.simulator.small import PROFILE, Case
from tests.envs.simulator.test_exactness import assert_same_requests, cases, run_both
from tests.envs.simulator.worked import TEN_MS, Worked, check
from tuner.core.errors import ProfileError
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.core.trace import Trace


def profile(
    *,
    block_tokens: int = 16,
    blocks: int = 101,
    prefix_cache: bool = False,
    batch: int = 4,
    chunk: int = 64,
    step_time: StepTime = TEN_MS,
    **options: bool | int | float,
) -> ServingProfile:
    return replace(
        PROFILE,
        scheduler="sglang",
        scheduler_options={"max_new_tokens": 16, **options},
        kv=KvCache(block_tokens, blocks, prefix_cache=prefix_cache),
        limits=EngineLimits(batch, chunk),
        step_time=step_time,
    )


# Two requests decode from 14 ms on, the second ends with the iteration that ends at 24 ms; a third
# has waited for its place since 1 ms. The first stands still while the third prefills.
PLACE = ((0.0, 20, 8), (0.0, 20, 2), (1.0, 20, 1))

WORKED = {
    # 64 tokens until 16.4 ms, 36 until 30: no token before the prompt is done. Decodes of 10 ms.
    "a prompt in two chunks": Worked(((0.0, 100, 3),), (30.0,), (50.0,), profile()),
    # Iterations of the first: 0-12 (prompt), 12-22, 22-32. The second comes during the second of
    # them and is in the fourth, 32-45. The first goes on from there, 45-55.
    "decodes stand still while others prefill": Worked(
        ((0.0, 20, 4), (15.0, 30, 1)), (12.0, 45.0), (55.0, 45.0), profile()
    ),
    # In the third, 22-35. The first's third token at 45.
    "without overlap it joins the next": Worked(
        ((0.0, 20, 4), (15.0, 30, 1)), (12.0, 35.0), (55.0, 35.0), profile(overlap=False)
    ),
    # The third iteration, 24-34, is formed at 14, when the second still holds its place. The
    # fourth, formed at 24, takes the third in: 34-46. The first's last five tokens until 96.
    "an ended request keeps its place for a batch": Worked(
        PLACE, (14.0, 14.0, 46.0), (96.0, 24.0, 46.0), profile(batch=2), batch_size=2
    ),
    "without overlap it does not": Worked(
        PLACE, (14.0, 14.0, 36.0), (96.0, 24.0, 36.0), profile(batch=2, overlap=False), batch_size=2
    ),
    # The third batch is to be formed at 12, when the only place is taken and the end of who has it
    # foreseen. It is formed anew when the first ends at 22: nothing is lost.
    "a batch of nothing takes no time": Worked(
        ((0.0, 20, 2), (1.0, 20, 1)), (12.0, 34.0), (22.0, 34.0), profile(batch=1), batch_size=1
    ),
    # 48 tokens in whole pages of 16: 20 count as 32, so the second gets 16 of its 30 (0-13.6). Its
    # other 14 go alone, -25. Then the first decodes.
    "prefills count in whole pages": Worked(
        ((0.0, 20, 3), (0.0, 30, 1)),
        (13.6, 25.0),
        (45.0, 25.0),
        profile(chunk=48, overlap=False),
    ),
    # 16 and 16 tokens are more than 20: the third waits for 13.2.
    "max_prefill_tokens ends a batch once it is reached": Worked(
        ((0.0, 16, 1), (0.0, 16, 1), (0.0, 16, 1)),
        (13.2, 13.2, 24.8),
        (13.2, 13.2, 24.8),
        profile(max_prefill_tokens=20, overlap=False),
    ),
    # Of 1,616 tokens of cache a request may ask for 1,616 - 32 - 17 = 1,567 at most: the second
    # finds no room for 20 + 1,567 + 16 before the first is gone at 32.
    "what is asked for counts, not what comes": Worked(
        ((0.0, 20, 3), (0.0, 20, 3)),
        (12.0, 44.0),
        (32.0, 64.0),
        profile(max_new_tokens=4096, overlap=False),
    ),
    "less asked for leaves room": Worked(
        ((0.0, 20, 3), (0.0, 20, 3)),
        (14.0, 14.0),
        (34.0, 34.0),
        profile(max_new_tokens=64, overlap=False),
    ),
    # 40 tokens of cache, 8 asked for. The first counts for 8 + 8 + 4, so 20 are left. The second
    # needs 16 + 8 + 4; at 10.8, when the first holds 8 and keeps 7 x 0.7 free, there are 27.1. It
    # waits until 80.8, and so does the third, which needs 2 + 8 + 4 and would have fitted. Behind
    # the second it finds 40 - 28. At 92.4, when that one holds 16 and keeps 7 x 0.693 free, it
    # fits.
    "the first that does not fit ends the scan": Worked(
        ((0.0, 8, 8), (0.0, 16, 8), (0.0, 2, 2)),
        (10.8, 92.4, 102.6),
        (80.8, 172.6, 112.6),
        profile(block_tokens=4, blocks=10, max_new_tokens=8, overlap=False),
    ),
    # 40 tokens of cache. At 10.8 the first holds 8 and keeps 7 x 0.7 free, which leaves 27.1: the
    # second needs 13 + 8 + 4, but then counts for 16 + 8 + 4. So the engine is full when the third
    # comes; at 22.1 it would find 6.2 for its 1 + 1 + 4, but nobody asks before both end at 92.1.
    "full is who has no token left": Worked(
        ((0.0, 8, 8), (1.0, 13, 8), (15.0, 1, 1)),
        (10.8, 22.1, 102.2),
        (92.1, 92.1, 102.2),
        profile(block_tokens=4, blocks=10, max_new_tokens=1, overlap=False),
    ),
    # 100 tokens of cache; the ratio starts at 1 and falls by 0.0014 per decode. When the second
    # asks, at 20.8, the first holds 12 and keeps 58 x 0.9986 free: 30.1 are left, 8 + 20 + 4 are
    # needed. At 50.8 there would be 33.3, but nobody asks before the first ends at 10.8 + 59 x 10.
    "the falling ratio lets nobody in by itself": Worked(
        ((0.0, 8, 60), (15.0, 8, 20)),
        (10.8, 611.6),
        (600.8, 801.6),
        profile(
            block_tokens=4,
            blocks=25,
            max_new_tokens=1,
            schedule_conservativeness=3.0,
            overlap=False,
        ),
    ),
    # 7 pages of 4. The second needs 8 + 7 + 4 < 20 - 7 x 0.007 and prefills 10.8-21.6. After four
    # decodes, at 61.6, both hold 3 pages and need one each of the one that is left. Both have 5
    # tokens and the same prompt: the last goes, with 13 tokens to prefill, and waits for 13 + 2 + 4
    # until the first ends at 91.6. 13 tokens until 102.9, the seventh token at 112.9.
    "a retracted request prefills prompt and output": Worked(
        ((0.0, 8, 8), (1.0, 8, 7)),
        (10.8, 21.6),
        (91.6, 112.9),
        profile(
            block_tokens=4,
            blocks=7,
            max_new_tokens=1,
            schedule_conservativeness=0.01,
            overlap=False,
        ),
        preemptions=(0, 1),
    ),
    # The first: 0-10.4, a decode until 20.4, the second's prefill until 30.8, then both decode. At
    # 100.8 the batch behind the one that ends at 110.8 is formed: they will hold 4 and 3 pages of
    # 7, and the second needs a fourth. It has 8 tokens, the first 9. Its token of 110.8 is lost.
    # The first's twelfth comes at 130.8; then 4 + 8 tokens until 142, and the tenth token at 152.
    "a token on the way is lost with a retraction": Worked(
        ((0.0, 4, 12), (1.0, 4, 10)),
        (10.4, 30.8),
        (130.8, 152.0),
        profile(block_tokens=4, blocks=7, max_new_tokens=1, schedule_conservativeness=0.01),
        preemptions=(0, 1),
    ),
    # Whole pages of 16, and the last token is computed always: 40 hit 32, 16 hit 16 of 17.
    "prefix hits are whole pages before the last token": Worked(
        ((0.0, 40, 1), (100.0, 40, 1), (200.0, 17, 1), (300.0, 32, 1)),
        (10.8, 112.4, 210.1, 311.6),
        (10.8, 112.4, 210.1, 311.6),
        profile(prefix_cache=True),
        hits=(40, 31, 16, 32),
    ),
    # 1 ms per KV token: none before the prompt, 10 before the first decode, 11 before the second.
    "a token counts once it is computed": Worked(
        ((0.0, 10, 3),),
        (10.0,),
        (51.0,),
        profile(step_time=StepTime(base_s=0.01, per_kv_token_s=1e-3)),
    ),
}


@pytest.mark.parametrize("worked", WORKED.values(), ids=WORKED.keys())
def test_worked_cases(worked: Worked) -> None:
    check(worked)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("block_tokens", "conservativeness", "asked"), [(1, 1.0, 1), (16, 3.0, 60)], ids=str
)
def test_equals_the_naive_loop_where_the_cache_is_always_full(
    block_tokens: int, conservativeness: float, asked: int, overlap: bool
) -> None:
    # Hundreds of answers that a token more or less would turn round; random cases have few.
    rng = np.random.default_rng(2)
    arrival_s = np.cumsum(rng.exponential(0.03, 300))
    prompts, outputs = rng.integers(1, 60, 300), rng.geometric(1 / 80, 300).clip(1, 300)
    case = Case(
        small.trace(list(zip(arrival_s, prompts, outputs, strict=True))),
        profile(
            block_tokens=block_tokens,
            blocks=800 // block_tokens,
            batch=24,
            chunk=96,
            step_time=PROFILE.step_time,
            max_new_tokens=asked,
            schedule_conservativeness=conservativeness,
            overlap=overlap,
        ),
        (small.tick(batch_size=24), small.tick(4.0, batch_size=5), small.tick(6.0, batch_size=24)),
        slots=1,
    )
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    assert fleet.done()[0]
    assert oracle.sums.preemptions > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_a_raised_cap_lets_nobody_in_by_itself(overlap: bool) -> None:
    # One place; a second is there from 25 ms on, but nobody asks before the first ends at 102 ms.
    case = Case(
        small.trace([(0.0, 20, 10), (0.001, 20, 1)]),
        profile(overlap=overlap),
        (small.tick(batch_size=1), small.tick(0.025, batch_size=4)),
        slots=1,
        end_s=10.0,
    )
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    assert fleet.requests().ttft_s[1] == pytest.approx(0.102 + 0.012 - 0.001)


@pytest.mark.parametrize(
    ("prompt", "output", "rejected"), [(72, 24, False), (72, 25, True), (95, 1, False)], ids=str
)
def test_refuses_what_comes_within_two_pages_of_the_cache(
    prompt: int, output: int, rejected: bool
) -> None:
    case = Case(small.trace([(0.0, prompt, output)]), profile(blocks=8), (small.tick(),))
    fleet = small.fleet(case)
    fleet.advance(10.0)
    assert fleet.requests().rejected.tolist() == [rejected]
    assert fleet.done()[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number of at least 1"),
        ({"schedule_conservativeness": 0.0}, "is 0.0; expected a number above 0"),
        ({"schedule_conservativeness": True}, "is True; expected a number above 0"),
        ({"chunk": 40}, "chunk_tokens is 40; expected a multiple of kv.block_tokens 16"),
    ],
    ids=["asks for nothing", "zero", "flag", "chunk"],
)
def test_refuses_a_profile_that_the_engine_would_refuse(
    changes: dict[str, int | float], words: str
) -> None:
    with pytest.raises(ProfileError, match=words):
        small.fleet(Case(small.trace([(0.0, 5, 3)]), profile(**changes), (small.tick(),)))


@st.composite
def sglang_cases(draw: st.DrawFn) -> Case:
    """A cluster under fire, with every option and prefix hits."""
    case = draw(cases())
    block_tokens = draw(st.sampled_from([1, 4, 7, 16]))
    blocks = draw(st.integers(180, 600)) // block_tokens
    chunk_tokens = block_tokens * draw(st.sampled_from([1, 3, 8, 60]))
    drawn = replace(
        case.profile,
        scheduler="sglang",
        kv=KvCache(block_tokens, blocks, prefix_cache=draw(st.booleans())),
        limits=replace(case.profile.limits, chunk_tokens=chunk_tokens),
        scheduler_options={
            "overlap": draw(st.booleans()),
            "max_new_tokens": draw(st.sampled_from([1, 1, 70, 4096])),
            "max_prefill_tokens": draw(st.sampled_from([1, 50, 16384])),
            "schedule_conservativeness": draw(st.sampled_from([0.01, 0.1, 1.0, 3.0])),
        },
    )
    trace = with_hits(draw, case.trace)
    longer = draw(st.sampled_from([1, 2, 3]))
    return replace(
        case, profile=drawn, trace=replace(trace, output_tokens=longer * trace.output_tokens)
    )


def with_hits(draw: st.DrawFn, trace: Trace) -> Trace:
    prompts = trace.prompt_tokens
    shares = draw(st.lists(st.floats(0, 1), min_size=len(prompts), max_size=len(prompts)))
    hits = np.floor(prompts * np.array(shares)).astype(np.int32)
    return replace(trace, prefix_hit_tokens=hits)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sglang_cases())
def test_equals_the_naive_loop(case: Case) -> None:
    fleet, oracle = run_both(case)
    assert_same_requests(fleet, oracle)
    # Where no start succeeds, requests wait for ever.
    assert fleet.done()[0] or case.profile.limits.batch_size_oom is not None
    event(f"overlap: {case.profile.scheduler_options['overlap']}")
    event(f"retractions: {min(oracle.sums.preemptions, 10)}")
