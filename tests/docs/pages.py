"""The pages of README and docs/, and what is in them: code, commands, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if "site" not in page.parts)])
_FENCE = re.compile(r"^```([\w+-]*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: "" for one that names none, which holds commands or what the program prints.
        line: of the page, where its text begins.
    """

    page: Path
    language: str
    text: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, found[1], found[2], text[: found.start(2)].count("\n") + 1)
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def shell_lines(block: Block) -> list[str]:
    """The commands of a block, continued lines joined, without prompts and comments; what it prints is left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    chosen = prompted if prompted else lines
    return [stripped for line in chosen if (stripped := re.sub(r"(^|\s)#.*$", "", line).strip())]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
