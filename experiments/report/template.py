"""Templates into pages: styles, scripts, plotly.js and data in one file, nothing fetched."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING

from experiments.report.colours import DASHES, Colour, outline
from experiments.summary import plain
from tuner.core.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Environment


def require_report_extra() -> None:
    """Asks for the packages of the report before minutes of simulation, not after.

    Raises:
        InputError: one is not installed.
    """
    for package in ("jinja2", "plotly"):
        if find_spec(package) is None:
            raise InputError(
                f"the report needs {package}, which is not installed; "
                "install deepseek-tuner[report]"
            )


def render_template(name: str, *, plots: Mapping[str, object], **values: object) -> str:
    """One of this folder's templates as HTML.

    Args:
        name: of the template.
        plots: name of an element `plot-NAME` -> plotly figure; colours are names of CSS variables.
        values: whatever the template names.
    """
    from markupsafe import Markup

    return (
        _environment()
        .get_template(name)
        .render(
            # Our own: only what stands inside elements as text is escaped.
            style=Markup(_text("style.css")),
            charts=Markup(_text("charts.js")),
            timelines=Markup(_text("timelines.js")),
            plotly=_plotly(),
            plots=packed(json.dumps(plain(plots), separators=(",", ":"), allow_nan=False)),
            **values,
        )
    )


def packed(text: str) -> str:
    """Text as base64 of its gzip, which charts.js unpacks; the same text gives the same bits.

    plotly.js is 4.8 MB as it is and 2.0 MB so; the Python package holds no smaller build of it.
    """
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def swatch(colour: Colour, variable: str) -> str:
    """A piece of the policy's line with its symbol on it, as SVG."""
    return (
        f'<svg class="swatch" viewBox="-17 -10 34 20" style="color: var({variable})" aria-hidden='
        f'"true"><line x1="-17" x2="17" stroke-dasharray="{DASHES[colour.dash]}"/>'
        f'<path d="{outline(colour.symbol)}"/></svg>'
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("experiments.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> str:
    return (files("experiments.report") / name).read_text(encoding="utf-8")
