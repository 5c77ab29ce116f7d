"""Optimizing a layer's tree: rules propose, the oracle decides, and what breaks something is put back.

Before anything goes, every module of the layer is imported and what it touches of the proposals is noted. Then the
proposals go, and the modules that touched one are imported again: one that no longer imports, or has other public
names, gets the paths that it needs back, found by bisection. A module that touched nothing that went finds the same
files as before, and is not imported a second time. Decisions are kept by content.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from layerkit import trees
from layerkit.files import cache_folder
from layerkit.interpreters import Interpreter, Unavailable
from layerkit.metadata import top_level_modules
from layerkit.model import MIB, Layer, Optimized, RuleResult, Target
from layerkit.oracle import Going, Imported, Oracle, bytecode_path, modules_in
from layerkit.results import Results, digest_of
from layerkit.rules import Rule, check_services, propose, rules_for, stubs_for
from layerkit.stripping import Stripper

RECIPE = 2
"""Raised whenever the same tree would be optimized otherwise than before."""


@dataclass(frozen=True)
class Optimizer:
    """What optimizing is done with: the target's interpreter for proofs, one for bytecode, a strip tool, results."""

    target: Target
    proof: Interpreter | Unavailable
    """Runs what is built; unavailable for a foreign architecture."""
    compiler: Interpreter | None
    """A CPython of the target's version on this machine, whatever its architecture: bytecode has none."""
    stripper: Stripper | None
    results: Results
    jobs: int = 1
    seconds: float = 30.0

    def identity(self, layer: Layer) -> dict[str, Any]:
        """All that the bytes of an optimized layer depend on, besides what is installed."""
        return {
            "recipe": RECIPE,
            "options": asdict(layer.optimization),
            "imports": list(layer.imports),
            "limit": layer.max_size_mb,
            "proof": self.proof.version if isinstance(self.proof, Interpreter) else "",
            "compiler": self.compiler.version if self.compiler else "",
            "strip": self.stripper.version if self.stripper else "",
        }


@dataclass(frozen=True)
class Subject:
    """A tree to optimize, in place: what its content is known by, and the trees of the layers below."""

    layer: Layer
    tree: Path
    content: str
    """A digest of what was installed and of the layer's own code."""
    below: tuple[Path, ...] = ()
    below_content: tuple[str, ...] = ()


@dataclass
class _Decision:
    """What is to stay of the proposals, and the import that needs it; and how many modules were proven."""

    restored: dict[str, str] = field(default_factory=dict)
    modules: int = 0
    rejected: list[str] = field(default_factory=list)


def optimize(
    subject: Subject, optimizer: Optimizer, scratch: Path, tell: Callable[[str], None] = lambda phase: None
) -> Optimized:
    """Optimize ``subject.tree`` in place; ``scratch`` is a folder for temporary files on the same disk.

    Raises ConfigurationError for a rule that does not exist, ExternalError when the interpreter can't be used.
    """
    layer = subject.layer
    rules = rules_for(layer.optimization)
    installed = trees.installed(subject.tree)
    own = sorted({path for found in installed for path in found.rows if (subject.tree / path).is_file()})
    oracle = None
    if isinstance(optimizer.proof, Interpreter):
        oracle = Oracle(optimizer.proof, optimizer.target, optimizer.jobs, optimizer.seconds)
    unverified = "" if oracle else optimizer.proof.reason if isinstance(optimizer.proof, Unavailable) else ""
    if not oracle:
        rules = tuple(rule for rule in rules if rule.unproven)
    check_services(layer.optimization.services, own)
    proposals = propose(rules, own, subject.tree, layer.optimization.keep)
    sizes = {path: (subject.tree / path).lstat().st_size for found in proposals.values() for path in found}
    work = _Work(subject, optimizer, rules, proposals, scratch, tell)
    decision = work.decide(oracle) if oracle else _Decision()
    changed = work.apply(decision)
    results = [_result(rule, proposals[rule.name], decision, sizes, oracle is not None) for rule in rules]
    if optimizer.stripper and "debug-symbols" not in layer.optimization.skip_rules:
        tell("stripping")
        stripped = work.strip(oracle, own)
        changed |= stripped.files
        results.append(stripped.result)
    bytecode: dict[str, int] = {}
    if optimizer.compiler and layer.optimization.bytecode != "off":
        tell("compiling")
        bytecode = work.add_bytecode(oracle, optimizer.compiler)
    trees.record_what_is_there(subject.tree, changed, bytecode)
    return Optimized(
        rules=tuple(results),
        modules=decision.modules,
        unverified=unverified,
        bytecode_files=len(bytecode),
        bytecode_size=sum(bytecode.values()),
        interpreter=optimizer.compiler.version if optimizer.compiler and bytecode else "",
    )


def _result(
    rule: Rule, proposed: Sequence[str], decision: _Decision, sizes: Mapping[str, int], proven: bool
) -> RuleResult:
    restored = {path: decision.restored[path] for path in proposed if path in decision.restored}
    gone = [path for path in proposed if path not in restored]
    outcome = "verified" if proven else "unproven"
    if restored:
        outcome = "narrowed" if gone else "rejected"
    return RuleResult(rule.name, outcome, len(gone), sum(sizes[path] for path in gone), restored)


@dataclass
class _Stripped:
    files: set[str]
    result: RuleResult


@dataclass
class _Work:
    """One tree on its way: what is proposed, and what has been put aside so far."""

    subject: Subject
    optimizer: Optimizer
    rules: Sequence[Rule]
    proposals: Mapping[str, tuple[str, ...]]
    scratch: Path
    tell: Callable[[str], None]
    pyc: Path | None = None
    """The bytecode of the tree as it was installed, as a pycache prefix."""

    @property
    def tree(self) -> Path:
        return self.subject.tree

    @property
    def proposed(self) -> list[str]:
        return sorted(path for found in self.proposals.values() for path in found)

    # ---- deciding ----

    @property
    def key(self) -> str:
        """What decisions about this tree are kept by: all that they depend on."""
        return digest_of(
            RECIPE,
            self.subject.content,
            self.subject.below_content,
            self.optimizer.identity(self.subject.layer),
            {name: list(found) for name, found in self.proposals.items()},
        )

    def decide(self, oracle: Oracle) -> _Decision:
        """What has to stay of the proposals; from earlier results where the content is the same."""
        known = self.optimizer.results.get("optimizations", self.key)
        if known:
            return _Decision(known["restored"], known["modules"], known["rejected"])
        decision = self._decide(oracle)
        self.optimizer.results.put("optimizations", self.key, asdict(decision))
        return decision

    def _decide(self, oracle: Oracle) -> _Decision:
        paths = _files(self.tree)
        modules = modules_in(paths)
        going = _going(self.proposed, paths, modules)
        outside = {name: path for name, path in modules.items() if path not in going.files}
        self.tell("compiling")
        self._compile(oracle, [path for path in outside.values() if path.endswith(".py")])
        self.tell("importing")
        before = self._sweep(oracle, outside, going)
        working = {name: found for name, found in before.items() if found.ok}
        decision = _Decision(modules=len(working))
        if not self.proposed:
            return decision
        self.tell("proving")
        aside = self.scratch / "aside"
        self._set_aside(going.files, aside)
        suspects = {
            name: found for name, found in working.items() if found.touched is None or set(found.touched) & going.files
        }
        try:
            self._narrow(oracle, suspects, going, aside, decision)
        finally:
            self._put_back(going.files, aside)
        return decision

    def _narrow(
        self, oracle: Oracle, suspects: Mapping[str, Imported], going: Going, aside: Path, decision: _Decision
    ) -> None:
        """Put back, path by path, what makes the suspects import as before."""
        failing = self._failing(oracle, suspects, suspects)
        for name in sorted(failing, key=lambda name: (name.count("."), name)):
            if self._works(oracle, name, suspects[name]):
                continue  # what an earlier one needed was what this one needs too
            touched = suspects[name].touched
            candidates = [path for path in (going.files if touched is None else touched) if path in going.files]
            candidates = sorted(path for path in candidates if path not in decision.restored)
            self._put_back(candidates, aside)
            if not self._works(oracle, name, suspects[name]):
                # Something that no trace shows: then all stays that is not back yet.
                self._put_back(sorted(going.files), aside)
                decision.restored.update(dict.fromkeys(sorted(going.files - decision.restored.keys()), name))
                decision.rejected.append(name)
                return
            needed = self._bisect(oracle, name, suspects[name], candidates, aside)
            # Without its __init__.py a package would be a namespace, which is more than the import can tell.
            inits = {f"{folder}/__init__.py" for path in needed for folder in _above(path)} & going.files
            needed = sorted({*needed, *inits})
            self._put_back(needed, aside)
            decision.restored.update(dict.fromkeys(needed, name))
        left = self._failing(oracle, suspects, failing)
        if left:
            self._put_back(sorted(going.files), aside)
            name = min(left)
            decision.restored.update(dict.fromkeys(sorted(going.files - decision.restored.keys()), name))
            decision.rejected.append(name)

    def _bisect(self, oracle: Oracle, name: str, before: Imported, candidates: Sequence[str], aside: Path) -> list[str]:
        """Of ``candidates``, all in place, those that have to stay; the others are set aside again."""
        needed: list[str] = []
        pending = [list(candidates)]
        while pending:
            group = pending.pop()
            self._set_aside(group, aside)
            if self._works(oracle, name, before):
                continue
            self._put_back(group, aside)
            if len(group) == 1:
                needed += group
            else:
                middle = len(group) // 2
                pending += [group[middle:], group[:middle]]
        return sorted(needed)

    def _failing(self, oracle: Oracle, before: Mapping[str, Imported], names: Iterable[str]) -> list[str]:
        after = self._sweep(oracle, dict.fromkeys(names, ""), None)
        return [name for name, found in after.items() if not found.same_as(before[name])]

    def _works(self, oracle: Oracle, name: str, before: Imported) -> bool:
        return self._sweep(oracle, {name: ""}, None)[name].same_as(before)

    def _sweep(self, oracle: Oracle, modules: Mapping[str, str], going: Going | None) -> dict[str, Imported]:
        return oracle.sweep(self.tree, self.subject.below, modules, self.scratch, going=going, bytecode=self._prefix())

    # ---- moving files ----

    def _set_aside(self, paths: Iterable[str], aside: Path) -> None:
        """Take ``paths`` out of the tree, with folders that are empty then; stubs take the place of packages."""
        gone = sorted(paths)
        for path in gone:
            to = aside / path
            if (self.tree / path).exists() and not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                os.rename(self.tree / path, to)
        self._write_stubs(aside)
        for folder in sorted({os.path.dirname(path) for path in gone}, key=len, reverse=True):
            _remove_empty(self.tree, folder)

    def _put_back(self, paths: Iterable[str], aside: Path) -> None:
        for path in sorted(paths):
            if (aside / path).exists():
                (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside / path, self.tree / path)
        self._write_stubs(aside)

    def _stubs(self, is_gone: Callable[[str], bool]) -> dict[str, str]:
        gone = {name: [path for path in found if is_gone(path)] for name, found in self.proposals.items()}
        return stubs_for(self.subject.layer.name, self.rules, gone)

    def _write_stubs(self, aside: Path) -> set[str]:
        """Stubs for what is aside, and none elsewhere."""
        wanted = self._stubs(lambda path: (aside / path).exists())
        for name in self.proposals:
            for path in self.proposals[name]:
                if (aside / path).exists() and path not in wanted:
                    (self.tree / path).unlink(missing_ok=True)
        for path, source in wanted.items():
            (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / path).write_text(source, encoding="utf-8")
        return set(wanted)

    def apply(self, decision: _Decision) -> set[str]:
        """Take out of the tree what the decision lets go; the stubs that were written."""
        aside = self.scratch / "gone"
        self._set_aside([path for path in self.proposed if path not in decision.restored], aside)
        stubs = self._write_stubs(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return stubs

    # ---- debug symbols ----

    def strip(self, oracle: Oracle | None, own: Sequence[str]) -> _Stripped:
        """Take debug symbols out of extension modules, and load each once; one that then fails gets them back."""
        stripper = self.optimizer.stripper
        assert stripper is not None  # the caller has looked
        libraries = [
            path
            for path in own
            if path.endswith(".so") and (self.tree / path).is_file() and not path.split("/")[0].endswith(".libs")
        ]
        kept = self.scratch / "unstripped"
        saved = stripper.strip(self.tree, libraries, kept, self.optimizer.jobs)
        known = self.optimizer.results.get("stripped", self.key)
        restored: dict[str, str] = known or {}
        if oracle and saved and known is None:
            modules = modules_in(saved)
            for name, found in self._sweep(oracle, modules, None).items():
                if not found.ok and not self._loads_unstripped(oracle, name, modules[name], kept):
                    restored[modules[name]] = name
            self.optimizer.results.put("stripped", self.key, restored)
        for path in restored:
            os.replace(kept / path, self.tree / path)
            del saved[path]
        shutil.rmtree(kept, ignore_errors=True)
        outcome = "narrowed" if restored else "verified" if oracle else "unproven"
        return _Stripped(set(saved), RuleResult("debug-symbols", outcome, len(saved), sum(saved.values()), restored))

    def _loads_unstripped(self, oracle: Oracle, name: str, path: str, kept: Path) -> bool:
        """Whether a module that fails stripped fails unstripped too, so that stripping is not the reason."""
        stripped = (self.tree / path).read_bytes()
        (self.tree / path).write_bytes((kept / path).read_bytes())
        same = not self._sweep(oracle, {name: ""}, None)[name].ok
        (self.tree / path).write_bytes(stripped)
        return same

    # ---- bytecode ----

    def _prefix(self) -> Path | None:
        return self.scratch / "bytecode" if self.pyc else None

    def _compile(self, oracle: Oracle, paths: Sequence[str]) -> None:
        self.pyc = self.scratch / "bytecode" / str(self.tree).lstrip("/")
        self._bytecode_of(oracle, paths)

    def _bytecode_of(self, oracle: Oracle, paths: Sequence[str]) -> dict[str, Path]:
        """The bytecode of source files, path -> file; what was compiled before is taken from the user's cache."""
        into = self.scratch / "bytecode" / str(self.tree).lstrip("/")
        sources = {path: sha256((self.tree / path).read_bytes()).hexdigest() for path in sorted(paths)}
        pack = cache_folder() / "bytecode" / f"{digest_of(RECIPE, sources, oracle.interpreter.version)}.zip"
        release = oracle.interpreter.release
        if _unpack(pack, into):
            return {
                path: file
                for path in sources
                if (file := into / bytecode_path(path, release).replace("__pycache__/", "")).is_file()
            }
        made = oracle.compile([(self.tree / path, path) for path in sources], into, self.scratch)
        _pack(pack, into, made.values())
        return made

    def add_bytecode(self, oracle: Oracle | None, compiler: Interpreter) -> dict[str, int]:
        """Put bytecode beside its source: what the declared imports load first; path -> bytes of each added."""
        options = self.subject.layer.optimization
        maker = oracle or Oracle(compiler, self.optimizer.target, self.optimizer.jobs)
        paths = [path for path in _files(self.tree) if path.endswith(".py") and path.split("/")[0] != "bin"]
        made = self._bytecode_of(maker, paths)
        self.pyc = self.scratch / "bytecode" / str(self.tree).lstrip("/")
        first: list[str] = []
        if oracle:
            declared = self.subject.layer.imports or top_level_modules(self.tree)
            known: list[str] | None = self.optimizer.results.get("loads", self.key)
            first = known or oracle.loads(self.tree, self.subject.below, declared, self._prefix())
            self.optimizer.results.put("loads", self.key, first)
        total = sum((self.tree / path).lstat().st_size for path in _files(self.tree))
        # A mebibyte stays free, for what RECORD says of the bytecode and for the next version of something.
        room = self.subject.layer.max_size - total - MIB
        budget = room if options.bytecode == "all" else min(room, options.bytecode_budget_mb * MIB)
        added: dict[str, int] = {}
        spent = 0
        for path in dict.fromkeys([*(path for path in first if path in made), *sorted(made)]):
            size = made[path].stat().st_size
            if spent + size > budget:
                continue
            spent += size
            name = bytecode_path(path, maker.interpreter.release)
            (self.tree / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(made[path], self.tree / name)
            added[name] = size
        return added


def _files(tree: Path) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(folder, name), tree) for folder, _, names in os.walk(tree) for name in names
    )


def _going(proposed: Sequence[str], paths: Sequence[str], modules: Mapping[str, str]) -> Going:
    """What would be missed: the files, the folders of which nothing is left, and the modules."""
    files = frozenset(proposed)
    staying = {folder for path in paths if path not in files for folder in _above(path)}
    folders = {folder for path in files for folder in _above(path)} - staying
    return Going(files, frozenset(folders), {name: path for name, path in modules.items() if path in files})


def _above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _remove_empty(tree: Path, folder: str) -> None:
    while folder:
        try:
            os.rmdir(tree / folder)
        except OSError:  # not empty, or gone already
            return
        folder = os.path.dirname(folder)


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


def optimizer_for(
    target: Target, proof: Interpreter | Unavailable, compiler: Interpreter | None, results: Results, jobs: int
) -> Optimizer:
    """What this machine has to optimize layers for ``target`` with."""
    # What strip makes is only believed when it has been loaded.
    stripper = Stripper.find() if isinstance(proof, Interpreter) else None
    return Optimizer(target, proof, compiler, stripper, results, jobs)
