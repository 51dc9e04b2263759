"""Templates into pages: styles, scripts, plotly.js and data in one file, nothing fetched."""

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


def render_template(name: str, *, plots: Mapping[str, object], **values: object) -> str:
    """One of this folder's templates as HTML.

    Args:
        name: of the template.
        plots: name of an element `plot-NAME` -> plotly figure; colours are names of CSS variables.
        values: whatever the template names.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("experiments.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("experiments.report")
    return environment.get_template(name).render(
        # Scripts and data are ours; only what could end the element early is escaped.
        style=Markup(_text(folder, "style.css")),
        script=Markup(_text(folder, "charts.js")),
        plotly=Markup(get_plotlyjs()),
        plots=Markup(_json(plots)),
        **values,
    )


def _text(folder: Any, name: str) -> str:
    text: str = (folder / name).read_text(encoding="utf-8")
    return text


def _json(value: object) -> str:
    """JSON that may stand in a script element: `</script>` cannot occur in it."""
    text = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")
