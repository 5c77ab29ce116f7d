"""Whether layers work on Lambda: their size and zip, their agreement with each other, and with the target machine.

A check gives findings, or says that it could not run; it is never passed over. Layers are checked as they lie in the
checkout, or as a build has staged them before it lets them in. What reading and importing gave is kept by content, so
that only what changed is read and imported again.
"""

from __future__ import annotations

import json
import os
import posixpath
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from functools import partial
from pathlib import Path
from typing import Any

from layerkit import contents, metadata, trees
from layerkit.builds import TREE, BuiltLayer
from layerkit.elf import BrokenElf, Elf, newer_than
from layerkit.errors import ConfigurationError
from layerkit.interpreters import Interpreter, Unavailable
from layerkit.model import (
    MIB,
    Checked,
    Finding,
    Layers,
    Report,
    Severity,
    Skipped,
    Target,
    is_stub,
)
from layerkit.probing import Bounds, Prober
from layerkit.results import Results, by_name, digest_of, fields, texts, truth, whole_number
from layerkit.runtimes import limits, system_of

RECIPE = 5
"""Raised whenever a check would find something else in the same content than before."""

WARN_AT = 0.9
"""The share of a layer's limit from which it is warned about (the guide: 90 of 100 MB)."""

_SHOWN = 5
"""How many findings of one kind are told one by one."""


@dataclass(frozen=True)
class Check:
    """A check by name: what it is about (``layer`` or ``function``), and what it finds."""

    name: str
    about: str
    finds: str


CHECKS = (
    Check("build", "layer", "there is a build, made from what the lock and the layer's own code say now"),
    Check("size", "layer", "unzipped size against the layer's limit, zip against a direct upload"),
    Check("zip", "layer", "the zip is the one that was built, and Lambda takes it: paths, modes, links, nothing twice"),
    Check("tree", "layer", "the unzipped tree is, file by file, what is in the zip"),
    Check("metadata", "layer", "every distribution is whole, and all it requires is in the layer or one it depends on"),
    Check("versions", "layer", "one version of each distribution in the layers of a stack"),
    Check("files", "layer", "no two layers of a stack have a file of one path with different contents"),
    Check("elf", "layer", "compiled files are for the target: machine, symbol versions, needed libraries, alignment"),
    Check("secrets", "layer", "no private key and no credential in any file, by content"),
    Check("imports", "layer", "every declared import (default: every top-level module) works in the target's Python"),
    Check("function-layers", "function", "at most five layers, of one stack and the function's target, none missing"),
    Check("function-size", "function", "the function's code with all its layers, unzipped, against Lambda's limit"),
    Check("function-event", "function", "its event.json gives its expected.json in the target's Python"),
)


@dataclass(frozen=True)
class Means:
    """What checks run with: which of them, the target's interpreter, bounds, and results that are known already."""

    interpreter: Interpreter | Unavailable
    results: Results
    jobs: int = 1
    bounds: Bounds = field(default_factory=Bounds)
    only: frozenset[str] = frozenset()
    """The checks to run; empty: all."""
    skip: frozenset[str] = frozenset()

    @property
    def complete(self) -> bool:
        """Whether no check is left out."""
        return not self.only and not self.skip

    def runs(self, check: str) -> bool:
        return (not self.only or check in self.only) and check not in self.skip


def check_names(names: Iterable[str], flag: str) -> frozenset[str]:
    """``names`` as a set; ConfigurationError, beginning with ``flag``, for one that is no check."""
    known = [check.name for check in CHECKS]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"{flag}: there is no check called {name!r}.", f"Checks: {', '.join(known)}.")
    return frozenset(names)


# ---- the layers of a checkout ----


def validate_layers(
    layers: Layers,
    names: Sequence[str],
    built: Mapping[str, BuiltLayer],
    target: Target,
    means: Means,
    *,
    seen: Callable[[BuiltLayer], bool],
    tell: Callable[[str, str], None] = lambda layer, check: None,
) -> Report:
    """Run every check of ``means`` on the layers ``names``; ``built`` has all builds there are, by layer.

    ``seen`` says whether a build's files are known to be those of its manifest, so that they need not be read again.
    ``tell`` is called with a layer and a check when it begins.
    """
    checked: list[Checked] = []
    scans: dict[str, _Scan] = {}
    known = {name: seen(one) for name, one in built.items()}
    if any(means.runs(check) for check in ("zip", "tree", "elf", "secrets")):
        for name in names:
            if name in built:
                tell(name, "reading")
                scans[name] = _scan(built[name], means, known[name])
    # What is imported is what lies on the disk, so results are kept by a manifest's hash only where that is the same.
    true = {name for name in built if known[name] or (name in scans and scans[name].as_built)}
    imported = _imports(layers, names, built, true, target, means, tell) if means.runs("imports") else {}

    for name in names:
        if name in built:
            runs = _checks(layers, built[name], built, target, scans)
            if name in imported:
                runs["imports"] = partial(_same, imported[name])
            for check in (check.name for check in CHECKS if check.name in runs and means.runs(check.name)):
                started = time.monotonic()
                result = runs[check]()
                checked.append(replace(result, seconds=result.seconds or time.monotonic() - started))
    return Report(tuple(checked))


def _same(checked: Checked) -> Checked:
    return checked


def _checks(
    layers: Layers,
    one: BuiltLayer,
    built: Mapping[str, BuiltLayer],
    target: Target,
    scans: Mapping[str, _Scan],
) -> dict[str, Callable[[], Checked]]:
    """The checks of one layer by name, apart from its imports."""
    name = one.layer.name
    stack = [built[other] for other in layers if other in built and layers[other].stack == one.layer.stack]
    below = [built[other] for other in layers.dependencies(name) if other in built]
    runs: dict[str, Callable[[], Checked]] = {
        "size": lambda: Checked("size", name, tuple(_size(one)), detail=_of_limit(one)),
        "metadata": lambda: _metadata(one, below, target),
        "versions": lambda: Checked("versions", name, tuple(_versions(one, stack))),
        "files": lambda: Checked("files", name, tuple(_files(one, stack))),
    }
    scan = scans.get(name)
    if scan:
        files = f"{scan.files} files"
        runs["zip"] = lambda: Checked(
            "zip", name, scan.zip, detail=_binary(one.manifest.zip.size), recorded=scan.recorded
        )
        runs["tree"] = lambda: Checked("tree", name, scan.tree, scan.not_compared, files, recorded=scan.recorded)
        runs["secrets"] = lambda: Checked("secrets", name, scan.secrets, detail=files, recorded=scan.recorded)
        runs["elf"] = lambda: _elf(one, scan, below, scans, target)
    return runs


def _of_limit(one: BuiltLayer) -> str:
    """``118.2 of 170 MiB``, with the reason where that is not the usual limit."""
    reason = f" ({one.layer.limit_reason})" if one.layer.limit_reason else ""
    return f"{one.manifest.tree.size / MIB:.1f} of {one.layer.max_size_mb} MiB{reason}"


def _binary(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def _errors(
    check: str, subject: str, problems: Sequence[str], hint: str = "", more: str = "more"
) -> tuple[Finding, ...]:
    """Findings for ``problems``, those past the first few in one."""
    found = [Finding(check, Severity.ERROR, subject, problem, hint) for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        found.append(Finding(check, Severity.ERROR, subject, f"and {len(problems) - _SHOWN} {more}"))
    return tuple(found)


# ---- size ----


def _size(one: BuiltLayer) -> list[Finding]:
    """The unzipped size against the layer's own limit (layer.toml, else 100 MB) and Lambda's, the zip's for uploads."""
    layer, manifest = one.layer, one.manifest
    size = manifest.tree.size
    shown = f"{size / MIB:.1f} MiB unzipped"
    found = []
    if size > limits()["function_unzipped"]:
        found.append(
            Finding(
                "size",
                Severity.ERROR,
                layer.name,
                f"{shown}; a function with all its layers may have {limits()['function_unzipped'] / MIB:.0f} MiB",
                "Split the layer, or take distributions out.",
            )
        )
    elif size > layer.max_size:
        found.append(
            Finding(
                "size",
                Severity.ERROR,
                layer.name,
                f"{shown}; its limit is {layer.max_size_mb} MiB",
                "Take distributions out, or raise max_size_mb in layer.toml and give the limit_reason.",
            )
        )
    elif size > WARN_AT * layer.max_size:
        message = f"{shown}, close to its limit of {layer.max_size_mb} MiB"
        found.append(Finding("size", Severity.WARNING, layer.name, message))
    if manifest.zip.size > limits()["direct_upload"]:
        message = f"{manifest.zip.size / MIB:.1f} MiB zipped: more than the 50 MiB of a direct upload, so it goes by S3"
        found.append(Finding("size", Severity.WARNING, layer.name, message))
    return found


# ---- what reading the files gives ----


@dataclass(frozen=True)
class _Scan:
    """What reading a layer's tree and zip gave."""

    zip: tuple[Finding, ...]
    tree: tuple[Finding, ...]
    not_compared: tuple[Skipped, ...]
    """Why the tree could not be held against the zip; empty when it was."""
    secrets: tuple[Finding, ...]
    compiled: Mapping[str, Elf | str]
    """By path: what an ELF file asks for, or a text that says why it can't be read."""
    files: int
    recorded: bool

    @property
    def as_built(self) -> bool:
        """Whether tree and zip are those of the manifest."""
        return not (self.zip or self.tree or self.not_compared)


def _scan(one: BuiltLayer, means: Means, seen: bool) -> _Scan:
    name = one.layer.name
    key = digest_of(RECIPE, one.manifest.tree.sha256, one.manifest.zip.sha256)
    known = means.results.read("contents", key, _contents) if seen else None
    if known:
        leaked, compiled, files = known
        secrets = tuple(Finding("secrets", Severity.ERROR, name, *entry) for entry in leaked)
        return _Scan((), (), (), secrets, compiled, files, recorded=True)
    zip_problems, readable = _zip_problems(one)
    read = contents.read_contents(one.tree, one.archive if readable else None, TREE, means.jobs)
    compiled = {path: _compiled(elf) for path, elf in read.elves.items()}
    leaks = [
        (
            f"{secret.path}:{secret.line} has {secret.what}",
            "Take it out of the layer, and replace it wherever it is used: it has been copied.",
        )
        for secret in read.secrets
    ]
    if not zip_problems and not read.differences:
        # Kept by the hash of the tree, so only where the tree is the one that has it.
        kept = {path: elf if isinstance(elf, str) else asdict(elf) for path, elf in compiled.items()}
        means.results.put("contents", key, {"secrets": leaks, "compiled": kept, "files": read.files})
    return _Scan(
        zip=_errors("zip", name, zip_problems, _REBUILD),
        tree=_errors("tree", name, read.differences, _REBUILD, "files more that differ from the zip"),
        not_compared=() if readable else (Skipped("tree", name, "its zip can't be read", _REBUILD),),
        secrets=tuple(Finding("secrets", Severity.ERROR, name, *entry) for entry in leaks),
        compiled=compiled,
        files=read.files,
        recorded=False,
    )


_REBUILD = "Build it again: inv build --clean"


def _compiled(elf: Elf | BrokenElf) -> Elf | str:
    return str(elf) if isinstance(elf, BrokenElf) else elf


def _contents(known: Any) -> tuple[list[list[str]], dict[str, Elf | str], int]:
    """What ``_scan`` keeps: secrets (a message and a hint each), compiled files, the number of files."""
    secrets, compiled, files = fields(known, "secrets", "compiled", "files")
    elves = {path: entry if isinstance(entry, str) else _elf_of(entry) for path, entry in by_name(compiled).items()}
    return pairs(secrets), elves, whole_number(files)


def _elf_of(known: Any) -> Elf:
    machine, soname, needed, versions, aligned = fields(known, *(field.name for field in dataclass_fields(Elf)))
    texts([machine, soname])
    libraries = {library: tuple(texts(found)) for library, found in by_name(versions).items()}
    return Elf(machine, soname, tuple(texts(needed)), libraries, truth(aligned))


def pairs(known: Any) -> list[list[str]]:
    """A result that is a list of two texts each; ValueError for any other."""
    if not isinstance(known, list) or any(len(texts(entry)) != 2 for entry in known):
        raise ValueError("not a list of pairs")
    return known


def _zip_problems(one: BuiltLayer) -> tuple[list[str], bool]:
    """The zip as a reader sees it: the bytes that were built, nothing outside of it, all readable by Lambda's user.

    The problems, and whether its members can be listed at all.
    """
    problems = []
    if contents.file_digest(one.archive) != one.manifest.zip.sha256:
        problems.append(f"{one.archive.name} is not the one that was built: its SHA-256 is another")
    try:
        with zipfile.ZipFile(one.archive) as archive:
            problems += _member_problems(archive)
            return problems, True
    # A damaged zip, or a damaged member in it (a link's target is read).
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError) as error:
        problems.append(f"{one.archive.name} can't be read: {error}")
        return problems, False


def _member_problems(archive: zipfile.ZipFile) -> list[str]:
    problems = []
    seen: set[str] = set()
    for info in archive.infolist():
        name, mode = info.filename, info.external_attr >> 16
        normal = posixpath.normpath(name)
        if name.startswith("/") or "\\" in name or normal != name or normal.startswith(".."):
            problems.append(f"{name!r} is not a plain path below the layer's root")
        if name in seen:
            problems.append(f"{name} is there twice")
        seen.add(name)
        if not mode & 0o004:
            problems.append(f"{name} can't be read by Lambda's user (mode {mode & 0o777:o})")
        if mode & 0o170000 == 0o120000:
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), archive.read(info).decode()))
            if to.startswith(("/", "..")):
                problems.append(f"{name} is a link that leaves the layer")
    return problems


# ---- agreement ----


def _metadata(one: BuiltLayer, below: Sequence[BuiltLayer], target: Target) -> Checked:
    """Whether each distribution is whole, and what all of them require is in sight, at a version that will do."""
    name = one.layer.name
    own = {found.name: metadata.described(found) for found in trees.installed(one.tree)}
    problems = [f"{found.name}: {found.problem}" for found in own.values() if found.problem]
    listed = {entry.name: entry.version for entry in one.manifest.distributions}
    problems += [
        f"{missing} {listed[missing]} is in the manifest, but has no dist-info in the tree"
        for missing in sorted(listed.keys() - own.keys())
    ]
    findings = list(_errors("metadata", name, problems, _REBUILD))
    for entry in _unmet(one, [*below, one], target):
        there = f"there is {entry.found}" if entry.found else "neither the layer nor one it depends on has it"
        if entry.by not in own and entry.by != f"layers/{name}":
            continue  # a dependency's own need, which is found where that layer is checked
        message = f"{entry.by} requires {entry.requirement}; {there}"
        findings.append(Finding("metadata", Severity.ERROR, name, message, "Lock again and build: inv lock, inv build"))
    return Checked("metadata", name, tuple(findings), detail=f"{len(own)} distributions")


def _versions(one: BuiltLayer, stack: Sequence[BuiltLayer]) -> list[Finding]:
    found = []
    for other in stack:
        theirs = {entry.name: entry.version for entry in other.manifest.distributions}
        for entry in one.manifest.distributions:
            version = theirs.get(entry.name, entry.version)
            if version != entry.version:
                message = f"{entry.name} is {entry.version} here and {version} in {other.layer.name}"
                hint = "Layers of one stack meet in functions: inv lock, then inv build"
                found.append(Finding("versions", Severity.ERROR, one.layer.name, message, hint))
    return found


_APART = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
"""Files that installers write about an installation; nothing imports them."""


def _files(one: BuiltLayer, stack: Sequence[BuiltLayer]) -> list[Finding]:
    """Files of one path in two layers: the later layer's wins in a function, so they have to be the same."""
    problems = []
    own = _paths(one.tree)
    for other in stack:
        if other.layer.name == one.layer.name:
            continue
        problems += [
            f"{path} is another file in {other.layer.name}"
            for path in sorted(own & _paths(other.tree))
            if (one.tree / path).read_bytes() != (other.tree / path).read_bytes()
        ]
    hint = "A function that attaches both has the later layer's: rename one, or let one layer depend on the other."
    return list(_errors("files", one.layer.name, problems, hint, "files more that differ"))


def _paths(tree: Path) -> set[str]:
    found = set()
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name != "__pycache__"]
        shown = os.path.relpath(folder, tree)
        for name in names:
            if not (folder.endswith(".dist-info") and name in _APART):
                found.add(os.path.normpath(os.path.join(shown, name)))
    return found


# ---- compiled files ----


def _elf(
    one: BuiltLayer,
    scan: _Scan,
    below: Sequence[BuiltLayer],
    scans: Mapping[str, _Scan],
    target: Target,
) -> Checked:
    system = system_of(target.runtime)
    bundled = {path.rpartition("/")[2] for path in scan.compiled}
    for other in below:
        known = scans.get(other.layer.name)
        theirs = known.compiled if known else contents.library_names(other.tree)
        bundled |= {path.rpartition("/")[2] for path in theirs}
    wrong, newer, missing, other_problems = [], [], [], []
    for path, elf in sorted(scan.compiled.items()):
        if isinstance(elf, str):
            other_problems.append(f"{path} is a damaged ELF file: {elf}")
            continue
        if elf.machine != target.architecture:
            wrong.append(f"{path} is for {elf.machine}, and the layer for {target.architecture}")
            continue
        for library, version, limit in newer_than(elf, system.symbols, bundled):
            there = f"{version.partition('_')[0]} {limit}"
            newer.append(f"{path} needs {version} of {library}; {target.runtime} ({system.os}) has {there}")
        gone = [library for library in elf.needed if library not in bundled and library not in system.libraries]
        if gone:
            missing.append(
                f"{path} needs {', '.join(gone)}, which is neither in the layers nor known to be in {target.runtime}"
            )
        if not elf.aligned:
            other_problems.append(f"{path} can't be mapped: its segments are not aligned, as after a strip of it")
    name = one.layer.name
    findings = (
        *_errors("elf", name, wrong, "Build the layer again for its target.", "files more of another architecture"),
        *_errors("elf", name, newer, "Ask for a version with a wheel for an older glibc.", "files more too new"),
        *_errors("elf", name, missing, "Put the library into the layer, or use a wheel that brings it.", "files more"),
        *_errors("elf", name, other_problems, _REBUILD),
    )
    return Checked("elf", name, findings, detail=f"{len(scan.compiled)} compiled files", recorded=scan.recorded)


# ---- imports ----


def _imports(
    layers: Layers,
    names: Sequence[str],
    built: Mapping[str, BuiltLayer],
    true: Collection[str],
    target: Target,
    means: Means,
    tell: Callable[[str, str], None],
) -> dict[str, Checked]:
    """The check ``imports`` of several layers at once, in one pool of processes.

    ``true`` are the layers whose tree on disk is that of their manifest: only of them results are kept and believed.
    """
    done: dict[str, Checked] = {}
    pending: dict[str, tuple[str, list[str]]] = {}
    for name in names:
        one = built.get(name)
        if one is None:
            continue
        modules = list(one.layer.imports or _top_level(one))
        if isinstance(means.interpreter, Unavailable):
            skipped = Skipped("imports", name, means.interpreter.reason, means.interpreter.hint)
            done[name] = Checked("imports", name, skipped=(skipped,), detail=f"{len(modules)} modules")
            continue
        below = layers.dependencies(name)
        missing = [other for other in below if other not in built]
        if missing:
            skipped = Skipped("imports", name, f"it depends on {', '.join(missing)}, which is not built")
            done[name] = Checked("imports", name, skipped=(skipped,), detail=f"{len(modules)} modules")
            continue
        hashes = [built[other].manifest.tree.sha256 for other in (*below, name)]
        key = digest_of(RECIPE, hashes, modules, means.interpreter.version, asdict(means.bounds))
        known = means.results.read("imports", key, pairs) if {*below, name} <= {*true} else None
        if known is None:
            pending[name] = (key, modules)
        else:
            done[name] = replace(_imported(layers, built[name], modules, known, built, target), recorded=True)
    if pending and isinstance(means.interpreter, Interpreter):
        started = time.monotonic()
        wanted = []
        for name, (_, modules) in pending.items():
            tell(name, "importing")
            path = [built[other].tree for other in (*layers.dependencies(name), name)]
            wanted += [(module, path) for module in modules]
        outcomes = iter(Prober(means.interpreter, means.bounds).imports(wanted, target, means.jobs))
        for name, (key, modules) in pending.items():
            results = {module: next(outcomes) for module in modules}
            entries = [
                [f"import {module}: {result.failure.message}", result.failure.missing]
                for module, result in results.items()
                if result.failure
            ]
            settled = not any(result.failure and result.failure.unsettled for result in results.values())
            if settled and {*layers.dependencies(name), name} <= {*true}:
                means.results.put("imports", key, entries)
            seconds = (time.monotonic() - started) / len(pending)
            done[name] = replace(_imported(layers, built[name], modules, entries, built, target), seconds=seconds)
    return done


def _top_level(one: BuiltLayer) -> list[str]:
    """The top-level modules that have to import: a stub in the place of one is there to fail."""
    stubs = one.manifest.optimized.stubs if one.manifest.optimized else {}
    return [module for module in metadata.top_level_modules(one.tree) if not is_stub(module, stubs)]


def _imported(
    layers: Layers,
    one: BuiltLayer,
    modules: Sequence[str],
    entries: Sequence[Sequence[str]],
    built: Mapping[str, BuiltLayer],
    target: Target,
) -> Checked:
    """The check from what is kept of imports that failed: a message, and the module that was missing, if any."""
    name = one.layer.name
    left_out = _left_out(built[other] for other in (*layers.dependencies(name), name))
    findings, skipped = [], []
    for message, missing in entries:
        if missing.partition(".")[0] in left_out:
            reason = f"{message.partition(':')[0]} needs {missing}, which is left to the runtime and is not here"
            skipped.append(Skipped("imports", name, reason, "Carry it in a layer to have it tried here."))
        else:
            hint = _explain(missing, layers, one, built, target) if missing else ""
            findings.append(Finding("imports", Severity.ERROR, name, message, hint))
    return Checked("imports", name, tuple(findings), tuple(skipped), f"{len(modules)} modules")


def _explain(missing: str, layers: Layers, one: BuiltLayer, built: Mapping[str, BuiltLayer], target: Target) -> str:
    """Which distribution a missing module is from, and which layer should carry it."""
    name = one.layer.name
    top = missing.partition(".")[0]
    visible = {name, *layers.dependencies(name)}
    for other in (name, *(other for other in layers if other != name)):
        if other not in built:
            continue
        there = trees.installed(built[other].tree)
        provider = metadata.provider_of(missing, there)
        if provider and other in visible:
            return f"{provider} in {other} is there, but not whole: {_REBUILD}"
        if provider and layers[other].stack == one.layer.stack:
            line = f"depends_on = [{json.dumps(other)}]"
            return f"{provider} is in the layer {other}: add {line} to layers/{name}/layer.toml."
        package = metadata.provider_of(f"{top}.__init__", there)
        if package and other in visible:
            return f"{package} in {other} has no {missing}: another version of it may."
    for requirement in one.layer.requirements:
        if requirement.name == _as_distribution(top) and not metadata.applies(requirement, target):
            return f"{requirement.where} asks for it as {requirement.text!r}, which leaves out {target}."
    for other in sorted(visible):
        for found in trees.installed(built[other].tree) if other in built else ():
            for needed in metadata.described(found).requires:
                if metadata.required_name(needed) == _as_distribution(top):
                    return (
                        f"{found.name} (in {other}) requires {needed!r}, which no layer of the stack carries: "
                        f"add it to layers/{other}/requirements.txt, then `inv lock`."
                    )
    # A module may be called otherwise than its distribution (dateutil is of python-dateutil).
    absent = _unmet(one, [built[other] for other in visible if other in built], target)
    lacking = [f"{entry.requirement} (required by {entry.by})" for entry in absent if not entry.found]
    if lacking:
        return f"No layer of the stack has it. Not there either: {', '.join(lacking)}. Lock again and build: inv lock"
    return f"No layer of the stack has it: add its distribution to layers/{name}/requirements.txt, then `inv lock`."


def _unmet(one: BuiltLayer, visible: Iterable[BuiltLayer], target: Target) -> list[metadata.Unmet]:
    """What the layer's requirements and all distributions in sight require, and nothing in sight satisfies."""
    visible = list(visible)
    described = {found.name: metadata.described(found) for other in visible for found in trees.installed(other.tree)}
    left_out = _left_out(visible)
    found = metadata.unmet(one.layer.requirements, described, target, f"layers/{one.layer.name}")
    # What the runtime brings is there, at a version that nobody here can know.
    return [entry for entry in found if metadata.required_name(entry.requirement) not in left_out]


def _left_out(visible: Iterable[BuiltLayer]) -> set[str]:
    """The distributions that optimization left to the runtime; modules have the same names."""
    return {name for other in visible if other.manifest.optimized for name in other.manifest.optimized.left_out}


def _as_distribution(module: str) -> str:
    return module.replace("_", "-").lower()
