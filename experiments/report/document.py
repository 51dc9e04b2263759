"""A page of words, tables and plots in the style of the report, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.report.colours import OTHERS
from experiments.report.template import render_template
from tuner.data.files import replacing

MEASURED, SIMULATED = "--ink", "--series-0"
"""Colours of plots: what was measured, and what was simulated; further series have `series(n)`."""


def series(number: int) -> str:
    """Name of the CSS variable with the colour of the n-th series."""
    return f"--series-{number % len(OTHERS)}"


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
