"""The `--gaps` option, for every command that takes a recording."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


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
