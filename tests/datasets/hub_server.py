"""A Hugging Face hub on this machine: what its own client asks of it to list and download a dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


@dataclass
class Hub:
    """`datasets`: owner/name -> file -> bytes. `sent`: the files that were downloaded; `revisions`: those asked for."""

    datasets: Mapping[str, Files]
    address: str = ""
    sent: list[str] = field(default_factory=list)
    revisions: set[str] = field(default_factory=set)

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def environment(self, cache: object) -> dict[str, str]:
        """What makes a process ask this hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
        }

    def reached_in(self, monkeypatch, cache: object) -> None:
        """The same for this process, whose client has read its environment already."""
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", self.address)
        template = self.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))


@contextmanager
def serve(datasets: Mapping[str, Files]) -> Iterator[Hub]:
    hub = Hub(datasets)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "datasets"] and "/".join(parts[2:4]) in hub.datasets:
                self._tell("/".join(parts[2:4]), parts[4:])
            elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
                self._send("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
            else:
                self._reply(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

        def _tell(self, repository: str, rest: list[str]) -> None:
            """The dataset's commit and names, or its tree."""
            files = hub.datasets[repository]
            if rest[:1] == ["tree"]:
                rows = [{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()]
                self._reply(200, json.dumps(rows).encode())
                return
            revision = rest[1] if rest[:1] == ["revision"] else "main"
            hub.revisions.add(revision)
            if revision not in ("main", "v1", hub.commit(repository)):
                self._reply(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
                return
            names = [{"rfilename": name} for name in files]
            body = {"id": repository, "sha": hub.commit(repository), "siblings": names}
            self._reply(200, json.dumps(body).encode())

        def _send(self, repository: str, revision: str, name: str) -> None:
            body = hub.datasets[repository][name]
            if self.command == "GET":
                hub.sent.append(f"{repository}/{name}")
            self._reply(200, body, ETag=f'"{_oid(body)}"', **{"X-Repo-Commit": hub.commit(repository)})

        def _reply(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
