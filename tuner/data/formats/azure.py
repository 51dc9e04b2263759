"""Azure's LLM inference traces: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and 2024.md (CC BY 4.0). The 2023 files
write times as `2023-11-16 18:15:46.6805900`, those of 2024 as `2024-05-10 00:00:00.009930+00:00`,
some without the fraction. The multimodal trace of 2025 has a column more, which is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tuner.data.formats.rows import Progress, Rows, Times, csv_pieces, numbers


def read(path: Path, progress: Progress) -> Iterator[Rows]:
    times = Times()
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    for piece, malformed in csv_pieces(path, columns, (), progress):
        yield Rows(
            arrival_s=times.seconds(piece["TIMESTAMP"]),
            prompt_tokens=numbers(piece["ContextTokens"]),
            output_tokens=numbers(piece["GeneratedTokens"]),
            malformed=malformed,
        )
