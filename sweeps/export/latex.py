"""Tables and text as LaTeX that compiles with pdflatex and booktabs, whatever names the run has."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeps.export.tables import Column, Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "−": "$-$", "–": "--", "—": "---", "’": "'", "‘": "`", "“": "``", "”": "''",
    "…": r"\ldots{}", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "≤": r"$\le$", "≥": r"$\ge$", "·": r"$\cdot$",
    "\N{NO-BREAK SPACE}": "~", "\N{WORD JOINER}": "", "⁻": r"$^{-}$", "ᴺ": r"$^{N}$", "²": r"$^{2}$", "α": r"$\alpha$",
    "[": "{[}", "]": "{]}", "⁄": "/", "\n": " ", "\t": " ",
}  # fmt: skip
_CITATION = re.compile(r"\[@([a-z0-9_]+(?:; @[a-z0-9_]+)*)\]")
_LETTERS = "ßæøåłÆØÅŁ"  # these, and letters with these accents up to Latin Extended-A, pdflatex sets as they are
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0307\u0308\u030a\u030b\u030c\u0327"
_MISSING = "--"
_LONG_WIDTH = 0.62  # of the line, shared by the columns of long text


@dataclass(frozen=True)
class Figure:
    """A PDF under figures/, its caption, and the share of the line that it is wide."""

    name: str
    caption: str
    share: float


def escape(text: str) -> str:
    """Text as LaTeX; letters that pdflatex has no glyph for become their plain form, or their code point."""
    return "".join(_SPECIAL.get(letter) or _plain(letter) for letter in text)


def _plain(letter: str) -> str:
    if letter in _SPECIAL or unicodedata.category(letter).startswith("C"):
        return ""
    apart = unicodedata.normalize("NFD", letter)
    accented = len(apart) == 2 and apart[0].isascii() and apart[1] in _ACCENTS and letter < "\u0180"
    if letter.isascii() or letter in _LETTERS or accented:
        return letter
    simple = [part for part in unicodedata.normalize("NFKD", letter) if part.isascii() or part in _SPECIAL]
    return "".join(_SPECIAL.get(part, part) for part in simple).strip() or f"{{[}}U+{ord(letter):04X}{{]}}"


def paragraph(text: str) -> str:
    """Text with citations, written ``[@key; @other]``."""
    parts = _CITATION.split(text)
    cited = (f"\\cite{{{part.replace('; @', ',')}}}" if index % 2 else escape(part) for index, part in enumerate(parts))
    return "".join(cited)


def citations(text: str) -> list[str]:
    """Keys in the order of their first mention."""
    return list(dict.fromkeys(key for found in _CITATION.findall(text) for key in found.split("; @")))


def typeset(table: Table) -> str:
    """The table with its caption above and its footnotes below."""
    rows = table.typeset
    long = sum(column.kind == "long" for column in table.columns)
    layout = "".join(_alignment(column, long) for column in table.columns)
    body = [" & ".join(cells) + r" \\" for cells in zip(*(written(column, rows) for column in table.columns))]
    notes = "\n".join(rf"\par {escape(note)}" for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escape(table.caption)}.}}\smallskip",  # the standard classes put no room below a caption
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            " & ".join(escape(column.heading) for column in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\scriptsize",
            notes,
            r"\end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def _alignment(column: Column, long: int) -> str:
    if column.kind == "long":
        return rf">{{\raggedright\arraybackslash}}p{{{_LONG_WIDTH / long:.2f}\linewidth}}"
    return "l" if column.kind == "text" else "r"


def written(column: Column, rows: pd.DataFrame) -> list[str]:
    """The cells of a column; estimates and intervals of a table have the same number of decimals."""
    values = [rows[name].tolist() for name in column.names]
    if column.kind in ("text", "long"):
        return [escape("" if _absent(value) else str(value)) for value in values[0]]
    if column.kind == "probability":
        return [_probability(value) for value in values[0]]
    if column.kind == "count":
        between = "--" if column.names[0].startswith("t_") else ", "  # a range of timesteps, or two sizes
        return [between.join(_count(value) for value in pair) for pair in zip(*values)]
    digits = decimals(rows)
    if column.kind == "estimate":
        return [_number(value, digits, sign=True) for value in values[0]]
    return [f"[{_number(low, digits)}, {_number(high, digits)}]" for low, high in zip(*values)]


def decimals(rows: pd.DataFrame) -> int:
    """So many that the middle half-width of the intervals has two significant digits: more would be noise."""
    pairs = (("above_low", "above_high"), ("ci_low", "ci_high"))
    low, high = next((pair for pair in pairs if pair[0] in rows), ("", ""))
    if not low:
        return 2
    half = ((rows[high].astype(float) - rows[low].astype(float)) / 2).replace([math.inf, -math.inf], math.nan)
    middle = float(half.abs().median())
    return min(4, max(0, 1 - math.floor(math.log10(middle)))) if middle > 0 else 2


def _number(value: Any, digits: int, sign: bool = False) -> str:
    if _absent(value):
        return _MISSING
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    text = text.lstrip("+-") if float(text) == 0 else text
    return text.replace("-", "$-$").replace("+", "$+$")


def _probability(value: Any) -> str:
    if _absent(value):
        return _MISSING
    return r"$<$0.001" if value < 0.001 else f"{value:.3f}"


def _count(value: Any) -> str:
    return _MISSING if _absent(value) else f"{float(value):,.0f}".replace(",", "{,}")


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA


def document(title: str, methods: Sequence[str], tables: Sequence[str], figures: Sequence[Figure]) -> str:
    """A paper's skeleton that shows everything exported."""
    shown = [
        "\n".join(
            [
                r"\begin{figure}[htbp]",
                r"\centering",
                rf"\includegraphics[width={figure.share:.2f}\linewidth,height=0.8\textheight,keepaspectratio]{{figures/{figure.name}.pdf}}",
                rf"\caption{{{escape(figure.caption)}}}",
                rf"\label{{fig:{figure.name}}}",
                r"\end{figure}",
            ]
        )
        for figure in figures
    ]
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[utf8]{inputenc}",
            r"\usepackage[margin=2.2cm]{geometry}",
            r"\usepackage{array,booktabs,graphicx}",
            rf"\title{{{escape(title)}}}",
            r"\author{}",
            r"\begin{document}",
            r"\maketitle",
            *(rf"\input{{{name}}}" for name in methods),
            *(rf"\input{{tables/{name}}}" for name in tables),
            r"\clearpage",
            *shown,
            r"\bibliographystyle{plain}",
            r"\bibliography{references}",
            r"\end{document}",
            "",
        ]
    )
