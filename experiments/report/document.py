"""A page of words, tables and plots in the style of the report, in one HTML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.report.colours import OTHERS
from experiments.report.template import render_template
from tuner.data.files import replacing

MEASURED, SIMULATED = "--ink", "--series-0"
"""Colours of plots: what was measured, and what was simulated; further series have `series(n)`."""


def series(number: int) -> str:
    """Name of the CSS variable with the colour of the n-th series."""
    return f"--series-{number % len(OTHERS)}"


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """A plotly axis whose labels are whole numbers: plotly writes 2 3 4 ... 9 between decades.

    Over two decades and more, powers of ten; else 1, 2 and 5 of each; where fewer than three of
    them fall inside, plotly's own.

    Args:
        values: that are drawn; those that are not above 0 are left out.
    """
    drawn = [value for value in values if 0 < value < math.inf]
    if not drawn:
        return {"type": "log"}
    low, high = math.log10(min(drawn)), math.log10(max(drawn))
    if high - low >= 2:
        return {"type": "log", "dtick": 1}
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    inside = [step for step in steps if min(drawn) / 1.1 <= step <= max(drawn) * 1.1]
    if len(inside) < 3:
        return {"type": "log"}
    return {"type": "log", "tickvals": inside, "ticktext": [f"{step:,g}" for step in inside]}


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each names it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A plotly figure; its colours are names of CSS variables."""

    name: str
    figure: Mapping[str, object]
    hint: str = ""
    """How to read it."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in the order of the members."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    pairs: Sequence[tuple[str, str]] = ()
    """Words and what they mean."""


@dataclass(frozen=True)
class Document:
    """A page."""

    title: str
    lead: str
    """What this is about, in one sentence."""
    eyebrow: str
    """The command's name."""
    command: str
    """That makes the page again."""
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = field(default=())


def render_document(document: Document) -> str:
    """The page as HTML."""
    plots = {plot.name: plot.figure for section in document.sections for plot in section.plots}
    palette = [(series(number), colour) for number, colour in enumerate(OTHERS)]
    return render_template("document.html", plots=plots, document=document, palette=palette)


def write_document(document: Document, path: Path) -> None:
    """Write the page; an old file stays until the new one is whole.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(render_document(document), encoding="utf-8")
