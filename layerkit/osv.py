"""OSV over HTTP: a service on loopback that answers from the local database, and the client of that and the real one.

``serve`` gives a ``Service`` just as one makes for a public address, so whoever asks need not know which it is.
"""

from __future__ import annotations

import json
import re
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from layerkit import __version__
from layerkit.advisories import Advisory, Affected, Level, parse_advisory
from layerkit.advisorydb import KNOWN, Edition, Store, import_archive
from layerkit.errors import ConfigurationError, ExternalError
from layerkit.model import MIB, normalized

PUBLIC = "https://api.osv.dev"
"""OSV's public API (google.github.io/osv.dev/api)."""

ARCHIVE = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
"""Where OSV publishes all advisories about PyPI (google.github.io/osv.dev/data, "Data dumps")."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ANSWER = 64 * MIB
_ARCHIVE = 512 * MIB
_ARCHIVE_SECONDS = 1800.0
_PAGES = 100

# What to do instead of asking a service, and instead of getting the archive.
_LOCAL = "use the local database (inv advisories-update, then --source local)"
_COPY = "import a copy of the archive (inv advisories-update --from PATH)"


# ---- asking ----


@dataclass(frozen=True)
class Service:
    """A service that speaks OSV's API; for several threads.

    Every method raises ExternalError, naming the service, when it does not answer as OSV does. The address is https,
    or on loopback; the system's proxy settings hold for all but loopback. ConfigurationError for another address.
    """

    url: str = PUBLIC
    timeout: float = 10.0
    """How many seconds to wait for a connection, and then for each further piece of an answer."""
    seconds: float = 60.0
    """How many seconds one answer may take in all."""

    def __post_init__(self) -> None:
        _check_address(self.url)
        if urlsplit(self.url).query:  # what is asked for goes behind the address
            raise ConfigurationError(f"{self.name} is not all that its address has: there is a query.", _ADDRESS)

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return _host(self.url)

    @property
    def query_url(self) -> str:
        """The address of its query method: what pip-audit takes as ``--osv-url``."""
        return f"{self.url.rstrip('/')}/v1/query"

    def advisories_of(self, name: str, version: str) -> tuple[Advisory, ...]:
        """The advisories that the service says affect a distribution at a version; no withdrawn ones, sorted by id."""
        question: dict[str, Any] = {"package": {"name": normalized(name), "ecosystem": "PyPI"}}
        question["version"] = version
        found: dict[str, Advisory] = {}
        for _ in range(_PAGES):
            answer = self._ask(self.query_url, question)
            documents = answer.get("vulns") or []
            if not isinstance(documents, list):
                raise self._strange("a list of advisories was expected")
            found.update((advisory.id, advisory) for advisory in map(self._parsed, documents))
            token = answer.get("next_page_token")
            if not token:
                return tuple(found[id_] for id_ in sorted(found) if not found[id_].withdrawn)
            question = {**question, "page_token": token}
        raise self._strange(f"it has more than {_PAGES} pages about {name} {version}")

    def get(self, id_: str) -> Advisory | None:
        """The document that the service has under ``id_``; None where it has none."""
        try:
            return self._parsed(self._ask(f"{self.url.rstrip('/')}/v1/vulns/{quote(id_, safe='')}"))
        except _Refused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def unreachable(self) -> str:
        """Why the service can't be relied on; empty when it answers, and knows what any copy of OSV's data has."""
        try:
            known = self.advisories_of(*KNOWN)
        except ExternalError as error:
            return error.message
        return (
            "" if known else self._strange(f"it knows no advisory about {' '.join(KNOWN)}, which has several").message
        )

    def _ask(self, url: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = None if question is None else json.dumps(question).encode()
        with closing(_receive(url, body, _Bounds(self.timeout, self.seconds, _ANSWER, _LOCAL))) as pieces:
            content = b"".join(pieces)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._strange("it is not JSON") from error
        if not isinstance(answer, dict):
            raise self._strange("an object was expected")
        return answer

    def _parsed(self, document: Any) -> Advisory:
        try:
            return parse_advisory(document)
        except ValueError as error:
            raise self._strange(f"an advisory can't be read: {error}") from error

    def _strange(self, reason: str) -> ExternalError:
        return ExternalError(f"{self.name} does not answer as OSV does: {reason}.", _hint(HTTPStatus.OK, _LOCAL))


def update(
    store: Path,
    url: str = ARCHIVE,
    *,
    timeout: float = 30.0,
    tell: Callable[[int, int], None] = lambda done, total: None,
    waiting: Callable[[str], None] = lambda holder: None,
) -> Edition:
    """Make the database ``store`` from the archive that OSV publishes, or another one at ``url``.

    It changes nothing when that fails (ExternalError). ``tell`` and ``waiting`` are those of ``import_archive``.
    """
    shown = shown_address(url)
    store.parent.mkdir(parents=True, exist_ok=True)
    # Without a name, so that nothing is left of it however this ends.
    with tempfile.TemporaryFile(dir=store.parent) as archive:
        with closing(_receive(url, None, _Bounds(timeout, _ARCHIVE_SECONDS, _ARCHIVE, _COPY))) as pieces:
            archive.writelines(pieces)
        return import_archive(archive, store, source=shown, tell=tell, waiting=waiting)


class _Refused(ExternalError):
    """A service answered with a status that is no success."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True)
class _Bounds:
    """How long to wait for a connection or a further piece, and for all; how many bytes to take; what else to do."""

    timeout: float
    seconds: float
    size: int
    instead: str


def _receive(url: str, body: bytes | None, bounds: _Bounds) -> Generator[bytes]:
    """The content at ``url``, piece by piece; with a ``body``, what is answered to it. Every failure: ExternalError."""
    host, end = _host(url), time.monotonic() + bounds.seconds
    headers = {"User-Agent": f"layerkit/{__version__}", "Content-Type": "application/json"}
    hint = f"Check the network and HTTPS_PROXY, or {bounds.instead}."
    size = 0
    try:
        request = Request(url, data=body, headers=headers)  # noqa: S310  (the address was checked)
        with _opener(url).open(request, timeout=bounds.timeout) as response:
            while piece := response.read1(MIB):
                size += len(piece)
                if size > bounds.size:
                    raise ExternalError(f"{host} sends more than {bounds.size // MIB} MiB.", hint)
                if time.monotonic() > end:
                    raise ExternalError(f"{host} has not sent all of its answer after {bounds.seconds:g} s.", hint)
                yield piece
            if str(size) != response.headers.get("Content-Length", str(size)):
                raise ExternalError(f"{host} broke off in the middle of its answer.", hint)
    except HTTPError as error:
        error.close()
        message = f"{host} answers {urlsplit(url).path} with HTTP {error.code}."
        raise _Refused(message, _hint(error.code, bounds.instead), error.code) from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        why = f"can't be reached: {getattr(reason, 'strerror', None) or str(reason) or type(reason).__name__}"
        if isinstance(reason, TimeoutError):
            why = f"has not answered after {bounds.timeout:g} s"
        elif isinstance(reason, ssl.SSLCertVerificationError):
            why = f"has a certificate that this machine does not trust: {reason.verify_message}"
            hint = "Behind a proxy that opens TLS, name its certificate in SSL_CERT_FILE."
        raise ExternalError(f"{host} {why}.", hint) from error


def _hint(status: int, instead: str) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"Try it again later, or {instead}."
    return f"Check the address, or {instead}."


_ADDRESS = f"Give one like {PUBLIC}: https, and no login in it."


def shown_address(url: str) -> str:
    """What of an address is shown and kept: scheme, host and path, without a query, which may have a key in it.

    ConfigurationError for an address that is not asked: one with a login, or that is neither https nor on loopback.
    """
    _check_address(url)
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        known = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        usable = known and parts.hostname and "@" not in parts.netloc and parts.port != 0
        usable = usable and not re.search(r"[^!-~]", parts.path + parts.query)
        (parts.hostname or "").encode("idna")
    except ValueError:  # brackets or a port that are none, or a host that no name server could be asked for
        usable = False
    if not usable:
        raise ConfigurationError(f"{_host(url)} is not the address of a service that can be asked.", _ADDRESS)


def _host(url: str) -> str:
    """What of an address can always be shown: no login, no path, no query."""
    return re.split(r"[/?#]", (url.partition("://")[2] or url).rpartition("@")[2])[0] or repr(url.partition("?")[0])


def _opener(url: str) -> OpenerDirector:
    """Proxies are the system's, but for loopback, which no proxy could reach."""
    return build_opener(_Redirects, ProxyHandler({}) if urlsplit(url).hostname in _LOOPBACK else ProxyHandler())


class _Redirects(HTTPRedirectHandler):
    """Follows to where a service could be itself: never from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        try:
            _check_address(newurl)
        except ConfigurationError as error:
            fp.close()
            message = f"{_host(req.full_url)} sends elsewhere, to what is not https."
            raise _Refused(message, "Check the address: OSV sends nowhere else.", code) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# ---- answering ----


@contextmanager
def serve(store: Store) -> Iterator[Service]:
    """A service on loopback that answers from ``store`` for as long as the context lasts; the system chooses the port.

    It has OSV's query method, which is all that pip-audit uses, and no other. A question that it has no data for, such
    as one about another ecosystem, is refused: an empty answer would mean that there is nothing to know.
    """
    server = _Server(("127.0.0.1", 0), partial(_Handler, store))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Service(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer would ask the network for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that has gone away is no error of the service
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = 30.0

    def __init__(self, store: Store, *details: Any) -> None:
        self.store = store
        super().__init__(*details)

    def do_POST(self) -> None:
        if self.path != "/v1/query":
            self._answer(HTTPStatus.NOT_FOUND, {"message": "There is only /v1/query here."})
            return
        try:
            name, version = self._question()
            found = self.store.query(name, version) if version else self.store.about(name)
        except ValueError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"message": str(error)})
        except ExternalError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"message": error.message})
        else:
            self._answer(HTTPStatus.OK, {"vulns": [as_document(advisory) for advisory in found]} if found else {})

    def _question(self) -> tuple[str, str]:
        """Name and version of what is asked for; ValueError for what can't be answered."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MIB:
            raise ValueError("A question has a length, of at most 1 MiB.")
        try:
            question = json.loads(self.rfile.read(int(length)))
            package, version = question["package"], question.get("version", "")
            known = package["ecosystem"] == "PyPI" and not question.get("commit") and not question.get("page_token")
            name = package["name"]
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError("A question has a package with its name and ecosystem.") from error
        if not (known and isinstance(name, str) and isinstance(version, str) and name):
            raise ValueError("There is only data about versions of distributions on PyPI.")
        return name, version

    def _answer(self, status: HTTPStatus, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's own name)
        pass


def as_document(advisory: Advisory) -> dict[str, Any]:
    """An advisory in OSV's form: what ``parse_advisory`` makes the same value of.

    Only that: pip-audit ends with a traceback at times with nanoseconds, at an end of a range that is no version, and
    at what is affected without being a package, all of which the source may have.
    """
    kind = f"CVSS_V{advisory.vector[5]}" if advisory.vector.startswith("CVSS:") else "CVSS_V2"
    document: dict[str, Any] = {
        "schema_version": "1.6.0",
        "id": advisory.id,
        "aliases": list(advisory.aliases),
        "modified": advisory.modified,
        "summary": advisory.summary,
        "severity": [{"type": kind, "score": advisory.vector}] if advisory.vector else [],
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": affected.name},
                "ranges": [{"type": "ECOSYSTEM", "events": events} for events in _ranges(affected)],
                "versions": list(affected.versions),
            }
            for affected in advisory.affected
        ],
    }
    if advisory.level is not Level.UNKNOWN:
        document["database_specific"] = {"severity": advisory.level.name}
    if advisory.withdrawn:
        document["withdrawn"] = advisory.modified
    return document


def _ranges(affected: Affected) -> Iterator[list[dict[str, str]]]:
    """The events of each range; fixes that end none of them are in one of their own, where they end nothing else."""
    for start, end, inclusive in affected.ranges:
        ends = [] if end is None else [{"last_affected" if inclusive else "fixed": end}]
        yield [{"introduced": start}, *ends]
    ending = {end for _, end, inclusive in affected.ranges if not inclusive}
    others = [{"fixed": version} for version in affected.fixed if version not in ending]
    if others:
        yield others
