"""`tuner calibrate`: from measurements to a serving profile."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tuner.commands.simulate import RouterName


class BatchLawName(StrEnum):
    """How a decode's time grows with the batch, as the command line knows it."""

    EXPERTS = "experts"
    POWER = "power"


_STEPS = "Step logs"
_POINTS = "Closed-loop points"
_TELEMETRY = "Telemetry"


def command(
    base: Annotated[
        str,
        typer.Argument(
            metavar="PROFILE",
            help="What is not fitted comes from here: a built-in name, or a YAML file.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Profile to write, YAML.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Page to write: plots of measured against simulated, HTML.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the profile. (default: that of the file)")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Rule-set to simulate. (default: the profile's)")
    ] = None,
    terms: Annotated[
        str | None,
        typer.Option(
            help="Terms to fit, with commas. Step logs: batch-table, prefill-table, context "
            "(default: those that pay on what is left out). Points: kv, prefill-base, ingress "
            "(default: kv,prefill-base). Telemetry: sequences, prefill, kv, prefill-base, ingress "
            "(default: sequences,prefill,kv)."
        ),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out of the fit and judge it on: the number of a run; a shape, as "
            "8192/1024; a number of clients. May be repeated. (default: each in turn; of "
            "telemetry always spans of time in turn)"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Draws the bootstrap, the requests' lengths and arrivals, and the search.", min=0
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    steps: Annotated[
        Path | None,
        typer.Option(
            help="One row per iteration: prefill_tokens, batch, kv_tokens, step_s, and where known "
            "context_pairs and run. NPZ, Parquet or CSV.",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="The requests that were served meanwhile, to compare with the same load "
            "simulated: arrival_s, prompt_tokens, output_tokens, ttft_s, e2e_s.",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(
            help="The first three columns of --requests, where they lie in a file of their own.",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(help="That served --requests, or what --telemetry recorded.", min=1),
    ] = 1,
    router: Annotated[RouterName, typer.Option(help="In front of them.")] = RouterName.ROUND_ROBIN,
    telemetry: Annotated[
        Path | None,
        typer.Option(
            help="What `tuner record` wrote, over a span in which --replicas stayed the same.",
            rich_help_panel=_TELEMETRY,
        ),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(help="Candidates to simulate.", min=10, rich_help_panel=_TELEMETRY),
    ] = 200,
    points: Annotated[
        Path | None,
        typer.Option(
            help="One row per benchmark: isl, osl, concurrency, ttft_ms, tpot_ms, and what it ran "
            "on. Parquet.",
            rich_help_panel=_POINTS,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Only this model_path.", rich_help_panel=_POINTS)
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="Only this system, as h200_sxm.", rich_help_panel=_POINTS),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Only this backend.", rich_help_panel=_POINTS)
    ] = None,
    engine_version: Annotated[
        str | None,
        typer.Option(
            help="Only this backend_version; 'none' where it is empty.", rich_help_panel=_POINTS
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Only this precision, as fp8.", rich_help_panel=_POINTS)
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="agg, or disagg: prompts are prefilled elsewhere, only decodes are fitted.",
            rich_help_panel=_POINTS,
        ),
    ] = "agg",
    tp: Annotated[
        float | None, typer.Option(help="Only this tp_size.", rich_help_panel=_POINTS)
    ] = None,
    dp: Annotated[
        float | None,
        typer.Option(
            help="Only this attention_dp_size; so many ranks share the cache's reads.",
            rich_help_panel=_POINTS,
        ),
    ] = None,
    ep: Annotated[
        float | None, typer.Option(help="Only this moe_ep_size.", rich_help_panel=_POINTS)
    ] = None,
    batch_law: Annotated[
        BatchLawName,
        typer.Option(
            help="How a decode's time grows: the share of experts that a batch wakes, or a power.",
            rich_help_panel=_POINTS,
        ),
    ] = BatchLawName.EXPERTS,
    whole_prompts: Annotated[
        bool,
        typer.Option(
            "--whole-prompts",
            help="The servers' token budget was one prompt (per rank) and a token per client.",
            rich_help_panel=_POINTS,
        ),
    ] = False,
) -> None:
    """Fit a serving profile to measurements, and say how far off it is.

    From step logs (--steps) by relative least squares, from closed-loop benchmark points
    (--points) by simulating the benchmarks, or from a fleet's telemetry alone (--telemetry) by
    serving the recorded load with candidate profiles. The table shows each figure with its 95 %
    interval and the errors on what a fit did not see; --out writes the profile, --page the plots.

    Examples:

      tuner calibrate ours.yaml --steps steps.parquet --requests requests.parquet
      --replicas 4 --out fitted.yaml --page fitted.html

      tuner calibrate deepseek-r1-8xh200-sglang --points points.parquet
      --model deepseek-ai/DeepSeek-R1 --system h200_sxm --engine sglang
      --engine-version 0.5.9 --hold-out 8192/1024

      tuner calibrate ours.yaml --telemetry telemetry.parquet --replicas 4
      --router least_pending --out fitted.yaml --page fitted.html
    """
    from experiments.calibrate_command import (
        CalibrateRequest,
        calibrate,
        calibration_json,
        print_calibration,
    )

    given = {
        "model": model,
        "system": system,
        "engine": engine,
        "engine_version": engine_version,
        "precision": precision,
        "tp": tp,
        "dp": dp,
        "ep": ep,
    }
    filters: dict[str, str | float | None] = {
        key: None if value == "none" else value for key, value in given.items() if value is not None
    }
    found = calibrate(
        CalibrateRequest(
            base=base,
            out=out,
            page=page,
            name=name,
            scheduler=scheduler,
            terms=None if terms is None else tuple(filter(None, terms.split(","))),
            hold_out=tuple(hold_out or ()),
            seed=seed,
            steps=steps,
            requests=requests,
            workload=workload,
            replicas=replicas,
            router=router.value,
            telemetry=telemetry,
            trials=trials,
            points=points,
            filters={**filters, "mode": mode},
            batch_law=batch_law.value,
            whole_prompts=whole_prompts,
        ),
        console=Console(stderr=True),
    )
    if as_json:
        typer.echo(calibration_json(found))
        return
    console = Console(highlight=False)
    print_calibration(found, console)
    for path in (out, page):
        if path is not None:
            console.print(f"written: {path}")
