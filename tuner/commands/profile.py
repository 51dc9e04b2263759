"""`tuner profile`: the serving profiles at hand, and whether one of your own holds together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tuner.core.profile import ServingProfile, StepTime

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and check serving profiles: how fast one replica serves.",
)

ProfileArgument = Annotated[
    str, typer.Argument(metavar="PROFILE", help="A built-in name, or the path of a YAML file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the built-in profiles.

    Example:
      tuner profile list
    """
    from tuner.data.profiles import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    if as_json:
        print(json.dumps([asdict(profile) for profile in profiles], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    for title in ("GPUs", "batch", "KV tokens", "TPOT error", "TTFT error"):
        table.add_column(title, justify="right", no_wrap=True)
    for profile in profiles:
        table.add_row(
            profile.name,
            f"{profile.gpus_per_replica}",
            f"{profile.limits.batch_size_max}",
            f"{profile.kv.tokens:,}",
            _percent(profile.error.get("tpot_mean")),
            _percent(profile.error.get("ttft_mean")),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("[dim]error: mean over measured points, – where nothing was measured[/]")


@app.command()
def show(profile: ProfileArgument, as_json: JsonOption = False) -> None:
    """Show a profile's figures, where each comes from, and how far off it is.

    Examples:
      tuner profile show deepseek-r1-8xh200-sglang
      tuner profile show ./ours.yaml --json
    """
    from tuner.data.profiles import load_profile

    loaded = load_profile(profile)
    if as_json:
        print(json.dumps(asdict(loaded), indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{escape(loaded.name)}[/]")
    console.print(_figures(loaded))
    console.print()
    console.print(_speeds(loaded))
    if loaded.error:
        console.print("\n[bold]error[/] against measurements")
        console.print(_grid({key: f"{value:.1%}" for key, value in loaded.error.items()}))
    single = {key: bounds for key, bounds in loaded.interval.items() if "[" not in key}
    if single:
        console.print("\n[bold]intervals[/] of fitted figures, seconds; see origin for their kind")
        console.print(
            _grid({key: f"{low:.3g} to {high:.3g}" for key, (low, high) in single.items()})
        )
    if loaded.origin:
        console.print("\n[bold]origin[/]")
        console.print(_grid(loaded.origin))
    for sentence in loaded.not_modelled:
        console.print(f"\n[yellow]not modelled[/]: {escape(sentence)}")
    for knob, reason in loaded.unmodelled_knobs().items():
        console.print(f"\n[yellow]{knob}[/] is not modelled and stays pinned: {escape(reason)}")
    if loaded.assumptions():
        console.print(f"\n[yellow]assumed, not measured[/]: {', '.join(loaded.assumptions())}")


@app.command()
def check(profile: ProfileArgument, as_json: JsonOption = False) -> None:
    """Check a profile; every mistake is listed with its key, and the exit code is 2.

    Example:
      tuner profile check ./ours.yaml
    """
    from envs.simulator.schedulers import check_scheduler
    from tuner.core.step_time import check_step_time
    from tuner.data.profiles import load_profile

    loaded = load_profile(profile)
    check_scheduler(loaded)
    check_step_time(loaded)
    notes = [f"{knob} stays pinned: {why}" for knob, why in loaded.unmodelled_knobs().items()]
    if not loaded.origin:
        notes.append("no origin: nobody can tell where the figures come from")
    elif loaded.assumptions():
        notes.append(f"assumed, not measured: {', '.join(loaded.assumptions())}")
    if not loaded.error:
        notes.append("no error: nobody can tell how far off the figures are")
    if as_json:
        print(json.dumps({"name": loaded.name, "valid": True, "notes": notes}, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[green]valid[/]: {escape(loaded.name)}")
    for note in notes:
        console.print(f"  note: {escape(note)}")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _grid(rows: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for key, value in rows.items():
        grid.add_row(key, escape(value))
    return grid


def _figures(profile: ServingProfile) -> Table:
    kv, limits, step = profile.kv, profile.limits, profile.step_time
    rows = {
        "scheduler": profile.scheduler,
        "GPUs per replica": f"{profile.gpus_per_replica}",
        "KV cache": f"{kv.tokens:,} tokens: {kv.blocks:,} blocks of {kv.block_tokens}, "
        f"{kv.watermark:.0%} kept free at admission",
        "limits": f"{limits.batch_size_max} sequences, "
        f"{limits.chunk_tokens:,} tokens per iteration",
        "prefill": _prefill(step),
        "KV reads": f"{step.per_kv_token_s * 1e9:.3g} ns per token in the cache and iteration",
    }
    if step.straggler:
        rows["straggler"] = "iterations longer by " + ", ".join(
            f"{factor - 1:.1%} at {sequences} sequences" for sequences, factor in step.straggler
        )
    if limits.batch_size_oom is not None:
        rows["memory"] = f"runs out when started for more than {limits.batch_size_oom} sequences"
    if kv.prefix_cache:
        rows["prefix cache"] = "on"
    if profile.scheduler_options:
        rows["options"] = ", ".join(f"{k} {v}" for k, v in profile.scheduler_options.items())
    if profile.startup is not None:
        start = profile.startup
        stages = [
            f"{one.name} {getattr(start.stages, one.name).median_s:g} s"
            for one in fields(start.stages)
        ]
        rows["start"] = f"{start.stages.sum_s:.0f} s: {', '.join(stages)} (medians); "
        rows["start"] += f"{start.warmup_request_s:g} s per warm-up request"
        if start.ramp:
            steps = [f"{speed:.0%} for {requests} requests" for requests, speed in start.ramp]
            rows["ramp"] = ", ".join(steps)
    if profile.frontend is not None:
        front = profile.frontend
        rows["frontend"] = (
            f"{front.cores} cores, {front.per_request_s * 1e3:.3g} ms per request, "
            f"{front.per_token_s * 1e6:.3g} µs per prompt token, "
            f"{front.per_output_token_s * 1e6:.3g} µs per output token; "
            f"{front.ingress_s * 1e3:.3g} ms to the engine"
        )
    if profile.price_per_gpu_hour_usd is not None:
        rows["price"] = f"{profile.price_per_gpu_hour_usd:.2f} USD per GPU hour"
    return _grid(rows)


def _prefill(step: StepTime) -> str:
    """What prompt tokens cost."""
    if step.prefill_table:
        (low, low_s), (high, high_s) = step.prefill_table[0], step.prefill_table[-1]
        told = f"{low_s * 1e3:.3g} ms for {low} prompt tokens to {high_s * 1e3:.3g} ms for {high:,}"
    else:
        told = (
            f"{step.prefill_base_s * 1e3:.3g} ms per iteration with prompt tokens, and "
            f"{step.per_prefill_token_s * 1e6:.3g} µs per prompt token"
        )
    if step.per_context_s:
        told += f"; {step.per_context_s * 1e9:.3g} ns per prompt token and token before it"
    return told


def _speeds(profile: ServingProfile) -> Table:
    """Decode speed by batch, without KV reads and prompts."""
    from tuner.core.step_time import decode_seconds

    seconds = decode_seconds(profile)
    most = profile.limits.batch_size_max
    batches = sorted({min(2**power, most) for power in range(12)} | {most})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sequences")
    points = profile.step_time.batch_table
    last = points[-1][0] if points else most
    for batch in batches:
        table.add_column(f"{batch}{'*' if batch > last else ''}", justify="right")
    if last < most:
        table.caption = f"* extrapolated: the batch table ends at {last} sequences"
        table.caption_justify = "left"
    table.add_row("ms per iteration", *(f"{seconds[batch] * 1e3:.1f}" for batch in batches))
    table.add_row("output tokens/s", *(f"{batch / seconds[batch]:,.0f}" for batch in batches))
    return table
