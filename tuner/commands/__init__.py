"""The sub-commands. A new one: a thin file, and a line here.

A command module imports only what its options need; the work is imported when it runs, so that
`tuner --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from tuner.commands import (
    calibrate,
    compare,
    config,
    demote,
    explain,
    init,
    load,
    policy,
    profile,
    promote,
    record,
    run,
    sandbox,
    simulate,
    status,
    trace,
    train,
    tune,
)

COMMANDS: dict[str, typer.Typer | Callable[..., Any]] = {
    "calibrate": calibrate.command,
    "compare": compare.command,
    "config": config.app,
    "demote": demote.command,
    "explain": explain.command,
    "init": init.command,
    "load": load.command,
    "policy": policy.app,
    "profile": profile.app,
    "promote": promote.command,
    "record": record.command,
    "run": run.command,
    "sandbox": sandbox.command,
    "simulate": simulate.command,
    "status": status.command,
    "trace": trace.app,
    "train": train.command,
    "tune": tune.command,
}
"""Name -> a Typer app with sub-commands, or the function of a single command."""
