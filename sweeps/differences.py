"""What differs between two runs besides their numbers: settings, model, data, surroundings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.matching import CellMatch
from sweeps.units import UnitMatch

_IRRELEVANT = ("mode", "format", "run", "tracker", "cluster")
_NOTHING = "–"
_SURROUNDINGS = ("model.revision", "versions", "python", "device", "git_commit")


def differences(
    config_a: Mapping[str, Any], config_b: Mapping[str, Any], facts_a: Mapping[str, Any], facts_b: Mapping[str, Any]
) -> list[dict[str, str]]:
    """A row a setting or fact that is not the same in both runs; how a run was scheduled, tracked and shown is left
    out.

    A setting that one run lacks and that is not set in the other is the same.
    """
    sides = []
    for config, facts in ((config_a, facts_a), (config_b, facts_b)):
        settings = {key: value for key, value in config.items() if key not in _IRRELEVANT}
        about = {key: value for key, value in _flat(facts) if key.startswith(_SURROUNDINGS)}
        sides.append(dict(_flat(settings)) | about)
    a, b = sides
    rows = [{"what": key, "a": a.get(key, _NOTHING), "b": b.get(key, _NOTHING)} for key in dict.fromkeys([*a, *b])]
    return [row for row in rows if row["a"] != row["b"]]


def factors(
    match: CellMatch,
    pairings: Iterable[UnitMatch],
    config_a: Mapping[str, Any],
    config_b: Mapping[str, Any],
    facts_a: Mapping[str, Any],
    facts_b: Mapping[str, Any],
) -> list[str]:
    """What a measurement depends on and the runs do not share; a difference can be put down to a single one only."""
    found = [f"{name} ({a} against {b})" for name, (a, b) in match.across.items() if name != "data set"]
    units = list(pairings)
    revisions = [facts.get("model", {}).get("revision") for facts in (facts_a, facts_b)]
    if revisions[0] != revisions[1]:
        found.append("the checkpoint")
    if not all(unit.paired for unit in units):
        found.append("the images")
    elif not all(unit.shared_noise for unit in units):
        found.append("the noise")
    if facts_a.get("timesteps") != facts_b.get("timesteps"):
        found.append("the sampler's steps")
    if config_a["model"].get("dtype") != config_b["model"].get("dtype"):
        found.append("the precision")
    return found


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value) and value:
        return _flat({str(item["name"]): {k: v for k, v in item.items() if k != "name"} for item in value}, prefix)
    if isinstance(value, list):
        return [(prefix, ", ".join(map(str, value)))]
    return [(prefix, _NOTHING if value is None else str(value))]
