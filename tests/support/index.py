"""A package index on loopback: PEP 503 pages over a folder of files, with a password when asked for."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Index:
    """Where the index is, the folder it serves, and the paths that were asked for."""

    folder: Path
    port: int = 0
    credentials: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        login = f"{self.credentials}@" if self.credentials else ""
        return f"http://{login}127.0.0.1:{self.port}/simple/"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, index: Index, *details: object) -> None:
        self.index = index
        super().__init__(*details)  # type: ignore[arg-type]  # handed on as http.server gives them

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        if self.index.credentials:
            expected = "Basic " + base64.b64encode(self.index.credentials.encode()).decode()
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        page = re.fullmatch(r"/simple/([^/]+)/", self.path)
        file = self.index.folder / self.path.removeprefix("/files/")
        if page:
            self._answer(self._page(page[1]), "text/html")
        elif self.path.startswith("/files/") and file.is_file():
            self._answer(file.read_bytes(), "application/octet-stream")
        else:
            self.send_error(404)

    def _page(self, name: str) -> bytes | None:
        links = []
        for file in sorted(self.index.folder.iterdir()):
            found = re.match(r"(.+?)-\d", file.name)
            if found and re.sub(r"[-_.]+", "-", found[1]).lower() == name:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                links.append(f'<a href="/files/{file.name}#sha256={digest}">{file.name}</a>')
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode() if links else None

    def _answer(self, data: bytes | None, kind: str) -> None:
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's own name)
        pass


@contextmanager
def serve(folder: Path, credentials: str = "") -> Iterator[Index]:
    """An index over ``folder`` for as long as the context lasts; the system chooses the port."""
    index = Index(folder, credentials=credentials)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, index))
    index.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
