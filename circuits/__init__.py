"""Causal interventions on diffusion models: load a denoiser, find its heads, ablate them, measure what breaks.

Names are loaded when they are asked for: what needs no model (a command line, say) need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuits.data.model_data import data_set_for
    from circuits.data.source_spec import SourceSpec
    from circuits.data.sources import DataSet, load_data_set
    from circuits.data.tensors import data_set_of
    from circuits.denoisers import Denoiser, ModelError, load_denoiser
    from circuits.engine import Engine, Paired, Window
    from circuits.head_functions import register_intervention
    from circuits.interventions import ALL_HEADS, Intervention, Site
    from circuits.measured import Measured, effects
    from circuits.measuring import measure
    from circuits.pipelines import denoiser_of
    from circuits.plots import plot_effects, plot_heatmap, plot_profile
    from circuits.profiles import HeadProfiles, profile_heads
    from circuits.sites import AttentionLayer, find_sites
    from circuits.vocabulary import Mode

_HOMES = {
    "ALL_HEADS": "interventions",
    "AttentionLayer": "sites",
    "DataSet": "data.sources",
    "Denoiser": "denoisers",
    "Engine": "engine",
    "HeadProfiles": "profiles",
    "Intervention": "interventions",
    "Measured": "measured",
    "Mode": "vocabulary",
    "ModelError": "denoisers",
    "Paired": "engine",
    "Site": "interventions",
    "SourceSpec": "data.source_spec",
    "Window": "engine",
    "data_set_for": "data.model_data",
    "data_set_of": "data.tensors",
    "denoiser_of": "pipelines",
    "effects": "measured",
    "find_sites": "sites",
    "load_data_set": "data.sources",
    "load_denoiser": "denoisers",
    "measure": "measuring",
    "plot_effects": "plots",
    "plot_heatmap": "plots",
    "plot_profile": "plots",
    "profile_heads": "profiles",
    "register_intervention": "head_functions",
}

__all__ = [
    "ALL_HEADS",
    "AttentionLayer",
    "DataSet",
    "Denoiser",
    "Engine",
    "HeadProfiles",
    "Intervention",
    "Measured",
    "Mode",
    "ModelError",
    "Paired",
    "Site",
    "SourceSpec",
    "Window",
    "data_set_for",
    "data_set_of",
    "denoiser_of",
    "effects",
    "find_sites",
    "load_data_set",
    "load_denoiser",
    "measure",
    "plot_effects",
    "plot_heatmap",
    "plot_profile",
    "profile_heads",
    "register_intervention",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
