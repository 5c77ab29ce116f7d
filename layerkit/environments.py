"""Environments: the accounts and regions that layers are published to, as ``invoke.yaml`` names them.

They are read as values and checked as a whole, before anything is asked of AWS. ``docs/environments.md`` has the keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from layerkit.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """What tells that an environment works: a function's answer to an event, or the status of a page."""

    function: str = ""
    event: str = ""
    """A file below the root with the event to send."""
    url: str = ""
    status: int = 200


@dataclass(frozen=True)
class Environment:
    """An account and regions, whose credentials reach it, and what of it is layerkit's to change."""

    name: str
    account: str
    """The account that the credentials have to be of: 12 digits."""
    regions: tuple[str, ...]
    profile: str = ""
    """The profile whose credentials are used; empty: as the AWS CLI would without --profile."""
    role: str = ""
    """The ARN of a role to assume with them; empty: none."""
    buckets: Mapping[str, str] = field(default_factory=dict)
    """By region, the bucket for zips that are too large for a request."""
    functions: tuple[str, ...] = ()
    """Patterns of the functions' names, such as ``shop-*``."""
    aliases: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    history: str = "local"
    """``local``, or where in S3 (``s3://bucket/prefix``) a team keeps what was deployed."""
    protected: bool = False
    """Whether changing it needs a person's word, or ``--yes``."""
    licence: str = ""
    """What layer versions are published under (LicenseInfo); empty: nothing is said."""
    ssm_prefix: str = ""
    """The parameters below which the ARNs of published versions are written; empty: none are."""
    arns_file: str = ""
    """The file below the root that the ARNs are written to; empty: none."""

    @property
    def where(self) -> str:
        """Its place in the settings, for messages."""
        return f"layerkit.environments.{self.name}"

    def selected(self, regions: Sequence[str]) -> tuple[str, ...]:
        """The regions named, in the environment's order, or all when none is; ConfigurationError for another one."""
        for region in regions:
            if region not in self.regions:
                raise ConfigurationError(
                    f"--region: {region!r} is not a region of the environment {self.name}.",
                    f"Its regions are {', '.join(self.regions)} ({self.where}.regions).",
                )
        return tuple(region for region in self.regions if not regions or region in regions)


def parse_environments(mapping: Mapping[str, Any], where: str = "layerkit.environments") -> dict[str, Environment]:
    """The environments under ``where``, by name; ConfigurationError names the key of the first mistake."""
    return {str(name): _environment(str(name), values, f"{where}.{name}") for name, values in mapping.items()}


def chosen_environment(environments: Mapping[str, Environment], name: str | None) -> Environment:
    """The environment that ``--environment`` names; ConfigurationError when there is none of that name."""
    known = f"Known: {', '.join(environments)}." if environments else ""
    known = known or "There is none yet: docs/environments.md says what to write under layerkit.environments."
    if not name:
        raise ConfigurationError("--environment is missing: it says which account and regions are meant.", known)
    if name not in environments:
        raise ConfigurationError(f"--environment: there is no environment called {name!r} in invoke.yaml.", known)
    return environments[name]


# ---- one value each ----

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d{1,2}")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::(?P<account>\d{12}):role/[\w+=,.@/-]{1,576}", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PATTERN = re.compile(r"[A-Za-z0-9_*?\[\]!-]{1,140}")
_ALIAS = re.compile(r"(?!\d+$)[A-Za-z0-9_-]{1,128}")
_HISTORY = re.compile(rf"s3://{_BUCKET.pattern}(/[\w!.*'()/-]+)?", re.ASCII)
_PREFIX = re.compile(r"(?!/(aws|ssm)(/|$))(/[A-Za-z0-9_.-]+){1,10}", re.IGNORECASE)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

# How much of a licence AWS takes (API reference, PublishLayerVersion).
_LICENCE = 512


def _matching(pattern: re.Pattern[str], kind: str) -> Callable[[Any, str], str]:
    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ConfigurationError(f"{where}: {value!r} is not {kind}.")
        return value

    return read


_region = _matching(_REGION, "a region, such as eu-west-1")
_bucket = _matching(_BUCKET, "the name of a bucket")
_function = _matching(_PATTERN, "a function's name or a pattern such as shop-*")
_alias = _matching(_ALIAS, "the name of an alias")
_prefix = _matching(_PREFIX, "a prefix of parameters, such as /layers/production (and not below /aws or /ssm)")
_profile = _matching(re.compile(r"[^\s\x00-\x1f](.*[^\s])?"), "the name of a profile")


def _account(value: Any, where: str) -> str:
    # YAML reads 12 digits as a number, and as an octal one when they begin with 0: then other digits are left.
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"\d{12}", text, re.ASCII):
        raise ConfigurationError(
            f"{where}: {value!r} is not the number of an account.", 'Twelve digits, in quotes: "012345678901".'
        )
    return text


def _role(value: Any, where: str) -> str:
    return _matching(_ROLE, "the ARN of a role (arn:aws:iam::123456789012:role/NAME)")(value, where)


def _history(value: Any, where: str) -> str:
    if value == "local":
        return "local"
    return _matching(_HISTORY, "a place for the history: local, or s3://BUCKET/PREFIX")(value, where)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where}: {value!r} is neither true nor false.")
    return value


def _licence(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LICENCE:
        raise ConfigurationError(f"{where}: a licence is a text of at most {_LICENCE} characters, such as MIT.")
    return value


def _path(value: Any, where: str) -> str:
    parts = value.split("/") if isinstance(value, str) else [""]
    if not all(parts) or ".." in parts or "\\" in value or "\0" in value:
        raise ConfigurationError(f"{where}: {value!r} is not the path of a file below the root of the checkout.")
    return str(value)


def _list(read: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    def read_all(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(f"{where} must be a list, not {value!r}.")
        found = tuple(read(entry, f"{where}[{number}]") for number, entry in enumerate(value))
        twice = next((entry for number, entry in enumerate(found) if entry in found[:number]), None)
        if twice is not None:
            raise ConfigurationError(f"{where} has {twice!r} twice.")
        return found

    return read_all


def _buckets(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} must be buckets by region, not {value!r}.", "eu-west-1: a-bucket-there")
    return {_region(region, where): _bucket(bucket, f"{where}.{region}") for region, bucket in value.items()}


def _status(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 100 <= value <= 599:
        raise ConfigurationError(f"{where}: {value!r} is not a status of HTTP.")
    return value


def _url(value: Any, where: str) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
        host = parts.hostname
        usable = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
        usable = usable and bool(host) and parts.username is None and parts.port != 0
    except ValueError:  # brackets or a port that are none
        usable = False
    if not usable:  # it is not shown: there may be a password in it
        raise ConfigurationError(f"{where} is not an address of https without a login.")
    return str(value)


def _check(value: Any, where: str) -> Check:
    readers: Mapping[str, Callable[[Any, str], Any]] = {
        "function": _function,
        "event": _path,
        "url": _url,
        "status": _status,
    }
    found = _read(value, where, readers)
    if set(found) in ({"function", "event"}, {"url"}, {"url", "status"}):
        return Check(**found)
    raise ConfigurationError(f"{where} must have function and event, or url and the status to expect.")


_KEYS: Mapping[str, Callable[[Any, str], Any]] = {
    "account": _account,
    "regions": _list(_region),
    "profile": _profile,
    "role": _role,
    "buckets": _buckets,
    "functions": _list(_function),
    "aliases": _list(_alias),
    "checks": _list(_check),
    "history": _history,
    "protected": _flag,
    "licence": _licence,
    "ssm_prefix": _prefix,
    "arns_file": _path,
}


def _read(values: Any, where: str, readers: Mapping[str, Callable[[Any, str], Any]]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where} must be keys with values, not {values!r}.", f"Known: {', '.join(readers)}.")
    for key in values:
        if key not in readers:
            raise ConfigurationError(f"{where}.{key} is not known.", f"Known: {', '.join(readers)}.")
    return {key: readers[key](value, f"{where}.{key}") for key, value in values.items()}


def _environment(name: str, values: Any, where: str) -> Environment:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: {name!r} can't be the name of an environment.", "Letters, digits, - and _.")
    found = _read(values, where, _KEYS)
    for key in ("account", "regions"):
        if not found.get(key):
            raise ConfigurationError(f"{where}.{key} is missing.", "Every environment has an account and regions.")
    environment = Environment(name, **found)
    for region in environment.buckets:
        if region not in environment.regions:
            raise ConfigurationError(f"{where}.buckets: {region} is not one of its regions.")
    role = _ROLE.fullmatch(environment.role)
    if role and role["account"] != environment.account:
        raise ConfigurationError(
            f"{where}.role is a role of the account {role['account']}, and {where}.account is {environment.account}."
        )
    return environment
