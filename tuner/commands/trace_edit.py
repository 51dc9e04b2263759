"""`tuner trace edit`: another trace out of recorded or drawn ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from tuner.commands.written import print_written

_TailOption = Annotated[
    float | None,
    typer.Option(help="Exponent beyond the median; above 1 the long ones become longer."),
]


def edit(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace, Parquet.")],
    out: Annotated[Path, typer.Option(help="Trace to write, Parquet; replaced if it is there.")],
    start: Annotated[
        str | None, typer.Option("--from", help="Leave out what comes before: 90m, 12h, 2d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Leave out what comes from then on.")] = None,
    append: Annotated[
        list[Path] | None, typer.Option(help="Trace to follow at the end; may be repeated.")
    ] = None,
    overlay: Annotated[
        list[Path] | None, typer.Option(help="Trace to add at the same time; may be repeated.")
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(help="Move the load to later in the day; what is pushed out comes first."),
    ] = None,
    thin: Annotated[
        float | None, typer.Option(help="Share of the requests to keep, 0-1, by chance.")
    ] = None,
    burst_cv: Annotated[
        float | None,
        typer.Option(help="Draw new instants, gaps with this CV at the same load; Poisson: 1."),
    ] = None,
    outputs: Annotated[float | None, typer.Option(help="Factor on output tokens.")] = None,
    output_tail: _TailOption = None,
    prompts: Annotated[float | None, typer.Option(help="Factor on prompt tokens.")] = None,
    prompt_tail: _TailOption = None,
    seed: Annotated[int, typer.Option(help="Of thinning and bursts.")] = 1,
) -> None:
    """Cut, splice, overlay, shift, thin, and change bursts and lengths.

    Done in the order of the options above; the header of the new trace lists
    what was done. A day that a trace does not fill is masked as a gap where
    --phase moves it.

    Examples:
      tuner trace edit day.parquet --thin 0.5 --phase 3h --out shifted.parquet
      tuner trace edit day.parquet --burst-cv 2 --outputs 1.2 --out hard.parquet
      tuner trace edit a.parquet --until 8h --append b.parquet --out ab.parquet
    """
    from envs.workloads import edits
    from tuner.core.errors import ConfigError
    from tuner.data.traces import read_trace, write_trace
    from tuner.live.metrics.spans import span_s

    if seed < 0:
        raise ConfigError(f"--seed is {seed}; expected a whole number from 0 on")
    trace = read_trace(file)
    if start is not None or until is not None:
        start_s = 0.0 if start is None else span_s("--from", start)
        trace = edits.cut(trace, start_s, math.inf if until is None else span_s("--until", until))
    if append:
        trace = edits.spliced([trace, *map(read_trace, append)])
    if overlay:
        trace = edits.overlaid([trace, *map(read_trace, overlay)])
    if phase is not None:
        trace = edits.phase_shifted(trace, span_s("--phase", phase))
    if thin is not None:
        trace = edits.thinned(trace, thin, seed)
    if burst_cv is not None:
        trace = edits.with_bursts(trace, burst_cv, seed)
    lengths = {
        "outputs": outputs,
        "output_tail": output_tail,
        "prompts": prompts,
        "prompt_tail": prompt_tail,
    }
    given = {name: value for name, value in lengths.items() if value is not None}
    if given:
        trace = edits.with_lengths(trace, **given)
    write_trace(trace, out)
    print_written(trace, out)
