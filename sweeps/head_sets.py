"""Trials of sets of heads: those of each type at once, and random sets of their size in the same layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from circuits.attention_types import AssignedTypes, assign_attention_types
from circuits.engine import Window
from circuits.interventions import Intervention, Mode, Site
from circuits.profiles import HeadProfiles
from circuits.seeds import numpy_generator
from circuits.type_validation import OWN_METRIC, head_sets
from sweeps.config import Config
from sweeps.phases import TYPES, TYPES_CONTROL
from sweeps.plan import Subject, Trial, make_trial

SET_COLUMNS = ["dataset", "type", "basis", "own_metric", "draw", "trial_id", "heads"]


def types_of(profiles: HeadProfiles) -> dict[str, AssignedTypes]:
    """The type of every head by data set; the same whoever asks."""
    return {
        dataset: assign_attention_types(profiles, dataset, numpy_generator(0, f"types/{dataset}"))
        for dataset in profiles.values
    }


def type_trials(
    config: Config, subject: Subject, profiles: HeadProfiles, types: Mapping[str, AssignedTypes]
) -> tuple[dict[str, Trial], pd.DataFrame]:
    """Trials by id, and a row for each set: whose it is, and which trial measures it (``draw`` 0 is the type's own).

    Every set is ablated at all timesteps, an image at one of them in turn. Two types may share a random set, and so a
    trial.
    """
    profile = config.sweep.profile
    layers = [layer.name for layer, _ in profiles.heads]
    window = Window(subject.denoiser.train_timesteps - 1, 0)
    trials: dict[str, Trial] = {}
    rows: list[dict[str, object]] = []
    for dataset, found in types.items():
        images = min(profile.type_images, len(subject.data[dataset].measured))
        rng = numpy_generator(config.sweep.seed, f"sets/{dataset}")
        for chosen in head_sets(found, layers, rng, draws=profile.matched):
            for draw, member in enumerate((chosen.member, *chosen.matched)):
                sites = tuple(Site(layers[i], profiles.heads[i][1]) for i in np.flatnonzero(member))
                trial = make_trial(
                    config, subject, dataset, "denoise", Intervention(Mode(profile.mode), sites), window, -1,
                    level="set", images=images, samples=0, phase=TYPES_CONTROL if draw else TYPES,
                )  # fmt: skip
                trials.setdefault(trial.trial_id, trial)
                rows.append(
                    {
                        "dataset": dataset,
                        "type": chosen.type.value,
                        "basis": chosen.basis,
                        "own_metric": OWN_METRIC[chosen.type] or "",
                        "draw": draw,
                        "trial_id": trial.trial_id,
                        "heads": int(member.sum()),
                    }
                )
    return trials, pd.DataFrame(rows, columns=SET_COLUMNS)
