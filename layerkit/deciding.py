"""Deciding what of the rules' proposals may go from a tree: nothing goes that an import, or the team's command, needs.

Before anything goes, every module outside of the rules' subjects is imported, and what it touches of the proposals is
noted. Then the proposals go, and the modules that touched one are imported again: one that no longer imports, or has
other public names, gets back the paths that it needs, found by bisection. A module that touched nothing that went
finds the same files as before, and is not imported a second time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from layerkit.bytecode import Bytecode
from layerkit.elf import BrokenElf, read_elf
from layerkit.errors import CheckFailed
from layerkit.imports import imported_by
from layerkit.model import VERIFY
from layerkit.oracle import Going, Imported, Oracle, modules_in
from layerkit.rules import Rule, stub, stub_path, stubs_for
from layerkit.verifying import Verification


@dataclass
class Decision:
    """What is to stay of the proposals, path -> the import that needs it (or VERIFY), and what that rests on."""

    restored: dict[str, str] = field(default_factory=dict)
    closure: dict[str, str] = field(default_factory=dict)
    """Of rules that leave what is loaded: what stays because it is loaded, path -> the import that loads it."""
    modules: int = 0
    """How many modules were imported, with the same outcome before and after."""
    late: list[str] = field(default_factory=list)
    """Modules whose time was up before anything had gone: nothing is proven for them, so what is theirs stays."""
    failing: list[str] = field(default_factory=list)
    """Modules that did not import before anything had gone: nothing is proven for them."""
    settled: bool = True
    """Whether the same tree would be decided the same again: not where a machine was too busy, or killed a process."""

    def stays(self, path: str) -> bool:
        return path in self.restored or path in self.closure


@dataclass(frozen=True)
class Proposals:
    """What each rule in force would take from a tree: rule's name -> paths."""

    layer: str
    rules: Sequence[Rule]
    paths: Mapping[str, tuple[str, ...]]
    present: frozenset[str] = frozenset()
    """All paths of the tree."""

    @cached_property
    def all(self) -> frozenset[str]:
        return frozenset(path for found in self.paths.values() for path in found)

    @cached_property
    def possible_stubs(self) -> frozenset[str]:
        """Where stubs may stand when some of it is gone."""
        return frozenset(stub_path(path) for path in self.of(lambda rule: rule.stubs) if stub_path(path))

    def of(self, wanted: Callable[[Rule], bool]) -> frozenset[str]:
        """What the rules that ``wanted`` picks propose."""
        return frozenset(path for rule in self.rules if wanted(rule) for path in self.paths[rule.name])

    def stubs(self, is_gone: Callable[[str], bool]) -> dict[str, str]:
        """Where stubs stand for what is gone: path -> rule."""
        gone = {name: [path for path in found if is_gone(path)] for name, found in self.paths.items()}
        return stubs_for(self.rules, gone, self.present)


@dataclass(frozen=True)
class Shelf:
    """A tree whose proposals can be taken out and put back: what is out lies in the folder ``aside``."""

    tree: Path
    aside: Path
    proposals: Proposals

    def take(self, paths: Iterable[str]) -> None:
        """Take ``paths`` out, with folders that are empty then; stubs take the place of removed packages."""
        gone = sorted(paths)
        for path in gone:
            to = self.aside / path
            if os.path.lexists(self.tree / path) and not os.path.lexists(to):
                to.parent.mkdir(parents=True, exist_ok=True)
                os.rename(self.tree / path, to)
        self.write_stubs()
        for folder in sorted({os.path.dirname(path) for path in gone}, key=len, reverse=True):
            _remove_empty(self.tree, folder)

    def put_back(self, paths: Iterable[str]) -> None:
        for path in sorted(paths):
            if self.is_out(path):
                (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.aside / path, self.tree / path)
        self.write_stubs()

    def is_out(self, path: str) -> bool:
        return os.path.lexists(self.aside / path)

    def write_stubs(self, agreed: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Stubs for what is out, and none elsewhere.

        They name this layer, or those of ``agreed`` (path -> layer -> rule), which then has every stub's path.
        """
        own = {path: {self.proposals.layer: rule} for path, rule in self.proposals.stubs(self.is_out).items()}
        wanted = own if agreed is None else agreed
        for path in self.proposals.possible_stubs - wanted.keys():
            # What stands there is the file itself, unless that is out or never was.
            if self.is_out(path) or path not in self.proposals.present:
                (self.tree / path).unlink(missing_ok=True)
        for path, by in wanted.items():
            (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / path).write_text(stub(path, by), encoding="utf-8")


@dataclass(frozen=True)
class Lost:
    """What layers below have let go of by their own decisions, which no module of this layer had a say in."""

    paths: Mapping[str, tuple[str, str]]
    """Absolute path -> the layer that it is gone from, and its path there."""
    as_installed: Callable[[], tuple[Path, ...]]
    """Makes the trees below as their wheels have them, in the order of the others."""


@dataclass(frozen=True)
class Trial:
    """One layer's proposals on trial, with all that is needed to try them."""

    oracle: Oracle
    shelf: Shelf
    below: tuple[Path, ...]
    declared: frozenset[str]
    """The modules that have to import: no rule's subject."""
    verification: Verification | None
    bytecode: Bytecode
    scratch: Path
    tell: Callable[[str], None]
    lost: Lost | None = None

    def decide(self) -> Decision:
        """What has to stay; afterwards the tree is as it was.

        Raises CheckFailed when the team's command fails on the tree as it is, since then it can prove nothing, and when
        a module needs what a layer below has let go of.
        """
        proposals = self.shelf.proposals
        paths = files_in(self.shelf.tree)
        modules = modules_in(paths)
        going = _going(proposals.all, paths, modules, frozenset(self.lost.paths) if self.lost else frozenset())
        closed = proposals.of(lambda rule: rule.leaves_loaded)
        outside = {name for name, path in modules.items() if path not in going.files or name in self.declared}
        self.tell("compiling")
        wanted = {modules[name] for name in outside} | (closed & set(modules.values()))
        self.bytecode.make(path for path in wanted if path.endswith(".py"))
        if self.verification:
            self.tell("verifying")
            failure = self.verification.run(self.shelf.tree, self.below)
            if failure:
                raise CheckFailed(
                    f"{proposals.layer}: verify fails on the layer as its wheels made it: {failure}",
                    "Mend the command, or take `verify` out of layer.toml: what fails before proves nothing after.",
                )
        self.tell("importing")
        before = self._sweep(outside, going, closed)
        if self.lost and self.lost.paths:
            self._ask_below(self.lost, before)
        working = {name: found for name, found in before.items() if found.ok}
        late = sorted(name for name, found in before.items() if found.late)
        decision = Decision(
            closure=_closure(closed, working, modules, self.shelf.tree),
            modules=len(working),
            late=late,
            failing=sorted(name for name, found in before.items() if not found.ok and not found.late),
            settled=not any(found.killed or found.late for found in before.values()),
        )
        for path in sorted(going.files - decision.closure.keys()):
            owner = next((name for name in late if path.split("/")[0] == name.split(".")[0]), "")
            if owner:
                decision.restored[path] = owner
        gone = going.files - decision.closure.keys() - decision.restored.keys()
        if not gone:
            return decision
        self.tell("proving")
        self.shelf.take(gone)
        try:
            suspects = {
                name: found for name, found in working.items() if found.touched is None or set(found.touched) & gone
            }
            self._narrow(suspects, gone, decision)
            if self.verification:
                self.tell("verifying")
                self._verify(self.verification, decision)
        finally:
            self.shelf.put_back(going.files)
        return decision

    # ---- imports ----

    def _ask_below(self, lost: Lost, before: Mapping[str, Imported]) -> None:
        """Hold what touched something that layers below have lost against those layers as their wheels have them."""
        asking = {name: found for name, found in before.items() if found.elsewhere is None or found.elsewhere}
        if not asking:
            return
        whole = replace(self, below=lost.as_installed())._sweep(asking)
        for name, found in sorted(asking.items()):
            if not whole[name].ok or found.same_as(whole[name]):
                continue
            needs = [lost.paths[path] for path in found.elsewhere or () if path in lost.paths]
            layers = sorted({layer for layer, _ in needs} or {layer for layer, _ in lost.paths.values()})
            wanted = {layer: json.dumps([path for other, path in needs if other == layer][:5]) for layer in layers}
            lines = [f"keep = {paths} in layers/{layer}/layer.toml" for layer, paths in wanted.items()]
            keep = f"Keep it there: {'; '.join(lines)}" if needs else ""
            raise CheckFailed(
                f"{self.shelf.proposals.layer}: import {name} needs what optimization left out of {', '.join(layers)}: "
                f"{found.error or 'without it, its public names are others'}",
                keep or "Build with --skip-optimization, or skip_rules in layer.toml.",
            )

    def _narrow(self, suspects: Mapping[str, Imported], gone: Collection[str], decision: Decision) -> None:
        """Put back, path by path, what makes the suspects import as before."""
        failing = self._failing(suspects, suspects)
        repaired = bool(failing)
        while failing:
            # The shallowest first: what it needs is most often what those below it need too.
            name = min(failing, key=lambda name: (name.count("."), name))
            if not self._repair(name, suspects[name], gone, decision):
                return
            failing = self._failing(suspects, [other for other in failing if other != name])
        # What was put back for one may, in odd cases, be what another can't stand.
        left = self._failing(suspects, suspects) if repaired else []
        if left:
            self._give_up(min(left), decision)

    def _repair(self, name: str, before: Imported, gone: Collection[str], decision: Decision) -> bool:
        """Put back what one module needs; whether it imports as before then. If not, everything is back."""
        touched = gone if before.touched is None else before.touched
        candidates = sorted(path for path in touched if self.shelf.is_out(path))
        if self._put_back_whole(name, candidates, decision) and self._works(name, before):
            return True
        candidates = [path for path in candidates if self.shelf.is_out(path)]
        self.shelf.put_back(candidates)
        after = self._sweep([name])[name]
        if not after.same_as(before):  # something that no trace shows, or a machine that is too busy
            decision.restored.update(dict.fromkeys(candidates, name))
            decision.settled = decision.settled and not (after.late or after.killed)
            self._give_up(name, decision)
            return False
        needed = set(self._bisect(candidates, partial(self._works, name, before)))
        # Without its __init__.py a package would be a namespace, which is more than the import can tell.
        inits = {f"{folder}/__init__.py" for path in needed for folder in _above(path)}
        needed |= {path for path in inits if self.shelf.is_out(path)}
        self.shelf.put_back(needed)
        decision.restored.update(dict.fromkeys(sorted(needed), name))
        return True

    def _give_up(self, why: str, decision: Decision) -> None:
        """All stays that is out."""
        out = sorted(path for path in self.shelf.proposals.all if self.shelf.is_out(path))
        self.shelf.put_back(out)
        decision.restored.update(dict.fromkeys(out, why))

    def _put_back_whole(self, name: str, candidates: Iterable[str], decision: Decision) -> bool:
        """Put back what rules took that take all or nothing, where ``name`` needs some of it; whether there was any."""
        wanted = set(candidates)
        before = len(decision.restored)
        for rule in self.shelf.proposals.rules:
            paths = self.shelf.proposals.paths[rule.name]
            if rule.whole and not wanted.isdisjoint(paths):
                self.shelf.put_back(paths)
                decision.restored.update(dict.fromkeys(paths, name))
        return len(decision.restored) > before

    def _bisect(self, candidates: Sequence[str], works: Callable[[], bool]) -> list[str]:
        """Of ``candidates``, all in place, those that have to stay; the others are out again."""
        needed: list[str] = []
        pending = [list(candidates)]
        while pending:
            group = pending.pop()
            self.shelf.take(group)
            if works():
                continue
            self.shelf.put_back(group)
            if len(group) == 1:
                needed += group
            else:
                middle = len(group) // 2
                pending += [group[middle:], group[:middle]]
        return needed

    def _failing(self, before: Mapping[str, Imported], names: Iterable[str]) -> list[str]:
        after = self._sweep(names)
        return [name for name, found in after.items() if not found.same_as(before[name])]

    def _works(self, name: str, before: Imported) -> bool:
        return self._sweep([name])[name].same_as(before)

    def _sweep(
        self, modules: Iterable[str], going: Going | None = None, closed: Collection[str] = ()
    ) -> dict[str, Imported]:
        return self.oracle.sweep(
            self.shelf.tree,
            self.below,
            modules,
            self.scratch,
            going=going,
            loadable=closed,
            bytecode=self.bytecode.prefix,
        )

    # ---- the team's own command ----

    def _verify(self, verification: Verification, decision: Decision) -> None:
        """Put back what makes the team's command pass as before."""
        if not verification.run(self.shelf.tree, self.below):
            return

        def passes() -> bool:
            return not verification.run(self.shelf.tree, self.below)

        # A rule's paths side by side, since it is most often one rule that is wrong.
        in_order = [path for rule in self.shelf.proposals.rules for path in self.shelf.proposals.paths[rule.name]]
        out = [path for path in in_order if self.shelf.is_out(path)]
        self.shelf.put_back(out)
        needed = self._bisect(out, passes)
        decision.restored.update(dict.fromkeys(sorted(needed), VERIFY))
        self._put_back_whole(VERIFY, needed, decision)
        if not passes():
            self._give_up(VERIFY, decision)


def files_in(tree: Path) -> list[str]:
    """The paths of all files of a tree, sorted."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), tree) for folder, _, names in os.walk(tree) for name in names
    )


def _closure(
    closed: Collection[str], working: Mapping[str, Imported], modules: Mapping[str, str], tree: Path
) -> dict[str, str]:
    """Of the paths ``closed``, what is loaded by what works, path -> the import; and what belongs to that.

    To it belong the modules that the source of what stays imports anywhere, so that a function finds them when it is
    called; the data of the nearest folder above it with modules, where one of these stays; and the libraries that
    compiled files need.
    """
    if not closed:
        return {}
    loaded: dict[str, str] = {}
    for name in sorted(working):
        for path in working[name].loaded:
            if path in closed:
                loaded.setdefault(path, name)
    _add_imported(loaded, closed, modules, tree)
    sources = {path for path in modules.values() if not _is_plain_library(tree / path)}
    with_modules = {os.path.dirname(path) for path in sources}
    staying = {os.path.dirname(path): name for name, path in modules.items() if path not in closed}
    staying |= {os.path.dirname(path): name for path, name in loaded.items()}
    for path in closed:
        if path not in sources:
            home = next((folder for folder in reversed(_above(path)) if folder in with_modules), "")
            if home in staying:
                loaded[path] = staying[home]
    _add_needed(loaded, closed, tree)
    return loaded


def _add_imported(loaded: dict[str, str], closed: Collection[str], modules: Mapping[str, str], tree: Path) -> None:
    """Add what the sources of staying modules import, wherever in them, and what that imports."""
    names = {path: name for name, path in modules.items()}
    tops = {name.partition(".")[0].encode() for name, path in modules.items() if path in closed}
    pending = [path for path in names if path not in closed or path in loaded]
    while pending:
        path = pending.pop()
        if not path.endswith(".py"):
            continue
        source = (tree / path).read_bytes()
        inside = path.split("/")[0].encode() in tops
        if not inside and not any(top in source for top in tops):
            continue
        for wanted in imported_by(source, names[path], path.endswith("__init__.py")):
            parts = wanted.split(".")
            for above in [".".join(parts[: number + 1]) for number in range(len(parts))]:
                found = modules.get(above, "")
                if found in closed and found not in loaded:
                    loaded[found] = names[path]
                    pending.append(found)


def _is_plain_library(file: Path) -> bool:
    """Whether a ``.so`` is none that Python could import, but one that others are linked with."""
    if file.suffix != ".so" or ".cpython-" in file.name or ".abi3." in file.name:
        return False
    return f"PyInit_{file.name.split('.')[0]}".encode() not in file.read_bytes()


def _add_needed(loaded: dict[str, str], closed: Collection[str], tree: Path) -> None:
    """Add the libraries that compiled files which stay are linked with."""
    libraries = {os.path.basename(path): path for path in closed if ".so" in os.path.basename(path)}
    pending = [path for path in files_in(tree) if ".so" in os.path.basename(path)] if libraries else []
    pending = [path for path in pending if path not in closed or path in loaded]
    while pending:
        path = pending.pop()
        with suppress(BrokenElf):
            elf = read_elf((tree / path).read_bytes())
            for needed in elf.needed if elf else ():
                library = libraries.get(needed, "")
                if library and library not in loaded:
                    loaded[library] = loaded.get(path, path)
                    pending.append(library)


def _going(
    proposed: Iterable[str], paths: Sequence[str], modules: Mapping[str, str], elsewhere: frozenset[str]
) -> Going:
    """What would be missed: the files, the folders of which nothing is left, and the modules."""
    files = frozenset(proposed)
    staying = {folder for path in paths if path not in files for folder in _above(path)}
    folders = {folder for path in files for folder in _above(path)} - staying
    return Going(files, frozenset(folders), {name: path for name, path in modules.items() if path in files}, elsewhere)


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
