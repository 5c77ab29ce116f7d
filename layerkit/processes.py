"""Running other programs: never through a shell, output captured, and ended when this process is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerkit.errors import ExternalError

_live: dict[int, Callable[[], None]] = {}
"""What ends each running program, by its process's id."""
_ended: set[int] = set()
_lock = threading.Lock()
_refusing = threading.Event()
"""Set for good when this process is about to end."""


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
    with _watched(process, process.terminate, arguments[0]):
        try:
            stdout, stderr = process.communicate()
        except BaseException:  # Ctrl-C too: cleaned up here, and raised again
            process.kill()
            process.wait()
            raise
    return Completed(process.returncode, stdout, stderr)


@dataclass(frozen=True)
class Contained:
    """What became of a program that was not trusted to end well."""

    code: int | None
    """Its exit code (negative: ended by that signal); None when its time was up."""
    report: str
    """What it wrote to the file descriptor that it was given for it."""
    output: str
    """The end of what it printed, stdout and stderr in one."""
    seconds: float


def run_contained(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], seconds: float, report_to: str = "{report}"
) -> Contained:
    """Run ``command`` in a session of its own for at most ``seconds``, and leave none of its group behind.

    The word ``report_to`` in the command becomes the number of a descriptor that it can write a report to. What it
    prints goes to a file, so it neither mixes with ours nor fills a pipe. Raises ExternalError when it can't be
    started, or when ``end_all`` ended it.
    """
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as output:
        arguments = [str(report.fileno()) if word == report_to else str(word) for word in command]
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                arguments,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(report.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            raise ExternalError(f"{arguments[0]} can't be started: {error.strerror}.") from error
        late = threading.Event()

        def too_late() -> None:
            late.set()
            _kill_group(process.pid)

        timer = threading.Timer(seconds, too_late)
        timer.daemon = True
        with _watched(process, lambda: _kill_group(process.pid), arguments[0]):
            timer.start()
            try:
                process.wait()
            finally:
                timer.cancel()
                _kill_group(process.pid)
                process.wait()
        return Contained(
            code=None if late.is_set() else process.returncode,
            report=_content(report.fileno(), 0),
            output=_content(output.fileno(), -4000),
            seconds=time.monotonic() - started,
        )


def _content(descriptor: int, start: int) -> str:
    size = os.fstat(descriptor).st_size
    start = max(0, size + start) if start < 0 else start
    return os.pread(descriptor, size - start, start).decode(errors="replace")


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all of it has ended (macOS says the second of a zombie)
        os.killpg(group, signal.SIGKILL)


@contextmanager
def _watched(process: subprocess.Popen[Any], end: Callable[[], None], name: str) -> Iterator[None]:
    """Let ``end_all`` reach ``process``; ExternalError afterwards when it did."""
    with _lock:
        _live[process.pid] = end
        if _refusing.is_set():
            end()
            _ended.add(process.pid)
    try:
        yield
    finally:
        with _lock:
            del _live[process.pid]
            ended = process.pid in _ended
            _ended.discard(process.pid)
    if ended:
        raise ExternalError(f"{name} was ended together with this program.")


def end_all() -> None:
    """End every program that has been started in any thread (for Ctrl-C, SIGTERM, and a build that has failed)."""
    with _lock:
        for process, end in _live.items():
            end()
            _ended.add(process)


@contextmanager
def threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that run programs: when the context ends with an error (Ctrl-C is one), so do the programs.

    Leaving a pool waits for its threads, and they for what they run.
    """
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        try:
            yield pool
        except BaseException:  # Ctrl-C too: cleaned up here, and raised again
            end_all()
            raise


def refuse_new() -> None:
    """From now on, end every program as soon as it is started: this process is about to end.

    Threads go on until they notice; without this, one that is between two programs would start the next, and its end
    would have to be waited for. May be called, once, in a signal handler.
    """
    _refusing.set()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the context ends; they take effect then. For the main thread.

    Blocking them would hold them back in this thread only, and another one may be alive (progress on a terminal has
    one); a handler runs in the main thread, whichever thread gets the signal.
    """
    held: list[int] = []
    before = {number: signal.signal(number, lambda got, _: held.append(got)) for number in _INTERRUPTING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


_INTERRUPTING = (signal.SIGINT, signal.SIGTERM)


def without_secrets(text: str) -> str:
    """``text`` with credentials taken out: those in addresses, and the values of uv's own credential variables."""
    text = re.sub(r"(?<=://)[^/\s@]+@", "***@", text)
    for name, value in os.environ.items():
        if value and name.startswith("UV_") and re.search(r"PASSWORD|TOKEN", name):
            text = text.replace(value, "***")
    return text
