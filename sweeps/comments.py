"""What each setting means, read from the comments beside the settings, so that an explanation cannot go stale."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from functools import lru_cache


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
