"""The page: everything above, put into the template."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.records import publish
from sweeps.report import wording
from sweeps.report.application import run_application
from sweeps.report.attempts import Attempts
from sweeps.report.controls import Controls, control_sentences, floor_sentence, read_controls
from sweeps.report.coverage import coverage
from sweeps.report.drawing import Drawing
from sweeps.report.figures import (
    draw_contrasts,
    draw_controls,
    draw_evidence,
    draw_forest,
    draw_heatmaps,
    draw_resolution,
)
from sweeps.report.findings import detectable_percent, key_findings, skewness, verdict_counts
from sweeps.report.paper_section import paper_section
from sweeps.report.profile_figures import draw_profiles
from sweeps.report.profiled import read_profiled
from sweeps.report.registration import margin, most_images, registration
from sweeps.report.reported_run import VERDICTS, ReportedRun, mapping, read_run
from sweeps.report.samples import Gallery, sample_gallery
from sweeps.report.tables import comparison_rows, control_rows, failure_rows, metric_rows, tally, trial_rows
from sweeps.report.template import Figure, embedded, fill

TOP_ROWS = 30
SHOWN_COMPARISONS = 15
MAX_COMPARISONS = 500
MAX_FAILURES = 100
GROUPS = ("block", "stage")  # levels that have a name and no row in the heatmaps
MAX_CONTROLLED = 200  # heads worse than a random subspace; the rest is in comparisons.parquet


def write_report(run_dir: Path, figures: bool = True) -> Path:
    """Write report/index.html and report/figures/ from the files of a run directory; return the path of the page.

    Args:
        figures: also draw those of the sections below the explorer, which takes most of the time; while a sweep runs,
            a page without them can be written more often.
    """
    run = read_run(run_dir)
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    with np.errstate(all="ignore"):
        page = render(run, folder / "figures" if figures else None)
    path = folder / "index.html"
    publish(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def render(run: ReportedRun, figures: Path | None) -> str:
    """The page as text; draws figures into the folder on the way, none without one."""

    attempts = Attempts()
    attempt = attempts.make

    def shown(part: str, draw: Callable[..., list[Drawing]], *inputs: Any) -> list[Figure]:
        nothing: list[Figure] = []
        if figures is None:
            return nothing
        return attempt(part, nothing, lambda: embedded(draw(*inputs), figures))

    if figures is not None:  # on disk only: the page has its own map
        attempt("maps in report/figures", None, _save, draw_heatmaps, run, figures)
    is_head = run.cells["level"] == "head"
    metrics, other_metrics = attempt("other metrics", ([], []), metric_rows, run)
    controls = attempt("controls", None, read_controls, run)
    profiled = attempt("profiles", None, read_profiled, run)
    application = attempt("explorer", None, run_application, run, profiled, controls)
    covered = coverage(run)
    return fill(
        "index.html.j2",
        data=None if application is None else application.data,
        title=_title(run),
        lead=attempt("summary", "", _lead, run),
        brief=attempt("summary", [], _brief, run),
        facts=attempt("facts", [], _facts, run),
        layers=attempt("layers", [], _layers, run),
        data_sets=_data_sets(run),
        findings=attempt("findings", [], key_findings, run),
        counts=verdict_counts(run.cells),
        verdicts=VERDICTS,
        paper=None if profiled is None else attempt("paper", None, paper_section, run, profiled),
        profile_figures=shown("figures of profiles", draw_profiles, profiled),
        forest=shown("forest plot", draw_forest, run),
        evidence=shown("figures of evidence", draw_evidence, run),
        resolution=shown("figures of resolution", draw_resolution, run),
        contrasts=shown("figures of data sets", draw_contrasts, run),
        top_heads=attempt("ranking", [], trial_rows, run.cells[is_head].head(TOP_ROWS)),
        top_others=attempt("ranking", [], trial_rows, run.cells[~is_head].head(TOP_ROWS // 2)),
        application=application,
        partial=covered.sentence if covered.partial else "",
        row_count=len(run.cells),
        tally=attempt("tally", [], tally, run) if len(run.cells) else [],
        gallery=attempt("samples", Gallery({}, 0, 0), sample_gallery, run),
        metrics=metrics,
        other_metrics=other_metrics if len(metrics) > 1 else [],
        comparisons=attempt("contrasts", [], comparison_rows, run, MAX_COMPARISONS),
        shown_comparisons=SHOWN_COMPARISONS,
        comparison_count=len(run.data_set_contrasts),
        contrast_images=attempt("contrasts", "", _contrast_images, run),
        controls=None if controls is None else attempt("controls", None, _controls, run, controls),
        control_figures=shown("figures of controls", draw_controls, run, controls),
        failures=attempt("failures", [], failure_rows, run)[:MAX_FAILURES],
        failure_count=len(run.failures),
        method=_method(run),
        registered=registration(run),
        stops_early=run.stops_early,
        stats=run.stats,
        figures=figures is not None,
        lost=list(dict.fromkeys(attempts.lost)),
    )


def _save(draw: Callable[[ReportedRun], list[Drawing]], run: ReportedRun, folder: Path) -> None:
    for drawing in draw(run):
        drawing.save(folder)


def _title(run: ReportedRun) -> str:
    model = mapping(run.run.get("model"))
    return str(model.get("name") or mapping(run.config.get("model")).get("name") or run.path.resolve().name)


def _lead(run: ReportedRun) -> str:
    """One sentence: what was ablated, where, when and how."""
    trials = run.trials
    layers = wording.count(trials.loc[trials["level"].isin(["head", "layer"]), "layer_index"].nunique(), "layer")
    heads = trials[trials["level"] == "head"].groupby("layer_index")["head"].nunique()
    sets = trials.loc[trials["level"] == "set", "sites"].nunique()
    groups = [wording.count(trials.loc[trials["level"] == level, "layer"].nunique(), level) for level in GROUPS]
    layers = wording.count(sets, "set") + " of heads" if sets else layers
    places = [f"{layers} of {wording.between(heads)} heads" if len(heads) else layers, *groups]
    parts = [
        *(place for place in places if not place.startswith("0 ")),
        wording.count(trials["window_index"].nunique(), "window"),
        f"{wording.count(trials['variant'].nunique(), 'mode')} ({', '.join(trials['variant'].unique())})",
        f"{wording.count(trials['dataset'].nunique(), 'data set')} ({', '.join(trials['dataset'].unique())})",
    ]
    if trials.empty:
        return "No trials."
    return f"{wording.count(len(trials), 'trial')}: {wording.listing(parts)}.{_beside(run)}"


def _beside(run: ReportedRun) -> str:
    drawn = int((run.controls["strength"] > 0).sum())
    return f" Beside them, {wording.count(drawn, 'random subspace')} as controls." if drawn else ""


def _brief(run: ReportedRun) -> list[str]:
    """How much, when and where, for the head of the page."""
    about, n = run.run, run.cells["n"]
    parts = [
        f"{_images(run)} images a trial" if len(n) else "",
        wording.moment(about["finished"]) if about.get("finished") else "",
        wording.duration(float(about["seconds"])) if about.get("seconds") else "",
        _machine(run),
        f"commit {str(about['git_commit'])[:10]}" if about.get("git_commit") else "",
    ]
    return [part for part in parts if part]


def _facts(run: ReportedRun) -> list[tuple[str, str]]:
    """What was run, where and with what; a fact that run.json does not hold is left out."""
    about, model, config = run.run, mapping(run.run.get("model")), run.config
    when = " to ".join(wording.moment(about[key]) for key in ("started", "finished") if about.get(key))
    counts = mapping(about.get("counts"))
    took = f" ({wording.duration(float(about['seconds']))})" if about.get("seconds") else ""
    size = f"{float(model['parameters']) / 1e6:.3g} M parameters" if model.get("parameters") else None
    facts = {
        "Sweep": mapping(config.get("sweep")).get("name"),
        "Model": ", ".join(str(part) for part in (model.get("path"), model.get("revision"), size) if part),
        "Protocols": ", ".join(run.trials["protocol"].unique()),
        "Images a trial": _images(run) if len(run.cells) else None,
        "Counts": ", ".join(_count(run, noun, n) for noun, n in counts.items() if isinstance(n, int)),
        "When": when + took,
        "Machine": _machine(run),
        "Seeds": wording.plain(about["seeds"]) if about.get("seeds") is not None else None,
        "Versions": wording.plain(mapping(about.get("versions"))),
        "Python": about.get("python"),
        "Timesteps": wording.plain(about["timesteps"]) if about.get("timesteps") else None,
        "Git commit": about.get("git_commit"),
        "Command": wording.plain(about["command"]) if about.get("command") else None,
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _machine(run: ReportedRun) -> str:
    return ", ".join(wording.plain(run.run[key]) for key in ("machine", "device") if run.run.get(key))


def _images(run: ReportedRun) -> str:
    """``64``; or ``16 to 96 of at most 256``."""
    used = wording.between(run.cells["n"])
    return f"{used} of at most {most_images(run)}" if run.stops_early else used


def _count(run: ReportedRun, noun: str, number: int) -> str:
    of_these = f" ({len(run.controls):,} of them controls)" if noun == "trials" and len(run.controls) else ""
    return f"{number:,} {noun}{of_these}"


def _layers(run: ReportedRun) -> list[tuple[str, str]]:
    named = run.trials[run.trials["level"].isin(["head", "layer"])]
    named = named.drop_duplicates("layer_index").sort_values("layer_index")
    return [(f"L{int(trial.layer_index)}", str(trial.layer)) for trial in named.itertuples()]


def _data_sets(run: ReportedRun) -> list[dict[str, str]]:
    described = mapping(run.run.get("data"))
    rows = []
    for name in run.trials["dataset"].drop_duplicates():
        about = mapping(described.get(name))
        held_out = about.get("held_out")
        rows.append(
            {
                "name": str(name),
                "n": wording.plain(about.get("n")),
                "status": "not stated" if held_out is None else "held out" if held_out else "seen in training",
                "trained_on": str(about.get("trained_on") or ""),
            }
        )
    return rows


def _contrast_images(run: ReportedRun) -> str:
    """``16`` images of each data set; ``16 and 32`` where they differ between the two of a contrast."""
    sizes = run.data_set_contrasts[["n_a", "n_b"]]
    if sizes.empty:
        return ""
    return " and ".join(dict.fromkeys(wording.between(sizes[side].astype(int)) for side in ("n_a", "n_b")))


def _controls(run: ReportedRun, controls: Controls) -> dict[str, Any]:
    """What the section about random subspaces quotes."""
    found: dict[str, Any] = {
        "floor": floor_sentence(controls, run.stats.metric, run.stats.log_margin),
        "sentences": control_sentences(controls),
        "compared": len(controls.heads),
    }
    if len(controls.heads):
        found |= {
            "number": controls.number,
            "images": controls.images,
            "resolution": wording.probability(controls.resolution),
            "coarse": controls.resolution > controls.alpha,
            "needed": math.ceil(1 / controls.alpha) - 1,
            "worse": len(controls.worse),
            "rows": control_rows(controls.worse.head(MAX_CONTROLLED)),
        }
    return found


def _method(run: ReportedRun) -> dict[str, Any]:
    """The figures that "Method and limits" quotes."""
    cells = run.cells
    smallest = detectable_percent(cells, run.stats) if len(cells) else math.nan
    return {
        "images": wording.between(cells["n"]) if len(cells) else "0",
        "margin": margin(run),
        "detectable": wording.percent(smallest) if math.isfinite(smallest) else "",
        "skewness": skewness(run),
        "stopped_early": int(cells["stopped"].notna().sum()),
        "futile": int((cells["stopped"] == "futile").sum()),
        "protocol": str(cells["protocol"].iloc[0]) if len(cells) else "denoise",
        "modes": [str(mode) for mode in cells["mode"].unique()],
    }
