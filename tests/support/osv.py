"""OSV on loopback: the query and document methods of its API and the archive that it publishes, over given documents.

It decides by itself what affects a version, as the OSV schema's pseudocode says, so that it can be held against
``layerkit.advisories``. It can also be any of the services that are no good.
"""

from __future__ import annotations

import io
import json
import re
import socket
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

from packaging.version import InvalidVersion, Version

Document = dict[str, Any]
Mode = Literal["", "404", "500", "malformed", "slow", "endless", "short", "redirect", "empty", "down"]

KNOWN: Document = {
    "schema_version": "1.6.0",
    "id": "PYSEC-2014-8",
    "aliases": ["CVE-2014-1402"],
    "modified": "2021-07-05T00:01:22.043149Z",
    "summary": "What every copy of OSV's data has",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "jinja2"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.7.2"}]}],
        }
    ],
}


def document(
    id_: str,
    name: str,
    *events: Mapping[str, str],
    versions: Iterable[str] = (),
    aliases: Iterable[str] = (),
    modified: str = "2024-01-02T03:04:05Z",
    **more: Any,
) -> Document:
    """An advisory about one distribution, with one range of these events."""
    affected: Document = {"package": {"ecosystem": "PyPI", "name": name, "purl": f"pkg:pypi/{name}"}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": [dict(event) for event in events]}]
    if versions:
        affected["versions"] = list(versions)
    basis = {"schema_version": "1.6.0", "id": id_, "modified": modified, "published": modified}
    return {**basis, "aliases": list(aliases), "affected": [affected], **more}


def archive(documents: Iterable[Document]) -> bytes:
    """The zip in which OSV publishes documents."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as opened:
        for one in documents:
            opened.writestr(f"{one['id']}.json", json.dumps(one))
    return content.getvalue()


def affects(one: Document, name: str, version: str) -> bool:
    """The schema's pseudocode, step by step, for versions that are PEP 440."""
    at = Version(version)
    for affected in one.get("affected", []):
        package = affected.get("package", {})
        if package.get("ecosystem") != "PyPI" or _normal(package["name"]) != _normal(name):
            continue
        if any(_same(listed, at) for listed in affected.get("versions", [])):
            return True
        for range_ in affected.get("ranges", []):
            if range_["type"] == "GIT":
                continue
            vulnerable = False
            for event in sorted(range_["events"], key=_place):
                ((kind, text),) = event.items()
                if kind == "introduced" and (text == "0" or at >= Version(text)):
                    vulnerable = True
                elif (kind == "fixed" and at >= Version(text)) or (kind == "last_affected" and at > Version(text)):
                    vulnerable = False
            if vulnerable:
                return True
    return False


def _same(listed: str, at: Version) -> bool:
    try:
        return Version(listed) == at
    except InvalidVersion:
        return False


def _place(event: Mapping[str, str]) -> Version:
    ((kind, text),) = event.items()
    return Version("0.dev0") if (kind, text) == ("introduced", "0") else Version(text)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass
class Osv:
    """Where the service is, what it knows, and what it was asked."""

    documents: list[Document]
    mode: Mode = ""
    page: int = 1000
    """How many advisories one answer has."""
    malformed: bytes = b"<html>It works!</html>"
    """What it answers everything with in the mode ``malformed``."""
    elsewhere: str = ""
    """Where it sends to in the mode ``redirect``."""
    port: int = 0
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """Path, and the question where there was one."""
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def archive_url(self) -> str:
        return f"{self.url}/PyPI/all.zip"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, osv: Osv, *details: Any) -> None:
        self.osv = osv
        super().__init__(*details)

    def do_GET(self) -> None:
        self._asked(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._asked(json.loads(body))

    def _asked(self, question: Any) -> None:
        osv = self.osv
        osv.asked.append((self.path, question))
        if osv.mode == "404":
            self._answer(404, b"<html>Not Found</html>")
        elif osv.mode == "500":
            self._answer(500, b'{"code": 13, "message": "internal"}')
        elif osv.mode == "malformed":
            self._answer(200, osv.malformed)
        elif osv.mode == "slow":
            osv.stopping.wait()
        elif osv.mode == "endless":
            self._endless()
        elif osv.mode == "short":
            self._answer(200, b'{"vulns": []}', missing=100)
        elif osv.mode == "redirect":
            self._answer(302, b"", {"Location": osv.elsewhere})
        else:
            self._good(question, [] if osv.mode == "empty" else osv.documents)

    def _good(self, question: Any, documents: list[Document]) -> None:
        if self.path == "/PyPI/all.zip":
            self._answer(200, archive(documents))
        elif self.path.startswith("/v1/vulns/"):
            wanted = unquote(self.path.removeprefix("/v1/vulns/"))
            found = [one for one in documents if one["id"] == wanted]
            self._json(200, found[0]) if found else self._json(404, {"code": 5, "message": "Bug not found."})
        elif self.path != "/v1/query" or question is None:
            self._json(404, {"code": 5, "message": "Not Found"})
        elif set(question.get("package", {})) != {"name", "ecosystem"} or not question.get("version"):
            self._json(400, {"code": 3, "message": "Invalid query."})
        else:
            package, version = question["package"], question["version"]
            found = [one for one in documents if affects(one, package["name"], version)]
            found = found if package["ecosystem"] == "PyPI" else []
            start = int(question.get("page_token", "0"))
            answer: Document = {"vulns": found[start : start + self.osv.page]} if found else {}
            if found[start + self.osv.page :]:
                answer["next_page_token"] = str(start + self.osv.page)
            self._json(200, answer)

    def _json(self, status: int, answer: Document) -> None:
        self._answer(status, json.dumps(answer).encode())

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None, missing: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + missing))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.osv.stopping.is_set():
            try:
                self.wfile.write(b" " * 1024 * 1024)
            except OSError:  # the client has had enough
                return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's own name)
        pass


@contextmanager
def serve(documents: Iterable[Document] = (), mode: Mode = "") -> Iterator[Osv]:
    """The service for as long as the context lasts; the system chooses the port. It always has ``KNOWN`` as well.

    ``mode`` says what it is like, and can be changed while it runs, but for ``down``: nothing listens there.
    """
    osv = Osv([*documents, KNOWN], mode)
    if mode == "down":
        with socket.socket() as taken:  # bound and not listening, so that nothing else gets the port meanwhile
            taken.bind(("127.0.0.1", 0))
            osv.port = taken.getsockname()[1]
            yield osv
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, osv))
    osv.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield osv
    finally:
        osv.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
