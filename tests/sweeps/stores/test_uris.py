"""URIs as users write them: what is kept, what is refused, and that no secret is repeated or written down."""

from __future__ import annotations

import pytest
from pyarrow import fs

import launch
from sweeps.composition import register
from sweeps.uris import Uri, is_uri, uri_problem

GOOD = [
    "s3://bucket", "s3://bucket/runs/of mine/é", "s3://bucket/a%20b?region=eu-central-1", "S3://bucket/runs/",
    "s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http", "gs://bucket/runs", "gcs://bucket/runs",
    "abfs://account.blob.core.windows.net/container/runs", "hdfs://namenode:9000/runs", "file:///tmp/runs",
]  # fmt: skip
SECRETS = [
    "s3://AKIA:hush@bucket/runs", "s3://AKIA:hu/sh@bucket/runs", "s3://AKIA:hu?sh@bucket", "s3://hush@bucket/runs",
    "gs://key:hush@bucket", "abfs://:hush@account.blob.core.windows.net/c", "abfs://c:hush@a.dfs.core.windows.net/x",
    "s3://bucket/runs?secret_key=hush", "s3://bucket/runs?region=x&access_key=hush", "abfs://a/c?sig=hush",
    "hdfs://me:hush@namenode:9000/x", "S3://AKIA:hush@bucket", "s3://bucket/x?endpoint_override=AKIA:hush@minio:9000",
    "s3://bucket/../x?endpoint_override=http://AKIA:hush@minio",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_a_good_uri(text: str) -> None:
    assert is_uri(text)
    assert uri_problem("run.root", text) is None


@pytest.mark.parametrize("text", [t for t in GOOD if not t.startswith("hdfs")])  # which needs a Java machine
def test_pyarrow_opens_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # or it asks for the bucket's region
    filesystem, path = fs.FileSystem.from_uri(Uri.parse(text).quoted())
    assert isinstance(filesystem, fs.FileSystem)
    assert path.rstrip("/").rpartition("/")[2] in {"bucket", "runs", "é", "a b"}


@pytest.mark.parametrize("text", SECRETS)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    problem = uri_problem("run.a", text)
    assert problem is not None
    assert problem.startswith("run.a: expected no credentials in the URI")
    register()
    refused = launch._problem([f"run.root='{text}'"])
    assert refused is not None
    assert refused.startswith("run.root: expected ")
    for said in (problem, refused):
        assert not any(part in said for part in ("hush", "AKIA", "hu/", "sh@")), said


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/../x", "s3://bucket/./x", "s3://bucket/runs/..%2F..%2Fx", "gs://bucket/a%5Cb", "s3://bucket/a%00",
        "s3://bucket/runs//x", "s3://bucket/runs/%2Fetc", "s3://bucket/%2F", "file:///tmp/runs/%2Fetc%2Fx",
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(text: str) -> None:
    """The last of its parts is the name of a run, which has a folder of that name on this machine."""
    assert (uri_problem("run.a", text) or "").startswith("run.a: expected a path without '.', '..', '//', ")


def test_names_survive_the_way_into_a_uri_and_back() -> None:
    root = Uri.parse("s3://bucket/runs?region=x")
    for name in ("plain", "a b", "a%20b", "ü?#&=", "x/y"):
        child = root.child(name)
        assert Uri.parse(child.full) == child
        assert child.parent() == (root, name)
    assert str(root.child("a b")) == "s3://bucket/runs/a%20b"
    assert root.child("a b").quoted(allow="1") == "s3://bucket/runs/a%20b?region=x&allow=1"
    assert Uri.parse("FILE:///tmp/x/").full == "file:///tmp/x"
