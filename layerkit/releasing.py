"""What may be published: builds that are validated, as AWS is to be given them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from layerkit.errors import CheckFailed, ExternalError
from layerkit.model import MIB, Target
from layerkit.processes import run
from layerkit.project import Project
from layerkit.standing import Standing, State

DESCRIPTION = 256
"""How many characters AWS takes (API reference, PublishLayerVersion)."""


@dataclass(frozen=True)
class Release:
    """A build as it is to be published."""

    layer: str
    target: Target
    zip: Path
    sha256: str
    """Of the zip, in hex."""
    size: int
    inputs: str
    """The input identity, in full."""
    description: str
    licence: str = ""

    @property
    def code_sha256(self) -> str:
        """The SHA-256 as AWS has it."""
        return b64encode(bytes.fromhex(self.sha256)).decode()

    @property
    def key(self) -> str:
        """The object that carries the zip in a bucket: another content has another name."""
        return f"layerkit/{self.sha256}.zip"


def releases(
    project: Project,
    standing: Iterable[Standing],
    names: Sequence[str],
    licence: str,
    *,
    allow_unverified: bool = False,
) -> tuple[Release, ...]:
    """The builds of ``names``, as ``standings`` has them; CheckFailed when one is not built and valid.

    ExternalError where a check could not run, unless ``allow_unverified``. The zips are read: it is their content that
    has to be what was validated.
    """
    chosen = [one for one in standing if one.name in names]
    usable = (State.VALID, State.NOT_VERIFIED)
    refused = [one for one in chosen if one.manifest is None or one.state not in usable]
    if refused:
        validates = all(one.state in (State.NOT_VALIDATED, State.FAILED) for one in refused)
        command = "inv validate" if validates else "inv build"
        states = "; ".join(f"{one.name} is {one.state.value}" for one in refused)
        raise CheckFailed(
            f"only what is built and validated is published, and for {refused[0].target} {states}. "
            "Nothing was published.",
            f"First: {command} {' '.join(f'--layer {one.name}' for one in refused)}",
        )
    unverified = [one for one in chosen if one.state is State.NOT_VERIFIED]
    if unverified and not allow_unverified:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in unverified)
        raise ExternalError(
            f"not everything could be checked for {unverified[0].target} ({reasons}). Nothing was published.",
            "Validate it where that is possible (inv validate), or publish it all the same: --allow-unverified",
        )
    commit = _commit(project.root)
    return tuple(_release(project, one, licence, commit) for one in chosen)


def _release(project: Project, one: Standing, licence: str, commit: str) -> Release:
    manifest = one.manifest
    assert manifest is not None
    path = project.zip_path(one.name, one.target)
    with path.open("rb") as file:
        digest = _digest(file)
    if digest != manifest.zip.sha256:
        raise CheckFailed(
            f"{project.relative(path)} is not the zip that was built and validated. Nothing was published.",
            f"Build it again: inv build --layer {one.name} --clean",
        )
    changed = "+" if commit and _is_changed(project.root, f"layers/{one.name}") else ""
    lock = project.lock_path(one.name, one.target)
    return Release(
        layer=one.name,
        target=one.target,
        zip=path,
        sha256=digest,
        size=manifest.zip.size,
        inputs=manifest.inputs,
        description=describe(
            manifest.inputs,
            sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "",
            commit and commit + changed,
            one.layer.description if one.layer else "",
        ),
        licence=licence,
    )


def _digest(file: IO[bytes]) -> str:
    digest = sha256()
    while piece := file.read(MIB):
        digest.update(piece)
    return digest.hexdigest()


def describe(inputs: str, lock: str, commit: str, text: str) -> str:
    """What a version's description says: what it was made from, shortened, and of ``text`` what there is room for.

    ``inputs`` is the input identity, ``lock`` the lock's SHA-256, ``commit`` git's, with a ``+`` where there were
    changes; either of the last two may be empty.
    """
    parts = [mark(inputs)]
    parts += [f"lock={lock[:12]}"] if lock else []
    parts += [f"git={commit[:12]}{'+' if commit.endswith('+') else ''}"] if commit else []
    # AWS counts characters, and takes none that is a control character.
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return " ".join([*parts, said])[:DESCRIPTION].rstrip()


def mark(inputs: str) -> str:
    """By what of a description the versions are found that may have the same content."""
    return f"layerkit inputs={inputs[:16]}"


def _commit(root: Path) -> str:
    """The commit that is checked out; empty where there is none to be had."""
    try:
        done = run(["git", "rev-parse", "--verify", "HEAD"], cwd=root)
    except ExternalError:
        return ""
    found = done.stdout.strip()
    return found if done.code == 0 and re.fullmatch(r"[0-9a-f]{40,64}", found) else ""


def _is_changed(root: Path, folder: str) -> bool:
    try:
        done = run(["git", "status", "--porcelain", "--", folder], cwd=root)
    except ExternalError:
        return True
    return done.code != 0 or bool(done.stdout.strip())
