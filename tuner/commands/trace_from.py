"""`tuner trace from-counts`, `from-telemetry`: traces out of what was counted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tuner.commands.written import print_written

OutOption = Annotated[Path, typer.Option(help="Trace to write, Parquet; replaced if it is there.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same trace.")]


def from_counts(
    counts: Annotated[
        Path, typer.Argument(help="Requests per client and 10 minutes, Parquet.", metavar="COUNTS")
    ],
    out: OutOption,
    lengths: Annotated[
        Path | None,
        typer.Option(
            help="Length distributions per client, Parquet; else those of deepseek-r1-day."
        ),
    ] = None,
    same_clients: Annotated[
        bool, typer.Option("--same-clients", help="The lengths are of the very clients counted.")
    ] = False,
    qps: Annotated[
        float | None,
        typer.Option(
            help="Requests/s in the mean of what is written, outside gaps; else as counted."
        ),
    ] = None,
    hours: Annotated[float | None, typer.Option(help="How much of it; else all.")] = None,
    seed: SeedOption = 1,
) -> None:
    """Draw a trace from counted load: as many requests per client and window as were counted.

    COUNTS has the columns client_id, window_start_s, requests, iat_family and
    iat_shape; the lengths have client_id, window_start_s, field, value and
    prob. Windows in which nothing was recorded are masked as gaps.

    Examples:
      tuner trace from-counts pool.parquet --qps 20 --out ten-days.parquet
      tuner trace from-counts pool.parquet --lengths r1.parquet --out T.parquet
    """
    from envs.workloads import windows
    from envs.workloads.lengths import MeasuredLengths
    from tuner.core.errors import ConfigError
    from tuner.data.counts import read_counts, read_lengths
    from tuner.data.traces import write_trace

    if same_clients and lengths is None:
        raise ConfigError("--same-clients is given without --lengths; name the file of lengths")
    measured = None
    if lengths is not None:
        measured = MeasuredLengths(read_lengths(lengths), lengths.name, same_clients=same_clients)
    trace = windows.generate(read_counts(counts), seed, lengths=measured, mean_qps=qps, hours=hours)
    write_trace(trace, out)
    print_written(trace, out)


def from_telemetry(
    telemetry: Annotated[
        Path, typer.Argument(help="What `tuner record` wrote, Parquet.", metavar="TELEMETRY")
    ],
    out: OutOption,
    match: Annotated[
        str,
        typer.Option(
            help="Length over which tokens add up to the counters: 5m, 1h; or `row`, each row.",
        ),
    ] = "5m",
    seed: SeedOption = 1,
) -> None:
    """Turn recorded telemetry back into requests: the counts are real, single requests are drawn.

    Each row has as many arrivals as it counted; lengths come from the engine's
    histograms and add up to its token counters. Where nothing was seen for
    more than a minute the trace has a masked gap.

    Examples:
      tuner trace from-telemetry telemetry.parquet --out week.parquet
      tuner trace from-telemetry telemetry.parquet --match row --seed 2 --out T.parquet
    """
    from envs.workloads.recorded import ARRIVED, from_telemetry
    from tuner.data.telemetry import read_telemetry
    from tuner.data.traces import write_trace
    from tuner.live.metrics.spans import span_s

    match_s = 0.0 if match == "row" else span_s("--match", match)
    found = from_telemetry(read_telemetry(telemetry), seed, name=telemetry.name, match_s=match_s)
    write_trace(found.trace, out)
    print_written(found.trace, out)
    warnings = Console(stderr=True, highlight=False, soft_wrap=True)
    if found.arrivals_from != ARRIVED:
        warnings.print(f"[yellow]note:[/] arrivals are told by {found.arrivals_from}")
    if found.left_out:
        warnings.print(
            f"[yellow]warning:[/] {found.left_out:,} requests were counted only after a gap and "
            "are left out: when they came is not known"
        )
