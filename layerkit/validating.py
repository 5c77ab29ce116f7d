"""What is checked of a layer before a build is let in: its size, and that its zip is one that Lambda takes."""

from __future__ import annotations

import posixpath
import zipfile
from pathlib import Path

from layerkit.model import MIB, Finding, Layer, Manifest, Severity
from layerkit.runtimes import limits

WARN_AT = 0.9
"""The share of a layer's limit from which it is warned about (the guide: 90 of 100 MB)."""


def check_size(layer: Layer, manifest: Manifest) -> list[Finding]:
    """The layer's unzipped size against its own limit (layer.toml, else 100 MB) and against Lambda's for a function."""
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


def check_zip(layer: Layer, path: Path) -> list[Finding]:
    """The zip as a reader sees it: nothing outside of it, nothing twice, everything readable by Lambda's user."""
    problems = []
    with zipfile.ZipFile(path) as archive:
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
    return [Finding("zip", Severity.ERROR, layer.name, problem) for problem in problems]
