"""What was found, and whether it counts: thresholds, and exceptions that have a reason and an end."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from enum import Enum

from packaging.version import InvalidVersion, Version

from layerkit.advisories import Advisory, Level, applies
from layerkit.model import Exemption
from layerkit.suspects import Suspect


class Standing(Enum):
    """Whether something that was found counts."""

    COUNTS = "counts"
    EXEMPT = "exempt"
    """The team has said why it does not matter, and until when."""
    EXPIRED = "expired"
    """It has, and the time is over: it counts."""
    BELOW = "below"
    """It is less severe than what was asked for."""

    @property
    def counts(self) -> bool:
        return self in (Standing.COUNTS, Standing.EXPIRED)


@dataclass(frozen=True)
class Vulnerability:
    """One vulnerability of a distribution at a version, in the layers that carry it and where it counts alike."""

    name: str
    version: str
    layers: tuple[str, ...]
    id: str
    aliases: tuple[str, ...]
    summary: str
    level: Level
    score: float | None
    fixed: str | None
    """The lowest version above this one that fixes it; None where none is known."""
    url: str
    found_by: tuple[str, ...]
    advisories: tuple[Advisory, ...] = field(compare=False)
    """What the source has about it, whole; empty where only a program's words are to be had."""
    standing: Standing = Standing.COUNTS
    exemption: Exemption | None = None

    @property
    def ids(self) -> frozenset[str]:
        return frozenset({self.id, *self.aliases})

    def affects(self, version: str) -> bool:
        """Whether it is about another version of the distribution as well.

        Where there is no advisory to ask, it is up to the first version that is said to fix it.
        """
        if self.advisories:
            return any(applies(advisory, self.name, version) for advisory in self.advisories)
        one, fixed = parsed_version(version), parsed_version(self.fixed or "")
        return version == self.version or one is None or fixed is None or one < fixed


@dataclass(frozen=True)
class Suspicion:
    """A suspicious file of a layer."""

    layer: str
    folder: str
    """Where the layer's tree lies, below the checkout."""
    suspect: Suspect
    standing: Standing = Standing.COUNTS
    exemption: Exemption | None = None

    @property
    def id(self) -> str:
        """What an exception calls it: ``secret:pkg/data.txt``."""
        return f"{self.suspect.kind}:{self.suspect.path}"

    @property
    def level(self) -> Level:
        return Level(self.suspect.level)

    @property
    def file(self) -> str:
        """The path below the checkout, with ``/``."""
        return posixpath.normpath(posixpath.join(self.folder, self.suspect.path))


_ORDER = (Level.CRITICAL, Level.HIGH, Level.UNKNOWN, Level.MEDIUM, Level.LOW)


def judge(
    found: Iterable[Vulnerability],
    suspicions: Iterable[Suspicion],
    exemptions: Sequence[Exemption],
    fail_on: Level | None,
    today: date,
) -> tuple[tuple[Vulnerability, ...], tuple[Suspicion, ...]]:
    """With their standing, in the order of ``Scan``. What counts in one layer and not in another is two.

    An exception for one layer is for that layer only, and each holds up to its day and on it. What is less severe than
    ``fail_on`` does not count; None: everything does.
    """
    judged = [part for one in found for part in _by_standing(one, exemptions, fail_on, today)]
    worst: dict[tuple[bool, str, str], int] = {}
    for one in judged:
        key = (not one.standing.counts, one.name, one.version)
        worst[key] = min(worst.get(key, len(_ORDER)), _ORDER.index(one.level))
    suspected = []
    for other in suspicions:
        standing, exemption = _standing(other, other.layer, exemptions, fail_on, today)
        suspected.append(replace(other, standing=standing, exemption=exemption))

    def place(one: Vulnerability) -> tuple[bool, int, str, str, int, str, tuple[str, ...]]:
        key = (not one.standing.counts, one.name, one.version)
        return (key[0], worst[key], one.name, one.version, _ORDER.index(one.level), one.id, one.layers)

    suspected.sort(key=lambda one: (not one.standing.counts, _ORDER.index(one.level), one.layer, one.suspect))
    return tuple(sorted(judged, key=place)), tuple(suspected)


def _by_standing(
    one: Vulnerability, exemptions: Sequence[Exemption], fail_on: Level | None, today: date
) -> Iterator[Vulnerability]:
    layers: dict[tuple[Standing, Exemption | None], list[str]] = {}
    for layer in one.layers:
        layers.setdefault(_standing(one, layer, exemptions, fail_on, today), []).append(layer)
    for (standing, exemption), carrying in layers.items():
        yield replace(one, layers=tuple(carrying), standing=standing, exemption=exemption)


def _standing(
    one: Vulnerability | Suspicion,
    layer: str,
    exemptions: Iterable[Exemption],
    fail_on: Level | None,
    today: date,
) -> tuple[Standing, Exemption | None]:
    """How something that was found stands in a layer, and the exception that decides it."""
    matching = [entry for entry in exemptions if entry.layer in ("", layer) and _is_about(entry, one)]
    last = max(matching, key=lambda entry: entry.expires, default=None)
    if last and today <= last.expires:
        return Standing.EXEMPT, last
    if fail_on and not one.level.reaches(fail_on):
        return Standing.BELOW, None
    return (Standing.EXPIRED, last) if last else (Standing.COUNTS, None)


def _is_about(entry: Exemption, one: Vulnerability | Suspicion) -> bool:
    if isinstance(one, Suspicion):
        return entry.id == one.id
    return entry.id.upper() in {name.upper() for name in one.ids}


def exemption_notes(
    exemptions: Iterable[Exemption],
    found: Iterable[Vulnerability | Suspicion],
    covered: Collection[str],
    *,
    by_safety: bool,
) -> Iterator[str]:
    """What is to be said of exceptions: those that have expired, and those that match nothing.

    ``covered`` are the layers where everything was looked at, with an empty text among them where those are all. An
    exception for others may well be needed, and so may one by a name of safety's when it was not asked.
    """
    things = tuple(found)
    for entry in exemptions:
        about = [one for one in things if _is_about(entry, one) and entry.layer in ("", *_layers(one))]
        if any(one.exemption == entry and one.standing is Standing.EXPIRED for one in about):
            yield f"{entry.where}: the exception for {entry.id} expired on {entry.expires}, so that it counts again"
        elif not about and entry.layer in covered and (by_safety or not entry.id.upper().startswith(_OF_SAFETY)):
            yield (
                f"{entry.where}: the exception for {entry.id} matches nothing that was found: take it out, unless a "
                "build for another target needs it"
            )


_OF_SAFETY = ("SAFETY-", "PVE-")


def _layers(one: Vulnerability | Suspicion) -> tuple[str, ...]:
    return (one.layer,) if isinstance(one, Suspicion) else one.layers


def parsed_version(version: str) -> Version | None:
    try:
        return Version(version)
    except InvalidVersion:
        return None
