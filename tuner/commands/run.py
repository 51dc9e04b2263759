"""`tuner run`: the controller."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ModeName(StrEnum):
    """Modes, as the command line knows them."""

    SHADOW = "shadow"
    ACTIVE = "active"


def command(
    config: Annotated[Path, typer.Option(help="tuner.yaml; see `tuner config explain`.")],
    mode: Annotated[ModeName, typer.Option(help="shadow decides and writes nothing; active acts.")],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="NAME", help="Only this target; may be repeated."),
    ] = None,
    ticks: Annotated[
        int | None, typer.Option(help="End after so many ticks of each target.", min=1)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="The same as --ticks 1.")] = False,
    without_evidence: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Act without a promotion; the reason is kept in the audit log.",
        ),
    ] = None,
) -> None:
    """Run the controller until SIGTERM or Ctrl-C: the tick in progress ends, hot knobs go back.

    Prints what will run, then one line per decision: key=value at a terminal (NO_COLOR is
    respected), JSON elsewhere. /metrics, /healthz and /readyz are on the page that `server` names.

    Active needs a promotion of this very policy and configuration, see `tuner promote`; without
    one the exit code is 2. A target that is demoted while it runs goes on in shadow. With --ticks
    the exit code is 1 where a target came to no decision.

    Examples:

      tuner run --config tuner.yaml --mode shadow

      tuner run --config tuner.yaml --mode shadow --target r1 --once

      tuner run --config tuner.yaml --mode active --without-evidence "staging, nobody uses it"
    """
    import sys

    from tuner.core.errors import ConfigError

    if once and ticks is not None:
        raise ConfigError("--once and --ticks say the same in two ways; give one of them")
    if without_evidence is not None and mode is not ModeName.ACTIVE:
        raise ConfigError("--without-evidence is for --mode active; shadow needs no evidence")

    from tuner.config.file import load_config
    from tuner.control.assembly import Orders, Reach, chosen
    from tuner.control.logs import logger_to
    from tuner.control.start import run_controller

    whole = chosen(load_config(config), target or [])
    from tuner.live.connect import connect

    reach = Reach(
        lambda one, clock, writes: connect(one, clock, writes=writes),
        lambda one, clock: connect(one, clock, writes=False, demoted=True),
    )
    orders = Orders(mode.value, ticks=1 if once else ticks, without_evidence=without_evidence)
    raise typer.Exit(run_controller(whole, orders, reach, logger_to(sys.stdout), sys.stdout))
