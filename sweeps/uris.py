"""URIs of object stores and other file systems, as users write them; knows no client of any store."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from circuits.naming import nearest

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""What pyarrow's file systems open."""

_PORTLESS = ("s3", "gs", "gcs", "abfs", "abfss")  # a bucket or an account has no port: after a colon comes a secret
_SECRET = re.compile(r"secret|passw|token|sas|sig|(account|access|api)_?key", re.IGNORECASE)
_KEPT = "/%:@!$&'()*+,;=~[]"  # of a path that is quoted for pyarrow: what separates, and what is quoted already


@dataclass(frozen=True)
class Uri:
    """A folder in a store: ``s3://bucket/runs?region=eu-central-1``.

    Attributes:
        place: bucket and path, without a slash at the end, quoted as the user wrote it.
        query: pyarrow's options, the same for all below.
    """

    scheme: str
    place: str
    query: str = ""

    @classmethod
    def parse(cls, text: str) -> Uri:
        scheme, _, rest = text.partition("://")
        place, _, query = rest.partition("?")
        return cls(scheme.lower(), place.rstrip("/"), query)

    def child(self, name: str) -> Uri:
        return replace(self, place=f"{self.place}/{quote(name, safe='')}")

    def parent(self) -> tuple[Uri, str]:
        """The folder that this one lies in, and its name there."""
        above, _, name = self.place.rpartition("/")
        return replace(self, place=above), unquote(name)

    @property
    def full(self) -> str:
        """As :meth:`parse` takes it."""
        return f"{self.scheme}://{self.place}" + (f"?{self.query}" if self.query else "")

    def quoted(self, **options: str) -> str:
        """For pyarrow, with more options."""
        query = "&".join([*filter(None, [self.query]), *(f"{key}={value}" for key, value in options.items())])
        return f"{self.scheme}://{quote(self.place, safe=_KEPT)}" + (f"?{query}" if query else "")

    def __str__(self) -> str:
        """For the user: without the options, which are no part of where something lies."""
        return f"{self.scheme}://{self.place}"


def is_uri(text: str) -> bool:
    return "://" in text


def uri_problem(key: str, text: str) -> str | None:
    """What is wrong with the URI, in one line, or None. A secret in it is not repeated."""
    scheme, _, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user = authority.rpartition("@")[0]
    place, _, query = rest.partition("?")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        return f"{key}: unknown scheme {scheme[:20]!r}{nearest(scheme, SCHEMES)}"
    secret_option = "@" in query or any(_SECRET.search(option.partition("=")[0]) for option in query.split("&"))
    secret = ":" in user or (scheme in _PORTLESS and ":" in authority) or (scheme == "s3" and "@" in authority)
    if secret or secret_option:
        return (
            f"{key}: expected no credentials in the URI, which is written to config.yaml; got some in {scheme}://...; "
            "they come from the environment or the machine (AWS_ACCESS_KEY_ID, ~/.aws, a role)"
        )
    if scheme == "file" and (authority or not place.strip("/")):
        return f"{key}: expected file:///folder with an absolute path, got {text!r}"
    if scheme not in ("file", "hdfs", "viewfs") and not authority:
        return f"{key}: expected {scheme}://bucket/folder, got {text!r}"
    parts = unquote(place.strip("/")).split("/")  # an empty one: "runs//x", or "runs/%2Fx", a run whose name is a path
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\\]", unquote(place)):
        return f"{key}: expected a path without '.', '..', '//', backslashes and control characters, got {text!r}"
    if "#" in rest:
        return f"{key}: expected no '#' in a URI, got {text!r}; write %23"
    return None
