"""`tuner demote`: back to shadow, at once and without evidence."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tuner.commands.audit_log import ConfigOption, config_of

OVERLAY = "deploy/manifests/shadow"
"""Takes the rights to write from the controller."""


def command(
    config: ConfigOption = None,
    target: Annotated[
        str | None, typer.Option(help="Only this target. (default all of the configuration)")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
) -> None:
    """Take back what `tuner promote --apply` or --without-evidence allowed.

    Needs no evidence and asks nothing. A controller that runs goes back to
    shadow at its next tick, and `tuner run --mode active` does not start any
    more until the target is promoted again.

    Examples:

      tuner demote

      tuner demote --target deepseek-r1 --reason "TTFT doubled after the roll-out"
    """
    from tuner.commands.promote import chosen_targets
    from tuner.control.audit_store import AuditStore
    from tuner.control.promote import demote

    loaded = config_of(config)
    chosen = chosen_targets(loaded.targets, target)
    store = AuditStore.open(loaded.audit)
    try:
        for each in chosen:
            demote(store, each.name, reason=reason)
    finally:
        store.close()
    console = Console(highlight=False)
    for each in chosen:
        console.print(Text("demoted: ", style="bold") + Text(f"nothing may act on {each.name}"))
    console.print("a controller that runs goes back to shadow at its next tick")
    if any(each.kubernetes is not None for each in chosen):
        console.print("now take the rights back as well:")
        console.print(f"  kubectl apply -k {OVERLAY}", soft_wrap=True)
