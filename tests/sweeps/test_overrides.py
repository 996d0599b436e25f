"""What is printed to be pasted arrives as it was, through the shell and Hydra."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sweeps.overrides import pasted

PLAIN = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=("C",)), min_size=1)


def arrived(line: str) -> dict[str, object]:
    found = (OverridesParser.create().parse_override(word) for word in shlex.split(line))
    return {override.key_or_group: override.value() for override in found}


NAMES = """
faces|faces,sweep.seed=0|it's|s3://b/runs?endpoint_override=http://h:1&a=b|$HOME|${oc.env:HOME}|~/runs
 a b |tail\\|null|True|1e3|0x10|é|!x|say "x"|\\'|[a]|{a: 1}|a`b`|/a/b-c_1|c:\\runs
"""


@pytest.mark.parametrize("name", NAMES.strip("\n").replace("\n", "|").split("|"))
def test_a_name_arrives_as_it_is(name: str) -> None:
    assert arrived(pasted({"run.name": name})) == {"run.name": name}


@given(PLAIN, PLAIN)
def test_any_names_do(first: str, second: str) -> None:
    assert arrived(pasted({"run.a": first, "run.b": second})) == {"run.a": first, "run.b": second}


def test_a_name_that_needs_no_quotes_has_none() -> None:
    line = pasted({"mode": "compare", "run.root": "/data/runs", "run.a": "full-1", "run.b": "a,b"})
    assert line == """mode=compare run.root=/data/runs run.a=full-1 "run.b='a,b'\""""
