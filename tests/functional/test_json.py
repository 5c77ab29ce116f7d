"""docs/json.md names the keys that --json prints, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkouts import HERE, Checkout
from tests.support.index import Index
from tests.support.osv import KNOWN
from tests.support.wheels import make_wheel

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "json.md"
HERE_FLAGS = ["--runtime", HERE.runtime, "--architecture", HERE.architecture]

# What is documented in one line of the table, or in a document of its own.
WHOLE = {
    "layers.findings",
    "layers.manifest",
    "layers.optimized",
    "checks.findings",
    "checks.skipped",
    "locks.versions",
    # of security-scan, held against the documentation in test_scanning.py
    "source",
    "safety",
    "distributions",
    "vulnerabilities",
    "suspects",
    "licences",
    "not_scanned",
    "seconds",
}


def keys(document: Any, prefix: str = "") -> set[str]:
    if isinstance(document, list):
        return {key for entry in document for key in keys(entry, prefix)}
    if not isinstance(document, dict) or prefix.removesuffix(".") in WHOLE:
        return set()
    return {key for name, value in document.items() for key in {prefix + name} | keys(value, f"{prefix}{name}.")}


def documented(task: str) -> set[str]:
    section = re.split(r"^## ", DOCUMENTATION.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{task}\n")]
    return set(re.findall(r"^\| `([a-z_.0-9]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("lock", []),
        ("build", HERE_FLAGS),
        ("optimize", ["--dry-run", *HERE_FLAGS]),
        ("validate", HERE_FLAGS),
        ("status", ["--graph", *HERE_FLAGS]),
        ("doctor", []),
        ("clean", ["--dry-run"]),
        ("security-scan", ["--source", "local", *HERE_FLAGS]),
        ("sbom", HERE_FLAGS),
        ("advisories-update", ["--from", "advisories"]),
    ],
)
def test_every_key_is_documented_and_no_other(checkout: Checkout, index: Index, task: str, words: list[str]) -> None:
    make_wheel(index.folder, "thing", "1.0")
    checkout.layer("web", "thing\n")
    (checkout.root / "advisories").mkdir()
    (checkout.root / "advisories" / "one.json").write_text(json.dumps(KNOWN))
    if task not in ("lock", "build"):
        assert checkout.inv("build", *HERE_FLAGS).returncode == 0
    assert keys(checkout.inv_json(task, *words)) == documented(task)
