"""OSV over HTTP, both sides: the local database as a service, and services that are good, bad and not there."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from layerkit.advisories import Level, merge, parse_advisory
from layerkit.advisorydb import Store, import_archive
from layerkit.errors import ConfigurationError, ExternalError
from layerkit.osv import Service, as_document, serve, shown_address, update
from tests.support import osv
from tests.support.osv import KNOWN, Document, archive, document

V3 = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"

URLLIB3 = document(
    "PYSEC-2023-192",
    "urllib3",
    {"introduced": "0"},
    {"fixed": "1.26.17"},
    {"introduced": "2.0.0"},
    {"fixed": "2.0.6"},
    aliases=["CVE-2023-43804"],
    details="The Cookie header leaks.",
)
DOCUMENTS = [
    URLLIB3,
    document("GHSA-1", "urllib3", {"introduced": "2"}, {"last_affected": "2.0.4"}, aliases=["CVE-2023-43804"]),
    document("PYSEC-2", "urllib3", {"introduced": "0"}, withdrawn="2024-01-01T00:00:00Z"),
    document("PYSEC-3", "Jinja2", versions=["2.0", "2.4.1"]),
]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    import_archive(io.BytesIO(archive(DOCUMENTS)), tmp_path / "advisories" / "db")
    with Store.open(tmp_path / "advisories" / "db") as opened:
        yield opened


def post(url: str, body: bytes, method: str = "POST", **headers: str) -> tuple[int, Any]:
    """Send ``body`` as pip-audit does: without a content type."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=10)
    connection.request(method, parts.path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if content.startswith(b"{") else content


def question(name: str, version: str) -> bytes:
    return json.dumps({"package": {"name": name, "ecosystem": "PyPI"}, "version": version}).encode()


# ---- the local database as a service ----


def test_pip_audits_question_is_answered(store: Store) -> None:
    with serve(store) as service:
        assert service.query_url == f"{service.url}/v1/query"
        status, answer = post(service.query_url, question("urllib3", "2.0.4"))
        assert (status, set(answer)) == (200, {"vulns"})
        assert [one["id"] for one in answer["vulns"]] == ["GHSA-1", "PYSEC-2023-192"]
        assert answer["vulns"][1]["aliases"] == ["CVE-2023-43804"]
        assert post(service.query_url, question("urllib3", "2.0.6")) == (200, {})
        assert post(service.query_url, question("unheard-of", "1")) == (200, {})


def test_the_client_reads_what_the_database_says(store: Store) -> None:
    with serve(store) as service:
        for name, version in (("urllib3", "2.0.4"), ("JINJA2", "2.4.1"), ("urllib3", "3")):
            assert service.advisories_of(name, version) == store.query(name, version)
        assert service.unreachable() == ""


@pytest.mark.parametrize(
    "one",
    [
        URLLIB3,
        DOCUMENTS[1],
        DOCUMENTS[2],
        DOCUMENTS[3],
        {**URLLIB3, "severity": [{"type": "CVSS_V3", "score": V3}], "summary": "x" * 500},
        {**URLLIB3, "severity": [{"type": "CVSS_V2", "score": "AV:N/AC:L/Au:N/C:P/I:P/A:P"}]},
        {**URLLIB3, "database_specific": {"severity": "MODERATE"}},
        document("X-1", "a", {"introduced": "soon"}, {"fixed": "later"}, versions=["1", "odd"]),
        document("X-1", "a", {"introduced": "0"}, {"fixed": "1"}, {"fixed": "2"}, {"introduced": "3"}),
    ],
)
def test_an_answer_is_read_as_it_was_meant(one: Document) -> None:
    advisory = parse_advisory(one)
    assert parse_advisory(json.loads(json.dumps(as_document(advisory)))) == advisory


def test_what_several_documents_say_goes_into_one_answer() -> None:
    (merged,) = merge(parse_advisory(one) for one in DOCUMENTS[:2])
    assert parse_advisory(as_document(merged)) == merged


def test_an_answer_has_nothing_that_pip_audit_trips_over(tmp_path: Path) -> None:
    one = document(
        "X-1", "A.b", {"introduced": "0"}, {"fixed": "the next one"}, published="2024-01-01T00:00:00.123456789Z"
    )
    one["affected"] += [{"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}]
    import_archive(io.BytesIO(archive([one, KNOWN])), tmp_path / "db")
    with Store.open(tmp_path / "db") as opened, serve(opened) as service:
        _, answer = post(service.query_url, question("a-b", "1.0"))
    (vulnerability,) = answer["vulns"]
    assert "published" not in vulnerability
    assert vulnerability["affected"] == [
        {
            "package": {"ecosystem": "PyPI", "name": "a-b"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
            "versions": [],
        }
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b'"package"', 400),
        (b"{}", 400),
        (b'{"version": "1.0"}', 400),
        (b'{"commit": "6879efc2c1596d11a6a6ad296f80063b558d5e0f"}', 400),
        (b'{"package": {"purl": "pkg:pypi/urllib3@2.0.4"}}', 400),
        (b'{"package": {"name": "urllib3"}, "version": "2.0.4"}', 400),
        (b'{"package": {"name": "urllib3", "ecosystem": "npm"}, "version": "2.0.4"}', 400),
        (b'{"package": {"name": ["urllib3"], "ecosystem": "PyPI"}, "version": "2.0.4"}', 400),
        (b'{"package": {"name": "urllib3", "ecosystem": "PyPI"}, "version": 2}', 400),
        (b'{"package": {"name": "urllib3", "ecosystem": "PyPI"}, "version": "2", "page_token": "x"}', 400),
        (b'{"package": {"name": "urllib3", "ecosystem": "PyPI"}}', 200),
    ],
)
def test_what_cant_be_answered_is_refused(body: bytes, status: int, store: Store) -> None:
    with serve(store) as service:
        answered, answer = post(service.query_url, body)
        assert answered == status
        assert ("message" in answer) == (status != 200)


def test_there_is_one_method_and_questions_have_a_size(store: Store) -> None:
    good = question("urllib3", "2.0.4")
    with serve(store) as service:
        assert post(f"{service.url}/v1/querybatch", good)[0] == 404
        assert post(f"{service.url}/", good)[0] == 404
        assert post(service.query_url, good, "GET")[0] == 501
        assert post(service.query_url, b"", "POST", **{"Content-Length": "99999999"})[0] == 400
        assert post(service.query_url, good)[0] == 200


def test_many_ask_at_once(store: Store) -> None:
    asked = [("urllib3", "2.0.4"), ("urllib3", "2.0.6"), ("jinja2", "2.0"), ("nothing", "1")] * 25
    with serve(store) as service, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: service.advisories_of(*one), asked))
    assert answers == [store.query(*one) for one in asked]


def test_a_client_that_goes_away_is_nobodys_error(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(store) as service:
        for sent in (b"", b"POST /v1/query HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"):
            with socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets it
                client.sendall(sent)
        assert len(service.advisories_of("urllib3", "2.0.4")) == 2
    assert capfd.readouterr() == ("", "")


def test_the_service_ends_with_its_context(store: Store) -> None:
    before = threading.active_count()
    with serve(store) as service:
        assert service.unreachable() == ""
    assert "can't be reached" in service.unreachable()
    assert threading.active_count() <= before


def test_a_database_that_cant_be_read_is_no_empty_answer(store: Store) -> None:
    with serve(store) as service:
        store.close()
        with pytest.raises(ExternalError, match="answers /v1/query with HTTP 500"):
            service.advisories_of("urllib3", "2.0.4")


def test_loopback_is_asked_past_every_proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with osv.serve(mode="down") as dead, serve(store) as service:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, dead.url)
        assert len(service.advisories_of("urllib3", "2.0.4")) == 2


# ---- asking a service ----


def test_all_pages_of_an_answer_are_read() -> None:
    many = [document(f"X-{number:02}", "a", {"introduced": "0"}) for number in range(25)]
    with osv.serve(many) as service:
        service.page = 10
        found = Service(service.url).advisories_of("A", "1.0")
        assert [advisory.id for advisory in found] == [one["id"] for one in many]
        tokens = [asked["page_token"] for _, asked in service.asked if "page_token" in asked]
        assert tokens == ["10", "20"]
        assert service.asked[0] == ("/v1/query", {"package": {"name": "a", "ecosystem": "PyPI"}, "version": "1.0"})


def test_withdrawn_advisories_are_left_out() -> None:
    with osv.serve(DOCUMENTS) as service:
        found = Service(f"{service.url}/").advisories_of("urllib3", "2.0.4")
        assert [advisory.id for advisory in found] == ["GHSA-1", "PYSEC-2023-192"]
        assert Service(service.url).advisories_of("urllib3", "2.0.6") == ()


def test_a_document_by_its_id() -> None:
    severe = document("GHSA-2", "a", {"introduced": "0"}, severity=[{"type": "CVSS_V3", "score": V3}])
    with osv.serve([severe]) as service:
        found = Service(service.url).get("GHSA-2")
        assert found is not None
        assert (found.level, found.score) == (Level.CRITICAL, 9.8)
        assert Service(service.url).get("GHSA-3") is None
        assert Service(service.url).get("../v1/query?x=#") is None
        assert service.asked[-1] == ("/v1/vulns/..%2Fv1%2Fquery%3Fx%3D%23", None)


def failures(service: Service) -> list[ExternalError]:
    """What every method says of a service that is no good."""
    found = []
    for ask in (lambda: service.advisories_of("urllib3", "2.0.4"), lambda: service.get("PYSEC-2023-192")):
        try:
            ask()
        except ExternalError as error:
            found.append(error)
    return found


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("404", "answers /v1/query with HTTP 404"),
        ("500", "answers /v1/query with HTTP 500"),
        ("malformed", "does not answer as OSV does: it is not JSON"),
        ("slow", r"has not answered after 0\.2 s"),
        ("short", "broke off in the middle"),
        ("redirect", "sends elsewhere"),
        ("down", "can't be reached: .*refused"),
        ("empty", "knows no advisory about jinja2 2.4.1"),
    ],
)
def test_a_service_that_is_no_good(mode: osv.Mode, reason: str) -> None:
    with osv.serve(DOCUMENTS, mode) as bad:
        bad.elsewhere = "http://osv.example/v1/query"
        service = Service(bad.url, timeout=0.2)
        why = service.unreachable()
        assert service.name == f"127.0.0.1:{bad.port}"
        assert why.startswith(f"127.0.0.1:{bad.port} ")
        assert "\n" not in why
        assert re.search(reason, why)
        found = failures(service)
        # Only documents that are not there, or advisories that nobody knows of, are answers.
        assert len(found) == {"empty": 0, "404": 1}.get(mode, 2)
        assert all("--source local" in error.hint or mode == "redirect" for error in found)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"[]", "an object was expected"),
        (b'{"vulns": {"id": "X"}}', "a list of advisories was expected"),
        (b'{"vulns": [{"id": "X"}]}', "an advisory can't be read: it does not say when"),
        (b'{"vulns": ["X"]}', "an advisory can't be read: it is not an object"),
        (b'{"vulns": [', "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (json.dumps({"vulns": [KNOWN], "next_page_token": "again"}).encode(), "more than 100 pages"),
    ],
)
def test_answers_that_are_malformed(answer: bytes, reason: str) -> None:
    with osv.serve(mode="malformed") as bad:
        bad.malformed = answer
        with pytest.raises(ExternalError, match=f"does not answer as OSV does: .*{reason}"):
            Service(bad.url).advisories_of("urllib3", "2.0.4")


def test_an_answer_without_an_end() -> None:
    with osv.serve(mode="endless") as bad:
        with pytest.raises(ExternalError, match=r"has not sent all of its answer after 0\.01 s"):
            Service(bad.url, seconds=0.01).advisories_of("urllib3", "2.0.4")
        with pytest.raises(ExternalError, match="sends more than 64 MiB"):
            Service(bad.url).get("PYSEC-2023-192")


def test_another_service_on_loopback_may_be_where_it_sends_to() -> None:
    with osv.serve(DOCUMENTS) as good, osv.serve(mode="redirect") as other:
        other.elsewhere = f"{good.url}/v1/vulns/GHSA-1"
        found = Service(other.url).get("GHSA-0")
        assert found is not None
        assert found.id == "GHSA-1"


def test_what_is_not_tls_is_not_talked_to() -> None:
    with osv.serve(DOCUMENTS) as plain:
        with pytest.raises(ExternalError, match=r"can't be reached: .*SSL"):
            Service(plain.url.replace("http:", "https:")).advisories_of("urllib3", "2.0.4")
        assert plain.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://osv.example",
        "http://127.0.0.1.example:80",
        "ftp://api.osv.dev",
        "file:///etc/passwd",
        "api.osv.dev",
        "https://",
        "https://[::1",
        "https://user:hunter2@osv.example",
        "user:hunter2@osv.example",
        "https://user:hunter2/3@osv.example/v1",
        "https://@osv.example",
        "https://api..osv.example",
        f"https://{'a' * 64}.example",
        "https://osv.example/\u00fc",
        "https://osv.example/a b",
        "",
    ],
)
def test_addresses_that_are_not_asked(url: str, tmp_path: Path) -> None:
    for ask in (lambda: Service(url), lambda: update(tmp_path / "db", url)):
        with pytest.raises(ConfigurationError) as caught:
            ask()
        assert "hunter2" not in str(caught.value)
        assert "https" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_follows_an_address_can_not_be_asked_and_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"^osv\.example is not") as caught:
        Service("https://osv.example?key=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://osv.example/PyPI/all.zip", "https://osv.example/PyPI/all.zip"),
        ("https://osv.example:8443/all.zip?key=hunter2#x", "https://osv.example:8443/all.zip"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
    ],
)
def test_what_is_shown_of_an_address(url: str, shown: str) -> None:
    assert shown_address(url) == shown


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that lets nobody through, and the first lines of what it was asked."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                connection, _ = listening.accept()
                with connection:
                    asked.append(connection.recv(1000).decode().partition("\r\n")[0])
                    if asked[-1] == "end":
                        return
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        with socket.create_connection(listening.getsockname()) as connection:
            connection.sendall(b"end")
        thread.join()


def test_the_systems_proxy_is_used_and_its_exceptions_are_kept(
    proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = proxy
    monkeypatch.setenv("https_proxy", url)
    # An address of this machine that is not loopback's usual name, so that nothing leaves it either way.
    service = Service("https://127.0.0.2:9", timeout=1.0)
    assert "can't be reached: Tunnel connection failed: 403 Forbidden" in service.unreachable()
    assert [line.rpartition(" ")[0] for line in asked] == ["CONNECT 127.0.0.2:9"]
    monkeypatch.setenv("no_proxy", "127.0.0.2")
    assert service.unreachable()
    assert len(asked) == 1


# ---- getting the archive ----


def test_the_archive_is_got_and_imported(tmp_path: Path) -> None:
    with osv.serve(DOCUMENTS) as service:
        edition = update(tmp_path / "advisories" / "db", service.archive_url)
        assert service.asked == [("/PyPI/all.zip", None)]
        assert (edition.count, edition.source) == (5, service.archive_url)
    with Store.open(tmp_path / "advisories" / "db") as opened:
        assert opened.edition == edition
        assert [advisory.id for advisory in opened.query("jinja2", "2.0")] == ["PYSEC-2014-8", "PYSEC-3"]
    assert sorted(path.name for path in (tmp_path / "advisories").iterdir()) == ["db", "lock"]


@pytest.mark.parametrize("mode", ["404", "500", "malformed", "slow", "short", "redirect", "empty", "down"])
def test_an_archive_that_cant_be_got_changes_nothing(mode: osv.Mode, store: Store) -> None:
    before = store.path.read_bytes()
    with osv.serve(DOCUMENTS, mode) as service:
        service.elsewhere = "http://osv.example/all.zip"
        with pytest.raises(ExternalError) as caught:
            update(store.path, service.archive_url, timeout=0.2)
    assert f"127.0.0.1:{service.port}" in caught.value.message
    assert "--source local" not in caught.value.hint
    assert caught.value.hint
    assert store.path.read_bytes() == before
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["db", "lock"]
