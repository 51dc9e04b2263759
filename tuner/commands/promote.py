"""`tuner promote`: what was seen in shadow against what must be shown before acting."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuner.commands.audit_log import ConfigOption, JsonOption, config_of, moment

if TYPE_CHECKING:
    from tuner.config import TargetConfig
    from tuner.control.audit_store import AuditStore
    from tuner.control.promote import Evidence, Gate, Prediction
    from tuner.control.promote import Watch as Watched

OVERLAY = "deploy/manifests/active"
"""Gives the controller the rights to write; without it the cluster itself refuses."""


def command(
    config: ConfigOption = None,
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Store the promotion where every gate holds.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Cores to replay on.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Hold what was seen in shadow against the gates; exit code 1 if one does not hold.

    The evidence is what the audit log shows of this policy under this
    configuration, at most the last week, and a replay of the logged load in
    the simulator: the policy against your own rule, the fallback, on the same
    reconstructions of that load. The bars are `promotion` in tuner.yaml.

    With --apply a passed target is recorded: `tuner run --mode active` then
    starts, for this policy and configuration only.

    Examples:

      tuner promote

      tuner promote --config tuner.yaml --target deepseek-r1 --apply
    """
    from tuner.control.audit_store import AuditStore

    loaded = config_of(config)
    chosen = chosen_targets(loaded.targets, target)
    console, bars = Console(highlight=False), Console(stderr=True)
    store = AuditStore.open(loaded.audit, read_only=not apply)
    try:
        results = [_held(store, each, jobs=jobs, apply=apply, console=bars) for each in chosen]
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps([result.plain() for result in results], indent=2))
    else:
        for place, result in enumerate(results):
            if place:
                console.print()
            _print(result, console)
        _print_next(results, console, apply=apply)
    if not all(result.holds for result in results):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Held:
    """One target's evidence against its gates."""

    target: str
    policy: str
    evidence: Evidence
    gates: tuple[Gate, ...]
    stored: bool
    on_kubernetes: bool

    @property
    def holds(self) -> bool:
        return all(gate.holds for gate in self.gates)

    def plain(self) -> object:
        from experiments.summary import plain

        return plain(
            {
                "target": self.target,
                "policy": self.policy,
                "holds": self.holds,
                "stored": self.stored,
                "gates": [asdict(gate) for gate in self.gates],
                "evidence": self.evidence.to_json(),
            }
        )


def _held(
    store: AuditStore, target: TargetConfig, *, jobs: int, apply: bool, console: Console
) -> Held:
    from experiments.evidence import gather
    from experiments.progress import run_progress
    from tuner.control.identity import identity_of
    from tuner.control.promote import gates, promote

    identity = identity_of(target, "active")
    with run_progress(console) as watch:
        evidence = gather(store, target, identity, jobs=jobs, watch=watch)
    passed = gates(evidence, target.promotion)
    store_it = apply and all(gate.holds for gate in passed)
    if store_it:
        promote(store, target.name, identity, evidence, passed)
    on_kubernetes = target.kubernetes is not None
    return Held(target.name, identity.policy, evidence, passed, store_it, on_kubernetes)


def chosen_targets(targets: tuple[TargetConfig, ...], only: str | None) -> list[TargetConfig]:
    """All targets of a configuration, or the one that is named.

    Raises:
        ConfigError: there is none of that name.
    """
    from tuner.core.errors import ConfigError

    if only is None:
        return list(targets)
    found = [target for target in targets if target.name == only]
    if not found:
        known = ", ".join(target.name for target in targets)
        raise ConfigError(f"target '{only}' is not in the configuration; known: {known}")
    return found


def _print(held: Held, console: Console) -> None:
    console.print(Text(held.target, style="bold") + Text(f": may {held.policy} act?"))
    console.print(Text(_seen(held.evidence.watch)))
    prediction = held.evidence.prediction
    if prediction is not None:
        console.print(Text(_replayed(prediction, held.policy)))
        for note in prediction.notes:
            console.print(Text("note: ", style="yellow") + Text(note))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("gate", "found", "needed", ""):
        table.add_column(head, no_wrap=not head, overflow="fold")
    for gate in held.gates:
        verdict = Text("holds", style="green") if gate.holds else Text("fails", style="bold red")
        table.add_row(gate.label, gate.found, gate.needed, verdict)
    console.print()
    console.print(table)
    console.print()
    for gate in held.gates:
        if not gate.holds:
            console.print(Text("refused: ", style="bold red") + Text(gate.reason))
    if held.holds:
        console.print(Text("every gate holds", style="bold green"))


def _seen(watch: Watched) -> str:
    if not watch.decisions or watch.first_at_s is None or watch.last_at_s is None:
        text = "no decision of this policy under this configuration in shadow"
    else:
        gaps = f", {watch.gaps} gap{'s' if watch.gaps > 1 else ''} left out" if watch.gaps else ""
        text = (
            f"{watch.decisions:,} decisions in shadow from {moment(watch.first_at_s)} to "
            f"{moment(watch.last_at_s)} UTC{gaps}; {watch.moves:,} would have moved a knob"
        )
        if watch.qps_low is not None and watch.qps_high is not None:
            text += f"; load {watch.qps_low:.3g} to {watch.qps_high:.3g} requests/s"
        if watch.open:
            text += f"; {watch.open} without a receipt"
    if watch.others:
        text += f"; {watch.others:,} others do not count: another policy or another configuration"
    return text + "."


def _replayed(prediction: Prediction, policy: str) -> str:
    from experiments.readable import figure

    def side(name: str, gpu_hours: float, attainment: float) -> str:
        cost, served = figure("gpu_hours", gpu_hours), figure("slo_attainment", attainment)
        return f"{name} {cost} GPU hours at {served} attainment"

    found = prediction
    long = f"{found.hours:,.1f} h" if found.hours >= 1 else f"{60 * found.hours:.0f} min"
    rule = side(f"your rule ({found.rule})", found.rule_gpu_hours, found.rule_attainment)
    ours = side(f"the policy ({policy})", found.policy_gpu_hours, found.policy_attainment)
    return (
        f"Replayed {prediction.requests:,} requests in {long} with profile "
        f"{prediction.profile}, {prediction.seeds} seeds: {rule}, {ours}."
    )


def _print_next(results: list[Held], console: Console, *, apply: bool) -> None:
    """What to do with what was found."""
    if not apply:
        if any(held.holds for held in results):
            console.print("`tuner promote --apply` stores it; nothing is stored yet")
        return
    stored = [held for held in results if held.stored]
    for held in stored:
        console.print(
            Text("stored: ", style="bold green")
            + Text(f"{held.policy} may act on {held.target} under this configuration"),
        )
    if not stored:
        return
    if any(held.on_kubernetes for held in stored):
        console.print("now let the cluster allow it, then start the controller in active mode:")
        console.print(f"  kubectl apply -k {OVERLAY}", soft_wrap=True)
    console.print("  tuner run --mode active", soft_wrap=True)
