"""The `--gaps` option and its warning, for every command that takes a recording."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tuner.core.trace import Gap

SHOWN = 5
"""Gaps that get a line of their own."""


class Gaps(StrEnum):
    """What to do about silence that the load around it does not explain."""

    KEEP = "keep"
    MASK = "mask"
    ERROR = "error"


GapsOption = Annotated[
    Gaps,
    typer.Option(
        "--gaps",
        metavar="MODE",
        help="Gaps in the recording: [bold]keep[/] as time without load, [bold]mask[/] (noted in "
        "the trace; ticks inside are left out of scores), or stop with an [bold]error[/].",
    ),
]


def warn_of(gaps: tuple[Gap, ...], *, masked: bool) -> None:
    """A line on stderr for each gap, with its span and what is made of it."""
    from tuner.commands.chart import duration

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for gap in gaps[:SHOWN]:
        console.print(
            f"[yellow]warning:[/] no request for {duration(gap.length_s)}, from "
            f"{gap.start_s:.0f} s to {gap.end_s:.0f} s: a gap in the recording, "
            + ("masked" if masked else "kept as time without load (--gaps mask leaves it out)")
        )
    if len(gaps) > SHOWN:
        console.print(f"[yellow]warning:[/] and {len(gaps) - SHOWN} more gaps")
