"""The local database of advisories, in the user's cache: made from OSV's published archive, asked without a network."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import IO

from layerkit.advisories import Advisory, applies, expect, merge, moment, one_line, parse_advisory
from layerkit.errors import ConfigurationError, ExternalError
from layerkit.files import cache_folder, checkout_lock, sync_folder
from layerkit.model import MIB, normalized

_APPLICATION = 0x4C41594B
_SCHEMA = 1
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE advisories (id TEXT PRIMARY KEY, modified TEXT NOT NULL, document BLOB NOT NULL);
CREATE TABLE packages (name TEXT, id TEXT, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE names (alias TEXT, id TEXT, PRIMARY KEY (alias, id)) WITHOUT ROWID;
"""

KNOWN = ("jinja2", "2.4.1")
"""A distribution that every copy of OSV's data has advisories about: the example of OSV's own documentation. What knows
nothing of it has no data, and would call everything clean."""

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
            except BaseException:  # Ctrl-C too: cleaned up here, and raised again
                connection.close()
                raise

    def check(self) -> None:
        """ExternalError when it is no copy of OSV's data, whatever else it is: it knows nothing about ``KNOWN``."""
        if not self.query(*KNOWN):
            message = f"The local database of advisories ({self.path}) is no copy of OSV's data: {_UNKNOWN}."
            raise ExternalError(message, _RENEW)

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


_UNKNOWN = f"it has no advisory about {' '.join(KNOWN)}, and every copy has"


def _stored(id_: str, document: bytes) -> Advisory:
    advisory = parse_advisory(json.loads(zlib.decompress(document)))
    expect(advisory.id == id_, f"there is another document under {id_}")
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
    expect(about.pop("digest") == _digest(connection), "it is damaged")
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
        (text,) = connection.execute(f"SELECT group_concat(line, char(10)) FROM ({lines})").fetchone()  # noqa: S608  (ours)
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
    what is missing can't be told from what is clean, and so does one that is not there, about ``KNOWN``. Of two
    documents with one id, the one modified later counts. ``tell`` hears how many documents of how many are done,
    ``waiting`` of another import that has to end first.

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
            raise ExternalError(message, f"Make room there{_unchanged(store)}.") from error
        except _Unusable as error:
            raise ExternalError(error.message, f"{error.hint}{_unchanged(store)}.") from error
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(store.parent)
    return edition


def _unchanged(store: Path) -> str:
    return "; the database that was there before is unchanged" if store.is_file() else ""


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
        about_known = "SELECT id, document FROM packages JOIN advisories USING (id) WHERE name = ?"
        if not any(applies(_stored(*row), *KNOWN) for row in connection.execute(about_known, KNOWN[:1])):
            raise _unusable(source, f"it is no copy of OSV's data: {_UNKNOWN}")
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
    modified = _sortable(moment(advisory.modified))
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


class _Unusable(ExternalError):
    """An archive is none that can be imported."""


def _unusable(source: str, reason: str) -> _Unusable:
    return _Unusable(f"{source} can't be imported: {one_line(reason)}.", "Get OSV's archive for PyPI (all.zip) again")


def _documents(archive: Path | IO[bytes], source: str) -> Iterator[tuple[int, str, bytes]]:
    """Each document of an archive, one at a time: how many there are, its file's name, and its content."""
    try:
        if isinstance(archive, Path) and archive.is_dir():
            files = sorted(path for path in archive.rglob("*.json") if path.is_file())
            zips = sorted(archive.glob("*.zip"))
            expect(files or len(zips) < 2, "the folder has several zips and no documents: name the one that it is")
            if files or not zips:
                for file in files:
                    expect(file.stat().st_size <= _DOCUMENT, f"{file} is too large for an advisory")
                    yield len(files), str(file), file.read_bytes()
                return
            archive = zips[0]
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if member.filename.endswith(".json")]
            expect(sum(member.file_size for member in members) <= _ARCHIVE, "it is too large unzipped")
            for member in members:
                yield len(members), member.filename, _content(opened, member)
    except FileNotFoundError as error:
        hint = "Give OSV's archive for PyPI (all.zip), or its folder."
        raise ConfigurationError(f"{error.filename}: there is no such file or folder.", hint) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise _unusable(source, str(error) or "it is cut short") from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's content; no more of it is unzipped than it says of itself, whatever is in there."""
    expect(member.file_size <= _DOCUMENT, f"{member.filename} is too large for an advisory")
    expect(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), "it is not compressed as OSV does it")
    with archive.open(member) as file:
        return file.read(member.file_size)
