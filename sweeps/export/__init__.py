"""``mode=export``: tables, figures and words of a run for a paper, made from its parquet files alone."""

from sweeps.export.document import export_run

__all__ = ["export_run"]
