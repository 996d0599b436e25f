"""Statistics of ablation sweeps: pure functions on arrays; the unit of analysis is the image.

Every function takes one number per image (reduce timesteps first) and returns a frozen dataclass of arrays.
"""

from circuits.statistics.contrasts import Contrast, independent_contrast
from circuits.statistics.effects import Effects, effects, log_ratio, percent
from circuits.statistics.fdr import HierarchicalFDR, bh, by, hierarchical_fdr
from circuits.statistics.ratios import RatioInterval, independent_ratio, paired_ratio
from circuits.statistics.signflip import SignFlipTest, signflip_test
from circuits.statistics.verdicts import MARGIN, Equivalence, Verdict, equivalence_test, verdicts

__all__ = [
    "MARGIN",
    "Contrast",
    "Effects",
    "Equivalence",
    "HierarchicalFDR",
    "RatioInterval",
    "SignFlipTest",
    "Verdict",
    "bh",
    "by",
    "effects",
    "equivalence_test",
    "hierarchical_fdr",
    "independent_contrast",
    "independent_ratio",
    "log_ratio",
    "paired_ratio",
    "percent",
    "signflip_test",
    "verdicts",
]
