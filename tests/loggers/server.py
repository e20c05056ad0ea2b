"""A W&B server on the loopback: just enough of its GraphQL, file stream and uploads to log one run online."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """Everything a server was told."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    operations: list[tuple[str, dict]] = field(default_factory=list)
    stream: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def history(self) -> list[dict]:
        """The rows of the run's history, in order."""
        return [
            json.loads(line)
            for part in self.stream
            for line in part.get("files", {}).get("wandb-history.jsonl", {}).get("content", ())
        ]

    def variables(self, operation: str) -> list[dict]:
        return [given for name, given in self.operations if name == operation]


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def serving(resumed: dict[str, Any] | None = None) -> Iterator[Received]:
    """`resumed`: what the server has of the run already, as `RunResumeStatus` tells it."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            received.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            reply = json.dumps(route(received, self.path, body, resumed)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST = do_PUT = do_CONNECT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = QuietServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


def route(received: Received, path: str, body: bytes, resumed: dict | None) -> dict:
    if path.startswith("/upload/"):
        received.files[path.removeprefix("/upload/")] = body
        return {}
    if path.endswith("/file_stream"):
        received.stream.append(json.loads(body))
        return {}
    if path != "/graphql":
        return {}
    asked = json.loads(body)
    name = (
        asked.get("operationName") or (re.findall(r"(?:query|mutation)\s+(\w+)", asked["query"]) or ["?"])[0]
    )
    given = asked.get("variables") or {}
    received.operations.append((name, given))
    answers = {
        "RunResumeStatus": lambda: {"model": {"id": "p", "name": "p", "entity": ENTITY, "bucket": resumed}},
        "UpsertBucket": lambda: {"upsertBucket": {"bucket": bucket(given), "inserted": resumed is None}},
        "Viewer": lambda: {"viewer": VIEWER},
        "ArtifactType": lambda: {"project": {"artifact": None}},
        "CreateRunFiles": lambda: {"createRunFiles": run_files(received.url, given)},
        "CreateArtifact": lambda: {"createArtifact": {"artifact": ARTIFACT}},
        "CreateArtifactManifest": lambda: {"createArtifactManifest": manifest(received.url)},
        "CreateArtifactFiles": lambda: {
            "createArtifactFiles": {"files": artifact_files(received.url, given)}
        },
        "CommitArtifact": lambda: {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}},
        "UpdateArtifactManifest": lambda: {"updateArtifactManifest": manifest(received.url)},
    }
    return {"data": answers.get(name, dict)()}


ENTITY = {"id": "e", "name": "me"}
VIEWER = {
    "id": "u",
    "entity": "me",
    "username": "me",
    "email": "me@localhost",
    "flags": "{}",
    "teams": {"edges": []},
}
ARTIFACT = {
    "id": "a",
    "state": "PENDING",
    "artifactSequence": {"id": "s", "latestArtifact": None},
}


def bucket(given: dict) -> dict:
    project = {"id": "p", "name": given.get("project"), "entity": ENTITY}
    return {
        "id": "b",
        "name": given.get("name"),
        "displayName": given.get("displayName"),
        "description": None,
        "config": given.get("config"),
        "sweepName": None,
        "project": project,
        "historyLineCount": 0,
    }


def run_files(url: str, given: dict) -> dict:
    files = [{"name": name, "uploadUrl": f"{url}/upload/{name}"} for name in given["files"]]
    return {"runID": "b", "uploadHeaders": [], "files": files}


def manifest(url: str) -> dict:
    file = {
        "id": "f",
        "name": "m",
        "displayName": "m",
        "uploadUrl": f"{url}/upload/manifest.json",
        "uploadHeaders": [],
    }
    return {"artifactManifest": {"id": "m", "file": file}}


def artifact_files(url: str, given: dict) -> dict:
    nodes = [
        {
            "id": str(number),
            "name": spec["name"],
            "displayName": spec["name"],
            "uploadUrl": f"{url}/upload/artifact/{spec['name']}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "storagePath": f"artifact/{spec['name']}",
            "artifact": {"id": "a"},
        }
        for number, spec in enumerate(given["input"]["artifactFiles"])
    ]
    return {"edges": [{"node": node} for node in nodes]}
