"""Measure leases. Works without Ray: the same runner serves a worker actor and this process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from circuits.data.model_data import data_set_for
from circuits.data.source_spec import SourceSpec
from circuits.data.sources import DataSet
from circuits.denoisers import load_denoiser
from circuits.effect_tables import gains
from circuits.engine import Engine, Generated, Paired
from circuits.face_metrics import FaceMetrics
from circuits.guidance import guidance_of
from circuits.metrics import sample_distances, sample_metrics
from circuits.probes import synthetic_part_masks
from circuits.sites import find_sites
from sweeps.leases import Lease
from sweeps.plan import Subject, Trial, generated
from sweeps.records import Failure, GaveOut, RunDirectory, measurement_table, publish

ATTEMPTS = 2
DEVICE_LOST: tuple[type[Exception], ...] = (torch.AcceleratorError,)  # the process cannot use its device any more
_NO_TRIALS_FAULT: tuple[type[Exception], ...] = (GaveOut, *DEVICE_LOST)
_MAGNIFY = 2


@dataclass(frozen=True)
class SubjectSpec:
    """What a worker needs to load the model and the data sets; plain values, so it travels anywhere.

    Attributes:
        images: per data set; with ``at_most`` one that has fewer gives all it has.
        size: of the images in pixels; None for the model's own.
        steps: of the sampler; with ``seed`` they also make the images of prompts.
        guidance: of generated images; None or 1 for none.
        channels_last, compiled: as in ``load_denoiser``.
    """

    model_name: str
    model_path: str
    dtype: str
    device: str
    sources: tuple[SourceSpec, ...]
    images: int
    at_most: bool = False
    size: int | None = None
    steps: int = 10
    seed: int = 0
    guidance: float | None = None
    channels_last: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class RunnerSpec:
    """A worker's whole assignment.

    Attributes:
        subject: what it loads; the seed and the sampler's steps of the sweep are those that make images of prompts.
        rows: rows of a forward; 0 measures what is best for model and device.
        threads: CPU threads of this worker; 0 leaves torch's default.
        metric: the registered metric, whose values travel back for the stopping rule and the progress display.
        faces: whether symmetry and parts of faces are measured too.
    """

    subject: SubjectSpec
    rows: int
    threads: int
    run_dir: str
    metric: str
    faces: bool = False


@dataclass(frozen=True)
class LeaseOutcome:
    """What became of a lease.

    Attributes:
        gains: log(ablated / baseline) of each recorded trial on the lease's images, by the registered metric. Effects
            come from the records; this is for the progress display and for the rule that stops trials.
        rows: rows run, baselines included.
        files: records and samples by their names in the run directory, where the worker could not write into it.
        last: whether its worker takes no more, since its machine is about to go.
    """

    gains: dict[str, np.ndarray]
    failures: tuple[Failure, ...]
    rows: int
    seconds: float
    peak_memory: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)
    last: bool = False


def load_subject(spec: SubjectSpec) -> Subject:
    """Load model and data; raises ModelError or DataError, one line each."""
    denoiser = load_denoiser(
        spec.model_path,
        name=spec.model_name,
        device=spec.device,
        dtype=spec.dtype,
        size=spec.size,
        channels_last=spec.channels_last,
        compiled=spec.compiled,
    )
    guidance = guidance_of(denoiser, spec.guidance)
    data = {
        source.name: data_set_for(
            denoiser,
            source,
            spec.images,
            at_most=spec.at_most,
            steps=spec.steps,
            seed=spec.seed,
            guidance=guidance,
        )
        for source in spec.sources
    }
    return Subject(denoiser, find_sites(denoiser), data, guidance)


def face_metrics(data: Mapping[str, DataSet]) -> FaceMetrics:
    """With the exact parts of generated faces."""
    return FaceMetrics({name: synthetic_part_masks(source.measured) for name, source in data.items()})


class Runner:
    """A loaded model that measures leases and records them."""

    def __init__(self, spec: RunnerSpec, subject: Subject | None = None) -> None:
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._subject = subject or load_subject(spec.subject)
        self._engine = Engine(
            self._subject.denoiser,
            self._subject.layers,
            self._subject.data,
            steps=spec.subject.steps,
            seed=spec.subject.seed,
            rows=spec.rows,
            guidance=self._subject.guidance,
            extra=face_metrics(self._subject.data) if spec.faces else None,
        )
        self._directory = RunDirectory(Path(spec.run_dir))
        self._metric = spec.metric

    def run(self, lease: Lease) -> LeaseOutcome:
        """Measure a lease and write its part. A trial that raises is measured alone, twice, and then counts as failed.

        Raises:
            GaveOut: the records cannot be written.
            DEVICE_LOST: an error after which nothing can be measured in this process.
        """
        started, rows = time.monotonic(), self._engine.rows_run
        tables: list[pa.Table] = []
        measured: dict[str, np.ndarray] = {}
        failures: list[Failure] = []
        try:
            tables.append(self._measure(lease.trials, lease.units, measured))
        except _NO_TRIALS_FAULT:
            raise
        except Exception:
            measured.clear()
            for trial in lease.trials:
                outcome = self._measure_alone(trial, lease.units, measured)
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                else:
                    tables.append(outcome)
        if tables:
            self._directory.write_part(lease.lease_id, pa.concat_tables(tables))
        peak = torch.cuda.max_memory_allocated() if self._subject.denoiser.device.type == "cuda" else 0
        return LeaseOutcome(measured, tuple(failures), self._engine.rows_run - rows, time.monotonic() - started, peak)

    def _measure_alone(self, trial: Trial, units: range | None, measured: dict[str, np.ndarray]) -> pa.Table | Failure:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._measure((trial,), units, measured)
            except _NO_TRIALS_FAULT:
                raise
            except Exception as error:
                if attempt == ATTEMPTS:
                    line = f"{type(error).__name__}: {error}".splitlines()[0]
                    return Failure(trial.trial_id, line, traceback.format_exc(), attempt)
        raise AssertionError("unreachable")

    def _measure(self, trials: tuple[Trial, ...], units: range | None, measured: dict[str, np.ndarray]) -> pa.Table:
        """``units``: images of the trials measured now; those that begin with the first also generate the samples."""
        first = trials[0]
        interventions = [t.intervention for t in trials]
        ids = [t.trial_id for t in trials]
        begins = units is None or units.start == 0
        paired: dict[str, Paired] = {}
        if first.protocol == "denoise":
            paired |= self._engine.denoise(
                first.dataset, first.window, interventions, first.images, first.first_image, units
            )
        made: dict[str, Paired] = {}
        if begins and generated(first):
            made = self._generate(trials)
        # The registered metric, or under protocol ``sample`` the first property that both images have.
        shown = {**paired, **made}
        chosen = shown.get(self._metric) or next(iter(shown.values()))
        g = gains(chosen.ablated.numpy(), chosen.baseline.numpy())
        measured.update(zip(ids, g.astype(np.float32), strict=True))
        start = first.first_image + (0 if units is None else units.start)
        tables = [(name, pair, start) for name, pair in paired.items()]
        tables += [(name, pair, first.first_image) for name, pair in made.items()]
        return pa.concat_tables(
            measurement_table(ids, name, pair.baseline.numpy(), pair.ablated.numpy(), unit)
            for name, pair, unit in tables
        )

    def _generate(self, trials: tuple[Trial, ...]) -> dict[str, Paired]:
        """Metrics of the trials' generated images, whose grids are saved to look at."""
        first = trials[0]
        made = self._engine.sample(
            first.dataset, first.window, [t.intervention for t in trials], generated(first), first.first_image
        )
        made = Generated(self._pictures(made.baseline), self._pictures(made.ablated))
        for index, trial in enumerate(trials):
            shown = slice(0, max(1, trial.samples))
            save_grid(
                self._directory.samples / f"{trial.trial_id}.png", made.baseline[shown], made.ablated[index][shown]
            )
        return measure_generated(made, properties=first.protocol == "sample")

    def _pictures(self, generated: torch.Tensor) -> torch.Tensor:
        """Pixels ``[..., c, h, w]`` of what was generated: decoded latents, or their mean where nothing decodes."""
        denoiser = self._subject.denoiser
        if denoiser.pixels == 1:
            return generated
        if denoiser.codec is None:
            return generated.mean(dim=-3, keepdim=True)
        flat = denoiser.codec.decode(generated.flatten(0, -4))
        return flat.view(*generated.shape[:-3], *flat.shape[1:])


def measure_generated(made: Generated, *, properties: bool) -> dict[str, Paired]:
    """Metrics of generated images: properties that baseline and ablated images both have, and their distances."""
    variants, seeds = made.ablated.shape[:2]
    flat = made.ablated.flatten(0, 1)
    repeated = made.baseline.repeat(variants, 1, 1, 1)
    found: dict[str, Paired] = {}
    if properties:
        before, after = sample_metrics(made.baseline), sample_metrics(flat)
        found = {name: Paired(before[name], after[name].view(variants, seeds)) for name in before}
    for name, values in sample_distances(flat, repeated).items():
        found[name] = Paired(torch.zeros(seeds), values.view(variants, seeds))
    return found


def save_grid(target: Path, baseline: torch.Tensor, ablated: torch.Tensor) -> None:
    """A row a seed: baseline | ablated | difference (gray is none, magnified twofold)."""
    columns = [baseline, ablated, ((ablated - baseline) / 2).clamp(-1, 1)]
    pixels = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array.squeeze(2) if array.shape[2] == 1 else array))
    image = image.resize((image.width * _MAGNIFY, image.height * _MAGNIFY), Image.Resampling.NEAREST)
    publish(target, lambda temporary: image.save(temporary, format="PNG"), synced=False)
