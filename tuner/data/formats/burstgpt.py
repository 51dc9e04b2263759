"""BurstGPT: CSV with Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type.

HPMLL/BurstGPT, README.md at ff1a7c6, and release v2.0, whose files also have Session ID and
Elapsed time (CC BY 4.0; Wang et al., arXiv 2401.17644). Timestamp is in seconds, from any day on. A
request that failed has 0 response tokens. Both models and both log types are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tuner.data.formats.rows import Progress, Rows, csv_pieces, numbers


def read(path: Path, progress: Progress) -> Iterator[Rows]:
    columns = ("Timestamp", "Request tokens", "Response tokens")
    for piece, malformed in csv_pieces(path, columns, (), progress):
        yield Rows(
            arrival_s=numbers(piece["Timestamp"]),
            prompt_tokens=numbers(piece["Request tokens"]),
            output_tokens=numbers(piece["Response tokens"]),
            malformed=malformed,
        )
