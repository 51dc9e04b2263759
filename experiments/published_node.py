"""`deepseek-v3-8xh800` from the figures that DeepSeek published of its production fleet.

    python -m experiments.published_node --out deepseek-v3-8xh800.yaml

Published (deepseek-ai/open-infra-index@56d8685, 24 hours from 2025-02-27): 226.75 nodes of eight
H800 on average, 608 billion input tokens of which 56.3 % came from the cache, 168 billion output
tokens, 20 to 22 output tokens/s per user, a mean KV length of 4,989 tokens per output token; a node
that prefills takes 73,700 input tokens/s, cached ones counted, a node that decodes gives 14,800
output tokens/s. The two kinds of nodes add up: 95 + 131 = 226.

One replica stands for the average node of that fleet, 42 % a prefill node and 58 % a decode node.
Fitted: seconds per input token from the prefill node, and the batch's seconds such that the closed
loop at the published point gives 21 tokens/s per user. Everything else is chosen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from envs.calibrate import Point, simulate_point
from envs.calibrate.closed_loop import KV_BYTES, MEMORY_BYTES_PER_S
from envs.calibrate.result import rounded
from tuner.core.errors import InputError
from tuner.core.profile import EngineLimits, KvCache, ServingProfile, StepTime
from tuner.data.profiles import write_profile
from tuner.data.startups import STARTUPS

NODES = 226.75
DAY_S = 86_400
INPUT_TOKENS, OUTPUT_TOKENS = 608e9, 168e9
PREFILL_NODE_TOKENS_PER_S = 73_700
USER_TOKENS_PER_S = 21.0
MEAN_KV_TOKENS = 4_989

OUTPUT_PER_NODE_S = OUTPUT_TOKENS / DAY_S / NODES
TPOT_S = 1 / USER_TOKENS_PER_S
IN_PER_OUT = INPUT_TOKENS / OUTPUT_TOKENS
MEAN_OUTPUT_TOKENS = round(MEAN_KV_TOKENS / (IN_PER_OUT + 0.5))
"""Of requests of one length each: a decode's cache holds its prompt and half its output."""
MEAN_PROMPT_TOKENS = round(IN_PER_OUT * MEAN_OUTPUT_TOKENS)
SHORTENED = 0.9
"""Mean length of a simulated benchmark's requests as a share of the nominal one."""

CONSTANT_SHARE = 0.5
"""Chosen: of the batch's seconds at the published point, what does not depend on the batch."""
ATTENTION_RANKS = 8
"""Each GPU holds the cache of its own requests."""


def published_point() -> Point:
    """The average node as a closed loop: as many clients as sequences it decodes at once."""
    clients = round(OUTPUT_PER_NODE_S * TPOT_S)
    prompt, output = (round(t / SHORTENED) for t in (MEAN_PROMPT_TOKENS, MEAN_OUTPUT_TOKENS))
    return Point(prompt, output, clients, ttft_s=1.0, tpot_s=TPOT_S)


def published_profile() -> ServingProfile:
    """The profile; its simulated TPOT at the published point is the published one to 0.1 %."""
    point = published_point()
    low_s, high_s = 0.0, TPOT_S
    while high_s - low_s > 1e-4 * TPOT_S:
        batch_s = (low_s + high_s) / 2
        if simulate_point(_profile(batch_s, point), point).tpot_s < TPOT_S:
            low_s = batch_s
        else:
            high_s = batch_s
    return _profile(rounded(high_s), point)


def _profile(batch_s: float, point: Point) -> ServingProfile:
    """With these seconds for the batch of the published point."""
    kv_s = KV_BYTES / MEMORY_BYTES_PER_S["h800_sxm"] / ATTENTION_RANKS
    constant_s = CONSTANT_SHARE * batch_s
    return ServingProfile(
        schema="tuner.profile/1",
        name="deepseek-v3-8xh800",
        scheduler="vidur-sarathi",
        gpus_per_replica=8,
        kv=KvCache(block_tokens=64, blocks=64_000),
        limits=EngineLimits(batch_size_max=768, chunk_tokens=16_384),
        step_time=StepTime(
            base_s=rounded(constant_s),
            per_sequence_s=rounded((batch_s - constant_s) / point.clients),
            per_kv_token_s=rounded(kv_s),
            per_prefill_token_s=rounded(1 / PREFILL_NODE_TOKENS_PER_S),
        ),
        startup=replace(STARTUPS["normal"], ramp=()),
        origin={
            "step_time.per_prefill_token_s": (
                "Published: a prefill node takes 73,700 input tokens/s, 56.3 % of them from the "
                "cache. So a token of the trace costs this much whether it was cached or not; with "
                "other hit rates the figure is wrong."
            ),
            "step_time.base_s": (
                f"Fitted together with per_sequence_s to one figure: {point.clients} sequences of "
                f"{MEAN_PROMPT_TOKENS} prompt and {MEAN_OUTPUT_TOKENS} output tokens, which is the "
                "published 8,575 output tokens/s per average node at 21 tokens/s per user. That "
                "half of it is constant is chosen."
            ),
            "step_time.per_kv_token_s": (
                "Not fitted: 70,272 bytes per token (61 layers x 576 x 2, arXiv 2412.19437) at an "
                "H800's 3.35 TB/s, spread over eight GPUs that each hold their own requests."
            ),
            "kv": "Chosen: 4 million tokens, twice what the published point holds.",
            "limits": (
                "Chosen. The batch cap is a decode node's own load, 14,800 tokens/s at 21 per user."
            ),
            "startup": "Chosen, as for eight H200 with local weights; DeepSeek published none.",
            "error": (
                "Not known. The one published point is met by construction, to 0.1 %; there is no "
                "other to hold it against. `python -m experiments.published_node --out FILE`"
            ),
        },
        assumed=(
            "kv",
            "limits",
            "startup",
            "step_time.base_s",
            "step_time.per_sequence_s",
            "step_time.per_kv_token_s",
        ),
        not_modelled=(
            "Prefill and decode on nodes of their own: one replica stands for 0.42 of a prefill "
            "node and 0.58 of a decode node, so its TTFT says nothing of theirs.",
            "Expert parallelism over 32 and 144 GPUs, its balance and its stragglers: only their "
            "mean is in the figures.",
            "Prefix hits of single requests: the published average is in the cost of every token.",
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one sentence where the file cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.published_node",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="profile to write, YAML")
    options = parser.parse_args(arguments)
    try:
        write_profile(
            published_profile(),
            options.out,
            "An average node of DeepSeek's published production fleet: 8 x H800, V3/R1.\n"
            "Made by `python -m experiments.published_node`, which says what is fitted.",
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
