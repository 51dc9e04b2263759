"""The sub-commands. A new one: a thin file, and a line here.

A command module imports only what its options need; the work is imported when it runs, so that
`tuner --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from tuner.commands import compare, policy, profile, simulate, trace, train

COMMANDS: dict[str, typer.Typer | Callable[..., Any]] = {
    "compare": compare.command,
    "policy": policy.app,
    "profile": profile.app,
    "simulate": simulate.command,
    "trace": trace.app,
    "train": train.command,
}
"""Name -> a Typer app with sub-commands, or the function of a single command."""
