"""The `tuner` command: finds the sub-command, and turns mistakes into one sentence."""

from __future__ import annotations

import signal
import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tuner.commands import COMMANDS
from tuner.commands.interrupts import OrderlyEnd
from tuner.core.errors import InputError, TunerError

EXIT_INPUT = 2
"""What the user gave cannot be used; nothing was written."""
EXIT_FAILED = 1
"""The work was begun and could not be finished."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells report it."""

EXTRAS = {
    "httpx": "live",
    "kubernetes": "live",
    "prometheus_api_client": "live",
    "prometheus_client": "live",
    "pynvml": "live",
    "sqlalchemy": "live",
    "structlog": "live",
}
"""Package -> the extra that brings it, for commands that are used without it."""

app = typer.Typer(
    name="tuner",
    help="Learns to run LLM serving better than autoscaling rules, and proves it before it acts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tuner {metadata.version('deepseek-tuner')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options of `tuner` itself."""


def main() -> None:
    """Entry point: exit code 0, or EXIT_INPUT, EXIT_FAILED, EXIT_INTERRUPTED."""
    # What ends a job of a cluster ends a command as Ctrl-C does: its workers end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="tuner")
    except InputError as error:
        _complain(str(error))
        sys.exit(EXIT_INPUT)
    except TunerError as error:
        _complain(str(error))
        sys.exit(EXIT_FAILED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _complain(f"{package} is not installed; pip install 'deepseek-tuner[{EXTRAS[package]}]'")
        sys.exit(EXIT_INPUT)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as end:
        # Typer turns Ctrl-C into its exit code by itself, and says nothing.
        if end.code == EXIT_INTERRUPTED and not isinstance(end, OrderlyEnd):
            _complain("interrupted; nothing half-written is left")
        raise


def _complain(message: str) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(message))


if __name__ == "__main__":
    main()
