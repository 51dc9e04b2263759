"""`tuner record`: a target's past, out of Prometheus into a telemetry file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tuner.live.metrics.record import Progress, Recorded


def command(
    config: Annotated[Path, typer.Option(help="tuner.yaml; the target needs `prometheus`.")],
    out: Annotated[Path, typer.Option(help="Telemetry file, Parquet; gone on with if it exists.")],
    since: Annotated[
        str, typer.Option(help="Start: a length back from now (7d, 90m) or an ISO time with zone.")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(help="End, in the same forms.", show_default="now")
    ] = None,
    every: Annotated[str, typer.Option(help="Length of a row's window: 15s, 1m.")] = "15s",
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Target; may be left out where there is one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Record a target's past: fields as a controller sees them, and exact counts per window.

    The counts of all windows add up to what the engines' counters rose by, across restarts of the
    engines and of Prometheus. Asked for in chunks that fit in memory; a recording that was killed
    goes on where it stopped with the same command, and a finished one where it ends.

    Examples:

      tuner record --config tuner.yaml --since 7d --out telemetry.parquet

      tuner record --config tuner.yaml --target r1 --since 2026-11-01T00:00:00Z
      --until 2026-11-08T00:00:00Z --every 1m --out week.parquet --json
    """
    from tuner.config.file import load_config
    from tuner.core.clock import WallClock
    from tuner.engines import ENGINES, EngineHttp
    from tuner.live.metrics.record import RecordRequest, chosen_target, record
    from tuner.live.metrics.spans import moment_s, span_s

    chosen = chosen_target(load_config(config), target)
    now_s = WallClock().now_s()
    # Only the adapter's names of metrics are needed: nothing is sent to an engine.
    http = EngineHttp(timeout_s=chosen.engine.timeout_s)
    metrics = ENGINES[chosen.engine.kind](http).metrics
    http.close()
    request = RecordRequest(
        target=chosen,
        metrics=metrics,
        since_s=moment_s("--since", since, now_s),
        until_s=min(moment_s("--until", until, now_s), now_s) if until else now_s,
        every_s=span_s("--every", every),
        out=out,
    )
    with _progress(f"recording {chosen.name}") as progress:
        done = record(request, progress)
    if as_json:
        typer.echo(json.dumps(_facts(done, out), indent=2))
    else:
        _print(done, out)
    for warning in done.warnings:
        Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {escape(warning)}")


def _facts(done: Recorded, out: Path) -> dict[str, Any]:
    header = done.telemetry.header
    return {
        "out": str(out),
        "target": header.target,
        "since_s": header.since_s,
        "until_s": header.until_s,
        "asked_from_s": done.asked_from_s,
        "every_s": header.every_s,
        "windows": done.telemetry.table.num_rows,
        "totals": done.telemetry.totals(),
        "warnings": list(done.warnings),
    }


def _print(done: Recorded, out: Path) -> None:
    header = done.telemetry.header
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, total in done.telemetry.totals().items():
        words = name.replace("_", " ")
        table.add_row(words, "not measured" if total is None else f"{total:,}")
    console.print(
        f"{escape(header.target)}: {done.telemetry.table.num_rows:,} windows of "
        f"{header.every_s:g} s, {_day(header.since_s)} to {_day(header.until_s)}"
    )
    if done.asked_from_s > header.since_s:
        console.print(f"up to {_day(done.asked_from_s)} it was recorded already")
    console.print(table)
    console.print(f"written: {escape(str(out))}")


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(sep=" ", timespec="seconds")


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    bar = Progress(
        TextColumn(escape(title)),
        BarColumn(),
        TaskProgressColumn(),
        Remaining(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # Else it would still end with an empty line.
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done_s, all_s: bar.update(task, completed=done_s, total=all_s)
