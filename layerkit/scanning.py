"""The security scan of built layers: known vulnerabilities, secrets and suspicious files, licences.

Every distribution of every layer is in the answer: clean, vulnerable, or not scanned with the reason. What one program
and another say of one vulnerability is one finding, by its aliases, that names both. What could not be looked at is
never a pass, and goes before what was found.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeVar

from layerkit import trees
from layerkit.advisories import Advisory, Affected, Level, applies, fixed_above, merge
from layerkit.auditing import Audited, Pin, carried_by
from layerkit.builds import BuiltLayer, builds
from layerkit.errors import ConfigurationError, ExternalError
from layerkit.judging import Suspicion, Vulnerability, exemption_notes, judge, parsed_version
from layerkit.licences import check_licences, licence_of
from layerkit.locking import read_lock
from layerkit.model import Checked, Exemption, Skipped, Target, normalized
from layerkit.processes import threads
from layerkit.project import Project
from layerkit.safety import Database, SafetyAnswer, SafetyFinding
from layerkit.sources import Source
from layerkit.suspects import Suspect, suspects

_T = TypeVar("_T")


@dataclass(frozen=True)
class NotScanned:
    """What could not be looked at, and the one reason for all of it."""

    by: str
    """Whose answer is missing."""
    what: tuple[str, ...]
    """``requests 2.31.0`` and others; none where the reason says what it is."""
    layers: tuple[str, ...]
    reason: str
    hint: str = ""

    @property
    def line(self) -> str:
        """All of it but the hint, in one line: at most four of what it is about, and how many more."""
        if not self.what:
            return f"not scanned: {self.reason}"
        shown = ", ".join(self.what[:4]) + (f" and {len(self.what) - 4} more" if len(self.what) > 4 else "")
        return f"not scanned by {self.by}: {shown} of {', '.join(self.layers)}: {self.reason}"


class Result(Enum):
    """What is known of a distribution."""

    CLEAN = "clean"
    """Everybody who was to be asked has answered, and knows nothing against it."""
    VULNERABLE = "vulnerable"
    """Something is known against it, whether it counts or not."""
    NOT_SCANNED = "not scanned"


@dataclass(frozen=True)
class Scanned:
    """A distribution at a version that layers carry."""

    name: str
    version: str
    layers: tuple[str, ...]
    result: Result
    reasons: tuple[str, ...] = ()
    """Whose answer is missing, and why."""


@dataclass(frozen=True)
class Scan:
    """The answer."""

    target: Target
    layers: tuple[str, ...]
    source: Source
    distributions: tuple[Scanned, ...]
    """Everything that the layers carry, each version once."""
    vulnerabilities: tuple[Vulnerability, ...]
    """Those that count first, then by how severe the worst of a distribution is, so that one's stand together."""
    suspicions: tuple[Suspicion, ...]
    licences: tuple[Checked, ...]
    """One for each layer."""
    not_scanned: tuple[NotScanned, ...]
    safety: Database | None
    """The database that safety asked; None where it was not asked or gave no answer."""
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    """How long each part took; they run side by side."""
    asked: bool = True
    """Whether pip-audit could ask the source about something."""
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """The line that a distribution has in the lock file of a layer, from 1, by layer and name."""

    @property
    def all(self) -> tuple[Vulnerability | Suspicion, ...]:
        """What was found, whether it counts or not."""
        return (*self.vulnerabilities, *self.suspicions)

    @property
    def counting(self) -> tuple[Vulnerability | Suspicion, ...]:
        """What was found and counts."""
        return tuple(one for one in self.all if one.standing.counts)

    @property
    def banned(self) -> int:
        """How many distributions are under a licence that is banned, each layer for itself."""
        return sum(len(checked.findings) for checked in self.licences)

    @property
    def is_whole(self) -> bool:
        """Whether everything could be looked at."""
        return not self.not_scanned and not any(checked.skipped for checked in self.licences)

    @property
    def exit_code(self) -> int:
        """4 when something could not be looked at, else 3 when something counts, else 0."""
        if not self.is_whole:
            return 4
        return 3 if self.counting or self.banned else 0


# ---- scanning ----


@dataclass(frozen=True)
class Scanner:
    """What a scan is done with."""

    source: Source
    audit: Callable[[Mapping[Path, Iterable[Pin]]], Mapping[Path, tuple[Audited, ...]]] | Skipped
    """pip-audit over trees, each with what is expected in it (``Auditor.audit_trees``); or why it can't be run."""
    screen: Callable[[Iterable[Pin]], SafetyAnswer | Skipped] | None
    """safety; None: it is not asked."""
    safety_optional: bool = False
    """Whether a scan is whole without safety's answer."""
    fail_on: Level | None = None
    """What is less severe does not count; None: everything counts."""
    exemptions: tuple[Exemption, ...] = ()
    deny: tuple[str, ...] = ()
    """Licences that no distribution may be under."""
    known_licences: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 1
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long it took to make these things ready, by what they are."""


def scan(
    project: Project,
    names: Sequence[str],
    target: Target,
    scanner: Scanner,
    today: date,
    tell: Callable[[str], None] = lambda what: None,
) -> Scan:
    """Scan the builds of the layers ``names`` for ``target``. A layer without one is not scanned.

    ``tell`` hears of each part when it begins. ConfigurationError for a licence that the settings have wrong.
    """
    built = {name: one for name, one in builds(project, target).items() if name in names}
    carried = {name: carried_by(one.tree, _pins(one)) for name, one in built.items()}
    seconds = dict(scanner.seconds)

    def timed(what: str, run: Callable[[], _T]) -> _T:
        started = time.monotonic()
        tell(what)
        try:
            return run()
        finally:
            seconds[what] = round(time.monotonic() - started, 3)

    licences = timed("licences", lambda: tuple(_licences(one, scanner) for one in built.values()))
    with threads(2 + len(built)) as pool:
        auditing = pool.submit(timed, "pip-audit", partial(_audit, scanner, built, carried))
        screening = pool.submit(timed, "safety", partial(_screen, scanner.screen, carried)) if scanner.screen else None
        looking = {
            name: pool.submit(timed, f"files of {name}", partial(_suspects, project, one, scanner.jobs))
            for name, one in built.items()
        }
        audited = auditing.result()
        screened = screening.result() if screening else None
        files = {name: future.result() for name, future in looking.items()}

    carriers = _carriers(audited)
    answer = screened if isinstance(screened, SafetyAnswer) else None
    unaudited, unscreened = _unaudited(scanner, audited), _unscreened(screened, carriers)
    details, unknown = timed("advisories", lambda: _known(scanner.source, _to_ask(carriers, unaudited, answer)))
    found = _vulnerabilities(audited, answer, carriers, details)
    warnings: list[str] = []
    suspicions = [
        Suspicion(name, project.relative(built[name].tree), suspect)
        for name, entries in files.items()
        for suspect in (() if isinstance(entries, str) else entries)
    ]
    if scanner.safety_optional:
        warnings += [f"{gap.line} (it is optional here)" for gap in _gaps("safety", unscreened, carriers)]
        unscreened = {}
    gaps = (
        *(
            NotScanned(
                "the scan", (), (name,), f"{name} is not built for {target}", build_command(project, name, target)
            )
            for name in names
            if name not in built
        ),
        *_gaps("pip-audit", unaudited, carriers),
        *_gaps(_DATABASE, unknown, carriers),
        *_gaps("safety", unscreened, carriers),
        *(
            NotScanned("the scan of files", (), (name,), f"the files of {name}: {why}")
            for name, why in files.items()
            if isinstance(why, str)
        ),
    )
    vulnerabilities, suspected = judge(found, suspicions, scanner.exemptions, scanner.fail_on, today)
    covered = set(names)
    if all(name in names or project.layers.why_not(name, target) for name in project.layers):
        covered.add("")
    return Scan(
        target=target,
        layers=tuple(names),
        source=scanner.source,
        distributions=_distributions(
            carriers, vulnerabilities, {"pip-audit": unaudited, _DATABASE: unknown, "safety": unscreened}
        ),
        vulnerabilities=vulnerabilities,
        suspicions=suspected,
        licences=licences,
        not_scanned=gaps,
        safety=answer.database if answer else None,
        warnings=(
            *scanner.source.notes,
            *(why for one in built.values() if (why := _other_than_its_lock(project, one))),
            *warnings,
            *exemption_notes(
                scanner.exemptions,
                (*vulnerabilities, *suspected),
                set() if gaps else covered,
                by_safety=answer is not None,
            ),
        ),
        seconds=seconds,
        asked=not (isinstance(scanner.audit, Skipped) or scanner.source.problem)
        and any(not reason for found in carried.values() for reason in found.values()),
        lines={
            (name, distribution): line
            for name in built
            for distribution, line in _lock_lines(project.lock_path(name, target)).items()
        },
    )


def build_command(project: Project, layer: str, target: Target) -> str:
    """What builds a layer for a target, with the flags that this needs."""
    default = project.default_target
    flags = [f" --runtime {target.runtime}"] if target.runtime != default.runtime else []
    flags += [f" --architecture {target.architecture}"] if target.architecture != default.architecture else []
    return f"inv build --layer {layer}{''.join(flags)}"


def _lock_lines(path: Path) -> dict[str, int]:
    """The line of each distribution in a lock file, from 1; nothing for a file that can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    pins = ((number, line.partition("==")) for number, line in enumerate(text.splitlines(), 1))
    return {normalized(name): number for number, (name, equals, _) in pins if equals and not name.startswith("#")}


def _pins(one: BuiltLayer) -> set[Pin]:
    return {(entry.name, entry.version) for entry in one.manifest.distributions}


def _carriers(audited: Mapping[str, Iterable[Audited]]) -> dict[Pin, tuple[str, ...]]:
    """Which layers carry each distribution, sorted by distribution."""
    found: dict[Pin, tuple[str, ...]] = {}
    for layer, entries in audited.items():
        for one in entries:
            found[one.name, one.version] = (*found.get((one.name, one.version), ()), layer)
    return dict(sorted(found.items()))


def _audit(
    scanner: Scanner, built: Mapping[str, BuiltLayer], carried: Mapping[str, Mapping[Pin, str]]
) -> dict[str, tuple[Audited, ...]]:
    problem = scanner.audit.reason if isinstance(scanner.audit, Skipped) else scanner.source.problem
    if isinstance(scanner.audit, Skipped) or problem:
        return {
            name: tuple(Audited(*pin, not_scanned=reason or problem) for pin, reason in sorted(found.items()))
            for name, found in carried.items()
        }
    answers = scanner.audit({one.tree: _pins(one) for one in built.values()})
    return {name: answers[one.tree] for name, one in built.items()}


def _screen(
    screen: Callable[[Iterable[Pin]], SafetyAnswer | Skipped], carried: Mapping[str, Mapping[Pin, str]]
) -> SafetyAnswer | Skipped:
    """What safety says of everything that somebody can be asked about."""
    return screen({pin for found in carried.values() for pin, reason in found.items() if not reason})


def _suspects(project: Project, one: BuiltLayer, jobs: int) -> tuple[Suspect, ...] | str:
    """The suspicious files of a layer; a text: why they are not known."""
    source = project.own_code(one.layer.name)
    own = {path.relative_to(source).as_posix() for path in trees.own_files(source)} if source.is_dir() else set()
    try:
        return suspects(one.tree, own, jobs, one.manifest.tree.sha256)
    except OSError as error:
        return f"{error.filename or one.tree}: {error.strerror or error}"


def _licences(one: BuiltLayer, scanner: Scanner) -> Checked:
    name = one.layer.name
    try:
        distributions = trees.installed(one.tree)
    except (ConfigurationError, ValueError, csv.Error, OSError) as error:
        reason = f"a RECORD can't be read: {error.message if isinstance(error, ConfigurationError) else error}"
        return replace(
            check_licences(name, (), scanner.deny),
            skipped=(Skipped("licences", name, reason),) if scanner.deny else (),
            detail=reason,
        )
    return check_licences(name, [licence_of(entry, scanner.known_licences) for entry in distributions], scanner.deny)


def _other_than_its_lock(project: Project, one: BuiltLayer) -> str:
    """What to say where a build has not what its lock has now; empty where it has."""
    name = one.layer.name
    try:
        lock = read_lock(project, name, one.manifest.target)
    except ConfigurationError as error:
        return f"whether the build of {name} is that of its lock is not known: {error.message}"
    if lock is None:
        return ""
    left_out = one.manifest.optimized.left_out.items() if one.manifest.optimized else ()
    locked = {(entry.name, entry.version) for entry in lock.packages}
    different = sorted((locked ^ _pins(one)) - (set(left_out) & locked))
    if not different:
        return ""
    names = ", ".join(dict.fromkeys(name for name, _ in different))
    command = build_command(project, name, one.manifest.target)
    return f"the build of {name} was scanned, and its lock says otherwise now of {names}: {command}"


def _distributions(
    carriers: Mapping[Pin, tuple[str, ...]],
    vulnerabilities: Iterable[Vulnerability],
    unanswered: Mapping[str, Mapping[Pin, tuple[str, str]]],
) -> tuple[Scanned, ...]:
    vulnerable = {(one.name, one.version) for one in vulnerabilities}
    found = []
    for pin, layers in carriers.items():
        reasons = tuple(f"{by}: {gaps[pin][0]}" for by, gaps in unanswered.items() if pin in gaps)
        result = Result.VULNERABLE if pin in vulnerable else Result.NOT_SCANNED if reasons else Result.CLEAN
        found.append(Scanned(*pin, layers, result, reasons))
    return tuple(found)


# ---- what could not be looked at ----


def _unaudited(scanner: Scanner, audited: Mapping[str, Iterable[Audited]]) -> dict[Pin, tuple[str, str]]:
    """What pip-audit did not scan: the reason, and what to do."""
    of_all = isinstance(scanner.audit, Skipped) or bool(scanner.source.problem)
    hint = scanner.audit.hint if isinstance(scanner.audit, Skipped) else scanner.source.hint
    return {
        (one.name, one.version): (one.not_scanned, hint if of_all or one.by_service else "")
        for found in audited.values()
        for one in found
        if one.not_scanned
    }


def _unscreened(screened: SafetyAnswer | Skipped | None, pins: Iterable[Pin]) -> dict[Pin, tuple[str, str]]:
    """What safety did not scan, as above."""
    if isinstance(screened, Skipped):
        said = (screened.reason.removeprefix("not scanned by safety: "), screened.hint)
        return dict.fromkeys(pins, said)
    return {pin: (reason, "") for pin, reason in screened.not_scanned.items()} if screened else {}


def _gaps(
    by: str, unanswered: Mapping[Pin, tuple[str, str]], carriers: Mapping[Pin, tuple[str, ...]]
) -> Iterator[NotScanned]:
    """Each reason once, with all that it holds for."""
    pins: dict[tuple[str, str], list[Pin]] = {}
    for pin, said in sorted(unanswered.items()):
        pins.setdefault(said, []).append(pin)
    for (reason, hint), found in pins.items():
        layers = dict.fromkeys(layer for pin in found for layer in carriers.get(pin, ()))
        yield NotScanned(by, tuple(" ".join(pin) for pin in found), tuple(layers), reason, hint)


# ---- one finding for one vulnerability ----


_DATABASE = "the advisory database"
"""What the source is called where its answer is not one that pip-audit passed on."""

_SECONDS = 120.0
"""How long asking the source about all distributions may take."""


def _to_ask(carriers: Iterable[Pin], unaudited: Mapping[Pin, object], screened: SafetyAnswer | None) -> tuple[Pin, ...]:
    """What pip-audit had an answer about, and what safety has found."""
    weak = {(one.name, one.version) for one in screened.findings} if screened else set()
    return tuple(pin for pin in carriers if pin not in unaudited or pin in weak)


def _known(source: Source, pins: Sequence[Pin]) -> tuple[dict[Pin, tuple[Advisory, ...]], dict[Pin, tuple[str, str]]]:
    """What the source itself says of each distribution; and where it does not: the reason, and what to do.

    pip-audit takes an answer without the advisories that it should have, or with its first page only, for one that
    there are none. So nothing is clean by its word alone.
    """
    details = source.details
    if details is None or source.problem:
        return {}, {}
    until = time.monotonic() + _SECONDS

    def ask(pin: Pin) -> tuple[Advisory, ...] | Skipped:
        if time.monotonic() > until:
            reason = f"{source.shown} had not answered about all after {_SECONDS:g} s"
            return Skipped("advisories", pin[0], reason, source.hint)
        try:
            return details(*pin)
        except ExternalError as error:
            return Skipped("advisories", pin[0], error.message.rstrip("."), error.hint)

    known: dict[Pin, tuple[Advisory, ...]] = {}
    unknown: dict[Pin, tuple[str, str]] = {}
    with threads(8) as pool:
        for pin, answer in zip(pins, pool.map(ask, pins), strict=True):
            if isinstance(answer, Skipped):
                unknown[pin] = (answer.reason, answer.hint)
            else:
                known[pin] = answer
    return known, unknown


def _vulnerabilities(
    audited: Mapping[str, tuple[Audited, ...]],
    screened: SafetyAnswer | None,
    carriers: Mapping[Pin, tuple[str, ...]],
    details: Mapping[Pin, tuple[Advisory, ...]],
) -> list[Vulnerability]:
    """What pip-audit, safety and the source itself say, by distribution and alias."""
    reported = {(one.name, one.version): one for found in audited.values() for one in found}
    by_safety: dict[Pin, list[SafetyFinding]] = {}
    for one in screened.findings if screened else ():
        by_safety.setdefault((one.name, one.version), []).append(one)
    found: list[Vulnerability] = []
    for pin, layers in carriers.items():
        said = {
            "pip-audit": _of_report(pin, reported[pin]) if pin in reported else [],
            "safety": [_of_safety(pin, one) for one in by_safety.get(pin, ())],
        }
        found += _of_distribution(pin, layers, details.get(pin, ()), said)
    return found


def _of_report(pin: Pin, audited: Audited) -> list[Advisory]:
    """What pip-audit says, in the form of advisories: ids and a word, no severity."""
    return [
        _bare(pin, one.id, one.aliases, one.summary, Level.UNKNOWN, None, one.fixed, "") for one in audited.advisories
    ]


def _of_safety(pin: Pin, one: SafetyFinding) -> Advisory:
    return _bare(pin, f"SAFETY-{one.id}", one.aliases, one.summary, Level(one.level), one.score, one.fixed, one.url)


def _bare(
    pin: Pin,
    id_: str,
    aliases: Iterable[str],
    summary: str,
    level: Level,
    score: float | None,
    fixed: Iterable[str],
    url: str,
) -> Advisory:
    """An advisory as a program tells of it: it affects the version at hand, up to the first one that fixes it."""
    end = _lowest_above(pin[1], fixed)
    affected = Affected(pin[0], ((pin[1], end, False),) if end else (), () if end else (pin[1],), (end,) if end else ())
    page = url or (f"https://osv.dev/vulnerability/{id_}" if not id_.startswith("SAFETY-") else "")
    names = tuple(sorted(set(aliases) - {id_}))
    return Advisory(id_, names, summary, level, score, "", (affected,), page, _UNDATED, withdrawn=False)


_UNDATED = "1970-01-01T00:00:00Z"


def _of_distribution(
    pin: Pin, layers: tuple[str, ...], details: Sequence[Advisory], said: Mapping[str, Sequence[Advisory]]
) -> Iterator[Vulnerability]:
    """One Vulnerability for each group of advisories that aliases connect."""
    everything = [*details, *(advisory for entries in said.values() for advisory in entries)]
    for group in merge(everything):
        by = [name for name, entries in said.items() if any(advisory.ids & group.ids for advisory in entries)]
        # What a database says is better than what a program says of it. All the names of the group connect it: two
        # documents may be about one vulnerability by a name that only a program knows.
        whole = [
            replace(advisory, aliases=tuple(sorted(group.ids - {advisory.id})))
            for advisory in details
            if advisory.ids & group.ids
        ]
        best = merge(whole)[0] if whole else group
        fixes = (version for affected in group.affected for version in affected.fixed)
        ends = [end for end in fixes if not (whole and applies(best, pin[0], end))]
        yield Vulnerability(
            name=pin[0],
            version=pin[1],
            layers=layers,
            id=best.id,
            aliases=best.aliases,
            summary=best.summary or group.summary,
            level=group.level if best.level is Level.UNKNOWN else best.level,
            score=group.score if best.level is Level.UNKNOWN else best.score,
            fixed=(fixed_above(best, *pin) if whole else None) or _lowest_above(pin[1], ends),
            url=best.url,
            found_by=tuple(by) or (_DATABASE,),
            advisories=tuple(whole),
        )


def _lowest_above(version: str, others: Iterable[str]) -> str | None:
    installed = parsed_version(version)
    above = [
        (parsed, other)
        for other in others
        if (parsed := parsed_version(other)) and (installed is None or parsed > installed)
    ]
    return min(above)[1] if above else None
