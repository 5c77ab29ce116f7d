"""Runs in the target's interpreter: imports every module of a layer, each in a process of its own.

    python -I -S -B sweep.py DESCRIPTOR REQUEST_FILE

Importing ``a.b.c`` imports ``a`` and ``a.b`` first, so a process that has imported ``a.b`` forks one for each module
below it: a tree of forks. The request (JSON, a file) names the modules, the search path, and the paths that somebody
means to remove; for each module the report says whether it imports, a digest of its public names, and which of those
paths it touched on the way. Standard library only, and Python 3.9's syntax.

What a module may do while it is imported (hang, exit, crash, fork, print, raise anything) ends its own process at
most. What it touches is seen by an audit hook (open, listdir, scandir, chdir, imports), by wrapping ``os.stat`` and
the like, which raise no audit event, and the finder of the import system, which is asked for modules that nobody
imports in the end. The import system lists folders for every import; only that a name was really asked for counts
there. A module that starts a process or calls into C has touched what nobody can say.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import json
import os
import posix
import resource
import select
import signal
import site
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = -1
REQUEST: dict[str, Any] = {}
REMOVED: set[str] = set()
"""Absolute paths of the files that may go, or have gone from a tree below."""
FOLDERS: dict[str, list[str]] = {}
"""By folder: the removed paths that are listed in it."""
FOLDERS_GONE: dict[str, list[str]] = {}
"""By folder that would go altogether: all removed paths below it."""
MODULES: dict[str, str] = {}
"""By module name: the removed path that it is loaded from."""
FINDABLE: dict[tuple[str, str], list[str]] = {}
"""By folder and name in it: the removed paths that make up the module or package that is found there."""
LOADABLE: dict[str, str] = {}
"""Of these, the ones of which the report says whether they were loaded: name -> path below the tree."""
TOUCHED: set[str] = set()
UNKNOWN = False
"""Whether something was done of which nobody can say what it touches."""
FORKING = False
"""Whether a fork is this program's own."""
TOKENS = (-1, -1)


def say(entry: dict[str, Any]) -> None:
    """One line of the report; a single write, so that lines of several processes do not mix."""
    os.write(REPORT, (json.dumps(entry) + "\n").encode())


# ---- what is touched ----


def absolute(path: Any, folder: Any = None) -> str:
    """A path as the system sees it; ``folder`` is the descriptor that it is relative to, if any."""
    if isinstance(path, int):
        return of_descriptor(path)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str):
        try:
            path = os.fspath(path)
        except TypeError:
            return ""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
    if path.startswith("/"):
        return str(os.path.normpath(path))
    base = of_descriptor(folder) if isinstance(folder, int) else os.getcwd()
    return str(os.path.normpath(os.path.join(base, path)))


def of_descriptor(number: int) -> str:
    try:
        return READLINK(f"/proc/self/fd/{number}")
    except OSError:
        return ""


READLINK = os.readlink


def touch(path: Any, folder: Any = None) -> None:
    found = absolute(path, folder)
    if found in REMOVED:
        TOUCHED.add(found)
    elif found in FOLDERS_GONE:
        TOUCHED.update(FOLDERS_GONE[found])


def listed(path: Any) -> None:
    found = absolute("." if path is None else path)
    TOUCHED.update(FOLDERS.get(found, ()))


def from_import_system() -> bool:
    frame = sys._getframe(2)
    return "importlib._bootstrap" in frame.f_code.co_filename


OPENED = ("open", "ctypes.dlopen", "os.chdir", "os.rename", "os.link", "os.symlink", "shutil.copyfile")
BEYOND = (
    *("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"),
    *("ctypes.dlsym", "sqlite3.connect"),
)


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    global UNKNOWN
    if event == "import":
        name = arguments[0]
        if name in MODULES:
            TOUCHED.add(MODULES[name])
    elif event in OPENED:
        if not isinstance(arguments[0], int):
            touch(arguments[0])
    elif event in ("os.listdir", "os.scandir"):
        if not from_import_system():
            listed(arguments[0])
    elif event in BEYOND and not FORKING:
        UNKNOWN = True


def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    def traced(path: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(path, int):
            touch(path, options.get("dir_fd"))
        return function(path, *arguments, **options)

    return traced


def wrap_finder() -> None:
    """Note what the import system is asked for in a folder, found or not, imported or not."""
    finder: Any = importlib.machinery.FileFinder
    find_spec = finder.find_spec

    def traced(self: Any, fullname: str, target: Any = None) -> Any:
        TOUCHED.update(FINDABLE.get((absolute(self.path), fullname.rpartition(".")[2]), ()))
        return find_spec(self, fullname, target)

    finder.find_spec = traced


def trace() -> None:
    tree = REQUEST["tree"]
    # Joined to the tree, a path of another tree stays what it is: absolute.
    for path in (os.path.join(tree, one) for one in REQUEST["removed"]):
        REMOVED.add(path)
        folder, file = os.path.split(path)
        FOLDERS.setdefault(folder, []).append(path)
        name = file.split(".")[0]
        if file.endswith((".py", ".so")):
            place = os.path.split(folder) if name == "__init__" else (folder, name)
            FINDABLE.setdefault((place[0], place[1]), []).append(path)
    for whole in (os.path.join(tree, folder) for folder in REQUEST["folders_gone"]):
        below = [path for path in REMOVED if path.startswith(whole + os.sep)]
        FOLDERS_GONE[whole] = below
        parent, name = os.path.split(whole)
        # A folder that goes is missed in the listing of the one that it is in, and is a package without __init__.py.
        FOLDERS.setdefault(parent, []).extend(below)
        FINDABLE.setdefault((parent, name), []).extend(below)
    MODULES.update({name: os.path.join(tree, path) for name, path in REQUEST["removed_modules"].items()})
    loadable = set(REQUEST["loadable"])
    LOADABLE.update({name: path for name, path in REQUEST["removed_modules"].items() if path in loadable})
    if REMOVED:
        for module in (os, posix):
            for name in ("stat", "lstat", "access", "statvfs", "readlink", "open"):
                setattr(module, name, wrap(getattr(posix, name)))
        wrap_finder()
        sys.addaudithook(hook)


def touched() -> dict[str, Any]:
    """What the report says of what was touched: below the tree, and (absolute) elsewhere."""
    if UNKNOWN:
        return {"touched": None, "elsewhere": None}
    tree = REQUEST["tree"] + os.sep
    own = sorted(path[len(tree) :] for path in TOUCHED if path.startswith(tree))
    return {"touched": own, "elsewhere": sorted(path for path in TOUCHED if not path.startswith(tree))}


# ---- importing ----


def names_of(module: Any) -> str:
    """A digest of the public names: ``__all__``, else ``dir()`` without what begins with an underscore."""
    try:
        named = getattr(module, "__all__", None)
        names = [str(name) for name in named] if named is not None else []
        if named is None:
            names = [name for name in dir(module) if not name.startswith("_")]
    except BaseException:  # noqa: BLE001  (a module may have its own __getattr__ and __dir__)
        return "unreadable"
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="replace")).hexdigest()[:16]


def import_it(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001  (whatever a module raises, SystemExit included)
        try:
            message = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001  (__str__ is the module's own)
            message = type(error).__name__
        return {"module": name, "ok": False, "error": message[:500]}
    return {"module": name, "ok": True, "names": names_of(module)}


class Child:
    """A process that imports one module; ``pipe`` gets a byte when that is done, and it goes on with those below.

    It gives its token back itself then; where it dies before, its parent does.
    """

    def __init__(self, name: str, pid: int, pipe: int) -> None:
        self.name = name
        self.pid = pid
        self.pipe = pipe
        self.imported = False
        # A module can ignore the alarm that ends its process in time; a second later its parent ends it.
        self.deadline = time.monotonic() + REQUEST["seconds"] + 1
        self.late = False

    def end_when_late(self) -> None:
        if not self.imported and not self.late and time.monotonic() > self.deadline:
            self.late = True
            os.kill(self.pid, signal.SIGKILL)

    def has_imported(self) -> bool:
        """Whether its import has been reported; asks the pipe without waiting."""
        if not self.imported and select.select([self.pipe], [], [], 0)[0] and os.read(self.pipe, 1):
            self.imported = True
        return self.imported


def node(name: str, below: dict[str, Any], done: int) -> None:
    """What a child does: import, report, and fork for each module below."""
    own = os.getpid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, REQUEST["seconds"])
    result = import_it(name)
    if os.getpid() != own:  # the module has forked: this is its child, and has nothing to say
        os._exit(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    result.update(touched())
    result["loaded"] = sorted(path for name, path in LOADABLE.items() if name in sys.modules)
    say(result)
    os.write(done, b"d")
    os.write(TOKENS[1], b"t")
    if result["ok"]:
        grow(below)
    else:
        inherit(below, name)
    os._exit(0)


def inherit(below: dict[str, Any], parent: str) -> None:
    """Modules below one that does not import do not import either."""
    for name, further in below.items():
        error = f"its package {parent} does not import"
        say({"module": name, "ok": False, "error": error, **touched()})
        inherit(further, parent)


def grow(below: dict[str, Any]) -> None:
    """Fork a child for each module, as many at once as there are tokens."""
    global FORKING
    children: list[Child] = []
    for name, further in below.items():
        while not take_token():
            # A child that died has left its token to this process, so it is not enough to wait for one.
            select.select([TOKENS[0]], [], [], 0.05)
            reap(children, below)
        read, write = os.pipe()
        FORKING = True
        pid = os.fork()
        FORKING = False
        if pid == 0:
            os.close(read)
            node(name, further, write)
        os.close(write)
        children.append(Child(name, pid, read))
        reap(children, below)
    while children:
        # With a time limit of its own: a child may have left a process of its own that holds the pipe open.
        select.select([child.pipe for child in children if not child.imported], [], [], 0.01)
        reap(children, below)


def take_token() -> bool:
    """Take a token where there is one; several processes may see the same one, so seeing it is not having it."""
    try:
        return bool(os.read(TOKENS[0], 1))
    except BlockingIOError:
        return False


def reap(children: list[Child], below: dict[str, Any]) -> None:
    for child in list(children):
        child.end_when_late()
        ended, status = os.waitpid(child.pid, os.WNOHANG)
        if not child.has_imported() and ended:
            # Its time was up, or it crashed or ended its process: the report has no line of it.
            code = os.waitstatus_to_exitcode(status)
            late = child.late or code == -signal.SIGALRM
            error = "its time was up" if late else f"its process ended with {code}"
            killed = code == -signal.SIGKILL and not late
            entry = {"module": child.name, "ok": False, "error": error, "late": late, "killed": killed}
            entry.update(ended=True, touched=None, elsewhere=None)
            say(entry)
            unknown(below[child.name], child.name)
            os.write(TOKENS[1], b"t")
        if ended:
            os.close(child.pipe)
            children.remove(child)


def unknown(below: dict[str, Any], parent: str) -> None:
    """As ``inherit``, where nobody could say what was touched."""
    for name, further in below.items():
        error = f"its package {parent} does not import"
        say({"module": name, "ok": False, "error": error, "ended": True, "touched": None, "elsewhere": None})
        unknown(further, parent)


def tree_of(names: list[str]) -> dict[str, Any]:
    """Dotted names as a tree: each below the longest other name that it begins with."""
    tree: dict[str, Any] = {}
    places: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        parent = name.rpartition(".")[0]
        while parent and parent not in places:
            parent = parent.rpartition(".")[0]
        below = places[parent] if parent else tree
        below[name] = places[name] = {}
    return tree


def main() -> None:
    global REPORT, REQUEST, TOKENS
    REPORT = int(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        REQUEST = json.load(file)
    sys.argv[1:] = []
    for what, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, REQUEST["memory"])):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (wanted, wanted))
    if REQUEST["bytecode"]:
        sys.pycache_prefix = REQUEST["bytecode"]
    sys.path[:0] = REQUEST["paths"]
    site.setquit()
    site.setcopyright()
    site.sethelper()
    TOKENS = os.pipe()
    os.set_blocking(TOKENS[0], False)
    os.write(TOKENS[1], b"t" * REQUEST["jobs"])
    lines = [(path, name) for path in REQUEST["paths"] for name in sorted(os.listdir(path)) if name.endswith(".pth")]
    trace()
    signal.setitimer(signal.ITIMER_REAL, REQUEST["seconds"])
    for path, name in lines:  # what these touch, every module has touched
        site.addpackage(path, name, set())
    signal.setitimer(signal.ITIMER_REAL, 0)
    started = time.monotonic()
    grow(tree_of(REQUEST["modules"]))
    say({"seconds": round(time.monotonic() - started, 3)})
    os._exit(0)


main()
