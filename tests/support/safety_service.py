"""safety's services on loopback: what the real program asks before and during a run, with answers that tests choose.

The program asks its authentication server first, whatever the command, then takes a database in two files (which
versions are vulnerable; what is known of each vulnerability), then announcements. With an API key the addresses of its
platform are asked as well.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SCHEMA = "2.0.0"
"""The version of the database's form that safety 3.8.1 takes."""


@dataclass(frozen=True)
class Flaw:
    """One vulnerability of the database."""

    name: str
    specs: tuple[str, ...]
    id: str
    aliases: tuple[str, ...] = ()
    """``CVE-...`` and the database's own ``PVE-...``."""
    advisory: str = "Something is wrong with it."
    fixed: tuple[str, ...] = ()


def database(flaws: Sequence[Flaw], **meta: Any) -> dict[str, Any]:
    """A database as safety fetches it: the content of its two files, by name."""
    head = {
        "advisory": "PyUp.io metadata",
        "timestamp": 1793491200,
        "last_updated": "2026-11-01 00:00:00",
        "base_domain": "",
        "schema_version": SCHEMA,
        "attribution": "Licensed under CC-BY-4.0 by pyup.io",
        **meta,
    }
    short: dict[str, list[str]] = {}
    full: dict[str, list[dict[str, Any]]] = {}
    for flaw in flaws:
        short.setdefault(flaw.name, []).extend(flaw.specs)
        ids = [{"type": "pyup", "id": flaw.id}]
        ids += [{"type": alias.split("-")[0].lower(), "id": alias} for alias in flaw.aliases]
        full.setdefault(flaw.name, []).append(
            {
                "specs": list(flaw.specs),
                "advisory": flaw.advisory,
                "transitive": False,
                "more_info_path": f"/v/{flaw.id}/97c",
                "ids": ids,
                "fixed_versions": list(flaw.fixed),
                "affected_versions": [],
            }
        )
    packages = {name: {"insecure_versions": [], "secure_versions": [], "more_info_path": "/p"} for name in full}
    return {
        "insecure.json": {"meta": head, "vulnerable_packages": short},
        "insecure_full.json": {
            "meta": {**head, "packages": packages},
            "vulnerable_packages": full,
        },
    }


@dataclass
class SafetyService:
    """Where the services are, what they answer, and what was asked: (method, path, API key)."""

    port: int = 0
    files: Mapping[str, Any] = field(default_factory=dict)
    """The database's files by name: a value that JSON can hold, or bytes to send as they are."""
    status: int = 200
    """What the database is answered with."""
    everything: int = 0
    """What each request is answered with; 0: as it should be."""
    hang: str = ""
    """Requests whose path has this in it are never answered."""
    api_key: str = ""
    """The key that is let in; empty: any."""
    platform: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def addresses(self) -> dict[str, str]:
        """The variables that lead safety here."""
        return {
            "SAFETY_AUTH_SERVER_URL": self.url,
            "SAFETY_PLATFORM_URL": self.url,
            "SAFETY_PLATFORM_API_BASE_URL": f"{self.url}/cli/api/v1",
            "SAFETY_DATA_API_BASE_URL": f"{self.url}/data/",
            "SAFETY_PLATFORM_V2_URL": self.url,
            "SAFETY_FIREWALL_API_BASE_URL": self.url,
        }

    @property
    def database(self) -> str:
        """The address of the free database."""
        return f"{self.url}/free/"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, service: SafetyService, *details: object) -> None:
        self.service = service
        super().__init__(*details)  # type: ignore[arg-type]  # handed on as http.server gives them

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def do_GET(self) -> None:
        service, path = self.service, self.path.split("?")[0]
        service.asked.append((self.command, path, self.headers.get("X-Api-Key", "")))
        if service.hang and service.hang in path:
            service.closing.wait()
            return
        if service.everything:
            self._send(service.everything, {"detail": "nothing here"})
        elif path == "/.well-known/openid-configuration":
            self._send(200, {"jwks_uri": f"{service.url}/jwks", "token_endpoint": f"{service.url}/token"})
        elif path == "/jwks":
            self._send(200, {"keys": []})
        elif path.startswith(("/free/", "/data/insecure")):
            self._database(path.rsplit("/", 1)[1], with_key=path.startswith("/data/"))
        elif path == "/data/announcements/":
            self._send(200, {"announcements": []})
        elif path == "/cli/api/v1/initialize":
            self._send(200, {"platform-enabled": service.platform, "events-enabled": False, "firewall-enabled": False})
        elif path in ("/cli/api/v1/project-check", "/cli/api/v1/project"):
            known = {"slug": "layers", "name": "layers", "admin": "a@example.org", "url": "/layers"}
            self._send(200, {**known, "project": known if path.endswith("check") else None})
        elif path == "/cli/api/v1/policy":
            self._send(200, {"uuid": ""})
        elif path == "/cli/api/v1/scan":
            self._send(200, {"url": "/scans/1"})
        else:
            self._send(404, {"detail": "nothing here"})

    def _database(self, name: str, *, with_key: bool) -> None:
        service = self.service
        if with_key and service.api_key and self.headers.get("X-Api-Key") != service.api_key:
            self._send(403, {"detail": "no such key"})
        else:
            self._send(service.status, service.files.get(name, {}))

    def _send(self, status: int, content: object) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's own name)
        pass


@contextmanager
def serve_safety(flaws: Sequence[Flaw] = (), **options: Any) -> Iterator[SafetyService]:
    """The services for as long as the context lasts; the system chooses the port."""
    service = SafetyService(**{"files": database(flaws), **options})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, service))
    server.daemon_threads = True  # one may still wait for a client that was ended
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
