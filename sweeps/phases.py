"""What trials are for."""

TYPES = "types"
"""The heads of a type, ablated at once."""

TYPES_CONTROL = "types control"
"""As many random heads of the same layers."""

COMPARED = ("control", TYPES, TYPES_CONTROL)
"""Trials that are no findings themselves: they are measured to be compared, and comparisons.parquet says how."""
