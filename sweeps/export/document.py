"""Everything that ``mode=export`` writes, under export/ of the run directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from sweeps.export import latex
from sweeps.export.figures import drawings_of, save
from sweeps.export.methods import methods
from sweeps.export.references import bibliography
from sweeps.export.tables import Table, tables_of, unfinished
from sweeps.records import RunDirectoryError, publish, publish_bytes
from sweeps.report.drawing import Drawing
from sweeps.report.reported_run import ReportedRun, mapping, read_run

_WIDEST = 10.9  # inches: the figures of the report that fill its page


def export_run(run_dir: Path, format: str) -> list[str]:
    """Write tables in this format, figures, methods and references; returns what to tell the user.

    Raises:
        RunDirectoryError: the run has no effects yet, or cannot be read.
    """
    run = read_run(run_dir)
    if run.cells.empty:
        raise RunDirectoryError(f"{run.path} has no effects on {run.stats.metric} to export yet")
    folder = run.path / "export"
    for part in ("tables", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    tables, text = tables_of(run), methods(run)
    _clear(folder / "tables", format)
    shutil.rmtree(folder / "figures")
    (folder / "figures").mkdir()
    drawings = drawings_of(run)
    for drawing in drawings:
        save(drawing, folder / "figures")
    _write(folder / "references.bib", bibliography(latex.citations(text)))
    _write(folder / "methods.tex", latex.paragraph(text) + "\n")
    if format == "latex":
        for table in tables:
            _write(folder / "tables" / f"{table.name}.tex", latex.typeset(table))
        figures = [_figure(drawing) for drawing in drawings]
        names = [table.name for table in tables]
        _write(folder / "export.tex", latex.document(_title(run), ["methods"], names, figures))
    else:
        _write_frames(tables, folder / "tables", format)
    said = [f"{len(tables)} tables ({format}), {len(drawings)} figures (PDF, SVG), methods.tex and references.bib"]
    tex = "To look at it: pdflatex export && bibtex export && pdflatex export && pdflatex export"
    return [*said, *([tex] if format == "latex" else []), *([unfinished(run)] if unfinished(run) else [])]


def _write_frames(tables: list[Table], folder: Path, format: str) -> None:
    """A file for each table, and their captions and footnotes in one of their own."""
    notes = [(table.name, table.caption, note) for table in tables for note in table.notes]
    frames = {table.name: table.rows for table in tables}
    frames["footnotes"] = pd.DataFrame(notes, columns=["table", "caption", "footnote"])
    for name, frame in frames.items():
        if format == "csv":
            _write(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
        else:
            publish(folder / f"{name}.parquet", frame.to_parquet, synced=False)


def _clear(folder: Path, format: str) -> None:
    """Remove what an earlier export in this format left, of tables that the run may no longer have."""
    for old in folder.glob({"latex": "*.tex", "csv": "*.csv", "parquet": "*.parquet"}[format]):
        old.unlink()


def _write(path: Path, text: str) -> None:
    publish_bytes(path, text.encode())


def _figure(drawing: Drawing) -> latex.Figure:
    caption = f"{drawing.title}. {drawing.caption}" if drawing.caption else drawing.alt  # which says the title too
    return latex.Figure(drawing.name, caption, min(1.0, drawing.figure.get_figwidth() / _WIDEST))


def _title(run: ReportedRun) -> str:
    name = mapping(run.run.get("model")).get("name") or run.path.name
    return f"Ablations of {name}"
