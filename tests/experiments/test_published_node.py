"""The profile of DeepSeek's published node: what it meets, and that it is the shipped one."""

from __future__ import annotations

import pytest

from envs.calibrate import simulate_point
from experiments import published_node as node
from tuner.data import load_profile


def test_the_published_kinds_of_nodes_add_up_to_the_published_fleet() -> None:
    prefill_nodes = node.INPUT_TOKENS / node.DAY_S / node.PREFILL_NODE_TOKENS_PER_S
    decode_nodes = node.OUTPUT_TOKENS / node.DAY_S / 14_800
    assert prefill_nodes + decode_nodes == pytest.approx(node.NODES, rel=0.01)


def test_the_requests_have_the_published_mean_cache() -> None:
    in_cache = node.MEAN_PROMPT_TOKENS + node.MEAN_OUTPUT_TOKENS / 2
    assert in_cache == pytest.approx(node.MEAN_KV_TOKENS, rel=1e-3)
    assert pytest.approx(608 / 168, rel=1e-3) == node.MEAN_PROMPT_TOKENS / node.MEAN_OUTPUT_TOKENS


def test_the_shipped_profile_meets_the_published_point() -> None:
    profile = load_profile("deepseek-v3-8xh800")
    point = node.published_point()
    simulated = simulate_point(profile, point)
    assert 1 / simulated.tpot_s == pytest.approx(21.0, rel=2e-3)
    # A client waits for its first token too, so that a little less than all of them decode.
    assert point.clients / simulated.tpot_s == pytest.approx(168e9 / 86_400 / 226.75, rel=5e-3)


def test_the_command_makes_the_shipped_profile() -> None:
    assert node.published_profile() == load_profile("deepseek-v3-8xh800")
