"""The report as a test reads it: tags, tables and text, from the standard library's parser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Cell:
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Table:
    attributes: dict[str, str | None]
    caption: str = ""
    headings: list[Cell] = field(default_factory=list)
    rows: list[tuple[dict[str, str | None], list[Cell]]] = field(default_factory=list)

    def column(self, key: str) -> int:
        return [cell.attributes.get("data-key") for cell in self.headings].index(key)


class PageParts(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[Table] = []
        self.text: list[str] = []
        self._cell: Cell | None = None
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._inside.append(tag)
        if tag == "table":
            self.tables.append(Table(attributes))
        elif tag == "tr" and "tbody" in self._inside:
            self.tables[-1].rows.append((attributes, []))
        elif tag in ("td", "th"):
            self._cell = Cell(attributes)
            body = "tbody" in self._inside
            (self.tables[-1].rows[-1][1] if body else self.tables[-1].headings).append(self._cell)

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._inside and self._inside[-1] in ("script", "style"):
            return
        self.text.append(data)
        if self._cell is not None:
            self._cell.text += data
        elif "caption" in self._inside:
            self.tables[-1].caption += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, caption: str) -> Table:
        return next(table for table in self.tables if table.caption.startswith(caption))
