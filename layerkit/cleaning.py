"""Cleaning: what was built goes, and nothing else.

It works from the names of folders and files alone, so that a checkout whose files are broken can be cleaned too: no
requirements file, layer.toml or lock is read. A path is only ever put together from names that were found; no folder
is entered through a link; a file in ``dist/`` is ours by its whole name, since ``a`` and ``a-b`` may both be layers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from layerkit.errors import ConfigurationError, ExternalError, Incomplete
from layerkit.files import remove
from layerkit.manifests import read_manifest
from layerkit.model import LAYER_NAME
from layerkit.project import OWN_CODE

_SIGNS = ("requirements.txt", "requirements.in", OWN_CODE, "layer.toml", "locks")
"""Any of these in a folder says that it is a layer, whatever state it is in."""

_BUILT = re.compile(rf"(?P<layer>{LAYER_NAME.pattern})-(?P<target>python3\.[0-9]+-(?:x86_64|arm64))(?P<ending>\.\w+)?")
"""``<layer>-<runtime>-<architecture>``: no layer's name has a dot, so there is one way to read it."""

_NOTE = re.compile(rf"(?:layers|\.layerkit\+trees\+[^+]+)\+(?P<layer>{LAYER_NAME.pattern})\+python\.json")
"""What is noted of a tree in ``.layerkit/live``: the tree's path, with ``+`` for the slashes."""

_STATE = ("failed", "live", "swap", "trees", "validated", "work")
"""What is built or half built in ``.layerkit``. All else in there stays: the lock, the history, locks on their way."""

_GENERATED = {"reports", "reports/*"}
"""How a .gitignore says that all in ``reports/`` is generated."""


@dataclass(frozen=True)
class CleanStep:
    """One thing to remove: its path below the root, and the files and bytes that frees (links are not followed)."""

    path: str
    files: int
    size: int


@dataclass(frozen=True)
class CleanPlan:
    """What there is to remove, in the order of removal: manifests, which say that a layer is built, then by path."""

    root: Path
    steps: tuple[CleanStep, ...]

    @property
    def files(self) -> int:
        return sum(step.files for step in self.steps)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(step.size for step in self.steps)


def plan_clean(root: Path, names: Sequence[str], *, everything: bool) -> CleanPlan:
    """What was built of the layers ``names``, or of all when none is named; changes nothing.

    With ``everything`` also what belongs to no layer that is there: builds of layers that are gone, work in progress,
    reports. Raises ConfigurationError for a name that nobody knows, for names together with ``everything``, and for a
    folder that is a link; ExternalError for a folder that can't be read.
    """
    if everything and names:
        raise ConfigurationError("--all is for all layers, so it can't go with --layer.", "Leave one of them out.")
    root = root.resolve()
    layers = _layers(root)
    archives = list(_built(root, "dist"))
    if everything:
        paths = {f".layerkit/{entry.name}" for entry in _entries(root, ".layerkit") if entry.name in _STATE}
        paths |= set(_reports(root))
        wanted = layers | {layer for layer, path in archives if _is_manifest_of(root / path, layer)}
    else:
        state = list(_of_layers(root))
        wanted = _named(root, names, layers, {layer for layer, _ in archives + state}) if names else layers
        paths = {path for layer, path in state if layer in wanted}
    paths |= {path for layer, path in archives if layer in wanted}
    paths |= set(_live_trees(root, wanted, layers, archives))
    ordered = sorted(paths, key=lambda path: (not path.endswith(".json"), path))
    return CleanPlan(root, tuple(_step(root, path) for path in ordered))


def apply_clean(plan: CleanPlan) -> None:
    """Remove what ``plan`` names; the caller holds the checkout's lock. Incomplete names what could not be removed."""
    failures = []
    for step in plan.steps:
        try:
            remove(plan.root / step.path)
        except OSError as error:
            failures.append(f"{_culprit(step, error, plan.root)}: {error.strerror or error}")
    if failures:
        raise Incomplete(
            "not everything could be removed:\n" + "\n".join(f"  {failure}" for failure in failures),
            "Make these yours to change (ls -ld, chmod u+w, chown on them and their folders), then run it again.",
        )


def _culprit(step: CleanStep, error: OSError, root: Path) -> str:
    """The file or folder that an error is about; inside of a tree, older Pythons tell its last name only."""
    path = Path(str(error.filename or ""))
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return f"{path.name} in {step.path}" if path.name else step.path


# ---- which layers ----


def _layers(root: Path) -> set[str]:
    """The names of the layers that are there, broken or not."""
    return {
        entry.name
        for entry in _entries(root, "layers")
        if LAYER_NAME.fullmatch(entry.name) and any(os.path.lexists(os.path.join(entry.path, sign)) for sign in _SIGNS)
    }


def _named(root: Path, names: Sequence[str], layers: set[str], built: set[str]) -> set[str]:
    folders = {entry.name for entry in _entries(root, "layers") if os.path.isdir(entry.path)}
    for name in names:
        if name not in folders | built or not LAYER_NAME.fullmatch(name):
            here = ", ".join(sorted(layers)) or "none"
            raise ConfigurationError(
                f"--layer: there is no layer called {name!r}, and nothing is built of one.", f"Layers here: {here}."
            )
    return set(names)


# ---- what is built ----


def _built(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Layer and path of each zip and manifest in a folder."""
    for entry in _entries(root, folder):
        match = _BUILT.fullmatch(entry.name)
        if match and match["ending"] in (".zip", ".json") and (entry.is_symlink() or os.path.isfile(entry.path)):
            yield match["layer"], f"{folder}/{entry.name}"


def _of_layers(root: Path) -> Iterator[tuple[str, str]]:
    """Layer and path of everything in ``.layerkit`` that is of one layer."""
    for target in _entries(root, ".layerkit/trees"):
        folder = f".layerkit/trees/{target.name}"
        yield from ((entry.name, f"{folder}/{entry.name}") for entry in _entries(root, folder))
    # Left there, an interrupted build would be put in place by the next command.
    yield from ((entry.name, f".layerkit/swap/{entry.name}") for entry in _entries(root, ".layerkit/swap"))
    yield from _built(root, ".layerkit/validated")
    for entry in _entries(root, ".layerkit/live"):
        match = _NOTE.fullmatch(entry.name)
        if match:
            yield match["layer"], f".layerkit/live/{entry.name}"
    for entry in _entries(root, ".layerkit/failed"):
        match = _BUILT.fullmatch(entry.name)
        if match and match["ending"] is None:
            yield match["layer"], f".layerkit/failed/{entry.name}"


def _live_trees(
    root: Path, wanted: Iterable[str], layers: set[str], archives: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """``layers/<name>/python`` where that is a built tree: in a layer, or where a manifest of ours says so."""
    for name in wanted:
        folder, path = root / "layers" / name, f"layers/{name}/python"
        if not (os.path.islink(root / path) or os.path.isdir(root / path)):
            continue
        if folder.is_symlink():
            if not folder.resolve().is_relative_to(root / "layers"):
                raise ConfigurationError(
                    f"layers/{name} is a link that leads out of layers/; nothing is removed there.",
                    "Put the layer's folder itself there, or remove the link.",
                )
            continue  # the layer that it leads to is cleaned by its own name
        if name in layers or any(_is_manifest_of(root / manifest, name, tree=path) for _, manifest in archives):
            yield path


def _is_manifest_of(path: Path, layer: str, tree: str | None = None) -> bool:
    """Whether a file is a manifest that layerkit wrote for this layer and the target in its name (and this tree)."""
    try:
        manifest = read_manifest(path) if path.suffix == ".json" else None
    except OSError:
        return False
    if manifest is None or (manifest.layer, f"{layer}-{manifest.target}.json") != (layer, path.name):
        return False
    return tree is None or manifest.tree.path == tree


def _reports(root: Path) -> Iterator[str]:
    """What is in ``reports/`` where .gitignore says that it is generated, less what it excepts; else it may be work."""
    try:
        lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    if _GENERATED.isdisjoint(line.strip().strip("/") for line in lines):
        return
    kept = [line.strip()[1:].strip("/") for line in lines if line.startswith("!")]
    for path in (f"reports/{entry.name}" for entry in _entries(root, "reports")):
        if not any(fnmatchcase(path, pattern) for pattern in ("reports/.gitkeep", *kept)):
            yield path


# ---- the disk ----


def _entries(root: Path, folder: str) -> list[os.DirEntry[str]]:
    """What lies directly in a folder below the root, by name; nothing when there is no such folder."""
    for part in (PurePosixPath(folder), *PurePosixPath(folder).parents):
        if os.path.islink(root / part):
            raise ConfigurationError(
                f"{part} is a link to {os.readlink(root / part)}; nothing is removed behind a link.",
                "Put a folder in its place, or remove the link.",
            )
    try:
        with os.scandir(root / folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ExternalError(f"{folder} can't be read: {error.strerror}.", f"Try: chmod u+rx {folder}") from error


def _step(root: Path, path: str) -> CleanStep:
    files = size = 0
    for file in _files(str(root / path)):
        try:
            size += os.lstat(file).st_size
        except OSError:  # it went while others work, or its folder is closed: then removing it will say so
            continue
        files += 1
    return CleanStep(path, files, size)


def _files(path: str) -> Iterator[str]:
    if os.path.islink(path) or not os.path.isdir(path):
        yield path
        return
    for folder, folders, names in os.walk(path):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (os.path.join(folder, name) for name in names + links)
