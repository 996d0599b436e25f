"""A server that speaks S3 (moto's), in a thread of this process, on a port of its own; it counts and may refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qs

from moto.server import ThreadedMotoServer
from pyarrow import fs

LOGIN = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "shibboleth", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class S3Server:
    """
    Attributes:
        requests: what it was asked, as (operation, key).
        refuses: says which of them are answered with 403.
    """

    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuses: Callable[[str, str], bool] = lambda operation, key: False
    _server: Any = None

    def start(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        answer = self._server._server.app
        self._server._server.app = lambda environ, respond: self._answer(answer, environ, respond)

    def stop(self) -> None:
        """As a store that goes away; what it holds is there again when it is started."""
        self._server.stop()

    def _answer(self, answer: Any, environ: dict[str, Any], respond: Any) -> Iterable[bytes]:
        _, _, key = environ["PATH_INFO"].encode("latin-1").decode().lstrip("/").partition("/")
        asked = environ["REQUEST_METHOD"] if key else f"{environ['REQUEST_METHOD']} bucket"
        operation = {"GET bucket": "LIST"}.get(asked, asked)
        if operation == "LIST":
            key = parse_qs(environ.get("QUERY_STRING", "")).get("prefix", [""])[0]
        self.requests.append((operation, key))
        if self.refuses(operation, key):
            respond("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        return answer(environ, respond)

    def create_bucket(self, name: str) -> None:
        connection = HTTPConnection("127.0.0.1", self.port)
        connection.request("PUT", f"/{name}", headers={"Host": "s3.amazonaws.com"})
        assert connection.getresponse().status == 200
        connection.close()

    def uri(self, place: str) -> str:
        return f"s3://{place}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def files(self, place: str) -> dict[str, bytes]:
        """What lies under a bucket and folder, seen by a client of our own."""
        client = fs.S3FileSystem(endpoint_override=f"http://127.0.0.1:{self.port}", region="us-east-1")
        return contents(client, place)

    def count(self, operation: str) -> int:
        return sum(asked == operation for asked, _ in self.requests)


def contents(client: fs.FileSystem, place: str) -> dict[str, bytes]:
    """Files by relative name."""
    found = client.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
    files = [info.path for info in found if info.type == fs.FileType.File]
    return {path[len(place) + 1 :]: client.open_input_file(path).readall() for path in files}


@contextmanager
def s3_server(bucket: str) -> Iterator[S3Server]:
    """Running, with a bucket; the login must be in the environment."""
    server = S3Server()
    server.start()
    try:
        server.create_bucket(bucket)
        yield server
    finally:
        server.stop()
