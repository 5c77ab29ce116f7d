"""The tree of a layer on disk: from what an installer left to what the same inputs always give.

An installer leaves files that depend on the machine: launchers that name its interpreter, its own lock file. Launchers
of entry points can't run on Lambda (``bin`` below ``python/`` is on no path there) and go; other scripts get the
runtime's interpreter. RECORD then says what is there, sorted.
"""

from __future__ import annotations

import base64
import configparser
import csv
import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from layerkit.archiving import Source
from layerkit.errors import ConfigurationError
from layerkit.model import Distribution, Package, Target, normalized

# As installers write it: one line, or a shell trick where the interpreter's path is long or has spaces.
_SHEBANG = re.compile(rb"\A(?:#!/bin/sh\n'''exec' [^\n]*\n' '''\n|#![^\n]*python[^\n]*\n)")
_LEFT_BEHIND = {"__pycache__", ".DS_Store"}


@dataclass(frozen=True)
class Installed:
    """A distribution's dist-info folder in a tree, and the rows of its RECORD: path -> (hash, size)."""

    folder: Path
    name: str
    version: str
    rows: Mapping[str, tuple[str, str]]


def installed(tree: Path) -> tuple[Installed, ...]:
    """The distributions in a tree, by name; one without a RECORD has no rows.

    Raises ConfigurationError for a RECORD that names files outside of the tree.
    """
    found = []
    for folder in sorted(tree.glob("*.dist-info")):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        rows = {}
        for row in _record(folder / "RECORD"):
            path = os.path.normpath(row[0])
            if os.path.isabs(path) or path.startswith(".."):
                raise ConfigurationError(
                    f"{name} {version} is a broken wheel: its RECORD names {row[0]!r}, which is not in it."
                )
            rows[path] = (row[1], row[2])
        found.append(Installed(folder, normalized(name), version, rows))
    return tuple(sorted(found, key=lambda distribution: distribution.name))


def _record(path: Path) -> list[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [[*row, "", ""] for row in csv.reader(file) if row]
    except FileNotFoundError:
        return []


def contested(tree: Path) -> dict[str, str]:
    """Files that several distributions bring with different contents: path -> the distribution whose file stays.

    Which one an installer leaves is chance; here it is the last by name.
    """
    seen: dict[str, tuple[str, str]] = {}
    winners: dict[str, str] = {}
    for distribution in installed(tree):
        for path, (digest, _) in distribution.rows.items():
            if path in seen and seen[path][0] != digest:
                winners[path] = distribution.name
            seen[path] = (digest, distribution.name)
    return winners


def normalize(tree: Path, target: Target, settled: Collection[str] = ()) -> None:
    """Take out of an installed tree what depends on the machine, and make each RECORD say what is there.

    ``settled`` are the files of which several distributions have a RECORD entry and one's content stays.
    """
    (tree / ".lock").unlink(missing_ok=True)
    distributions = installed(tree)
    for distribution in distributions:
        for name in _launchers(distribution.folder / "entry_points.txt"):
            (tree / "bin" / name).unlink(missing_ok=True)
    scripts = tree / "bin"
    if scripts.is_dir():
        for script in scripts.iterdir():
            content = script.read_bytes()
            portable = _SHEBANG.sub(f"#!/var/lang/bin/{target.runtime}\n".encode(), content, count=1)
            if portable != content:
                script.write_bytes(portable)
        if not any(scripts.iterdir()):
            scripts.rmdir()
    for distribution in distributions:
        _rewrite_record(tree, distribution, settled)


def _launchers(entry_points: Path) -> Iterator[str]:
    if not entry_points.exists():
        return
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # the documented way to keep upper case
    parser.read_string(entry_points.read_text(encoding="utf-8"))
    for section in ("console_scripts", "gui_scripts"):
        if parser.has_section(section):
            yield from parser[section]


def _rewrite_record(tree: Path, distribution: Installed, changed: Collection[str]) -> None:
    rows = []
    for path, (digest, size) in sorted(distribution.rows.items()):
        file = tree / path
        if (path.startswith("bin/") or path in changed) and digest and file.is_file():
            digest, size = _row(file)
        if os.path.lexists(file):
            rows.append((path, digest, size))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    (distribution.folder / "RECORD").write_text(text.getvalue(), encoding="utf-8", newline="")


def _row(file: Path) -> tuple[str, str]:
    """Hash and size of a file as a RECORD has them."""
    content = file.read_bytes()
    encoded = base64.urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
    return f"sha256={encoded}", str(len(content))


def record_what_is_there(
    tree: Path, changed: Collection[str], stubs: Mapping[str, str], bytecode: Mapping[str, int]
) -> None:
    """Make each RECORD say what is there after an optimization.

    ``changed`` are files with another content than their RECORD says. A stub (``stubs``: its path -> that of the file
    that is gone) goes to the distribution that had the file; ``bytecode`` to that of its source, without hash and size,
    as installers write it.
    """
    compiled = {_source_of(path): path for path in bytecode}
    for distribution in installed(tree):
        rows = dict(distribution.rows)
        rows |= {stub: _row(tree / stub) for stub, gone in stubs.items() if gone in rows and stub not in rows}
        rows |= {compiled[path]: ("", "") for path in tuple(rows) if path in compiled}
        _rewrite_record(tree, replace(distribution, rows=rows), changed)


def _source_of(bytecode: str) -> str:
    """``pkg/__pycache__/mod.cpython-313.pyc`` -> ``pkg/mod.py``."""
    folder, _, name = bytecode.rpartition("/")
    return f"{folder.removesuffix('__pycache__')}{name.rpartition('.cpython-')[0]}.py"


def link_targets(tree: Path) -> frozenset[str]:
    """What the links in a tree lead to, by path: files and folders of the tree itself."""
    inside = tree.resolve()
    found = set()
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink() and path.resolve().is_relative_to(inside):
                found.add(path.resolve().relative_to(inside).as_posix())
    return frozenset(found - {"."})


def impure(tree: Path, names: Iterable[str]) -> dict[str, str]:
    """Which of the distributions ``names`` are not pure Python, and the file or tag that shows it."""
    found = {}
    for distribution in installed(tree):
        if distribution.name not in set(names):
            continue
        wheel = (distribution.folder / "WHEEL").read_text(encoding="utf-8")
        tag = next((line.split(":", 1)[1].strip() for line in wheel.splitlines() if line.startswith("Tag:")), "")
        native = next((path for path in distribution.rows if re.search(r"\.so(\.|$)|\.pyd$", path)), "")
        if native or not tag.endswith("-none-any"):
            found[distribution.name] = native or f"tag {tag}"
    return found


def add_own_code(source: Path, tree: Path, where: str) -> tuple[int, int, str]:
    """Copy a layer's own code into its tree; the number of files and bytes, and ``own_code_digest`` of the copy.

    Raises ConfigurationError when it would replace a file of a distribution.
    """
    files = size = 0
    digest = sha256()
    for path in own_files(source):
        relative = path.relative_to(source)
        to = tree / relative
        if os.path.lexists(to):
            raise ConfigurationError(
                f"{where}/{relative.as_posix()} would replace a file of the same name that a distribution brings.",
                "Rename it, or take the distribution out of the requirements.",
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            os.symlink(os.readlink(path), to)
        else:
            shutil.copyfile(path, to)
            to.chmod(0o755 if _executable(path) else 0o644)
        digest.update(_own_line(relative, to))
        files += 1
        size += to.lstat().st_size
    return files, size, digest.hexdigest()


def own_files(source: Path) -> Iterator[Path]:
    """The files of a layer's own code that go into the layer, sorted; no bytecode, no Finder leftovers."""
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name not in _LEFT_BEHIND)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + links):
            if name not in _LEFT_BEHIND and not name.endswith(".pyc"):
                yield Path(folder, name)


def _executable(path: Path) -> bool:
    """The owner's bit, which survives any umask; what access() says depends on who asks."""
    return bool(path.stat().st_mode & 0o100)


def own_code_digest(source: Path) -> str:
    """SHA-256 (hex) over the paths, executable bits and contents of a layer's own code; of nothing, when none."""
    digest = sha256()
    if source.is_dir():
        for path in own_files(source):
            digest.update(_own_line(path.relative_to(source), path))
    return digest.hexdigest()


def _own_line(relative: Path, path: Path) -> bytes:
    link = path.is_symlink()
    content = os.readlink(path).encode() if link else path.read_bytes()
    kind = "link" if link else "executable" if _executable(path) else "file"
    return f"{relative.as_posix()}\0{kind}\0{sha256(content).hexdigest()}\n".encode()


def sources(tree: Path, prefix: str) -> list[Source]:
    """Every file of a tree as it goes into a zip below ``prefix``; ConfigurationError for a link that leaves it."""
    found: list[Source] = []
    pending = [(str(tree), prefix)]
    inside = tree.resolve()
    while pending:
        folder, shown = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{shown}/{entry.name}"
                if entry.is_symlink():
                    target = os.readlink(entry.path)
                    resolved = Path(entry.path).resolve()
                    if os.path.isabs(target) or not resolved.is_relative_to(inside) or not resolved.exists():
                        raise ConfigurationError(f"{path} is a link to {target!r}, which is not in the layer.")
                    content = target.encode()
                    found.append(Source(path, len(content), content=content, link=True))
                elif entry.is_dir():
                    pending.append((entry.path, path))
                elif entry.is_file():
                    stat = entry.stat(follow_symlinks=False)
                    executable = bool(stat.st_mode & 0o100)
                    found.append(Source(path, stat.st_size, executable, Path(entry.path)))
                else:
                    raise ConfigurationError(f"{path} is neither a file nor a folder nor a link.")
    return found


def distributions(tree: Path, packages: Iterable[Package], sizes: Mapping[str, int]) -> tuple[Distribution, ...]:
    """The distributions of a tree with their files and bytes; ``sizes`` are the bytes by path below the tree."""
    hashes = {package.name: package.hashes for package in packages}
    found = []
    for distribution in installed(tree):
        own = [sizes[path] for path in distribution.rows if path in sizes]
        name = distribution.name
        found.append(Distribution(name, distribution.version, hashes.get(name, ()), len(own), sum(own)))
    return tuple(found)


def fingerprint(tree: Path, *, strict: bool) -> str:
    """SHA-256 (hex) over the paths, sizes and times of a tree's files: whether it is the one seen before.

    Seconds of the content's time are enough, which an archive keeps, and bytecode and Finder leftovers don't count,
    which whoever imports from the tree or looks at it leaves there. With ``strict`` everything counts, times are exact
    and so are inodes: not even a copy is the same.
    """
    digest = sha256()
    pending = [(str(tree), "")]
    while pending:
        folder, shown = pending.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.name in _LEFT_BEHIND and not strict:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, f"{shown}{entry.name}/"))
                    continue
                stat = entry.stat(follow_symlinks=False)
                times = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) if strict else (int(stat.st_mtime),)
                digest.update(repr((shown, entry.name, stat.st_size, stat.st_mode & 0o111, *times)).encode())
    return digest.hexdigest()
