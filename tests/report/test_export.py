"""What goes into a paper: numbers equal to the parquet files, LaTeX that compiles, words that are true of the run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from fake_controls import add_controls, stop_early
from fake_profiles import add_profiles
from fake_run import FakeSweep, write_fake_run

from sweeps.export import export_run, latex
from sweeps.export.figures import save
from sweeps.export.methods import methods
from sweeps.export.references import bibliography
from sweeps.export.tables import Column, tables_of
from sweeps.records import RunDirectoryError
from sweeps.report.figures import draw_forest
from sweeps.report.reported_run import read_run

NASTY = "a_b & 50% #1 ~x^2 {y} $z$ \\input{x} <i> 模型 é ẽ"
TABLE_ROW = re.compile(r"(?<!\\)&")


@pytest.fixture(scope="module")
def full(small_run_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with controls, stopping and profiles, exported in every format."""
    run = Path(shutil.copytree(small_run_template, tmp_path_factory.mktemp("exported") / "run"))
    add_controls(run)
    stop_early(run)
    add_profiles(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.export.document.drawings_of", lambda run: [])
        for kind in ("csv", "parquet"):
            export_run(run, kind)
    export_run(run, "latex")
    return run


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else; the other tests have them."""
    monkeypatch.setattr("sweeps.export.document.drawings_of", lambda run: [])


def body(tex: str) -> list[list[str]]:
    """The cells of a typeset table."""
    rows = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")].splitlines()[1:]
    return [[cell.strip() for cell in TABLE_ROW.split(row.removesuffix(r"\\"))] for row in rows]


def value(cell: str) -> float:
    return float(cell.replace("$", "").replace("{,}", ""))


# Numbers.


@pytest.mark.parametrize("name", ["heads", "groups"])
def test_csv_and_parquet_hold_the_effects_to_the_last_bit(name: str, full: Path) -> None:
    effects = pd.read_parquet(full / "effects.parquet")
    trials = pd.read_parquet(full / "trials.parquet").set_index("trial_id")
    effects = effects[effects["metric"] == "noise_mse"].set_index("trial_id")
    csv = pd.read_csv(full / "export" / "tables" / f"{name}.csv").set_index("trial_id")
    pd.testing.assert_frame_equal(
        csv, pd.read_parquet(full / "export" / "tables" / f"{name}.parquet").set_index("trial_id"), check_dtype=False,
        rtol=0, atol=0,
    )  # fmt: skip
    for column in ("percent", "ci_low", "ci_high", "mean_log_ratio", "d_z", "p", "q", "n", "verdict"):
        assert csv[column].tolist() == effects.loc[csv.index, column].tolist(), column
    for column in ("layer_index", "head", "t_start", "t_end", "dataset"):
        assert csv[column].tolist() == trials.loc[csv.index, column].tolist(), column
    of_level = trials["level"].loc[effects.index.intersection(trials.index)] == "head"
    assert len(csv) == int((of_level == (name == "heads")).sum())


def test_latex_holds_the_effects_rounded(full: Path) -> None:
    csv = pd.read_csv(full / "export" / "tables" / "heads.csv")
    rows = body((full / "export" / "tables" / "heads.tex").read_text())
    assert len(rows) == 20
    digits = latex.decimals(csv.head(20))
    for cells, trial in zip(rows, csv.head(20).itertuples()):
        assert cells[:2] == [trial.site, trial.variant]
        assert cells[2] == f"{trial.t_start}--{trial.t_end}"
        assert value(cells[4]) == round(trial.percent, digits)
        low, high = (value(part) for part in cells[5].strip("[]").split(", "))
        assert (low, high) == (round(trial.ci_low, digits), round(trial.ci_high, digits))
        assert cells[6] == (r"$<$0.001" if trial.q < 0.001 else f"{trial.q:.3f}")
        assert int(value(cells[7])) == trial.n
        assert cells[8] == trial.verdict


def test_controls_are_those_of_the_comparisons(full: Path) -> None:
    found = pd.read_csv(full / "export" / "tables" / "controls.csv")
    compared = pd.read_parquet(full / "comparisons.parquet")
    over_images = compared[compared["name"] == "worse than random subspaces, over images"]
    assert sorted(found["estimate"]) == sorted(over_images["estimate"].astype(float))
    assert found["above"].tolist() == (100 * np.expm1(found["estimate"])).tolist()
    assert found["estimate"].is_monotonic_decreasing


def test_contrasts_are_those_of_the_comparisons(full: Path) -> None:
    found = pd.read_csv(full / "export" / "tables" / "contrasts.csv")
    compared = pd.read_parquet(full / "comparisons.parquet")
    compared = compared[compared["name"].str.startswith("data set contrast")].set_index("group")
    assert len(found) == len(compared)
    for column in ("estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"):
        assert found[column].tolist() == compared.loc[found["group"], column].tolist()


def test_verdicts_add_up(full: Path) -> None:
    found = pd.read_csv(full / "export" / "tables" / "verdicts.csv")
    assert (found[["degraded", "improved", "negligible", "inconclusive"]].sum(axis=1) == found["trials"]).all()
    assert found["trials"].sum() == len(read_run(full).cells)


def test_every_table_has_its_caption_and_footnotes_beside_the_numbers(full: Path) -> None:
    folder = full / "export" / "tables"
    notes = pd.read_csv(folder / "footnotes.csv")
    assert set(notes["table"]) == {file.stem for file in folder.glob("*.csv")} - {"footnotes"}
    assert {"verdicts", "heads", "groups", "contrasts", "controls", "claims", "types"} == set(notes["table"])
    heads = " ".join(notes.loc[notes["table"] == "heads", "footnote"])
    for said in ("noise_mse", "95% CI", "n: images", "Test: one-sided", "Benjamini", "−4.76% to +5%", "Stopping rule"):
        assert said in heads
    assert "Corrected within 4 families: trials alike in layer and window." in heads
    contrasts = notes.loc[notes["table"] == "contrasts", "footnote"].tolist()
    assert contrasts[0] == "Windows: 0: t 999–500, 1: t 499–0."


@pytest.mark.parametrize(
    ("half", "digits"), [(0.004, 4), (0.03, 3), (0.3, 2), (2.6, 1), (26.0, 0), (260.0, 0), (0.0, 2)]
)
def test_intervals_have_two_significant_digits(half: float, digits: int) -> None:
    rows = pd.DataFrame({"ci_low": [1 - half, np.nan, -np.inf], "ci_high": [1 + half, 2.0, 3.0]})
    assert latex.decimals(rows) == digits


def test_numbers_are_written_alike() -> None:
    rows = pd.DataFrame({"x": [1.25, -0.5, 0.0, -0.001, np.nan, np.inf], "ci_low": -3.0, "ci_high": 3.0})
    written = latex.written(Column("x", ("x",), "estimate"), rows)
    assert written == ["$+$1.2", "$-$0.5", "0.0", "0.0", "--", r"$\infty$"]
    p = pd.DataFrame({"p": [0.0004, 0.001, 0.25, 1.0, None]})
    assert latex.written(Column("p", ("p",), "probability"), p) == [r"$<$0.001", "0.001", "0.250", "1.000", "--"]
    n = pd.DataFrame({"t_start": [999], "t_end": [0], "n": [12345]})
    assert latex.written(Column("t", ("t_start", "t_end"), "count"), n) == ["999--0"]
    assert latex.written(Column("n", ("n",), "count"), n) == ["12{,}345"]


# LaTeX.


def unbalanced(tex: str) -> list[str]:
    """What is wrong with the structure of LaTeX text: environments, braces, columns of tables, special characters."""
    wrong = []
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
        if kind == "begin":
            open_environments.append(name)
        elif not open_environments or open_environments.pop() != name:
            wrong.append(f"end of {name}")
    wrong += open_environments
    bare = re.sub(r"\\.", "", tex)
    if bare.count("{") != bare.count("}"):
        wrong.append("braces")
    if bare.count("$") % 2:
        wrong.append("dollars")
    for layout, table in re.findall(r"\\begin\{tabular\}\{(.*)\}\n(.*?)\\end\{tabular\}", tex, re.DOTALL):
        columns = len(re.findall(r"[lr]|p\{", re.sub(r">\{.*?\}(?=p)", "", re.sub(r"(p\{).*?\}", r"\1", layout))))
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        wrong += [f"row of {columns}: {row}" for row in rows if len(TABLE_ROW.findall(row)) != columns - 1]
    letters = re.sub(r"\\includegraphics.*|\\(label|ref|cite|input)\{.*?\}|\$[^$]*\$", "", bare)
    rest = re.sub(r"\\begin\{tabular\}.*", "", letters)
    outside = [line for line in rest.splitlines() if not line.endswith(r"\\") and re.search(r"(?<!\\)[#%^~_]", line)]
    return wrong + outside


def test_the_structural_check_can_fail() -> None:
    good = "\\begin{table}\n\\begin{tabular}{lr}\na & b \\\\\n\\end{tabular}\n\\end{table}\n"
    assert unbalanced(good) == []
    for bad in (
        good.replace("\\end{table}", ""), good.replace("a & b", "a & b & c"), good.replace("a & b", "a"),
        good.replace("a &", "{a &"), good.replace("a &", "$a &"), good + "50% of x_1",
    ):  # fmt: skip
        assert unbalanced(bad), bad


def test_typeset_tables_are_whole(full: Path) -> None:
    files = sorted((full / "export").glob("**/*.tex"))
    assert len(files) == 9
    for file in files:
        assert unbalanced(file.read_text()) == [], file
    document = (full / "export" / "export.tex").read_text()
    for name in re.findall(r"\\input\{(.*?)\}", document):
        assert (full / "export" / f"{name}.tex").is_file()
    for name in re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", document):
        assert (full / "export" / name).is_file()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b", r"a\_b"),
        ("50% & #1", r"50\% \& \#1"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("~^$", r"\textasciitilde{}\textasciicircum{}\$"),
        ("[1, 2]", "{[}1, 2{]}"),
        ("−4% – “x” ≤ 2", r"$-$4\% -- ``x'' $\le$ 2"),
        ("é ł ß", "é ł ß"),
        ("ẽ ṡ ế", "e s e"),
        ("模", "{[}U+6A21{]}"),
        ("ﬁ½", "fi1/2"),
        ("a\nb\x00\x07", "a b"),
    ],
)
def test_special_characters(text: str, escaped: str) -> None:
    assert latex.escape(text) == escaped


def test_citations_of_a_paragraph() -> None:
    text = "As in [@a2020; @b2021], and [@a2020] at 5% [sic]."
    assert latex.paragraph(text) == r"As in \cite{a2020,b2021}, and \cite{a2020} at 5\% {[}sic{]}."
    assert latex.citations(text) == ["a2020", "b2021"]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every name that a user chooses has what LaTeX stumbles over."""
    sweep = FakeSweep(
        layers=1, heads=2, windows=1, modes=("zero",), datasets=(NASTY, "{natural}"), model=NASTY, samples=0,
        layer_name="blocks_{}.attn%1",
    )  # fmt: skip
    run = write_fake_run(tmp_path_factory.mktemp("nasty") / "a_b 100% {x}", sweep)
    export_run(run, "latex")
    return run


def test_names_with_special_characters_stay_text(nasty: Path) -> None:
    for file in (nasty / "export").glob("**/*.tex"):
        assert unbalanced(file.read_text()) == [], file
    text = (nasty / "export" / "methods.tex").read_text()
    assert r"a\_b \& 50\% \#1" in text
    assert "\\input{" not in text


@pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("bibtex")), reason="there is no TeX here; the structure is checked"
)
@pytest.mark.parametrize("which", ["full", "nasty"])
def test_the_export_compiles(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = shutil.copytree(request.getfixturevalue(which) / "export", tmp_path / "paper")
    tex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "export.tex"]
    for command in (tex, ["bibtex", "export"], tex, tex):
        ended = subprocess.run(command, cwd=folder, capture_output=True, encoding="latin-1")
        assert ended.returncode == 0, ended.stdout[-2000:]
    log = (folder / "export.log").read_text(encoding="latin-1")
    assert "undefined" not in log.lower().replace("undefined on input", "undefined")
    assert (folder / "export.pdf").stat().st_size > 20_000


# Figures.


def test_figures_are_vectors_with_their_fonts(full: Path, tmp_path: Path) -> None:
    folder = full / "export" / "figures"
    names = {file.stem for file in folder.glob("*.pdf")}
    assert names == {file.stem for file in folder.glob("*.svg")}
    assert {"forest", "volcano", "random-subspaces", "head-types"} <= names
    for file in folder.glob("*.pdf"):
        content = file.read_bytes()
        assert content.startswith(b"%PDF-")
        assert b"/FontFile2" in content, f"{file} has no embedded font"
        assert b"/Type3" not in content
    for file in folder.glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
        assert "path" in tags
        assert "text" not in tags, f"{file} needs a font that its reader may lack"


def test_the_same_run_gives_the_same_bytes(nasty: Path, tmp_path: Path) -> None:
    (drawing,) = draw_forest(read_run(nasty))
    again = save(drawing, tmp_path)
    assert [file.suffix for file in again] == [".pdf", ".svg"]
    for file in again:
        assert file.read_bytes() == (nasty / "export" / "figures" / file.name).read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_what_an_earlier_export_left_is_removed(small_run: Path) -> None:
    add_controls(small_run)
    export_run(small_run, "csv")
    assert (small_run / "export" / "tables" / "controls.csv").is_file()
    (small_run / "export" / "figures" / "random-subspaces.pdf").touch()
    compared = pd.read_parquet(small_run / "comparisons.parquet")
    compared[~compared["name"].str.startswith("worse")].to_parquet(small_run / "comparisons.parquet")
    export_run(small_run, "csv")
    assert not (small_run / "export" / "tables" / "controls.csv").exists()
    assert not (small_run / "export" / "figures" / "random-subspaces.pdf").exists()


# Words: see test_methods.


def methods_of(run: Path) -> str:
    return methods(read_run(run))


def test_profiles_are_told_of(full: Path) -> None:
    assert "given types by probes on one half of the images" in methods_of(full)


@pytest.mark.usefixtures("no_figures")
def test_an_unfinished_run_says_so_everywhere(small_run: Path) -> None:
    effects = pd.read_parquet(small_run / "effects.parquet")
    gone = effects["trial_id"].drop_duplicates().head(5)
    effects[~effects["trial_id"].isin(gone)].to_parquet(small_run / "effects.parquet")
    failures = pd.read_parquet(small_run / "failures.parquet")
    failures.assign(trial_id=gone.iloc[0]).to_parquet(small_run / "failures.parquet")
    lines = export_run(small_run, "latex")
    planned = int((pd.read_parquet(small_run / "trials.parquet")["protocol"] == "denoise").sum())
    said = f"Unfinished: 5 of {planned} planned trials are not measured to the end, 1 of them because they failed."
    assert lines[-1] == said
    assert (small_run / "export" / "methods.tex").read_text().startswith(said)
    for name in ("heads", "groups", "verdicts", "contrasts"):
        assert said in (small_run / "export" / "tables" / f"{name}.tex").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_search_reports_what_it_confirmed(small_run: Path) -> None:
    trials = pd.read_parquet(small_run / "trials.parquet")
    heads = trials["level"] == "head"
    sites = [[f"{layer}:0", f"{layer}:1"] for layer in trials["layer"]]
    trials = trials.assign(level="set", head=-1, sites=sites, phase=np.where(heads, "search", "confirm"))
    trials.to_parquet(small_run / "trials.parquet")
    export_run(small_run, "csv")
    groups = pd.read_csv(small_run / "export" / "tables" / "groups.csv")
    confirmed = set(trials.loc[(trials["phase"] == "confirm") & (trials["protocol"] == "denoise"), "trial_id"])
    assert set(groups["trial_id"]) == confirmed
    assert not (small_run / "export" / "tables" / "heads.csv").exists()
    assert "A search over" in methods_of(small_run)
    assert "families first [@benjamini2014; @simes1986; @benjamini1995] (one family)" in methods_of(small_run)
    export_run(small_run, "latex")
    assert unbalanced((small_run / "export" / "tables" / "groups.tex").read_text()) == []


@pytest.mark.usefixtures("no_figures")
def test_optional_tables_may_be_absent(small_run: Path) -> None:
    for name in ("comparisons", "diagnostics", "failures"):
        (small_run / f"{name}.parquet").unlink()
    export_run(small_run, "csv")
    assert {file.stem for file in (small_run / "export" / "tables").glob("*")} == {
        "heads", "groups", "verdicts", "footnotes",
    }  # fmt: skip


def test_a_run_without_effects_is_refused(small_run: Path) -> None:
    effects = pd.read_parquet(small_run / "effects.parquet")
    effects.head(0).to_parquet(small_run / "effects.parquet")
    with pytest.raises(RunDirectoryError, match="has no effects on noise_mse to export yet"):
        export_run(small_run, "latex")
    assert not (small_run / "export").exists()


# References.


def test_what_is_cited_is_in_the_bibliography_and_nothing_else(full: Path) -> None:
    cited = latex.citations(methods_of(full))
    entries = re.findall(r"^@\w+\{(\w+),", (full / "export" / "references.bib").read_text(), re.MULTILINE)
    assert entries == cited
    assert {"roy2025", "circuitsweep", "obrien1979"} <= set(cited)


def test_every_source_of_methods_has_an_entry() -> None:
    from sweeps.export import methods as module

    text = Path(module.__file__).read_text()
    keys = {key for found in re.findall(r"\[@([a-z0-9_; @]+)\]", text) for key in found.split("; @")} - {"key"}
    text = bibliography(sorted(keys))
    assert len(re.findall(r"^@", text, re.MULTILINE)) == len(keys) >= 14
    assert "arXiv:2506.17237" in text
    assert "arXiv:2407.08911" in text
    bare = re.sub(r"\\.", "", text)
    assert bare.count("{") == bare.count("}")


def test_tables_name_columns_that_are_there(full: Path) -> None:
    for table in tables_of(read_run(full)):
        for column in table.columns:
            assert set(column.names) <= set(table.rows), (table.name, column)
        assert table.notes
