"""`tuner config`: whether a tuner.yaml can be run, and what its keys mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from tuner.core.figures import figure

if TYPE_CHECKING:
    from tuner.config import ControllerConfig

app = typer.Typer(no_args_is_help=True, help="Check a tuner.yaml, and explain its keys.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="tuner.yaml.")],
    live: Annotated[
        bool,
        typer.Option("--live", help="Ask metrics source, engines and cluster too; writes nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a tuner.yaml as a whole, and print what would run with every default filled in.

    Exit code 2 with every mistake at once, each with its key path. With --live, 1 where something
    that the controller needs is missing.

    Examples:
      tuner config check tuner.yaml
      tuner config check tuner.yaml --live --json
    """
    from tuner.config.file import load_config, missing_files
    from tuner.control.audit_database import place_trouble
    from tuner.control.overview import controller_facts, target_facts
    from tuner.control.start import print_overview

    config = load_config(file)
    absent = missing_files(config)
    if (trouble := place_trouble(config.audit)) is not None:
        absent.append(trouble)
    proofs = _proofs(config) if live else {}
    if as_json:
        facts: dict[str, Any] = {
            **controller_facts(config),
            "targets": [target_facts(target, "shadow") for target in config.targets],
            "missing_files": absent,
        }
        if live:
            facts["live"] = proofs
        typer.echo(json.dumps(facts, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        print_overview(config, "shadow", console)
        for sentence in absent:
            console.print(f"[yellow]not here[/]: {escape(sentence)}")
        for name, rows in proofs.items():
            console.print(f"\n[bold]{escape(name)}[/], live")
            console.print(_proof_table(rows))
    if any(_lacks(row) for rows in proofs.values() for row in rows) or (live and absent):
        raise typer.Exit(1)


@app.command()
def explain(
    section: Annotated[
        str | None,
        typer.Argument(help="Only this section, such as engine or targets.prometheus."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain the keys of tuner.yaml: what each takes, its default, and what it means.

    Examples:
      tuner config explain
      tuner config explain targets.engine
    """
    from dataclasses import asdict

    from tuner.config.explain import explained

    keys = explained(section)
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in keys], indent=2))
        return
    # Two lines a key: four columns beside each other leave none of 80 characters for the meaning.
    console = Console(highlight=False)
    for key in keys:
        default = "needed" if key.default is None else f"default {key.default}"
        console.print(f"[bold]{escape(key.path)}[/]: {escape(key.kind)}, {escape(default)}")
        console.print(Padding(escape(key.meaning), (0, 0, 0, 4)))


def _proofs(config: ControllerConfig) -> dict[str, list[dict[str, Any]]]:
    """What the world shows of each target, as plain rows."""
    from dataclasses import asdict

    from tuner.live.discovery.proof import live_proof

    return {target.name: [asdict(row) for row in live_proof(target)] for target in config.targets}


def _lacks(row: dict[str, Any]) -> bool:
    """Whether a row is about something that is needed and was not found."""
    return not row["found"] and row["needed"]


def _proof_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("field", "", "value", "unit", "age"):
        justify: Literal["left", "right"] = "right" if heading == "value" else "left"
        table.add_column(heading, overflow="fold", justify=justify)
    table.add_column("what it says", overflow="fold", min_width=24)
    for row in rows:
        verdict = "[green]found[/]" if row["found"] else "[dim]none[/]"
        if _lacks(row):
            verdict = "[red]missing[/]"
        age_s = row["age_s"]
        table.add_row(
            escape(row["field"]),
            verdict,
            figure(row["value"]),
            escape(row["unit"]),
            "" if age_s is None else f"{age_s:.3g} s",
            escape(row["sentence"]),
        )
    return table
