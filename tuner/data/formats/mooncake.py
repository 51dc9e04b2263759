"""Mooncake: JSON lines with timestamp, input_length, output_length and hash_ids.

kvcache-ai/Mooncake, FAST25-release/README.md and traces/ at 40ea55f (Apache-2.0; Qin et al., FAST
2025). The timestamp is in milliseconds. hash_ids name the prompt's blocks of 512 tokens, equal for
equal prefixes: the leading run of blocks that some request before had, times 512, is what an
endless prefix cache would hold. "Before" goes by the order of the lines, which is that of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuner.data.formats.rows import Progress, Rows, json_pieces, number

BLOCK_TOKENS = 512


def read(path: Path, progress: Progress) -> Iterator[Rows]:
    seen: set[int] = set()
    rows: list[tuple[float, float, float, float]] = []

    def note(fields: Mapping[str, Any]) -> None:
        prompt = number(fields.get("input_length"))
        hits = min(BLOCK_TOKENS * _leading_run(fields.get("hash_ids"), seen), prompt)
        arrival_s = number(fields.get("timestamp")) / 1000
        rows.append((arrival_s, prompt, number(fields.get("output_length")), hits))

    for malformed in json_pieces(path, note, progress):
        arrival_s, prompts, outputs, hits = np.array(rows, dtype=np.float64).reshape(-1, 4).T
        yield Rows(arrival_s, prompts, outputs, prefix_hit_tokens=hits, malformed=malformed)
        rows.clear()


def _leading_run(blocks: object, seen: set[int]) -> int:
    """How many of the blocks, from the first on, were seen before; notes them as seen."""
    if not isinstance(blocks, list):
        return 0
    run = 0
    for block in blocks:
        if block not in seen:
            break
        run += 1
    seen.update(blocks[run:])
    return run
