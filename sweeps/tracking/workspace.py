"""mode=workspace: a W&B workspace and a W&B report of one sweep or of two, made or brought up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.naming import nearest
from sweeps.config import ConfigError, RunConfig
from sweeps.overrides import pasted
from sweeps.places import names_at
from sweeps.records import GaveOut, publish
from sweeps.tracking.client import Hung, Patience
from sweeps.tracking.environment import as_found
from sweeps.tracking.ledger import FILE as LEDGER
from sweeps.tracking.plan import Plan
from sweeps.tracking.settings import TrackerSettings, login_exists, one_line
from sweeps.tracking.upload import IMPATIENCE
from sweeps.uris import is_uri

if TYPE_CHECKING:
    from sweeps.tracking.views import Sweep

SENT = "workspace.json"
"""In the run directory: what was made, so that it is brought up to date the next time."""
PATIENCE = 90.0
"""Seconds for W&B's answers, all together."""


def make_workspace(run: RunConfig, settings: TrackerSettings) -> str:
    """Send the workspace and the report; returns what to tell the user.

    Raises:
        ConfigError: no login, or no such run.
        GaveOut: W&B could not be reached, or refused.
    """
    if not login_exists():
        raise ConfigError(
            "mode=workspace: expected a W&B login, got none; `wandb login`, and `wandb sync` what was logged offline"
        )
    plans = [Plan.read(path) for path in chosen_runs(run)]
    try:
        with as_found(plans[0].run_dir / "wandb", IMPATIENCE):
            from sweeps.tracking.views import Sweep  # takes seconds, for which W&B need not answer

            sweeps = [Sweep.of(plan) for plan in plans]
            urls = Patience().call(lambda: _send(sweeps, plans[0].run_dir / SENT, settings), PATIENCE)
    except Hung as error:
        raise GaveOut(f"mode=workspace: {error}") from error
    except ConfigError:
        raise
    except Exception as error:
        raise GaveOut(f"mode=workspace: {one_line(error)}") from error
    return "\n".join([*(f"{name}: {url}" for name, url in urls.items()), *_not_uploaded(plans)])


def chosen_runs(run: RunConfig) -> list[Path]:
    """run.a and run.b where given, else the run named, else the newest two below run.root."""
    root = Path(run.root).expanduser()
    given = [("run.a", run.a), ("run.b", run.b)] if run.a or run.b else [("run.name", run.name)] if run.name else []
    paths = [_named(key, name, run.root) for key, name in given if name]
    if not paths and is_uri(run.root):
        raise ConfigError(f"run.name: nothing given; in a store{nearest('', names_at(run.root))}")
    if not paths:
        plans = [path.parent for path in root.glob("*/trials.parquet") if (path.parent / "config.yaml").is_file()]
        newest = sorted(plans, key=lambda path: (path / "config.yaml").stat().st_mtime)[-2:]
        paths = [path.resolve() for path in newest]
    if not paths:
        raise ConfigError(f"run.root: no run below {root}; name one with run.name, or two with run.a and run.b")
    if len(paths) == 2 and paths[0] == paths[1]:
        raise ConfigError(f"run.b: {paths[1]} is run.a too; choose another run")
    return paths


def _named(key: str, name: str, root: str) -> Path:
    from sweeps.compare import open_run  # all of the statistics, which nothing else here needs

    return open_run(key, name, root).directory.path


def _send(sweeps: Sequence[Sweep], path: Path, settings: TrackerSettings) -> dict[str, str]:
    import wandb

    from sweeps.tracking.views import report, workspace

    entity = settings.entity or wandb.Api().default_entity
    if not entity:
        raise ConfigError("tracker.entity: nothing given, and the login has no default; tracker.entity=...")
    key = " ".join([entity, settings.project, *(sweep.name for sweep in sweeps)])
    sent = _read(path)
    known = sent.get(key, {})

    made = workspace(sweeps, entity, settings.project)
    made._internal_name, made._internal_id = known.get("workspace_name", ""), known.get("workspace_id", "")
    made.save()
    written = report(sweeps, entity, settings.project)
    written.id = known.get("report_id", "")
    written.save()

    ids = {"workspace_name": made._internal_name, "workspace_id": made._internal_id, "report_id": written.id}
    text = json.dumps({**sent, key: ids}, indent=2) + "\n"
    publish(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return {"workspace": made.url, "report": written.url}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _not_uploaded(plans: Sequence[Plan]) -> list[str]:
    """What the workspace cannot show yet."""
    lines = []
    for plan in plans:
        if not (plan.run_dir / LEDGER).is_file():
            lines.append(f"{plan.name} was not logged; {pasted({'mode': 'track', 'run.name': plan.name})}")
        elif '"uploaded": true' not in (plan.run_dir / LEDGER).read_text(encoding="utf-8"):
            lines.append(f"{plan.name} may not be uploaded yet: wandb sync {plan.run_dir / 'wandb'}")
    return lines
