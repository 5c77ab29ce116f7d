"""outdated, update: what could be newer, and raising it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import CheckFailed, ConfigurationError, ExternalError

from .building import ARCHITECTURE, JSON, LAYER, RUNTIME, changing
from .scanning import asked_lines, one_of, scanner
from .settings import Settings, settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.advisories import Advisory
    from layerkit.drafts import LineChange
    from layerkit.judging import Vulnerability
    from layerkit.model import LockChange, Target
    from layerkit.project import Project
    from layerkit.scanning import Scan, Scanner
    from layerkit.sources import Source
    from layerkit.updating import Outdated, Secured, Vulnerable


# ---- outdated ----


SOURCE = "where advisories come from: auto (the OSV service, else the local database), osv, pypi, or local"


@task(
    iterable=["layer"],
    help={"layer": LAYER, "source": SOURCE, "runtime": RUNTIME, "architecture": ARCHITECTURE, "json": JSON},
)
def outdated(
    ctx: Context,
    layer: Sequence[str] | None = None,
    source: str = "auto",
    runtime: str | None = None,
    architecture: str | None = None,
    json: bool = False,
) -> Outcome:
    """For each distribution in the locks: what is newer, and what of that resolves with the whole stack."""
    from layerkit.advisorydb import store_path
    from layerkit.installer import Uv
    from layerkit.sources import SOURCES, now, opened
    from layerkit.updating import outdated as find_outdated

    one_of("--source", source, SOURCES)
    chosen = settings(ctx, runtime=runtime, architecture=architecture)
    with changing(chosen, "inv outdated") as project, opened(source, chosen.scan.osv_url, store_path(), now()) as asked:
        ask = None if asked.problem else asked.details
        found = find_outdated(
            project,
            chosen.target,
            layers=layer or (),
            uv=Uv(project.root),
            advisories=(lambda name, version: [advisory.id for advisory in ask(name, version)]) if ask else None,
            tell=say,
        )
    if asked.problem:
        say(f"warning: which advisories a newer version fixes is not known: {asked.problem}")
    document = {
        "schema": 1,
        "target": str(chosen.target),
        **_origin(asked),
        "distributions": [
            {
                "layer": one.layer,
                "name": one.name,
                "locked": one.locked,
                "resolves": one.resolves,
                "newest": one.newest,
                "outdated": one.is_outdated,
                "fixes": None if one.fixes is None else list(one.fixes),
            }
            for one in found
        ],
    }
    return Outcome(document, lambda: _show_outdated(f"Newer than the locks for {chosen.target}", found, asked))


def _origin(source: Source) -> dict[str, Any]:
    """Where advisories are from and how old they are, for both documents; nothing where nobody could be asked."""
    return {
        "source": None if source.problem else source.shown,
        "date": source.date.isoformat(timespec="seconds") if source.date and not source.problem else None,
        "notes": list(source.notes),
    }


def _show_outdated(title: str, found: Sequence[Outdated], source: Source) -> None:
    from .output import table

    rows = [
        (one.layer, one.name, one.locked, one.resolves or "not needed", one.newest or "", ", ".join(one.fixes or ()))
        for one in found
        if one.is_outdated
    ]
    if rows:
        table(title, ("Layer", "Distribution", "Locked", "Resolves", "Newest", "Fixes"), rows)
    print("\n".join(asked_lines(source)))
    raised = sum(one.resolves not in (None, one.locked) for one in found)
    print(f"{len(rows)} of {len(found)} are not the newest; `inv update` would change {raised}.")


# ---- update ----


@task(
    iterable=["layer", "package"],
    help={
        "layer": "a layer whose requirements and lock may change; may be repeated (default: all layers)",
        "package": "raise this distribution only; may be repeated",
        "security": "the smallest raises that fix what a scan finds: built, validated and scanned again, or nothing",
        "source": f"with --security: {SOURCE}",
        "skip_safety": "with --security: do without safety's opinion",
        "dry_run": "work it out and say what would change, and change nothing",
        "json": JSON,
    },
)
def update(
    ctx: Context,
    layer: Sequence[str] | None = None,
    package: Sequence[str] | None = None,
    security: bool = False,
    source: str | None = None,
    skip_safety: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> Outcome:
    """Raise the pins in the layers' requirements as far as the whole stack lets them go, and lock."""
    from layerkit.installer import Uv
    from layerkit.locking import locked_targets
    from layerkit.updating import update as raise_pins

    chosen = settings(ctx)
    dry_run = dry_run or bool(ctx.config.run.dry)
    if security and package:
        raise ConfigurationError("--security raises what a scan finds, and --package what it names: give one of them.")
    if not security and (source is not None or skip_safety):
        flag = "--skip-safety" if source is None else "--source"
        raise ConfigurationError(f"{flag} is for a scan, and without --security there is none.", "Add --security.")
    if security:
        return _secure(chosen, layer or (), "auto" if source is None else source, skip_safety, dry_run)
    with changing(chosen, "inv update") as project:
        updated = raise_pins(
            project,
            locked_targets(project),
            layers=layer or (),
            packages=package or (),
            dry_run=dry_run,
            uv=Uv(project.root),
            tell=say,
        )
    document = _document(updated.lines, updated.locks, dry_run)
    return Outcome(document, lambda: _show(updated.lines, updated.locks, dry_run))


def _document(lines: Sequence[LineChange], locks: Sequence[LockChange], dry_run: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "dry_run": dry_run,
        "lines": [
            {
                "file": change.file,
                "line": change.line,
                "before": change.before or None,
                "after": change.after,
                "layers": list(change.layers),
            }
            for change in lines
        ],
        "locks": [
            {
                "layer": change.layer,
                "target": str(change.target),
                "written": change.written,
                "versions": {name: {"before": old, "after": new} for name, (old, new) in change.versions.items()},
            }
            for change in locks
        ],
    }


def _show(lines: Sequence[LineChange], locks: Sequence[LockChange], dry_run: bool) -> None:
    from layerkit.locking import describe_versions

    for change in lines:
        what = f"{change.before} -> {change.after}" if change.before else f"{change.after} added"
        print(f"{change.file}:{change.line}: {what}")
    changed = [change for change in locks if change.versions]
    for lock in changed:
        print(f"{lock.layer} ({lock.target}): {describe_versions(lock.versions)}")
    if not lines and not changed:
        print("Nothing to raise: `inv outdated` says what is newer and does not resolve with the stack.")
    elif dry_run:
        print("Nothing was changed (--dry-run).")


# ---- security ----


def _secure(chosen: Settings, layers: Sequence[str], source: str, skip_safety: bool, dry_run: bool) -> Outcome:
    from layerkit.sources import SOURCES

    one_of("--source", source, SOURCES)
    with (
        changing(chosen, "inv update --security") as project,
        scanner(chosen, project, source=source, fail_on="any", skip_safety=skip_safety) as with_this,
    ):
        return secure_by_scan(chosen, project, with_this, layers=layers, dry_run=dry_run)


def secure_by_scan(
    chosen: Settings, project: Project, with_this: Scanner, *, layers: Sequence[str] = (), dry_run: bool = False
) -> Outcome:
    """Scan, fix what is found, and hold the new builds against the old ones by all that a scan looks at."""
    say("scanning what is built ...")
    before = _scans(project, with_this)

    def again(draft: Project) -> list[Vulnerable]:
        after = _scans(draft, with_this)
        _refuse_new(before, after)
        return _vulnerable(after, with_this)

    found = _vulnerable(before, with_this)
    return secure(chosen, project, found, again, layers=layers, dry_run=dry_run, source=with_this.source)


def _scans(project: Project, with_this: Scanner) -> dict[Target, Scan]:
    """A scan of every build of a checkout; ExternalError where not everything could be scanned.

    A licence that can't be told is no reason not to fix a vulnerability.
    """
    from layerkit.builds import builds
    from layerkit.scanning import scan
    from layerkit.sources import now
    from layerkit.standing import built_targets
    from layerkit.updating import flags_for

    found = {}
    for target in dict.fromkeys((project.default_target, *built_targets(project))):
        built = builds(project, target)
        needed = [name for name in project.layers if not project.layers.why_not(name, target)]
        names = needed if target == project.default_target else [name for name in needed if name in built]
        found[target] = scan(project, names, target, with_this, now().date())
        gaps = found[target].not_scanned
        if gaps:
            hint = f"`inv security-scan{flags_for(target, project.default_target)}` says all of it."
            if all(gap.by == "safety" for gap in gaps):
                hint += " --skip-safety does without safety's opinion."
            raise ExternalError(
                f"not everything could be scanned for {target}, so nothing was changed: "
                f"{'; '.join(gap.line for gap in gaps[:3])}",
                hint,
            )
    return found


def _vulnerable(scans: Mapping[Target, Scan], with_this: Scanner) -> list[Vulnerable]:
    """What counts in a layer, each advisory for itself."""
    from layerkit.updating import Vulnerable

    known: dict[tuple[str, str, str], list[Vulnerability]] = {}
    for scanned in scans.values():
        for one in scanned.vulnerabilities:
            for layer in one.layers:
                known.setdefault((layer, one.name, one.version), []).append(one)
    found = []
    for (layer, name, version), entries in sorted(known.items()):
        ids = frozenset(id_ for one in entries for id_ in one.ids)
        brings = cache(partial(_brings, with_this, layer, name, ids))
        counting = {one.id: one for one in entries if one.standing.counts}
        for id_, one in sorted(counting.items()):
            fixed = (one.fixed,) if one.fixed else ()
            found.append(Vulnerable(layer, name, version, (id_,), fixed, one.affects, brings))
    return found


def _brings(with_this: Scanner, layer: str, name: str, known: frozenset[str], version: str) -> bool:
    """Whether something counts against a version in a layer that is not among what is ``known``."""
    from layerkit.judging import Vulnerability, judge
    from layerkit.sources import now

    def found(advisory: Advisory) -> Vulnerability:
        one = advisory
        return Vulnerability(
            name, version, (layer,), one.id, one.aliases, one.summary, one.level, one.score, None, one.url, (), (one,)
        )

    details = with_this.source.details
    new = [found(one) for one in details(name, version) if not one.ids & known] if details else []
    judged, _ = judge(new, (), with_this.exemptions, with_this.fail_on, now().date())
    return any(one.standing.counts for one in judged)


def _refuse_new(before: Mapping[Target, Scan], after: Mapping[Target, Scan]) -> None:
    """CheckFailed for suspicious files and banned licences that the builds ``before`` had not."""
    from layerkit.licences import newly

    wrong: list[str] = []
    for target, scanned in after.items():
        old = before.get(target)
        known = set(_suspicious(old)) if old else set()
        wrong += [
            f"{target}: {line}" for key, lines in _suspicious(scanned).items() if key not in known for line in lines
        ]
        licences = {checked.subject: checked for checked in (old.licences if old else ())}
        for checked in scanned.licences:
            new = newly(checked, licences.get(checked.subject))
            wrong += [f"{target}: {checked.subject}: {finding.message}" for finding in new.findings]
            for skipped in new.skipped:
                say(f"warning: {target}: {checked.subject}: {skipped.reason}")
    if wrong:
        raise CheckFailed(
            "nothing was changed: the new builds have what the ones before had not,\n"
            + "\n".join(f"  {line}" for line in wrong),
            "Look at it. What does not matter gets an exception with its reason and expiry date; a licence that "
            "METADATA has wrong is said with licences_known.",
        )


def _suspicious(scanned: Scan) -> dict[tuple[str, str, str], list[str]]:
    """What counts of the suspicious files, by layer, kind and path, whatever the versions of distributions are."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in scanned.suspicions:
        if one.standing.counts:
            path = re.sub(r"-[^-/]+(?=\.dist-info(?:/|$))", "", one.suspect.path)
            found.setdefault((one.layer, one.suspect.kind, path), []).append(f"{one.file}: {one.suspect.what}")
    return found


def secure(
    chosen: Settings,
    project: Project,
    found: Sequence[Vulnerable],
    scan: Callable[[Project], Sequence[Vulnerable]],
    *,
    layers: Sequence[str] = (),
    dry_run: bool = False,
    source: Source | None = None,
) -> Outcome:
    """What ``update --security`` does with what a scan has ``found``; ``scan`` is asked again for the new builds."""
    from layerkit.installer import Uv
    from layerkit.locking import locked_targets
    from layerkit.updating import update_security

    secured = update_security(
        project,
        locked_targets(project),
        found,
        layers=layers,
        dry_run=dry_run,
        uv=Uv(project.root),
        rebuild=lambda draft: _rebuild(chosen, draft, layers),
        scan=scan,
        tell=say,
    )
    document = _document(secured.lines, secured.locks, dry_run) | _security_document(secured)
    if source:
        document |= _origin(source)

    def show() -> None:
        _show_secured(secured, dry_run)
        if source:
            print("\n".join(asked_lines(source)))

    return Outcome(document, show, 3 if secured.not_fixed or secured.left else 0)


def _rebuild(chosen: Settings, draft: Project, layers: Sequence[str]) -> None:
    """Build and validate in a draft, for each target that is built: the layers that were named, and those on top."""
    from layerkit.building import build, plan_build
    from layerkit.installer import Uv
    from layerkit.locking import locked_targets
    from layerkit.standing import built_targets

    from .output import progress

    named = set(draft.selected(layers))
    built = {draft.default_target, *built_targets(draft)}
    for target in (target for target in locked_targets(draft) if target in built):
        names = [
            name
            for name in draft.layers
            if not draft.layers.why_not(name, target)
            and (name in named or (named & set(draft.layers.dependencies(name)) and _is_built(draft, name, target)))
        ]
        optimizer = chosen.optimizer(target)
        plans = plan_build(draft, target, names, optimizer=optimizer)
        with progress(verbose=False) as tell:
            build(
                draft,
                plans,
                uv=Uv(draft.root),
                jobs=chosen.jobs,
                means=chosen.means(target),
                optimizer=optimizer,
                tell=tell,
            )


def _is_built(draft: Project, name: str, target: Target) -> bool:
    from layerkit.manifests import read_manifest

    return read_manifest(draft.manifest_path(name, target)) is not None


def _security_document(secured: Secured) -> dict[str, Any]:
    return {
        "raises": [
            {"name": one.name, "before": one.before, "after": one.after, "advisories": list(one.advisories)}
            for one in secured.raises
        ],
        "not_fixed": [
            {
                "name": one.name,
                "version": one.version,
                "advisories": list(one.advisories),
                "reason": one.reason,
                "hint": one.hint,
            }
            for one in secured.not_fixed
        ],
        "left": [
            {"layer": layer, "name": name, "version": version, "advisories": advisories}
            for (layer, name, version), advisories in _by_distribution(secured.left)
        ],
    }


def _by_distribution(left: Sequence[Vulnerable]) -> Iterator[tuple[tuple[str, str, str], list[str]]]:
    """All advisories about one distribution of a layer together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in left:
        found.setdefault((one.layer, one.name, one.version), []).extend(one.advisories)
    for key, advisories in found.items():
        yield key, sorted(set(advisories))


def _show_secured(secured: Secured, dry_run: bool) -> None:
    for one in secured.raises:
        print(f"{one.name} {one.before} -> {one.after}: {', '.join(one.advisories)}")
    if secured.lines or any(lock.versions for lock in secured.locks):
        _show(secured.lines, secured.locks, dry_run)
    elif not (secured.raises or secured.not_fixed):
        print("Nothing was found that counts, so there is nothing to fix.")
    for lacking in secured.not_fixed:
        print(f"not fixed: {lacking.name} {lacking.version} ({', '.join(lacking.advisories)}): {lacking.reason}")
        if lacking.hint:
            print(f"  {lacking.hint}")
    for (layer, name, version), advisories in _by_distribution(secured.left):
        print(f"still found: {layer}: {name} {version}: {', '.join(advisories)}")
