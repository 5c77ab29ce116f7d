"""Debug symbols of extension modules: taken out with the machine's strip tool, when what is loaded stays the same.

Libraries under ``*.libs`` are never touched: their layout has been changed by patchelf, and strip breaks it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerkit.elf import BrokenElf, loaded_parts, read_elf
from layerkit.processes import run, threads


@dataclass(frozen=True)
class Stripper:
    """A strip tool and what it says of its version."""

    program: str
    version: str

    @staticmethod
    def find() -> Stripper | None:
        """The strip tool on PATH; None where there is none that says its version."""
        program = shutil.which("strip")
        if not program:
            return None
        done = run([program, "--version"], cwd=Path.cwd())
        lines = done.stdout.splitlines()
        return Stripper(program, lines[0]) if done.code == 0 and lines else None

    def strip(self, tree: Path, paths: Sequence[str], kept: Path, jobs: int) -> dict[str, int]:
        """Strip files in place where that changes nothing that is loaded; path -> bytes saved.

        The files as they were go to the folder ``kept``.
        """

        def one(path: str) -> int:
            file = tree / path
            trial = kept / f"{path}.stripped"
            trial.parent.mkdir(parents=True, exist_ok=True)
            done = run([self.program, "--strip-debug", "--strip-unneeded", "-o", trial, file], cwd=tree)
            saved = 0
            if done.code == 0 and trial.is_file():
                saved = file.stat().st_size - trial.stat().st_size
                if saved > 0 and _same_when_loaded(file, trial):
                    trial.chmod(file.stat().st_mode & 0o777)
                    os.replace(file, kept / path)
                    os.replace(trial, file)
                    return saved
            trial.unlink(missing_ok=True)
            return 0

        with threads(jobs) as pool:
            found = dict(zip(paths, pool.map(one, paths), strict=True))
        return {path: size for path, size in found.items() if size}


def _same_when_loaded(before: Path, after: Path) -> bool:
    """Whether the loader would map the same bytes to the same places, and could."""
    try:
        old, new = before.read_bytes(), after.read_bytes()
        elf = read_elf(new)
        return elf is not None and elf.aligned and loaded_parts(old) == loaded_parts(new)
    except BrokenElf:
        return False
