"""`tuner sandbox`: a simulated cluster to point the controller at."""

from __future__ import annotations

import json
import shlex
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tuner.commands.interrupts import OrderlyEnd, on_interrupt

if TYPE_CHECKING:
    from envs.sandbox import SandboxServer
    from envs.sandbox.cluster import Totals
    from tuner.core.trace import Trace

LOOK_EVERY_S = 0.5
"""Real seconds between two looks when nobody asks, so that no single one has much to catch up."""
STATUS_S = 60.0
"""Simulated seconds that the rates of the status line cover."""


def command(
    trace: Annotated[
        Path | None, typer.Option(help="Load, Parquet; instead of a workload.")
    ] = None,
    workload: Annotated[str, typer.Option(help="Built-in workload.")] = "deepseek-r1-day",
    hours: Annotated[float, typer.Option(help="Of the workload.")] = 24.0,
    repeat: Annotated[
        int, typer.Option(help="Play the load so many times; then there is none.", min=1)
    ] = 1,
    profile: Annotated[
        str, typer.Option(help="Serving profile: a built-in name or a YAML file.")
    ] = "deepseek-r1-8xh200-sglang",
    speed: Annotated[float, typer.Option(help="Simulated seconds per second.")] = 10.0,
    replicas: Annotated[
        int | None,
        typer.Option(help="Ready at the start. (default: what HPA would ask for)", min=1),
    ] = None,
    max_replicas: Annotated[
        int, typer.Option(help="Most that may be asked for.", min=1, max=512)
    ] = 32,
    policy: Annotated[
        str, typer.Option(help="For tuner.yaml: hpa, or the folder of a trained bundle.")
    ] = "hpa",
    target: Annotated[
        float | None,
        typer.Option(
            help="For tuner.yaml: output tokens/s per replica of the HPA rule. "
            "(default: a third of what a full replica decodes)"
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="On 127.0.0.1; 0 takes a free one.", min=0, max=65535)
    ] = 8900,
    out: Annotated[
        Path, typer.Option(help="Folder for tuner.yaml and prometheus.yml; it is made.")
    ] = Path("sandbox"),
    seed: Annotated[int, typer.Option(help="Of the workload and of cold starts.", min=0)] = 1,
    duration: Annotated[
        float | None, typer.Option(help="End after so many real seconds; else at Ctrl-C.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address as JSON once it answers.")
    ] = False,
) -> None:
    """A simulated cluster in wall-clock time, with the pages and endpoints of a real one.

    Per replica: /metrics as vLLM writes it, and a real runtime-config endpoint. Besides: the client
    side's counters, and a pool that scales. Writes DIR/tuner.yaml, ready for `tuner run`.
    When the load has been played, the cluster goes on without any.

    Examples:

      tuner sandbox

      tuner sandbox --trace day.parquet --speed 30 --replicas 12 --out sandbox
    """
    from envs.sandbox import SandboxCluster, SandboxServer
    from envs.sandbox import files as sandbox_files
    from envs.sandbox.load import repeated, sensible_replicas, sensible_target
    from tuner.core.clock import ScaledClock, WallClock
    from tuner.core.errors import ConfigError
    from tuner.data import load_profile

    for name, value in (("speed", speed), ("duration", duration), ("target", target)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}; expected a number above 0")
    if policy != "hpa" and not Path(policy).is_dir():
        raise ConfigError(f"--policy is {policy!r}; expected hpa, or the folder of a bundle")
    fleet = load_profile(profile)
    load = repeated(_load(trace, workload, hours, seed), repeat)
    rule = target or sensible_target(fleet)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("starting the simulation")
    epoch_s = WallClock().now_s()
    cluster = SandboxCluster(
        load,
        fleet,
        ScaledClock(speed, epoch_s),
        replicas=replicas or sensible_replicas(load, rule, max_replicas),
        max_replicas=max_replicas,
        seed=seed,
    )
    with SandboxServer(cluster, port=port, speed=speed, epoch_s=epoch_s) as server:
        config = sandbox_files.controller_config(
            cluster,
            url=server.url,
            speed=speed,
            epoch_s=epoch_s,
            folder=out,
            policy=policy,
            profile=profile,
            target=rule,
        )
        sandbox_files.write(out, config, sandbox_files.prometheus_config(server.url, speed))
        if as_json:
            typer.echo(json.dumps({"url": server.url, "config": str(out / "tuner.yaml")}))
        _say_what_next(console, server, out)
        stopped = threading.Event()
        with on_interrupt(stopped.set):
            interrupted = _run(server, stopped, duration, console)
    console.print(_last_line(cluster.totals, cluster.now_s))
    if interrupted:
        raise OrderlyEnd


def _load(trace: Path | None, workload: str, hours: float, seed: int) -> Trace:
    from difflib import get_close_matches

    from envs.workloads import WORKLOADS
    from tuner.core.errors import ConfigError
    from tuner.data import read_trace

    if trace is not None:
        return read_trace(trace)
    if workload not in WORKLOADS:
        near = get_close_matches(workload, WORKLOADS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"workload {workload!r} is not built in{hint} (built in: {', '.join(WORKLOADS)})"
        )
    return WORKLOADS[workload](hours, seed)


def _say_what_next(console: Console, server: SandboxServer, out: Path) -> None:
    config = shlex.quote(str(out / "tuner.yaml"))
    console.print(f"[bold]{server.url}[/]: {server.cluster.wanted} replicas; Ctrl-C ends it")
    console.print("next, in another terminal:")
    for line in (
        f"tuner config check {config} --live",
        f"tuner run --config {config} --mode shadow",
        f"tuner status --config {config}",
        f"curl {server.url}/pool",
    ):
        console.print(f"  {escape(line)}")


def _run(
    server: SandboxServer, stopped: threading.Event, duration_s: float | None, console: Console
) -> bool:
    """Let time pass and tell how it goes; whether it was stopped before its time."""
    from time import monotonic

    from rich.live import Live
    from rich.text import Text

    end_s = None if duration_s is None else monotonic() + duration_s
    past: deque[tuple[float, Totals]] = deque()
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        while not stopped.wait(_until(end_s, monotonic())):
            if end_s is not None and monotonic() >= end_s:
                return False
            with server.lock:
                server.cluster.look()
                now = (server.cluster.now_s, replace(server.cluster.totals))
                past.append(now)
                while len(past) > 2 and past[1][0] <= now[0] - STATUS_S:
                    past.popleft()
                line = _status(server, *past[0])
            if console.is_terminal:
                live.update(Text(line))
    return True


def _until(end_s: float | None, now_s: float) -> float:
    return LOOK_EVERY_S if end_s is None else min(LOOK_EVERY_S, max(end_s - now_s, 0.0))


def _status(server: SandboxServer, since_s: float, since: Totals) -> str:
    """One line. The lock is held."""
    from envs.simulator import ReplicaState

    cluster, now = server.cluster, server.cluster.totals
    ready = sum(one.state == ReplicaState.READY for one in cluster.instances.values())
    waiting = cluster.in_flight - sum(one.running for one in cluster.instances.values())
    span_s = cluster.now_s - since_s
    qps = (now.arrivals - since.arrivals) / span_s if span_s > 0 else 0.0
    judged = now.met + now.missed - since.met - since.missed
    attained = f"{(now.met - since.met) / judged:.1%}" if judged else "-"
    hours, seconds = divmod(int(cluster.now_s), 3600)
    load = "load played" if cluster.load_ended else f"{qps:.1f} requests/s"
    return (
        f"{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}  {ready}/{cluster.wanted} replicas  "
        f"{load}  {waiting} waiting  batch {cluster.batch_size}  in SLO {attained}"
    )


def _last_line(totals: Totals, now_s: float) -> str:
    judged = totals.met + totals.missed
    attained = f"{totals.met / judged:.2%} of them in SLO" if judged else "none judged"
    return (
        f"{now_s / 3600:.2f} simulated hours: {totals.arrivals:,} requests arrived, "
        f"{totals.finished:,} finished, {attained}; {totals.replica_s / 3600:,.1f} replica hours"
    )
