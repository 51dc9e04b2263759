"""`tuner policy`: the bundles at hand, what is in them, and whether they can be trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tuner.data.bundles import Bundle, Manifest

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and verify policy bundles: what `tuner train` writes.",
)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Folder that holds bundles.")] = Path("bundles"),
    as_json: JsonOption = False,
) -> None:
    """List the bundles in a folder; one that cannot be read is listed with its fault.

    Examples:
      tuner policy list
      tuner policy list /srv/policies --json
    """
    from tuner.core.errors import BundleError
    from tuner.data.bundles import find_bundles, read_bundle

    rows: list[dict[str, Any]] = []
    for path in find_bundles(folder):
        try:
            rows.append({"path": str(path), **_summary(read_bundle(path))})
        except BundleError as error:
            rows.append({"path": str(path), "fault": str(error)})
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console(highlight=False)
    if not rows:
        console.print(f"no bundles in {escape(str(folder))}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", no_wrap=True)
    table.add_column("trained on", overflow="fold")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("beats base", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    for row in rows:
        if "fault" not in row:
            table.add_row(
                escape(row["name"]),
                escape(row["trace"]),
                f"{row['steps']:,}",
                "yes" if row["beats_base"] else "no",
                f"{row['difference']:+.4f}",
            )
    console.print(table)
    for row in rows:
        if "fault" in row:
            console.print(f"[red]refused[/]: {escape(row['fault'])}", soft_wrap=True)


@app.command()
def show(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle holds, what it was trained on, and how it did.

    Examples:
      tuner policy show bundles/r1-1.0.0
      tuner policy show bundles/r1-1.0.0 --json
    """
    from tuner.data.bundles import read_bundle

    loaded = read_bundle(bundle)
    if as_json:
        typer.echo(json.dumps({"digest": loaded.digest, **asdict(loaded.manifest)}, indent=2))
        return
    manifest = loaded.manifest
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(manifest.title)}[/]")
    console.print(_grid(_figures(manifest)))
    console.print(f"\n[bold]result[/] {escape(manifest.results.verdict)}")
    for knob, why in manifest.pinned.items():
        console.print(f"\n[yellow]{escape(knob)}[/] could not move in training: {escape(why)}")


@app.command()
def verify(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Verify digests, knobs, features and network of a bundle; exit code 2 if it is refused.

    Example:
      tuner policy verify bundles/r1-1.0.0
    """
    from policies import build_policy
    from tuner.data.bundles import read_bundle
    from tuner.knobs import knob_space

    loaded = read_bundle(bundle)
    manifest = loaded.manifest
    # Ranges are a target's business: here the bundle is asked about its own.
    trained = {knob.name: (knob.low, knob.high) for knob in manifest.knobs}
    known = {name: trained[name] for name in knob_space().names if name in trained}
    build_policy(str(bundle), {}, knob_space(**known), tick_s=15.0)
    if as_json:
        facts = {"name": manifest.title, "valid": True, "digest": loaded.digest}
        typer.echo(json.dumps({**facts, **asdict(manifest.digests)}, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[green]valid[/]: {escape(manifest.title)}")
    console.print(_grid({"bundle": loaded.digest, **asdict(manifest.digests)}))


def _summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.title,
        "trace": manifest.trace,
        "profile": manifest.profile,
        "steps": manifest.steps,
        "seed": manifest.seed,
        "beats_base": manifest.results.beats_base,
        "difference": manifest.results.difference,
        "digest": bundle.digest,
    }


def _figures(manifest: Manifest) -> dict[str, str]:
    options = ", ".join(f"{name} {value}" for name, value in manifest.base.options.items())
    results, code = manifest.results, manifest.code
    layers = " x ".join(str(units) for units in manifest.network.hidden)
    return {
        "trained on": f"{manifest.trace} with profile {manifest.profile}",
        "steps, seed": f"{manifest.steps:,}, {manifest.seed}",
        "network": f"{manifest.network.inputs} features, {layers} {manifest.network.activation}, "
        f"of step {results.chosen_step:,}",
        "base rule": f"{manifest.base.policy} ({options or 'defaults'})",
        "knobs": ", ".join(f"{knob.name} {knob.low}..{knob.high}" for knob in manifest.knobs),
        "policy": _score(asdict(results.policy)),
        "base alone": _score(asdict(results.base)),
        "code": f"{code.commit or 'no commit'}, tuner {code.versions.get('deepseek-tuner', '?')}",
    }


def _score(score: Mapping[str, float]) -> str:
    return (
        f"reward {score['reward']:.4f}, attainment {score['attainment']:.2%}, "
        f"replicas {score['replicas']:.2f}"
    )


def _grid(rows: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for key, value in rows.items():
        grid.add_row(key, escape(value))
    return grid
