"""A recording as the load of a run: read, and its gaps told."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from experiments.readable import duration
from tuner.core.errors import TraceError
from tuner.core.gaps import GapMode, treat_gaps
from tuner.core.trace import Gap, Trace
from tuner.data import read_trace

SHOWN = 5
"""Gaps that get a line of their own."""


def read_load(path: Path, gaps: GapMode, console: Console) -> Trace:
    """The trace in a file, its gaps treated as asked and told on the console.

    Raises:
        TraceError: the file cannot be used, it has gaps and they are to be an error, or masked
            gaps leave nothing of it.
    """
    trace, found = treat_gaps(read_trace(path), gaps)
    if sum(gap.length_s for gap in trace.gaps) >= trace.last_arrival_s:
        raise TraceError(
            f"{path}: the masked gaps cover all of its {trace.last_arrival_s:g} s, so there is "
            "nothing to score; record it again, or import it with --gaps keep"
        )
    warn_of(found, console, masked=gaps == "mask")
    return trace


def warn_of(gaps: tuple[Gap, ...], console: Console, *, masked: bool) -> None:
    """A line for each gap, with its span and what is made of it."""
    for gap in gaps[:SHOWN]:
        console.print(
            f"[yellow]warning:[/] no request for {duration(gap.length_s)}, from "
            f"{gap.start_s:.0f} s to {gap.end_s:.0f} s: a gap in the recording, "
            + ("masked" if masked else "kept as time without load (--gaps mask leaves it out)"),
            highlight=False,
            soft_wrap=True,
        )
    if len(gaps) > SHOWN:
        console.print(f"[yellow]warning:[/] and {len(gaps) - SHOWN} more gaps")
