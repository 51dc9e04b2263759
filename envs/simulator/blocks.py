"""Tokens in KV blocks.

A division of integers takes as long as ten other instructions, and every event makes several of
them; block sizes are powers of two, as good as always, and then a shift and a mask do the same.
"""

from __future__ import annotations

from envs.simulator.compiled import inlined
from envs.simulator.layout import Engine


def shift_of(block_tokens: int) -> int:
    """Power of two that the size of a block is; -1: of none."""
    return block_tokens.bit_length() - 1 if block_tokens.bit_count() == 1 else -1


@inlined
def full_blocks(engine: Engine, tokens: int) -> int:
    """KV blocks that so many tokens fill, rounded down."""
    if engine.block_shift >= 0:
        return tokens >> engine.block_shift
    return tokens // engine.block_tokens


@inlined
def blocks_for(engine: Engine, tokens: int) -> int:
    """KV blocks that hold so many tokens."""
    return full_blocks(engine, tokens + engine.block_tokens - 1)


@inlined
def in_block(engine: Engine, tokens: int) -> int:
    """`tokens` modulo block_tokens, 0 or more for negative ones too."""
    if engine.block_shift >= 0:
        return tokens & (engine.block_tokens - 1)
    return tokens % engine.block_tokens
