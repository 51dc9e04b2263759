"""`tuner load` against the real engine: both sides count the same."""

from __future__ import annotations

import numpy as np

from tests.real.controller import reach
from tests.real.vllm_server import VllmServer
from tuner.core.trace import Trace
from tuner.live.load.driver import LoadOptions, LoadRun, plan_of
from tuner.live.load.endpoints import Endpoints
from tuner.live.load.page import LoadPage
from tuner.live.load.report import summarise

COUNTERS = {
    "requests": "vllm:request_success_total",
    "prompt": "vllm:prompt_tokens_total",
    "output": "vllm:generation_tokens_total",
    "first tokens": "vllm:time_to_first_token_seconds_count",
}


def counted(vllm: VllmServer) -> dict[str, float]:
    return {name: vllm.gauge(series) for name, series in COUNTERS.items()}


def driven(vllm: VllmServer, trace: Trace) -> LoadRun:
    options = LoadOptions(timeout_s=120.0)
    run = LoadRun(plan_of(trace, options), Endpoints([vllm.url]), options, LoadPage())
    run.run()
    return run


def test_requests_and_tokens_are_those_that_the_engine_counts(vllm):
    random = np.random.default_rng(0)
    count = 60
    trace = Trace(
        np.sort(random.uniform(0.0, 8.0, count)),
        random.integers(1, 200, count, dtype=np.int32),
        random.integers(1, 30, count, dtype=np.int32),
    )
    before = counted(vllm)
    run = driven(vllm, trace)
    summary = summarise(run, trace="t")
    assert summary["finished"] == count
    assert summary["short_answers"] == 0
    expected = {
        "requests": count,
        "prompt": int(trace.prompt_tokens.sum()),
        "output": int(trace.output_tokens.sum()),
        "first tokens": count,
    }
    tokens = summary["tokens"]
    assert tokens["prompt_counted"] == expected["prompt"]
    assert tokens["output_received"] == expected["output"]

    def grown() -> dict[str, float]:
        return {name: value - before[name] for name, value in counted(vllm).items()}

    # The page follows the answers by a moment.
    reach(lambda: grown() == expected, f"the page says {expected}")


def test_first_tokens_come_before_last_ones_and_each_gap_is_one(vllm):
    # Enough tokens that even a starved server sends them in more than one chunk.
    run = driven(vllm, Trace(np.zeros(1), np.array([20], np.int32), np.array([200], np.int32)))
    answer = run.rows[0].answer
    assert 0 < answer.ttft_s < answer.e2e_s
    # A chunk may carry several tokens where the engine is ahead of its server.
    assert 0 < len(answer.gaps_s) <= 199
    assert np.isclose(sum(answer.gaps_s), answer.e2e_s - answer.ttft_s, rtol=1e-3)


def test_what_the_engine_refuses_is_an_http_error(vllm):
    trace = Trace(np.zeros(2), np.array([700, 20], np.int32), np.array([5, 5], np.int32))
    run = driven(vllm, trace)
    assert [row.answer.outcome for row in run.rows] == ["http_400", "finished"]
