"""Causal interventions on diffusion models: load a denoiser, find its heads, ablate them, measure what breaks."""

from circuits.data.sources import DataSet, SourceSpec, load_data_set
from circuits.denoisers import Denoiser, ModelError, load_denoiser
from circuits.engine import Engine, Paired, Window
from circuits.interventions import ALL_HEADS, Intervention, Mode, Site
from circuits.measure import measure
from circuits.profiles import HeadProfiles, profile_heads
from circuits.sites import AttentionLayer, find_sites

__all__ = [
    "ALL_HEADS",
    "AttentionLayer",
    "DataSet",
    "Denoiser",
    "Engine",
    "HeadProfiles",
    "Intervention",
    "Mode",
    "ModelError",
    "Paired",
    "Site",
    "SourceSpec",
    "Window",
    "find_sites",
    "load_data_set",
    "load_denoiser",
    "measure",
    "profile_heads",
]
