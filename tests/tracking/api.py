"""A local server that plays W&B's API: what wandb's client (0.31) and wandb-workspaces ask, and what they send."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """A run as the server knows it after everything has arrived."""

    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    complete: bool = False


@dataclass
class Server:
    """What has arrived. Overwrites as W&B does: history by line numbers, everything else by name."""

    address: str = ""
    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name of an artifact's version, `type/name:digest`, by its id."""
    committed: set[str] = field(default_factory=set)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    refuse: bool = False
    answering: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.answering.set()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, requests are taken and not answered."""
        self.answering.clear()
        try:
            yield
        finally:
            self.answering.set()

    def run(self, name: str) -> Run:
        return self.runs.setdefault(name, Run())

    def graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(name)
        answer = getattr(self, f"on_{name}", None)
        return answer(given) if answer else {}

    def on_Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.on_GetDefaultEntity(given)

    def on_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def on_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.run(given["name"])
        run.fields |= {key: value for key, value in given.items() if value is not None and key != "config"}
        if given.get("config"):
            run.config |= {key: found["value"] for key, found in json.loads(given["config"]).items()}
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
        bucket = {"id": given["name"], "name": given["name"], "displayName": "", "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def on_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": n, "uploadUrl": f"{self.address}/storage/{given['run']}/{n}"} for n in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def on_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input", given)
        version = f"{given['artifactTypeName']}/{given['artifactCollectionName']}:{given['digest']}"
        known = next((key for key, name in self.artifacts.items() if name == version), None)
        key = known or f"artifact{len(self.artifacts)}"
        self.artifacts[key] = version
        if given.get("runName"):  # none for those that a run only uses
            self.run(given["runName"]).made.add(key)
        state = "COMMITTED" if known else "PENDING"
        return {
            "createArtifact": {"artifact": {"id": key, "state": state, "artifactSequence": {"latestArtifact": None}}}
        }

    def on_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        key = given["artifactID"]
        file = {
            "id": f"file-{key}", "name": given["name"], "displayName": given["name"],
            "uploadUrl": f"{self.address}/manifest/{key}", "uploadHeaders": [],
        }  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{key}", "file": file}}}

    def on_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "id": f"file-{wanted['artifactID']}-{wanted['name']}", "name": wanted["name"],
                "displayName": wanted["name"], "uploadHeaders": [], "storagePath": wanted["name"],
                "uploadUrl": f"{self.address}/artifact/{wanted['artifactID']}/{wanted['name']}",
                "uploadMultipartUrls": None, "artifact": {"id": wanted["artifactID"]},
            }
            for wanted in given["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def on_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.committed.add(given["artifactID"])
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def on_UseArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input", given)
        self.run(given["runName"]).used.add(given["artifactID"])
        return {"useArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    # wandb-workspaces

    def view(self, given: dict[str, Any]) -> dict[str, Any]:
        key = given.get("id") or f"view{len(self.views)}"
        self.views[key] = {**given, "spec": json.loads(given["spec"])}
        view = {
            "id": key, "type": given["type"], "name": given["name"], "displayName": given["displayName"],
            "description": given["description"], "spec": given["spec"], "updatedAt": "2026-01-01T00:00:00",
            "project": {"id": "p", "name": given["projectName"], "entityName": given["entityName"]},
        }  # fmt: skip
        return {"upsertView": {"view": view, "inserted": not given.get("id")}}

    def on_UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.view(given)

    def on_upsertView(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.view(given)

    def on_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:
        project = {
            "__typename": "Project", "id": "p", "name": "circuit-sweep", "entityName": "me", "isBenchmark": False,
            "createdAt": "2026-01-01T00:00:00", "user": None,
        }  # fmt: skip
        return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": project}]}}

    def on_ProjectInternalId(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"internalId": "UHJvamVjdDox"}}

    # files

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.run(name)
        for file, chunk in sent.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.endswith((".jsonl", ".json")) else []
            if file == "wandb-history.jsonl":
                run.history[chunk["offset"] : chunk["offset"] + len(lines)] = lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        run.complete = run.complete or bool(sent.get("complete"))

    def put(self, path: str, body: bytes) -> None:
        self.uploads.append(path)
        if found := re.fullmatch(r"/storage/([^/]+)/(.+)", path):
            self.run(found[1]).files[found[2]] = body
        elif found := re.fullmatch(r"/manifest/(.+)", path):
            self.manifests[found[1]] = json.loads(body)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    played: Server
    lock: threading.Lock

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        body = self._body()
        with self.lock:
            self.played.put(self.path.partition("?")[0], body)
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        sent = json.loads(self._body() or b"{}")
        self.played.answering.wait()
        with self.lock:
            if self.played.refuse:
                return self._answer({"errors": [{"message": "permission denied"}]}, 403)
            if self.path == "/graphql":
                name = sent.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])[1]  # type: ignore[index]
                return self._answer({"data": self.played.graphql(name, sent.get("variables") or {})})
            if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                self.played.stream(found[1], sent)
        return self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        else:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    played = Server()
    handler = type("FreshHandler", (Handler,), {"played": played, "lock": threading.Lock()})
    server = QuietServer(("127.0.0.1", 0), handler)
    played.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield played
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
