"""Every setting: its key, its type and what it means.

All of it is read from the dataclasses and the comments beside their fields, so that what explains or completes a
command line cannot go stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
from functools import lru_cache
from typing import Any, get_args, get_origin, get_type_hints

from sweeps.config import Config


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key of the configuration.

    Attributes:
        key: dotted, as on the command line.
        kind: its type; of what may be null, the other one; of a list, that of its elements.
        about: the comment beside it; of a group without one, what the group's docstring says.
        listed: it holds a list of ``kind``.
        default: where it has one that is a plain value.
    """

    key: str
    kind: Any
    about: str
    listed: bool
    default: Any

    @property
    def is_group(self) -> bool:
        return dataclasses.is_dataclass(self.kind) and not self.listed


@lru_cache
def settings(schema: type = Config, prefix: str = "") -> tuple[Setting, ...]:
    """The settings of a dataclass and of those within it, each group before its keys."""
    comments, hints = comments_of(schema), get_type_hints(schema)
    found: list[Setting] = []
    for field in dataclasses.fields(schema):
        kind = _kind(hints[field.name])
        about = comments[field.name] or (kind.__doc__ or "").partition("\n")[0]
        listed = get_origin(hints[field.name]) is list
        default = None if field.default is dataclasses.MISSING else field.default
        setting = Setting(prefix + field.name, kind, about, listed, default)
        found.append(setting)
        if setting.is_group:
            found += settings(kind, f"{setting.key}.")
    return tuple(found)


def _kind(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not types.NoneType)
    return get_args(hint)[0] if get_origin(hint) is list else hint


@lru_cache
def comments_of(schema: type) -> dict[str, str]:
    """The comment behind each field of a dataclass; empty where there is none."""
    source = textwrap.dedent(inspect.getsource(schema))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    remarks = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: remarks.get(node.end_lineno or node.lineno, "")
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
