"""pip-audit over built trees: each distribution is clean, vulnerable, or not scanned with the reason, exactly once.

pip-audit is run as a process on a folder (``--path``) with one ``dist-info`` for each distribution that the trees
carry, whose METADATA is reduced to name and version. That is what it would take from the trees themselves, and what
it would get wrong there is settled before: a METADATA that can't be read ends a whole run, one that is missing passes
as clean, a distribution in two layers is asked about twice. Neither markers nor the Python that runs it matter.

Its exit code is no answer. It is 0 when everything was skipped and 1 for a failed connection as for a vulnerability;
warnings say that an advisory was left out. So the JSON is read, and what it does not say in full is not scanned.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from layerkit.model import normalized
from layerkit.processes import Contained, run_contained, threads, without_secrets
from layerkit.virtualenvs import module_command, tool_environment

NAME = "audit"
"""The environment that has pip-audit."""

Pin = tuple[str, str]
"""A distribution's normalized name and its version."""

_SMALLEST = 8
"""Below this many distributions another process costs more than it saves: starting one takes about a second."""

_NOT_LISTED = ("argparse", "python", "wsgiref")
"""pip takes these for parts of Python's standard library and leaves them out of its lists, pip-audit's source."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class Reported:
    """An advisory as pip-audit reports it."""

    id: str
    aliases: tuple[str, ...] = ()
    """Sorted, without ``id``. Not all of them: of two advisories that it puts together pip-audit loses names."""
    fixed: tuple[str, ...] = ()
    """Versions that fix it, says pip-audit: wrong where an advisory has several affected ranges, so a last resort."""
    summary: str = ""


@dataclass(frozen=True)
class Audited:
    """What is known of one distribution: advisories, none, or why it was not scanned (empty when it was)."""

    name: str
    version: str
    advisories: tuple[Reported, ...] = ()
    not_scanned: str = ""
    by_service: bool = False
    """Whether it was not scanned since the service gave no answer, so that another one may."""


@dataclass(frozen=True)
class _Failure:
    """Why a run gave no answer; ``lasting`` when another run with fewer distributions would fare no better."""

    reason: str
    lasting: bool = False
    by_service: bool = False
    """Whether the service is the reason."""
    about_one: bool = False
    """Whether it is what happened with one question of the run, which then asked no more."""


_Answer = Mapping[Pin, Audited]


@dataclass(frozen=True)
class Auditor:
    """pip-audit in its environment, and whom it asks."""

    python: Path
    osv: str | None
    """The address of a query endpoint of OSV's kind; None: PyPI's own service is asked."""
    jobs: int = 4
    seconds: float = 120.0
    """How long all of an audit may take."""
    wait: int = 15
    """How many seconds pip-audit waits for one answer of the service."""

    def audit_trees(self, trees: Mapping[Path, Iterable[Pin]]) -> dict[Path, tuple[Audited, ...]]:
        """What each tree carries, by name: the distributions that are expected in it, and all others found there.

        What several trees carry at the same version is asked about once.
        """
        carried = {tree: carried_by(tree, expected) for tree, expected in trees.items()}
        asked = {pin for found in carried.values() for pin, reason in found.items() if not reason}
        answers = self.audit(asked)
        return {
            tree: tuple(
                Audited(*pin, not_scanned=reason) if reason else answers[pin] for pin, reason in sorted(found.items())
            )
            for tree, found in carried.items()
        }

    def audit(self, distributions: Iterable[Pin]) -> dict[Pin, Audited]:
        """Ask about ``distributions`` (normalized names), in several processes side by side; each is in the answer."""
        pins = sorted(set(distributions))
        answers = {pin: Audited(*pin, not_scanned=reason) for pin in pins if (reason := _not_to_be_asked(*pin))}
        until = time.monotonic() + self.seconds
        chunks = chunks_of([pin for pin in pins if pin not in answers], self.jobs)
        with tempfile.TemporaryDirectory(prefix="layerkit-") as scratch, threads(self.jobs) as pool:
            for answer in pool.map(lambda chunk: self._settle(chunk, Path(scratch), until), chunks):
                answers.update(answer)
        return answers

    def _settle(self, pins: Sequence[Pin], scratch: Path, until: float) -> _Answer:
        answer = self._ask(pins, scratch, until)
        return self._narrow(pins, answer, scratch, until) if isinstance(answer, _Failure) else answer

    def _narrow(self, pins: Sequence[Pin], failure: _Failure, scratch: Path, until: float) -> _Answer:
        """Ask again by halves, since one odd answer ends a whole run. When both fail as well, it is not one."""
        if failure.lasting or len(pins) == 1:
            return _not_scanned(pins, failure)
        middle = len(pins) // 2
        halves = (pins[:middle], pins[middle:])
        answers = [self._ask(half, scratch, until) for half in halves]
        if all(isinstance(answer, _Failure) for answer in answers):
            return _not_scanned(pins, failure)
        settled: dict[Pin, Audited] = {}
        for half, answer in zip(halves, answers, strict=True):
            if isinstance(answer, _Failure):
                answer = self._narrow(half, answer, scratch, until)
            settled.update(answer)
        return settled

    def _ask(self, pins: Sequence[Pin], scratch: Path, until: float) -> _Answer | _Failure:
        """One run of pip-audit."""
        seconds = until - time.monotonic()
        late = _Failure(f"pip-audit had not ended after {self.seconds:g} s", lasting=True, by_service=True)
        if seconds <= 0:
            return late
        folder = Path(tempfile.mkdtemp(dir=scratch))
        _write_metadata(pins, folder / "audited")
        options: list[str | Path] = ["--path", folder / "audited", "--output", folder / "answer.json"]
        options += ["--format", "json", "--progress-spinner", "off", "--timeout", str(self.wait)]
        options += ["--cache-dir", folder / "cache", "--vulnerability-service", "osv" if self.osv else "pypi"]
        environment = tool_environment(folder / "home") | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1"}
        if self.osv:  # not in the command, which others can read: an address may have a password in it
            environment["PIP_AUDIT_OSV_URL"] = self.osv
        command = [*module_command(self.python, "pip_audit"), *options]
        done = run_contained(command, cwd=folder, env=environment, seconds=seconds)
        if done.code is None:
            return late
        try:
            return _read_run(done, (folder / "answer.json").read_text(encoding="utf-8"), pins)
        except FileNotFoundError:
            return _explained(done)


def _not_scanned(pins: Sequence[Pin], failure: _Failure) -> _Answer:
    others = failure.about_one and len(pins) > 1
    reason = f"{failure.reason}, about one of those that pip-audit was asking for at once" if others else failure.reason
    return {pin: Audited(*pin, not_scanned=reason, by_service=failure.by_service) for pin in pins}


# ---- what to ask about ----


def carried_by(tree: Path, expected: Iterable[Pin]) -> dict[Pin, str]:
    """The distributions expected in a tree or found there, each with why it can't be asked about, empty if it can."""
    found = dict(_found_in(tree))
    missing: dict[Pin, str] = {}
    for name, version in expected:
        pin = (normalized(name), version)
        others = [other for other in found if other[0] == pin[0]]
        if pin in found:
            continue
        same = next((other for other in others if _same(other[1], version)), None)
        if same:
            found[pin] = found.pop(same)
        elif others:
            missing[pin] = f"the tree has version {others[0][1]} in its place"
        else:
            missing[pin] = "the tree has no metadata of it"
    return found | missing


def _found_in(tree: Path) -> Iterator[tuple[Pin, str]]:
    for folder in sorted([*tree.glob("*.dist-info"), *tree.glob("*.egg-info")]):
        name, _, version = re.sub(r"(-py\d[\d.]*)?\.[a-z]+-info$", "", folder.name).rpartition("-")
        by_folder = (normalized(name), version)
        file = folder / ("METADATA" if folder.suffix == ".dist-info" else "PKG-INFO")
        if not folder.is_dir():  # an egg-info may be the file itself
            file = folder
        try:
            headers = HeaderParser().parsestr(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            yield by_folder, f"its {folder.suffix[1:]} has no {file.name}"
            continue
        pin = (normalized(str(headers.get("Name", ""))), str(headers.get("Version", "")))
        if folder.suffix == ".dist-info" and _spelled(pin) != _spelled(by_folder):
            said = " ".join(filter(None, pin))
            yield by_folder, f"its METADATA is that of {said}" if said else "its METADATA has no name and version"
        else:
            yield pin, ""


def _spelled(pin: Pin) -> Pin:
    """A pin as the name of a folder can have it: installers write ``+`` and ``-`` of a version in more than one way."""
    name, version = pin
    with suppress(InvalidVersion):
        version = str(Version(version))
    return name, re.sub(r"[^a-z0-9.]+", "-", version.lower())


def _same(one: str, other: str) -> bool:
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def _not_to_be_asked(name: str, version: str) -> str:
    """Why nobody can be asked about a distribution; empty when somebody can."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is not the name of a distribution"
    if name in _NOT_LISTED:
        return "pip takes it for a part of Python, so pip-audit does not see it"
    try:
        Version(version)
    except InvalidVersion:
        return f"its version {version!r} can't be compared with any (PEP 440)"
    return ""


def chunks_of(pins: Sequence[Pin], jobs: int) -> list[list[Pin]]:
    """``pins`` for at most ``jobs`` runs, each of which has every name once: several versions of one may need more."""
    size = max(_SMALLEST, -(-len(pins) // max(1, jobs)))
    chunks: list[dict[str, str]] = []
    for name, version in pins:
        chunk = next((chunk for chunk in chunks if name not in chunk and len(chunk) < size), None)
        if chunk is None:
            chunk = {}
            chunks.append(chunk)
        chunk[name] = version
    return [sorted(chunk.items()) for chunk in chunks]


def _write_metadata(pins: Sequence[Pin], folder: Path) -> None:
    for name, version in pins:
        info = folder / f"{name.replace('-', '_')}-{Version(version)}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


# ---- what was answered ----


def _read_run(done: Contained, text: str, pins: Sequence[Pin]) -> _Answer | _Failure:
    left_out = re.search(r"^WARNING:pip_audit\._service\S*?:(.*)$", done.output, re.MULTILINE)
    if left_out:
        reason = f"pip-audit left out an advisory that it can't read ({left_out[1].strip()[:200]})"
        return _Failure(reason, by_service=True, about_one=True)
    try:
        answer = read_answer(text, pins)
    except ValueError as error:
        return _Failure(f"pip-audit's answer can't be read: {error}")
    vulnerable = any(audited.advisories for audited in answer.values())
    return answer if done.code == 0 or (done.code == 1 and vulnerable) else _explained(done)


def read_answer(text: str, pins: Sequence[Pin]) -> dict[Pin, Audited]:
    """pip-audit's JSON for a run over ``pins``, each of which is in the result.

    What the answer skips or lacks is not scanned. ValueError for what is no such answer, or for one about others.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    entries = document.get("dependencies") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of dependencies")  # noqa: TRY004  (it is about the text)
    versions = dict(pins)
    answer: dict[Pin, Audited] = {}
    for entry in entries:
        _expect(isinstance(entry, dict) and isinstance(entry.get("name"), str), "it has a dependency without a name")
        name = normalized(entry["name"])
        _expect(name in versions, f"it has {name!r}, which was not asked about")
        pin = (name, versions[name])
        _expect(pin not in answer, f"it has {name} twice")
        answer[pin] = _read_entry(entry, *pin)
    left_out = "pip-audit left it out of its answer"
    return {pin: answer.get(pin) or Audited(*pin, not_scanned=left_out) for pin in pins}


def _expect(condition: object, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _read_entry(entry: Mapping[str, Any], name: str, version: str) -> Audited:
    if "skip_reason" in entry:
        # What it is about is at the end of PyPI's reason, and is known: without it, the reason is the same for all.
        reason = str(entry["skip_reason"]).removesuffix(f": {name} ({Version(version)})")
        return Audited(name, version, not_scanned=f"pip-audit skipped it: {reason}", by_service=True)
    if not isinstance(entry.get("version"), str) or not _same(entry["version"], version):
        return Audited(name, version, not_scanned=f"pip-audit answered for version {entry.get('version')}")
    _expect(isinstance(entry.get("vulns"), list), f"it does not say what is known of {name}")
    return Audited(name, version, tuple(_read_vulnerability(found, name) for found in entry["vulns"]))


def _read_vulnerability(found: Any, name: str) -> Reported:
    _expect(isinstance(found, dict), f"it has an advisory for {name} that is none")
    own, aliases, fixed = found.get("id"), found.get("aliases", []), found.get("fix_versions", [])
    _expect(isinstance(own, str) and own, f"it has an advisory without an id for {name}")
    for texts in (aliases, fixed):
        _expect(isinstance(texts, list) and all(isinstance(text, str) for text in texts), f"{own} is malformed")
    summary = " ".join(str(found.get("description") or "").split())
    return Reported(own, tuple(sorted(set(aliases) - {own})), tuple(fixed), summary)


# What the last line of a failed run says, as requests and pip-audit word it.
_UNREACHABLE = re.compile(
    r"requests\.exceptions\.(?:\w*Connection\w*|\w*Timeout|SSLError|ProxyError|ChunkedEncodingError|\w+Schema|\w+URL)"
    r"|Could not connect to|not redirecting properly"
)
_REFUSED = re.compile(r"requests\.exceptions\.HTTPError: (\d{3}) \w+ Error: ([^\n]*?)(?: for url|$)", re.MULTILINE)
_LASTING = {"401", "403", "405", "429"}


def _explained(done: Contained) -> _Failure:
    """What to say of a run that left no answer."""
    output = without_secrets(done.output).strip()
    last = output.splitlines()[-1].strip() if output else ""
    refused = _REFUSED.search(output)
    if refused:
        code, words = refused.groups()
        reason = f"the advisory service answered {code} {words}".strip()
        return _Failure(reason, lasting=code in _LASTING, by_service=True, about_one=True)
    if _UNREACHABLE.search(output):
        detail = re.search(r"\[Errno -?\d+\] ([^'\")\]\n]+)|(timed out)|(certificate verify failed)", output)
        what = next(filter(None, detail.groups())) if detail else last.partition(": ")[2][:200]
        return _Failure(f"the advisory service can't be reached ({what.strip()})", lasting=True, by_service=True)
    if "JSONDecodeError" in last:
        return _Failure("the advisory service's answer is not JSON", by_service=True, about_one=True)
    if re.match(r"(Key|Type|Attribute|Value|Index)Error\b|packaging\.version\.InvalidVersion", last):
        reason = f"the advisory service's answer is not one of its kind ({last[:200]})"
        return _Failure(reason, by_service=True, about_one=True)
    ended = f"signal {-done.code}" if done.code is not None and done.code < 0 else f"exit code {done.code}"
    return _Failure(f"pip-audit failed ({ended}){': ' if last else ''}{last[:200]}")
