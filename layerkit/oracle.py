"""What decides whether an optimization stays: the modules of a layer, imported by the target's interpreter.

``compile`` makes the bytecode, ``sweep`` imports every module in a process of its own and says what each touched of
what is about to go, ``loads`` says in which order an import loads files. What runs there is in ``target/``.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerkit.errors import ExternalError
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
    """Of the paths that may go, those it touched; None where its process ended before it could say."""
    loaded: tuple[str, ...] = ()
    """Of the paths that may be loaded, those that were."""
    late: bool = False
    """Whether its time was up."""
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
        fork of a process with threads may hang by no fault of the module. Raises ExternalError when the interpreter
        could not do it at all.
        """
        wanted = sorted(modules)
        request = {
            "tree": str(tree),
            "paths": search_path([*below, tree], self.target),
            "removed": sorted(going.files) if going else [],
            "folders_gone": sorted(going.folders) if going else [],
            "removed_modules": dict(going.modules) if going else {},
            "loadable": sorted(loadable),
            "bytecode": str(bytecode) if bytecode else "",
            "jobs": self.jobs,
            "seconds": self.seconds,
            "memory": self.memory,
        }
        found = self._sweep(wanted, request, scratch)
        doubtful = [name for name in wanted if name not in found or found[name].touched is None]
        for name in doubtful:
            alone = self._sweep([name], request, scratch)
            if name in alone:
                found[name] = alone[name]
            else:
                found[name] = Imported(ok=False, error="no report of it", touched=None)
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
            touched, loaded = entry.pop("touched", ()), entry.pop("loaded", ())
            found[name] = Imported(**entry, touched=None if touched is None else tuple(touched), loaded=tuple(loaded))
        if not whole and len(modules) > 1:
            raise ExternalError(
                f"the modules could not be imported one by one: the process ended with {done.code}.",
                done.output.strip()[-500:],
            )
        return found

    def loads(self, tree: Path, below: Sequence[Path], modules: Sequence[str], bytecode: Path | None) -> list[str]:
        """The files of ``tree`` that importing ``modules`` loads, in load order."""
        prober = Prober(self.interpreter, Bounds(self.seconds, self.memory))
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
