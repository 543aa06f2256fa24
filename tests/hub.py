"""A Hugging Face hub of one model on this machine, for the real client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The hub: `folder` holds the files of its model at COMMIT, and `refs` its branches and tags.

    gated: files are refused, as of a model whose terms the user has not accepted. asked: the paths
    of all requests.
    """

    folder: Path
    model_id: str = "someone/tiny"
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1.0": COMMIT})
    gated: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def moved(self, commit: str) -> None:
        """Let the branch main be at another commit, of the same files."""
        self.refs |= {"main": commit, commit: commit}


@contextmanager
def serving(hub: Hub) -> Generator[Hub]:
    """Serve the hub on a free port until the end."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            info = re.fullmatch(rf"/api/models/{hub.model_id}(?:/revision/(.+))?", path)
            tree = re.fullmatch(rf"/api/models/{hub.model_id}/tree/([^/]+)", path)
            file = re.fullmatch(rf"/{hub.model_id}/resolve/([^/]+)/(.+)", path)
            found = info or tree or file
            if found is None:
                self.fail(404, "RepoNotFound")
                return
            revision = found[1] or "main"
            if revision != COMMIT and revision not in hub.refs:
                self.fail(404, "RevisionNotFound")
            elif info:
                self.json(
                    {
                        "id": hub.model_id,
                        "sha": hub.refs.get(revision, revision),
                        "siblings": [{"rfilename": name} for name in self.names()],
                    }
                )
            elif tree:
                rows = [
                    {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                    for name, size in self.names().items()
                ]
                self.json(rows)
            elif hub.gated:
                self.fail(403, "GatedRepo")
            elif found[2] not in self.names():
                self.fail(404, "EntryNotFound")
            else:
                self.content(hub.folder / found[2], hub.refs.get(revision, revision))

        def names(self) -> dict[str, int]:
            files = (path for path in hub.folder.rglob("*") if path.is_file())
            return {str(f.relative_to(hub.folder)): f.stat().st_size for f in files}

        def content(self, path: Path, commit: str) -> None:
            whole = path.read_bytes()
            tag = hashlib.sha1(whole).hexdigest()
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            part = whole[int(asked[1]) : int(asked[2] or len(whole)) + 1] if asked else whole
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {asked[1]}-/{len(whole)}")
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_body(part)

        def json(self, answer: object) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_body(json.dumps(answer).encode())

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_body(b"")

        def send_body(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
