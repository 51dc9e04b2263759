"""The start of the controller: what will run is said in full, then it runs."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from structlog.typing import FilteringBoundLogger

from tuner.config import ControllerConfig
from tuner.control.assembly import Orders, Reach, assembled
from tuner.control.identity import Mode
from tuner.control.overview import (
    controller_facts,
    controller_lines,
    target_facts,
    target_lines,
)


def run_controller(
    config: ControllerConfig,
    orders: Orders,
    reach: Reach,
    log: FilteringBoundLogger,
    stream: TextIO,
) -> int:
    """Run until a signal or the last tick; the exit code.

    Raises:
        InputError: the controller may not run like this; nothing was written but the audit log.
    """
    with assembled(config, orders, reach, log) as service, service.hearing():
        if stream.isatty():
            print_overview(config, orders.mode, Console(file=stream, highlight=False))
        else:
            log_overview(config, orders.mode, log)
        service.connect()
        return service.run()


def print_overview(config: ControllerConfig, mode: Mode, console: Console) -> None:
    """What will run, for a person."""
    for target in config.targets:
        console.print(f"[bold]{escape(target.name)}[/] in {mode}")
        console.print(_grid(target_lines(target, mode)))
        console.print()
    console.print("[bold]controller[/]")
    console.print(_grid(controller_lines(config)))


def log_overview(config: ControllerConfig, mode: Mode, log: FilteringBoundLogger) -> None:
    """What will run, as events."""
    log.info("controller", **controller_facts(config))
    for target in config.targets:
        log.info("target", **target_facts(target, mode))


def _grid(lines: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for heading, text in lines:
        grid.add_row(f"  {heading}", escape(text))
    return grid
