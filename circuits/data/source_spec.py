"""What says where a data set comes from; light, since configurations are made of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceSpec:
    """Where a data set comes from.

    Attributes:
        name: in tables, e.g. ``natural``.
        source: one of ``circuits.vocabulary.SOURCE_NAMES``, or ``prompts``.
        label: class label of the images for a class-conditional model; None if it has none.
        root: folder or hub id, for the sources that need one; of prompts the text file.
        prompts: for the source ``prompts``, where they are no file.
    """

    name: str
    source: str
    label: int | None = None
    root: str | None = None
    prompts: tuple[str, ...] = ()
