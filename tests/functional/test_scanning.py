"""The scan of built layers: what is made of programs' answers, and real runs with services good and bad."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from layerkit.advisories import Level, parse_advisory
from layerkit.advisorydb import import_archive, store_path
from layerkit.auditing import NAME, Audited, Pin, Reported, carried_by
from layerkit.errors import ConfigurationError, ExternalError
from layerkit.judging import Standing
from layerkit.model import Exemption, Skipped, Target
from layerkit.safety import Database, SafetyAnswer, SafetyFinding
from layerkit.scanning import Result, Scan, Scanner, scan
from layerkit.sources import Source, opened
from layerkit.virtualenvs import environment, requirements_of
from tasks.scanning import FORMATS, asked_lines, rendered, scan_document
from tests.support.calls import Caller
from tests.support.checkouts import HERE, REPOSITORY, Checkout
from tests.support.index import Index
from tests.support.osv import KNOWN, Document, Mode, archive, document, serve
from tests.support.wheels import make_wheel
from tests.unit import test_sarif

TODAY = date(2026, 11, 25)
NOW = datetime(2026, 11, 25, tzinfo=UTC)
FOR_HERE: dict[str, Any] = {"runtime": HERE.runtime, "architecture": HERE.architecture}
FLAGS = ["--runtime", HERE.runtime, "--architecture", HERE.architecture]
SEVERE = [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"}]  # 7.5
schema = test_sarif.schema  # the standard's, as a fixture
MILD = [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:L/AC:H/PR:L/UI:R/S:U/C:L/I:N/A:N"}]  # 2.2


@pytest.fixture
def cache(checkout: Checkout, tmp_path: Path, caches: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without a database of advisories; the environments in it are those of all tests."""
    environments = Path(caches["LAYERKIT_CACHE_DIR"]) / "environments"
    environments.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "environments").symlink_to(environments)
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def call(checkout: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Caller:
    return Caller(checkout.root, capfd, monkeypatch)


def built(checkout: Checkout, index: Index, target: Target = HERE, **layers: str) -> Checkout:
    """Layers by name, each with one requirements file; every distribution has a wheel of each version asked for."""
    for requirements in layers.values():
        for line in requirements.splitlines():
            name, version = re.fullmatch(r"([\w-]+)==([\w.]+).*", line).groups()  # type: ignore[union-attr]
            make_wheel(index.folder, name, version)
    for name, requirements in layers.items():
        checkout.layer(name, requirements, f'stack = "{name}"\n')
    checkout.lock(target)
    checkout.build(target=target)
    return checkout


TREE_CHANGED = "changed:./"
"""What a tree as a whole is called that is not as it was built."""


def tree_of(checkout: Checkout, name: str = "web", target: Target = HERE) -> Path:
    return checkout.project.tree_path(name, target)


def write(tree: Path, path: str, content: bytes, distribution: str = "") -> None:
    """Put a file into a tree, and into the RECORD of a distribution: what tells it then is the tree as a whole."""
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_bytes(content)
    if distribution:
        (record,) = tree.glob(f"{distribution}-*.dist-info/RECORD")
        digest = base64.urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow([path, f"sha256={digest}", len(content)])
        record.write_text(record.read_text() + row.getvalue())


# ---- what is made of answers ----

Said = Mapping[str, Sequence[Reported] | str]


def auditing(said: Said | None = None) -> Callable[[Mapping[Path, Iterable[Pin]]], dict[Path, tuple[Audited, ...]]]:
    """A pip-audit that says of a distribution what is known, or why nothing is; all others are clean."""

    def one(pin: Pin, reason: str) -> Audited:
        answer = reason or (said or {}).get(pin[0], ())
        return Audited(*pin, not_scanned=answer) if isinstance(answer, str) else Audited(*pin, tuple(answer))

    def audit(trees: Mapping[Path, Iterable[Pin]]) -> dict[Path, tuple[Audited, ...]]:
        return {
            tree: tuple(one(pin, reason) for pin, reason in sorted(carried_by(tree, expected).items()))
            for tree, expected in trees.items()
        }

    return audit


def screening(*findings: SafetyFinding, **not_scanned: str) -> Callable[[Iterable[Pin]], SafetyAnswer]:
    missing = {(name, "1.0"): reason for name, reason in not_scanned.items()}
    return lambda pins: SafetyAnswer("check", findings, missing, Database("2026-11-01", "free for all", 3))


def source(*documents: Document, **changes: Any) -> Source:
    """One that knows of ``requests 1.0`` what the documents say."""
    known = tuple(map(parse_advisory, documents))
    values: dict[str, Any] = {"details": lambda name, version: known if name == "requests" else ()}
    return Source("osv", "osv.example", "http://127.0.0.1:9/v1/query", **(values | changes))


def scanned(checkout: Checkout, *names: str, said: Said | None = None, **options: Any) -> Scan:
    values: dict[str, Any] = {"source": source(), "audit": auditing(said), "screen": None}
    project = checkout.project
    return scan(project, project.selected(names), HERE, Scanner(**(values | options)), TODAY)


def by_safety(id_: str = "70000", *aliases: str, **changes: Any) -> SafetyFinding:
    values: dict[str, Any] = {"summary": "", "level": "unknown", "score": None, "fixed": (), "url": ""}
    return SafetyFinding("requests", "1.0", id=id_, aliases=aliases, **(values | changes))


def flags_for(default: Target) -> list[str]:
    """What a command needs so that it is about this machine's target."""
    flags = [] if HERE.runtime == default.runtime else ["--runtime", HERE.runtime]
    return flags + ([] if HERE.architecture == default.architecture else ["--architecture", HERE.architecture])


def first_line(found: Scan) -> str:
    return rendered(found, "text").splitlines()[0]


def test_what_nothing_is_known_against_is_clean(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    found = scanned(checkout, screen=screening())
    assert [(one.name, one.version, one.layers, one.result) for one in found.distributions] == [
        ("requests", "1.0", ("web",), Result.CLEAN),
        ("six", "1.0", ("web",), Result.CLEAN),
    ]
    assert (found.exit_code, found.warnings, found.counting) == (0, (), ())
    assert first_line(found) == (
        f"Security scan of web for {HERE}: nothing to act on: 2 distributions and no known vulnerability, no "
        "suspicious file."
    )
    assert "Asked: pip-audit asked osv.example; safety asked its database (of 2026-11-01; free for all)." in rendered(
        found, "text"
    )


def test_what_both_say_is_one_finding_with_all_names(checkout: Checkout, index: Index) -> None:
    """pip-audit puts documents together and loses names: the documents themselves have them."""
    built(checkout, index, web="requests==1.0\n")
    ends = ({"introduced": "0"}, {"fixed": "1.2"})
    documents = [
        document("PYSEC-1", "requests", *ends, aliases=["GHSA-1"]),
        document("GHSA-1", "requests", *ends, aliases=["CVE-1"], severity=SEVERE, summary="It leaks"),
    ]
    found = scanned(
        checkout,
        source=source(*documents),
        said={"requests": [Reported("PYSEC-1", (), ("1.1",), "words")]},
        screen=screening(by_safety("70000", "CVE-1", level="low", score=2.0), by_safety("70001", "CVE-2")),
    )
    one, other = found.vulnerabilities
    assert (one.id, one.aliases) == ("PYSEC-1", ("CVE-1", "GHSA-1", "SAFETY-70000"))
    assert (one.found_by, one.level, one.score) == (("pip-audit", "safety"), Level.HIGH, 7.5)
    assert (one.fixed, one.summary) == ("1.2", "It leaks")
    assert (other.id, other.aliases, other.found_by, other.level) == (
        "SAFETY-70001",
        ("CVE-2",),
        ("safety",),
        Level.UNKNOWN,
    )
    assert found.exit_code == 3
    assert "1 of 1 distribution with 2 known vulnerabilities (1 high, 1 of unknown severity)." in first_line(found)


def test_two_documents_are_one_by_a_name_that_only_safety_knows(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")
    documents = [
        document("PYSEC-1", "requests", {"introduced": "0"}, {"fixed": "1.2"}, aliases=["CVE-1"]),
        document("GHSA-1", "requests", {"introduced": "0"}, {"fixed": "1.3"}, aliases=["CVE-2"], severity=SEVERE),
    ]
    said = {"requests": [Reported("PYSEC-1"), Reported("GHSA-1")]}
    found = scanned(checkout, source=source(*documents), said=said, screen=screening(by_safety("7", "CVE-1", "CVE-2")))
    (one,) = found.vulnerabilities
    assert (one.id, one.aliases) == ("PYSEC-1", ("CVE-1", "CVE-2", "GHSA-1", "SAFETY-7"))
    assert (one.fixed, one.level) == ("1.3", Level.HIGH)
    assert not one.affects("1.3")


@pytest.mark.parametrize(
    ("events", "program", "fixed"),
    [
        # Several ranges: pip-audit takes the first fix, which is below the version at hand.
        ([("introduced", "0"), ("fixed", "0.9"), ("introduced", "1.0"), ("fixed", "1.4")], "0.9", "1.4"),
        # 1.1 fixes one range and is in another.
        ([("introduced", "0"), ("fixed", "1.1"), ("introduced", "1.1"), ("fixed", "1.5")], "1.1", "1.5"),
        # The document knows no fix, and does not rule out the program's.
        ([("introduced", "0"), ("last_affected", "1.0")], "1.0.1", "1.0.1"),
        ([("introduced", "0")], "1.1", None),
    ],
)
def test_the_fix_is_the_lowest_above_that_no_range_has(
    checkout: Checkout, index: Index, events: list[tuple[str, str]], program: str, fixed: str | None
) -> None:
    built(checkout, index, web="requests==1.0\n")
    known = document("PYSEC-1", "requests", *({kind: version} for kind, version in events))
    said = {"requests": [Reported("PYSEC-1", (), (program,))]}
    (one,) = scanned(checkout, source=source(known), said=said).vulnerabilities
    assert one.fixed == fixed


def test_without_an_advisory_the_programs_words_count(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")

    def broken(name: str, version: str) -> Any:
        raise ExternalError("osv.example answers /v1/query with HTTP 500.", "Later.")

    said = {"requests": [Reported("PYSEC-1", ("CVE-1",), ("0.9", "1.2"), "It leaks")]}
    found = scanned(checkout, source=source(details=broken), said=said, fail_on=Level.CRITICAL)
    (one,) = found.vulnerabilities
    assert (one.level, one.fixed, one.summary, one.aliases) == (Level.UNKNOWN, "1.2", "It leaks", ("CVE-1",))
    assert one.standing.counts  # unknown counts above every threshold
    assert found.exit_code == 4
    assert [(gap.by, gap.what, gap.reason, gap.hint) for gap in found.not_scanned] == [
        ("the advisory database", ("requests 1.0",), "osv.example answers /v1/query with HTTP 500", "Later.")
    ]


def test_what_pip_audit_calls_clean_is_asked_for_again(checkout: Checkout, index: Index) -> None:
    """It takes an answer that is malformed for one that nothing is known."""
    built(checkout, index, web="requests==1.0\nsix==1.0\nurllib3==1.0\n")
    known = parse_advisory(document("PYSEC-1", "requests", {"introduced": "0"}, {"fixed": "1.2"}, severity=SEVERE))
    asked: list[str] = []

    def details(name: str, version: str) -> Any:
        asked.append(name)
        if name == "six":
            raise ExternalError("osv.example does not answer as OSV does: an object was expected.", "Check it.")
        return (known,) if name == "requests" else ()

    found = scanned(checkout, source=source(details=details), said={"urllib3": "no answer"})
    assert sorted(asked) == ["requests", "six"]
    (one,) = found.vulnerabilities
    assert (one.id, one.level, one.fixed, one.found_by) == ("PYSEC-1", Level.HIGH, "1.2", ("the advisory database",))
    assert {entry.name: (entry.result, entry.reasons) for entry in found.distributions} == {
        "requests": (Result.VULNERABLE, ()),
        "six": (
            Result.NOT_SCANNED,
            ("the advisory database: osv.example does not answer as OSV does: an object was expected",),
        ),
        "urllib3": (Result.NOT_SCANNED, ("pip-audit: no answer",)),
    }
    assert found.exit_code == 4
    assert "not scanned by the advisory database: six 1.0 of web: osv.example does not answer" in rendered(
        found, "text"
    )


def test_a_distribution_in_two_layers_is_there_once(checkout: Checkout, index: Index) -> None:
    built(checkout, index, api="requests==1.0\nsix==2.0\n", web="requests==1.0\n")
    asked: list[list[Pin]] = []

    def screen(pins: Iterable[Pin]) -> SafetyAnswer:
        asked.append(sorted(pins))
        return screening()(pins)

    found = scanned(checkout, said={"requests": [Reported("PYSEC-1")]}, screen=screen)
    assert asked == [[("requests", "1.0"), ("six", "2.0")]]
    assert [(one.name, one.layers) for one in found.distributions] == [("requests", ("api", "web")), ("six", ("api",))]
    (one,) = found.vulnerabilities
    assert one.layers == ("api", "web")


def test_an_exception_of_one_layer_leaves_it_counting_in_the_other(checkout: Checkout, index: Index) -> None:
    built(checkout, index, api="requests==1.0\n", web="requests==1.0\n")
    exemptions = (Exemption("CVE-1", "not reached", TODAY, "web's layer.toml", "web"),)
    said = {"requests": [Reported("PYSEC-1", ("CVE-1",))]}
    found = scanned(checkout, said=said, exemptions=exemptions)
    assert [(one.layers, one.standing) for one in found.vulnerabilities] == [
        (("api",), Standing.COUNTS),
        (("web",), Standing.EXEMPT),
    ]
    assert found.exit_code == 3
    found = scanned(checkout, "web", said=said, exemptions=exemptions)
    assert (found.exit_code, found.warnings) == (0, ())
    assert "no known vulnerability, no suspicious file but 1 accepted by exceptions." in first_line(found)
    assert f"accepted until {TODAY}, not reached" in rendered(found, "text")


def test_an_exception_is_called_unused_only_where_all_was_looked_at(checkout: Checkout, index: Index) -> None:
    built(checkout, index, api="requests==1.0\n", web="six==1.0\n")
    exemptions = (Exemption("CVE-1", "not reached", TODAY, "invoke.yaml"),)
    (said,) = scanned(checkout, exemptions=exemptions).warnings
    assert said.startswith("invoke.yaml: the exception for CVE-1 matches nothing")
    assert scanned(checkout, "web", exemptions=exemptions).warnings == ()
    assert scanned(checkout, exemptions=exemptions, said={"six": "no answer"}).warnings == ()


# ---- what could not be looked at ----


def test_what_was_found_is_shown_with_what_was_not_scanned(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\nurllib3==1.0\n")
    said: Said = {"requests": [Reported("PYSEC-1")], "six": "no answer", "urllib3": "no answer"}
    found = scanned(checkout, said=said)
    assert found.exit_code == 4
    assert [(one.name, one.result, one.reasons) for one in found.distributions] == [
        ("requests", Result.VULNERABLE, ()),
        ("six", Result.NOT_SCANNED, ("pip-audit: no answer",)),
        ("urllib3", Result.NOT_SCANNED, ("pip-audit: no answer",)),
    ]
    text = rendered(found, "text")
    assert "NOT ALL COULD BE SCANNED, so nothing here is known to be clean; to act on: 1 of 3" in text.splitlines()[0]
    assert "PYSEC-1" in text
    assert text.count("no answer") == 1
    assert "not scanned by pip-audit: six 1.0, urllib3 1.0 of web: no answer" in text


def test_a_source_that_can_not_be_asked_is_one_reason(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="".join(f"d{number}==1.0\n" for number in range(6)))
    found = scanned(checkout, source=source(problem="osv.example can't be reached", hint="Check it."))
    text = rendered(found, "text")
    assert "not scanned by pip-audit: d0 1.0, d1 1.0, d2 1.0, d3 1.0 and 2 more of web: osv.example can't" in text
    assert "  Check it." in text.splitlines()
    assert "Asked:" not in text
    assert found.exit_code == 4


def test_a_program_that_can_not_be_had_leaves_the_rest(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")
    write(tree_of(checkout), "key.txt", KEY, "requests")
    found = scanned(checkout, audit=Skipped("audit", "", "its environment can't be made", "Check uv."))
    assert found.exit_code == 4
    assert [(one.by, one.reason, one.hint) for one in found.not_scanned] == [
        ("pip-audit", "its environment can't be made", "Check uv.")
    ]
    assert [one.id for one in found.suspicions] == ["secret:key.txt", TREE_CHANGED]


def test_safetys_silence_is_no_pass(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    silent = Skipped("safety", "", "not scanned by safety: it can't be reached", "--skip-safety")
    found = scanned(checkout, screen=lambda pins: silent)
    assert found.exit_code == 4
    assert {one.result for one in found.distributions} == {Result.NOT_SCANNED}
    text = rendered(found, "text")
    assert "not scanned by safety: requests 1.0, six 1.0 of web: it can't be reached\n  --skip-safety" in text
    assert text.count("not scanned by safety") == 1


def test_where_safety_is_optional_its_silence_is_a_warning(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    found = scanned(checkout, screen=screening(six="left out"), safety_optional=True)
    assert found.exit_code == 0
    assert found.warnings == ("not scanned by safety: six 1.0 of web: left out (it is optional here)",)


def test_a_layer_that_is_not_built_is_not_scanned(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")
    checkout.layer("more", "")
    found = scanned(checkout)
    assert found.exit_code == 4
    text = rendered(found, "text")
    command = "inv build --layer more" + "".join(f" {part}" for part in flags_for(checkout.project.default_target))
    assert f"not scanned: more is not built for {HERE}\n  {command}\n" in text
    assert "Asked: pip-audit asked osv.example." in text
    assert "Asked:" not in rendered(scanned(checkout, "more"), "text")


def test_a_build_that_is_not_of_its_lock_is_told(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    make_wheel(index.folder, "requests", "1.2")
    checkout.layer("web", "requests==1.2\nsix==1.0\n")
    checkout.lock(HERE)
    found = scanned(checkout)
    assert found.warnings == (
        "the build of web was scanned, and its lock says otherwise now of requests: "
        + " ".join(["inv build --layer web", *flags_for(checkout.project.default_target)]),
    )
    assert [(one.name, one.version) for one in found.distributions] == [("requests", "1.0"), ("six", "1.0")]


def test_what_lies_in_the_tree_is_scanned_and_not_what_should(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    tree = tree_of(checkout)
    next(tree.glob("six-*.dist-info/METADATA")).unlink()
    extra = tree / "extra-3.0.dist-info"
    extra.mkdir()
    (extra / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 3.0\n")
    asked: list[Pin] = []

    def screen(pins: Iterable[Pin]) -> SafetyAnswer:
        asked.extend(sorted(pins))
        return screening()(pins)

    found = scanned(checkout, screen=screen)
    assert asked == [("extra", "3.0"), ("requests", "1.0")]
    assert {one.name: one.reasons for one in found.distributions} == {
        "extra": (),
        "requests": (),
        "six": ("pip-audit: its dist-info has no METADATA",),
    }
    assert found.exit_code == 4


def test_a_record_that_can_not_be_read(checkout: Checkout, index: Index) -> None:
    """The files are suspicious, and the licences not known: no crash, and no pass where licences are banned."""
    built(checkout, index, web="requests==1.0\n")
    next(tree_of(checkout).glob("*.dist-info/RECORD")).write_bytes(b"\xff\xfe\n")
    found = scanned(checkout)
    assert "record" in {one.suspect.kind for one in found.suspicions}
    assert found.exit_code == 3
    assert scanned(checkout, deny=("GPL-3.0-only",)).exit_code == 4


# ---- licences ----


def test_licences(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    for name, licence in (("requests", "GPL-3.0-only"), ("six", "MIT")):
        (path,) = tree_of(checkout).glob(f"{name}-*.dist-info/METADATA")
        path.write_text(f"{path.read_text()}License-Expression: {licence}\n")
    exemptions = tuple(
        Exemption(f"changed:{name}-1.0.dist-info/METADATA", "the test's", TODAY, "") for name in ("requests", "six")
    )
    assert scanned(checkout, exemptions=exemptions).exit_code == 0
    found = scanned(checkout, exemptions=exemptions, deny=("GPL-*",))
    assert found.exit_code == 3
    assert first_line(found).endswith("to act on: 1 distribution under a licence that is banned.")
    assert "licence: web: requests 1.0 is under GPL-3.0-only" in rendered(found, "text")
    said = {"requests": "MIT", "six": "MIT"}
    assert scanned(checkout, exemptions=exemptions, deny=("GPL-*",), known_licences=said).exit_code == 0
    with pytest.raises(ConfigurationError, match="matches no identifier"):
        scanned(checkout, deny=("GPL3",))


def test_a_licence_that_can_not_be_told_is_no_pass(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="six==1.0\n")
    found = scanned(checkout, deny=("GPL-*",))
    assert found.exit_code == 4
    assert "NOT ALL COULD BE SCANNED" in first_line(found)


# ---- what it looks like ----

AWS_ID, AWS_SECRET = "AKIA" + "Q7ZL5WXK2N3MPR4T", "q9Zx8Yw7Vu6Ts5Rr4Qq3Pp2Oo1Nn0Mm9Ll8Kk7J" + "j"
KEY_BODY = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"[shift:] for shift in range(12))
KEY = f"-----BEGIN PRIVATE KEY-----\n{KEY_BODY}\n-----END PRIVATE KEY-----\n".encode()


def with_secrets(checkout: Checkout, index: Index) -> list[str]:
    """A layer with credentials in innocent files; what must not be repeated anywhere."""
    built(checkout, index, web="requests==1.0\n")
    tree = tree_of(checkout)
    aws = f"[default]\naws_access_key_id = {AWS_ID}\naws_secret_access_key = {AWS_SECRET}\n"
    write(tree, "requests_data/settings.txt", aws.encode(), "requests")
    write(tree, "requests_data/notes.md", b"\n\n" + KEY, "requests")
    return [AWS_ID, AWS_SECRET, *KEY_BODY.splitlines()]


@pytest.mark.parametrize("form", FORMATS)
def test_secrets_are_told_and_never_repeated(checkout: Checkout, index: Index, form: str) -> None:
    planted = with_secrets(checkout, index)
    text = rendered(scanned(checkout), form, verbose=True)
    assert "settings.txt" in text
    assert "notes.md" in text
    assert "private key" in text
    assert not [secret for secret in planted if secret in text]


def test_suspicious_files_by_place(checkout: Checkout, index: Index) -> None:
    with_secrets(checkout, index)
    found = scanned(checkout)
    place = checkout.project.relative(tree_of(checkout))
    assert {(one.file, one.suspect.line) for one in found.suspicions} == {
        (place, 0),  # it is not the tree that was built
        (f"{place}/requests_data/notes.md", 3),
        (f"{place}/requests_data/settings.txt", 2),
        (f"{place}/requests_data/settings.txt", 3),
    }
    text = rendered(found, "text")
    assert f"critical: web: {place}/requests_data/notes.md:3: a private key" in text
    assert "What to do about a secret" in text
    assert found.exit_code == 3
    exemptions = tuple(
        Exemption(id_, "revoked", TODAY, "")
        for id_ in ("secret:requests_data/notes.md", "secret:requests_data/settings.txt", TREE_CHANGED)
    )
    assert scanned(checkout, exemptions=exemptions).exit_code == 0


@pytest.mark.parametrize("form", FORMATS)
def test_what_others_wrote_moves_no_cursor_and_makes_no_link(checkout: Checkout, index: Index, form: str) -> None:
    built(checkout, index, web="requests==1.0\n")
    tree = tree_of(checkout)
    for name in (b"esc\x1b[2J\nnext.txt", b"no-utf8-\xff.txt", b"[a](http:x)|`.txt"):
        with open(os.path.join(os.fsencode(tree), name), "wb") as file:
            file.write(b"x")
    reported = Reported("PYSEC-1", (), (), "words \x1b[31m<img src=x> | [click](http://elsewhere.example) " + "x" * 200)
    text = rendered(scanned(checkout, said={"requests": [reported]}), form, verbose=True)
    assert "\x1b" not in text
    assert text.encode("utf-8")
    if form == "markdown":
        assert re.findall(r"(?<!\\)\]\((.*?)\)", text) == ["https://osv.dev/vulnerability/PYSEC-1"]
        assert not re.search(r"(?<!\\)<", text)
        assert all(line.count("|") - line.count("\\|") == 8 for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_a_name_begins_no_line(checkout: Checkout, index: Index, form: str) -> None:
    built(checkout, index, web="requests==1.0\n")
    (tree_of(checkout) / "x\nAsked: nobody.\r\u2028warning: all is well\n").write_bytes(b"x")
    missing = Skipped("safety", "", "no\nAsked: nobody.", "hint\nAsked: nobody.")
    lines = rendered(scanned(checkout, screen=lambda pins: missing), form, verbose=True).splitlines()
    assert [line for line in lines if line.startswith("Asked:")] == ["Asked: pip-audit asked osv.example."]
    assert not [line for line in lines if line.startswith("warning: all")]


def test_who_found_it_is_said_in_each_form(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")
    found = scanned(
        checkout, said={"requests": [Reported("PYSEC-1", ("CVE-1",))]}, screen=screening(by_safety("7", "CVE-1"))
    )
    for form in ("text", "json", "markdown", "sarif"):
        assert re.search(r"pip-audit\W+safety", rendered(found, form)), form


def test_who_was_asked_can_be_told_elsewhere() -> None:
    assert asked_lines(source(notes=("old\ndata",), date=NOW)) == [
        "warning: old\\ndata",
        "Advisories are those of osv.example (newest advisory: 2026-11-25).",
    ]
    assert asked_lines(source(problem="it can't be reached")) == []


def test_what_it_took_to_open_the_source_is_among_the_times(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")
    found = scanned(checkout, seconds={"opening the source": 1.5})
    assert "opening the source: 1.50 s" in rendered(found, "text", verbose=True)
    assert {"pip-audit", "advisories", "opening the source"} <= set(found.seconds)


def test_a_table_cuts_long_words_and_names_a_distribution_once(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\n")
    said = {"requests": [Reported(f"PYSEC-{number}", (f"CVE-{number}",), ("1.2",), "long " * 60) for number in (1, 2)]}
    text = rendered(scanned(checkout, said=said), "text")
    assert text.count("requests 1.0") == 1
    assert text.count("CVE-") == 2
    assert max(len(line.split("pip-audit")[-1].strip()) for line in text.splitlines() if "CVE-" in line) <= 80
    assert "What to do: inv update --security" in text


def test_as_json(checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="requests==1.0\nsix==1.0\n")
    write(tree_of(checkout), "key.txt", KEY, "six")
    known = document("GHSA-1", "requests", {"introduced": "0"}, {"fixed": "1.2"}, aliases=["CVE-1"], severity=SEVERE)
    exemptions = (Exemption("CVE-1", "not reached", TODAY, "invoke.yaml"),)
    found = scanned(
        checkout,
        source=source(known),
        said={"requests": [Reported("GHSA-1")], "six": "no answer"},
        exemptions=exemptions,
    )
    document_ = scan_document(found)
    assert json.loads(rendered(found, "json")) == json.loads(json.dumps(document_))
    (one,) = document_["vulnerabilities"]
    assert one == {
        "id": "GHSA-1",
        "aliases": ["CVE-1"],
        "name": "requests",
        "version": "1.0",
        "layers": ["web"],
        "severity": "high",
        "score": 7.5,
        "fixed": "1.2",
        "summary": "",
        "url": "https://osv.dev/vulnerability/GHSA-1",
        "found_by": ["pip-audit"],
        "standing": "exempt",
        "exception": {"reason": "not reached", "expires": str(TODAY), "where": "invoke.yaml"},
    }
    assert document_["distributions"][1] == {
        "name": "six",
        "version": "1.0",
        "layers": ["web"],
        "result": "not scanned",
        "reasons": ["pip-audit: no answer"],
    }
    assert [(one["id"], one["path"], one["line"]) for one in document_["suspects"]] == [
        ("secret:key.txt", f"{checkout.project.relative(tree_of(checkout))}/key.txt", 1),
        (TREE_CHANGED, checkout.project.relative(tree_of(checkout)), None),
    ]
    assert document_["exit_code"] == 4


def test_what_the_documentation_says_of_the_json(checkout: Checkout, index: Index) -> None:
    """Lists that are described in one line of docs/json.md have the keys that it names."""
    with_secrets(checkout, index)
    found = scanned(
        checkout,
        said={"requests": [Reported("PYSEC-1")]},
        screen=screening(six="left out"),
        deny=("GPL-*",),
        exemptions=(Exemption("PYSEC-1", "r", TODAY, "w"),),
    )
    text = (REPOSITORY / "docs" / "json.md").read_text()
    (section,) = [part for part in text.split("\n## ") if part.startswith("security-scan\n")]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    whole = scan_document(found)
    assert set(rows) == set(whole)
    for key in ("source", "safety", "distributions", "vulnerabilities", "suspects", "licences", "not_scanned"):
        entry = whole[key][0] if isinstance(whole[key], list) else whole[key]
        assert set(entry) <= set(re.findall(r"`(\w+)`", rows[key])), key
    exception = whole["vulnerabilities"][0]["exception"]
    assert set(exception) <= set(re.findall(r"`(\w+)`", rows["vulnerabilities"]))


def test_as_sarif(checkout: Checkout, index: Index) -> None:
    with_secrets(checkout, index)
    known = document("GHSA-1", "requests", {"introduced": "0"}, {"fixed": "1.2"}, severity=SEVERE, summary="It leaks")
    found = scanned(
        checkout, source=source(known), said={"requests": [Reported("GHSA-1")]}, screen=screening(six="left")
    )
    (run,) = json.loads(rendered(found, "sarif"))["runs"]
    rules = [result["ruleId"] for result in run["results"]]
    assert rules == ["GHSA-1", "suspect/changed", "suspect/secret", "suspect/secret", "suspect/secret"]
    locations = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    place = checkout.project.relative(tree_of(checkout))
    assert locations == {
        f"layers/web/locks/{HERE}.txt",
        place,
        f"{place}/requests_data/notes.md",
        f"{place}/requests_data/settings.txt",
    }
    assert run["invocations"][0]["executionSuccessful"] is False
    region = run["results"][0]["locations"][0]["physicalLocation"]["region"]
    lock = (checkout.root / "layers" / "web" / "locks" / f"{HERE}.txt").read_text().splitlines()
    assert lock[region["startLine"] - 1].startswith("requests==1.0")
    exempt = scanned(
        checkout,
        source=source(known),
        said={"requests": [Reported("GHSA-1")]},
        exemptions=(Exemption("GHSA-1", "r", TODAY, ""),),
    )
    (run,) = json.loads(rendered(exempt, "sarif"))["runs"]
    assert "GHSA-1" not in {result["ruleId"] for result in run["results"]}


# ---- who is asked ----

ADVISORIES = [
    document(
        "PYSEC-9", "thing", {"introduced": "0"}, {"fixed": "2.0"}, aliases=["CVE-9"], severity=SEVERE, summary="S"
    ),
    document("GHSA-9", "thing", {"introduced": "0"}, {"fixed": "2.0"}, aliases=["CVE-9"]),
    document("GHSA-8", "mild", {"introduced": "0"}, {"fixed": "2.0"}, severity=MILD),
]


def store(tmp_path: Path, *documents: Document, name: str = "store") -> Path:
    path = tmp_path / name / "pypi.sqlite"
    path.parent.mkdir()
    import_archive(io.BytesIO(archive([*documents, KNOWN])), path, source="tests", now=NOW)
    return path


def test_the_local_database_says_how_old_it_is(tmp_path: Path) -> None:
    fresh = document("PYSEC-9", "thing", {"introduced": "0"}, modified=(NOW - timedelta(days=6)).isoformat())
    old = document("PYSEC-9", "thing", {"introduced": "0"}, modified=(NOW - timedelta(days=8)).isoformat())
    with opened("local", "", store(tmp_path, fresh), NOW) as found:
        assert (found.name, found.date, found.notes, found.problem) == ("local", NOW - timedelta(days=6), (), "")
    with opened("local", "", store(tmp_path, old, name="old"), NOW) as found:
        (note,) = found.notes
        assert "8 days old" in note
    with opened("local", "", tmp_path / "none.sqlite", NOW) as found:
        assert found.problem == "There is no local database of advisories"
        assert "inv advisories-update" in found.hint


def test_a_local_database_that_is_no_copy_of_osvs_is_a_problem(tmp_path: Path) -> None:
    path = store(tmp_path, *ADVISORIES)
    connection = sqlite3.connect(path)
    gone = json.dumps({**KNOWN, "withdrawn": "2024-01-01T00:00:00Z"}).encode()
    connection.execute("UPDATE advisories SET document = ? WHERE id = ?", (zlib.compress(gone), KNOWN["id"]))
    connection.commit()
    connection.close()
    with opened("local", "", path, NOW) as found:
        assert "is no copy of OSV's data: it has no advisory about jinja2 2.4.1" in found.problem
        assert "inv advisories-update" in found.hint
    with serve(ADVISORIES, "down") as osv, opened("auto", osv.url, path, NOW) as found:
        assert "is no copy of OSV's data" in found.problem
    with opened("pypi", "", path, NOW) as found:
        assert found.details is None


def test_auto_takes_the_service_and_the_local_database_when_it_can_not_be_had(tmp_path: Path) -> None:
    local = store(tmp_path, *ADVISORIES)
    with serve(ADVISORIES) as osv, opened("auto", osv.url, local, NOW) as found:
        assert (found.name, found.problem, found.notes) == ("osv", "", ())
    with serve(ADVISORIES, "down") as osv:
        with opened("auto", osv.url, local, NOW) as found:
            assert (found.name, found.problem) == ("local", "")
            assert found.notes[0].startswith("the local database was asked, since the service could not be: 127.0.0.1:")
        with opened("auto", osv.url, tmp_path / "none.sqlite", NOW) as found:
            assert "can't be reached" in found.problem
            assert "There is no local database" in found.problem
        with opened("osv", osv.url, local, NOW) as found:
            assert (found.name, bool(found.problem)) == ("osv", True)


def test_an_address_that_is_none_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError), opened("osv", "http://osv.example", tmp_path / "none", NOW):
        pass


@pytest.mark.parametrize("has_store", [True, False])
def test_pypi_says_where_its_severities_are_from(tmp_path: Path, has_store: bool) -> None:
    path = store(tmp_path, *ADVISORIES) if has_store else tmp_path / "none.sqlite"
    with opened("pypi", "", path, NOW) as found:
        assert (found.name, found.query_url, found.details is not None) == ("pypi", None, has_store)
        assert "severities" in found.notes[0]
    with pytest.raises(ExternalError, match="mine"), opened("pypi", "", path, NOW):
        raise ExternalError("mine", "")  # what fails while it is open is not taken for its own


# ---- usage ----


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"source": "elsewhere"}, "--source: 'elsewhere' is not one of auto, osv, pypi, local."),
        ({"fail_on": "severe"}, "--fail-on: 'severe' is not one of low, medium, high, critical, any."),
        ({"format": "xml"}, "--format: 'xml' is not one of text, json, markdown, sarif."),
        ({"output": "../scan.txt"}, "--output: '../scan.txt' is not a file below the checkout."),
        ({"output": "/tmp/scan.txt"}, "--output: '/tmp/scan.txt' is not a file below the checkout."),
        ({"output": ""}, "--output: '' is not a file below the checkout."),
        ({"output": "layers"}, "--output: 'layers' is not a file below the checkout."),
        ({"output": "layers/web/new.txt"}, "--output: 'layers/web/new.txt' is no place for a report."),
        ({"output": "reports/../dist/web.zip"}, "--output: 'reports/../dist/web.zip' is no place for a report."),
        ({"output": ".layerkit/scan.txt"}, "--output: '.layerkit/scan.txt' is no place for a report."),
        ({"output": "tasks.py"}, "--output: 'tasks.py' is no place for a report."),
        ({"output": "template.yaml"}, "--output: 'template.yaml' is there already."),
        ({"layer": ["nobody"]}, "nobody"),
    ],
)
def test_wrong_usage(call: Caller, checkout: Checkout, flags: dict[str, Any], said: str) -> None:
    checkout.layer("web", "")
    (checkout.root / "template.yaml").write_text("mine")
    done = call("security-scan", **flags)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""
    assert (checkout.root / "template.yaml").read_text() == "mine"


def test_an_output_through_a_link_out_of_the_checkout_is_refused(
    call: Caller, checkout: Checkout, tmp_path: Path
) -> None:
    checkout.layer("web", "")
    (checkout.root / "reports").symlink_to(tmp_path)
    assert call("security-scan", output="reports/scan.txt").code == 2
    assert not (tmp_path / "scan.txt").exists()


def test_without_pip_audit_the_rest_is_scanned(call: Caller, checkout: Checkout, index: Index, cache: Path) -> None:
    """The index of these tests has none, so its environment can't be made in an empty cache."""
    planted = with_secrets(checkout, index)
    (cache / "environments").unlink()
    done = call("security-scan", source="local", skip_safety=True, **FOR_HERE)
    assert done.code == 4
    assert "NOT ALL COULD BE SCANNED" in done.out.splitlines()[0]
    assert "not scanned by pip-audit: requests 1.0 of web: the environment of audit can't be made" in done.out
    assert "a private key" in done.out
    assert not [secret for secret in planted if secret in done.out + done.err]


# ---- the real pip-audit ----


@pytest.fixture(scope="module")
def pip_audit(caches: dict[str, str]) -> Iterator[None]:
    """Its environment, from the real index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERKIT_CACHE_DIR", caches["LAYERKIT_CACHE_DIR"])
        environment(NAME, requirements_of(NAME), REPOSITORY, lambda text: None)
        yield


def scan_with(call: Caller, url: str, **flags: Any) -> Any:
    flags = {"skip_safety": True, **FOR_HERE, **flags}
    return call("security-scan", settings={"osv_url": url}, **flags)


@pytest.mark.online
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("down", "can't be reached: Connection refused"),
        ("404", "answers /v1/query with HTTP 404"),
        ("500", "answers /v1/query with HTTP 500"),
        ("malformed", "does not answer as OSV does: it is not JSON"),
        ("slow", "has not answered after 10 s"),
        ("empty", "knows no advisory about jinja2 2.4.1"),
        ("short", "broke off in the middle"),
    ],
)
def test_a_service_that_is_no_good_makes_nothing_clean(
    pip_audit: None, call: Caller, checkout: Checkout, index: Index, mode: Mode, reason: str
) -> None:
    built(checkout, index, web="thing==1.0\nsafe==1.0\n")
    with serve(ADVISORIES, mode) as osv:
        done = scan_with(call, osv.url, source="osv", json=True)
    assert done.code == done.document["exit_code"] == 4
    assert {one["result"] for one in done.document["distributions"]} == {"not scanned"}
    (gap,) = done.document["not_scanned"]
    assert (gap["by"], gap["what"]) == ("pip-audit", ["safe 1.0", "thing 1.0"])
    assert reason in gap["reason"]
    assert gap["hint"]


@pytest.mark.online
def test_a_service_that_goes_down_in_the_middle(pip_audit: None, checkout: Checkout, index: Index, cache: Path) -> None:
    from layerkit.auditing import Auditor

    built(checkout, index, web="thing==1.0\n")
    python = environment(NAME, requirements_of(NAME), REPOSITORY, lambda text: None)
    with serve(ADVISORIES) as osv, opened("osv", osv.url, cache / "none", NOW) as asked:
        osv.mode = "500"
        found = scanned(checkout, source=asked, audit=Auditor(python, asked.query_url).audit_trees)
    assert found.exit_code == 4
    (gap,) = found.not_scanned
    assert gap.reason == "the advisory service answered 500 Internal Server Error"
    assert "--source local" in gap.hint


@pytest.mark.online
@pytest.mark.parametrize("answer", [b"[]", b"null", b'{"vulns": [], "next_page_token": "1"}'])
def test_an_answer_that_pip_audit_takes_for_clean_is_not(
    pip_audit: None, checkout: Checkout, index: Index, cache: Path, answer: bytes
) -> None:
    from layerkit.auditing import Auditor

    built(checkout, index, web="thing==1.0\n")
    python = environment(NAME, requirements_of(NAME), REPOSITORY, lambda text: None)
    with serve(ADVISORIES) as osv, opened("osv", osv.url, cache / "none", NOW) as asked:
        osv.mode, osv.malformed = "malformed", answer
        found = scanned(checkout, source=asked, audit=Auditor(python, asked.query_url).audit_trees)
    assert found.exit_code == 4
    assert [(gap.by, gap.what) for gap in found.not_scanned] == [("the advisory database", ("thing 1.0",))]


@pytest.mark.online
def test_the_program_as_a_process(pip_audit: None, checkout: Checkout, index: Index, cache: Path) -> None:
    """Vulnerable, with thresholds and exceptions from invoke.yaml and layer.toml; then clean."""
    built(checkout, index, api="mild==1.0\n", web="thing==1.0\nsafe==1.0\n")
    with serve(ADVISORIES) as osv:
        env = {"INVOKE_LAYERKIT_OSV_URL": osv.url}

        def inv(*words: str) -> tuple[int, str, str]:
            done = checkout.inv("security-scan", "--skip-safety", *FLAGS, *words, env=env)
            return done.returncode, done.stdout, done.stderr

        code, out, _ = inv("--verbose")
        first, *rest = out.splitlines()
        assert code == 3
        assert first == (
            f"Security scan of api, web for {HERE}: to act on: 2 of 3 distributions with 2 known vulnerabilities "
            "(1 high, 1 low)."
        )
        thing = next(line for line in rest if "PYSEC-9" in line)
        assert thing.split() == ["thing", "1.0", "web", "high", "7.5", "PYSEC-9", "CVE-9", "2.0", "pip-audit", "S"]
        assert "safe 1.0 (web): clean" in rest
        assert any(line.startswith("pip-audit: ") and line.endswith(" s") for line in rest)

        code, out, _ = inv("--fail-on", "high")
        assert (code, "1 of 3 distributions with 1 known" in out, "less severe than what counts" in out) == (
            3,
            True,
            True,
        )
        assert inv("--fail-on", "critical")[0] == 0

        until = (datetime.now(UTC) + timedelta(days=30)).date()
        toml = 'stack = "web"\n[[exceptions]]\nid = "CVE-9"\nreason = "not reached"\nexpires = {}\n'
        (checkout.root / "layers/web/layer.toml").write_text(toml.format(until))
        yaml = 'layerkit:\n  exceptions:\n    - {id: ghsa-8, reason: mild, expires: "2020-01-01"}\n'
        (checkout.root / "invoke.yaml").write_text(yaml)
        code, out, _ = inv()
        assert code == 3
        assert f"accepted until {until}, not reached" in out
        assert "no longer accepted since 2020-01-01" in out
        assert "exception 1: the exception for ghsa-8 expired on 2020-01-01, so that it counts again" in out
        (checkout.root / "invoke.yaml").write_text(yaml.replace("2020-01-01", str(until)))
        code, out, _ = inv("--format", "markdown", "--output", "reports/scan.md")
        assert code == 0
        assert "nothing to act on: 3 distributions and no known vulnerability, no suspicious file but 2 accepted" in out
        assert out.endswith("Written to reports/scan.md.\n")
        assert "| thing 1.0 | web | high 7.5 |" in (checkout.root / "reports/scan.md").read_text()

        done = checkout.inv("security-scan", "--skip-safety", *FLAGS, "--json", env=env)
        assert json.loads(done.stdout)["exit_code"] == done.returncode == 0
        assert [question["package"]["name"] for _, question in osv.asked].count(
            "safe"
        ) == 12  # each time by pip-audit, and by the scan


@pytest.mark.online
def test_offline(pip_audit: None, call: Caller, checkout: Checkout, index: Index, tmp_path: Path) -> None:
    """The archive is imported; pip-audit asks it, and so it does in the place of a service that can't be reached."""
    built(checkout, index, web="thing==1.0\nsafe==1.0\n")
    (tmp_path / "all.zip").write_bytes(archive([*ADVISORIES, KNOWN]))
    done = call("advisories-update", from_=str(tmp_path / "all.zip"), json=True)
    assert (done.code, done.document["advisories"]) == (0, 4)
    assert done.document["date"] == "2024-01-02T03:04:05+00:00"
    done = scan_with(call, "", source="local")
    assert done.code == 3
    assert "PYSEC-9" in done.out
    assert "warning: the newest advisory of the local database is" in done.out
    assert "Asked: pip-audit asked the local database (newest advisory: 2024-01-02)." in done.out
    with serve(ADVISORIES, "down") as osv:
        done = scan_with(call, osv.url)
    assert done.code == 3
    assert "warning: the local database was asked, since the service could not be: 127.0.0.1:" in done.out


@pytest.mark.online
def test_a_marker_that_leaves_this_python_out_hides_nothing(
    pip_audit: None, call: Caller, checkout: Checkout, index: Index, tmp_path: Path
) -> None:
    """What is scanned is what the layer has for its target, whatever Python pip-audit runs on."""
    target = Target("python3.12", HERE.architecture)
    built(checkout, index, target, web="thing==1.0; python_version == '3.12'\n")
    (metadata,) = checkout.project.tree_path("web", target).glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text() + "Requires-Python: ==3.12.*\n")
    with serve(ADVISORIES) as osv:
        done = scan_with(call, osv.url, runtime=target.runtime, json=True)
    assert [one["id"] for one in done.document["vulnerabilities"]] == ["PYSEC-9"]
    assert [one["path"] for one in done.document["suspects"]] == [
        f".layerkit/trees/{target}/web/python/thing-1.0.dist-info/METADATA"
    ]


@pytest.mark.online
def test_a_distribution_without_metadata(pip_audit: None, call: Caller, checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="thing==1.0\nsafe==1.0\n")
    next(tree_of(checkout).glob("safe-*.dist-info/METADATA")).unlink()
    with serve(ADVISORIES) as osv:
        done = scan_with(call, osv.url)
    assert done.code == 4
    assert "not scanned by pip-audit: safe 1.0 of web: its dist-info has no METADATA" in done.out
    assert "PYSEC-9" in done.out


@pytest.mark.online
def test_the_sarif_of_a_scan_is_valid_by_the_schema(
    pip_audit: None, call: Caller, checkout: Checkout, index: Index, schema: Any
) -> None:
    from jsonschema import Draft7Validator, FormatChecker

    built(checkout, index, api="thing==1.0\n")
    with_secrets(checkout, index)
    with serve(ADVISORIES) as osv:
        done = scan_with(call, osv.url, format="sarif", output="reports/scan.sarif")
    assert done.code == 3
    log = json.loads((checkout.root / "reports/scan.sarif").read_text())
    assert [error.message for error in Draft7Validator(schema, format_checker=FormatChecker()).iter_errors(log)] == []
    assert {result["ruleId"] for result in log["runs"][0]["results"]} == {
        "PYSEC-9",
        "suspect/changed",
        "suspect/secret",
    }


# ---- advisories-update ----


def test_a_broken_archive_changes_nothing(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(archive([*ADVISORIES, KNOWN]))
    assert call("advisories-update", from_=str(tmp_path / "all.zip")).code == 0
    before = store_path().read_bytes()
    broken = {
        "cut.zip": archive(ADVISORIES)[:-40],
        "other.zip": archive([{"id": "x"}]),
        "small.zip": archive(ADVISORIES),
        "none.zip": b"<html>",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        done = call("advisories-update", from_=str(tmp_path / name), json=True)
        assert done.code == done.document["error"]["exit_code"] == 4
        assert "can't be imported" in done.document["error"]["message"]
    assert store_path().read_bytes() == before
    assert sorted(path.name for path in store_path().parent.iterdir()) == ["lock", "pypi.sqlite"]


@pytest.mark.parametrize("path", ["", "not/there.zip"])
def test_an_archive_that_is_not_there_is_wrong_usage(call: Caller, path: str) -> None:
    assert call("advisories-update", from_=path).code == 2


def test_the_published_archive_is_downloaded(call: Caller) -> None:
    with serve(ADVISORIES) as osv:
        done = call("advisories-update", settings={"advisories_url": osv.archive_url}, json=True)
        assert (done.code, done.document["advisories"]) == (0, 4)
        assert done.document["source"] == osv.archive_url
        before = store_path().read_bytes()
        osv.mode = "404"
        done = call("advisories-update", settings={"advisories_url": osv.archive_url})
    assert done.code == 4
    assert "HTTP 404" in done.err
    assert store_path().read_bytes() == before


@pytest.mark.parametrize("address", ["https://me:hunter2@osv.example/all.zip", "https://osv..example/?key=hunter2"])
def test_an_address_is_checked_before_it_is_shown(call: Caller, address: str) -> None:
    done = call("advisories-update", settings={"advisories_url": address})
    assert done.code == 2
    assert "osv" in done.err
    assert "hunter2" not in done.out + done.err


def test_a_key_in_an_address_is_neither_shown_nor_kept(call: Caller) -> None:
    with serve(mode="malformed") as osv:  # which gives the same answer whatever the query
        osv.malformed = archive([*ADVISORIES, KNOWN])
        done = call("advisories-update", settings={"advisories_url": f"{osv.archive_url}?key=hunter2"}, json=True)
        assert (done.code, done.document["source"]) == (0, osv.archive_url)
    assert f"downloading {osv.archive_url} ..." in done.err
    assert "hunter2" not in done.out + done.err
    assert b"hunter2" not in store_path().read_bytes()


# ---- sbom ----


def test_a_bill_of_materials_is_written_and_the_same_each_time(call: Caller, checkout: Checkout, index: Index) -> None:
    built(checkout, index, api="six==1.0\n", web="thing==1.0\nsafe==1.0\n")
    done = call("sbom", json=True, **FOR_HERE)
    assert done.code == 0
    names = [f"reports/sbom/{name}-{HERE}.cdx.json" for name in ("api", "web")]
    assert done.document["files"] == names
    before = [(checkout.root / name).read_bytes() for name in names]
    assert [len(json.loads(content)["components"]) for content in before] == [1, 2]
    shutil.rmtree(checkout.root / "reports")
    assert call("sbom", **FOR_HERE).code == 0
    assert [(checkout.root / name).read_bytes() for name in names] == before


def test_a_bill_of_materials_elsewhere_or_of_nothing(call: Caller, checkout: Checkout, index: Index) -> None:
    built(checkout, index, web="thing==1.0\n")
    for output in ("../sbom", "", "layers/web/requirements.txt", "layers/web", "dist", ".layerkit/x"):
        assert call("sbom", output=output, **FOR_HERE).code == 2
    checkout.layer("more", "")
    done = call("sbom", **FOR_HERE)
    assert done.code == 3
    assert "more is not built" in done.err
    assert "inv build --layer more" in done.err
    assert not (checkout.root / "reports").exists()
    assert call("sbom", layer=["web"], output="here", **FOR_HERE).code == 0
    assert [path.name for path in (checkout.root / "here").iterdir()] == [f"web-{HERE}.cdx.json"]


# ---- update --security and outdated, with the real scan ----


@pytest.mark.online
def test_what_a_scan_finds_is_fixed_built_and_scanned_again_or_nothing_changes(
    pip_audit: None, checkout: Checkout, index: Index
) -> None:
    for version in ("1.0", "1.5", "2.0", "2.1", "3.0"):
        make_wheel(index.folder, "thing", version)
    checkout.layer("web", "# what the web needs\nthing==1.0  # for now\n")
    requirements = checkout.root / "layers" / "web" / "requirements.txt"
    later = document("PYSEC-10", "thing", {"introduced": "2.0"}, {"fixed": "2.1"})
    with serve([*ADVISORIES, later]) as osv:
        settings = {
            "INVOKE_LAYERKIT_OSV_URL": osv.url,
            "INVOKE_LAYERKIT_RUNTIME": HERE.runtime,
            "INVOKE_LAYERKIT_ARCHITECTURE": HERE.architecture,
        }
        assert checkout.inv("build", env=settings).returncode == 0
        before = checkout.snapshot()
        (one,) = json.loads(checkout.inv("outdated", "--json", env=settings).stdout)["distributions"]
        assert (one["locked"], one["resolves"], one["newest"], one["fixes"]) == (
            "1.0",
            "3.0",
            "3.0",
            ["GHSA-9", "PYSEC-9"],
        )
        osv.mode = "500"
        refused = checkout.inv("update", "--security", "--skip-safety", "--source", "osv", env=settings)
        assert refused.returncode == 4
        assert "not everything could be scanned" in refused.stderr
        assert checkout.snapshot() == before
        osv.mode = ""
        dry = checkout.inv("update", "--security", "--skip-safety", "--dry-run", env=settings)
        assert (dry.returncode, checkout.snapshot()) == (0, before), dry.stderr
        done = checkout.inv("update", "--security", "--skip-safety", env=settings)
        assert done.returncode == 0, done.stderr
        assert "thing 1.0 -> 2.1: PYSEC-9" in done.stdout  # 2.0 has an advisory of its own
        assert requirements.read_text() == "# what the web needs\nthing==2.1  # for now\n"
        clean = checkout.inv("security-scan", "--skip-safety", env=settings)
        assert clean.returncode == 0, clean.stdout
        again = checkout.inv("update", "--security", "--skip-safety", env=settings)
        assert again.returncode == 0
    assert requirements.read_text() == "# what the web needs\nthing==2.1  # for now\n"


def test_security_and_a_package_do_not_go_together(checkout: Checkout) -> None:
    checkout.layer("web", "")
    done = checkout.inv("update", "--security", "--package", "thing")
    assert done.returncode == 2
    assert "give one of them" in done.stderr
