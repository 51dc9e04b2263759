"""A grid's findings as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.grid.config import GridConfig
from experiments.grid.findings import Findings, caveats, tables, title, verdict
from experiments.grid.panel import RATIOS, performance_profile
from experiments.report.document import Document, Plot, Section, Table, log_axis, series
from experiments.statistics import Interval

WAYS = (
    "Rows come before means: a scenario that burns is seen in the first table. Over all of them "
    "stands the interquartile mean, the mean of the middle half of all runs; its interval draws "
    "whole scenarios anew where there are enough of them, else seeds within each scenario.",
    "Policies run the same loads and seeds. Rules are tuned on another draw of the same load, or "
    "on the training trace that the configuration names; curves are read with hindsight.",
)


def document(findings: Findings, grid: GridConfig, command: str) -> Document:
    """Words, tables and plots."""
    rows, overall, *equal = tables(findings)
    return Document(
        title=title(findings),
        lead=verdict(findings),
        eyebrow="experiments.grid",
        command=command,
        facts=[
            ("profile", grid.profile),
            ("scenarios", str(len(findings.cases))),
            ("seeds", str(grid.compare.seeds)),
            ("goal", f"{100 * findings.goal:g} %"),
        ],
        sections=[
            Section(
                "Over all scenarios",
                tables=[overall],
                plots=[
                    Plot(
                        "interquartile",
                        interquartile(findings),
                        "Interquartile means with 95 % intervals; up and to the left is better.",
                    )
                ],
            ),
            Section(
                "Who is close to the cheapest, and how often",
                plots=[
                    Plot(
                        "profiles",
                        profiles(findings),
                        "Share of runs in which a policy reaches the goal at no more than so many "
                        "times the cost of the cheapest policy that reaches it in that run. Where "
                        "a line ends below 1, the policy misses the goal in the rest.",
                    )
                ],
            ),
            *([Section("Cost at equal attainment", tables=equal)] if equal else []),
            Section("Per scenario", tables=[rows]),
            Section("How to read it", text=[*caveats(findings), *WAYS]),
        ],
    )


def interquartile(findings: Findings) -> dict[str, Any]:
    """A point per policy with its intervals; plotly."""
    data = []
    for number, policy in enumerate(findings.policies):
        cost, served = findings.cost[policy], findings.attainment[policy]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": policy,
                "x": [cost.iqm],
                "y": [100 * served.iqm],
                "error_x": _bars(cost.iqm, cost.ci95_scenarios or cost.ci95, series(number)),
                "error_y": _bars(
                    served.iqm, served.ci95_scenarios or served.ci95, series(number), scale=100
                ),
                "marker": {"color": series(number), "size": 10},
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 440,
            "xaxis": {"title": {"text": f"GPU hours / those of {findings.baseline}"}},
            "yaxis": {"title": {"text": "SLO attainment, %"}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 64, "r": 16, "t": 64, "b": 52},
        },
    }


def profiles(findings: Findings) -> dict[str, Any]:
    """A line per policy; plotly."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": policy,
            "x": RATIOS.tolist(),
            "y": performance_profile(findings.ratios[policy]).tolist(),
            "line": {"color": series(number), "shape": "hv"},
        }
        for number, policy in enumerate(findings.policies)
    ]
    return {
        "data": data,
        "layout": {
            "height": 440,
            "xaxis": {
                "title": {"text": "cost / cheapest that reaches the goal"},
                **log_axis(RATIOS),
            },
            "yaxis": {"title": {"text": "share of runs"}, "range": [0, 1.02]},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 64, "r": 16, "t": 64, "b": 52},
        },
    }


def _bars(
    value: float, bounds: Interval | None, colour: str, scale: float = 1
) -> Mapping[str, object]:
    if bounds is None:
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (bounds[1] - value)],
        "arrayminus": [scale * (value - bounds[0])],
        "color": colour,
        "thickness": 1,
    }


def markdown(findings: Findings, command: str) -> str:
    """The same words and tables for a pull request."""
    parts = [
        f"## {title(findings)}",
        f"**{verdict(findings)}**",
        *(_markdown_table(table) for table in tables(findings)[1:]),
        "<details><summary>Per scenario</summary>\n\n"
        + _markdown_table(tables(findings)[0])
        + "\n\n</details>",
        *caveats(findings),
        f"```sh\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.columns) + " |",
        "| --- |" + " ---: |" * (len(table.columns) - 1),
        *("| " + " | ".join(row) + " |" for row in table.rows),
    ]
    return "\n".join(lines)
