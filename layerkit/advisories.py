"""Published advisories: what a document in OSV's form says, and a database of them in the user's cache.

The rules of ranges and versions are those of the OSV schema (ossf.github.io/osv-schema, "Evaluation"), with versions
compared as PEP 440 has it. Where a range can't be understood in full, more counts as affected and never less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any

from packaging.version import Version

from layerkit.model import normalized


class Level(Enum):
    """How severe an advisory is, on the scale of CVSS 3 (also for scores of other versions of CVSS)."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"
    UNKNOWN = "unknown"
    """Nobody has said; it counts above every threshold."""

    def reaches(self, threshold: Level) -> bool:
        """Whether it counts where everything from ``threshold`` upwards does."""
        scale = list(Level)
        return scale.index(self) >= scale.index(threshold)


@dataclass(frozen=True)
class Affected:
    """What an advisory says of one distribution on PyPI."""

    name: str
    """Normalized."""
    ranges: tuple[tuple[str, str | None, bool], ...]
    """Affected from the first version on (``0``: from the beginning) up to the second, without it, or with it where
    the third is True (the last one affected, no fix known); None: there is no end."""
    versions: tuple[str, ...]
    """Versions that are affected besides, as they are written in the source."""
    fixed: tuple[str, ...] = ()
    """Every version that a range says is fixed, whether it ends one of ``ranges`` or not; the lowest first."""


@dataclass(frozen=True)
class Advisory:
    """One advisory, or several of one vulnerability as ``merge`` puts them together."""

    id: str
    """As its source calls it: ``PYSEC-2023-74``, ``GHSA-j8r2-6x86-q33q``."""
    aliases: tuple[str, ...]
    """The same vulnerability in other databases; sorted, without ``id``."""
    summary: str
    """One line of printable text."""
    level: Level
    score: float | None
    """The CVSS base score (0 to 10), where there is a vector."""
    vector: str
    """The CVSS vector that gave the score; empty where there is none."""
    affected: tuple[Affected, ...]
    url: str
    """A page for people."""
    modified: str
    """ISO 8601."""
    withdrawn: bool
    """Taken back by its source: it affects nothing."""

    @property
    def ids(self) -> frozenset[str]:
        """All its names."""
        return frozenset({self.id, *self.aliases})


# ---- what a document says ----

_ID = re.compile(r"[!-~]{1,200}")
_SUMMARY = 160

# The scale of CVSS 3.1, section 5: the highest score of each level. A score of 0.0 ("none") counts as low.
_SCALE = ((3.9, Level.LOW), (6.9, Level.MEDIUM), (8.9, Level.HIGH), (10.0, Level.CRITICAL))

# What the advisory databases of GitHub and PyPI write where they give no vector, or beside one.
_LABELS = {
    "LOW": Level.LOW,
    "MODERATE": Level.MEDIUM,
    "MEDIUM": Level.MEDIUM,
    "HIGH": Level.HIGH,
    "CRITICAL": Level.CRITICAL,
}


def parse_advisory(document: Mapping[str, Any]) -> Advisory:
    """What one OSV document says, of PyPI alone; ValueError, with the reason, for what is no such document.

    Of several severities the highest counts. One that can't be read is as if it were not there; then the label that
    GitHub's database gives counts, and without that the level is UNKNOWN.
    """
    expect(isinstance(document, Mapping), "it is not an object")
    schema = document.get("schema_version") or "1"
    expect(isinstance(schema, str) and schema.split(".")[0] == "1", f"its schema version {schema!r} is not known")
    own, modified = _text(document, "id"), _text(document, "modified")
    expect(_ID.fullmatch(own), "it has no id")
    moment(modified)
    aliases = _items(document, "aliases", str)
    entries = [entry for entry in _items(document, "affected", dict) if _on_pypi(entry)]
    level, score, vector = _severity(document, entries)
    return Advisory(
        id=own,
        aliases=tuple(sorted({alias for alias in aliases if _ID.fullmatch(alias)} - {own})),
        summary=one_line(_text(document, "summary") or _text(document, "details")),
        level=level,
        score=score,
        vector=vector,
        affected=tuple(map(_affected, entries)),
        url=f"https://osv.dev/vulnerability/{own}",
        modified=modified,
        withdrawn=document.get("withdrawn") is not None,
    )


def expect(condition: object, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _items(document: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """The list that ``document`` has for ``key``, each item of ``kind``; empty where it is left out."""
    items = document.get(key) or []
    expect(isinstance(items, list) and set(map(type, items)) <= {kind}, f"its {key!r} is malformed")
    return list(items)


def moment(text: str) -> datetime:
    """A time as RFC 3339 writes it, in UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("it does not say when it was modified") from error


def one_line(text: str) -> str:
    """The text of somebody else as one line that can be shown on a terminal."""
    shown = "".join(filter(str.isprintable, " ".join(text[: 4 * _SUMMARY].split())))
    return shown if len(shown) <= _SUMMARY else shown[: _SUMMARY - 1].rstrip() + "…"


def _on_pypi(entry: Mapping[str, Any]) -> bool:
    """Whether an item of ``affected`` is about PyPI; one without a package is about a repository's commits."""
    package = entry.get("package")
    if package is None:
        return False
    expect(isinstance(package, Mapping) and isinstance(package.get("ecosystem"), str), "a package has no ecosystem")
    return bool(package["ecosystem"].split(":")[0] == "PyPI")


def _affected(entry: Mapping[str, Any]) -> Affected:
    name = entry["package"].get("name")
    expect(isinstance(name, str) and name, "a package has no name")
    ranges: list[tuple[str, str | None, bool]] = []
    fixed: dict[str, Version] = {}
    for one in _items(entry, "ranges", dict):
        if one.get("type") != "GIT":
            timeline = _timeline(_items(one, "events", dict))
            ranges += _intervals(timeline)
            fixed.update((text, version) for version, kind, text in timeline if kind == "fixed")
    lowest_first = sorted(fixed, key=lambda text: (fixed[text], text))
    return Affected(normalized(name), tuple(ranges), tuple(_items(entry, "versions", str)), tuple(lowest_first))


def _timeline(events: Iterable[Mapping[str, Any]]) -> list[tuple[Version, str, str]]:
    """What one range says of versions, in their order: version, kind, and the version as it is written.

    An end that is no version ends nothing, and such a start is the beginning. ``limit`` is for commits: without it a
    stretch is longer, if anything.
    """
    timeline: list[tuple[Version, str, str]] = []
    for event in events:
        for kind in ("introduced", "fixed", "last_affected"):
            text = event.get(kind)
            if text is not None:
                expect(isinstance(text, str), f"the version of {kind!r} is no text")
                version = _version(text)
                if kind == "introduced" and (text == "0" or version is None):
                    timeline.append((_LOWEST, kind, "0"))
                elif version is not None:
                    timeline.append((version, kind, text))
    return sorted(timeline, key=lambda event: event[0])


def _intervals(timeline: Iterable[tuple[Version, str, str]]) -> Iterator[tuple[str, str | None, bool]]:
    """The affected stretches of one range."""
    start: str | None = None
    for _, kind, text in timeline:
        if kind == "introduced":
            start = text if start is None else start
        elif start is not None:
            yield (start, text, kind == "last_affected")
            start = None
    if start is not None:
        yield (start, None, False)


def _severity(document: Mapping[str, Any], entries: list[Any]) -> tuple[Level, float | None, str]:
    """Level, base score and vector: the highest of the document's own and of those of its packages."""
    scored: list[tuple[float, str]] = []
    for holder in (document, *entries):
        severities = holder.get("severity")
        for severity in severities if isinstance(severities, list) else []:
            vector = _text(severity, "score") if isinstance(severity, Mapping) else ""
            score = _score(vector)
            if score is not None:
                scored.append((score, vector))
    if scored:
        score, vector = max(scored)
        return next(level for highest, level in _SCALE if score <= highest), score, vector
    of_database = document.get("database_specific")
    label = _text(of_database, "severity") if isinstance(of_database, Mapping) else ""
    return _LABELS.get(label.upper(), Level.UNKNOWN), None, ""


@lru_cache(maxsize=4096)
def _score(vector: str) -> float | None:
    """The base score of a CVSS vector of version 2, 3 or 4; None for what is none."""
    from cvss import CVSS2, CVSS3, CVSS4
    from cvss.exceptions import CVSSError

    kind = CVSS4 if vector.startswith("CVSS:4") else CVSS3 if vector.startswith("CVSS:") else CVSS2
    try:
        return float(kind(vector).base_score)
    except CVSSError:
        return None


# ---- what it means for a version ----

_LOWEST = Version("0.dev0")


@lru_cache(maxsize=16384)
def _version(text: str) -> Version | None:
    """``text`` as PEP 440 reads it; None where it does not."""
    try:
        return Version(text)
    except ValueError:  # InvalidVersion is one, and so is what Python says of a number with thousands of digits
        return None


def applies(advisory: Advisory, name: str, version: str) -> bool:
    """Whether the advisory affects a distribution at a version; a withdrawn one affects nothing.

    A local version (``2.0.1+cpu``) is compared as what it was made from, unless the other one is local too. A version
    that is not PEP 440 is found where it is listed, and where no version is free.
    """
    if advisory.withdrawn:
        return False
    name, installed = normalized(name), _version(version)
    return any(_covers(one, version, installed) for one in advisory.affected if one.name == name)


def _covers(affected: Affected, text: str, installed: Version | None) -> bool:
    if text in affected.versions:
        return True
    if installed is None:
        return any(start == "0" and end is None for start, end, _ in affected.ranges)
    if any(_inside(installed, *interval) for interval in affected.ranges):
        return True
    listed = (_version(one) for one in affected.versions)
    return any(one is not None and _seen_from(one, installed) == one for one in listed)


def _inside(installed: Version, start: str, end: str | None, inclusive: bool) -> bool:
    first, last = _version(start), _version(end) if end is not None else None
    if start != "0" and first is not None and _seen_from(first, installed) < first:
        return False
    if last is None:
        return True
    seen = _seen_from(last, installed)
    return seen < last or (inclusive and seen == last)


def _seen_from(other: Version, installed: Version) -> Version:
    """What to compare with ``other``."""
    return installed if other.local or not installed.local else Version(installed.public)


def fixed_above(advisory: Advisory, name: str, version: str) -> str | None:
    """The lowest version above ``version`` that the advisory says is fixed and no range has; None: none known."""
    installed = _version(version)
    if installed is None:
        return None
    ends = {
        end: found
        for one in advisory.affected
        if one.name == normalized(name)
        for end in one.fixed
        if (found := _version(end)) is not None
    }
    for end in sorted(ends, key=lambda end: (ends[end], end)):
        if ends[end] > installed and not applies(advisory, name, end):
            return end
    return None


# ---- several documents of one vulnerability ----

# PyPI's own database goes first, since pip-audit names an advisory so; a CVE's number alone says the least.
_PREFERENCE = ("PYSEC-", "GHSA-", "", "CVE-")


def _preference(advisory: Advisory) -> tuple[int, str]:
    ranks = [rank for rank, prefix in enumerate(_PREFERENCE) if prefix and advisory.id.startswith(prefix)]
    return (ranks[0] if ranks else _PREFERENCE.index(""), advisory.id)


def merge(advisories: Iterable[Advisory]) -> tuple[Advisory, ...]:
    """Advisories of one vulnerability as one: those that an id or alias connects, near or far; sorted by id.

    It has the highest severity that is known in the group, and affects what any of the group affects, so that a fix is
    one for all of them. Withdrawn advisories add their names to a group that has others, and nothing else.
    """
    group_of: dict[str, list[Advisory]] = {}
    for advisory in advisories:
        connected = {id(group_of[name]): group_of[name] for name in advisory.ids if name in group_of}
        group = [*(other for one in connected.values() for other in one), advisory]
        group_of.update((name, group) for other in group for name in other.ids)
    groups = {id(group): group for group in group_of.values()}
    return tuple(sorted(map(_merged, groups.values()), key=lambda advisory: advisory.id))


def _merged(group: list[Advisory]) -> Advisory:
    group = sorted(group, key=_preference)
    standing = [advisory for advisory in group if not advisory.withdrawn] or group
    scale = [Level.UNKNOWN, *Level]
    severe = max(standing, key=lambda one: (scale.index(one.level), one.score or 0.0))
    return replace(
        standing[0],
        aliases=tuple(sorted(frozenset().union(*(one.ids for one in group)) - {standing[0].id})),
        # A title is shorter than the beginning of a text, and says more.
        summary=min((one.summary for one in standing if one.summary), key=len, default=""),
        level=severe.level,
        score=severe.score,
        vector=severe.vector,
        affected=tuple(dict.fromkeys(affected for one in standing for affected in one.affected)),
        modified=max((one.modified for one in standing), key=moment),
    )
