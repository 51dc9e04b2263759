"""`tuner load`: open-loop load from a trace, against real engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tuner.commands.interrupts import on_interrupt
from tuner.core.figures import figure

if TYPE_CHECKING:
    from tuner.live.load.driver import LoadPlan, LoadRun

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report it."""


class PromptKind(StrEnum):
    """What a prompt is made of."""

    IDS = "ids"
    TEXT = "text"


def command(
    trace: Annotated[Path, typer.Option(help="Trace, Parquet; see `tuner trace --help`.")],
    url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Address of an engine or gateway; may be repeated."),
    ] = None,
    endpoints: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON list of addresses instead, followed while it runs."
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Trace seconds per second.")] = 1.0,
    model: Annotated[
        str, typer.Option(help="Model to ask for. (default: the first one an engine names)")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Only the first N requests.")] = None,
    duration: Annotated[float | None, typer.Option(help="Send for so many seconds.")] = None,
    max_in_flight: Annotated[
        int, typer.Option(help="One more than these is not sent, and counted; never sent later.")
    ] = 4096,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a request has failed.")
    ] = 600.0,
    seed: Annotated[int, typer.Option(help="Of the prompts' content.", min=0)] = 0,
    prompt: Annotated[
        PromptKind, typer.Option(help="ids: token numbers, exact length. text: words, about so.")
    ] = PromptKind.IDS,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Cut longer prompts. (default: none is cut)")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(help="Cut longer answers. (default: none is cut)")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Serve the client's own /metrics; 0 takes a free port.", min=0, max=65535
        ),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of that page.")] = "127.0.0.1",
    out: Annotated[
        Path | None, typer.Option(help="Folder for requests.parquet and summary.json; it is made.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replay a trace against engines: every request leaves at its time, whatever became of others.

    Streams completions of the trace's lengths (min_tokens = max_tokens, ignore_eos) and measures
    TTFT, ITL, TPOT, E2E and errors, and by how much the driver itself was late. Several addresses
    share the load, the one with the fewest requests in flight first. Ctrl-C writes what there is.
    The exit code is 1 where no request finished.

    Examples:

      tuner load --trace day.parquet --url http://127.0.0.1:8000 --limit 500 --out runs/load

      tuner load --trace day.parquet --endpoints tuner-processes/endpoints.json
      --speed 2 --max-output-tokens 64 --metrics-port 9110
    """
    from tuner.core.errors import TunerError
    from tuner.data.traces import read_trace
    from tuner.live.load.driver import LoadOptions, LoadRun, plan_of
    from tuner.live.load.endpoints import Endpoints
    from tuner.live.load.page import LoadPage
    from tuner.live.load.report import folder_for, summarise, warnings, write

    options = LoadOptions(
        speed=speed,
        model=model,
        limit=limit,
        duration_s=duration,
        max_in_flight=max_in_flight,
        timeout_s=timeout,
        seed=seed,
        prompt=prompt.value,
        max_prompt_tokens=max_prompt_tokens,
        max_output_tokens=max_output_tokens,
    )
    addresses = Endpoints(url or (), file=endpoints)
    plan = plan_of(read_trace(trace), options)
    console = Console(stderr=True)
    with (
        folder_for(out),
        LoadPage(metrics_host, metrics_port) as page,
        _progress(plan, console) as told,
    ):
        if page.url is not None:
            console.print(f"metrics at {page.url}", highlight=False)
        run = LoadRun(plan, addresses, options, page, told=told)
        with on_interrupt(run.stop):
            run.run()
    summary = summarise(run, trace=str(trace))
    if out is not None:
        write(out, run, summary)
    for sentence in warnings(summary, run):
        console.print(f"[yellow]warning:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print(summary, out)
    if run.stopped:
        raise typer.Exit(INTERRUPTED)
    if summary["finished"] == 0:
        raise TunerError("no request finished; are the engines up, and do they serve this model?")


@contextmanager
def _progress(plan: LoadPlan, console: Console) -> Iterator[Callable[[LoadRun], None]]:
    """A bar on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("ended {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    failed = 0

    def told(run: LoadRun) -> None:
        nonlocal failed
        failed += run.rows[-1].answer.failure is not None
        bar.update(task, completed=len(run.rows), note=f"{failed} failed")

    with bar:
        task = bar.add_task("load", total=len(plan), note="")
        yield told


def _print(summary: dict[str, Any], out: Path | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    failed = {**summary["failed"], **summary["not_sent"]}
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
    console.print(
        f"{summary['sent']:,} sent of {summary['planned']:,}, {summary['finished']:,} finished, "
        f"{sum(failed.values()):,} failed" + (f" ({kinds})" if kinds else "")
    )
    tokens, rate = summary["tokens"], summary["rate"]
    console.print(
        f"{tokens['prompt_counted']:,} prompt tokens, {tokens['output_received']:,} output tokens; "
        f"{figure(rate['sent_qps']) or '-'} requests/s sent, "
        f"{figure(rate['asked_qps']) or '-'} asked for"
    )
    table = Table("seconds", *("mean", "p50", "p90", "p95", "p99", "max"))
    names = {
        "ttft_s": "TTFT",
        "tpot_s": "TPOT",
        "itl_s": "ITL",
        "e2e_s": "E2E",
        "dispatch_lag_s": "late",
    }
    for key, name in names.items():
        table.add_row(name, *(figure(value) or "-" for value in summary[key].values()))
    console.print(table)
    if out is not None:
        console.print(f"written to {escape(str(out))}")
