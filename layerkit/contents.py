"""Every file of a tree read once: against the zip made of it, for what compiled code needs, and for secrets."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import deflate

from layerkit.elf import BrokenElf, Elf, read_elf
from layerkit.sensitive import secrets_in


@dataclass(frozen=True)
class Secret:
    """Where a secret is and what it is; never the secret itself."""

    path: str
    line: int
    what: str


@dataclass(frozen=True)
class Contents:
    """What reading a tree gave: paths are below the tree."""

    differences: tuple[str, ...]
    """How the tree differs from the zip, a phrase for each file."""
    elves: dict[str, Elf | BrokenElf]
    secrets: tuple[Secret, ...]
    files: int


@dataclass(frozen=True)
class _Read:
    path: str
    crc: int
    size: int
    elf: Elf | BrokenElf | None
    secrets: tuple[Secret, ...]


def read_contents(tree: Path, archive: Path | None, prefix: str, jobs: int) -> Contents:
    """Read all of ``tree``, and compare it with the entries of ``archive`` (None: with nothing) below ``prefix``.

    Bytecode that is not in the zip does not count as a difference: whoever imports from the tree leaves some.
    """
    expected: dict[str, tuple[int, int]] = {}
    if archive:
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if info.filename.startswith(f"{prefix}/"):
                    expected[info.filename.removeprefix(f"{prefix}/")] = (info.CRC, info.file_size)
    paths = [
        os.path.relpath(os.path.join(folder, name), tree)
        for folder, folders, names in os.walk(tree)
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]
    ]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        read = list(pool.map(lambda path: _read(tree, path), sorted(paths)))
    return Contents(
        differences=tuple(_differences(read, expected)) if archive else (),
        elves={file.path: file.elf for file in read if file.elf is not None},
        secrets=tuple(secret for file in read for secret in file.secrets),
        files=len(read),
    )


def _read(tree: Path, path: str) -> _Read:
    file = tree / path
    if file.is_symlink():
        content = os.readlink(file).encode()
        return _Read(path, deflate.crc32(content), len(content), None, ())
    content = file.read_bytes()
    elf: Elf | BrokenElf | None
    try:
        elf = read_elf(content)
    except BrokenElf as error:
        elf = error
    secrets = tuple(Secret(path, line, what) for what, line in secrets_in(content))
    return _Read(path, deflate.crc32(content), len(content), elf, secrets)


def _differences(read: Iterable[_Read], expected: dict[str, tuple[int, int]]) -> list[str]:
    left = dict(expected)
    found = []
    for file in read:
        wanted = left.pop(file.path, None)
        if wanted is None:
            if not (file.path.endswith(".pyc") and "__pycache__/" in file.path):
                found.append(f"{file.path} was added")
        elif wanted != (file.crc, file.size):
            found.append(f"{file.path} was changed")
    return found + [f"{path} is gone" for path in left]


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def library_names(tree: Path) -> set[str]:
    """The file names of what looks like compiled code in a tree (``libopenblas.so.0``)."""
    return {name for _, _, names in os.walk(tree) for name in names if name.endswith(".so") or ".so." in name}
