"""Agreeing on what several layers of a stack carry: a file goes from all of them, or stays in all of them.

Layers that do not depend on each other may carry one distribution. Each decides alone what it lets go of it, and what
goes in the end is what every one of them lets go: where one keeps a file, or the debug symbols in it, so do the others.
A stub has the same text in all of them. So a function has whole distributions, whichever of the layers it attaches.

What a layer decided alone can be told from its build, since the manifest has what it keeps for others. A layer that is
not built, or from something else than its sources are now, has no say until it is built.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from layerkit.locking import read_lock
from layerkit.manifests import read_manifest
from layerkit.model import SYMBOLS, Manifest, Optimized, Target, keeper
from layerkit.project import Project
from layerkit.results import digest_of
from layerkit.trees import installed


@dataclass(frozen=True)
class Own:
    """What one layer decided alone about the distributions that it carries."""

    stays: Mapping[str, frozenset[str]]
    """Distribution with its version -> the paths that stay."""
    stubs: Callable[[Collection[str]], Mapping[str, str]]
    """Where its stubs stand, path -> rule, when these paths stay as well."""
    strips: bool
    """Whether it takes out debug symbols at all."""
    unstripped: frozenset[str] = frozenset()
    """Where it leaves them all the same."""

    def keeps_symbols(self, path: str) -> bool:
        return not self.strips or path in self.unstripped


@dataclass(frozen=True)
class Agreed:
    """What a layer does because others carry what it carries."""

    files: Mapping[str, str] = field(default_factory=dict)
    """What it lets go and has to keep: path -> the first layer, by name, that keeps it."""
    symbols: Mapping[str, str] = field(default_factory=dict)
    """Compiled files that it leaves as they are, likewise."""
    stubs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Path of each stub -> the layers that let it go, each with its rule."""

    def identity(self, own: str) -> str:
        """The input identity of a layer whose own inputs have the digest ``own``; that one where it is on its own."""
        stubs = {path: dict(by) for path, by in self.stubs.items() if len(by) > 1}
        if not (self.files or self.symbols or stubs):
            return own
        return digest_of(own, sorted(self.files), sorted(self.symbols), stubs)


def agree(owns: Mapping[str, Own]) -> dict[str, Agreed]:
    """What each layer does because of the others, by name, from what each decided alone."""
    carriers: dict[str, list[str]] = {}
    for name in sorted(owns):
        for distribution in owns[name].stays:
            carriers.setdefault(distribution, []).append(name)
    kept = {
        distribution: frozenset().union(*(owns[name].stays[distribution] for name in names))
        for distribution, names in carriers.items()
    }
    files: dict[str, dict[str, str]] = {name: {} for name in owns}
    symbols: dict[str, dict[str, str]] = {name: {} for name in owns}
    for name, own in owns.items():
        for distribution, stays in own.stays.items():
            mates = [other for other in carriers[distribution] if other != name]
            for other in mates:
                for path in owns[other].stays[distribution] - stays:
                    files[name].setdefault(path, other)
            for path in filter(can_be_stripped, kept[distribution] if mates else ()):
                keeping = [other for other in mates if owns[other].keeps_symbols(path)]
                if keeping and not own.keeps_symbols(path):
                    symbols[name].setdefault(path, keeping[0])
    stubs = {name: own.stubs(files[name].keys()) for name, own in owns.items()}
    found = {}
    for name, own in owns.items():
        mates = sorted({name, *(other for distribution in own.stays for other in carriers[distribution])})
        by = {path: {other: stubs[other][path] for other in mates if path in stubs[other]} for path in stubs[name]}
        found[name] = Agreed(files[name], symbols[name], by)
    return found


def can_be_stripped(path: str) -> bool:
    """Whether debug symbols may be taken out of a file: extension modules, never libraries under ``*.libs``."""
    return path.endswith(".so") and not path.split("/")[0].endswith(".libs")


def staying(tree: Path, but: Collection[str]) -> dict[str, frozenset[str]]:
    """``Own.stays`` of a tree, less the paths ``but``.

    What every layer has is left out, since no rule takes it; so are scripts, which are on no path on Lambda, and
    bytecode, which may be there or not.
    """
    return {
        f"{found.name} {found.version}": frozenset(
            path
            for path in found.rows
            if path not in but and _counts(path, found.folder.name) and os.path.lexists(tree / path)
        )
        for found in installed(tree)
    }


def _counts(path: str, metadata: str) -> bool:
    top, *below = path.split("/")
    return top not in (metadata, "bin") and "__pycache__" not in (top, *below)


def recorded(optimized: Optimized) -> Agreed:
    """What a layer agreed to when it was built."""
    files: dict[str, str] = {}
    symbols: dict[str, str] = {}
    for rule in optimized.rules:
        found = symbols if rule.rule == SYMBOLS else files
        found.update({path: keeper(reason) for path, reason in rule.restored.items() if keeper(reason)})
    return Agreed(files, symbols, optimized.stubs)


def own_of_build(tree: Path, manifest: Manifest) -> Own:
    """What a layer had decided alone when it was built, from the build as it lies at ``tree``."""
    optimized = manifest.optimized
    assert optimized is not None  # who is not optimized lets nothing go, and takes no part
    stubs = {path: by[manifest.layer] for path, by in optimized.stubs.items()}
    stripping = [rule for rule in optimized.rules if rule.rule == SYMBOLS and rule.outcome != "skipped"]
    return Own(
        stays=staying(tree, {*recorded(optimized).files, *stubs}),
        # With other files in it its stubs may be others, but then it is built again.
        stubs=lambda files: stubs,
        strips=bool(stripping),
        unstripped=frozenset(path for rule in stripping for path, why in rule.restored.items() if not keeper(why)),
    )


def disagreement(layer: str, before: Agreed, now: Agreed, unheard: Collection[str]) -> str:
    """Why a build that agreed to ``before`` has to be made again where ``now`` is agreed; empty when it need not be.

    ``unheard`` are the layers that have no say at present: what was agreed with them stays.
    """
    old, new = _entries(before), _entries(now)
    standing = {(kind, path) for kind, path, name, _ in old if name in unheard and kind != "stub"}
    differing = {entry for entry in old ^ new if entry[2] not in unheard and entry[:2] not in standing}
    names = ", ".join(sorted({name for _, _, name, _ in differing} - {layer}))
    return f"it has to agree with {names or 'itself'} again on what both carry" if differing else ""


def _entries(agreed: Agreed) -> set[tuple[str, str, str, str]]:
    """All of it as (kind, path, layer, rule)."""
    return {
        *(("file", path, name, "") for path, name in agreed.files.items()),
        *(("symbols", path, name, "") for path, name in agreed.symbols.items()),
        *(("stub", path, name, rule) for path, by in agreed.stubs.items() for name, rule in by.items()),
    }


def whole_identity(inputs: str, optimized: Optimized | None) -> str:
    """The input identity of a build: that of its layer on its own, and what it agreed with others on."""
    return recorded(optimized).identity(inputs) if optimized else inputs


# ---- in a checkout ----


def sharers_of(project: Project, target: Target, names: Collection[str]) -> set[str]:
    """The layers in the stacks of ``names`` that carry, by the locks, what another of their stack carries too, or whose
    builds agreed to something when they did."""
    found = set()
    for stack in project.layers.stacks(names):
        members = [layer.name for layer in project.layers.stack(stack, target)]
        locks = {name: lock for name in members if (lock := read_lock(project, name, target))}
        carriers = Counter(str(package) for lock in locks.values() for package in lock.packages)
        for name, lock in locks.items():
            manifest = read_manifest(project.manifest_path(name, target))
            agreed = manifest is not None and whole_identity("", manifest.optimized) != ""
            if agreed or any(carriers[str(package)] > 1 for package in lock.packages):
                found.add(name)
    return found


def disagreeing(project: Project, target: Target, current: Mapping[str, Manifest]) -> dict[str, str]:
    """Of builds that are what their sources say, those that no longer agree with the others, by layer, and why.

    ``current`` has all such builds. Of a layer that is not among them nothing can be said until it is built.
    """
    heard = {name: manifest for name, manifest in current.items() if manifest.optimized}
    sharers = sharers_of(project, target, heard)
    owns = {name: own_in_place(project, manifest) for name, manifest in heard.items() if name in sharers}
    before = {name: agreed_in_place(manifest) for name, manifest in heard.items() if name in sharers}
    return disagreements(project, target, heard, before, agree_in_stacks(project, owns))


def own_in_place(project: Project, manifest: Manifest) -> Own:
    return own_of_build(project.root / manifest.tree.path, manifest)


def agreed_in_place(manifest: Manifest) -> Agreed:
    return recorded(manifest.optimized) if manifest.optimized else Agreed()


def agree_in_stacks(project: Project, owns: Mapping[str, Own]) -> dict[str, Agreed]:
    """What the layers of each stack agree on."""
    found = {}
    for stack in project.layers.stacks(owns):
        found.update(agree({name: own for name, own in owns.items() if project.layers[name].stack == stack}))
    return found


def disagreements(
    project: Project,
    target: Target,
    heard: Collection[str],
    before: Mapping[str, Agreed],
    now: Mapping[str, Agreed],
) -> dict[str, str]:
    """Which of ``before`` have to agree to something else now, and why; ``heard`` are all that have a say."""
    found = {}
    for name, agreed in before.items():
        stack = {layer.name for layer in project.layers.stack(project.layers[name].stack, target)}
        why = disagreement(name, agreed, now[name], stack - set(heard))
        if why:
            found[name] = why
    return found
