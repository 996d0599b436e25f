"""Pages from templates: style, script and policy of their own, figures inside, everything printed escaped."""

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sweeps.report import wording
from sweeps.report.columns import script_text
from sweeps.report.drawing import Drawing, inline
from sweeps.report.printable import printable
from sweeps.report.theme import DARK, LIGHT, css_variables


@dataclass(frozen=True)
class Figure:
    """A drawing as the templates need it."""

    drawing: Drawing
    svg: Markup


def embedded(drawings: list[Drawing], folder: Path) -> list[Figure]:
    """Save the drawings as SVG and PNG, and give them to a page."""
    return [Figure(drawing, Markup(inline(drawing.save(folder), drawing))) for drawing in drawings]


# In this order: each file uses what those before it define.
SCRIPTS = (
    "elements", "wording", "columns", "colours", "state", "heatmap", "filters", "trials_table", "charts", "detail",
    "linked_views",
    "run_data", "run_detail", "run_explorer", "comparison_data", "comparison_detail", "comparison_explorer",
    "static_tables", "theme_toggle", "start",
)  # fmt: skip
VENDORED = ("d3.min.js", "plot.umd.min.js")
LICENSES = ("LICENSE-d3.txt", "LICENSE-plot.txt")


@dataclass(frozen=True)
class Script:
    """A script as a page holds it, and the hash by which the page's policy lets it run."""

    text: Markup
    digest: str


def fill(template: str, data: Any = None, **values: Any) -> str:
    """A page as text.

    Args:
        data: what the application on the page shows; None for a page without it, which needs no charts either.
    """
    environment = Environment(
        loader=PackageLoader("sweeps.report", "."),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ours = _script("\n".join(['"use strict";', *(_asset("js", f"{name}.js") for name in SCRIPTS)]))
    scripts = [ours] if data is None else [_vendored(), ours]
    return environment.get_template(template).render(
        **values,
        confidence=wording.CONFIDENCE,
        style=Markup(_style()),
        data=None if data is None else script_text(data),
        scripts=scripts,
        script_policy=" ".join(f"'sha256-{script.digest}'" for script in scripts),
    )


def _vendored() -> Script:
    """The chart library, each part with the notice that its licence asks for."""
    notices = "\n".join(_asset("vendor", name) for name in LICENSES)
    return _script("\n".join([f"/*\n{notices}*/", *(_asset("vendor", name) for name in VENDORED)]))


def _script(text: str) -> Script:
    """Line ends are those that a browser's parser makes of them, since the hash is of what it reads."""
    text = text.replace("\r\n", "\n")
    assert "</script" not in text
    return Script(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _asset(*path: str) -> str:
    return files("sweeps.report").joinpath(*path).read_text(encoding="utf-8")


def _style() -> str:
    light, dark = css_variables(LIGHT), css_variables(DARK)
    return "\n".join(
        [
            f":root {{ {light} color-scheme: light; }}",
            f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} color-scheme: dark; }} }}",
            f":root[data-theme=dark] {{ {dark} color-scheme: dark; }}",
            _asset("style.css"),
            _asset("application.css"),
        ]
    )
