"""The paper's claims beside what this run measured: the number, the definition, and a plain sentence.

arXiv 2506.17237. Where the paper's own definition is not known, ours is printed, and never as theirs.
"""

import math
from dataclasses import dataclass

import pandas as pd

from sweeps.report import wording
from sweeps.report.profiled import TYPES, UNASSIGNED, Profiled, Verdict
from sweeps.report.reported_run import ReportedRun

HOLDS, PARTLY, NOT, OPPOSITE, UNTESTED = "holds", "in part", "not shown", "the opposite", "not tested"

PAPER_RATIO = "1.084 ± 0.008, p < 0.001"
PAPER_DIVERGENCE = (0.015, 0.166)
PAPER_ENTROPIES = {"edge": "3.18 ± 0.12", "texture": "4.16 ± 0.08", "semantic_part": "2.67 ± 0.15"}
PAPER_DEGRADATION = (25.6, 128.3)
PLAIN = {name: name.replace("_", " ") for name in (*TYPES, UNASSIGNED)}
READINGS = {
    "effective_rank": "effective rank of head outputs",
    "output_energy": "activation energy",
    "circuit_size": "heads for 80% faithfulness",
}


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes:
        ours: what was measured, a line each.
        outcome: whether it holds in this run, in a word; says: in a sentence.
    """

    claim: str
    paper: str
    ours: tuple[str, ...]
    definition: str
    outcome: str
    says: str


def claims(run: ReportedRun, profiled: Profiled) -> list[Claim]:
    """Every claim of the paper, in its order; then what its readers would ask of the types."""
    rows = [row for pair in profiled.pairs for row in (_complexity(profiled, pair), _divergence(profiled, pair))]
    rows.append(_types(profiled))
    rows += [_entropy(profiled, name) for name in PAPER_ENTROPIES]
    rows.append(_degradation(run))
    if profiled.verdicts:
        rows.append(_causal(profiled))
    return rows


def _complexity(profiled: Profiled, pair: str) -> Claim:
    table = profiled.ratios(pair)
    whole = table[table["group"] == "all"].set_index("metric")
    ours = [f"{READINGS[metric]}: {_ratio(row)}" for metric, row in whole.iterrows() if metric in READINGS]
    over = table[(table["group"] == "all, over heads") & (table["metric"] == "effective_rank")]
    if len(over):
        ours.insert(1, f"the same with heads as a sample too: {_ratio(over.iloc[0])}")
    claim = f"Complexity ratio, real faces over synthetic ({pair})"
    definition = (
        "Ratio of means over images of the effective rank of head outputs (exponential of the entropy of the "
        "normalised squared singular values), mean over heads and timesteps; beside it two other readings. The "
        "paper does not say which complexity it takes."
    )
    if "effective_rank" not in whole.index:
        return Claim(claim, PAPER_RATIO, tuple(ours), definition, UNTESTED, "Effective rank was not measured.")
    row = whole.loc["effective_rank"]
    if row["ci_low"] > 1:
        outcome, says = HOLDS, "Heads do something of higher rank on real faces, as the paper says"
    elif row["ci_high"] < 1:
        outcome, says = OPPOSITE, "Heads do something of lower rank on real faces, the opposite of the claim"
    else:
        outcome, says = NOT, "The two data sets are not told apart"
    others = whole.drop(index="effective_rank")
    above = [READINGS[m] for m, r in others.iterrows() if r["ci_low"] > 1 and m in READINGS]
    below = [READINGS[m] for m, r in others.iterrows() if r["ci_high"] < 1 and m in READINGS]
    parts = [
        f"{wording.listing(names)} {is_(names)} {word}"
        for names, word in ((above, "higher"), (below, "lower"))
        if names
    ]
    unsure = [READINGS[m] for m in others.index if m in READINGS and READINGS[m] not in (*above, *below)]
    parts += [f"{wording.listing(unsure)} {is_(unsure)} not told apart"] if unsure else []
    said = f"{says}; {'; '.join(parts)}." if parts else f"{says}."
    return Claim(claim, PAPER_RATIO, tuple(ours), definition, outcome, said)


def _divergence(profiled: Profiled, pair: str) -> Claim:
    table = profiled.divergence(pair)
    mean, expected, p = profiled.mean_divergence(pair)
    outside = table[(table["low"] > 0) | (table["high"] < 0)]
    widest = table.loc[table["size"].idxmax()]
    ours = (
        f"{wording.decimal(table['size'].min(), 3)} to {wording.decimal(table['size'].max(), 3)} nats over "
        f"{len(table)} timesteps, widest at t {int(widest['t'])} ({wording.CONFIDENCE} band of the difference "
        f"{wording.decimal(widest['low'], 3)} to {wording.decimal(widest['high'], 3)})",
        f"mean {wording.decimal(mean, 3)}; no difference at all would give {wording.decimal(expected, 3)}",
        f"p = {wording.probability(p)} of no difference at any timestep (max-T)",
    )
    low, high = PAPER_DIVERGENCE
    inside = int(table["size"].between(low, high).sum())
    says = (
        f"Entropy differs between the data sets, outside the band at {len(outside)} of {len(table)} timesteps; "
        f"the size of the difference lies in the paper’s range at {inside} of them."
        if len(outside)
        else "No timestep lies outside the band: what an absolute difference reads here is what chance gives."
    )
    return Claim(
        f"Entropy divergence across timesteps ({pair})", f"{PAPER_DIVERGENCE[0]} to {PAPER_DIVERGENCE[1]}", ours,
        "Absolute difference between the data sets of the entropy of attention in nats, mean over heads, per timestep; "
        "the band holds at all timesteps at once.",
        HOLDS if len(outside) else NOT, says,
    )  # fmt: skip


def _types(profiled: Profiled) -> Claim:
    ours = []
    found: set[str] = set()
    for dataset in profiled.datasets:
        here = profiled.types[profiled.types["dataset"] == dataset]["type"].value_counts()
        named = [f"{int(here[name])} {PLAIN[name]}" for name in TYPES if name in here]
        found |= {name for name in TYPES if name in here}
        ours.append(f"{dataset}: {', '.join([*named, f'{int(here.get(UNASSIGNED, 0))} {UNASSIGNED}'])}")
    outcome = HOLDS if len(found) == len(TYPES) else PARTLY if found else NOT
    there = wording.listing([PLAIN[name] for name in TYPES if name in found]) if found else "none"
    return Claim(
        "Eight functionally distinct attention mechanisms", "eight", tuple(ours),
        "Heads are given a type by probes with nulls on half of the images and keep it if the other half repeats it "
        "with probability 0.9; never by entropy itself.",
        outcome, f"{len(found)} of the eight types {'is' if len(found) == 1 else 'are'} found on this model: {there}.",
    )  # fmt: skip


def _entropy(profiled: Profiled, name: str) -> Claim:
    nats = profiled.entropies()
    relative = profiled.entropies("entropy_normalised").set_index("group")["estimate"]
    here = nats[nats["type"] == name]
    low, high = _paper_interval(PAPER_ENTROPIES[name])
    ours = tuple(
        f"{row.dataset}: {wording.decimal(row.estimate)} nats ({wording.CONFIDENCE} CI {wording.decimal(row.ci_low)} "
        f"to {wording.decimal(row.ci_high)}; {wording.decimal(relative[row.group])} of ln keys), "
        f"{wording.count(int(row.n_b), 'head')}"
        for row in here.itertuples()
    )
    claim = f"Entropy of {PLAIN[name]} heads"
    definition = "Mean over the heads of the type, timesteps and images, in nats and as a share of ln(number of keys)."
    if here.empty:
        none = f"This model has no {PLAIN[name]} head, so there is no entropy to compare."
        return Claim(claim, PAPER_ENTROPIES[name], ("no head of this type",), definition, UNTESTED, none)
    meets = ((here["ci_low"].astype(float) <= high) & (here["ci_high"].astype(float) >= low)).all()
    says = (
        "Our interval meets the paper’s."
        if meets
        else "Our interval does not meet the paper’s; keys may be other in number."
    )
    return Claim(claim, PAPER_ENTROPIES[name], ours, definition, HOLDS if meets else NOT, says)


def _degradation(run: ReportedRun) -> Claim:
    heads = run.cells[run.cells["level"] == "head"]
    degraded = heads[heads["verdict"] == "degraded"]
    low, high = PAPER_DEGRADATION
    definition = (
        f"Percent increase of {run.stats.metric} on the same images and noise, ablated over unablated, one head, mode "
        "and window at a time; those called degraded after correction."
    )
    claim, paper = "Ablation degradation", f"{low}% to {high}%"
    if degraded.empty:
        return Claim(claim, paper, ("none called degraded",), definition, NOT, "No single head was shown to matter.")
    every = list(degraded.itertuples())
    first, last = every[0], every[-1]
    inside = int(((degraded["percent"] >= low) & (degraded["percent"] <= high)).sum())
    ours = (
        f"{len(degraded):,} of {len(heads):,} head trials degraded, {wording.percent(degraded['percent'].min())} to "
        f"{wording.percent(degraded['percent'].max())}",
        f"strongest: {wording.cell(first)} on {first.dataset}, {wording.effect(first)}",
        f"weakest: {wording.cell(last)} on {last.dataset}, {wording.effect(last)}",
    )
    says = (
        f"Losing a head hurts, and {inside:,} of {len(degraded):,} effects lie in the paper’s range; most are smaller."
        if inside * 2 < len(degraded) and inside
        else f"Losing a head hurts, and {inside:,} of {len(degraded):,} effects lie in the paper’s range."
        if inside
        else "Losing a head hurts, but no effect lies in the paper’s range."
    )
    return Claim(claim, paper, ours, definition, HOLDS if inside else PARTLY, says)


def _causal(profiled: Profiled) -> Claim:
    tested = [v for v in profiled.verdicts if v.assigned and v.own and math.isfinite(v.excess)]
    held = [v for v in tested if v.says == HOLDS]
    ours = tuple(_verdict_line(v) for v in tested) or ("no head has a type that predicts a metric",)
    if not tested:
        outcome, says = UNTESTED, "No type with a metric of its own has heads here, so nothing could be confirmed."
    else:
        partly = [v for v in tested if v.says == PARTLY]
        outcome = HOLDS if len(held) == len(tested) else PARTLY if held or partly else NOT
        says = (
            f"Of {wording.count(len(tested), 'type')} with heads, each data set counted, {len(held)} hold and "
            f"{len(partly)} hold in part: see the table of types."
        )
    return Claim(
        "Types do what they say", "not tested by the paper", ours,
        "Ablating all heads of a type at once hurts the type’s own metric more than as many random heads of the same "
        "layers, over images and over sets, and more than other types do.",
        outcome, says,
    )  # fmt: skip


def _verdict_line(verdict: Verdict) -> str:
    how = f"{wording.percent(100 * math.expm1(verdict.excess))} beyond random heads"
    why = f" ({verdict.why})" if verdict.why else ""
    return f"{PLAIN[verdict.type]} on {verdict.dataset}, {verdict.own}: {how}, {verdict.says}{why}"


def _ratio(row: pd.Series) -> str:
    return (
        f"{wording.decimal(row['estimate'], 3)} ({wording.CONFIDENCE} CI {wording.decimal(row['ci_low'], 3)} to "
        f"{wording.decimal(row['ci_high'], 3)}, p = {wording.probability(row['p'])})"
    )


def _paper_interval(text: str) -> tuple[float, float]:
    middle, spread = (float(part) for part in text.split(" ± "))
    return middle - spread, middle + spread


def is_(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
