"""How a trace becomes scenarios."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.envs import worlds
from tests.train.worlds import CONFIG
from tuner.core.errors import TraceError
from tuner.train.scenarios import episode_ticks, parts, reward_scale, split


def test_a_split_is_in_time_keeps_the_clock_and_loses_no_request() -> None:
    whole = worlds.trace(4000.0)
    first, second = split(whole, 0.25)
    assert len(first) + len(second) == len(whole)
    assert first.last_arrival_s < second.arrival_s[0]
    assert second.arrival_s[0] == pytest.approx(0.75 * whole.last_arrival_s, rel=0.03)
    assert np.array_equal(np.concatenate([first.arrival_s, second.arrival_s]), whole.arrival_s)
    joined = np.concatenate([first.output_tokens, second.output_tokens])
    assert np.array_equal(joined, whole.output_tokens)


@pytest.mark.parametrize(("days", "held_out"), [(0.1, False), (3.9, False), (4.1, True)])
def test_only_a_trace_of_days_has_a_part_held_out_by_default(days: float, held_out: bool) -> None:
    trace = worlds.trace(4000.0)
    stretched = replace(
        trace,
        arrival_s=trace.arrival_s * (days * 86_400 / trace.last_arrival_s),
        prompt_tokens=trace.prompt_tokens.copy(),
        output_tokens=trace.output_tokens.copy(),
    )
    config = replace(CONFIG, validation=replace(CONFIG.validation, share=None))
    first, second = parts(stretched, config)
    assert (first is second) is not held_out
    if held_out:
        assert len(second) / len(trace) == pytest.approx(0.25, abs=0.02)


def test_episodes_are_no_longer_than_the_load() -> None:
    trace = worlds.trace(4000.0)
    assert episode_ticks(trace, worlds.config(episode_ticks=40)) == 40
    span_s = trace.last_arrival_s - trace.arrival_s[0]
    long = episode_ticks(trace, worlds.config(episode_ticks=9999))
    assert span_s - 30 < 15 * (long + 1) <= span_s


def test_refuses_a_part_without_requests() -> None:
    with pytest.raises(TraceError, match="training part"):
        split(worlds.trace(60.0, qps=0.02), 0.5)


def test_rewards_are_relative_to_the_mean_tick() -> None:
    trace = worlds.trace(4000.0, qps=4.0)
    scale = reward_scale(trace, worlds.config(reference_replicas=5.0))
    assert scale.requests_per_tick == pytest.approx(60.0, rel=0.05)
    assert (scale.reference_replicas, scale.tick_s) == (5.0, 15.0)
