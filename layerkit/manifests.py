"""Manifests as files: JSON, documented in ``docs/manifest.md``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layerkit.model import Artifact, Distribution, Manifest, Optimized, OwnCode, RuleResult, Target, Tree

SCHEMA = 3


def manifest_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON has it."""
    document = asdict(manifest)
    document["own_code"] = asdict(manifest.own_code)
    return {"schema": SCHEMA, **document}


def render_manifest(manifest: Manifest) -> str:
    return json.dumps(manifest_document(manifest), indent=2, sort_keys=True) + "\n"


def parse_manifest(text: str) -> Manifest:
    """The inverse of ``render_manifest``; ValueError for anything else, an older schema included."""
    try:
        document: dict[str, Any] = json.loads(text)
        if document.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return Manifest(
            **{
                **document,
                "target": Target(**document["target"]),
                "distributions": tuple(
                    Distribution(**{**entry, "hashes": tuple(entry["hashes"])}) for entry in document["distributions"]
                ),
                "own_code": OwnCode(**document["own_code"]),
                "optimized": _optimized(document["optimized"]),
                "tree": Tree(**{**document["tree"], "top": tuple(document["tree"]["top"])}),
                "zip": Artifact(**document["zip"]),
                "notes": tuple(document["notes"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error}") from error


def _optimized(document: Any) -> Optimized | None:
    if document is None:
        return None
    rules = tuple(RuleResult(**{**rule, "removed": tuple(rule["removed"])}) for rule in document["rules"])
    # Without its stubs a tree can't be told from one that kept what they stand for.
    stubs = document["stubs"]
    lists = {name: tuple(document[name]) for name in ("late", "failing", "notes")}
    return Optimized(**{**document, **lists, "rules": rules, "stubs": stubs})


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None where there is none that can be believed: then there is no build."""
    try:
        return parse_manifest(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
