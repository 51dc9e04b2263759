"""JSON lines with tuner's own names: arrival_s, prompt_tokens, output_tokens.

The same fields as in CSV: arrival_s is seconds or an ISO 8601 date; prefix_hit_tokens and client_id
are optional, and read if the first object has them. Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tuner.core.errors import TraceError
from tuner.data.formats.rows import Progress, Rows, Times, json_pieces, number
from tuner.data.traces import OPTIONAL, REQUIRED


def read(path: Path, progress: Progress) -> Iterator[Rows]:
    times = Times()
    present: list[str] = []
    rows: list[Mapping[str, Any]] = []

    def note(fields: Mapping[str, Any]) -> None:
        if not present:
            missing = [name for name in REQUIRED if name not in fields]
            if missing:
                raise TraceError(
                    f"{path}: field {missing[0]!r} is missing in the first object (found "
                    f"{', '.join(fields)}); choose the --format that the file has, or rename it"
                )
            present.extend(name for name in (*REQUIRED, *OPTIONAL) if name in fields)
        rows.append(fields)

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([number(fields.get(name)) for fields in rows], dtype=np.float64)

    for malformed in json_pieces(path, note, progress):
        texts = pa.array([_text(fields.get("arrival_s")) for fields in rows], pa.string())
        yield Rows(
            arrival_s=times.seconds(texts),
            prompt_tokens=column("prompt_tokens"),
            output_tokens=column("output_tokens"),
            prefix_hit_tokens=column("prefix_hit_tokens")
            if "prefix_hit_tokens" in present
            else None,
            client=[_text(fields.get("client_id")) for fields in rows]
            if "client_id" in present
            else None,
            malformed=malformed,
        )
        rows.clear()


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, (bool, list, dict)) else str(value)
