"""Newer versions: what there would be, raising pins in place, and the smallest raise that fixes a vulnerability.

Nothing is guessed: each answer is a resolution of the whole stack, made in a draft. A *pin* is a line of a
requirements file that asks for one version (``requests==2.31.0``); raising it is what this module is for. Lines that
ask for a range say what the team allows: they are kept to.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.version import InvalidVersion, Version

from layerkit.drafts import Draft, Line, LineChange, Place, Tell, at_least, at_most, drafted, stops, with_clauses
from layerkit.errors import CheckFailed, ConfigurationError
from layerkit.installer import Unsatisfiable, Uv
from layerkit.locking import read_lock, stale
from layerkit.model import LockChange, Requirement, Target, normalized
from layerkit.processes import threads
from layerkit.project import Project, parse_requirement

_TRIES = 25
"""How many versions, upwards from the first that might do, are tried before a raise is given up."""


@dataclass(frozen=True)
class Outdated:
    """One distribution of a layer's lock, and what there is besides."""

    layer: str
    name: str
    locked: str
    resolves: str | None
    """The version that raising everything would give; None where the layer would no longer need it."""
    newest: str | None
    """The newest version for the target that is no pre-release, whatever the stack needs; None: no wheel at all."""
    fixes: tuple[str, ...] | None
    """The advisories on ``locked`` that ``resolves`` is free of; None where nobody was asked."""

    @property
    def is_outdated(self) -> bool:
        """Whether there is a newer version, one that resolves or any."""
        return any(Version(version) > Version(self.locked) for version in (self.resolves, self.newest) if version)


@dataclass(frozen=True)
class Updated:
    """What an update changes, or with ``dry_run`` would."""

    lines: tuple[LineChange, ...]
    locks: tuple[LockChange, ...]


@dataclass(frozen=True)
class Vulnerable:
    """A distribution in a layer that advisories are about."""

    layer: str
    name: str
    version: str
    advisories: tuple[str, ...]
    fixed: tuple[str, ...]
    """Versions that are said to fix it, in any order; empty where none is known."""
    affected: Callable[[str], bool] = field(compare=False)
    """Whether any of ``advisories`` is about a version."""
    brings: Callable[[str], bool] = field(compare=False, default=lambda version: False)
    """Whether something counts against a version that was not found in this one."""


@dataclass(frozen=True)
class Raise:
    """The smallest raise that fixes a distribution, and all that changes with it: nothing, where the lock is free."""

    name: str
    before: str
    after: str
    advisories: tuple[str, ...]
    lines: tuple[LineChange, ...]
    locks: tuple[LockChange, ...]


@dataclass(frozen=True)
class NoRaise:
    """Why no raise fixes a distribution: in the resolver's words, or that no version does."""

    name: str
    version: str
    advisories: tuple[str, ...]
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Secured:
    """What a security update changed, or with ``dry_run`` would."""

    raises: tuple[Raise, ...]
    not_fixed: tuple[NoRaise, ...]
    lines: tuple[LineChange, ...]
    locks: tuple[LockChange, ...]
    left: tuple[Vulnerable, ...] = ()
    """What the scan of the new builds still found."""


def _chosen(project: Project, targets: Sequence[Target], layers: Sequence[str]) -> tuple[str, ...]:
    """The layers named, or all, that are for one of ``targets``.

    ConfigurationError for one that was named and is for none, and for one without a lock for a target that it is for.
    """
    names = []
    for name in project.selected(layers):
        reasons = [project.layers.why_not(name, target) for target in targets]
        if not all(reasons):
            names.append(name)
        elif layers:
            raise ConfigurationError(f"{name} is not for {' or '.join(map(str, targets))}: {reasons[0]}.")
        for target, reason in zip(targets, reasons, strict=True):
            if not reason and read_lock(project, name, target) is None:
                flags = flags_for(target, project.default_target)
                raise ConfigurationError(f"{name} has no lock for {target}.", f"Run `inv lock{flags}`.")
    if not names:
        raise ConfigurationError("there is no layer to update.", "Make one: inv new --layer NAME")
    return tuple(names)


def flags_for(target: Target, default: Target) -> str:
    """What to add to a command so that it is about ``target``; empty where it is without any flags."""
    flags = [f" --runtime {target.runtime}"] if target.runtime != default.runtime else []
    flags += [f" --architecture {target.architecture}"] if target.architecture != default.architecture else []
    return "".join(flags)


# ---- what could be newer ----


def outdated(
    project: Project,
    target: Target,
    *,
    layers: Sequence[str] = (),
    uv: Uv,
    advisories: Callable[[str, str], Collection[str]] | None = None,
    tell: Tell = lambda message: None,
) -> tuple[Outdated, ...]:
    """For each distribution in the locks of ``layers`` (none named: all), what there is besides. Changes nothing.

    *Resolves* is what the joint resolution of the whole stack gives when every pin asks for its version or a newer one
    and everything goes as high as it can: within all other requirements, what distributions ask of each other, the
    target's Python, and what has wheels for the target. ``advisories`` gives the ids of those about a name and version.

    The caller holds the checkout's lock. Raises ConfigurationError for a layer without a lock, and as ``lock`` does.
    """
    names = _chosen(project, [target], layers)
    stacks = project.layers.stacks(names)
    members = [layer.name for stack in stacks for layer in project.layers.stack(stack, target)]
    for stack in stacks:
        for name, reason in stale(project, project.layers.stack(stack, target), target).items():
            flags = flags_for(target, project.default_target)
            tell(f"{name}: its lock is not current ({reason}): `inv lock{flags}` brings it up to date")
    with drafted(project, uv) as draft:
        raised = {
            place: with_clauses(line.requirement, at_least(line.pin))
            for place, line in draft.lines().items()
            if line.pin
        }
        draft.propose(raised)
        draft.lock([target], members, upgrade=True, tell=tell)
        locks = {name: read_lock(project, name, target) for name in names}
        packages = {package.name: package for one in locks.values() if one for package in one.packages}
        tell(f"{target}: asking for the newest of {len(packages)} distributions")
        with threads(4) as pool:
            asked = pool.map(
                lambda package: _newest(
                    uv, package.name, package.sdist, target, draft.folder / "newest" / package.name
                ),
                packages.values(),
            )
            newest = dict(zip(packages, asked, strict=True))
        return tuple(
            _outdated(name, package.name, package.version, draft.versions(name, target), newest, advisories)
            for name, one in locks.items()
            for package in (one.packages if one else ())
        )


def _newest(uv: Uv, name: str, sdist: bool, target: Target, folder: Path) -> str | None:
    if not sdist:
        return uv.newest_with_wheel(name, target, folder)
    try:
        return uv.versions({"layerkit-probe": [name]}, target, folder, from_sdist=[name]).get(name)
    except Unsatisfiable:
        return None


def _outdated(
    layer: str,
    name: str,
    locked: str,
    resolved: Mapping[str, str],
    newest: Mapping[str, str | None],
    advisories: Callable[[str, str], Collection[str]] | None,
) -> Outdated:
    resolves = resolved.get(name)
    fixes = None
    if advisories:
        left = set(advisories(name, resolves)) if resolves else set()
        fixes = tuple(sorted(set(advisories(name, locked)) - left))
    return Outdated(layer, name, locked, resolves, newest[name], fixes)


# ---- raising pins ----


def update(
    project: Project,
    targets: Sequence[Target],
    *,
    layers: Sequence[str] = (),
    packages: Sequence[str] = (),
    dry_run: bool = False,
    uv: Uv,
    tell: Tell = lambda message: None,
) -> Updated:
    """Raise the pins of ``layers`` (none named: all), or only those of ``packages``, as far as they go, and lock.

    What is not pinned goes up within what the requirements allow. One pin holds for all ``targets``, so it goes to the
    highest version that all have. Requirements and locks are written together or not at all; nothing is written with
    ``dry_run``. The caller holds the checkout's lock.

    Raises ConfigurationError as ``lock`` does, for a layer without a lock, and when one of ``packages`` is held by the
    pin of a layer that was not named.
    """
    names = _chosen(project, targets, layers)
    wanted = [normalized(name) for name in packages]
    with drafted(project, uv) as draft:
        pins = {place: line for place, line in draft.lines().items() if line.pin}
        _tell_held(draft, pins, names, wanted, tell)
        ours = {
            place: line
            for place, line in pins.items()
            if line.owners <= set(names) and (not wanted or line.requirement.name in wanted)
        }
        ceilings: dict[Place, str] = {}
        while True:
            draft.restore(draft.first)
            draft.propose(
                {
                    place: with_clauses(
                        line.requirement,
                        at_least(line.pin),
                        *([at_most(ceilings[place])] if place in ceilings else []),
                    )
                    for place, line in ours.items()
                }
            )
            draft.lock(targets, names, upgrade=not wanted, packages=wanted, tell=tell)
            found = {place: draft.found(line, targets) for place, line in ours.items()}
            uneven = {place: min(versions, key=Version) for place, versions in found.items() if len(versions) > 1}
            if not uneven:
                break
            ceilings.update(uneven)
        draft.settle({place: version for place, versions in found.items() for version in versions})
        draft.lock(targets, names)  # the same versions, worked out from the lines as they are now
        if not dry_run:
            draft.let_in()
        return Updated(
            draft.changed_lines(draft.first), draft.changed_locks(draft.first, targets, names, written=not dry_run)
        )


def _tell_held(
    draft: Draft, pins: Mapping[Place, Line], names: Sequence[str], wanted: Sequence[str], tell: Tell
) -> None:
    """Say which distributions stay since layers that were not named pin them; ConfigurationError for one ``wanted``."""
    layers = draft.live.layers
    stacks = {layers[name].stack for name in names}
    held: dict[str, Line] = {}
    for line in pins.values():
        if not line.owners <= set(names) and stacks & {layers[owner].stack for owner in line.owners}:
            held.setdefault(line.requirement.name, line)
    for name in sorted(set(wanted) & held.keys()):
        others = sorted(held[name].owners - set(names))
        raise ConfigurationError(
            f"--package {name}: {held[name].requirement.where} pins it ({held[name].requirement.text}) for "
            f"{' and '.join(others)}, not named with --layer.",
            f"Add {' '.join(f'--layer {other}' for other in others)}, or leave --layer out.",
        )
    if held and not wanted:
        shown = ", ".join(f"{name} ({line.requirement.where})" for name, line in sorted(held.items()))
        tell(f"not raised, since layers not named with --layer pin them: {shown}")


# ---- the smallest raise that fixes ----


def smallest_raise(
    project: Project,
    targets: Sequence[Target],
    weak: Sequence[Vulnerable],
    *,
    layers: Sequence[str] = (),
    uv: Uv,
) -> Raise | NoRaise:
    """The smallest raise that fixes ``weak`` (one distribution, in layers of one stack) and resolves with the stack.

    First with every other pin as it is; where that does not go, with other pins raised as well, each no further than
    it must. Only lines of ``layers`` (none named: all) change; no distribution that a layer asks for goes back. Changes
    nothing. The caller holds the checkout's lock; the locks are current.
    """
    names = _chosen(project, targets, layers)
    with drafted(project, uv) as draft:
        return _raise(draft, targets, names, weak)


def _raise(
    draft: Draft, targets: Sequence[Target], names: Sequence[str], weak: Sequence[Vulnerable]
) -> Raise | NoRaise:
    """As ``smallest_raise``; a raise is settled in the draft, and without one the draft stays as it was."""
    search = _Search(draft, targets, names, weak)
    before = draft.save()
    locked = draft.everywhere(search.name, search.stack, targets)
    if locked and not any(map(search.affected, locked)):
        return search.raised(max(locked, key=Version))  # an earlier raise took it along, or only a build is missing
    floor = search.first()
    if floor is None:
        return search.nothing(search.hopeless(), "Watch the advisory, or do without the distribution.")
    stopped = search.stopped(floor)
    if stopped:
        return search.nothing(*stopped)
    failure: ConfigurationError | None = None
    for others in (False, True):
        if others and not search.others:
            break
        try:
            settled = search.settle(floor, others=others)
        except ConfigurationError as error:
            failure = error
        else:
            if settled:
                return settled
        draft.restore(before)
    if failure is None:
        return search.nothing(f"none of {_TRIES} versions from {floor} on is free of advisories")
    return search.nothing(failure.message, failure.hint)


class _Search:
    """The search for the smallest raise of one distribution, in a draft."""

    def __init__(
        self, draft: Draft, targets: Sequence[Target], names: Sequence[str], weak: Sequence[Vulnerable]
    ) -> None:
        self.draft = draft
        self.targets = targets
        self.weak = weak
        self.name = weak[0].name
        self.stack = draft.live.layers[weak[0].layer].stack
        self.advisories = tuple(sorted({advisory for one in weak for advisory in one.advisories}))
        self.fixed = _releases(version for one in weak for version in one.fixed)
        self.before = draft.save()
        self.lines = {
            place: line
            for place, line in draft.lines().items()
            if draft.found(line, targets) and any(draft.live.layers[one].stack == self.stack for one in line.owners)
        }
        """The lines of the stack that hold for a target."""
        self.changeable = {place for place, line in self.lines.items() if line.owners <= set(names)}
        self.named = {place for place in self.changeable if self.lines[place].requirement.name == self.name}
        """The lines that name the distribution; without any it gets one."""
        self.others = {place for place in self.changeable - self.named if self.lines[place].pin}
        touched = {
            draft.live.layers[one].stack for place in self.named | self.others for one in self.lines[place].owners
        }
        self.names = [name for name in names if draft.live.layers[name].stack in touched | {self.stack}]

    def affected(self, version: str) -> bool:
        return any(one.affected(version) or one.brings(version) for one in self.weak)

    def nothing(self, reason: str, hint: str = "") -> NoRaise:
        return NoRaise(self.name, self.weak[0].version, self.advisories, reason, hint)

    def raised(self, version: str) -> Raise:
        return Raise(
            self.name,
            self.weak[0].version,
            version,
            self.advisories,
            self.draft.changed_lines(self.before),
            self.draft.changed_locks(self.before, self.targets, self.names, written=False),
        )

    def first(self) -> str | None:
        """The first version that is said to fix all, or, where none is, the present one if a later one is free."""
        present = min(Version(one.version) for one in self.weak)
        for version in self.fixed:
            if Version(version) > present and not self.affected(version):
                return version
        folder = self.draft.folder / secrets.token_hex(4)
        newest = self.draft.uv.newest_with_wheel(self.name, self.targets[0], folder)
        return None if newest is None or self.affected(newest) else str(present)

    def hopeless(self) -> str:
        """Why there is no first version."""
        present = min(Version(one.version) for one in self.weak)
        for version in self.fixed:
            if Version(version) > present and not any(one.affected(version) for one in self.weak):
                return f"{version} fixes it, and there is something else against it and all newer ones"
        return "no version is known that fixes it"

    def stopped(self, floor: str) -> tuple[str, str] | None:
        """Which line leaves out ``floor`` and all above it, and what to do; None where none does."""
        for place, line in self.lines.items():
            changeable = place in self.changeable
            if line.requirement.name != self.name or not stops(line.requirement, floor, raising=changeable):
                continue
            reason = (
                f"{line.requirement.where} asks for {line.requirement.text}, and {floor} is the first that fixes it"
            )
            if changeable:
                return reason, "Change that line by hand, if its layer works with that version."
            return reason, f"Add {' '.join(f'--layer {one}' for one in sorted(line.owners))}, or leave --layer out."
        return None

    def settle(self, floor: str, *, others: bool) -> Raise | None:
        """Try versions from ``floor`` upwards until one is free; None when too many were not.

        Raises ConfigurationError when nothing from there on resolves.
        """
        draft = self.draft
        loose = self.named | (self.others if others else set())
        without = {floor} if self.affected(floor) else set()
        floors: dict[Place, str] = {}
        for _ in range(_TRIES):
            draft.restore(self.before)
            draft.propose(*self._proposal(floor, without, floors, loose))
            draft.lock(self.targets, self.names, lowest=True)
            found = draft.everywhere(self.name, self.stack, self.targets)
            bad = {version for version in found if self.affected(version)}
            uneven = {
                place: max(versions, key=Version)
                for place in loose
                if len(versions := draft.found(self.lines[place], self.targets)) > 1
            }
            if bad:
                without |= bad
                higher = [one for one in self.fixed if Version(one) > max(map(Version, bad)) and not self.affected(one)]
                floor = higher[0] if higher else floor
            elif uneven or (not self.named and len(found) > 1):
                floors.update(uneven)
                floor = max(found, key=Version)
            else:
                return self._settled(loose, max(found, key=Version))
        return None

    def _proposal(
        self, floor: str, without: Iterable[str], floors: Mapping[Place, str], loose: Collection[Place]
    ) -> tuple[dict[Place, str], dict[str, Requirement]]:
        """What to ask: the distribution from ``floor`` on, ``loose`` pins from theirs, and nothing else to go back."""
        wanted = [at_least(floor), *(f"!={version}" for version in sorted(without))]
        texts = {}
        for place, line in self.lines.items():
            if place in self.named:
                clauses = [*wanted, *([at_least(floors[place])] if place in floors else [])]
                texts[place] = with_clauses(line.requirement, *clauses)
            elif place in loose:
                texts[place] = with_clauses(line.requirement, at_least(floors.get(place, line.pin)))
            elif not line.pin:
                present = min(self.draft.found(line, self.targets), key=Version)
                texts[place] = with_clauses(line.requirement, at_least(present))
        if self.named:
            return texts, {}
        text = f"{self.name}{','.join(wanted)}"
        return texts, {
            name: parse_requirement(text, f"{self.draft.source(name)}, a new line") for name in self._needy()
        }

    def _needy(self) -> list[str]:
        """The layers that get a line of their own, which have the distribution through something else."""
        return [name for name in self.names if name in {one.layer for one in self.weak}]

    def _settled(self, loose: Iterable[Place], version: str) -> Raise:
        draft = self.draft
        versions = {place: max(draft.found(self.lines[place], self.targets), key=Version) for place in loose}
        because = f"raised for {', '.join(self.advisories)}" if self.advisories else "raised"
        more = {} if self.named else dict.fromkeys(self._needy(), f"{self.name}>={version}  # {because}")
        draft.settle(versions, more)
        draft.lock(self.targets, self.names)  # the same versions, worked out from the lines as they are now
        return self.raised(version)


def _releases(versions: Iterable[str]) -> list[str]:
    """Versions in order; a pre-release as the release that it leads to, and what is no version left out."""
    found = set()
    for text in versions:
        try:
            version = Version(text)
        except InvalidVersion:  # advisories name commits and other things as well
            continue
        found.add(version.base_version if version.is_prerelease else text)
    return sorted(found, key=Version)


# ---- all that can be fixed, or nothing ----


def update_security(
    project: Project,
    targets: Sequence[Target],
    found: Sequence[Vulnerable],
    *,
    layers: Sequence[str] = (),
    dry_run: bool = False,
    uv: Uv,
    rebuild: Callable[[Project], None],
    scan: Callable[[Project], Sequence[Vulnerable]],
    tell: Tell = lambda message: None,
) -> Secured:
    """Fix ``found`` in ``layers`` (none named: all) by the smallest raises, rebuild, scan again; or change nothing.

    Requirements, locks and builds are one unit. ``rebuild`` is called with a draft of the checkout: a Project at
    another root, whose layers have the new requirements and locks, and where what has not changed is linked. It builds
    and validates there, for every target that is to stay built, and raises what a build raises. ``scan`` is called
    with the same draft and gives what it finds in its builds; it raises ExternalError where something could not be
    scanned. When either raises, and when what was raised is still found or something new is (CheckFailed), nothing has
    changed. What no raise fixes is told, and is no reason to leave the rest.

    The caller holds the checkout's lock. Raises CheckFailed for locks that are not current.
    """
    names = _chosen(project, targets, layers)
    for target in targets:
        for stack in project.layers.stacks(names):
            for name, reason in stale(project, project.layers.stack(stack, target), target).items():
                raise CheckFailed(
                    f"the lock of {name} for {target} is not current ({reason}).",
                    f"Run `inv lock{flags_for(target, project.default_target)}`, build, and scan again.",
                )
    ours = [one for one in found if one.layer in names]
    with drafted(project, uv) as draft:
        raises: list[Raise] = []
        not_fixed: list[NoRaise] = []
        fixed: set[tuple[str, str, str]] = set()
        for weak in _groups(draft, ours):
            tell(f"{weak[0].name} {weak[0].version}: looking for the smallest raise that fixes it")
            done, results = _raise_what_goes(draft, targets, names, weak)
            raises += [result for result in results if isinstance(result, Raise)]
            not_fixed += [result for result in results if isinstance(result, NoRaise)]
            fixed |= {(one.layer, one.name, advisory) for one in done for advisory in one.advisories}
        lines = draft.changed_lines(draft.first)
        left: tuple[Vulnerable, ...] = ()
        written = bool(fixed) and not dry_run
        locks = draft.changed_locks(draft.first, targets, names, written=written)
        if written:
            draft.fill()
            rebuild(draft.project)
            left = tuple(scan(draft.project))
            _refuse_left(left, found, fixed)
            draft.let_in()
        return Secured(tuple(raises), tuple(not_fixed), lines, locks, left)


def _groups(draft: Draft, found: Sequence[Vulnerable]) -> list[list[Vulnerable]]:
    """What is found, by stack and distribution; those that a layer asks for first, since they may take others along."""
    layers = draft.live.layers
    groups: dict[tuple[str, str], list[Vulnerable]] = {}
    for one in found:
        groups.setdefault((layers[one.layer].stack, one.name), []).append(one)
    named = {(layers[owner].stack, line.requirement.name) for line in draft.lines().values() for owner in line.owners}
    return [groups[key] for key in sorted(groups, key=lambda key: (key not in named, key))]


def _raise_what_goes(
    draft: Draft, targets: Sequence[Target], names: Sequence[str], weak: Sequence[Vulnerable]
) -> tuple[Sequence[Vulnerable], list[Raise | NoRaise]]:
    """Raise for all of ``weak``; where that does not go, for as many advisories as it does. Also, which went.

    They are taken in the order of their fixes, and each that can't be fixed along with those before it is left.
    """
    whole = _raise(draft, targets, names, weak)
    if isinstance(whole, Raise):
        return weak, [whole]
    by_advisory: dict[tuple[str, ...], list[Vulnerable]] = {}
    for one in weak:
        by_advisory.setdefault(one.advisories, []).append(one)
    if len(by_advisory) == 1:
        return [], [whole]
    before = best = draft.save()
    goal: list[Vulnerable] = []
    raised: list[Raise | NoRaise] = []
    left: list[NoRaise] = []
    for entries in sorted(by_advisory.values(), key=_first_fix):
        draft.restore(before)
        result = _raise(draft, targets, names, [*goal, *entries])
        if isinstance(result, Raise):
            goal, raised, best = [*goal, *entries], [result], draft.save()
        else:
            left.append(_left(result, alone=_Search(draft, targets, names, entries), goal=goal))
    draft.restore(best)
    return goal, [*raised, *_by_reason(left)]


def _first_fix(entries: Sequence[Vulnerable]) -> tuple[bool, Version, tuple[str, ...]]:
    fixed = _releases(version for one in entries for version in one.fixed)
    return (not fixed, Version(fixed[0]) if fixed else Version("0"), entries[0].advisories)


def _left(result: NoRaise, *, alone: _Search, goal: Sequence[Vulnerable]) -> NoRaise:
    """Why what ``alone`` is about stays: ``result`` is about it and ``goal``, which is told where that matters."""
    ids = ", ".join(sorted({advisory for one in goal for advisory in one.advisories}))
    if goal and alone.first() is not None:
        return replace(result, advisories=alone.advisories, reason=f"together with {ids}: {result.reason}")
    return replace(result, advisories=alone.advisories)


def _by_reason(left: Iterable[NoRaise]) -> list[NoRaise]:
    """One for each reason, with all the advisories that it holds for."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for one in left:
        found.setdefault((one.name, one.version, one.reason, one.hint), []).extend(one.advisories)
    return [
        NoRaise(name, version, tuple(sorted(set(ids))), reason, hint)
        for (name, version, reason, hint), ids in found.items()
    ]


def _refuse_left(
    left: Sequence[Vulnerable], found: Sequence[Vulnerable], fixed: Collection[tuple[str, str, str]]
) -> None:
    known = {(one.layer, one.name, advisory) for one in found for advisory in one.advisories} - set(fixed)
    wrong = [
        f"{one.layer}: {one.name} {one.version}: {advisory}"
        for one in left
        for advisory in one.advisories
        if (one.layer, one.name, advisory) not in known
    ]
    if wrong:
        raise CheckFailed(
            "nothing was changed: after the raises the scan still found, or newly found,\n"
            + "\n".join(f"  {line}" for line in wrong),
            "Raise these by hand (inv update --package NAME), or give an exception with its reason and expiry date.",
        )
