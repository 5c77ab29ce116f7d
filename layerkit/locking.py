"""Locks: one resolution for the layers of a stack, then a hashed requirements file for each layer and target.

A lock lists the exact file of every distribution that its layer installs, without those that a layer in its
``depends_on`` carries. It records a digest of what it was worked out from (the layer's requirements and the settings
that bear on them), so that whether it is current is known without asking anybody. The locks of one run get in together
or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from packaging.requirements import Requirement as ParsedRequirement

from layerkit.errors import ConfigurationError
from layerkit.files import decided, finish_set, write_set
from layerkit.installer import NoWheel, Unsatisfiable, Uv, render_requirement
from layerkit.model import Layer, Lock, LockChange, Package, Target, normalized
from layerkit.processes import end_all, uninterrupted
from layerkit.project import Project
from layerkit.runtimes import check_architecture, runtime_named, uv_platform

_PROJECT = "layerkit-layer-"
"""Prefix of the projects that stand for layers in a resolution: no distribution is called that."""


def inputs_digest(layer: Layer, target: Target) -> str:
    """SHA-256 over what the layer's lock for ``target`` is worked out from."""
    inputs = {
        "requirements": sorted(requirement.text for requirement in layer.requirements),
        "depends_on": sorted(layer.depends_on),
        "stack": layer.stack,
        "allow_sdist": sorted(layer.allow_sdist),
        "python": target.python_version,
        "platform": uv_platform(target),
    }
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


# ---- the file ----


def render_lock(lock: Lock) -> str:
    """The lock as text: comments that say what it is, then hashed requirements that pip and uv can read."""
    lines = [
        "# Written by `inv lock`: edit the layer's requirements, not this file.",
        f"# layer: {lock.layer}",
        f"# target: {lock.target}",
        f"# inputs: sha256:{lock.inputs}",
        *(f"# provided by {layer}: {name}" for name, layer in sorted(lock.provided.items())),
        *(f"# built from source: {package.name}" for package in lock.packages if package.sdist),
    ]
    return "\n".join(lines) + "\n" + "".join(render_requirement(package) for package in sorted(lock.packages))


_ENTRY = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s\\;]+)(?P<hashes>(?:[ \t]*\\\n[ \t]+--hash=sha256:[0-9a-f]{64})+)\n"
)
_COMMENT = re.compile(r"# (?P<key>layer|target|inputs|provided by \S+|built from source): (?P<value>.+)\n")


def parse_lock(text: str, where: str) -> Lock:
    """The inverse of ``render_lock``; ConfigurationError with file and line for anything it would not write."""
    found: dict[str, str] = {}
    provided: dict[str, str] = {}
    sdists: set[str] = set()
    packages = []
    position = 0
    while position < len(text):
        comment = _COMMENT.match(text, position)
        entry = _ENTRY.match(text, position)
        match = comment or entry or re.compile(r"#[^\n]*\n").match(text, position)
        if not match:
            line = text.count("\n", 0, position) + 1
            raise ConfigurationError(f"{where}:{line}: not a line that `inv lock` writes.", _RELOCK)
        if comment and comment["key"].startswith("provided by "):
            provided[comment["value"]] = comment["key"].removeprefix("provided by ")
        elif comment and comment["key"] == "built from source":
            sdists.add(comment["value"])
        elif comment:
            found[comment["key"]] = comment["value"]
        elif entry:
            name = normalized(entry["name"])
            hashes = tuple(sorted(re.findall(r"sha256:([0-9a-f]{64})", entry["hashes"])))
            packages.append(Package(name, entry["version"], hashes, sdist=name in sdists))
        position = match.end()
    runtime, _, architecture = found.get("target", "").partition("-")
    if not {"layer", "target", "inputs"} <= set(found) or not architecture:
        raise ConfigurationError(f"{where}: the comments that `inv lock` writes first are missing.", _RELOCK)
    inputs = found["inputs"].removeprefix("sha256:")
    return Lock(found["layer"], Target(runtime, architecture), inputs, tuple(sorted(packages)), provided)


_RELOCK = "Remove the file and run `inv lock`, or bring back the committed one."


def read_lock(project: Project, name: str, target: Target) -> Lock | None:
    """The lock of one layer and target; None where there is no file."""
    path = project.lock_path(name, target)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{project.relative(path)}: can't be read as UTF-8 text: {error}.", _RELOCK) from error
    return parse_lock(text, project.relative(path))


def locked_targets(project: Project) -> tuple[Target, ...]:
    """The default target, and every other that some layer has a lock for.

    ConfigurationError for a file that is called like a lock, but for a target that Lambda does not have.
    """
    targets = {project.default_target}
    for path in sorted((project.root / "layers").glob("*/locks/*.txt")):
        runtime, _, architecture = path.stem.partition("-")
        if runtime and architecture:
            where = project.relative(path)
            targets.add(Target(runtime_named(runtime, where).name, check_architecture(architecture, where)))
    return (project.default_target, *sorted(targets - {project.default_target}))


# ---- is it current? ----


def stale(project: Project, stack: Sequence[Layer], target: Target) -> dict[str, str]:
    """Why the locks of a stack are not current, by layer; empty when all are.

    Reads files only. Current means: every layer's inputs are those that its lock was worked out from, everything it
    counts on in another layer is there, no distribution has two versions in the stack, and every version is one that
    the requirements allow. Locks that do not agree come from a merge of two branches, or from editing.
    """
    reasons: dict[str, str] = {}
    locks: dict[str, Lock] = {}
    waiting = decided(journal(project))
    for layer in stack:
        lock = read_lock(project, layer.name, target)
        if project.relative(project.lock_path(layer.name, target)) in waiting:
            reasons[layer.name] = "`inv lock` was interrupted while it put its new lock in place"
        elif lock is None:
            reasons[layer.name] = "no lock yet"
        elif lock.inputs != inputs_digest(layer, target):
            reasons[layer.name] = "its requirements have changed"
        else:
            locks[layer.name] = lock
    versions: dict[str, tuple[str, str]] = {}
    for name, lock in locks.items():
        for package in lock.packages:
            version, other = versions.setdefault(package.name, (package.version, name))
            if version != package.version:
                reasons[name] = f"{package} here, but {version} in {other}"
        for needed, provider in lock.provided.items():
            carried = locks[provider].packages if provider in locks else ()
            if provider not in reasons and all(package.name != needed for package in carried):
                reasons[name] = f"{provider} no longer carries {needed}"
    for layer in stack:
        if layer.name in locks and layer.name not in reasons:
            refused = _not_allowed(layer, locks, target)
            if refused:
                reasons[layer.name] = refused
    return reasons


def _not_allowed(layer: Layer, locks: Mapping[str, Lock], target: Target) -> str:
    """Which version, of the layer's own lock or of a layer it counts on, its requirements do not allow; else empty."""
    own = locks[layer.name]
    environment = markers(target)
    for requirement in layer.requirements:
        parsed = ParsedRequirement(requirement.text)
        if parsed.marker and not parsed.marker.evaluate(environment):
            continue
        holder = own.provided.get(requirement.name, layer.name)
        for package in locks[holder].packages if holder in locks else ():
            if package.name == requirement.name and not parsed.specifier.contains(package.version, prereleases=True):
                whose = "its lock has" if holder == layer.name else f"{holder} carries"
                return f"{requirement.where} asks for {requirement.text}, but {whose} {package.version}"
    return ""


def markers(target: Target) -> dict[str, str]:
    """What the markers of requirements are judged by: what uv takes them to be on ``target``."""
    full_version = f"{target.python_version}.0"
    return {
        "implementation_name": "cpython",
        "implementation_version": full_version,
        "os_name": "posix",
        "platform_machine": {"arm64": "aarch64"}.get(target.architecture, target.architecture),
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full_version,
        "python_version": target.python_version,
        "sys_platform": "linux",
    }


# ---- locking ----


class _Held(ConfigurationError):
    """What is asked for does not go while layers that were not named keep their versions."""


def lock(
    project: Project,
    targets: Sequence[Target],
    *,
    layers: Sequence[str] = (),
    follow: bool = False,
    upgrade: bool = False,
    packages: Sequence[str] = (),
    uv: Uv,
    scratch: Path,
    tell: Callable[[str], None] = lambda message: None,
) -> tuple[LockChange, ...]:
    """Lock ``layers`` (none named: all) for ``targets`` and write the locks that change: all of them, or none.

    Layers of a stack are resolved together whichever are named, but only those named may change, and with ``follow``
    those that have to move along; without ``upgrade`` (everything) or ``packages`` (these distributions) nothing
    changes that need not. A target without locks starts from the default target's versions, so name that one first.
    Layers that are not for a target are left out. The caller holds the checkout's lock; ``scratch`` is a folder in
    the checkout that does not exist yet.

    Raises ConfigurationError when the requirements can't be met (naming the layers and the lines), when a
    distribution has no wheel for a target, when a layer that was not named would have to change, or when nobody has
    one of ``packages``.
    """
    chosen = [name for name in project.layers if not layers or name in layers]
    stacks = project.layers.stacks(chosen)
    wanted = [normalized(name) for name in packages]
    if wanted:
        _check_known(project, targets, stacks, wanted)
    new: dict[tuple[str, Target], Lock] = {}
    changes: list[LockChange] = []
    for number, (target, stack) in enumerate((target, stack) for target in targets for stack in stacks):
        members = project.layers.stack(stack, target)
        named = {layer.name for layer in members if layer.name in chosen}
        # A layer can't be locked against one that has no lock at all.
        for name in project.layers.with_dependencies(named):
            if read_lock(project, name, target) is None:
                named.add(name)
        if not named:
            continue
        tell(f"{target}: resolving {', '.join(layer.name for layer in members)} together")
        folder = scratch / f"lock-{number}"
        resolution = _Resolution(project, target, members, uv, folder, new, tell)
        try:
            found = resolution.locks(named, upgrade, wanted)
        except _Held:
            if not follow:
                raise
            tell(f"{target}: other layers have to change as well")
            resolution = _Resolution(project, target, members, uv, folder / "all", new, tell)
            found = resolution.locks({layer.name for layer in members}, upgrade, wanted)
        for one, change in found:
            new[one.layer, target] = one
            changes.append(change)
    _write(project, [new[change.layer, change.target] for change in changes if change.written], scratch / "new")
    return tuple(changes)


def _check_known(project: Project, targets: Sequence[Target], stacks: Sequence[str], packages: Sequence[str]) -> None:
    known: set[str] = set()
    for target in targets:
        for stack in stacks:
            members = project.layers.stack(stack, target)
            known |= _names(members, {layer.name: read_lock(project, layer.name, target) for layer in members})
    unknown = sorted(set(packages) - known)
    if unknown:
        raise ConfigurationError(
            f"--package: no layer of the {'stack' if len(stacks) == 1 else 'stacks'} {' and '.join(stacks)} "
            f"has {', '.join(unknown)}.",
            "A new distribution goes into a layer's requirements.txt.",
        )


def _names(layers: Iterable[Layer], locks: Mapping[str, Lock | None]) -> set[str]:
    """The distributions that ``layers`` ask for or have in their locks."""
    asked = {requirement.name for layer in layers for requirement in layer.requirements}
    return asked | {package.name for lock in locks.values() if lock for package in lock.packages}


def journal(project: Project) -> Path:
    """Where new locks, and requirements that change with them, wait once it is decided that they get in."""
    return project.state / "new-locks"


def _write(project: Project, locks: Iterable[Lock], scratch: Path) -> None:
    """Write all ``locks`` or none."""
    contents = {
        project.relative(project.lock_path(lock.layer, lock.target)): render_lock(lock).encode() for lock in locks
    }
    if contents:
        with uninterrupted():
            write_set(contents, project.root, scratch, journal(project))


def finish_locks(project: Project) -> bool:
    """Put in place what an interrupted ``lock`` or ``update`` had decided on; whether there was anything.

    Requirements may change by it, so whoever has read them before reads them again. The caller holds the checkout's
    lock. Safe to call again after a kill at any moment.
    """
    return finish_set(journal(project), project.root)


class _Resolution:
    """One joint resolution of a stack for a target; ``new`` are the locks that this run has worked out already."""

    def __init__(
        self,
        project: Project,
        target: Target,
        layers: Sequence[Layer],
        uv: Uv,
        scratch: Path,
        new: Mapping[tuple[str, Target], Lock],
        tell: Callable[[str], None],
    ) -> None:
        self.project = project
        self.target = target
        self.layers = layers
        self.uv = uv
        self.scratch = scratch
        self.new = new
        self.tell = tell
        self.projects = {layer.name: f"{_PROJECT}{number}" for number, layer in enumerate(layers)}
        self.old = {layer.name: read_lock(project, layer.name, target) for layer in layers}

    def locks(self, named: set[str], upgrade: bool, packages: Sequence[str]) -> list[tuple[Lock, LockChange]]:
        """The locks of the layers ``named``; the others keep what they have, or _Held is raised."""
        reasons = stale(self.project, self.layers, self.target)
        kept = self._pins(set(self.old) - named)
        partial = len(named) < len(self.layers)
        packages = [name for name in packages if name in _names(self.layers, self.old)]
        self._refuse_held(packages, kept, named)
        if upgrade and partial:
            own = self._pins(named)
            packages = sorted(set(own) - set(kept))
            if set(own) & set(kept):
                held = ", ".join(sorted(set(own) & set(kept)))
                self.tell(f"{self.target}: not raised, since layers not named with --layer carry them too: {held}")
        versions, from_sdist = self._versions(kept, upgrade and not partial, packages)
        closures = self._closures(versions, from_sdist)
        results = []
        for layer in self.layers:
            old = self.old[layer.name]
            new = self._lock_of(layer, closures, renew=upgrade or bool(packages))
            change = self._change(layer, new, reasons.get(layer.name, ""), may_write=layer.name in named)
            if layer.name in named:
                results.append((new, change))
            elif old is not None and (change.versions or new.provided != old.provided):
                what = describe_versions(change.versions) or "other layers would carry what it needs"
                raise _Held(
                    f"{layer.name} ({self.target}) would have to change too: {what}.",
                    f"Add --layer {layer.name}, or leave --layer out to lock all layers.",
                )
        return results

    def _refuse_held(self, packages: Sequence[str], kept: Mapping[str, str], named: set[str]) -> None:
        for name in packages:
            if name in kept:
                holders = [
                    layer
                    for layer, lock in self.old.items()
                    if lock and layer not in named and any(package.name == name for package in lock.packages)
                ]
                raise _Held(
                    f"--package {name} ({self.target}): it stays at {kept[name]}, since {' and '.join(holders)} "
                    f"{'carries' if len(holders) == 1 else 'carry'} it and {'is' if len(holders) == 1 else 'are'} "
                    "not named with --layer.",
                    f"Add {' '.join(f'--layer {holder}' for holder in holders)}, or leave --layer out.",
                )

    def _pins(self, names: set[str]) -> dict[str, str]:
        locks = [lock for name, lock in self.old.items() if lock and name in names]
        return {package.name: package.version for lock in locks for package in lock.packages}

    def _preferred(self) -> dict[str, str]:
        """The versions to keep where possible: this target's, and where it has none yet the default target's."""
        preferred = self._pins(set(self.old))
        default = self.project.default_target
        for layer in self.layers:
            other = self.new.get((layer.name, default)) or read_lock(self.project, layer.name, default)
            for package in other.packages if other else ():
                preferred.setdefault(package.name, package.version)
        return preferred

    def _requirements(self, layer: Layer) -> list[str]:
        return [requirement.text for requirement in layer.requirements]

    def _versions(
        self, kept: Mapping[str, str], upgrade: bool, packages: Sequence[str]
    ) -> tuple[dict[str, str], list[str]]:
        """One version of everything, and which distributions have to be built from source."""
        allowed = {name for layer in self.layers for name in layer.allow_sdist}
        from_sdist: list[str] = []
        while True:
            try:
                versions = self.uv.versions(
                    {self.projects[layer.name]: self._requirements(layer) for layer in self.layers},
                    self.target,
                    self.scratch / f"versions-{len(from_sdist)}",
                    preferred=self._preferred(),
                    required=kept,
                    upgrade=upgrade,
                    upgrade_packages=packages,
                    from_sdist=from_sdist,
                )
            except NoWheel as missing:
                if missing.name not in allowed or missing.name in from_sdist:
                    raise self._no_wheel(missing, kept) from missing
                from_sdist.append(missing.name)
            except Unsatisfiable as conflict:
                raise self._conflict(str(conflict), kept) from conflict
            else:
                return versions, from_sdist

    def _closures(self, versions: Mapping[str, str], from_sdist: Sequence[str]) -> dict[str, tuple[Package, ...]]:
        """What each layer needs, by its name, with what others may carry for it."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            try:
                found = pool.map(lambda layer: self._closure(layer, versions, from_sdist), self.layers)
                return {layer.name: packages for layer, packages in zip(self.layers, found, strict=True)}
            except BaseException:  # Ctrl-C too: cleaned up here, and raised again
                end_all()  # the pool waits for its threads, and they for uv
                raise

    def _closure(self, layer: Layer, versions: Mapping[str, str], from_sdist: Sequence[str]) -> tuple[Package, ...]:
        if not layer.requirements:
            return ()
        project = self.projects[layer.name]
        try:
            return self.uv.locked(
                project,
                self._requirements(layer),
                self.target,
                self.scratch / project,
                versions=versions,
                from_sdist=from_sdist,
            )
        except Unsatisfiable as conflict:  # the union was satisfiable with exactly these versions
            raise self._conflict(str(conflict), {}) from conflict

    def _lock_of(self, layer: Layer, closures: Mapping[str, tuple[Package, ...]], *, renew: bool) -> Lock:
        provided: dict[str, str] = {}
        for other in self.project.layers.dependencies(layer.name):
            for package in closures.get(other, ()):
                provided.setdefault(package.name, other)
        old = self.old[layer.name]
        before = {package.name: package for package in old.packages} if old else {}
        packages = []
        for package in closures[layer.name]:
            if package.name in provided:
                continue
            earlier = before.get(package.name)
            if earlier and not renew and (earlier.version, earlier.sdist) == (package.version, package.sdist):
                package = earlier  # a file added to the index since is no reason to change the lock
            if package.sdist and package.name not in layer.allow_sdist:
                raise ConfigurationError(
                    f"layers/{layer.name}/layer.toml: {package} has no wheel, and allow_sdist does not name it.",
                    f'Add allow_sdist = ["{package.name}"] there if it is pure Python.',
                )
            packages.append(package)
        used = {package.name: provided[package.name] for package in closures[layer.name] if package.name in provided}
        return Lock(layer.name, self.target, inputs_digest(layer, self.target), tuple(packages), used)

    def _change(self, layer: Layer, new: Lock, reason: str, *, may_write: bool) -> LockChange:
        old = self.old[layer.name]
        before = {package.name: package.version for package in old.packages} if old else {}
        after = {package.name: package.version for package in new.packages}
        versions = {
            name: (before.get(name), after.get(name))
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        }
        changed = old is None or render_lock(old) != render_lock(new)
        return LockChange(layer.name, self.target, reason, versions, written=may_write and changed)

    # ---- what went wrong, in the user's terms ----

    def _no_wheel(self, missing: NoWheel, kept: Mapping[str, str]) -> ConfigurationError:
        newest = self.uv.newest_with_wheel(missing.name, self.target, self.scratch / "newest")
        if newest:
            hint = f"The newest version that has one is {newest}: ask for {missing.name}=={newest}, or for a range."
        else:
            hint = (
                f"No version of {missing.name} has one. If it is pure Python, add allow_sdist = "
                f'["{missing.name}"] to the layer\'s layer.toml; else build a wheel and put it on an index of yours.'
            )
        return (_Held if kept else ConfigurationError)(
            f"{missing.asked} has no wheel for {self.target}{self._asked_for_by(missing.name)}.", hint
        )

    def _asked_for_by(self, name: str) -> str:
        lines = [
            f"{requirement.text} ({requirement.where})"
            for layer in self.layers
            for requirement in layer.requirements
            if requirement.name == normalized(name)
        ]
        return f", asked for by {' and '.join(lines)}" if lines else ""

    def _conflict(self, explanation: str, kept: Mapping[str, str]) -> ConfigurationError:
        where = {
            (self.projects[layer.name], requirement.name): (layer, requirement)
            for layer in self.layers
            for requirement in layer.requirements
        }
        missing = re.search(r"([A-Za-z0-9._-]+) was not found in the package registry", explanation)
        if missing:
            return ConfigurationError(
                f"no index that uv is set up for has a distribution called {missing[1]}"
                f"{self._asked_for_by(missing[1])}.",
                "Is the name right? Private indexes are set for uv (UV_INDEX, UV_DEFAULT_INDEX or its configuration).",
            )
        sides = []
        for project, needed in re.findall(rf"({_PROJECT}\d+)==0 depends on ([A-Za-z0-9._-]+)", explanation):
            layer, requirement = where.get((project, normalized(needed)), (None, None))
            if layer and requirement:
                sides.append(f"{layer.name} asks for {requirement.text} ({requirement.where})")
        sides = list(dict.fromkeys(sides))
        several = len({side.split(" ", 1)[0] for side in sides}) > 1
        problem = "the layers can't have one version of everything" if several else "the requirements can't be met"
        message = f"{problem} for {self.target}{': ' if sides else ''}{'; '.join(sides)}."
        hint = "Loosen one of these requirements."
        if several:
            hint = "Loosen one of these requirements, or give one of the layers a `stack` of its own in layer.toml."
        if kept:
            hint = "Layers not named with --layer keep their versions: leave --layer out to let all change.\n" + hint
        kind = _Held if kept else ConfigurationError
        return kind(f"{message}\n{self._in_plain_words(explanation)}", hint)

    def _in_plain_words(self, explanation: str) -> str:
        """uv's explanation without the projects that stand for layers."""
        text = " ".join(explanation.split("cause:", 1)[-1].split("\nhint:", 1)[0].split())
        text = re.sub(rf"only ({_PROJECT}\d+)(==0)? is available and ", "", text)
        text = re.sub(rf" and only {_PROJECT}\d+(==0)? is available", "", text)
        text = re.sub(rf"all versions of ({_PROJECT}\d+)", r"\1", text)
        text = re.sub(rf", we can conclude that {_PROJECT}\d+ depend on [^,]*?\. And because", " and", text)
        for name, project in self.projects.items():
            text = re.sub(rf"{re.escape(project)}(==0)?(?!\d)", f"layer {name}", text)
        return text


def describe_versions(versions: Mapping[str, tuple[str | None, str | None]]) -> str:
    """``numpy 2.5.4 -> 2.5.5, six 1.17.0 added``."""
    words = []
    for name, (before, after) in versions.items():
        if before is None:
            words.append(f"{name} {after} added")
        elif after is None:
            words.append(f"{name} {before} dropped")
        else:
            words.append(f"{name} {before} -> {after}")
    return ", ".join(words)
