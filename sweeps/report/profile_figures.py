"""The figures of the section about what heads do, with their words."""

import matplotlib
import pandas as pd

from sweeps.report import wording
from sweeps.report.drawing import Drawing
from sweeps.report.paper import PLAIN
from sweeps.report.profile_plots import attention_maps, causal_matrix, entropy_over_time, type_map
from sweeps.report.profiled import UNASSIGNED, Profiled
from sweeps.report.theme import FIGURE_STYLE


def draw_profiles(profiled: Profiled | None) -> list[Drawing]:
    """Types, entropy, what types hurt, and attention maps of each data set."""
    if profiled is None:
        return []
    with matplotlib.rc_context(FIGURE_STYLE):
        return [_types(profiled), _entropy(profiled), *_matrix(profiled), *_maps(profiled)]


def _types(profiled: Profiled) -> Drawing:
    types = profiled.types
    sure = int((types["type"] != UNASSIGNED).sum())
    counts = types["type"].value_counts()
    listed = wording.listing(f"{count} {PLAIN[str(name)]}" for name, count in counts.items())
    return Drawing(
        name="head-types",
        figure=type_map(types, profiled.datasets),
        title="What each head is",
        alt=f"Map of layers by heads for {wording.listing(profiled.datasets)}: {listed}.",
        caption=f"{sure} of {len(types)} heads, those of each data set counted, have a type that the other half of the "
        "images repeats with probability 0.9; the others stay without one. Letters: as in the legend.",
    )


def _entropy(profiled: Profiled) -> Drawing:
    bands = {pair: profiled.divergence(pair) for pair in profiled.pairs}
    outside = sum(int(((band["low"] > 0) | (band["high"] < 0)).sum()) for band in bands.values())
    return Drawing(
        name="entropy-over-timesteps",
        figure=entropy_over_time(profiled.heads, profiled.datasets, bands),
        title="Entropy over timesteps",
        alt=f"Lines: mean entropy of attention by timestep for {wording.listing(profiled.datasets)}, and the "
        f"difference between data sets with its band, which excludes 0 at {outside} timesteps.",
        caption="Right: band by max-T over label permutations of whole images. Dashed: the mean absolute difference "
        "that permuted labels give, which is what an absolute divergence reads when nothing differs.",
    )


def _matrix(profiled: Profiled) -> list[Drawing]:
    matrix = profiled.matrix
    if matrix.empty or profiled.sets.empty:
        return []
    own = dict(zip(profiled.sets["type"], profiled.sets["own_metric"], strict=True))
    sure = int((matrix["q"].astype(float) <= profiled.alpha).sum())
    return [
        Drawing(
            name="types-by-metrics",
            figure=causal_matrix(matrix, own, profiled.datasets, profiled.alpha),
            title="What losing the heads of a type hurts, beyond as many random heads",
            alt=f"Matrix of types by metrics; {sure} of {len(matrix)} cells are worse than random heads over images. "
            "The table of types has the verdicts.",
            caption="Percent of degradation beyond the average of the random sets of the same layers. Coloured: worse "
            f"over images (q ≤ {100 * profiled.alpha:g}%), or better by its interval. Framed: the metric that the type "
            "predicts. Empty: no such heads, or a metric that the images do not allow. *: no head has the type, and "
            "its highest-scoring ones stand in, which is exploratory.",
        )
    ]


def _maps(profiled: Profiled) -> list[Drawing]:
    drawings = []
    for position, dataset in enumerate(profiled.datasets if len(profiled.maps) else ()):
        part: pd.DataFrame = profiled.maps[profiled.maps["dataset"] == dataset]
        if part.empty:
            continue
        heads = part.drop_duplicates(["layer_index", "head"])
        named = wording.listing(f"L{row.layer_index}H{row.head} ({PLAIN[row.type]})" for row in heads.itertuples())
        drawings.append(
            Drawing(
                name=wording.slug("attention", position, dataset),
                figure=attention_maps(part),
                title=f"Attention on one image, {dataset}",
                alt=f"Attention maps of {named} at {wording.count(part['t'].nunique(), 'timestep')}, noise first.",
                caption="The heads with the highest score of each type. Left: attention that each place gets from all "
                "others. Right: attention of the place in the ring. Orange is the most that the map has; the network "
                "saw the image with the noise of the timestep, not as it is drawn.",
            )
        )
    return drawings
