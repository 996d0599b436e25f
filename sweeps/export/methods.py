"""The methods paragraph: what was run, a sentence for each thing that this run really has.

Citations are written ``[@key]``; see ``references``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from circuits.statistics.signflip import EXACT_BELOW
from sweeps.export.tables import unfinished
from sweeps.report import wording
from sweeps.report.controls import read_controls
from sweeps.report.profiled import read_profiled
from sweeps.report.registration import margin, most_images, registration
from sweeps.report.reported_run import ReportedRun, mapping

_SOURCES = {
    "synthetic_faces": "generated faces",
    "lfw_faces": "faces of Labeled Faces in the Wild [@huang2007]",
    "celeba": "faces of CelebA [@liu2015]",
    "image_folder": "images of a folder",
    "prompts": "images that the model generated from prompts",
}
_MODES = {
    "zero": "zeros",
    "mean": "its mean over a reference set (per timestep, class and token)",
    "resample": "the activation for another image of the data set",
    "resample_across": "the activation for an image of the other data set",
    "identity": "its values unmixed (an identity attention map)",
    "uniform": "the mean of its values (a uniform attention map)",
    "noise": "Gaussian noise with its mean and standard deviation over a reference set",
}
_TESTS = {
    "none": "We tested for degradation with a one-sided studentised sign-flip test over images, with a saddlepoint "
    f"approximation of its tail [@niu2024], exact below {EXACT_BELOW} images.",
    "obf": "We tested for degradation, one-sided, with O'Brien-Fleming boundaries [@obrien1979] over images at two "
    "horizons, half of a trial's images with three quarters of the error and all of them with the rest: p-values "
    "hold wherever a trial stopped. Intervals are repeated confidence intervals [@jennison1989].",
    "sign": "We tested for degradation, one-sided, with an e-process that bets on the sign and size of each image's "
    "log ratio: p-values hold wherever a trial stopped. Intervals are repeated confidence intervals [@jennison1989].",
    "betting": "We tested for degradation, one-sided, with a betting e-process [@waudbysmith2024] on the ratio of "
    "errors: p-values hold wherever a trial stopped. Intervals are repeated confidence intervals [@jennison1989].",
}
_CORRECTIONS = {
    "hierarchical": "p-values were adjusted for the false discovery rate hierarchically, families first "
    "[@benjamini2014; @simes1986; @benjamini1995]",
    "bh": "p-values were adjusted by Benjamini and Hochberg [@benjamini1995] over all trials",
    "by": "p-values were adjusted by Benjamini and Yekutieli [@benjamini2001] over all trials",
    "e-bh": "e-values were adjusted by e-BH [@wang2022] over all trials",
}
_PACKAGES = ("circuit-sweep", "torch", "diffusers", "ray")


def methods(run: ReportedRun) -> str:
    """One paragraph; says first what is missing of an unfinished run."""
    parts = (
        _model, _data, _interventions, _outcome, _sampling, _search, _inference, _contrasts, _controls, _profiles,
        _record,
    )  # fmt: skip
    sentences = [unfinished(run), *(sentence for part in parts for sentence in part(run))]
    return " ".join(sentence for sentence in sentences if sentence)


def _model(run: ReportedRun) -> Iterator[str]:
    model = mapping(run.run.get("model"))
    name = model.get("name") or mapping(run.config.get("model")).get("name")
    facts = [f"{model['parameters']:,} parameters"] if isinstance(model.get("parameters"), int) else []
    if model.get("layers") and model.get("heads"):
        facts.append(f"{wording.count(len(model['layers']), 'attention layer')} of up to {model['heads']} heads")
    facts += [f"revision {model['revision']}"] if model.get("revision") else []
    described = f" ({', '.join(facts)})" if facts else ""
    yield f"We intervened on the attention of {name}{described} with circuit-sweep [@circuitsweep]; see [@roy2025]."


def _data(run: ReportedRun) -> Iterator[str]:
    sources = {s.get("name"): s.get("source") for s in mapping(run.config.get("data")).get("sets") or []}
    facts: Mapping[str, Any] = mapping(run.run.get("data"))
    for name in run.datasets:
        known = mapping(facts.get(name))
        what = _SOURCES.get(str(sources.get(name)), "images")
        most = int(run.cells.loc[run.cells["dataset"] == name, "most"].max())
        held_out = ", held out from training" if known.get("held_out") is True else ""
        if set(run.cells["protocol"]) == {"sample"}:
            yield f"For the data set {name} ({what}), {wording.count(most, 'image')} were generated."
        else:
            yield f"The data set {name} has {most:,} {what}{held_out}."


def _interventions(run: ReportedRun) -> Iterator[str]:
    cells = run.cells
    levels = wording.listing(f"{level}s" for level in cells["level"].drop_duplicates())
    steps = run.run.get("timesteps") or []
    sampler = _sampler(run)
    during = f" of the {len(steps)} timesteps of the sampler{sampler}" if steps else ""
    windows = int(cells["window_index"].nunique())
    when = f"one of {windows} windows" if windows > 1 else "one window"
    yield (
        f"We measured {wording.count(len(cells), 'trial')} ({levels}), each ablated during {when}{during}, at the "
        "concatenated heads before the output projection."
    )
    modes = list(cells["mode"].drop_duplicates())
    replaced = [_MODES[mode] for mode in modes if mode in _MODES]
    if replaced:
        yield f"The output of an ablated head was replaced by {_either(replaced)}."
    if "scale" in modes:
        factors = sorted(set(cells.loc[cells["mode"] == "scale", "factor"])) if "factor" in cells else []
        yield f"Outputs were also multiplied{' by ' + _either([f'{f:g}' for f in factors]) if factors else ''}."
    partial = sorted(set(cells.loc[cells["strength"] < 1, "strength"].astype(float)))
    if partial:
        yield f"Replacement was partial in some trials (strength {_either([f'{s:g}' for s in partial])})."


def _sampler(run: ReportedRun) -> str:
    kind = mapping(run.run.get("model")).get("prediction_type")
    if kind is None:
        return ""
    return " (Euler steps of flow matching [@lipman2023])" if kind == "flow" else " (DDIM [@song2021])"


def _outcome(run: ReportedRun) -> Iterator[str]:
    protocols = set(run.cells["protocol"])
    if "denoise" in protocols:
        yield (
            f"The outcome, {run.stats.metric}, was measured on each image at one timestep of the window, with noise of "
            "its own, with and without the intervention."
        )
    if "sample" in protocols:
        yield (
            f"The outcome, {run.stats.metric}, was measured on images generated from fixed seeds, with and without the "
            "intervention."
        )
    yield (
        "The effect is the mean over images of the log ratio of ablated to unablated, reported as percent change with "
        f"a {wording.CONFIDENCE} interval{'' if run.stops_early else ' (Student t)'}."
    )


def _sampling(run: ReportedRun) -> Iterator[str]:
    guidance = mapping(run.config.get("model")).get("guidance")
    if "sample" in set(run.cells["protocol"]) and isinstance(guidance, int | float) and guidance != 1:
        yield f"Images were generated with classifier-free guidance [@ho2022] of scale {guidance:g}."


def _search(run: ReportedRun) -> Iterator[str]:
    phases = run.trials.get("phase", [])
    searched, confirmed = (sum(phase == name for phase in phases) for name in ("search", "confirm"))
    if searched:
        yield (
            f"A search over {wording.count(searched, 'set')} of heads chose {confirmed:,} to be measured again on "
            "images that it had not used; only these are reported."
        )


def _inference(run: ReportedRun) -> Iterator[str]:
    said, stats = registration(run), run.stats
    yield _TESTS[said.statistic]
    family = f" ({said.families})" if said.corrected == "hierarchical" else ""
    yield f"{_CORRECTIONS[said.corrected]}{family}, at a level of {100 * stats.alpha:g}%."
    apart = "" if run.stops_early else ", negligibility over all trials by Benjamini and Hochberg [@benjamini1995]"
    yield (
        f"An effect was called negligible where it was shown to lie within {margin(run)} of the baseline (two "
        "one-sided tests), whether or not it differed from none. Improvement was tested as degradation was, and "
        f"degradation, improvement and negligibility were each corrected by themselves{apart}."
    )
    rule = "Outcome, margin, level and stopping rule" if run.stops_early else "Outcome, margin and level"
    yield f"{rule} were fixed before the run."
    if run.stops_early:
        clear = f" (degraded or improved: by more than {100 * stats.clear:g}% of the margin)" if stats.clear else ""
        yield (
            f"Trials were looked at after {stats.first} images and every {stats.batch} more, and ended as soon as "
            f"their verdict was certain{clear}, after at most {most_images(run)}; they used "
            f"{wording.between(run.cells['n'])}, {run.cells['n'].mean():.0f} on average."
        )
        if stats.futility is not None:
            yield f"Trials whose unadjusted p of an effect below the margin fell to {stats.futility:g} were given up."
    elif len(run.cells):
        yield f"Every trial was measured on all of its images ({wording.between(run.cells['n'])})."


def _contrasts(run: ReportedRun) -> Iterator[str]:
    if len(run.data_set_contrasts):
        yield (
            "Data sets were compared with Welch's intervals, and two-sided by a studentised permutation test (Welch's "
            "t where the contrasts were very many), adjusted by Benjamini and Hochberg [@benjamini1995]."
        )


def _controls(run: ReportedRun) -> Iterator[str]:
    controls = read_controls(run)
    if controls is None:
        return
    if len(controls.heads):
        yield (
            f"Zeroed heads were compared with {controls.number} random subspaces of their layer, as large as a head "
            f"and with as much removed, on {controls.images} images by a paired sign-flip test, adjusted by Benjamini "
            "and Hochberg [@benjamini1995]."
        )
    if controls.floor == controls.floor:
        yield "The unablated model was measured twice, for the noise floor."


def _profiles(run: ReportedRun) -> Iterator[str]:
    profiled = read_profiled(run)
    if profiled is not None:
        yield (
            f"Heads were profiled on {wording.listing(profiled.datasets)} and given types by probes on one half of the "
            "images, confirmed on the other."
        )


def _record(run: ReportedRun) -> Iterator[str]:
    seed = mapping(run.run.get("seeds")).get("sweep")
    if seed is not None:
        yield f"All noise, draws and generated images derive from seed {seed}."
    versions = mapping(run.run.get("versions"))
    used = [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]
    where = f" on {run.run['device']}" if run.run.get("device") else ""
    commit = f", commit {run.run['git_commit']}" if run.run.get("git_commit") else ""
    if used:
        yield f"Software: {wording.listing(used)}{commit}{where}."


def _either(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
