"""Finding Python interpreters on this machine, by more than one way.

``uv python find`` fails where pyenv's shims come first on PATH although the interpreter is there, so pyenv's own
folder is looked into as well. An interpreter counts when it answers with the version that was asked for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from layerkit.errors import ExternalError
from layerkit.processes import run


def find_interpreter(version: str) -> Path | None:
    """The full path of a CPython ``version`` (``3.12``); None where this machine has none."""
    seen: set[Path] = set()
    for candidate in _candidates(version):
        if candidate in seen or not os.access(candidate, os.X_OK):
            continue
        seen.add(candidate)
        found = _answer(candidate, version)
        if found:
            return found
    return None


def _candidates(version: str) -> Iterator[Path]:
    roots = [os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")]
    for root in roots:
        if root:
            yield from sorted(Path(root).glob(f"versions/{version}*/bin/python{version}"), reverse=True)
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    yield from sorted(Path(data).glob(f"uv/python/cpython-{version}*/bin/python{version}"), reverse=True)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)


def _answer(candidate: Path, version: str) -> Path | None:
    question = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.executable, sep='\\n')"
    try:
        done = run([candidate, "-I", "-c", question], cwd=Path.cwd())
    except ExternalError:
        return None
    lines = done.stdout.splitlines()
    if done.code == 0 and len(lines) == 3 and lines[:2] == ["cpython", version]:
        return Path(lines[2])
    return None
