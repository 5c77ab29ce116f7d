"""Builds as they lie in a checkout: where each is, whether it is still what was built, what validation said of it.

What is noted here is about files on this disk and can always be found out again; it is not part of a build.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from layerkit.files import write_whole
from layerkit.manifests import read_manifest
from layerkit.model import Layer, Manifest, Report, Severity, Target
from layerkit.project import Project
from layerkit.results import digest_of
from layerkit.trees import fingerprint

TREE = "python"
"""Where a layer's importable content lies in its zip ("Packaging layer content", AWS Lambda developer guide)."""


@dataclass(frozen=True)
class BuiltLayer:
    """A build of a layer and where it lies now: in its places, or staged."""

    layer: Layer
    manifest: Manifest
    tree: Path
    archive: Path


def builds(project: Project, target: Target) -> dict[str, BuiltLayer]:
    """Every layer's build for ``target`` that has its tree and its zip, by name."""
    found = {}
    for name, layer in project.layers.items():
        manifest = read_manifest(project.manifest_path(name, target))
        if manifest is None:
            continue
        one = BuiltLayer(layer, manifest, project.tree_path(name, target), project.zip_path(name, target))
        if one.tree.is_dir() and one.archive.is_file():
            found[name] = one
    return found


# ---- is the tree in a place still the one that was put there? ----


def _note(project: Project, tree: Path) -> Path:
    return project.state / "live" / f"{project.relative(tree).replace('/', '+')}.json"


def note_tree(project: Project, tree: Path, digest: str) -> None:
    """Remember that ``tree`` has just been put in its place and has the SHA-256 ``digest``."""
    note = {"tree": digest, "fingerprint": fingerprint(tree, strict=False)}
    write_whole(_note(project, tree), json.dumps(note))


def is_noted(project: Project, tree: Path, digest: str) -> bool:
    """Whether ``tree`` is, by paths, sizes and times, the one with ``digest`` that was put in its place."""
    try:
        note = json.loads(_note(project, tree).read_text(encoding="utf-8"))
        return bool(note["tree"] == digest and note["fingerprint"] == fingerprint(tree, strict=False))
    except (OSError, ValueError, KeyError, TypeError):
        return False


# ---- what validation said ----


@dataclass(frozen=True)
class Verdict:
    """What validation last said of a build, as ``inv status`` shows it."""

    tree: str
    zip: str
    errors: int
    warnings: int
    not_verified: tuple[str, ...]
    """Why checks could not run."""
    whole: bool
    """Whether tree and zip were read and are what the manifest says."""
    circumstances: str
    """A digest of what else it was reached with: the layer's limit and imports, and the trees of the layers below."""
    fingerprint: str
    """Of the files as they lay there then, exactly."""
    at: str


def verdict_path(project: Project, name: str, target: Target) -> Path:
    return project.state / "validated" / f"{name}-{target}.json"


def read_verdict(project: Project, manifest: Manifest) -> Verdict | None:
    """The verdict on the build that ``manifest`` is of; None where there is none."""
    try:
        path = verdict_path(project, manifest.layer, manifest.target)
        document = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(**{**document, "not_verified": tuple(document["not_verified"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = (verdict.tree, verdict.zip, verdict.circumstances)
    return verdict if found == (manifest.tree.sha256, manifest.zip.sha256, _circumstances(project, manifest)) else None


def _circumstances(project: Project, manifest: Manifest) -> str:
    layer = project.layers[manifest.layer]
    below = [
        other.tree.sha256 if (other := read_manifest(project.manifest_path(name, manifest.target))) else ""
        for name in project.layers.dependencies(manifest.layer)
    ]
    return digest_of(layer.max_size_mb, layer.imports, below)


def record_verdict(project: Project, one: BuiltLayer, report: Report, at: str) -> None:
    """Keep what ``report``, that of all checks, says of a build that lies in its places."""
    own = report.of(one.layer.name)
    whole = {checked.check for checked in own.checked if not checked.failed and not checked.skipped}
    verdict = Verdict(
        tree=one.manifest.tree.sha256,
        zip=one.manifest.zip.sha256,
        errors=sum(finding.severity is Severity.ERROR for finding in own.findings),
        warnings=sum(finding.severity is Severity.WARNING for finding in own.findings),
        not_verified=tuple(dict.fromkeys(skipped.reason for skipped in own.skipped)),
        whole={"zip", "tree"} <= whole,
        circumstances=_circumstances(project, one.manifest),
        fingerprint=_exactly(one),
        at=at,
    )
    write_whole(verdict_path(project, one.layer.name, one.manifest.target), json.dumps(asdict(verdict), indent=2))


def was_seen(project: Project, one: BuiltLayer) -> bool:
    """Whether tree and zip are, by times and inodes, those that were read before and found to be the manifest's."""
    verdict = read_verdict(project, one.manifest)
    return verdict is not None and verdict.whole and verdict.fingerprint == _exactly(one)


def _exactly(one: BuiltLayer) -> str:
    stat = os.stat(one.archive)
    return digest_of(fingerprint(one.tree, strict=True), stat.st_size, stat.st_mtime_ns, stat.st_ino)
