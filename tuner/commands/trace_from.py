"""`tuner trace from-counts`, `from-telemetry`: traces out of what was counted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        float | None, typer.Option(help="Requests/s in the mean outside gaps; else as counted.")
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
