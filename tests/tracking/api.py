"""A local server that plays W&B's API."""

from __future__ import annotations

import http.server
import json
from typing import Any


class Api(http.server.BaseHTTPRequestHandler):
    """The endpoints of W&B that `wandb sync` (0.31) calls, and what they were sent."""

    protocol_version = "HTTP/1.1"
    upserts: dict[str, dict[str, Any]]
    uploads: set[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self._body()
        self.uploads.add(self.path.rsplit("/", 1)[-1])
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        self._answer(self._graphql(json.loads(body)) if self.path == "/graphql" else {})

    def _graphql(self, query: dict[str, Any]) -> dict[str, Any]:
        given = query.get("variables", {})
        match query.get("operationName"):
            case "UpsertBucket":
                found = self.upserts.setdefault(given["name"], {})
                found.update({key: value for key, value in given.items() if value is not None})
                project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
                bucket = {"id": "r", "name": given["name"], "displayName": "", "config": "{}", "project": project}
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
            case "CreateRunFiles":
                host = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
                files = [{"name": name, "uploadUrl": f"{host}/storage/{name}"} for name in given["files"]]
                return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
            case "CreateArtifact":
                artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
                return {"data": {"createArtifact": {"artifact": artifact}}}
        return {"data": {}}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
