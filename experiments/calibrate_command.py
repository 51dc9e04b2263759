"""`tuner calibrate`: from measurements to a profile, a page and a table."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from envs.calibrate import (
    Coefficient,
    Point,
    PointFit,
    Replay,
    StepFit,
    TelemetryFit,
    calibrated,
    fit_points,
    fit_steps,
    fit_telemetry,
    law_of,
    read_points,
    read_recording,
    read_step_log,
    ready_for_fit,
    replay,
)
from envs.calibrate.cautions import SPREAD, cautions
from envs.calibrate.closed_loop import DEFAULT_TERMS, BatchLaw
from envs.calibrate.telemetry import DEFAULT_TERMS as TELEMETRY_TERMS
from envs.calibrate.telemetry import RANGE
from envs.simulator.schedulers import check_scheduler
from experiments.config import MOST_REPLICAS
from experiments.fanout import Watch
from experiments.progress import run_progress
from experiments.report import require_report_extra
from experiments.report.calibration import (
    TELEMETRY_COLUMNS,
    calibration_document,
    coefficient_row,
    telemetry_rows,
)
from experiments.report.document import render_document
from tuner.core.errors import InputError
from tuner.core.profile import ServingProfile, StepTime
from tuner.data.files import refuse_unwritable, write_together
from tuner.data.profiles import load_profile, profile_yaml
from tuner.data.telemetry import read_telemetry

_TO_BE_FITTED = StepTime(base_s=1.0)
"""Stands in where the base has no step time; every figure of it is fitted."""


@dataclass(frozen=True)
class CalibrateRequest:
    """What the command line asked for; exactly one of `steps`, `points`, `telemetry`."""

    base: str
    """Profile that gives everything but the step time: a built-in name or a YAML file."""
    out: Path | None = None
    page: Path | None = None
    name: str | None = None
    """Of the profile that is written; None: that of `out`, or of the base."""
    scheduler: str | None = None
    terms: tuple[str, ...] | None = None
    hold_out: tuple[str, ...] = ()
    seed: int = 0
    steps: Path | None = None
    requests: Path | None = None
    workload: Path | None = None
    replicas: int = 1
    router: str = "round_robin"
    telemetry: Path | None = None
    trials: int = 200
    points: Path | None = None
    filters: Mapping[str, str | float | None] = field(default_factory=dict)
    batch_law: BatchLaw = "experts"
    whole_prompts: bool = False
    """The token budget of a point's server was one prompt and a token per client."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What a calibration found."""

    profile: ServingProfile
    fit: StepFit | PointFit | TelemetryFit
    coefficients: tuple[Coefficient, ...]
    replay: Replay | None


def calibrate(request: CalibrateRequest, *, console: Console) -> Calibrated:
    """Fit, judge, and write what was asked for.

    Raises:
        InputError: an input cannot be used; nothing is written.
    """
    given = [one for one in (request.steps, request.points, request.telemetry) if one is not None]
    if len(given) != 1:
        raise InputError(
            "expected measurements: --steps FILE, --points FILE or --telemetry FILE"
            + (", and only one of them" if given else "")
        )
    if not 1 <= request.replicas <= MOST_REPLICAS:
        raise InputError(
            f"--replicas is {request.replicas}; expected 1 to {MOST_REPLICAS:,} replicas"
        )
    refuse_unwritable({"--out": request.out, "--page": request.page})
    if request.page is not None:
        require_report_extra()
    # Telemetry alone does not tell the terms apart: its fit starts from those of the base.
    unfitted = None if request.telemetry is not None else _TO_BE_FITTED
    base = load_profile(request.base, step_time=unfitted)
    base = replace(
        base,
        name=request.name or (request.out.stem if request.out else base.name),
        scheduler=request.scheduler or base.scheduler,
    )
    check_scheduler(base)
    with run_progress(console) as watch:
        if request.steps is not None:
            found = _from_steps(request, request.steps, base, watch)
        elif request.points is not None:
            found = _from_points(request, request.points, base, watch)
        else:
            assert request.telemetry is not None
            found = _from_telemetry(request, request.telemetry, base, watch)
    if isinstance(found.fit, PointFit) and not found.fit.left_out:
        console.print(f"[yellow]warning:[/] {_unjudged(found.fit)}", soft_wrap=True)
    texts: dict[Path, str] = {}
    if request.out is not None:
        texts[request.out] = profile_yaml(found.profile)
    if request.page is not None:
        texts[request.page] = render_document(
            calibration_document(
                found.profile, found.fit, found.coefficients, found.replay, _command()
            )
        )
    write_together(texts)
    return found


def _from_steps(
    request: CalibrateRequest, path: Path, base: ServingProfile, watch: Watch
) -> Calibrated:
    log = read_step_log(path)
    recording = None
    if request.requests is not None:
        recording = read_recording(request.requests, request.workload)
    try:
        runs = [int(run) for run in request.hold_out]
    except ValueError as error:
        raise InputError(
            f"--hold-out {', '.join(request.hold_out)}: expected numbers of runs in a step log"
        ) from error
    fit = fit_steps(log, base, terms=request.terms, hold_out=runs, seed=request.seed, watch=watch)
    profile = replace(base, step_time=fit.step_time)
    errors = dict(fit.errors)
    simulated = None
    if recording is not None:
        simulated = replay(
            recording,
            profile,
            replicas=request.replicas,
            router=request.router,
            seed=request.seed,
        )
        errors |= simulated.errors()
    how = f"runs {', '.join(request.hold_out)} left out" if runs else "left out in turn"
    origin = {
        "step_time": (
            f"{fit.law.name[0].upper()}{fit.law.name[1:]}, relative least squares over "
            f"{len(log):,} iterations of {path.name}, none negative; 95 % intervals by block "
            f"bootstrap. "
            f"`{_command()}`"
        ),
        "step_time.batch_table": _batch_origin(fit, profile),
        "error": f"Iterations in blocks or runs, {how}; requests: the same workload simulated.",
    }
    return Calibrated(
        calibrated(profile, fit.coefficients, errors, origin), fit, fit.coefficients, simulated
    )


def _batch_origin(fit: StepFit, profile: ServingProfile) -> str:
    """Up to where the batch table was measured, and how it goes on."""
    least, most = int(fit.log.batch.min()), int(fit.log.batch.max())
    told = f"Measured at {least} to {most} sequences."
    if most >= profile.limits.batch_size_max:
        return told
    (before, before_s), (last, last_s) = fit.step_time.batch_table[-2:]
    slope_s = (last_s - before_s) / (last - before)
    rise = f"by {slope_s * 1e3:.3g} ms per sequence" if slope_s > 0 else "flat"
    return (
        f"{told} From there to batch_size_max {profile.limits.batch_size_max} it is extrapolated, "
        f"not measured: along the table's last stretch, {rise}."
    )


def _unjudged(fit: PointFit) -> str:
    count = len(fit.results)
    points = "1 point" if count == 1 else f"{count} points of one shape and number of clients"
    return (
        f"{points}: none can be left out, so the errors are those of the fit itself and say "
        "nothing about other loads; add points of other numbers of clients and lengths"
    )


def _from_points(
    request: CalibrateRequest, path: Path, base: ServingProfile, watch: Watch
) -> Calibrated:
    points = read_points(path, request.filters)
    system = request.filters.get("system")
    if not isinstance(system, str):
        raise InputError("--points needs --system: the priors are those of its GPUs")
    ranks = request.filters.get("dp")
    ranks = int(ranks) if isinstance(ranks, float) else 1
    if request.whole_prompts:
        points = [replace(point, budget_tokens=point.one_prompt_budget(ranks)) for point in points]
    law = law_of(
        points,
        base,
        system=system,
        batch_law=request.batch_law,
        terms=DEFAULT_TERMS if request.terms is None else request.terms,
        attention_ranks=ranks,
    )
    held = held_out_points(request.hold_out) if request.hold_out else None
    fit = fit_points(points, base, law, hold_out=held, seed=request.seed, watch=watch)
    engine = ", ".join(
        f"{key} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in request.filters.items()
    )
    priors = ", ".join(
        f"{name} {prior.median:.2g} ({prior.sigma:g})" for name, prior in law.priors.items()
    )
    shapes = ", ".join(dict.fromkeys(point.shape for point in points))
    origin = {
        "step_time": (
            f"Fitted by simulation to {len(points)} measured closed-loop points ({engine}; shapes "
            f"{shapes}, {min(p.clients for p in points)} to {max(p.clients for p in points)} "
            f"clients). Whether the source's latencies are means or medians is not stated; means "
            f"are assumed. Priors, median (sigma of the logarithm): {priors}. `{_command()}`"
        ),
        "step_time.batch_table": (
            f"{fit.batch_law}. Outside of the measured numbers of clients it is extrapolated."
        ),
        **_ingress_origin(fit),
        "error": (
            "Mean and worst relative error over the points; left out: predicted by fits that saw "
            "no point of that number of clients, or of that shape."
            if fit.left_out
            else f"Mean and worst relative error over the points. {_unjudged(fit)}."
        ),
    }
    return Calibrated(
        calibrated(fit.profile, fit.coefficients, fit.errors, origin), fit, fit.coefficients, None
    )


def _from_telemetry(
    request: CalibrateRequest, path: Path, base: ServingProfile, watch: Watch
) -> Calibrated:
    if request.hold_out:
        raise InputError(
            f"--hold-out {', '.join(request.hold_out)}: of telemetry, spans of time are left out "
            "in turn; leave the option out"
        )
    telemetry = read_telemetry(path)
    fit = fit_telemetry(
        ready_for_fit(telemetry, path.name),
        base,
        terms=TELEMETRY_TERMS if request.terms is None else request.terms,
        replicas=request.replicas,
        router=request.router,
        trials=request.trials,
        seed=request.seed,
        watch=watch,
    )
    header = telemetry.header
    origin = {
        "step_time": (
            f"Fitted by simulation to {path.name}: {fit.requests:,} requests of {header.target} "
            f"({header.engine}), {_day(header.since_s)} to {_day(header.until_s)}, on "
            f"{request.replicas} replica{'s' if request.replicas > 1 else ''}; quantiles of TTFT, "
            "TPOT and E2E from the engine's histograms, and requests in flight. Priors within a "
            f"factor of {RANGE:g} of {base.name}, scaled as a whole. Intervals: {SPREAD}. "
            f"{''.join(f'{told[0].upper()}{told[1:]}. ' for told in cautions(fit.recording))}"
            f"`{_command()}`"
        ),
        "error": (
            "Of quantiles over the whole recording; left out: spans of time by fits without them."
        ),
    }
    profile = fit.profile
    fitted = {coefficient.key for coefficient in fit.coefficients}
    assumed = tuple(key for key in profile.assumed if key not in {"step_time", *fitted})
    if "frontend.ingress_s" in fitted:
        origin["frontend"] = "ingress_s is fitted with step_time; no CPU work was measured."
    profile = replace(profile, assumed=assumed)
    return Calibrated(
        calibrated(profile, fit.coefficients, fit.errors, origin), fit, fit.coefficients, None
    )


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def _ingress_origin(fit: PointFit) -> dict[str, str]:
    if fit.profile.frontend is None or "frontend.ingress_s" not in {
        c.key for c in fit.coefficients
    }:
        return {}
    return {
        "frontend": (
            "ingress_s is fitted with step_time: what delays first tokens and no later ones, the "
            "benchmark's client among it. No CPU work was measured, so threads stay pinned."
        )
    }


def held_out_points(texts: Sequence[str]) -> Callable[[Point], bool]:
    """Whether a point is held out by one of the texts: `8192/1024`, a shape, or `64`, clients.

    Raises:
        InputError: a text is neither.
    """
    for text in texts:
        parts = text.split("/")
        if len(parts) > 2 or not all(part.isdigit() for part in parts):
            raise InputError(
                f"--hold-out {text}: expected PROMPT/OUTPUT tokens, as 8192/1024, or a number of "
                "clients, as 64"
            )
    named = set(texts)
    return lambda point: point.shape in named or str(point.clients) in named


def _command() -> str:
    return shlex.join(["tuner", *sys.argv[1:]])


def print_calibration(found: Calibrated, console: Console) -> None:
    """What was fitted, and how far off it is."""
    if isinstance(found.fit, PointFit):
        console.print(_points_table(found.fit))
        console.print()
    elif isinstance(found.fit, TelemetryFit):
        console.print(_telemetry_table(found.fit))
        for caution in cautions(found.fit.recording):
            console.print(f"[yellow]note:[/] {caution}", soft_wrap=True)
        console.print()
    else:
        for law, error in found.fit.tried.items():
            mark = " <- taken" if law == found.fit.law.name else ""
            console.print(f"{law}: {error:.2%} mean error of a step left out{mark}")
        console.print()
    console.print(_coefficients_table(found))
    if isinstance(found.fit, TelemetryFit):
        console.print(f"interval: {SPREAD}", soft_wrap=True)
    console.print("\n[bold]relative error[/]")
    for name, error in found.profile.error.items():
        console.print(f"  {name.replace('_', ' ')}: {error:.2%}")


def calibration_json(found: Calibrated) -> str:
    """The same for scripts."""
    told: dict[str, Any] = {
        "profile": found.profile.name,
        "scheduler": found.profile.scheduler,
        "error": dict(found.profile.error),
        "coefficients": [vars(coefficient) for coefficient in found.coefficients],
    }
    if isinstance(found.fit, PointFit):
        told["points"] = [
            {
                "shape": r.point.shape,
                "clients": r.point.clients,
                "ttft_s": r.point.ttft_s,
                "ttft_simulated_s": r.ttft_s,
                "tpot_s": r.point.tpot_s,
                "tpot_simulated_s": r.tpot_s,
            }
            for r in found.fit.results
        ]
        told["left_out"] = list(found.fit.left_out)
    elif isinstance(found.fit, StepFit):
        told["tried"] = dict(found.fit.tried)
    else:
        told["interval"] = SPREAD
        told["cautions"] = cautions(found.fit.recording)
    return json.dumps(told, indent=2)


def _points_table(fit: PointFit) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("prompt/output", no_wrap=True)
    for title in ("clients", "TTFT meas.", "sim. ms", "error", "TPOT meas.", "sim. ms", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in fit.results:
        point = result.point
        ttft = (f"{result.ttft_s * 1e3:.0f}", f"{result.ttft_error:+.1%}")
        table.add_row(
            point.shape,
            f"{point.clients}",
            f"{point.ttft_s * 1e3:.0f}",
            *(("–", "–") if point.decode_only else ttft),
            f"{point.tpot_s * 1e3:.2f}",
            f"{result.tpot_s * 1e3:.2f}",
            f"{result.tpot_error:+.1%}",
        )
    return table


def _telemetry_table(fit: TelemetryFit) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in TELEMETRY_COLUMNS:
        table.add_column(title, justify="left" if title == "figure" else "right", no_wrap=True)
    for row in telemetry_rows(fit):
        table.add_row(*row)
    return table


def _coefficients_table(found: Calibrated) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fitted, seconds")
    table.add_column("value", justify="right")
    kind = "interval" if isinstance(found.fit, TelemetryFit) else "95 % interval"
    table.add_column(kind, justify="right")
    tables: dict[str, list[Coefficient]] = {}
    for coefficient in found.coefficients:
        name, _, point = coefficient.key.partition("[")
        if point:
            tables.setdefault(name, []).append(coefficient)
        else:
            table.add_row(*coefficient_row(coefficient))
    for name, points in tables.items():
        widest = max((c.high - c.low) / 2 / c.value for c in points if c.value > 0)
        values = f"{points[0].value:.4g} to {points[-1].value:.4g}"
        table.add_row(f"{name}, {len(points)} points", values, f"±{widest:.1%} at the widest")
    return table
