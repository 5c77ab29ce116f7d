"""What this machine and this checkout have for layerkit to work with, and what each missing thing would make possible.

Credentials are looked for by name alone: whether they are there, never what they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path

from layerkit.errors import ExternalError, LayerkitError
from layerkit.files import cache_folder
from layerkit.installer import uv_version
from layerkit.interpreters import architecture_here, find_interpreter
from layerkit.model import MIB, Target
from layerkit.optimizing import Optimizer
from layerkit.processes import run
from layerkit.project import Project
from layerkit.runtimes import runtimes
from layerkit.standing import State, standings


class Condition(Enum):
    """How one thing is."""

    THERE = "there"
    MISSING = "missing"
    """Not there, and something is not possible without it."""
    PROBLEM = "problem"
    """Something is wrong with it, and should be mended."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at; ``advice`` is what it would make possible, or how to mend it."""

    topic: str
    name: str
    condition: Condition
    detail: str
    advice: str = ""


def diagnose(
    project: Project,
    broken: Mapping[str, LayerkitError],
    configured: Mapping[str, str],
    optimizer: Optimizer,
    today: date,
) -> tuple[Diagnosis, ...]:
    """Everything that can be said without a network; ``configured`` are the configured interpreters by version."""
    return (
        *_interpreters(configured, today),
        *_tools(project.root),
        *_caches(project.root),
        *_checkout(project, broken, optimizer),
        *_credentials(),
    )


def _interpreters(configured: Mapping[str, str], today: date) -> Iterator[Diagnosis]:
    for name, runtime in runtimes().items():
        if today >= runtime.block_create:
            continue
        version = Target(name, "x86_64").python_version
        try:
            found = find_interpreter(version, configured)
        except LayerkitError as error:
            yield Diagnosis("interpreters", name, Condition.PROBLEM, error.message, error.hint)
            continue
        if found:
            yield Diagnosis("interpreters", name, Condition.THERE, f"{found.release} ({found.path})")
        else:
            advice = f"With `uv python install {version}`, layers for {name} can be verified by importing them."
            yield Diagnosis("interpreters", name, Condition.MISSING, f"no Python {version}", advice)
    here = architecture_here()
    foreign = [name for name in ("x86_64", "arm64") if name != here]
    advice = f"Layers for {' and '.join(foreign)} are built here, and verified on a machine of that kind."
    yield Diagnosis("interpreters", "architecture", Condition.THERE, f"this machine is {here}", advice)


_TOOLS = {
    "git": "With git, what is published can say which commit it was made from.",
    "strip": "With strip (binutils), debug symbols can be taken out of extension modules.",
}


def _tools(root: Path) -> Iterator[Diagnosis]:
    yield Diagnosis("tools", "uv", Condition.THERE, uv_version())
    for name, use in _TOOLS.items():
        path = shutil.which(name)
        if not path:
            yield Diagnosis("tools", name, Condition.MISSING, "not on PATH", use)
            continue
        try:
            first = (run([path, "--version"], cwd=root).stdout.splitlines() or [""])[0]
        except ExternalError as error:
            yield Diagnosis("tools", name, Condition.PROBLEM, error.message, use)
            continue
        yield Diagnosis("tools", name, Condition.THERE, f"{first} ({path})")


def _caches(root: Path) -> Iterator[Diagnosis]:
    from uv import find_uv_bin

    folders = {"layerkit": cache_folder()}
    done = run([find_uv_bin(), "cache", "dir"], cwd=root)
    if done.code == 0:
        folders["uv"] = Path(done.stdout.strip())
    for name, folder in folders.items():
        files, size = _held(folder)
        detail = f"{size / MIB:,.1f} MiB in {files:,} files ({folder})" if files else f"empty ({folder})"
        yield Diagnosis("caches", name, Condition.THERE, detail)


def _held(folder: Path) -> tuple[int, int]:
    files = size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(where, name)).st_size
                files += 1
            except FileNotFoundError:  # another process has just removed it
                continue
    return files, size


def _checkout(project: Project, broken: Mapping[str, LayerkitError], optimizer: Optimizer) -> Iterator[Diagnosis]:
    topic = "checkout"
    for standing in standings(project, broken, project.default_target, optimizer):
        if standing.state is State.BROKEN:
            yield Diagnosis(topic, standing.name, Condition.PROBLEM, standing.reason, broken[standing.name].hint)
        elif standing.lock not in ("", "current"):
            advice = "`inv lock` brings it up to date, and `inv build` does so first."
            yield Diagnosis(topic, standing.name, Condition.PROBLEM, f"lock: {standing.lock}", advice)
        else:
            because = f" ({standing.reason})" if standing.reason else ""
            yield Diagnosis(topic, standing.name, Condition.THERE, f"{standing.state.value}{because}")
    if any((project.state / name).is_dir() for name in ("swap", "update")):
        detail = "a build or update was interrupted while it was put in place"
        yield Diagnosis(topic, "swap", Condition.PROBLEM, detail, "The next `inv build` or `inv lock` finishes it.")
    for folder in sorted((project.state / "failed").glob("*")):
        detail = f"{project.relative(folder)} is a build that validation did not let in"
        yield Diagnosis(topic, "failed build", Condition.THERE, detail, "`inv clean` removes it.")
    if not project.layers and not broken:
        yield Diagnosis(topic, "layers", Condition.MISSING, "there are none yet", "inv new --layer NAME makes one.")


def _credentials() -> Iterator[Diagnosis]:
    home = Path.home() / ".aws"
    variables = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    signs = [name for name in variables if os.environ.get(name)]
    signs += [f"~/.aws/{name}" for name in ("credentials", "config") if (home / name).is_file()]
    yield _credential("AWS", signs, "With them, layers can be published and functions deployed.")
    own = "SAFETY_API_KEY"
    signs = [own] if os.environ.get(own) else []
    yield _credential("safety", signs, "With SAFETY_API_KEY, safety scans against its full database.")
    signs = sorted(name for name, value in os.environ.items() if value and name.startswith("UV_INDEX_"))
    yield _credential("private indexes", signs, "Set UV_INDEX_<NAME>_USERNAME and _PASSWORD for an index that asks.")


def _credential(name: str, signs: list[str], advice: str) -> Diagnosis:
    if signs:
        return Diagnosis("credentials", name, Condition.THERE, f"set by {', '.join(signs)}")
    return Diagnosis("credentials", name, Condition.MISSING, "none", advice)
