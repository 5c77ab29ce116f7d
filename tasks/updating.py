"""outdated, update: what could be newer, and raising it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import ConfigurationError, ExternalError

from .building import ARCHITECTURE, JSON, LAYER, RUNTIME, changing
from .scanning import one_of, scanner
from .settings import Settings, settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.drafts import LineChange
    from layerkit.judging import Vulnerability
    from layerkit.model import LockChange, Target
    from layerkit.project import Project
    from layerkit.scanning import Scanner
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
        "source": asked.shown if ask else None,
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
    return Outcome(document, lambda: _show_outdated(f"Newer than the locks for {chosen.target}", found))


def _show_outdated(title: str, found: Sequence[Outdated]) -> None:
    from .output import table

    rows = [
        (one.layer, one.name, one.locked, one.resolves or "not needed", one.newest or "", ", ".join(one.fixes or ()))
        for one in found
        if one.is_outdated
    ]
    if rows:
        table(title, ("Layer", "Distribution", "Locked", "Resolves", "Newest", "Fixes"), rows)
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
    source: str = "auto",
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
    if security:
        return _secure(chosen, layer or (), source, skip_safety, dry_run)
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
        say("scanning what is built ...")
        found = _found_in(project, with_this)
        return secure(
            chosen,
            project,
            found,
            lambda draft: _found_in(draft, with_this),
            layers=layers,
            dry_run=dry_run,
        )


def _found_in(project: Project, with_this: Scanner) -> list[Vulnerable]:
    """What a scan finds in every build of a checkout; ExternalError where not everything could be scanned."""
    from layerkit.builds import builds
    from layerkit.scanning import scan
    from layerkit.sources import now
    from layerkit.standing import built_targets
    from layerkit.updating import Vulnerable

    found: dict[tuple[str, str, str], list[Vulnerability]] = {}
    for target in (project.default_target, *built_targets(project)):
        built = builds(project, target)
        needed = [name for name in project.layers if not project.layers.why_not(name, target)]
        names = needed if target == project.default_target else [name for name in needed if name in built]
        scanned = scan(project, names, target, with_this, now().date())
        if not scanned.is_whole:
            gaps = [one.line for one in scanned.not_scanned[:3]] or ["licences could not be told"]
            raise ExternalError(
                f"not everything could be scanned for {target}, so nothing was changed: {'; '.join(gaps)}",
                "`inv security-scan` says all of it.",
            )
        for one in scanned.vulnerabilities:
            for layer in one.layers if one.standing.counts else ():
                found.setdefault((layer, one.name, one.version), []).append(one)
    return [
        Vulnerable(
            layer,
            name,
            version,
            tuple(sorted({one.id for one in entries})),
            tuple(sorted({one.fixed for one in entries if one.fixed})),
            partial(_affects, with_this, entries),
        )
        for (layer, name, version), entries in sorted(found.items())
    ]


def _affects(with_this: Scanner, entries: Sequence[Vulnerability], version: str) -> bool:
    """Whether another version has what was found, or something else that counts."""
    if any(one.affects(version) for one in entries):
        return True
    details = with_this.source.details
    accepted = {entry.id for entry in with_this.exemptions}
    return details is not None and any(not advisory.ids & accepted for advisory in details(entries[0].name, version))


def secure(
    chosen: Settings,
    project: Project,
    found: Sequence[Vulnerable],
    scan: Callable[[Project], Sequence[Vulnerable]],
    *,
    layers: Sequence[str] = (),
    dry_run: bool = False,
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
    return Outcome(document, lambda: _show_secured(secured, dry_run), 3 if secured.not_fixed or secured.left else 0)


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
            {"layer": one.layer, "name": one.name, "version": one.version, "advisories": list(one.advisories)}
            for one in secured.left
        ],
    }


def _show_secured(secured: Secured, dry_run: bool) -> None:
    for one in secured.raises:
        print(f"{one.name} {one.before} -> {one.after}: {', '.join(one.advisories)}")
    _show(secured.lines, secured.locks, dry_run)
    for lacking in secured.not_fixed:
        print(f"not fixed: {lacking.name} {lacking.version} ({', '.join(lacking.advisories)}): {lacking.reason}")
        if lacking.hint:
            print(f"  {lacking.hint}")
    for left in secured.left:
        print(f"still found: {left.layer}: {left.name} {left.version}: {', '.join(left.advisories)}")
