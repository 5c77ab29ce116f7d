"""What is live: which functions, published versions and aliases use which version of the layers.

One listing of all functions with all their published versions tells that; aliases and owners are asked about for the
functions that use a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from layerkit.aws import Aws, AwsError, NotThere
from layerkit.layerversions import Version, versions
from layerkit.model import Skipped
from layerkit.processes import threads
from layerkit.runtimes import runtimes

SOON = timedelta(days=183)
"""How long before a runtime is deprecated that is said."""


@dataclass(frozen=True)
class Attached:
    """A version of one of the layers, as a function has it."""

    layer: str
    number: int
    newest: int
    """The newest version for the function's runtime and architecture; 0 where there is none."""

    @property
    def is_behind(self) -> bool:
        return self.number < self.newest


@dataclass(frozen=True)
class User:
    """A function, or a published version of it, that uses some of the layers."""

    region: str
    function: str
    arn: str
    """The function's, without a version."""
    version: str
    """``$LATEST`` or a number."""
    aliases: tuple[str, ...]
    """The aliases that lead to it, wholly or in part."""
    runtime: str
    architecture: str
    layers: tuple[Attached, ...]
    """In the function's order."""
    deprecated: date | None
    """When AWS deprecates the runtime; None where that is not known."""
    block_update: date | None
    """From when on AWS refuses to change functions with it."""
    stack: str = ""
    """The CloudFormation stack that the function belongs to; empty: none, or not known."""

    @property
    def serves(self) -> bool:
        """Whether it is what is called: ``$LATEST``, or behind an alias."""
        return self.version == "$LATEST" or bool(self.aliases)

    @property
    def is_behind(self) -> bool:
        return self.serves and any(one.is_behind for one in self.layers)

    def runtime_ends(self, today: date) -> bool:
        """Whether its runtime is deprecated, soon will be, or is one that AWS no longer lists."""
        return self.deprecated is None or today >= self.deprecated - SOON


@dataclass(frozen=True)
class InRegion:
    """The versions of one layer in one region, newest first."""

    layer: str
    region: str
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Usage:
    """Who uses what."""

    layers: tuple[InRegion, ...]
    users: tuple[User, ...]
    skipped: tuple[Skipped, ...] = ()
    """What could not be found out."""

    def users_of(self, layer: str, region: str, number: int) -> tuple[User, ...]:
        return tuple(
            user
            for user in self.users
            if user.region == region and any((one.layer, one.number) == (layer, number) for one in user.layers)
        )


def find_usage(aws: Aws, layers: Sequence[str], regions: Sequence[str], *, jobs: int = 8) -> Usage:
    """Who uses the versions of ``layers`` that are of the environment's account, in each of ``regions``."""
    places = [(layer, region) for region in regions for layer in layers]
    with threads(jobs) as pool:
        sweeps = [pool.submit(_sweep, aws, region) for region in regions]
        listed = [pool.submit(lambda place: InRegion(*place, versions(aws, place[1], place[0])), one) for one in places]
        found = tuple(one.result() for one in listed)
        by_place = {(one.layer, one.region): one.versions for one in found}
        users = []
        for region, sweep in zip(regions, sweeps, strict=True):
            newest = {layer: by_place[layer, region] for layer in layers}
            users += [user for entry in sweep.result() if (user := _user(entry, region, aws, newest))]
        functions = sorted({(user.region, user.arn) for user in users})
        asked: dict[str, dict[tuple[str, str], Any]] = {
            "aliases": dict(zip(functions, pool.map(lambda one: _aliases(aws, *one), functions), strict=True)),
            "owner": dict(zip(functions, pool.map(lambda one: _stack(aws, *one), functions), strict=True)),
        }
    skipped = tuple(
        answer for of in asked.values() for answer in dict.fromkeys(of.values()) if isinstance(answer, Skipped)
    )
    return Usage(found, tuple(sorted(_owned(users, asked), key=_place)), skipped)


def _place(user: User) -> tuple[str, str, bool, int]:
    number = 0 if user.version == "$LATEST" else int(user.version)
    return user.region, user.function, bool(number), -number


def _sweep(aws: Aws, region: str) -> list[dict[str, Any]]:
    return [
        entry
        for entry in aws.pages("lambda", region, "list_functions", "Functions", FunctionVersion="ALL")
        if entry.get("Layers")
    ]


_ARN = re.compile(
    r"arn:[a-z-]+:lambda:(?P<region>[a-z0-9-]+):(?P<account>\d+):layer:(?P<layer>[A-Za-z0-9_-]+):(?P<version>\d+)"
)


def _user(entry: Mapping[str, Any], region: str, aws: Aws, known: Mapping[str, Sequence[Version]]) -> User | None:
    """A function of a listing as a user of the layers; None when it uses none of them."""
    runtime = entry.get("Runtime", "")
    architecture = (entry.get("Architectures") or ["x86_64"])[0]
    attached = []
    for one in entry["Layers"]:
        match = _ARN.fullmatch(one["Arn"])
        if match and match["account"] == aws.environment.account and match["layer"] in known:
            newest = next(
                (
                    version.number
                    for version in known[match["layer"]]
                    if runtime in version.runtimes and architecture in version.architectures
                ),
                0,
            )
            attached.append(Attached(match["layer"], int(match["version"]), newest))
    if not attached:
        return None
    dates = runtimes().get(runtime)
    return User(
        region=region,
        function=entry["FunctionName"],
        arn=":".join(entry["FunctionArn"].split(":")[:7]),
        version=entry["Version"],
        aliases=(),
        runtime=runtime,
        architecture=architecture,
        layers=tuple(attached),
        deprecated=dates.deprecated if dates else None,
        block_update=dates.block_update if dates else None,
    )


_Aliases = tuple[tuple[str, str], ...]
"""Each alias with a version that it leads to; one with weights leads to two."""


def _aliases(aws: Aws, region: str, function: str) -> _Aliases | Skipped:
    name = function.rpartition(":")[2]
    try:
        entries = list(aws.pages("lambda", region, "list_aliases", "Aliases", FunctionName=name))
    except NotThere:  # it was deleted meanwhile
        return ()
    except AwsError as error:
        return Skipped("aliases", region, error.message, error.hint)
    found = []
    for entry in entries:
        weights = (entry.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}
        found += [(entry["Name"], version) for version in (entry["FunctionVersion"], *weights)]
    return tuple(found)


def _stack(aws: Aws, region: str, function: str) -> str | Skipped:
    try:
        tags = aws.call("lambda", region, "list_tags", Resource=function).get("Tags", {})
    except NotThere:
        return ""
    except AwsError as error:
        return Skipped("owner", region, error.message, error.hint)
    return str(tags.get("aws:cloudformation:stack-name", ""))


def _owned(users: Iterable[User], asked: Mapping[str, Mapping[tuple[str, str], Any]]) -> list[User]:
    found = []
    for user in users:
        aliases, stack = (asked[kind][user.region, user.arn] for kind in ("aliases", "owner"))
        if not isinstance(aliases, Skipped):
            user = replace(user, aliases=tuple(sorted(name for name, version in aliases if version == user.version)))
        if not isinstance(stack, Skipped):
            user = replace(user, stack=stack)
        found.append(user)
    return found
