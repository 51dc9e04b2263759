"""CSV with tuner's own column names: arrival_s, prompt_tokens, output_tokens.

arrival_s is seconds or an ISO 8601 date. Optional: prefix_hit_tokens, and client_id, a number or
any name. Other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tuner.data.formats.rows import Progress, Rows, Times, csv_pieces, numbers
from tuner.data.traces import OPTIONAL, REQUIRED


def read(path: Path, progress: Progress) -> Iterator[Rows]:
    times = Times()
    for piece, malformed in csv_pieces(path, REQUIRED, OPTIONAL, progress):
        hits, clients = piece.get("prefix_hit_tokens"), piece.get("client_id")
        yield Rows(
            arrival_s=times.seconds(piece["arrival_s"]),
            prompt_tokens=numbers(piece["prompt_tokens"]),
            output_tokens=numbers(piece["output_tokens"]),
            prefix_hit_tokens=None if hits is None else numbers(hits),
            client=None if clients is None else clients.to_pylist(),
            malformed=malformed,
        )
