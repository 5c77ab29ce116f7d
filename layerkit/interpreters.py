"""Finding Python interpreters on this machine, by more than one way.

``uv python find`` fails where pyenv's shims come first on PATH although the interpreter is there, so pyenv's own
folder is looked into as well. An interpreter counts when it answers with the version that was asked for, and is an
ordinary build: one without the GIL or with debugging takes other extension modules.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerkit.errors import ConfigurationError, ExternalError
from layerkit.model import Target
from layerkit.processes import run, without_secrets

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}

_QUESTION = (
    "import sys; print(sys.implementation.name + sys.abiflags, '%d.%d' % sys.version_info[:2], "
    "' '.join(sys.version.split()), sys.executable, sep='\\n')"
)


@dataclass(frozen=True)
class Interpreter:
    """A CPython on this machine: its full path, and all that it says of its version."""

    path: Path
    version: str
    """As ``sys.version`` has it, on one line: two interpreters that say the same do the same."""

    @property
    def release(self) -> str:
        """``3.13.0``."""
        return self.version.split()[0]


@dataclass(frozen=True)
class Unavailable:
    """Why nothing can be run as a target would run it, and what to do."""

    reason: str
    hint: str = ""


def architecture_here() -> str:
    """This machine's architecture as Lambda names it; the machine's own name where Lambda has none of the kind."""
    machine = platform.machine()
    return _MACHINES.get(machine.lower(), machine)


def interpreter_for(target: Target, configured: Mapping[str, str]) -> Interpreter | Unavailable:
    """What runs code as ``target`` would; ``configured`` are paths by version (``3.13``), looked at first.

    Raises ConfigurationError for a configured path that is not such an interpreter.
    """
    if sys.platform != "linux":
        return Unavailable(f"extension modules for Lambda can't be loaded on {sys.platform}", "Run it on Linux.")
    if target.architecture != architecture_here():
        return Unavailable(
            f"this machine is {architecture_here()}, so nothing built for {target.architecture} can be run",
            f"Run it on an {target.architecture} machine.",
        )
    found = find_interpreter(target.python_version, configured)
    if found:
        return found
    return Unavailable(
        f"there is no Python {target.python_version} on this machine",
        f"Get one with `uv python install {target.python_version}`, or set layerkit.interpreters in invoke.yaml.",
    )


def find_interpreter(version: str, configured: Mapping[str, str] | None = None) -> Interpreter | None:
    """A CPython ``version`` (``3.12``), by configuration, pyenv's and uv's folders, PATH, and uv; None where none is.

    Raises ConfigurationError for a configured path that is not such an interpreter.
    """
    own = (configured or {}).get(version)
    if own:
        found = _answer(Path(own).expanduser(), version)
        if not found:
            raise ConfigurationError(
                f"layerkit.interpreters: {own!r} is not a CPython {version}.", "Give the full path of its executable."
            )
        return found
    seen: set[Path] = set()
    for candidate in _candidates(version):
        if candidate not in seen and os.access(candidate, os.X_OK):
            seen.add(candidate)
            found = _answer(candidate, version)
            if found:
                return found
    return None


def install_interpreter(version: str) -> str:
    """Let uv download a CPython ``version`` for this user; why that did not work, empty when it did."""
    from uv import find_uv_bin

    done = run([find_uv_bin(), "python", "install", "--no-progress", version], cwd=Path.home())
    if done.code == 0:
        return ""
    # uv says what failed and then why, ever deeper; it folds what is long.
    last = re.split(r"^ *(?:error|cause):", without_secrets(done.stderr), flags=re.MULTILINE)[-1]
    return " ".join(last.split()) or f"uv ended with exit code {done.code}"


def _candidates(version: str) -> Iterator[Path]:
    for root in (os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")):
        if root:
            yield from _newest(Path(root).glob(f"versions/{version}*/bin/python{version}"), -3)
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    for root in (os.environ.get("UV_PYTHON_INSTALL_DIR", ""), f"{data}/uv/python"):
        if root:
            yield from _newest(Path(root).glob(f"cpython-{version}*/bin/python{version}"), -3)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    from uv import find_uv_bin

    command = [find_uv_bin(), "python", "find", "--no-python-downloads", "--no-project", "--system", version]
    done = run(command, cwd=Path.home())
    if done.code == 0:
        yield Path(done.stdout.strip())


def _newest(paths: Iterator[Path], part: int) -> list[Path]:
    """``paths`` with the highest version in their folder's name first."""

    def version(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.parts[part])]

    return sorted(paths, key=version, reverse=True)


def _answer(candidate: Path, version: str) -> Interpreter | None:
    try:
        done = run([candidate, "-I", "-S", "-c", _QUESTION], cwd=candidate.parent)
    except ExternalError:
        return None
    lines = done.stdout.splitlines()
    if done.code == 0 and len(lines) == 4 and lines[:2] == ["cpython", version]:
        return Interpreter(Path(lines[3]), lines[2])
    return None
