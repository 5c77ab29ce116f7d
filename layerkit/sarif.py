"""What a scan found as SARIF 2.1.0, the format that code hosts take results of scanners in: values in, a document out.

The same results give the same document: nothing in it is about the run.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

_LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "unknown": "warning"}
"""What SARIF calls each level."""

_SCORES = {"critical": "9.5", "high": "8.0", "medium": "5.5", "low": "2.0"}
"""A score inside of each level's range in CVSS, where a result has none of its own; nothing for an unknown one."""

_ORDER = ("critical", "high", "unknown", "medium", "low")


@dataclass(frozen=True)
class Result:
    """One thing that a scan found."""

    rule_id: str
    """What was found: an advisory's id, or the kind of a suspicious file."""
    level: str
    """``critical``, ``high``, ``medium``, ``low`` or ``unknown``."""
    message: str
    path: str
    """The file it is about, below the checkout, with ``/``; empty where there is none."""
    line: int | None = None
    """From 1."""
    help_uri: str = ""
    """Where a person reads about it."""
    fingerprint: str = ""
    """What makes it the same result in a later run, whatever line it is in; empty: rule, path and message."""
    title: str = ""
    """What the rule is about, in a few words; empty: its id."""
    score: float | None = None
    """CVSS base score, 0 to 10."""


@dataclass(frozen=True)
class NotScanned:
    """Something that a scan could not look at, and why."""

    message: str
    path: str = ""
    """The file it is about, as in ``Result``."""


def sarif_document(results: Iterable[Result], not_scanned: Sequence[NotScanned], version: str) -> dict[str, Any]:
    """A log with one run of layerkit ``version``, whose execution was successful when nothing was left unscanned.

    Raises ValueError for a level that is none, a line below 1, and a path that is not below the checkout.
    """
    ordered = sorted(results, key=lambda result: (result.rule_id, result.path, result.line or 0, result.message))
    rules: dict[str, list[Result]] = {}
    for result in ordered:
        if result.level not in _LEVELS:
            raise ValueError(f"{result.level!r} is no level")
        rules.setdefault(result.rule_id, []).append(result)
    numbers = {rule: number for number, rule in enumerate(rules)}
    driver = {
        "name": "layerkit",
        "version": version,
        "rules": [_rule(rule, found) for rule, found in rules.items()],
        "notifications": [
            {
                "id": "not-scanned",
                "shortDescription": {"text": "Something could not be scanned, so it is not known to be clean"},
                "defaultConfiguration": {"level": "error"},
            }
        ],
    }
    invocation: dict[str, Any] = {"executionSuccessful": not not_scanned}
    if not_scanned:
        invocation["toolExecutionNotifications"] = [_notification(entry) for entry in not_scanned]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [invocation],
        "results": [_result(result, numbers[result.rule_id]) for result in ordered],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def render_sarif(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _rule(rule: str, found: Sequence[Result]) -> dict[str, Any]:
    """A rule by its results; where they differ, the worst decides."""
    worst = min(found, key=lambda result: _ORDER.index(result.level))
    title = next((result.title for result in found if result.title), rule)
    uri = next((result.help_uri for result in found if result.help_uri), "")
    properties: dict[str, Any] = {"tags": ["security"]}
    scores = [result.score for result in found if result.score is not None]
    score = f"{max(scores):.1f}" if scores else _SCORES.get(worst.level)
    if score:
        properties["security-severity"] = score
    return {
        "id": rule,
        "shortDescription": {"text": title},
        **({"helpUri": uri, "help": {"text": f"{title}: {uri}"}} if uri else {}),
        "defaultConfiguration": {"level": _LEVELS[worst.level]},
        "properties": properties,
    }


def _result(result: Result, rule: int) -> dict[str, Any]:
    same = result.fingerprint or "\n".join((result.rule_id, result.path, result.message))
    document: dict[str, Any] = {
        "ruleId": result.rule_id,
        "ruleIndex": rule,
        "level": _LEVELS[result.level],
        "message": {"text": _text(result.message)},
        "partialFingerprints": {"layerkit/v1": _text(same)},
    }
    if result.path:
        document["locations"] = [_location(result.path, result.line)]
    return document


def _notification(entry: NotScanned) -> dict[str, Any]:
    document: dict[str, Any] = {
        "descriptor": {"id": "not-scanned", "index": 0},
        "level": "error",
        "message": {"text": _text(entry.message)},
    }
    if entry.path:
        document["locations"] = [_location(entry.path, None)]
    return document


def _text(text: str) -> str:
    """``text`` without what a path may have and UTF-8 has not."""
    return text.encode(errors="replace").decode()


def _location(path: str, line: int | None) -> dict[str, Any]:
    inside = posixpath.normpath(path)
    if inside.startswith("/") or inside.split("/")[0] == "..":
        raise ValueError(f"{path!r} is not below the checkout")
    if line is not None and line < 1:
        raise ValueError(f"{line} is no line of {path!r}")
    uri = quote(inside, errors="surrogateescape")
    location: dict[str, Any] = {"artifactLocation": {"uri": uri, "uriBaseId": "%SRCROOT%"}}
    if line is not None:
        location["region"] = {"startLine": line}
    return {"physicalLocation": location}
