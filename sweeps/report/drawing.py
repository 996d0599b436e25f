"""A figure with the words that go with it, saved to disk and inlined into the page."""

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from sweeps.report.theme import FIGURE_STYLE, LIGHT

CELL = "cell:"  # the gid of a patch that stands for a trial is CELL + trial_id
_VARIABLE = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_PNG_DPI = 170
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_DROPPED = {"metadata", "title"}  # of the file; nothing of the drawing is in them


@dataclass(frozen=True)
class Drawing:
    name: str
    figure: Figure
    title: str
    alt: str
    caption: str
    tooltips: Mapping[str, str] = field(default_factory=dict)  # trial_id -> text

    def save(self, folder: Path) -> str:
        """Write NAME.svg and NAME.png; return the text of the SVG."""
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.StringIO()
        with matplotlib.rc_context(FIGURE_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a name; it is drawn as a box
            self.figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
            self.figure.savefig(folder / f"{self.name}.png", dpi=_PNG_DPI)
        (folder / f"{self.name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
        return buffer.getvalue()

    @property
    def width_px(self) -> int:
        return round(96 * self.figure.get_figwidth())


def inline(svg: str, drawing: Drawing) -> str:
    """The SVG for an HTML page: colours from the theme, ids of its own, a tooltip for each trial.

    Built as a tree and serialised from it, so text from the run directory stays text.
    """
    root = ElementTree.fromstring(svg)
    _drop(root)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.rpartition("}")[2], _attribute(key, value, drawing.name))
        name = element.attrib.pop("id", "")
        gid = name.removeprefix(f"{drawing.name}-")
        if gid in used:
            element.set("id", name)
        elif gid.startswith(CELL):
            _mark_cell(element, gid.removeprefix(CELL), drawing.tooltips)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", drawing.alt)
    return ElementTree.tostring(root, encoding="unicode")


def _drop(element: ElementTree.Element) -> None:
    for child in list(element):
        if child.tag.rpartition("}")[2] in _DROPPED:
            element.remove(child)
        else:
            _drop(child)


def _attribute(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{prefix}-", 1)
    if "url(#" in value:
        value = value.replace("url(#", f"url(#{prefix}-")
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLE.get(found[0], found[0]), value)


def _mark_cell(element: ElementTree.Element, trial_id: str, tooltips: Mapping[str, str]) -> None:
    element.set("data-trial", trial_id)
    text = tooltips.get(trial_id)
    if text is not None:
        title = ElementTree.Element("title")
        title.text = text
        element.insert(0, title)
