"""What has no business in a layer's tree: secrets, keystores, odd modes, links out of it, files nobody answers for.

Content decides about secrets, whatever a file is called; a credential is never repeated, only where it is and what it
is. What is inside of compressed files is not looked at. Nothing here follows a link or opens what is not a file.
"""

from __future__ import annotations

import base64
import csv
import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import new as new_digest
from hashlib import sha256
from pathlib import Path

from layerkit.archiving import tree_digest
from layerkit.builds import TREE
from layerkit.errors import ConfigurationError
from layerkit.model import FileEntry
from layerkit.sensitive import secrets_in
from layerkit.trees import installed


@dataclass(frozen=True)
class Kind:
    """A kind of suspect: how bad it is (``critical``, ``high``, ``medium``, ``low``), and what it is."""

    name: str
    level: str
    finds: str


KINDS = (
    Kind("secret", "critical", "a private key or a credential, by content"),
    Kind("keystore", "high", "a store of keys (PKCS#12, Java, KeePass), by content"),
    Kind("credentials-file", "high", "a file that programs take passwords or settings from, with some in it"),
    Kind("setuid", "high", "a file that runs with its owner's or group's rights"),
    Kind("world-writable", "medium", "a file or folder that every user of the machine can change"),
    Kind("link-out", "high", "a link that leads out of the tree"),
    Kind("no-file", "medium", "a device, a pipe or a socket"),
    Kind("changed", "high", "a file that is not what its distribution's RECORD says"),
    Kind("unclaimed", "medium", "a file that is in no distribution's RECORD and not the layer's own"),
    Kind("missing", "medium", "a file that a RECORD has and the tree has not"),
    Kind("record", "high", "a RECORD that can't be read or names files outside of the tree"),
    Kind("bytecode", "low", "bytecode that is no part of the build, as imports from the tree leave it"),
)


@dataclass(frozen=True, order=True)
class Suspect:
    """Something that a person should look at: never a secret itself, only where it is and what it is."""

    path: str
    """Below the tree, with ``/``; ends with one for a folder."""
    line: int
    """From 1; 0 where there is none to tell."""
    kind: str
    """The name of one of ``KINDS``."""
    what: str

    @property
    def level(self) -> str:
        return next(kind.level for kind in KINDS if kind.name == self.kind)


def suspects(tree: Path, own: Collection[str] = (), jobs: int = 1, expected: str | None = None) -> tuple[Suspect, ...]:
    """All that is suspicious in ``tree``, sorted; each file is read once, ``jobs`` of them at a time.

    ``own`` are the paths below the tree (with ``/``) that came from the layer's own code. Bytecode in ``__pycache__``
    needs no RECORD, as whoever imports from a tree leaves some, and a row for it has no hash to hold it against.
    ``expected`` is the tree's digest as the manifest has it (``manifest.tree.sha256``), which covers what a RECORD does
    not: the RECORDs themselves, bytecode, the layer's own code. None: there is nothing to hold the whole against.
    Raises OSError for what can't be read: then the answer is unknown.
    """
    entries = tuple(_entries(tree))
    rows, found = _recorded(tree, entries)
    found += [suspect for entry in entries for suspect in _by_looks(tree, entry)]
    read = _read(tree, entries, rows or {}, jobs)
    found += [suspect for one in read for suspect in one.suspects]
    if rows is not None:
        files = {entry.path for entry in entries if not stat.S_ISDIR(entry.mode)}
        found += _unclaimed(files, {*rows, *own})
        found += (
            Suspect(path, 0, "missing", f"the RECORD of {' and '.join(rows[path])} has it, and it is not there")
            for path in rows.keys() - files
        )
    if expected is not None:
        found += _as_a_whole(read, expected, {suspect.kind for suspect in found})
    return tuple(sorted(set(found)))


@dataclass(frozen=True)
class _Entry:
    path: str
    mode: int
    exposed: bool
    """Whether a folder above can be changed by every user of the machine, so that its own mode says nothing more."""


def _entries(tree: Path) -> Iterator[_Entry]:
    """The tree itself (as ``.``) and everything in it; no link in it is followed."""
    mode = os.stat(tree).st_mode
    yield _Entry(".", mode, exposed=False)
    pending = [("", _is_open(mode))]
    while pending:
        folder, exposed = pending.pop()
        with os.scandir(tree / folder) as entries:
            for entry in entries:
                path = posixpath.join(folder, entry.name)
                mode = entry.stat(follow_symlinks=False).st_mode
                yield _Entry(path, mode, exposed)
                if stat.S_ISDIR(mode):
                    pending.append((path, exposed or _is_open(mode)))


def _is_open(mode: int) -> bool:
    """Whether every user of the machine can change what is in a folder of this mode."""
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


# ---- what a look at the folder shows ----


def _by_looks(tree: Path, entry: _Entry) -> Iterator[Suspect]:
    path, mode = entry.path, entry.mode
    if stat.S_ISLNK(mode):
        target = os.readlink(tree / path)
        inside = os.path.realpath(tree)
        if os.path.isabs(target) or os.path.commonpath([inside, os.path.realpath(tree / path)]) != inside:
            yield Suspect(path, 0, "link-out", f"a link to {target!r}, which is not in the tree")
        return
    if stat.S_ISDIR(mode):
        if _is_open(mode) and not entry.exposed:
            yield Suspect(f"{path}/", 0, "world-writable", f"a folder of mode {stat.S_IMODE(mode):o}")
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        yield Suspect(path, 0, "no-file", kinds.get(stat.S_IFMT(mode), "neither a file nor a folder nor a link"))
    if mode & (stat.S_ISUID | stat.S_ISGID):
        bit = "setuid" if mode & stat.S_ISUID else "setgid"
        yield Suspect(path, 0, "setuid", f"{bit}: mode {stat.S_IMODE(mode):o}")
    if mode & stat.S_IWOTH and not entry.exposed:
        yield Suspect(path, 0, "world-writable", f"a file of mode {stat.S_IMODE(mode):o}")


# ---- what RECORD says ----


# Path -> distribution -> (hash, size).
_Rows = dict[str, dict[str, tuple[str, str]]]

_DIST_INFO = re.compile(r"[^/]+\.dist-info")
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")


def _recorded(tree: Path, entries: Iterable[_Entry]) -> tuple[_Rows | None, list[Suspect]]:
    """The rows of all RECORDs, None where not all can be had; and what is wrong with RECORDs."""
    for entry in entries:
        path, mode = entry.path, entry.mode
        if (_DIST_INFO.fullmatch(path) and not stat.S_ISDIR(mode)) or (
            _RECORD.fullmatch(path) and not stat.S_ISREG(mode)
        ):
            return None, [Suspect(path, 0, "record", "not what it is called, so no RECORD was read")]
    try:
        distributions = installed(tree)
    except (ConfigurationError, ValueError, csv.Error) as error:
        said = error.message if isinstance(error, ConfigurationError) else f"a RECORD can't be read: {error}"
        return None, [Suspect("./", 0, "record", said)]
    rows: _Rows = {}
    problems = []
    for distribution in distributions:
        if not distribution.rows:
            said = f"{distribution.name} has none that says anything, so its files can't be told from others"
            problems.append(Suspect(f"{distribution.folder.name}/RECORD", 0, "record", said))
        for path, row in distribution.rows.items():
            rows.setdefault(path, {})[distribution.name] = row
    return rows, problems


def _unclaimed(files: Iterable[str], claimed: Collection[str]) -> Iterator[Suspect]:
    """Files that are nobody's; a folder that has no others is told as one."""
    shared = {""}
    for path in claimed:
        while path := posixpath.dirname(path):
            shared.add(path)
    whole: dict[str, int] = {}
    for path in files:
        if path in claimed or _is_cached_bytecode(path):
            continue
        parts = path.split("/")
        folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        topmost = next((f"{folder}/" for folder in folders if folder not in shared), path)
        whole[topmost] = whole.get(topmost, 0) + 1
    for path, count in whole.items():
        said = f"a folder with {count} {'file' if count == 1 else 'files'}" if path.endswith("/") else "a file"
        yield Suspect(path, 0, "unclaimed", f"{said} in no distribution's RECORD")


def _is_cached_bytecode(path: str) -> bool:
    return path.endswith(".pyc") and posixpath.basename(posixpath.dirname(path)) == "__pycache__"


_DIGESTS = {"sha256", "sha384", "sha512"}
# What can't have its hash in RECORD, as it is written after it (the specification of binary distributions).
_UNHASHED = re.compile(_RECORD.pattern + r"(\.jws|\.p7s)?")


def _difference(path: str, content: bytes, rows: Mapping[str, tuple[str, str]]) -> str:
    """How a file differs from its row in every RECORD that has it; empty when it does not from one of them."""
    said = ""
    for name, (digest, size) in rows.items():
        algorithm, _, value = digest.partition("=")
        if algorithm not in _DIGESTS:
            if not digest and (_UNHASHED.fullmatch(path) or _is_cached_bytecode(path)):
                return ""
            said = f"the RECORD of {name} has no hash of it that counts"
        elif size and size != str(len(content)):
            said = f"it has {len(content)} bytes, {size} in the RECORD of {name}"
        elif _encoded(algorithm, content) != value.rstrip("="):
            said = f"its hash is not that in the RECORD of {name}"
        else:
            return ""
    return said


def _encoded(algorithm: str, content: bytes) -> str:
    return base64.urlsafe_b64encode(new_digest(algorithm, content).digest()).rstrip(b"=").decode()


# ---- what is in the files ----


@dataclass(frozen=True)
class _Read:
    """A file that was read: what is suspicious in it, and what the digest of the whole tree needs of it."""

    suspects: tuple[Suspect, ...]
    entry: FileEntry
    is_left: bool
    """Whether it is bytecode of the kind that an import leaves."""


def _read(tree: Path, entries: Iterable[_Entry], rows: _Rows, jobs: int) -> list[_Read]:
    def look(entry: _Entry) -> _Read:
        recorded = rows.get(entry.path, {})
        zipped = f"{TREE}/{entry.path}"
        if stat.S_ISLNK(entry.mode):
            target = os.readlink(tree / entry.path)
            said = f"a link, and a file in the RECORD of {' and '.join(recorded)}"
            found = [Suspect(entry.path, 0, "changed", said)] if recorded else []
            content = os.fsencode(target)
            whole = FileEntry(zipped, len(content), executable=False, sha256=sha256(content).hexdigest(), link=target)
            return _Read(tuple(found), whole, is_left=False)
        content = (tree / entry.path).read_bytes()
        found = list(_in_content(entry.path, content))
        difference = _difference(entry.path, content, recorded)
        if difference:
            found.append(Suspect(entry.path, 0, "changed", difference))
        executable = bool(entry.mode & stat.S_IXUSR)
        whole = FileEntry(zipped, len(content), executable, sha256(content).hexdigest())
        is_left = not recorded and _is_cached_bytecode(entry.path) and content[4:8] == _BY_TIME
        return _Read(tuple(found), whole, is_left)

    looked_at = [entry for entry in entries if stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode)]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(look, looked_at))


# ---- the whole ----

# The flags of bytecode that is good for as long as its source has the time and size that it names (PEP 552), which an
# import writes. What a build adds names the hash of its source, and an import leaves that as it is.
_BY_TIME = bytes(4)


def _as_a_whole(read: Sequence[_Read], expected: str, kinds: Collection[str]) -> Iterator[Suspect]:
    """What the digest of the tree says; ``kinds`` are those of what was found in single files."""
    left = [one.entry.path.removeprefix(f"{TREE}/") for one in read if one.is_left]
    try:
        digest = tree_digest(one.entry for one in read if not one.is_left)
    except UnicodeEncodeError:  # a name that is no text, which no build has
        digest = ""
    if digest == expected:
        if left:
            files = "1 file" if len(left) == 1 else f"{len(left)} files"
            said = f"{files} of bytecode that are no part of the build, as imports from the tree leave them"
            yield Suspect("./", 0, "bytecode", f"{said} ({min(left)}); they go with: inv build --clean")
    elif not _EXPLAINING & set(kinds):
        yield Suspect("./", 0, "changed", "the tree is not as it was built: inv validate says which files")


# Where one of these was found, it is said already which file makes the difference.
_EXPLAINING = {"changed", "unclaimed", "missing"}


def _in_content(path: str, content: bytes) -> Iterator[Suspect]:
    for what, line in secrets_in(content):
        yield Suspect(path, line, "secret", what)
    what = _binary_key(content)
    if what:
        yield Suspect(path, 0, "secret", what)
    what = _keystore(content)
    if what:
        yield Suspect(path, 0, "keystore", what)
    for what, names, form in _CREDENTIALS_FILES:
        if names.fullmatch(posixpath.basename(path)):
            match = form.search(content)
            if match:
                yield Suspect(path, content.count(b"\n", 0, match.start()) + 1, "credentials-file", what)
                return
    if _NETRC.match(content):
        yield Suspect(path, 1, "credentials-file", "logins and passwords in the form of .netrc")


# Parts of DER: a length, the beginning of an object identifier, and those of RSA Data Security.
_PARTS = {
    b"length": rb"(?:[\x00-\x7f]|\x81.|\x82..|\x83...|\x84....)",
    b"object": rb"\x06[\x00-\x7f]",
    b"rsa": rb"\x2a\x86\x48\x86\xf7\x0d\x01",
}


def _der(form: bytes) -> re.Pattern[bytes]:
    return re.compile(form % _PARTS, re.DOTALL)


_BINARY_KEYS = (
    # PKCS#8: a version, then the object identifier of RSA, of elliptic curves, of DSA, or of X25519 to Ed448.
    _der(rb"\x30%(length)b\x02\x01[\x00\x01]\x30%(length)b%(object)b%(rsa)b\x01[\x01\x0a]"),
    _der(rb"\x30%(length)b\x02\x01[\x00\x01]\x30%(length)b%(object)b\x2a\x86\x48\xce(?:\x3d\x02\x01|\x38\x04\x01)"),
    _der(rb"\x30%(length)b\x02\x01[\x00\x01]\x30%(length)b%(object)b\x2b\x65[\x6e-\x71]"),
    # PKCS#8, encrypted: by PKCS#5, or one of the ways of PKCS#12.
    _der(rb"\x30%(length)b\x30%(length)b%(object)b%(rsa)b(?:\x05[\x01-\x0d]|\x0c\x01[\x01-\x06])"),
    # PKCS#1, and DSA as OpenSSL writes it: 0, and a large number.
    _der(rb"\x30%(length)b\x02\x01\x00\x02(?:[\x41-\x7f]|\x81.|\x82..)\x00"),
    # SEC 1: 1, and the key of a curve.
    _der(rb"\x30%(length)b\x02\x01\x01\x04[\x14-\x42]"),
)
# A length may also be BER's indefinite one there.
_PKCS12 = _der(rb"\x30(?:%(length)b|\x80)\x02\x01\x03\x30(?:%(length)b|\x80)\x06\x09%(rsa)b\x07[\x01\x02]")
_STORES = (
    (b"\xfe\xed\xfe\xed\x00\x00\x00", "a Java keystore"),
    (b"\xce\xce\xce\xce\x00\x00\x00", "a Java keystore (JCEKS)"),
    (b"\x03\xd9\xa2\x9a", "a KeePass database"),
)


def _binary_key(content: bytes) -> str:
    """Whether a file is, as a whole, a private key without PEM's armor (DER)."""
    if content[:1] == b"\x30" and _der_size(content) == len(content):
        return "a private key (DER)" if any(form.match(content) for form in _BINARY_KEYS) else ""
    return ""


def _der_size(content: bytes) -> int:
    """The size of the DER value that ``content`` begins with, header included."""
    first = content[1] if len(content) > 1 else 0
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    return 2 + count + int.from_bytes(content[2 : 2 + count], "big")


def _keystore(content: bytes) -> str:
    if _PKCS12.match(content):
        return "a PKCS#12 keystore"
    return next((what for magic, what in _STORES if content.startswith(magic)), "")


_DOCKER_LOGIN = rb"\"auth\"\s*:\s*\"[A-Za-z0-9+/]{8,}={0,2}\""
_LOGIN_IN_URL = re.compile(rb"https?://[^\s:/@]+:[^\s:/@]+@")

# What it is, the names it goes by, and the form of what makes it one: an empty file, or a template, is none.
_CREDENTIALS_FILES: tuple[tuple[str, re.Pattern[str], re.Pattern[bytes]], ...] = (
    (
        "an environment file",
        re.compile(r"(?!.*\b(?:example|sample|template|dist)\b)(?:\.env(?:[.-].+)?|.+\.env|\.envrc)"),
        re.compile(rb"^[ \t]*(?:export[ \t]+)?[A-Za-z_]\w*[ \t]*=[ \t]*[\"']?[^\s\"'#]", re.MULTILINE),
    ),
    (".netrc with a password", re.compile(r"[._]netrc"), re.compile(rb"\bpassword\s+\S")),
    (
        ".pypirc with a password",
        re.compile(r"\.pypirc"),
        re.compile(rb"^[ \t]*password[ \t]*[=:][ \t]*\S", re.MULTILINE),
    ),
    (
        ".npmrc with a token",
        re.compile(r"\.npmrc"),
        re.compile(rb"^[^#;\n]*_(?:authToken|auth|password)\s*=\s*(?!\$\{)\S", re.MULTILINE),
    ),
    ("git's stored passwords", re.compile(r"\.git-credentials"), _LOGIN_IN_URL),
    ("pip's settings with a password", re.compile(r"pip\.(?:conf|ini)"), _LOGIN_IN_URL),
    (".pgpass with a password", re.compile(r"\.pgpass"), re.compile(rb"^[^#:\n]+(?::[^:\n]*){3}:[^\s]", re.MULTILINE)),
    ("Docker's logins", re.compile(r"\.dockercfg"), re.compile(_DOCKER_LOGIN)),
    ("Docker's logins", re.compile(r"config\.json"), re.compile(rb"\"auths\"[\s\S]*?" + _DOCKER_LOGIN)),
)

# By content alone it has to be all that the file begins with.
_NETRC = re.compile(rb"(?:\s|#[^\n]*\n)*+machine\s+\S+\s+login\s+\S+\s+password\s+\S")
