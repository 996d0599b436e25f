"""What a run says about its heads, as the report shows it: types, entropies, complexity, and what types do."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from sweeps import comparison_names as names
from sweeps.records import RunDirectory
from sweeps.report import wording
from sweeps.report.reported_run import ReportedRun, tidied

TYPES = (
    "edge", "texture", "semantic_part", "symmetry", "positional", "global_context", "local_detail", "luminance",
)  # fmt: skip
UNASSIGNED = "unassigned"


@dataclass(frozen=True)
class Verdict:
    """Whether the heads of a type do what it says, on one data set.

    Attributes:
        own: the type's metric, empty where it has none.
        assigned: whether the heads have the type; else they are the leading ones, and all of this is exploratory.
        heads, controls, images: how many.
        excess, ci_low, ci_high: mean log ratio on the own metric beyond the average random set; NaN without one.
        most: the metric that the set hurts most beyond random heads; empty where it hurts none.
        beaten, others: other types whose excess on the metric is surely smaller, of so many.
        says: ``holds``, ``in part``, ``fails``, or ``not tested``.
        why: what stands against it, or why it was not tested.
    """

    dataset: str
    type: str
    own: str
    assigned: bool
    heads: int
    controls: int
    images: int
    excess: float
    ci_low: float
    ci_high: float
    q: float
    p_sets: float
    most: str
    beaten: int
    others: int
    says: str
    why: str


@dataclass(frozen=True)
class Profiled:
    """
    Attributes:
        heads: heads.parquet. maps: attention of some heads, empty where none was kept. sets: a row for each set of
            heads that was ablated, empty where none was.
        comparisons: the run's. alpha: level of the claims.
    """

    heads: pd.DataFrame
    maps: pd.DataFrame
    sets: pd.DataFrame
    comparisons: pd.DataFrame
    alpha: float

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        return tuple(self.heads["dataset"].drop_duplicates())

    @cached_property
    def types(self) -> pd.DataFrame:
        """A row a data set and head: its type and the probability of that."""
        return self.heads.drop_duplicates(["dataset", "layer_index", "head"])

    @cached_property
    def pairs(self) -> tuple[str, ...]:
        """``natural / synthetic``: each data set with the first."""
        return tuple(f"{other} / {self.datasets[0]}" for other in self.datasets[1:])

    def named(self, name: str) -> pd.DataFrame:
        return self.comparisons[self.comparisons["name"] == name]

    def ratios(self, pair: str) -> pd.DataFrame:
        return self.named(f"{names.COMPLEXITY_RATIO}: {pair}")

    def entropies(self, metric: str = "entropy_nats") -> pd.DataFrame:
        """Of every type that has heads: `type` and `dataset` beside the row."""
        found = self.named(names.TYPE_ENTROPY)
        found = found[found["metric"] == metric]
        return found.assign(**_split(found["group"]))

    def divergence(self, pair: str, metric: str = "entropy_nats") -> pd.DataFrame:
        """By timestep, the noisiest first: `t`, `difference`, `low`, `high`, `p`, `size`, `expected` by chance."""
        which = pair.replace(" / ", " - ")
        by_group = {
            name: found[found["metric"] == metric].set_index("group")
            for name in (names.DIVERGENCE, names.DIVERGENCE_SIZE, names.DIVERGENCE_BY_CHANCE)
            for found in [self.named(f"{name}: {which}")]
        }
        band, size, chance = by_group.values()
        table = pd.DataFrame(
            {
                "difference": band["estimate"],
                "low": band["ci_low"],
                "high": band["ci_high"],
                "p": band["p"],
                "size": size["estimate"].reindex(band.index),
                "expected": chance["estimate"].reindex(band.index),
            }
        )
        table["t"] = [int(group.removeprefix("t ")) for group in table.index]
        return table.sort_values("t", ascending=False).astype({"difference": float, "low": float, "high": float})

    def mean_divergence(self, pair: str, metric: str = "entropy_nats") -> tuple[float, float, float]:
        """Mean of |difference| over timesteps, what no difference would give, and p of none at any timestep."""
        which = pair.replace(" / ", " - ")
        found = []
        for name in (names.DIVERGENCE_SIZE, names.DIVERGENCE_BY_CHANCE):
            rows = self.named(f"{name}: {which}")
            found.append(rows[(rows["metric"] == metric) & (rows["group"] == "mean")].iloc[0])
        return float(found[0]["estimate"]), float(found[1]["estimate"]), float(found[0]["p"])

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """A row a data set, type and metric: `estimate`, `ci_low`, `ci_high` (log ratio beyond random sets), `q` over
        images, `p_sets`, `n_a` images, `n_b` sets, `assigned`."""
        parts = []
        for assigned, on_images, over_sets in (
            (True, names.TYPE_ON_IMAGES, names.TYPE_OVER_SETS),
            (False, names.LEADING_ON_IMAGES, names.LEADING_OVER_SETS),
        ):
            found, sets = self.named(on_images), self.named(over_sets).set_index(["metric", "group"])["p"]
            keys = pd.MultiIndex.from_frame(found[["metric", "group"]])
            p_sets = sets.reindex(keys).to_numpy(dtype=float)
            parts.append(found.assign(assigned=assigned, p_sets=p_sets, **_split(found["group"])))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Of every type on every data set, in the order of ``TYPES``."""
        if self.sets.empty:
            return []
        own = self.sets[self.sets["draw"] == 0]
        order = {name: place for place, name in enumerate(TYPES)}
        rows = sorted(own.itertuples(), key=lambda row: (self.datasets.index(row.dataset), order[str(row.type)]))
        return [self._verdict(row) for row in rows]

    def _verdict(self, row: Any) -> Verdict:
        matrix = self.matrix[(self.matrix["dataset"] == row.dataset) & (self.matrix["type"] == row.type)]
        cell = matrix[matrix["metric"] == row.own_metric]
        hurt = matrix[matrix["estimate"].astype(float) > 0].sort_values("estimate", ascending=False, kind="stable")
        most = str(hurt["metric"].iloc[0]) if len(hurt) else ""
        against = self.named(names.TYPE_AGAINST_TYPE)
        starts, ends = f"{row.type} beyond ", f" | {row.dataset}"
        against = against[against["group"].str.startswith(starts) & against["group"].str.endswith(ends)]
        if row.basis == "assigned":  # types are compared with types, leading heads with whatever there is
            assigned = set(
                self.sets.loc[(self.sets["basis"] == "assigned") & (self.sets["dataset"] == row.dataset), "type"]
            )
            other = against["group"].str.removeprefix(starts).str.removesuffix(ends)
            against = against[other.isin(assigned)]
        beaten = int((against["q"] <= self.alpha).sum())
        shared = {
            "dataset": str(row.dataset),
            "type": str(row.type),
            "own": str(row.own_metric),
            "assigned": row.basis == "assigned",
            "heads": int(row.heads),
            "most": most,
            "beaten": beaten,
            "others": len(against),
        }
        if not row.own_metric or cell.empty:
            why = "no random set, or not measured" if row.own_metric else "no metric of its own"
            unknown: dict[str, Any] = dict.fromkeys(("excess", "ci_low", "ci_high", "q", "p_sets"), math.nan)
            return Verdict(**shared, **unknown, controls=0, images=0, says="not tested", why=why)
        (found,) = cell.itertuples()
        against_it = []
        if not found.q <= self.alpha:
            against_it.append("random heads as bad")
        elif not found.p_sets <= self.alpha:
            against_it.append(f"{wording.count(self._as_bad(found), 'random set')} as bad")
        if beaten < len(against):
            against_it.append(f"{wording.count(len(against) - beaten, 'other type')} as bad")
        says = "fails" if not found.q <= self.alpha else "in part" if against_it else "holds"
        return Verdict(
            **shared,
            controls=int(found.n_b),
            images=int(found.n_a),
            excess=float(found.estimate),
            ci_low=float(found.ci_low),
            ci_high=float(found.ci_high),
            q=float(found.q),
            p_sets=float(found.p_sets),
            says=says,
            why="; ".join(against_it),
        )

    @staticmethod
    def _as_bad(cell: Any) -> int:
        """Random sets at least as bad, from the share of them that p is."""
        return round(float(cell.p_sets) * (int(cell.n_b) + 1)) - 1


def read_profiled(run: ReportedRun) -> Profiled | None:
    """None where the run profiled no heads."""
    if not (run.path / "heads.parquet").is_file():
        return None
    directory = RunDirectory(run.path)
    tables = [run.path / "profiles" / name for name in ("maps.parquet", "sets.parquet")]
    maps, sets = (tidied(directory.read_frame(table)) if table.is_file() else pd.DataFrame() for table in tables)
    return Profiled(tidied(directory.read_frame(directory.heads)), maps, sets, run.comparisons, run.stats.alpha)


def _split(groups: pd.Series) -> dict[str, pd.Series]:
    """``edge | synthetic``: a type and a data set, whose name may hold anything."""
    parts = groups.astype(str).str.split(" | ", n=1, expand=False, regex=False)
    return {"type": parts.str[0], "dataset": parts.str[1]}
