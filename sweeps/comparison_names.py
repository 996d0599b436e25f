"""Names of the rows of comparisons.parquet, known to those who write them and to the report, which loads no torch."""

DATA_SET_CONTRAST = "data set contrast"
"""How the names of differences between data sets start."""

WORSE_ON_IMAGES = "worse than random subspaces, over images"
WORSE_THAN_CONTROLS = "worse than random subspaces, over controls"
NOISE_FLOOR = "noise floor: unablated model measured twice"

COMPLEXITY_RATIO = "complexity ratio"
"""How the names of ratios of two data sets' complexity start. Group: ``all``, a layer, or ``all, over heads``."""

DIVERGENCE = "entropy divergence"
"""How the names of differences in entropy start. Group: ``t 899``."""

DIVERGENCE_SIZE = "absolute entropy divergence"
DIVERGENCE_BY_CHANCE = "absolute entropy divergence expected of no difference"
"""How the names of |difference| start, of the data sets and of permuted labels. Group: ``t 899`` or ``mean``."""

TYPE_ENTROPY = "entropy of a type"
"""Group, here and below: ``edge | synthetic``."""

TYPE_EFFECT = "ablating a type"
TYPE_ON_IMAGES = "ablating a type, beyond random heads, over images"
TYPE_OVER_SETS = "ablating a type, beyond random heads, over sets"
LEADING_EFFECT = "ablating leading heads"
LEADING_ON_IMAGES = "ablating leading heads, beyond random heads, over images"
LEADING_OVER_SETS = "ablating leading heads, beyond random heads, over sets"
TYPE_AGAINST_TYPE = "a type beyond another, on its own metric"
"""Group: ``edge beyond texture | synthetic``; likewise of leading heads where either has no assigned ones."""
