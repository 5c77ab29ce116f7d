"""Published advisories: what a document in OSV's form says, and a database of them in the user's cache.

The rules of ranges and versions are those of the OSV schema (ossf.github.io/osv-schema, "Evaluation"), with versions
compared as PEP 440 has it. Where a range can't be understood in full, more counts as affected and never less.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from packaging.version import Version

from layerkit.errors import ConfigurationError, ExternalError
from layerkit.files import cache_folder, checkout_lock, sync_folder
from layerkit.model import MIB, normalized


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
    _expect(isinstance(document, Mapping), "it is not an object")
    schema = document.get("schema_version") or "1"
    _expect(isinstance(schema, str) and schema.split(".")[0] == "1", f"its schema version {schema!r} is not known")
    own, modified = _text(document, "id"), _text(document, "modified")
    _expect(_ID.fullmatch(own), "it has no id")
    _moment(modified)
    aliases = _items(document, "aliases", str)
    entries = [entry for entry in _items(document, "affected", dict) if _on_pypi(entry)]
    level, score, vector = _severity(document, entries)
    return Advisory(
        id=own,
        aliases=tuple(sorted({alias for alias in aliases if _ID.fullmatch(alias)} - {own})),
        summary=_line(_text(document, "summary") or _text(document, "details")),
        level=level,
        score=score,
        vector=vector,
        affected=tuple(map(_affected, entries)),
        url=f"https://osv.dev/vulnerability/{own}",
        modified=modified,
        withdrawn=document.get("withdrawn") is not None,
    )


def _expect(condition: object, reason: str) -> None:
    if not condition:
        raise ValueError(reason)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _items(document: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """The list that ``document`` has for ``key``, each item of ``kind``; empty where it is left out."""
    items = document.get(key) or []
    _expect(isinstance(items, list) and set(map(type, items)) <= {kind}, f"its {key!r} is malformed")
    return list(items)


def _moment(text: str) -> datetime:
    """A time as RFC 3339 writes it, in UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("it does not say when it was modified") from error


def _line(text: str) -> str:
    """The text of somebody else as one line that can be shown on a terminal."""
    shown = "".join(filter(str.isprintable, " ".join(text[: 4 * _SUMMARY].split())))
    return shown if len(shown) <= _SUMMARY else shown[: _SUMMARY - 1].rstrip() + "…"


def _on_pypi(entry: Mapping[str, Any]) -> bool:
    """Whether an item of ``affected`` is about PyPI; one without a package is about a repository's commits."""
    package = entry.get("package")
    if package is None:
        return False
    _expect(isinstance(package, Mapping) and isinstance(package.get("ecosystem"), str), "a package has no ecosystem")
    return bool(package["ecosystem"].split(":")[0] == "PyPI")


def _affected(entry: Mapping[str, Any]) -> Affected:
    name = entry["package"].get("name")
    _expect(isinstance(name, str) and name, "a package has no name")
    ranges: list[tuple[str, str | None, bool]] = []
    for one in _items(entry, "ranges", dict):
        if one.get("type") != "GIT":
            ranges += _intervals(_items(one, "events", dict))
    return Affected(normalized(name), tuple(ranges), tuple(_items(entry, "versions", str)))


def _intervals(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str | None, bool]]:
    """The affected stretches of one range.

    An end that is no version ends nothing, and such a start is the beginning. ``limit`` is for commits: without it a
    stretch is longer, if anything.
    """
    timeline: list[tuple[Version, str, str]] = []
    for event in events:
        for kind in ("introduced", "fixed", "last_affected"):
            text = event.get(kind)
            if text is not None:
                _expect(isinstance(text, str), f"the version of {kind!r} is no text")
                version = _version(text)
                if kind == "introduced" and (text == "0" or version is None):
                    timeline.append((_LOWEST, kind, "0"))
                elif version is not None:
                    timeline.append((version, kind, text))
    start: str | None = None
    for _, kind, text in sorted(timeline, key=lambda event: event[0]):
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
    """The lowest version above ``version`` that fixes a range of the advisory and is in no other; None: none known."""
    installed = _version(version)
    if installed is None:
        return None
    ends = {
        end: found
        for one in advisory.affected
        if one.name == normalized(name)
        for _, end, inclusive in one.ranges
        if end is not None and not inclusive and (found := _version(end)) is not None
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
        modified=max((one.modified for one in standing), key=_moment),
    )


# ---- the database ----

_APPLICATION = 0x4C41594B
_SCHEMA = 1
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE advisories (id TEXT PRIMARY KEY, modified TEXT NOT NULL, document BLOB NOT NULL);
CREATE TABLE packages (name TEXT, id TEXT, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE names (alias TEXT, id TEXT, PRIMARY KEY (alias, id)) WITHOUT ROWID;
"""
_RENEW = "Renew it: inv advisories-update, or inv advisories-update --from PATH for a copy of OSV's archive."


def store_path() -> Path:
    """Where the database of this user is, or would be."""
    return cache_folder() / "advisories" / "pypi.sqlite"


@dataclass(frozen=True)
class Edition:
    """What a database of advisories was made from."""

    count: int
    """How many advisories about PyPI it has, withdrawn ones among them."""
    date: datetime
    """The newest time that one of them was modified: how old the data is."""
    imported: datetime
    source: str
    """The path or the address it came from."""


class Store:
    """A database of advisories, opened; for several threads. Close it, or use it as a context."""

    def __init__(self, path: Path, connection: sqlite3.Connection, edition: Edition) -> None:
        self.path = path
        self.edition = edition
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Store:
        """The database at ``path``; ExternalError when there is none that can be used.

        It stays what it is now: an import puts another file in its place.
        """
        if not path.is_file():
            raise ExternalError("There is no local database of advisories.", _RENEW.replace("Renew", "Make"))
        with _readable(path):
            # It is never changed in place, so no file has to be written for locking it.
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, check_same_thread=False)
            try:
                return cls(path, connection, _edition(path, connection))
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        """How many advisories it has, withdrawn ones among them."""
        return self.edition.count

    @property
    def date(self) -> datetime:
        """How old the data is: the newest time that an advisory was modified (UTC)."""
        return self.edition.date

    def about(self, name: str) -> tuple[Advisory, ...]:
        """Every advisory about a distribution at any version, but for withdrawn ones; sorted by id."""
        question = "SELECT id, document FROM packages LEFT JOIN advisories USING (id) WHERE name = ?"
        found = self._read(question, normalized(name))
        return tuple(advisory for advisory in found if not advisory.withdrawn)

    def query(self, name: str, version: str) -> tuple[Advisory, ...]:
        """The advisories that affect a distribution at a version; sorted by id, each document for itself."""
        return tuple(advisory for advisory in self.about(name) if applies(advisory, name, version))

    def get(self, id_: str) -> Advisory | None:
        """The vulnerability that any database calls ``id_``, merged from all documents about it; None: not known."""
        question = "SELECT id, document FROM names LEFT JOIN advisories USING (id) WHERE alias = ?"
        found: dict[str, Advisory] = {}
        pending, seen = [id_], {id_}
        while pending:
            for advisory in self._read(question, pending.pop()):
                found[advisory.id] = advisory
                pending += advisory.ids - seen
                seen |= advisory.ids
        return merge(found.values())[0] if found else None

    def _read(self, question: str, value: str) -> list[Advisory]:
        with _readable(self.path), self._lock:
            return [_stored(*row) for row in self._connection.execute(f"{question} ORDER BY id", (value,))]


def _stored(id_: str, document: bytes) -> Advisory:
    advisory = parse_advisory(json.loads(zlib.decompress(document)))
    _expect(advisory.id == id_, f"there is another document under {id_}")
    return advisory


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Answer whatever shows that a database is damaged with one error."""
    try:
        yield
    except (sqlite3.Error, zlib.error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ExternalError(f"The local database of advisories ({path}) can't be read: {error}.", _RENEW) from error


def _edition(path: Path, connection: sqlite3.Connection) -> Edition:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise ExternalError(f"{path} is not a database of advisories.", _RENEW)
    if schema != _SCHEMA:
        raise ExternalError(f"The local database of advisories ({path}) is of another version of layerkit.", _RENEW)
    about = dict(connection.execute("SELECT key, value FROM about"))
    _expect(about.pop("digest") == _digest(connection), "it is damaged")
    moments = (datetime.fromisoformat(about["date"]), datetime.fromisoformat(about["imported"]))
    return Edition(int(about["count"]), *moments, about["source"])


def _digest(connection: sqlite3.Connection) -> str:
    """SHA-256 over all that decides which documents are looked at; each document has a checksum of its own (zlib's).

    What a damaged file has lost would otherwise look like advisories that were never there.
    """
    digest = sha256()
    for lines in (  # quote() also tells texts from bytes, which would not be found as texts
        "SELECT quote(key) || quote(value) AS line FROM about WHERE key <> 'digest' ORDER BY key",
        "SELECT quote(name) || quote(id) AS line FROM packages ORDER BY name, id",
        "SELECT quote(alias) || quote(id) AS line FROM names ORDER BY alias, id",
    ):
        (text,) = connection.execute(f"SELECT group_concat(line, char(10)) FROM ({lines})").fetchone()  # noqa: S608
        digest.update(text.encode())
    return digest.hexdigest()


# ---- the import ----

_DOCUMENT = 16 * MIB
"""The largest advisory that is read; the largest on record are about 1 MiB."""
_ARCHIVE = 4096 * MIB
"""How much all advisories of an archive may be, unzipped."""


def import_archive(
    archive: Path | IO[bytes],
    store: Path,
    *,
    source: str = "",
    now: datetime | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    waiting: Callable[[str], None] = lambda holder: None,
) -> Edition:
    """Make the database ``store`` from OSV's archive: the zip, or a folder with its JSON documents or with the zip.

    The database is the old one or the new, whatever happens. One document that is no advisory refuses the whole, since
    what is missing can't be told from what is clean. Of two documents with one id, the one modified later counts.
    ``tell`` hears how many documents of how many are done, ``waiting`` of another import that has to end first.
    Raises ConfigurationError for a path where there is nothing, ExternalError for an archive that can't be used.
    """
    now = now or datetime.now(UTC)
    source = source or (str(archive) if isinstance(archive, Path) else "The archive")
    with checkout_lock(store.parent, "inv advisories-update", waiting):
        for left in store.parent.glob(f".{store.name}.*"):  # of an import that was killed
            left.unlink()
        beside = store.with_name(f".{store.name}.{secrets.token_hex(4)}")
        try:
            edition = _write(beside, archive, source, now, tell)
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, store)
        except sqlite3.Error as error:
            message = f"The database of advisories can't be written to {store.parent}: {error}."
            raise ExternalError(message, "Make room there; what was there before is unchanged.") from error
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(store.parent)
    return edition


def _write(
    path: Path, archive: Path | IO[bytes], source: str, now: datetime, tell: Callable[[int, int], None]
) -> Edition:
    """A new database at ``path``; nothing of it counts before its caller has renamed it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_SCHEMA}; {_TABLES}")
        connection.execute("BEGIN")
        for done, (total, where, content) in enumerate(_documents(archive, source), 1):
            try:
                _add(connection, content)
            except ValueError as error:
                raise _unusable(source, f"{where} is no advisory in OSV's form: {error}") from error
            tell(done, total)
        (count,) = connection.execute("SELECT count(*) FROM advisories").fetchone()
        if not count:
            raise _unusable(source, "it has no advisories about distributions on PyPI")
        # A date in the future is a slip, and would keep old data from ever looking old.
        newest = "SELECT coalesce(max(CASE WHEN modified <= ? THEN modified END), min(modified)) FROM advisories"
        (date,) = connection.execute(newest, (_sortable(now + timedelta(days=1)),)).fetchone()
        about = {"count": str(count), "date": date, "imported": now.isoformat(), "source": source}
        connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        connection.execute("INSERT INTO about VALUES ('digest', ?)", (_digest(connection),))
        connection.execute("COMMIT")
    finally:
        connection.close()
    return Edition(count, datetime.fromisoformat(date), now, source)


def _add(connection: sqlite3.Connection, content: bytes) -> None:
    """Put one document in, if it is about PyPI; ValueError when it is no advisory."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    advisory = parse_advisory(document)
    names = {affected.name for affected in advisory.affected}
    if not names:
        return
    modified = _sortable(_moment(advisory.modified))
    before = connection.execute("SELECT modified FROM advisories WHERE id = ?", (advisory.id,)).fetchone()
    if before and before[0] >= modified:
        return
    for table in ("advisories", "packages", "names") if before else ():
        connection.execute(f"DELETE FROM {table} WHERE id = ?", (advisory.id,))  # noqa: S608  (one of three names)
    row = (advisory.id, modified, zlib.compress(content, 1))
    connection.execute("INSERT INTO advisories VALUES (?, ?, ?)", row)
    connection.executemany("INSERT INTO packages VALUES (?, ?)", [(name, advisory.id) for name in names])
    connection.executemany("INSERT INTO names VALUES (?, ?)", [(alias, advisory.id) for alias in advisory.ids])


def _sortable(moment: datetime) -> str:
    """A time in UTC so that texts sort as times do."""
    return moment.isoformat(timespec="microseconds")


def _unusable(source: str, reason: str) -> ExternalError:
    hint = "Get OSV's archive for PyPI again; the database that was there before is unchanged."
    return ExternalError(f"{source} can't be imported: {_line(reason)}.", hint)


def _documents(archive: Path | IO[bytes], source: str) -> Iterator[tuple[int, str, bytes]]:
    """Each document of an archive, one at a time: how many there are, its file's name, and its content."""
    try:
        if isinstance(archive, Path) and archive.is_dir():
            files = sorted(path for path in archive.rglob("*.json") if path.is_file())
            zips = sorted(archive.glob("*.zip"))
            if files or len(zips) != 1:
                for file in files:
                    _expect(file.stat().st_size <= _DOCUMENT, f"{file} is too large for an advisory")
                    yield len(files), str(file), file.read_bytes()
                return
            archive = zips[0]
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if member.filename.endswith(".json")]
            _expect(sum(member.file_size for member in members) <= _ARCHIVE, "it is too large unzipped")
            for member in members:
                yield len(members), member.filename, _content(opened, member)
    except FileNotFoundError as error:
        hint = "Give OSV's archive for PyPI (all.zip), or its folder."
        raise ConfigurationError(f"{error.filename}: there is no such file or folder.", hint) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise _unusable(source, str(error) or "it is cut short") from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's content; no more of it is unzipped than it says of itself, whatever is in there."""
    _expect(member.file_size <= _DOCUMENT, f"{member.filename} is too large for an advisory")
    _expect(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), "it is not compressed as OSV does it")
    with archive.open(member) as file:
        return file.read(member.file_size)
