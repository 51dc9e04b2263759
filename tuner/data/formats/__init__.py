"""Formats of recorded traffic that can be imported.

A new one: a file here with a `read` function that gives `Rows` in the order of the file, and a
line in `TRACE_FORMATS`. Its docstring names the public source of the format, columns and units;
its first line is what `tuner trace import --help` prints.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuner.data.formats import azure, burstgpt, mooncake, own_csv, own_jsonl
from tuner.data.formats.rows import Reader

TRACE_FORMATS: Mapping[str, Reader] = {
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "mooncake": mooncake.read,
    "csv": own_csv.read,
    "jsonl": own_jsonl.read,
}
"""`--format` -> reader."""

__all__ = ["TRACE_FORMATS"]
