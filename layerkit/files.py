"""Files and folders: written beside and renamed, locked against a second process, removed whole."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from layerkit.errors import ExternalError


def write_whole(path: Path, content: bytes | str) -> None:
    """Write ``path`` so that it is the old content or the new, whatever happens: beside, fsync, rename."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:  # Ctrl-C too: cleaned up here, and raised again
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_set(contents: Mapping[str, bytes], root: Path, scratch: Path, journal: Path) -> None:
    """Write several files (path below ``root`` -> content): all of them or none, whatever happens.

    They are made in the folder ``scratch``; its rename to ``journal`` decides, and then each is moved to its place,
    which ``finish_set`` can do after a kill too. Neither folder is there before; both are on the file system of
    ``root``.
    """
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)  # what can go wrong does so before it is decided
        write_whole(scratch / quote(path, safe=""), content)
    os.rename(scratch, journal)
    sync_folder(journal.parent)
    finish_set(journal, root)


def finish_set(journal: Path, root: Path) -> bool:
    """Move what a decided ``write_set`` left in ``journal`` to its places; whether there was anything."""
    if not journal.is_dir():
        return False
    for file in sorted(journal.iterdir()):
        place = root / unquote(file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
        sync_folder(place.parent)
    journal.rmdir()
    return True


def decided(journal: Path) -> frozenset[str]:
    """The paths, below the root, whose new content still waits in ``journal``."""
    try:
        return frozenset(unquote(name) for name in os.listdir(journal))
    except FileNotFoundError:
        return frozenset()


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing when it does not exist."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def put_in_place(new: Path, live: Path, aside: Path) -> None:
    """Rename the folder ``new`` to ``live``; what was there before is then at ``new`` or at ``aside`` (not there yet).

    Where the system can exchange two names (Linux) there is never a moment without a ``live`` folder.
    """
    if not os.path.lexists(live):
        os.rename(new, live)
    elif live.is_symlink() or not _exchange(new, live):
        os.rename(live, aside)
        os.rename(new, live)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at once; False where the system or the file system has no such call."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from Linux's fcntl.h and fs.h
    code: int = library.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return code == 0


def cache_folder() -> Path:
    """Where this user's caches are: LAYERKIT_CACHE_DIR, else as the XDG base directory specification has it."""
    own = os.environ.get("LAYERKIT_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "layerkit"


@contextmanager
def checkout_lock(state: Path, purpose: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the checkout's lock: one process changes it at a time.

    A second one waits, after ``waiting`` was told who holds it. The kernel drops the lock when its holder ends,
    however that ends. Raises ExternalError where the file system has no locks.
    """
    state.mkdir(parents=True, exist_ok=True)
    with open(state / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(_holder(state / "lock"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                raise ExternalError(f"{state / 'lock'}: this file system has no locks.") from error
            raise
        file.truncate(0)
        holder = {"pid": os.getpid(), "purpose": purpose, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        file.write(json.dumps(holder))
        file.flush()
        yield


def _holder(path: Path) -> str:
    # The holder writes its name right after taking the lock, so the file may be empty for a moment.
    for _ in range(20):
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
            return f"{holder['purpose']} (process {holder['pid']}, since {holder['since']})"
        except (ValueError, KeyError):
            time.sleep(0.005)
    return "another process"
