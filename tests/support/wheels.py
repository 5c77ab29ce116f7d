"""Small wheels and source distributions, made by the tests."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    files: Mapping[str, str | bytes] | None = None,
    tag: str = "py3-none-any",
    scripts: Mapping[str, str] | None = None,
    data_scripts: Mapping[str, str] | None = None,
) -> Path:
    """A wheel with ``files`` (default: one module of its name), console ``scripts`` and plain ``data_scripts``."""
    escaped = name.replace("-", "_")
    content = dict(files) if files is not None else {f"{escaped}.py": f"VERSION = {version!r}\n"}
    info = f"{escaped}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    metadata += [f"Requires-Dist: {requirement}\n" for requirement in requires]
    content[f"{info}/METADATA"] = "".join(metadata)
    pure = "true" if tag.endswith("-any") else "false"
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"
    if scripts:
        lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    for script, text in (data_scripts or {}).items():
        content[f"{escaped}-{version}.data/scripts/{script}"] = text
    rows = []
    path = folder / f"{escaped}-{version}-{tag}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for inside, value in content.items():
            data = value.encode() if isinstance(value, str) else value
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{inside},sha256={digest},{len(data)}\n")
            archive.writestr(_dated(inside), data)
        rows.append(f"{info}/RECORD,,\n")
        archive.writestr(_dated(f"{info}/RECORD"), "".join(rows))
    return path


def _dated(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    return entry


def make_sdist(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """A source distribution with ``files`` (setup.py and what it names)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    root = f"{name}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with (
        path.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for inside, text in {"PKG-INFO": metadata, **files}.items():
            data = text.encode()
            entry = tarfile.TarInfo(f"{root}/{inside}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path
