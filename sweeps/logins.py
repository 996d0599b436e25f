"""Logins that somebody typed: refused in settings, which are written down; hidden where a command line is repeated."""

from __future__ import annotations

import re

_IN_ADDRESS = re.compile(
    r"(?<=://)(?:[^/?#\s'\"]*:|(?<!abfs://)(?<!abfss://))[^/?#\s'\"]*@"  # https://name:secret@host, https://secret@host
    r"|(?<=[?&])(?:access_key|secret_key|session_token|sig|signature|token|password)=[^&\s'\"]*",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(r"[^=]*(?:api_?key|secret|token|passw|credential|access_?key)[^=]*", re.IGNORECASE)
HIDDEN = "***"


def has_login(text: str) -> bool:
    """Whether an address in the text says who one is, and the password."""
    return _IN_ADDRESS.search(text) is not None


def without_login(argument: str) -> str:
    """A setting of a command line, with ``***`` for logins: in addresses, and whatever a key named so is set to."""
    key, equals, _ = argument.partition("=")
    if equals and _SECRET_KEY.fullmatch(key):
        return f"{key}={HIDDEN}"
    return _IN_ADDRESS.sub(lambda found: HIDDEN + ("@" if found[0].endswith("@") else ""), argument)
