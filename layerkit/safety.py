"""safety as a second opinion: the real program in an environment of its own, run as a process and never imported.

With an API key it is its ``scan``, whose database its owner sells; without one it is ``check`` on the free database.
Both get a requirements file with the exact versions, a home of their own that is thrown away, and leave two things
there: a report, and the database that they fetched. What they print and their exit codes are not the answer: ``scan``
ends with 0 in spite of vulnerabilities whose severity nobody has said, and both do, finding nothing, where the database
is of the right version and has no vulnerabilities in it. So the database is looked at as well, and each distribution
that it says is affected has to be in the report.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from layerkit.model import Skipped, normalized
from layerkit.processes import Contained, run_contained, without_secrets
from layerkit.virtualenvs import module_command, tool_environment

NAME = "safety"
"""The environment that has safety."""

Pin = tuple[str, str]
"""A distribution's normalized name and its version."""

_SCHEMA = "2.0.0"
"""The version of the database's form that is understood here, which is safety 3.8.1's own."""

_SCALE = ((3.9, "low"), (6.9, "medium"), (8.9, "high"), (10.0, "critical"))
"""CVSS 3.1, section 5: the highest score of each level."""


@dataclass(frozen=True)
class SafetyFinding:
    """A vulnerability of a distribution in safety's database."""

    name: str
    version: str
    id: str
    """safety's own number for it."""
    aliases: tuple[str, ...]
    """``CVE-...`` and safety's ``PVE-...``, sorted."""
    summary: str
    level: str
    """``low``, ``medium``, ``high``, ``critical`` or ``unknown``: the free database has no severities."""
    score: float | None
    """The CVSS base score, where the database has one."""
    fixed: tuple[str, ...]
    url: str


@dataclass(frozen=True)
class Database:
    """What safety's database says of itself; a text is empty where it says nothing."""

    date: str
    """ISO 8601: when it was last updated."""
    licence: str
    packages: int
    """How many distributions it has vulnerabilities of."""


@dataclass(frozen=True)
class SafetyAnswer:
    """What safety found, and what it could not be asked about."""

    command: str
    """``scan`` or ``check``."""
    findings: tuple[SafetyFinding, ...]
    not_scanned: Mapping[Pin, str]
    """Distribution -> the reason."""
    database: Database


class Unusable(ValueError):
    """A run gave no answer that can be believed; the text says why."""


@dataclass(frozen=True)
class Safety:
    """safety in its environment."""

    python: Path
    api_key: str = field(default="", repr=False)
    """Makes it a ``scan``. It is passed in the environment: the command can be read by others on this machine."""
    seconds: float = 180.0
    """How long a run may take."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """safety's own variables, to reach its services another way: SAFETY_AUTH_SERVER_URL, SAFETY_CA_BUNDLE, ..."""
    free_database: Path | None = None
    """A folder with the free database for ``check``; None: safety fetches it."""
    project: str = "lambda-layers"
    """What a scan is filed under in the account of the key, where its owner has safety's platform turned on."""

    @classmethod
    def of(cls, python: Path, environment: Mapping[str, str]) -> Safety:
        """safety with the key and the addresses that this process's ``environment`` has for it."""
        variables = {name: environment[name] for name in _PASSED_ON if environment.get(name)}
        return cls(python, environment.get("SAFETY_API_KEY", "").strip(), variables=variables)

    def screen(self, distributions: Iterable[Pin]) -> SafetyAnswer | Skipped:
        """Ask about ``distributions`` (normalized names), each of which is found in, clean, or in ``not_scanned``.

        Skipped when there is no answer that can be believed. Raises ExternalError when safety can't be started.
        """
        pins = set(distributions)
        odd = {pin: reason for pin in pins if (reason := _not_to_be_asked(pin))}
        asked = sorted(pins - odd.keys())
        try:
            with tempfile.TemporaryDirectory(prefix="layerkit-") as scratch:
                report, short, full = self._run(asked, Path(scratch))
            found, missing = _account(asked, reported(report), short)
        except Unusable as reason:
            hint = _HINTS.get(str(reason), _TRY_AGAIN)
            return Skipped("safety", "", f"not scanned by safety: {self._discreet(str(reason))}", hint)
        findings = tuple(_finding(pin, own, full) for pin, ids in sorted(found.items()) for own in sorted(ids))
        return SafetyAnswer(self._command, findings, {**odd, **missing}, _described(short))

    @property
    def _command(self) -> str:
        return "scan" if self.api_key else "check"

    def _run(self, pins: Iterable[Pin], scratch: Path) -> tuple[Any, Mapping[str, Any], Mapping[str, Any]]:
        """The report, and the two files of the database: which versions are affected, and by what."""
        target, report = scratch / "target" / Path(self.project).name, scratch / "report.json"
        target.mkdir(parents=True)
        listed = target / "requirements.txt"
        listed.write_text("".join(f"{name}=={version}\n" for name, version in pins), encoding="utf-8")
        home = scratch / "home"
        command = [*module_command(self.python, "safety"), "--disable-optional-telemetry", self._command]
        if self.api_key:
            command += ["--target", target, "--output", "json", "--save-as", "json", report]
        else:
            # With a cache, which the home makes one of this run alone, it leaves the database that it used.
            command += ["--file", listed, "--output", "json", "--save-json", report, "--cache", "86400"]
            command += ["--db", self.free_database] if self.free_database else []
        variables = {
            # Without it safety makes a folder in /etc where it may.
            "SAFETY_SYSTEM_CONFIG_PATH": str(home / "system"),
            "SAFETY_REQUEST_TIMEOUT": str(max(1, min(30, int(self.seconds)))),
            "SAFETY_STAGE": "cicd",  # what a key is for
            **self.variables,
        }
        if self.api_key:
            variables["SAFETY_API_KEY"] = self.api_key
        environment = tool_environment(home) | variables
        done = run_contained(command, cwd=target, env=environment, seconds=self.seconds)
        if done.code not in _ENDED_WELL:
            raise Unusable(self._explained(done))
        cached = _read(home / ".safety" / _SCHEMA.replace(".", "") / "cache.json", "the database that it used")
        short, full = (_part_of(cached, name, "db") for name in ("insecure.json", "insecure_full.json"))
        return _read(report, "its report"), _checked(short), full

    def _explained(self, done: Contained) -> str:
        """Why a run ended without an answer."""
        if done.code is None:
            return f"it had not ended after {self.seconds:g} s"
        if done.code in _EXIT_CODES:
            return _EXIT_CODES[done.code]
        said = without_secrets(done.output)
        for pattern, reason in _SAID:
            if pattern.search(said):
                return reason
        lines = [line.strip() for line in said.splitlines() if re.search(r"\w", line)]
        ended = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
        return f"it failed ({ended}){': ' if lines else ''}{lines[-1][:200] if lines else ''}"

    def _discreet(self, text: str) -> str:
        return text.replace(self.api_key, "***") if self.api_key else text


_PASSED_ON = (
    "SAFETY_AUTH_SERVER_URL",
    "SAFETY_CA_BUNDLE",
    "SAFETY_DATA_API_BASE_URL",
    "SAFETY_PLATFORM_API_BASE_URL",
    "SAFETY_PLATFORM_URL",
    "SAFETY_PLATFORM_V2_URL",
    "SAFETY_SYSTEM_CONFIG_PATH",
    "SAFETY_TLS_MODE",
)
"""How safety reaches its services: what a user behind a proxy sets for it. A proxy is in the system configuration."""

_ENDED_WELL = (0, 64)
"""64: vulnerabilities were found."""

_EXIT_CODES = {
    65: "its service did not accept the API key",
    66: "its service takes no more requests for now",
    67: "its database was not found",
    68: "its database could not be had",
    69: "its database is malformed",
}

_TRY_AGAIN = "Run it again when its service can be reached, or do without it: --skip-safety."
_HINTS = {_EXIT_CODES[65]: "Check SAFETY_API_KEY; without it the free database is used."}

_SAID = (
    (re.compile(r"TooManyRequestsError|Too many requests"), _EXIT_CODES[66]),
    (re.compile(r"httpx\.\w*(Connect|Timeout|Network|Proxy|Protocol)\w*|RequestTimeoutError"), "it can't be reached"),
    (re.compile(r"NetworkConnectionError|unable to reach the server|request timed out"), "it can't be reached"),
    (re.compile(r"SSLCertificateError|SSL certificate"), "its service's certificate is not trusted"),
    (re.compile(r"Expecting value: line \d"), _EXIT_CODES[69]),
    (re.compile(r"safety\.errors\.\w+|has no attribute 'reason'"), "its service answered with an error"),
)
"""What a run says that failed with another exit code, as safety 3.8.1 words it."""


def _not_to_be_asked(pin: Pin) -> str:
    """Why nobody can be asked about a distribution; empty when somebody can."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", pin[0]):  # anything else is another line of requirements
        return f"{pin[0]!r} is not the name of a distribution"
    return "" if _version(pin) else f"its version {pin[1]!r} can't be compared with any (PEP 440)"


def _version(pin: Pin) -> Version | None:
    try:
        return Version(pin[1])
    except InvalidVersion:
        return None


# ---- the report ----


def reported(report: Any) -> dict[Pin, set[str]]:
    """The distributions in a report of ``check`` or ``scan``, each with the numbers of its vulnerabilities.

    One that a policy in an account of safety's ignores counts: exceptions are this project's own. Raises Unusable.
    """
    try:
        pairs = _of_scan(report) if "scan_results" in report else _of_check(report)
        found: dict[Pin, set[str]] = {}
        for raw, ids in pairs:
            name, _, version = raw.partition("==")
            found.setdefault((normalized(name.strip()), version.strip()), set()).update(ids)
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise Unusable("its report is not one that is known here") from error


def _of_check(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    packages = report["scanned_packages"].values()
    pairs: list[tuple[str, list[str]]] = [(one["raw"], []) for package in packages for one in package["requirements"]]
    found = [*report["vulnerabilities"], *report["ignored_vulnerabilities"]]
    pairs += [(f"{one['package_name']}=={one['analyzed_version']}", [str(one["vulnerability_id"])]) for one in found]
    return pairs


def _of_scan(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        (specification["raw"], [str(one["id"]) for one in specification["vulnerabilities"]["known_vulnerabilities"]])
        for project in report["scan_results"]["projects"]
        for file in project["files"]
        for dependency in file["results"]["dependencies"]
        for specification in dependency["specifications"]
    ]


def _account(
    pins: Iterable[Pin], found: Mapping[Pin, set[str]], short: Mapping[str, Any]
) -> tuple[dict[Pin, set[str]], dict[Pin, str]]:
    """What is known of each of ``pins``, and of which nothing is, with the reason."""
    known: dict[Pin, set[str]] = {}
    missing: dict[Pin, str] = {}
    for pin in pins:
        affected = _affected_by(pin, short)
        if pin not in found:
            missing[pin] = "safety left it out of its report"
        elif affected and not found[pin]:
            missing[pin] = f"safety's database says that {affected} is affected, and its report has nothing of that"
        else:
            known[pin] = found[pin]
    return known, missing


# ---- the database ----


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unusable(f"it left no trace of {what}") from error
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{what} can't be read") from error


def _part_of(content: Any, *path: str) -> Mapping[str, Any]:
    """An object inside of others; an empty one where there is none."""
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _checked(short: Mapping[str, Any]) -> Mapping[str, Any]:
    """The database's list of affected versions, when it is one: safety takes an empty one for "all is well"."""
    packages = short.get("vulnerable_packages")
    meta = short.get("meta")
    whole = (
        isinstance(meta, dict)
        and meta.get("schema_version") == _SCHEMA
        and isinstance(packages, dict)
        and all(isinstance(specs, list) and all(isinstance(spec, str) for spec in specs) for specs in packages.values())
    )
    if not whole:
        raise Unusable(_EXIT_CODES[69])
    if not packages:
        raise Unusable("its database is empty")
    return short


def _affected_by(pin: Pin, short: Mapping[str, Any]) -> str:
    """The range of the database that a distribution is in; empty where it is in none."""
    version = _version(pin)
    for spec in short["vulnerable_packages"].get(pin[0], []):
        try:
            if version is not None and SpecifierSet(spec).contains(version, prereleases=True):
                return f"{pin[0]}{spec}"
        except InvalidSpecifier as error:
            raise Unusable(_EXIT_CODES[69]) from error
    return ""


def _described(short: Mapping[str, Any]) -> Database:
    meta = short["meta"]
    date = str(meta.get("last_updated") or "")
    if not re.match(r"\d{4}-\d\d-\d\d", date) and isinstance(meta.get("timestamp"), int):
        date = datetime.fromtimestamp(meta["timestamp"], UTC).isoformat(timespec="seconds")
    return Database(date.replace(" ", "T", 1), str(meta.get("attribution") or ""), len(short["vulnerable_packages"]))


def _finding(pin: Pin, own: str, full: Mapping[str, Any]) -> SafetyFinding:
    """A vulnerability by its number, as the database has it."""
    entry, names = _entry(pin[0], own, full)
    aliases = tuple(sorted({name for name in names if re.fullmatch(r"[A-Z]+-[\w-]+", name)} - {own}))
    level, score = _severity(aliases, full)
    fixed = entry.get("fixed_versions")
    site, page = str(_part_of(full, "meta").get("base_domain") or ""), entry.get("more_info_path")
    return SafetyFinding(
        *pin,
        id=own or next(iter(aliases), "unnumbered"),
        aliases=aliases,
        summary=" ".join(str(entry.get("advisory") or "").split()),
        level=level,
        score=score,
        fixed=tuple(text for text in fixed if isinstance(text, str)) if isinstance(fixed, list) else (),
        url=f"{site}{page}" if page and site.startswith("https://") else "",
    )


def _entry(name: str, own: str, full: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    entries = _part_of(full, "vulnerable_packages").get(name)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("ids"), list):
            names = [str(one.get("id") or "") for one in entry["ids"] if isinstance(one, dict)]
            if own in names:
                return entry, names
    return {}, []


def _severity(aliases: Iterable[str], full: Mapping[str, Any]) -> tuple[str, float | None]:
    """The level and the CVSS score of the worst of ``aliases`` that the database has one of."""
    known = _part_of(full, "meta", "severities")
    scores = []
    for alias in aliases:
        severity = known.get(alias)
        for version in ("cvssv3", "cvssv2"):
            vector = severity.get(version) if isinstance(severity, dict) else None
            score = vector.get("base_score") if isinstance(vector, dict) else None
            if isinstance(score, int | float) and 0 <= score <= 10:
                scores.append(float(score))
                break
    if not scores:
        return "unknown", None
    return next(level for highest, level in _SCALE if max(scores) <= highest), max(scores)
