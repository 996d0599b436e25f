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


def fill(template: str, **values: Any) -> str:
    """A page as text."""
    environment = Environment(
        loader=PackageLoader("sweeps.report", "."),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("table.js")
    return environment.get_template(template).render(
        **values,
        confidence=wording.CONFIDENCE,
        style=Markup(_style()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _asset(name: str) -> str:
    return (files("sweeps.report") / name).read_text(encoding="utf-8")


def _style() -> str:
    light = f":root {{ {css_variables(LIGHT)} }}"
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} }}"
    return f"{light}\n{dark}\n{_asset('style.css')}"
