"""What decides whether an optimization stays: the modules of a layer, imported by the target's interpreter.

``compile`` makes the bytecode, ``sweep`` imports every module in a process of its own and says what each touched of
what is about to go, ``loads`` says in which order an import loads files. What runs there is in ``target/``.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerkit.errors import CheckFailed, ExternalError
from layerkit.files import remove
from layerkit.interpreters import Interpreter
from layerkit.metadata import module_name
from layerkit.model import MIB, Target
from layerkit.probing import Bounds, Prober, lambda_environment, search_path
from layerkit.processes import run_contained, threads

_TARGET = Path(__file__).parent / "target"

SHOWN_AS = "/opt/python"
"""Where Lambda mounts a layer's tree: the path that tracebacks show of compiled files."""


@dataclass(frozen=True)
class Imported:
    """What came of importing one module."""

    ok: bool
    names: str = ""
    """A digest of its public names."""
    error: str = ""
    touched: tuple[str, ...] | None = ()
    """Of the paths that may go, those it touched; None where nobody can say."""
    elsewhere: tuple[str, ...] | None = ()
    """Of the paths that have gone from trees below (absolute), those it touched; None where nobody can say."""
    loaded: tuple[str, ...] = ()
    """Of the paths that may be loaded, those that were."""
    late: bool = False
    """Whether its time was up."""
    ended: bool = False
    """Whether its process, or that of its package, had ended before it could report."""
    killed: bool = False
    """Whether its process was killed, which may be no fault of its own (memory that ran out)."""

    def same_as(self, other: Imported) -> bool:
        return (self.ok, self.names) == (other.ok, other.names)


@dataclass(frozen=True)
class Going:
    """What is about to go from a tree: files, the folders that go altogether, and the modules that are among them."""

    files: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    modules: Mapping[str, str] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    """What has gone already from trees below (absolute paths)."""

    def request(self) -> dict[str, Any]:
        """What ``target/sweep.py`` is told of it."""
        lost = sorted(self.elsewhere)
        folders = {str(above) for path in lost for above in Path(path).parents if not above.exists()}
        return {
            "removed": [*sorted(self.files), *lost],
            "folders_gone": [*sorted(self.folders), *sorted(folders)],
            "removed_modules": dict(self.modules),
        }


@dataclass(frozen=True)
class Oracle:
    """An interpreter, how long one import may take (seconds), and how many processes may import at once."""

    interpreter: Interpreter
    target: Target
    jobs: int
    seconds: float = 30.0
    memory: int = 8192 * MIB

    def sweep(
        self,
        tree: Path,
        below: Sequence[Path],
        modules: Iterable[str],
        scratch: Path,
        *,
        going: Going | None = None,
        loadable: Iterable[str] = (),
        bytecode: Path | None = None,
    ) -> dict[str, Imported]:
        """Import each of ``modules``, with ``tree`` and the trees ``below`` on the path.

        Of what is ``going`` it is noted what each touches, and of the paths ``loadable`` among that what it loads.

        A module whose time was up or whose process crashed in the tree of forks is tried again by itself, since a
        fork of a process with threads may hang by no fault of the module; what is below one that does so again is not.
        The tree is as it was afterwards: see ``unchanged``. Raises ExternalError when the interpreter could not do it
        at all.
        """
        wanted = sorted(modules)
        request = {
            "tree": str(tree),
            "paths": search_path([*below, tree], self.target),
            **(going or Going()).request(),
            "loadable": sorted(loadable),
            "bytecode": str(bytecode) if bytecode else "",
            "jobs": self.jobs,
            "seconds": self.seconds,
            "memory": self.memory,
        }
        with unchanged(tree):
            found = self._sweep(wanted, request, scratch)
            again = [name for name in wanted if name not in found or found[name].ended]
            dead: set[str] = set()
            for name in again:
                package = next((above for above in _with_packages(name)[:-1] if above in dead), "")
                if package:
                    found[name] = Imported(ok=False, error=f"its package {package} does not import", touched=None)
                    continue
                alone = self._sweep([name], request, scratch)
                found[name] = alone.get(name, Imported(ok=False, error="no report of it", ended=True, touched=None))
                if found[name].ended:
                    dead.add(name)
        return found

    def _sweep(self, modules: Sequence[str], request: Mapping[str, Any], scratch: Path) -> dict[str, Imported]:
        if not modules:
            return {}
        home = scratch / f"sweep-{secrets.token_hex(4)}"
        home.mkdir(parents=True)
        # With their packages: what forks off a package that is imported already need not import it again.
        with_packages = sorted({name for module in modules for name in _with_packages(module)})
        asked = home / "request.json"
        asked.write_text(json.dumps({**request, "modules": with_packages}))
        done = run_contained(
            [self.interpreter.path, "-I", "-S", "-B", _TARGET / "sweep.py", "{report}", asked],
            cwd=home,
            env=lambda_environment(str(home)),
            seconds=60 + self.seconds * len(modules),
        )
        found: dict[str, Imported] = {}
        asked_for = set(modules)
        whole = False
        for line in done.report.splitlines():
            entry: dict[str, Any] = json.loads(line)
            name = entry.pop("module", None)
            if name is None:
                whole = True
                continue
            if name not in asked_for:
                continue
            lists = {key: entry.pop(key, ()) for key in ("touched", "elsewhere", "loaded")}
            entry.update({key: None if value is None else tuple(value) for key, value in lists.items()})
            found[name] = Imported(**entry)
        if not whole and len(modules) > 1:
            raise ExternalError(
                f"the modules could not be imported one by one: the process ended with {done.code}.",
                done.output.strip()[-500:],
            )
        return found

    def loads(self, tree: Path, below: Sequence[Path], modules: Sequence[str], bytecode: Path | None) -> list[str]:
        """The files of ``tree`` that importing ``modules`` loads, in load order."""
        prober = Prober(self.interpreter, Bounds(self.seconds, self.memory))
        with unchanged(tree):
            return prober.loads(modules, tree, [*below, tree], self.target, self.jobs, bytecode)

    def compile(self, sources: Sequence[tuple[Path, str]], into: Path, scratch: Path) -> dict[str, Path]:
        """Compile files, given with the path that they have in their tree; path -> its bytecode's file in ``into``.

        What does not compile is left out. Processes that compile have imported nothing, or the bytes would differ.
        """
        into.mkdir(parents=True, exist_ok=True)
        jobs: list[list[tuple[str, str, str]]] = [[] for _ in range(max(1, self.jobs))]
        made: dict[str, Path] = {}
        for source, path in sources:
            # As `sys.pycache_prefix` has it, so that a sweep finds it there: the folder itself, not __pycache__ in it.
            to = into / bytecode_path(path, self.interpreter.release).replace("__pycache__/", "")
            made[path] = to
            # By size, so that all end at about the same time.
            min(jobs, key=lambda one: sum(os.stat(entry[0]).st_size for entry in one[-64:]) + 4096 * len(one)).append(
                (str(source), str(to), f"{SHOWN_AS}/{path}")
            )

        def one(files: list[tuple[str, str, str]]) -> None:
            asked = scratch / f"compile-{secrets.token_hex(4)}.json"
            asked.write_text(json.dumps({"files": files}))
            done = run_contained(
                [self.interpreter.path, "-I", "-S", "-B", _TARGET / "compiling.py", asked],
                cwd=scratch,
                env=lambda_environment(str(scratch)),
                seconds=1800,
            )
            if done.code != 0:
                raise ExternalError(f"bytecode could not be made: the interpreter ended with {done.code}.", done.output)

        with threads(len(jobs)) as pool:
            list(pool.map(one, [files for files in jobs if files]))
        return {path: file for path, file in made.items() if file.is_file()}


@contextmanager
def unchanged(tree: Path) -> Iterator[None]:
    """Whatever runs meanwhile, ``tree`` has the same files afterwards: what was added goes again.

    On Lambda it is read-only; here whoever runs this may be root, whom no mode keeps from writing. Raises CheckFailed
    for a file that was changed or removed.
    """
    before = _listing(tree)
    yield
    after = _listing(tree)
    for path in after.keys() - before.keys():
        remove(tree / path)
    for folder in sorted({os.path.dirname(path) for path in after.keys() - before.keys()}, key=len, reverse=True):
        with suppress(OSError):  # it has other files
            os.removedirs(tree / folder)
    changed = sorted(path for path, signs in before.items() if after.get(path) != signs)
    if changed:
        raise CheckFailed(
            f"importing the layer changes its own files, which are read-only on Lambda: {', '.join(changed[:3])}.",
            "Nothing can be proven for such a layer: build it with --skip-optimization.",
        )


def _listing(tree: Path) -> dict[str, tuple[int, int, int]]:
    """What can be told of each file without reading it."""
    found = {}
    pending = [str(tree)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    stat = entry.stat(follow_symlinks=False)
                    found[os.path.relpath(entry.path, tree)] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def _with_packages(module: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = module.split(".")
    return [".".join(parts[: number + 1]) for number in range(len(parts))]


def bytecode_path(path: str, release: str) -> str:
    """Where CPython looks for the bytecode of ``pkg/mod.py``: ``pkg/__pycache__/mod.cpython-313.pyc``."""
    folder, _, name = path.rpartition("/")
    tag = "".join(release.split(".")[:2])
    file = f"__pycache__/{name.removesuffix('.py')}.cpython-{tag}.pyc"
    return f"{folder}/{file}" if folder else file


def modules_in(paths: Iterable[str]) -> dict[str, str]:
    """The modules that the files of a tree are, by dotted name: ``pkg`` -> ``pkg/__init__.py``.

    Left out: what no import statement can name, ``__main__`` (importing it runs a program), and scripts in ``bin/``.
    """
    found: dict[str, str] = {}
    for path in sorted(paths):
        *folders, file = path.split("/")
        name = module_name(file)
        if not name or name == "__main__" or not all(folder.isidentifier() for folder in folders):
            continue
        if folders[:1] == ["bin"]:
            continue
        dotted = ".".join(folders if name == "__init__" else [*folders, name])
        if dotted:
            found.setdefault(dotted, path)
    return found
