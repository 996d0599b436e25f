"""No dead link: pages, headings and pictures that README and docs/ point to are there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, prose

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


def links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Headings as the site and GitHub name them, where both do alike."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)}: no {link}"
        assert target.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: {link} leads out of the checkout"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.relative_to(ROOT)}: no heading {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=lambda page: page.name)
def test_pages_link_among_themselves_only(page: Path) -> None:
    """The site holds docs/ and nothing else; files of the checkout are named, not linked."""
    outside = [
        link for link in links(page) if not (page.parent / link.partition("#")[0]).resolve().is_relative_to(DOCS)
    ]
    assert not outside


def test_every_picture_is_shown_somewhere() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page) if link.endswith(".png")}
    assert set((DOCS / "images").rglob("*.png")) <= shown


def test_there_are_links_and_a_dead_one_is_found(tmp_path: Path) -> None:
    assert sum(len(links(page)) for page in PAGES) > 20
    dead = tmp_path / "page.md"
    dead.write_text("[a](b.md) ![c](d.png) [e](https://example.com) [f](#g)\n```\n[x](y.md)\n```\n")
    assert links(dead) == ["b.md", "d.png", "#g"]
