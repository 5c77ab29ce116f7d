"""Drafts: a checkout as it might be, worked out beside the live one, and let in at once or not at all.

A draft is a folder in ``.layerkit/work`` that is laid out like the checkout and has a copy of its locks, so that
``lock`` and ``build`` do there what they do in the checkout, and nobody sees it. Requirements are changed as values;
what is settled on is written into the files, where a pin's version changes and nothing else. What has changed gets in
together: requirements and locks by one rename to ``.layerkit/new-locks``, as those of a lock, or, with builds, all
three by one rename to ``.layerkit/update``. The next command that locks or builds finishes what was decided.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from packaging.requirements import Requirement as ParsedRequirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from layerkit.building import finish_swap
from layerkit.builds import verdict_path
from layerkit.errors import ConfigurationError, Incomplete
from layerkit.files import remove, sync_folder, write_set, write_whole
from layerkit.installer import Uv
from layerkit.locking import finish_locks, journal, lock, markers, parse_lock, read_lock
from layerkit.manifests import read_manifest
from layerkit.model import Layers, Lock, LockChange, Requirement, Target
from layerkit.processes import uninterrupted
from layerkit.project import Project, parse_requirement

# ---- one line of a requirements file ----


def _pin(specifiers: SpecifierSet) -> Specifier | None:
    pins = [clause for clause in specifiers if clause.operator in ("==", "===") and not clause.version.endswith(".*")]
    if len(pins) != 1:
        return None
    try:
        Version(pins[0].version)
    except InvalidVersion:  # `===` takes any text
        return None
    return pins[0]


def with_clauses(requirement: Requirement, *clauses: str) -> str:
    """The requirement's text with ``clauses`` in the place of its pin, if it has one, and with all its others."""
    parsed = ParsedRequirement(requirement.text)
    pin = _pin(parsed.specifier)
    kept = [str(clause) for clause in parsed.specifier if clause != pin]
    parsed.specifier = SpecifierSet(",".join([*kept, *clauses]))
    return str(parsed)


def at_least(version: str) -> str:
    """The clause for ``version`` and all above; a local version can't be in it, and is above its public one."""
    return f">={Version(version).public}"


def at_most(version: str) -> str:
    """The clause for all up to ``version``, its local versions among them."""
    return f"<={Version(version).public}"


def allows(requirement: Requirement, version: str) -> bool:
    """Whether a requirement lets its distribution have ``version``."""
    return ParsedRequirement(requirement.text).specifier.contains(version, prereleases=True)


def stops(requirement: Requirement, version: str, *, raising: bool) -> bool:
    """Whether a requirement leaves out ``version`` and everything above; with ``raising`` its pin does not count."""
    specifiers = ParsedRequirement(requirement.text).specifier
    pin = _pin(specifiers) if raising else None
    ends = [clause for clause in specifiers if clause != pin and clause.operator in ("<", "<=", "~=", "==", "===")]
    return any(not clause.contains(version, prereleases=True) for clause in ends)


def with_pin(text: str, line: int, requirement: Requirement, version: str) -> str:
    """A requirements file's text with the pin that begins in ``line`` (from 1) at ``version``; all else as it was.

    ``requirement`` is what the line said when it was read. Raises ValueError when it says something else now, or when
    its pin can't be told from the rest.
    """
    lines = text.splitlines(keepends=True)
    end = line
    while end < len(lines) and _is_continued(lines[end - 1]):
        end += 1
    block = "".join(lines[line - 1 : end])
    pin = _pin(ParsedRequirement(requirement.text).specifier)
    if pin is None or _logical(block) != requirement.text:
        raise ValueError("it is not the pin that was read")
    for found in re.finditer(r"(?<![!<>=~])={2,3}(?:\s|\\)*(?P<version>[^\s,;()#\\]+)", block):
        if found["version"] == pin.version:
            changed = block[: found.start("version")] + version + block[found.end("version") :]
            if _logical(changed) != with_clauses(requirement, f"{pin.operator}{version}"):
                break
            return "".join([*lines[: line - 1], changed, *lines[end:]])
    raise ValueError("its version can't be told from the rest")


def _is_continued(line: str) -> bool:
    content = line.splitlines()[0] if line else ""
    return content.endswith("\\") and not content.lstrip().startswith("#")


def _logical(block: str) -> str:
    """What the lines of one requirement say, as ``Requirement.text`` has it; empty when that is no requirement."""
    parts = [line[:-1] if _is_continued(line) else line for line in block.removeprefix("\ufeff").splitlines()]
    joined = re.sub(r"(^|\s+)#.*$", "", "".join(parts)).strip()
    try:
        return parse_requirement(joined, "").text
    except ConfigurationError:
        return ""


def with_line(text: str, line: str) -> tuple[str, int]:
    """A requirements file's text with a line more at its end, and that line's number (from 1)."""
    ending = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if lines and lines[-1] == lines[-1].splitlines()[0]:
        text += ending
    if lines and _is_continued(lines[-1]):
        text += ending
    return f"{text}{line}{ending}", len(text.splitlines()) + 1


# ---- the draft ----


@dataclass(frozen=True)
class LineChange:
    """How one line of a requirements file changes, and which layers read it; ``before`` is empty for a new line."""

    file: str
    line: int
    before: str
    after: str
    layers: tuple[str, ...]


Tell = Callable[[str], None]
"""What a verb says on its way, for a person."""

Place = tuple[str, int]
"""Where a requirement stands: the file's path below the root, links followed, and the line."""


@dataclass(frozen=True)
class Line:
    """A requirement and the layers that read it: several, where its file is included or a link."""

    requirement: Requirement
    owners: frozenset[str]

    @property
    def pin(self) -> str:
        """The version that it is pinned to; empty where it is not."""
        pin = _pin(ParsedRequirement(self.requirement.text).specifier)
        return pin.version if pin else ""


@dataclass(frozen=True)
class State:
    """Where a draft stands: its requirements, the files that have other lines, and its locks as they are written."""

    layers: Layers
    files: Mapping[str, str]
    locks: Mapping[str, bytes]


class _Lowest(Uv):
    """uv, taking the lowest version of what a layer asks for, where the one it had no longer fits."""

    def _compile(self, options: Sequence[str], folder: Path) -> None:
        super()._compile([*options, "--resolution=lowest-direct"], folder)

    def newest_with_wheel(self, name: str, target: Target, folder: Path) -> str | None:
        return Uv(self.root, self.program).newest_with_wheel(name, target, folder)


class Draft:
    """A checkout as it might be: other requirements, locks worked out from them, and builds, beside the live one.

    Requirements are first *proposed* (for a resolution to be asked) and then *settled*: written into the files.
    """

    def __init__(self, live: Project, folder: Path, uv: Uv) -> None:
        self.live = live
        self.folder = folder
        self.project = replace(live, root=folder / "checkout")
        self.uv = uv
        self._settled = live.layers
        self._files: dict[str, str] = {}
        files = {file for file, _ in self.lines()} | {self.source(name) for name in live.layers}
        self._read = {file: (live.root / file).read_bytes() for file in sorted(files) if (live.root / file).exists()}
        """What the checkout had at first, so that what somebody changes meanwhile is not lost."""
        for name in live.layers:
            for path in sorted((live.layer_folder(name) / "locks").glob("*.txt")):
                shown = live.relative(path)
                self._read[shown] = path.read_bytes()
                write_whole(self.project.root / shown, self._read[shown])
        self.first = self.save()

    # -- requirements --

    def lines(self, layers: Layers | None = None) -> dict[Place, Line]:
        """Every requirement of every layer, as settled, or as ``layers`` have them."""
        found: dict[Place, Line] = {}
        for name, layer in (layers or self._settled).items():
            for requirement in layer.requirements:
                place = self._place(requirement)
                owners = found[place].owners if place in found else frozenset()
                found[place] = Line(requirement, owners | {name})
        return found

    def _place(self, requirement: Requirement) -> Place:
        shown, _, line = requirement.where.rpartition(":")
        return self._canonical(shown, requirement.where), int(line)

    def _canonical(self, shown: str, where: str) -> str:
        path = (self.live.root / shown).resolve()
        if not path.is_relative_to(self.live.root):
            raise ConfigurationError(
                f"{where}: the file is a link that leads out of the checkout, so it can't be changed.",
                "Put the file itself there, or raise its versions where it lies.",
            )
        return self.live.relative(path)

    def propose(self, texts: Mapping[Place, str], more: Mapping[str, Requirement] | None = None) -> None:
        """Let requirements say something else, and layers (by name) ask for one thing more, until further notice."""
        layers = []
        for name, layer in self._settled.items():
            asked = [replace(one, text=texts.get(self._place(one), one.text)) for one in layer.requirements]
            if more and name in more:
                asked.append(more[name])
            layers.append(replace(layer, requirements=tuple(asked)))
        self.project = replace(self.project, layers=Layers(layers))

    def settle(self, versions: Mapping[Place, str], more: Mapping[str, str] | None = None) -> None:
        """Write versions into pins (where they do not allow them already), and one line more for layers by name."""
        texts: dict[Place, str] = {}
        lines = self.lines()
        for place, version in versions.items():
            file, number = place
            requirement = lines[place].requirement
            if allows(requirement, version):
                continue
            try:
                self._files[file] = with_pin(self._text(file), number, requirement, version)
            except ValueError as error:
                raise ConfigurationError(
                    f"{requirement.where}: {requirement.text!r} can't be raised to {version} in place: {error}.",
                    "Change that line by hand, then: inv lock",
                ) from error
            pin = _pin(ParsedRequirement(requirement.text).specifier)
            assert pin is not None  # with_pin would have refused
            texts[place] = with_clauses(requirement, f"{pin.operator}{version}")
        added = {}
        for name, line in (more or {}).items():
            file = self.source(name)
            self._files[file], number = with_line(self._text(file), line)
            added[name] = parse_requirement(line.partition("#")[0].strip(), f"{file}:{number}")
        self.propose(texts, added)
        self._settled = self.project.layers

    def source(self, name: str) -> str:
        """The requirements file that people edit for a layer."""
        folder = self.live.layer_folder(name)
        file = "requirements.in" if (folder / "requirements.in").exists() else "requirements.txt"
        shown = self.live.relative(folder / file)
        return self._canonical(shown, shown)

    def _text(self, file: str) -> str:
        return self._files[file] if file in self._files else self._read[file].decode("utf-8")

    # -- locks --

    def lock(
        self,
        targets: Sequence[Target],
        names: Sequence[str],
        *,
        lowest: bool = False,
        upgrade: bool = False,
        packages: Sequence[str] = (),
        tell: Tell = lambda message: None,
    ) -> None:
        """``locking.lock`` in the draft; with ``lowest``, what has to move goes up no further than it must."""
        uv = _Lowest(self.uv.root, self.uv.program) if lowest else self.uv
        scratch = self.project.state / "work" / secrets.token_hex(4)
        try:
            lock(
                self.project,
                targets,
                layers=names,
                upgrade=upgrade,
                packages=packages,
                uv=uv,
                scratch=scratch,
                tell=tell,
            )
        finally:
            remove(scratch)

    def versions(self, name: str, target: Target) -> dict[str, str]:
        """What a layer has for ``target``, of its own or of the layers it depends on: distribution -> version."""
        own = read_lock(self.project, name, target)
        if own is None:
            return {}
        found = {package.name: package.version for package in own.packages}
        for needed, provider in own.provided.items():
            other = read_lock(self.project, provider, target)
            found.update({one.name: one.version for one in other.packages if one.name == needed} if other else {})
        return found

    def found(self, line: Line, targets: Iterable[Target]) -> set[str]:
        """The versions that a requirement has come to, on the targets that it holds for."""
        marker = ParsedRequirement(line.requirement.text).marker
        versions = set()
        for target in targets:
            if marker and not marker.evaluate(markers(target)):
                continue
            for owner in line.owners:
                if not self.project.layers.why_not(owner, target):
                    versions.add(self.versions(owner, target).get(line.requirement.name, ""))
        return versions - {""}

    def everywhere(self, name: str, stack: str, targets: Iterable[Target]) -> set[str]:
        """The versions of a distribution in the locks of a stack."""
        return {
            version
            for target in targets
            for layer in self.project.layers.stack(stack, target)
            if (version := self.versions(layer.name, target).get(name))
        }

    # -- there and back --

    def save(self) -> State:
        locks = {
            path.relative_to(self.project.root).as_posix(): path.read_bytes()
            for path in (self.project.root / "layers").glob("*/locks/*.txt")
        }
        return State(self._settled, dict(self._files), locks)

    def restore(self, state: State) -> None:
        for path in (self.project.root / "layers").glob("*/locks/*.txt"):
            if path.relative_to(self.project.root).as_posix() not in state.locks:
                path.unlink()
        for shown, content in state.locks.items():
            write_whole(self.project.root / shown, content)
        self._settled, self._files = state.layers, dict(state.files)
        self.project = replace(self.project, layers=state.layers)

    # -- what has changed --

    def changed_lines(self, since: State) -> tuple[LineChange, ...]:
        before = {place: line.requirement.text for place, line in self.lines(since.layers).items()}
        return tuple(
            LineChange(*place, before.get(place, ""), line.requirement.text, tuple(sorted(line.owners)))
            for place, line in self.lines().items()
            if before.get(place) != line.requirement.text
        )

    def changed_locks(
        self, since: State, targets: Iterable[Target], names: Sequence[str], *, written: bool
    ) -> tuple[LockChange, ...]:
        changes = []
        for target in targets:
            for name in names:
                shown = self.live.relative(self.live.lock_path(name, target))
                new = read_lock(self.project, name, target)
                if new is None:  # a layer that is not for the target
                    continue
                old = parse_lock(since.locks[shown].decode(), shown) if shown in since.locks else None
                differs = since.locks.get(shown) != (self.project.root / shown).read_bytes()
                changes.append(LockChange(name, target, "", _differences(old, new), written=written and differs))
        return tuple(changes)

    # -- builds --

    def fill(self) -> None:
        """Lay out all else that a build or a scan looks for: links to what stays, requirements as settled."""
        live, here = self.live, self.project
        for name in live.layers:
            folder = here.layer_folder(name)
            folder.mkdir(parents=True, exist_ok=True)
            for entry in live.layer_folder(name).iterdir():
                if entry.name != "locks":
                    (folder / entry.name).symlink_to(entry)
        for file, text in self._files.items():
            write_whole(here.root / file, text.encode())
        (here.root / "dist").mkdir()
        for path in (live.root / "dist").glob("*"):
            (here.root / "dist" / path.name).symlink_to(path)
            manifest = read_manifest(path) if path.suffix == ".json" else None
            if manifest and manifest.layer in live.layers:
                tree = here.tree_path(manifest.layer, manifest.target)
                if not os.path.lexists(tree):
                    tree.parent.mkdir(parents=True, exist_ok=True)
                    tree.symlink_to(live.tree_path(manifest.layer, manifest.target))
        for folder_name in ("live", "validated"):
            for path in (live.state / folder_name).glob("*.json"):
                write_whole(here.state / folder_name / path.name, path.read_bytes())
        # What validation does not let in is for people to look at, after the draft is gone.
        (live.state / "failed").mkdir(exist_ok=True)
        (here.state / "failed").symlink_to(live.state / "failed")

    # -- letting in --

    def let_in(self) -> None:
        """Put everything that has changed in its place, together or not at all.

        Raises Incomplete, having changed nothing, when one of the files was changed by somebody meanwhile.
        """
        contents = {file: text.encode() for file, text in self._files.items()}
        contents.update(self.save().locks)
        contents = {shown: content for shown, content in contents.items() if content != self._read.get(shown)}
        for shown in contents.keys() | self._read.keys():
            path = self.live.root / shown
            if (path.read_bytes() if path.exists() else None) != self._read.get(shown):
                raise Incomplete(
                    f"{shown} was changed while the update was worked out, so nothing was put in place.",
                    "Run it again.",
                )
        built = [path for path in (self.project.root / "dist").glob("*.json") if not path.is_symlink()]
        if not built:
            if contents:
                with uninterrupted():
                    write_set(contents, self.live.root, self.folder / "files", journal(self.live))
            return
        staged = self.folder / "update"
        for path in built:
            contents.update(self._stage_build(path, staged / "swap"))
        for shown, content in contents.items():
            write_whole(staged / "files" / quote(shown, safe=""), content)
        sync_folder(staged)
        with uninterrupted():
            os.rename(staged, _decision(self.live))
            sync_folder(self.live.state)
            finish_update(self.live)

    def _stage_build(self, path: Path, swap: Path) -> dict[str, bytes]:
        """Move one build of the draft to where ``finish_swap`` takes it from; what validation said of it, as a file."""
        manifest = read_manifest(path)
        assert manifest is not None  # our own build has just written it
        name, target = manifest.layer, manifest.target
        folder = swap / f"{name}-{target}"
        folder.mkdir(parents=True)
        tree, archive = self.project.tree_path(name, target), self.project.zip_path(name, target)
        if not tree.is_symlink():
            os.rename(tree, folder / f"tree.{tree.stat().st_ino}")
        if not archive.is_symlink():
            os.rename(archive, folder / "layer.zip")
        os.rename(path, folder / "manifest.json")
        sync_folder(folder)
        verdict = verdict_path(self.project, name, target)
        return {self.project.relative(verdict): verdict.read_bytes()} if verdict.is_file() else {}


def _differences(old: Lock | None, new: Lock) -> dict[str, tuple[str | None, str | None]]:
    before = {package.name: package.version for package in old.packages} if old else {}
    after = {package.name: package.version for package in new.packages}
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


# ---- letting in, and finishing it ----


@contextmanager
def drafted(project: Project, uv: Uv) -> Iterator[Draft]:
    """A draft of the checkout for as long as the context lasts; the caller holds the checkout's lock."""
    folder = project.state / "work" / secrets.token_hex(8)
    try:
        yield Draft(project, folder, uv)
    finally:
        remove(folder)


def _decision(project: Project) -> Path:
    return project.state / "update"


def finish_update(project: Project) -> bool:
    """Put in place what an interrupted security update had decided on; whether there was anything.

    The caller holds the checkout's lock. Safe to call again after a kill at any moment. Requirements change by it, so
    a project that was loaded before is to be loaded again.
    """
    decision = _decision(project)
    if not decision.is_dir():
        return False
    for part, place in (("files", journal(project)), ("swap", project.state / "swap")):
        if (decision / part).is_dir():
            os.rename(decision / part, place)
    sync_folder(project.state)
    finish_locks(project)
    finish_swap(project)
    decision.rmdir()
    return True
