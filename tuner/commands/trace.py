"""`tuner trace`: import, describe and generate recorded or drawn load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tuner.commands import trace_edit, trace_from
from tuner.commands.gaps import Gaps, GapsOption
from tuner.commands.written import print_written

if TYPE_CHECKING:
    from tuner.core.trace import Gap, Trace
    from tuner.data.formats.rows import Progress
    from tuner.data.importing import ImportReport
    from tuner.data.summary import TokenSummary, TraceSummary

app = typer.Typer(
    no_args_is_help=True,
    help="Import recorded traffic, describe it, change it, or draw load.",
)
app.command("from-counts")(trace_from.from_counts)
app.command("from-telemetry")(trace_from.from_telemetry)
app.command("edit")(trace_edit.edit)

_WINDOWS = {"15s": "15 s", "60s": "1 min", "600s": "10 min"}
"""Windows of a summary as people write them."""


class Format(StrEnum):
    """Names in `TRACE_FORMATS`; a test compares them. Here, so that --help imports nothing."""

    AZURE = "azure"
    BURSTGPT = "burstgpt"
    MOONCAKE = "mooncake"
    CSV = "csv"
    JSONL = "jsonl"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Recording; may be packed as .gz, .bz2 or .zst.")],
    format_: Annotated[
        Format,
        typer.Option("--format", metavar="FORMAT", help="azure, burstgpt, mooncake, csv or jsonl."),
    ],
    out: Annotated[Path, typer.Option(help="Trace to write, Parquet; replaced if it is there.")],
    gaps: GapsOption = Gaps.KEEP,
    as_json: JsonOption = False,
) -> None:
    """Turn a recording into a trace.

    Rows that failed are dropped and counted, rows out of order are sorted, and
    the clock starts at the first request. Nothing is written if the file cannot
    be used.

    csv and jsonl need arrival_s (seconds or ISO dates), prompt_tokens and
    output_tokens, and may have client_id and prefix_hit_tokens.

    Examples:
      tuner trace import conv.csv --format azure --out conv.parquet
      tuner trace import gw.jsonl.gz --format jsonl --gaps mask --out week.parquet
    """
    from experiments.load import warn_of
    from tuner.core.gaps import treat_gaps
    from tuner.data.importing import import_trace
    from tuner.data.traces import write_trace

    with _progress(f"reading {file.name}") as progress:
        trace, report = import_trace(file, format_.value, progress)
    trace, found = treat_gaps(trace, gaps.value)
    write_trace(trace, out)
    if as_json:
        print(json.dumps({"out": str(out), "gaps": _spans(found), **asdict(report)}, indent=2))
        return
    _print_report(report)
    warn_of(found, Console(stderr=True), masked=gaps is Gaps.MASK)
    print_written(trace, out)


@app.command()
def describe(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace, Parquet.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a trace holds: span, load, lengths, burstiness, gaps, and the load over time.

    Examples:
      tuner trace describe week.parquet
      tuner trace describe week.parquet --json | jq .mean_qps
    """
    from experiments.load import warn_of
    from tuner.core.gaps import unmasked
    from tuner.data.summary import summarise
    from tuner.data.traces import read_trace

    trace = read_trace(file)
    summary = summarise(trace)
    if as_json:
        print(json.dumps(asdict(summary), indent=2))
        return
    console = Console(highlight=False)
    _print_summary(console, summary)
    _print_chart(console, trace)
    warn_of(unmasked(summary.gaps, summary.masked), Console(stderr=True), masked=False)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Trace to write, Parquet; replaced if it is there.")],
    workload: Annotated[str, typer.Option(help="Built-in workload.")] = "deepseek-r1-day",
    hours: Annotated[float, typer.Option(help="Length; days repeat their shape.")] = 24.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trace.")] = 1,
    qps: Annotated[
        float | None, typer.Option(help="Requests/s in the mean of a day; else the workload's own.")
    ] = None,
) -> None:
    """Draw a trace from a built-in workload.

    Examples:
      tuner trace generate --out day.parquet
      tuner trace generate --hours 48 --qps 30 --seed 7 --out busy.parquet
    """
    from difflib import get_close_matches

    from envs.workloads import WORKLOADS
    from tuner.core.errors import ConfigError
    from tuner.data.traces import write_trace

    if workload not in WORKLOADS:
        near = get_close_matches(workload, WORKLOADS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"workload {workload!r} is not built in{hint} (built in: {', '.join(WORKLOADS)})"
        )
    draw = WORKLOADS[workload]
    trace = draw(hours, seed) if qps is None else draw(hours, seed, qps)
    write_trace(trace, out)
    print_written(trace, out)


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(escape(title)),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _spans(gaps: tuple[Gap, ...]) -> list[list[float]]:
    return [[gap.start_s, gap.end_s] for gap in gaps]


def _print_report(report: ImportReport) -> None:
    console = Console(highlight=False)
    console.print(f"{report.rows:,} rows read, {report.kept:,} kept")
    for reason, count in report.dropped.items():
        console.print(f"  dropped {count:,} {reason} ({count / report.rows:.2%})")
    if report.out_of_order:
        rows = "1 row was" if report.out_of_order == 1 else f"{report.out_of_order:,} rows were"
        console.print(f"  {rows} out of order: sorted by arrival")
    if report.clients:
        console.print(f"  {len(report.clients):,} client names numbered from 0")


def _print_summary(console: Console, summary: TraceSummary) -> None:
    from tuner.commands.chart import duration

    console.print(f"[bold]{escape(summary.name)}[/]")
    origin = ", ".join(f"{key} {value}" for key, value in summary.header.items())
    if origin:
        console.print(f"[dim]{escape(origin)}[/]")
    figures = Table.grid(padding=(0, 2))
    figures.add_row("requests", f"{summary.requests:,}")
    masked = f", {duration(summary.masked_s)} of it masked" if summary.masked else ""
    figures.add_row("span", f"{duration(summary.span_s)}{masked}")
    figures.add_row("requests/s", _load_line(summary))
    if summary.gap_cv is not None:
        figures.add_row("intervals", f"CV {summary.gap_cv:.2f} (Poisson: 1)")
    dispersion = [
        f"{value:,.{0 if value >= 10 else 1}f} ({_WINDOWS[window]})"
        for window, value in summary.dispersion.items()
        if value is not None
    ]
    if dispersion:
        figures.add_row("counts", f"variance/mean {', '.join(dispersion)} (Poisson: 1)")
    if summary.clients is not None:
        count, share = summary.clients.clients, summary.clients.largest_share
        figures.add_row("clients", f"{count}, the largest sends {share:.0%} of the requests")
    if summary.prefix_hit_share is not None:
        figures.add_row("prefix reuse", f"{summary.prefix_hit_share:.0%} of the prompt tokens")
    console.print(figures)
    console.print(_token_table(summary))


def _load_line(summary: TraceSummary) -> str:
    line = f"mean {summary.mean_qps:.3g}"
    peaks = {"15 s": summary.peak_qps_15s, "1 min": summary.peak_qps_60s}
    known = [f"{peak:.3g} ({window})" for window, peak in peaks.items() if peak is not None]
    if known:
        line += f", peak {', '.join(known)}"
    if summary.largest_rise_10min is not None:
        line += f", steepest ×{summary.largest_rise_10min:.2f} (10 min)"
    return line


def _token_table(summary: TraceSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    table.add_column("tokens")
    names = ["mean", *summary.prompt.quantiles, "max", "tokens/s"]
    for name in names:
        table.add_column(name, justify="right")
    for title, tokens in (("prompt", summary.prompt), ("output", summary.output)):
        table.add_row(title, *_token_cells(tokens))
    return table


def _token_cells(tokens: TokenSummary) -> list[str]:
    figures = [tokens.mean, *tokens.quantiles.values(), tokens.max, tokens.tokens_per_s]
    return [f"{figure:,.0f}" for figure in figures]


def _print_chart(console: Console, trace: Trace) -> None:
    from tuner.commands import chart
    from tuner.data.summary import window_counts

    span_s = trace.last_arrival_s - float(trace.arrival_s[0])
    width = min(console.width, 100)
    window_s = span_s / width
    if len(trace) < width or span_s <= 0:
        return
    counts = window_counts(trace, window_s)
    lines = chart.columns(
        counts / window_s,
        width=width,
        height=6,
        span_s=span_s,
        axis="requests/s",
        ascii_only=console.options.ascii_only,
    )
    console.print()
    for line in lines:
        console.print(line, markup=False, no_wrap=True, overflow="crop")
