"""The run directory as versioned artifacts: model, data and plan -> records -> effects and report."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sweeps.tracking.contents import Artifact
from sweeps.tracking.plan import Plan

UPLOADED = 64 * 2**20
"""Bytes of records that are uploaded; more are listed, with their digests, and stay where they are."""

RESULTS = ("effects.parquet", "comparisons.parquet", "diagnostics.parquet", "heads.parquet", "failures.parquet")


def model_artifact(plan: Plan, facts: Mapping[str, Any]) -> Artifact:
    """Which weights: their revision, not they themselves."""
    model = dict(facts.get("model") or {"name": plan.setting("model", "name")})
    return Artifact(
        _name("model", model.get("name")), "model", texts={"model.json": _json(model)},
        metadata={key: model[key] for key in ("name", "revision", "parameters") if key in model},
        description="The ablated model, by the digest of its weights.",
    )  # fmt: skip


def data_artifact(plan: Plan, facts: Mapping[str, Any]) -> Artifact:
    """Which images: every unit with its fingerprint."""
    settings = plan.config.get("data") or {}
    sets = settings.get("sets") or []
    sources = [{key: found.get(key) for key in ("name", "source", "label")} for found in sets]
    return Artifact(
        _name("data", settings.get("name")), "dataset", files=_files(plan.run_dir, ["units.parquet"]),
        texts={"sources.json": _json({"sources": sources, "measured": facts.get("data")})},
        metadata={"sets": [found["name"] for found in sources]},
        description="The images measured, by their fingerprints.",
    )  # fmt: skip


def plan_artifact(plan: Plan, facts: Mapping[str, Any]) -> Artifact:
    return Artifact(
        _name("plan", plan.name), "plan", files=_files(plan.run_dir, ["config.yaml", "trials.parquet"]),
        metadata={"trials": len(plan.trials), "plan": facts.get("plan")},
        description="What was to be measured, and with which settings.",
    )  # fmt: skip


def records_artifact(plan: Plan) -> Artifact:
    """Every measurement; where they are many, a list of the files that hold them."""
    parts = _files(
        plan.run_dir, (f"records/{part.name}" for part in sorted((plan.run_dir / "records").glob("*.parquet")))
    )
    sizes = {name: path.stat().st_size for name, path in parts.items()}
    total = sum(sizes.values())
    uploaded = total <= UPLOADED
    texts = {}
    if not uploaded:
        listed = [{"name": name, "bytes": sizes[name], "sha256": _sha256(path)} for name, path in parts.items()]
        texts["records.json"] = _json(listed)
    return Artifact(
        _name("records", plan.name), "records", files=parts if uploaded else {}, texts=texts,
        metadata={"files": len(parts), "bytes": total, "uploaded": uploaded},
        description="Every measurement." if uploaded else "The files of measurements, by name and digest.",
    )  # fmt: skip


def effects_artifact(plan: Plan) -> Artifact:
    return Artifact(
        _name("effects", plan.name), "effects", files=_files(plan.run_dir, [*RESULTS, "run.json"]),
        description="Estimates, intervals, q and verdicts, and what they were computed with.",
    )  # fmt: skip


def report_artifact(plan: Plan) -> Artifact:
    figures = sorted((plan.run_dir / "report" / "figures").glob("*.png"))
    names = ["report/index.html", *(f"report/figures/{path.name}" for path in figures)]
    return Artifact(
        _name("report", plan.name), "report", files=_files(plan.run_dir, names),
        description="The report; report/index.html opens from disk.",
    )  # fmt: skip


def digest(artifacts: Iterable[Artifact]) -> str:
    """Identifies their contents."""
    found = hashlib.sha256()
    for artifact in artifacts:
        for name, path in artifact.files.items():
            found.update(f"{artifact.name}/{name} {_sha256(path)}\n".encode())
        for name, text in artifact.texts.items():
            found.update(f"{artifact.name}/{name} {text}\n".encode())
    return found.hexdigest()[:16]


def _files(run_dir: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: run_dir / name for name in names if (run_dir / name).is_file()}


def _name(kind: str, name: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{kind}-{name}")[:128]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
