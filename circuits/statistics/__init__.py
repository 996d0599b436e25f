"""Statistics of ablation sweeps: pure functions on arrays; the unit of analysis is the image.

Every function takes one number per image (reduce timesteps first) and returns a frozen dataclass of arrays.
"""

from circuits.statistics.contrasts import Contrast, independent_contrast
from circuits.statistics.controls import ControlContrast, control_contrast
from circuits.statistics.divergence import DivergenceBand, divergence_band
from circuits.statistics.effects import Effects, effects, log_ratio, percent
from circuits.statistics.fdr import HierarchicalFDR, bh, by, e_bh, hierarchical_fdr
from circuits.statistics.head_types import UNASSIGNED, HeadTypes, Prototypes, assign_types, fit_prototypes
from circuits.statistics.max_t import MaxT, SimultaneousIntervals, max_t_test, simultaneous_intervals
from circuits.statistics.random_circuits import (
    RandomCircuitTest,
    faithfulness,
    matched_random_circuits,
    random_circuit_test,
)
from circuits.statistics.ranks import RankIntervals, rank_intervals, screened_rank_intervals
from circuits.statistics.ratios import RatioInterval, independent_ratio, paired_ratio
from circuits.statistics.repeated import RepeatedIntervals, repeated_intervals
from circuits.statistics.sequential import SequentialResult, SequentialTrials, StoppingRule
from circuits.statistics.signflip import SignFlipTest, signflip_test
from circuits.statistics.two_way import TwoWayContrast, two_way_contrast
from circuits.statistics.verdicts import MARGIN, Equivalence, Verdict, equivalence_test, verdicts

__all__ = [
    "MARGIN",
    "UNASSIGNED",
    "Contrast",
    "ControlContrast",
    "DivergenceBand",
    "Effects",
    "Equivalence",
    "HeadTypes",
    "HierarchicalFDR",
    "MaxT",
    "Prototypes",
    "RandomCircuitTest",
    "RankIntervals",
    "RatioInterval",
    "RepeatedIntervals",
    "SequentialResult",
    "SequentialTrials",
    "SignFlipTest",
    "SimultaneousIntervals",
    "StoppingRule",
    "TwoWayContrast",
    "Verdict",
    "assign_types",
    "bh",
    "by",
    "control_contrast",
    "divergence_band",
    "e_bh",
    "effects",
    "equivalence_test",
    "faithfulness",
    "fit_prototypes",
    "hierarchical_fdr",
    "independent_contrast",
    "independent_ratio",
    "log_ratio",
    "matched_random_circuits",
    "max_t_test",
    "paired_ratio",
    "percent",
    "random_circuit_test",
    "rank_intervals",
    "repeated_intervals",
    "screened_rank_intervals",
    "signflip_test",
    "simultaneous_intervals",
    "two_way_contrast",
    "verdicts",
]
