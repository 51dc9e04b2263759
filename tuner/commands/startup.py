"""The `--startup` option, for every command that simulates."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Startup(StrEnum):
    """Named starts, as the command line knows them."""

    WARM = "warm"
    NORMAL = "normal"
    COLD = "cold"


StartupOption = Annotated[
    Startup | None,
    typer.Option(
        "--startup",
        help="How a replica starts, in place of the profile's own: warm (about 2 minutes), normal "
        "(8) or cold (20, and slow first requests).",
    ),
]
