"""Every setting says what it means, and looking at settings needs neither torch nor a model."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from sweeps.config import Config
from sweeps.settings import comments_of
from tests.sweeps.tiny import ROOT, environment


def schemas(schema: type = Config) -> list[type]:
    """The dataclasses that settings are made of."""
    found = [schema]
    for hint in get_type_hints(schema).values():
        for kind in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(kind):
                found += schemas(kind)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: schema.__name__)
def test_every_setting_has_a_comment(schema: type) -> None:
    comments = comments_of(schema)
    for field in dataclasses.fields(schema):
        nested = get_type_hints(schema)[field.name]
        explained = comments[field.name] or (nested.__doc__ if dataclasses.is_dataclass(nested) else "")
        assert len(explained or "") > 3, f"{schema.__name__}.{field.name} has no comment"
    assert schema.__doc__
    assert not schema.__doc__.startswith(f"{schema.__name__}("), "dataclass wrote it, of the signature"


def test_comments_are_those_of_their_own_line() -> None:
    @dataclasses.dataclass
    class Settings:
        a: int = 1  # of a, # twice
        b: str = "# no comment"
        # above c
        c: list[int] = dataclasses.field(default_factory=list)  # behind c

    assert comments_of(Settings) == {"a": "of a, # twice", "b": "", "c": "behind c"}


def test_a_mistyped_key_needs_no_torch() -> None:
    """Each would cost seconds, at every mistake and every completion."""
    code = (
        "import sys, launch\n"
        "launch.register()\n"
        "assert launch._problem(['sweep.imags=3']).startswith('unknown key')\n"
        "assert launch._problem(['sweep=smoke']) is None\n"
        "print(sorted({'torch', 'diffusers', 'ray', 'wandb', 'pandas', 'scipy'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
