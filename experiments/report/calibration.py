"""The page of a calibration: measured against simulated, coefficients with intervals, origins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from envs.calibrate import Coefficient, PointFit, Replay, Simulated, StepFit, TelemetryFit
from envs.calibrate.cautions import SPREAD, cautions
from envs.calibrate.telemetry import KINDS
from experiments.readable import percent
from experiments.report.colours import OTHERS
from experiments.report.document import Document, Plot, Section, Table, log_axis, series
from tuner.core.histograms import histogram_quantile
from tuner.core.profile import ServingProfile

SHOWN_STEPS = 3000
"""Iterations drawn as points: beyond it they only hide one another."""
QUANTILES = np.linspace(0.005, 0.995, 100)
_MARGIN = {"l": 72, "r": 16, "t": 40, "b": 52}
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}

Figure = dict[str, Any]


def calibration_document(
    profile: ServingProfile,
    fit: StepFit | PointFit | TelemetryFit,
    coefficients: Sequence[Coefficient],
    replay: Replay | None,
    command: str,
) -> Document:
    """The page of a calibration.

    Args:
        profile: as it is written, origins and errors included.
        command: that makes the page again.
    """
    tables, notes, intervals = [], [], "Seconds, with 95 % intervals."
    if isinstance(fit, StepFit):
        plots = _step_plots(fit)
    elif isinstance(fit, PointFit):
        plots = _point_plots(fit)
    else:
        plots = _telemetry_plots(fit)
        tables = [Table(TELEMETRY_COLUMNS, telemetry_rows(fit), TELEMETRY_TITLE)]
        notes = [f"{caution[0].upper()}{caution[1:]}." for caution in cautions(fit.recording)]
        intervals = f"Seconds. Interval: {SPREAD}."
    if replay is not None:
        plots["requests"] = (
            "Requests",
            "Quantiles of the recorded requests against the simulated ones, 0.5 to 99.5 %; on the "
            "line they are equal.",
            _quantiles(replay),
        )
    errors = [(name.replace("_", " "), percent(v, 2)) for name, v in profile.error.items()]
    unmodelled = [f"{knob}: {why}." for knob, why in profile.unmodelled_knobs().items()]
    gpus = f"{profile.gpus_per_replica} GPU{'s' if profile.gpus_per_replica > 1 else ''}"
    return Document(
        title=profile.name,
        lead=f"A replica of {gpus} under the scheduler rules {profile.scheduler}, fitted to "
        f"{_measured(fit)}.",
        eyebrow="tuner calibrate",
        command=command,
        sections=[
            Section(
                "How far off it is",
                [
                    "Relative errors against what was measured; left out: on what a fit did not "
                    "see.",
                    *notes,
                ],
                [*tables, Table(("figure", "relative error"), errors)],
            ),
            *(
                Section(title, plots=[Plot(name, figure, hint)])
                for name, (title, hint, figure) in plots.items()
            ),
            Section(
                "Fitted figures",
                [intervals],
                [
                    Table(
                        ("figure", "value", "interval"), [coefficient_row(c) for c in coefficients]
                    )
                ],
            ),
            Section("Where the figures come from", pairs=list(profile.origin.items())),
            Section("What is not modelled", [*profile.not_modelled, *unmodelled]),
        ],
    )


def coefficient_row(coefficient: Coefficient) -> tuple[str, str, str]:
    """Key, value and interval of a fitted figure, as tables show them."""
    low, high = f"{coefficient.low:.4g}", f"{coefficient.high:.4g}"
    return coefficient.key, f"{coefficient.value:.4g}", f"{low} to {high}"


def _measured(fit: StepFit | PointFit | TelemetryFit) -> str:
    if isinstance(fit, StepFit):
        return f"{len(fit.log):,} engine iterations; {fit.law.name}"
    if isinstance(fit, TelemetryFit):
        return f"the telemetry of {fit.requests:,} requests"
    shapes = ", ".join(dict.fromkeys(result.point.shape for result in fit.results))
    return f"{len(fit.results)} closed-loop benchmarks of {shapes} tokens; {fit.batch_law}"


def _step_plots(fit: StepFit) -> dict[str, tuple[str, str, Figure]]:
    log = fit.log
    rng = np.random.default_rng(0)
    judged = np.flatnonzero(np.isfinite(fit.predicted_s))
    shown = np.sort(rng.choice(judged, size=min(SHOWN_STEPS, len(judged)), replace=False))
    kinds = {"decodes only": log.prefill_tokens == 0, "with prompt tokens": log.prefill_tokens > 0}
    scatter = []
    for place, (name, kind) in enumerate(kinds.items()):
        rows = shown[kind[shown]]
        scatter.append(
            _marks(
                name,
                _ms(log.step_s[rows]),
                _ms(fit.predicted_s[rows]),
                place,
                {"size": 4, "opacity": 0.5},
            )
        )
    plots = {
        "steps": (
            "Iterations",
            f"{len(shown):,} of {len(judged):,} iterations, each by a fit that did not see its "
            "block or run; on the line the prediction is exact.",
            _figure(
                [*scatter, _diagonal(log.step_s[shown] * 1e3)],
                "measured, ms per iteration",
                "predicted, ms",
            ),
        )
    }
    for key, what in (("batch_table", "sequences"), ("prefill_table", "prompt tokens")):
        rows = [c for c in fit.coefficients if c.key.startswith(f"step_time.{key}[")]
        if rows:
            plots[key] = (
                f"Milliseconds by {what}",
                "The fitted table with its 95 % interval.",
                _table_plot(rows, what),
            )
    return plots


TELEMETRY_COLUMNS = ("figure", "recorded", "simulated", "error", "left out", "error left out")
TELEMETRY_TITLE = "Quantiles over the recording, by the engine's own buckets on both sides"


def telemetry_rows(fit: TelemetryFit) -> list[tuple[str, ...]]:
    """Recorded beside simulated, by the fit and by those that did not see a span; milliseconds."""
    rows: list[tuple[str, ...]] = []
    for kind in KINDS:
        columns = [
            fit.quantiles(blocks, kind)
            for blocks in (fit.recording.measured, fit.simulated, fit.left_out)
        ]
        for name, recorded in columns[0].items():
            own, unseen = columns[1][name], columns[2][name]
            rows.append(
                (
                    f"{kind.removesuffix('_s').upper()} {name}, ms",
                    *(f"{1e3 * recorded:.4g}", f"{1e3 * own:.4g}", f"{own / recorded - 1:+.1%}"),
                    *(f"{1e3 * unseen:.4g}", f"{unseen / recorded - 1:+.1%}"),
                )
            )
    return rows


def _telemetry_plots(fit: TelemetryFit) -> dict[str, tuple[str, str, Figure]]:
    return {
        kind: (
            f"{kind.removesuffix('_s').upper()} over time",
            "Median by block of time: as recorded, and by a fit that did not see the span.",
            _over_time(fit, kind),
        )
        for kind in KINDS
    }


def _over_time(fit: TelemetryFit, kind: str) -> Figure:
    recording = fit.recording
    middle_min = (recording.edge_s[1:] + recording.edge_s[:-1]) / 120
    traces = []
    for place, (name, blocks) in enumerate(
        (("recorded", recording.measured), ("simulated, left out", fit.left_out))
    ):
        median_s = histogram_quantile(0.5, recording.bounds[kind], blocks.counts[kind])
        shown = recording.judged & np.isfinite(median_s)
        trace = _marks(name, _short(middle_min[shown]), _ms(median_s[shown]), place, {"size": 6})
        traces.append(trace | {"mode": "lines+markers"})
    return _figure(traces, "minutes", "median, ms")


def _table_plot(rows: Sequence[Coefficient], what: str) -> Figure:
    x = [int(row.key.partition("[")[2].rstrip("]")) for row in rows]
    value = np.array([row.value for row in rows])
    low, high = np.array([row.low for row in rows]), np.array([row.high for row in rows])
    line = _marks("fitted", x, _ms(value), 0, {"size": 5})
    line["mode"] = "lines+markers"
    line["line"] = {"color": series(0), "width": 1.4}
    line["error_y"] = {
        "type": "data",
        "symmetric": False,
        "array": _ms(np.maximum(high - value, 0)),
        "arrayminus": _ms(np.maximum(value - low, 0)),
        "color": series(0),
        "thickness": 1,
        "width": 3,
    }
    return _figure([line], what, "ms")


def _point_plots(fit: PointFit) -> dict[str, tuple[str, str, Figure]]:
    plots = {
        "tpot": (
            "TPOT",
            "Filled: measured. Line: simulated by the profile. Open: simulated by a fit that did "
            "not see the point.",
            _clients_plot(fit, "tpot_s", "TPOT, ms per token"),
        )
    }
    if not fit.results[0].point.decode_only:
        plots["ttft"] = (
            "TTFT",
            "As above. The measured one also holds the benchmark's own start-up queue and client.",
            _clients_plot(fit, "ttft_s", "TTFT, ms"),
        )
    return plots


def _clients_plot(fit: PointFit, name: str, title: str) -> Figure:
    shapes = list(dict.fromkeys(result.point.shape for result in fit.results))
    traces = []
    for place, shape in enumerate(shapes):
        own = [r for r in fit.results if r.point.shape == shape]
        clients = [r.point.clients for r in own]
        measured = _ms([getattr(r.point, name) for r in own])
        traces.append(_marks(f"{shape}, measured", clients, measured, place, {"size": 9}))
        line = _marks(f"{shape}, simulated", clients, _ms_of(own, name), place, {"size": 1})
        line |= {"mode": "lines", "line": {"color": series(place), "width": 1.6}}
        traces.append(line)
        for what, results in fit.left_out.items():
            unseen = [r for r in results if r.point.shape == shape]
            open_mark = {"size": 10, "symbol": f"{OTHERS[place % len(OTHERS)].symbol}-open"}
            if what == "shape":
                open_mark["symbol"] = "circle-open"
            label = f"{shape}, {what.replace('_', ' ')} left out".replace("held out left", "left")
            x = [r.point.clients for r in unseen]
            traces.append(_marks(label, x, _ms_of(unseen, name), place, open_mark))
    figure = _figure(traces, "clients", title)
    figure["layout"]["xaxis"]["type"] = "log"
    figure["layout"]["yaxis"] |= log_axis(value for trace in traces for value in trace["y"])
    ticks = sorted({result.point.clients for result in fit.results})
    figure["layout"]["xaxis"] |= {"tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
    return figure


def _quantiles(replay: Replay) -> Figure:
    traces = []
    every = []
    for place, (name, measured) in enumerate(replay.measured.items()):
        x = np.quantile(measured, QUANTILES) * 1e3
        y = np.quantile(replay.simulated[name], QUANTILES) * 1e3
        traces.append(_marks(name.upper(), _short(x), _short(y), place, {"size": 5}))
        every.append(x)
    figure = _figure([*traces, _diagonal(np.concatenate(every))], "measured, ms", "simulated, ms")
    for axis in ("x", "y"):
        drawn = log_axis(value for trace in traces for value in trace[axis])
        figure["layout"][f"{axis}axis"] |= drawn
    return figure


def _marks(
    name: str, x: Sequence[float], y: Sequence[float], place: int, marker: dict[str, Any]
) -> Figure:
    symbol = OTHERS[place % len(OTHERS)].symbol
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {"color": series(place), "symbol": symbol, **marker},
    }


def _diagonal(values: Iterable[float]) -> Figure:
    ends = _short([min(values, default=0.0), max(values, default=1.0)])
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "equal",
        "showlegend": False,
        "hoverinfo": "skip",
        "x": ends,
        "y": ends,
        "line": {"color": "--goal", "width": 1.2, "dash": "dash"},
    }


def _figure(traces: list[Figure], x: str, y: str) -> Figure:
    return {
        "data": traces,
        "layout": {
            "height": 420,
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "hovermode": "closest",
            "legend": _LEGEND,
            "margin": _MARGIN,
        },
    }


def _ms_of(results: Sequence[Simulated], name: str) -> list[float]:
    return _ms([getattr(result, name) for result in results])


def _ms(seconds: Iterable[float]) -> list[float]:
    return _short(1e3 * np.asarray(list(seconds), dtype=np.float64))


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
