"""A page that needs nothing else: styles, scripts, plotly.js and data in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from experiments.summary import plain
from tuner.core.errors import InputError


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


def render_page(template: str, plots: Mapping[str, Mapping[str, Any]], /, **values: Any) -> str:
    """A template of this folder as HTML.

    Args:
        plots: plotly figures, each for the element `plot-NAME`; colours are CSS variables.
        values: what the template names.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    folder = files("experiments.report")
    environment = Environment(
        loader=PackageLoader("experiments.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **values,
        # Scripts and data are ours; only what could end the element early is escaped.
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup((folder / "charts.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        plots=Markup(_json(plots)),
    )


def _json(value: object) -> str:
    """JSON that may stand in a script element: `</script>` cannot occur in it."""
    text = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")
