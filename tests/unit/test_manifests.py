"""Manifests: what is written is read back, and docs/manifest.md names every key."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerkit.manifests import manifest_document, parse_manifest, read_manifest, render_manifest
from layerkit.model import Artifact, Distribution, Manifest, Optimized, OwnCode, RuleResult, Target, Tree

MANIFEST = Manifest(
    layer="web",
    target=Target("python3.13", "x86_64"),
    inputs="1" * 64,
    depends_on={"core": "2" * 64},
    distributions=(Distribution("six", "1.17.0", ("3" * 64,), 4, 1234),),
    own_code=OwnCode(1, 10),
    optimized=Optimized(
        rules=(RuleResult("tests", "narrowed", 3, 400, {"six/tests/base.py": "six.testing"}),),
        modules=7,
        unverified="",
        bytecode_files=2,
        bytecode_size=90,
        interpreter="3.13.0 (main)",
    ),
    tree=Tree("layers/web/python", "4" * 64, 5, 1244, ("six.py", "web.py")),
    zip=Artifact("dist/web.zip", "5" * 64, 700),
    tools={"uv": "0.13.9"},
    notes=("a note",),
    built="2026-11-24T00:00:00+00:00",
)


def test_what_is_written_is_read_back() -> None:
    assert parse_manifest(render_manifest(MANIFEST)) == MANIFEST
    plain = replace(MANIFEST, optimized=None)
    assert parse_manifest(render_manifest(plain)) == plain


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 2, "layer": "web"}', "null"])
def test_anything_else_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "web.json").write_text(text)
    assert read_manifest(tmp_path / "web.json") is None
    assert read_manifest(tmp_path / "nowhere.json") is None


def keys(document: Any, prefix: str = "") -> set[str]:
    if isinstance(document, dict):
        found: set[str] = set()
        for key, value in document.items():
            open_ended = prefix in ("depends_on.", "tools.", "optimized.rules.restored.")
            found |= set() if open_ended else {prefix + key} | keys(value, f"{prefix}{key}.")
        return found
    if isinstance(document, list) and document:
        return keys(document[0], prefix)
    return set()


def test_the_documentation_names_every_key_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.0-9]+)` \|", text, re.MULTILINE))
    assert documented == keys(json.loads(json.dumps(manifest_document(MANIFEST))))
