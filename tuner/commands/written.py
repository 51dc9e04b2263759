"""The line that tells which trace was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from tuner.core.trace import Trace


def print_written(trace: Trace, out: Path) -> None:
    """Name, size, span and load."""
    from tuner.commands.chart import duration
    from tuner.data.summary import summarise

    summary = summarise(trace)
    masked = f" ({duration(summary.masked_s)} of it masked)" if summary.masked else ""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{escape(str(out))}[/]: {summary.requests:,} requests over "
        f"{duration(summary.span_s)}{masked}, {summary.mean_qps:.3g} requests/s in the mean"
    )
