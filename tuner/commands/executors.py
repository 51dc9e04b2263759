"""`--jobs`, `--executor` and `--ray-address`, for every command that does many runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class ExecutorKind(StrEnum):
    """Where runs go, as the command line knows it."""

    LOCAL = "local"
    RAY = "ray"


JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Runs at once; the numbers do not depend on it. (default one per core)",
        min=1,
    ),
]
ExecutorOption = Annotated[
    ExecutorKind,
    typer.Option("--executor", help="Where runs go: processes here, or a Ray cluster."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Ray cluster to use. (default one of this machine, for this command)",
    ),
]
