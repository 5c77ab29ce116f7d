"""Layer versions as AWS has them: what there is of a layer in a region, and who may use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerkit.aws import Aws, NotThere
from layerkit.model import Target


@dataclass(frozen=True)
class Version:
    """A layer version as ListLayerVersions has it."""

    number: int
    arn: str
    description: str
    runtimes: tuple[str, ...]
    architectures: tuple[str, ...]
    licence: str
    created: str

    def is_for(self, target: Target) -> bool:
        return self.runtimes == (target.runtime,) and self.architectures == (target.architecture,)


@dataclass(frozen=True)
class Permission:
    """A statement of a version's policy: who may use it."""

    statement: str
    principal: str
    """An account, or ``*``: everybody, or everybody in the organization."""
    organization: str = ""
    action: str = "lambda:GetLayerVersion"

    @property
    def is_public(self) -> bool:
        return self.principal == "*" and not self.organization

    def __str__(self) -> str:
        who = f"the organization {self.organization}" if self.organization else f"the account {self.principal}"
        return f"{self.statement}: {'everybody' if self.is_public else who}"


def versions(aws: Aws, region: str, layer: str) -> tuple[Version, ...]:
    """All versions of a layer in a region, newest first; none where there is no such layer."""
    try:
        entries = list(aws.pages("lambda", region, "list_layer_versions", "LayerVersions", LayerName=layer))
    except NotThere:
        return ()
    found = [
        Version(
            number=int(entry["Version"]),
            arn=entry["LayerVersionArn"],
            description=entry.get("Description", ""),
            runtimes=tuple(entry.get("CompatibleRuntimes", ())),
            architectures=tuple(entry.get("CompatibleArchitectures", ())),
            licence=entry.get("LicenseInfo") or "",
            created=entry.get("CreatedDate", ""),
        )
        for entry in entries
    ]
    return tuple(sorted(found, key=lambda one: one.number, reverse=True))


def permissions(aws: Aws, region: str, layer: str, number: int) -> tuple[tuple[Permission, ...], tuple[str, ...]]:
    """Who may use a version, and notes on what of its policy can't be given to another one."""
    try:
        answer = aws.call("lambda", region, "get_layer_version_policy", LayerName=layer, VersionNumber=number)
    except NotThere:
        return (), ()
    return parse_policy(answer["Policy"])


_ACCOUNT = re.compile(r"(?:arn:aws[a-z-]*:iam::)?(\d{12})(?::root)?", re.ASCII)


def parse_policy(text: str) -> tuple[tuple[Permission, ...], tuple[str, ...]]:
    """A version's policy (JSON): its statements, and what there is to know of those that are not of the usual kind."""
    allowed, notes = [], []
    for statement in json.loads(text).get("Statement", ()):
        parsed = _statement(statement)
        if parsed:
            allowed.append(parsed)
        else:
            notes.append(f"a permission of the previous version is not carried over: {statement.get('Sid', 'unnamed')}")
    return tuple(allowed), tuple(notes)


def _statement(statement: Mapping[str, Any]) -> Permission | None:
    sid, action, principal = statement.get("Sid"), statement.get("Action"), statement.get("Principal")
    principal = principal.get("AWS") if isinstance(principal, Mapping) else principal
    texts = isinstance(sid, str) and isinstance(action, str) and isinstance(principal, str)
    if not texts or statement.get("Effect") != "Allow":
        return None
    conditions = dict(statement.get("Condition") or {})
    organization = ""
    if conditions:
        # The one condition that AddLayerVersionPermission can make.
        equals = conditions.pop("StringEquals", None)
        if conditions or not isinstance(equals, Mapping) or set(equals) != {"aws:PrincipalOrgID"}:
            return None
        organization = str(equals["aws:PrincipalOrgID"])
    account = _ACCOUNT.fullmatch(str(principal))
    if principal != "*" and not account:
        return None
    return Permission(str(sid), account[1] if account else "*", organization, str(action))
