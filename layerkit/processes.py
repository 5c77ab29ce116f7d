"""Running other programs: never through a shell, output captured, and ended when this process is."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerkit.errors import ExternalError

_live: set[subprocess.Popen[str]] = set()
_ended: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Completed:
    """A finished program: its exit code (negative: ended by that signal) and what it printed."""

    code: int
    stdout: str
    stderr: str


def run(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None) -> Completed:
    """Run ``command`` to its end and return what happened, whatever its exit code.

    Files it makes are readable by others whatever this process's umask, since they may end up on Lambda.
    Raises ExternalError when the program can't be started, or when ``end_all`` ended it.
    """
    arguments = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            umask=0o022,
        )
    except OSError as error:
        raise ExternalError(f"{arguments[0]} can't be started: {error.strerror}.") from error
    with _lock:
        _live.add(process)
    try:
        stdout, stderr = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        with _lock:
            _live.discard(process)
            ended = process in _ended
            _ended.discard(process)
    if ended:
        raise ExternalError(f"{arguments[0]} was ended together with this program.")
    return Completed(process.returncode, stdout, stderr)


def end_all() -> None:
    """End every program that ``run`` has going in any thread (for Ctrl-C, SIGTERM, and a build that has failed)."""
    with _lock:
        for process in _live:
            process.terminate()
            _ended.add(process)


def without_secrets(text: str) -> str:
    """``text`` with credentials taken out: those in addresses, and the values of uv's own credential variables."""
    text = re.sub(r"(?<=://)[^/\s@]+@", "***@", text)
    for name, value in os.environ.items():
        if value and name.startswith("UV_") and re.search(r"PASSWORD|TOKEN", name):
            text = text.replace(value, "***")
    return text
