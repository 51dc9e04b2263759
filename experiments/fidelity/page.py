"""The findings as a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.fidelity.command import LABEL, Findings, Reference, tables, verdict
from experiments.fidelity.runs import LATENCIES
from experiments.report.document import MEASURED, Document, Plot, Section, Table, log_axis, series

QUANTILES = np.linspace(0.005, 0.995, 100)


def document(findings: Findings, command: str) -> Document:
    """Words, tables and plots."""
    by_title = [Table(columns, rows, title) for title, columns, rows in tables(findings)]
    references = len(by_title) - 2
    sections = [
        Section(
            "Exactness and distributions",
            text=[
                "The same requests in another simulator and here. A run with the same step times "
                "must agree for every request; one with its own step times is judged by its "
                "distributions.",
            ],
            tables=by_title[:references],
            plots=[
                Plot(
                    f"quantiles-{place}",
                    quantiles(one),
                    f"{one.name}: quantiles of both runs; on the line they agree.",
                )
                for place, one in enumerate(findings.references)
                if not one.exact
            ],
        ),
        Section(
            "By load",
            text=[
                "How an error of the step times shows in latency: the profile against itself, "
                f"slower by {100 * findings.error[0]:.1f} % (and prompt and KV terms by "
                f"{100 * findings.error[1]:.1f} % more), at shares of the fleet's capacity.",
            ],
            tables=[by_title[-2]],
            plots=[Plot("bands", by_load(findings), "Bars are 95 % intervals over the load.")],
        ),
        Section(
            "Decisions",
            text=[
                "Does the simulator pick the policy that would have been picked by the truth? "
                "Truth is the profile as it is; the doubles are perturbed within its error and "
                "have other cold starts. Regret is what the double's choice costs in truth beyond "
                "the best.",
                verdict(findings),
            ],
            tables=[by_title[-1]],
            plots=[
                Plot(
                    "decisions",
                    scores(findings),
                    "Cost of each policy as training weighs it, in truth and in the doubles.",
                )
            ],
        ),
    ]
    return Document(
        title=f"How wrong is {findings.profile.name}?",
        lead="All of it is simulated; the reference runs are those of another simulator.",
        eyebrow="experiments.fidelity",
        command=command,
        sections=sections if findings.references else sections[1:],
        facts=[
            ("scheduler rules", findings.profile.scheduler),
            ("error, TPOT", f"{100 * findings.error[0]:.1f} %"),
            ("error, TTFT", f"{100 * findings.error[1]:.1f} %"),
            ("policies", str(len(findings.decisions.candidates))),
        ],
    )


def quantiles(reference: Reference) -> dict[str, Any]:
    """A point per quantile and latency; plotly."""
    theirs, ours = (side.columns() for side in reference.sides)
    data: list[dict[str, Any]] = []
    for number, name in enumerate(LATENCIES):
        true_s, own_s = theirs[name], ours[name]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": LABEL[name],
                "x": np.nanquantile(true_s, QUANTILES).tolist(),
                "y": np.nanquantile(own_s, QUANTILES).tolist(),
                "marker": {"color": series(number), "size": 6},
            }
        )
    axes = {axis: log_axis(v for one in data for v in one[axis]) for axis in ("x", "y")}
    ends = [min(min(one["x"]) for one in data), max(max(one["x"]) for one in data)]
    line = {"color": MEASURED, "width": 1, "dash": "dot"}
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": ends,
            "y": ends,
            "line": line,
            "showlegend": False,
        }
    )
    return {
        "data": data,
        "layout": {
            "height": 420,
            "xaxis": {"title": {"text": "reference, s"}, **axes["x"]},
            "yaxis": {"title": {"text": "simulated, s"}, **axes["y"]},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 64, "r": 16, "t": 32, "b": 52},
        },
    }


def by_load(findings: Findings) -> dict[str, Any]:
    """Ratios of mean and p99 over the load; plotly."""
    data: list[dict[str, Any]] = []
    for number, name in enumerate(LATENCIES):
        for statistic, dash in (("mean", "solid"), ("p99", "dot")):
            ratios = [
                ratio
                for band in findings.bands
                for ratio in band.distance.ratios
                if (ratio.latency, ratio.statistic) == (name, statistic)
            ]
            bounds = [ratio.ci95 or (ratio.error, ratio.error) for ratio in ratios]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{LABEL[name]} {statistic}",
                    "x": [100 * band.load for band in findings.bands],
                    "y": [1 + ratio.error for ratio in ratios],
                    "error_y": {
                        "type": "data",
                        "symmetric": False,
                        "array": [
                            high - r.error for (_, high), r in zip(bounds, ratios, strict=True)
                        ],
                        "arrayminus": [
                            r.error - low for (low, _), r in zip(bounds, ratios, strict=True)
                        ],
                        "color": series(number),
                        "thickness": 1,
                    },
                    "line": {"color": series(number), "dash": dash},
                    "marker": {"color": series(number), "size": 7},
                }
            )
    return {
        "data": data,
        "layout": {
            "height": 420,
            "xaxis": {"title": {"text": "load, % of capacity"}},
            "yaxis": {
                "title": {"text": "slower / true, ratio"},
                **log_axis(value for one in data for value in one["y"]),
            },
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 64, "r": 16, "t": 32, "b": 52},
        },
    }


def scores(findings: Findings) -> dict[str, Any]:
    """Score of each candidate, truth and doubles; plotly."""
    made = findings.decisions
    names = [one.name for one in made.candidates]
    order = sorted(range(len(names)), key=lambda place: made.truth[place])
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"double {number + 1}",
            "x": [names[place] for place in order],
            "y": [double.scores[place] for place in order],
            "marker": {"color": series(number), "size": 7, "symbol": "circle-open"},
        }
        for number, double in enumerate(made.doubles)
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "truth",
            "x": [names[place] for place in order],
            "y": [made.truth[place] for place in order],
            "line": {"color": MEASURED, "width": 1.5},
            "marker": {"color": MEASURED, "size": 8},
        }
    )
    return {
        "data": data,
        "layout": {
            "height": 420,
            "xaxis": {"title": {"text": "policy, best in truth first"}},
            "yaxis": {"title": {"text": "cost, lower is better"}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 64, "r": 16, "t": 32, "b": 110},
        },
    }
