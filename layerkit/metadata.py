"""What distributions say of themselves: what they require, on a target that is not this machine, and what they bring.

Markers are evaluated for the target, never for the Python that runs layerkit.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as ParsedRequirement
from packaging.version import InvalidVersion, Version

from layerkit.model import Requirement, Target, normalized
from layerkit.trees import Installed

_MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}


def marker_environment(target: Target, extra: str = "") -> dict[str, str]:
    """The values of PEP 508's environment markers on ``target``."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.python_version}.0",
        "os_name": "posix",
        "platform_machine": _MACHINES[target.architecture],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.python_version}.0",
        "python_version": target.python_version,
        "sys_platform": "linux",
        "extra": extra,
    }


@dataclass(frozen=True)
class Described:
    """A distribution by its METADATA; ``problem`` says what is wrong with that, if anything."""

    name: str
    version: str
    requires: tuple[str, ...]
    problem: str = ""


def described(distribution: Installed) -> Described:
    """What the METADATA of an installed distribution says."""
    try:
        text = (distribution.folder / "METADATA").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Described(distribution.name, distribution.version, (), "its dist-info has no METADATA")
    headers = HeaderParser().parsestr(text)
    requires = tuple(headers.get_all("Requires-Dist") or ())
    problem = ""
    if normalized(str(headers.get("Name", ""))) != distribution.name:
        problem = f"its METADATA is that of {headers.get('Name')!r}"
    elif not _same_version(str(headers.get("Version", "")), distribution.version):
        problem = f"its METADATA says version {headers.get('Version')}"
    elif not distribution.rows:
        problem = "its dist-info has no RECORD"
    return Described(distribution.name, distribution.version, requires, problem)


def _same_version(one: str, other: str) -> bool:
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


@dataclass(frozen=True)
class Unmet:
    """A requirement that nothing in sight satisfies; ``found`` is the version that is there, empty where none is."""

    by: str
    requirement: str
    found: str


def unmet(roots: Iterable[Requirement], distributions: Mapping[str, Described], target: Target, by: str) -> list[Unmet]:
    """What ``roots`` and the distributions need in ``target``'s eyes and ``distributions`` (by name) do not satisfy.

    ``by`` is what to call whoever has the roots. Extras count where something in reach asks for them.
    """
    missing: dict[tuple[str, str], Unmet] = {}
    extras: dict[str, set[str]] = {}
    pending = [(by, requirement.text, "") for requirement in roots]
    pending += [(name, text, "") for name, found in distributions.items() for text in found.requires]
    while pending:
        asking, text, extra = pending.pop()
        try:
            parsed = ParsedRequirement(text)
        except InvalidRequirement:
            missing[asking, text] = Unmet(asking, text, "")
            continue
        if not _holds(parsed.marker, target, extra):
            continue
        name = normalized(parsed.name)
        found = distributions.get(name)
        if found is None or not _within(parsed, found.version):
            missing[asking, text] = Unmet(asking, str(parsed), found.version if found else "")
            continue
        for wanted in parsed.extras - extras.setdefault(name, set()):
            extras[name].add(wanted)
            pending += [(name, needed, wanted) for needed in found.requires]
    return sorted(missing.values(), key=lambda entry: (entry.by, entry.requirement))


def _within(requirement: ParsedRequirement, version: str) -> bool:
    try:
        return not requirement.specifier or requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def required_name(requirement: str) -> str:
    """The distribution that a Requires-Dist line is about; empty for one that can't be read."""
    try:
        return normalized(ParsedRequirement(requirement).name)
    except InvalidRequirement:
        return ""


def applies(requirement: Requirement, target: Target) -> bool:
    """Whether a layer's requirement is one on ``target``."""
    return _holds(ParsedRequirement(requirement.text).marker, target)


def _holds(marker: Marker | None, target: Target, extra: str = "") -> bool:
    """Whether a marker holds; one that compares what can't be compared does, so that its requirement is looked for."""
    try:
        return marker is None or marker.evaluate(marker_environment(target, extra))
    except (UndefinedComparison, UndefinedEnvironmentName):
        return True


# ---- modules ----

_EXTENSION = re.compile(r"(?P<name>[A-Za-z_]\w*)(\.cpython-[\w-]+|\.abi3)?\.so")
_NO_MODULES = {"bin", "__pycache__"}


def top_level_modules(tree: Path) -> tuple[str, ...]:
    """What a tree has to import, sorted: packages and modules at the top, and those right below namespace packages."""
    return tuple(sorted(set(_modules(tree, ""))))


def _modules(folder: Path, prefix: str) -> Iterator[str]:
    for entry in os.scandir(folder):
        name = module_name(entry.name)
        if entry.is_dir():
            if not entry.name.isidentifier() or entry.name in _NO_MODULES:
                continue
            inside = os.listdir(entry.path)
            if any(module_name(file) == "__init__" for file in inside):
                yield prefix + entry.name
            elif not entry.is_symlink():  # one may lead to where it lies
                yield from _modules(Path(entry.path), f"{prefix}{entry.name}.")
        elif name and name != "__init__":
            yield prefix + name


def module_name(file: str) -> str:
    """The module that a file name stands for (``x.py``, ``x.abi3.so``); empty for any other file."""
    if file.endswith(".py"):
        name = file.removesuffix(".py")
        return name if name.isidentifier() else ""
    match = _EXTENSION.fullmatch(file)
    return match["name"] if match else ""


def provider_of(module: str, distributions: Iterable[Installed]) -> str:
    """The distribution whose files have ``module`` (``google.cloud``), whole or a part of it; empty where none has."""
    inside = module.replace(".", "/")
    for distribution in distributions:
        for path in distribution.rows:
            folder, _, file = path.rpartition("/")
            name = module_name(file)
            if path.startswith(f"{inside}/") or (name and posixpath.join(folder, name) == inside):
                return distribution.name
    return ""
