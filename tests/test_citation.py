"""CITATION.cff says what the Citation File Format 1.2.0 asks for, and what pyproject.toml says."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
IDENTIFIERS = {"doi", "url", "swh", "other"}
ENTITY, PERSON = {"name"}, {"family-names", "given-names", "name-particle", "name-suffix", "alias", "orcid"}


def test_it_is_valid_by_the_schema_as_far_as_it_is_used() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert set(cff) <= ALLOWED
    assert {"authors", "cff-version", "message", "title"} <= set(cff)
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in {"software", "dataset"}
    assert all(isinstance(word, str) for word in cff["keywords"])
    for reference in cff["references"]:
        assert {"authors", "title", "type"} <= set(reference)
        assert reference["type"] in {"article", "software", "conference-paper", "generic"}
        assert all(set(identifier) == {"type", "value"} for identifier in reference["identifiers"])
        assert {identifier["type"] for identifier in reference["identifiers"]} <= IDENTIFIERS
    for author in [*cff["authors"], *(a for reference in cff["references"] for a in reference["authors"])]:
        assert set(author) in (ENTITY, set(author) & PERSON)


def test_it_agrees_with_the_package() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cff["title"], str(cff["version"]), cff["license"]) == (
        project["name"], project["version"], project["license"],
    )  # fmt: skip
