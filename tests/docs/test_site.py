"""The pages build into a site without a warning, from this checkout alone, and hold what they promise."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import DOCS, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_built_and_in_the_menu(site: Path) -> None:
    """Also one that mkdocs.yml does not place."""
    start = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        if "site" not in page.parts:
            built = page.relative_to(DOCS).with_suffix(".html")
            assert (site / built).is_file()
            assert built.as_posix() == "index.html" or f'href="{built.as_posix()}"' in start, f"{built} is in no menu"


def test_pages_that_are_placed_nowhere_come_last(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.md", "b.md", "deep/c.md", "z.md"):
        (tmp_path / name).write_text("# Page\n")
    hook = runpy.run_path(str(DOCS / "site" / "menu.py"))["on_config"]
    menu = [{"A": "a.md"}, {"Deep": [{"C": "deep/c.md"}]}]
    assert hook({"docs_dir": str(tmp_path), "nav": list(menu)})["nav"] == [*menu, {"More": ["b.md", "z.md"]}]
    assert hook({"docs_dir": str(tmp_path), "nav": ["a.md", "b.md", "deep/c.md", "z.md"]})["nav"][-1] == "z.md"


def test_the_reference_is_made_of_the_docstrings(site: Path) -> None:
    from circuits import __all__ as exported

    library = (site / "reference" / "library.html").read_text()
    headings = set(re.findall(r'<h[23] id="([\w.]+)"', library))
    names = {heading.rpartition(".")[2] for heading in headings}
    left_out = {"ALL_HEADS", "ModelError", "Paired"}
    assert set(exported) - left_out <= names
    assert "What is given together" not in library
    assert "All that is given is corrected together" in re.sub(r"\s+", " ", library)
    statistics = (site / "reference" / "statistics.html").read_text()
    assert "hierarchical_fdr" in statistics
    assert "Benjamini" in statistics


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    """Fonts, scripts, styles and pictures lie in the site."""
    for page in site.rglob("*.html"):
        for attribute, address in re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*?\b(src|href)="([^"]+)"', page.read_text()
        ):
            assert not re.match(r"(?:https?:)?//", address), f"{page.name}: {attribute} {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", style.read_text()), style.name


def test_the_site_is_no_part_of_the_package() -> None:
    settings = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())
    built = (DOCS / "site" / settings["site_dir"]).resolve()
    assert built.is_relative_to(ROOT / "build")
