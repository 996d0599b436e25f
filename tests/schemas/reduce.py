"""Make the schemas beside this file of those that KubeRay and Compose publish: what a file may say, without the prose.

    python -m tests.schemas.reduce ray.io_rayclusters.yaml ray.io_rayjobs.yaml > tests/schemas/kuberay.json
    python -m tests.schemas.reduce compose-spec.json > tests/schemas/compose.json

The former are the definitions in ``helm-chart/kuberay-operator/crds`` of the KubeRay repository: unknown keys are
refused, as kubectl does, which the definitions leave to the server, and parts that occur twice are written once. The
latter is ``schema/compose-spec.json`` of the Compose specification.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

_KEPT = {"type", "properties", "items", "required", "enum", "pattern", "minimum", "maximum", "anyOf", "oneOf", "allOf"}
_NAMES = ("properties", "patternProperties", "definitions", "$defs")
_WORTH_A_NAME = 200  # characters


def reduced(node: dict[str, Any]) -> dict[str, Any]:
    """A definition's schema as JSON Schema: without descriptions and defaults, and strict."""
    kept = {key: value for key, value in node.items() if key in _KEPT}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in kept:
            kept[key] = [reduced(child) for child in kept[key]]
    if "items" in kept:
        kept["items"] = reduced(kept["items"])
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(node.get("additionalProperties"), dict):
        kept["additionalProperties"] = reduced(node["additionalProperties"])
    if "properties" in kept:
        kept["properties"] = {name: reduced(child) for name, child in kept["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    return kept


def _named(node: Any, counts: Counter[str], definitions: dict[str, Any]) -> Any:
    """With a reference in the place of every part that occurs more than once."""
    if isinstance(node, list):
        return [_named(child, counts, definitions) for child in node]
    if not isinstance(node, dict):
        return node
    name = _name(node)
    found = {key: _named(child, counts, definitions) for key, child in node.items()}
    if counts[name] < 2 or len(json.dumps(node)) < _WORTH_A_NAME or "type" not in node:
        return found
    definitions.setdefault(name, found)
    return {"$ref": f"#/definitions/{name}"}


def _count(node: Any, counts: Counter[str]) -> None:
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _count(child, counts)
    if isinstance(node, dict):
        counts[_name(node)] += 1


def _name(node: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:10]


def without_prose(node: Any, named: bool = False) -> Any:
    """A schema without its descriptions.

    Args:
        named: whether the keys are names of properties, of which one may be called description.
    """
    if isinstance(node, list):
        return [without_prose(child) for child in node]
    if not isinstance(node, dict):
        return node
    kept = {key: child for key, child in node.items() if named or key not in ("description", "title", "$id")}
    return {key: without_prose(child, not named and key in _NAMES) for key, child in kept.items()}


def of_compose(file: Path) -> dict[str, Any]:
    comment = "Reduced by tests/schemas/reduce.py from the Compose specification (Apache License 2.0), June 2026"
    found = json.loads(file.read_text()) | {"$schema": "http://json-schema.org/draft-07/schema#"}
    return {"$comment": comment} | without_prose(found)


def of_kuberay(files: list[Path]) -> dict[str, Any]:
    """Of the manifests of all these kinds."""
    kinds: dict[str, Any] = {}
    for file in files:
        definition = yaml.safe_load(file.read_text())["spec"]
        (version,) = [version for version in definition["versions"] if version["name"] == "v1"]
        found = reduced(version["schema"]["openAPIV3Schema"])
        found["properties"].pop("status", None)
        found["properties"]["metadata"] = {"type": "object"}
        kinds[definition["names"]["kind"]] = found
    counts, definitions = Counter[str](), dict[str, Any]()
    _count(kinds, counts)
    kinds = _named(kinds, counts, definitions)
    return {
        "$comment": "Reduced by tests/schemas/reduce.py from the CRDs of KubeRay (Apache License 2.0), August 2026",
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": definitions | kinds,
    }


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    schema = of_compose(given[0]) if given[0].suffix == ".json" else of_kuberay(given)
    print(json.dumps(schema, separators=(",", ":"), sort_keys=True))
