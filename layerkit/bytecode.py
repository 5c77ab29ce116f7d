"""Bytecode of a layer: made outside of the tree by the target's CPython, kept in the user's cache, chosen by a budget.

What is made lies below a *prefix*, as ``sys.pycache_prefix`` has it, so that imports which prove something find it
there while the tree stays as it is. One prefix serves all layers of a run: who imports one imports those below it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from layerkit.files import cache_folder
from layerkit.oracle import Oracle, bytecode_path
from layerkit.results import digest_of

RECIPE = 3
"""Raised whenever the same source would be compiled to other bytes than before."""


@dataclass
class Bytecode:
    """The bytecode of one tree, below ``prefix``; ``maker`` compiles."""

    tree: Path
    prefix: Path
    maker: Oracle
    scratch: Path
    made: dict[str, tuple[str, Path | None]] = field(default_factory=dict)
    """By path: the digest of the source, and the file of its bytecode; none where it does not compile."""

    @property
    def folder(self) -> Path:
        return self.prefix / str(self.tree).lstrip("/")

    def make(self, paths: Iterable[str]) -> dict[str, Path]:
        """The bytecode of sources, path -> file; what does not compile is left out.

        What was compiled before is taken from the user's cache, where a pack holds what a tree needed.
        """
        sources = {path: sha256((self.tree / path).read_bytes()).hexdigest() for path in sorted(set(paths))}
        new = {path: digest for path, digest in sources.items() if self.made.get(path, ("", None))[0] != digest}
        if new:
            pack = cache_folder() / "bytecode" / f"{digest_of(RECIPE, new, self.maker.interpreter.version)}.zip"
            if _unpack(pack, self.folder):
                found = {path: self._file(path) for path in new}
                made = {path: file for path, file in found.items() if file.is_file()}
            else:
                made = self.maker.compile([(self.tree / path, path) for path in new], self.folder, self.scratch)
                _pack(pack, self.folder, made.values())
            self.made.update({path: (digest, made.get(path)) for path, digest in new.items()})
        return {path: file for path in sources if (file := self.made[path][1]) is not None}

    def _file(self, path: str) -> Path:
        """As ``sys.pycache_prefix`` has it: the folder itself, not a ``__pycache__`` in it."""
        return self.folder / bytecode_path(path, self.maker.interpreter.release).replace("__pycache__/", "")

    def add(self, paths: Sequence[str], first: Iterable[str], budget: int, room: int) -> dict[str, int]:
        """Put bytecode of ``paths`` beside its source; path -> bytes.

        What is ``first`` goes in first, as long as ``room`` bytes last; the rest as long as all of it stays within
        ``budget``.
        """
        made = self.make(paths)
        early = [path for path in dict.fromkeys(first) if path in made]
        late = sorted(made.keys() - set(early))
        added: dict[str, int] = {}
        spent = 0
        for path, limit in [*((path, room) for path in early), *((path, min(budget, room)) for path in late)]:
            size = made[path].stat().st_size
            if spent + size > limit:
                continue
            spent += size
            name = bytecode_path(path, self.maker.interpreter.release)
            (self.tree / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(made[path], self.tree / name)
            added[name] = size
        return added


def _pack(pack: Path, root: Path, files: Iterable[Path]) -> None:
    """Keep bytecode in the user's cache; a cache that can't be written to is no reason to fail."""
    beside = pack.with_name(f".{pack.name}.{secrets.token_hex(4)}")
    try:
        pack.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(beside, "w") as archive:
            for file in sorted(files):
                archive.write(file, file.relative_to(root).as_posix())
        os.replace(beside, pack)
    except OSError:
        beside.unlink(missing_ok=True)


def _unpack(pack: Path, root: Path) -> bool:
    """Whether there is such a pack that can be believed (each file has a checksum); its files are below ``root``."""
    try:
        with zipfile.ZipFile(pack) as archive:
            archive.extractall(root)
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
    return True
