"""new, lock, build: from requirements to layers."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import CheckFailed, ConfigurationError

from .settings import Settings, settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.building import Built
    from layerkit.model import LockChange, Target
    from layerkit.project import Project
    from layerkit.validating import Means

LAYER = "a layer's name; may be repeated (default: all layers)"
RUNTIME = "the Lambda runtime, such as python3.12 (default: the setting layerkit.runtime)"
ARCHITECTURE = "x86_64 or arm64 (default: the setting layerkit.architecture)"
BLOCKED = "go on with a runtime that AWS refuses for new functions"
JSON = "print one JSON document on stdout and nothing else there"


@contextmanager
def changing(chosen: Settings, purpose: str) -> Iterator[Project]:
    """The checkout, locked against a second process, with whatever was half put in place finished first."""
    from layerkit.building import clear_work, finish_swap
    from layerkit.drafts import finish_update
    from layerkit.files import checkout_lock
    from layerkit.locking import finish_locks
    from layerkit.project import find_layers

    find_layers(chosen.root)  # where there are none, nothing is made, not even the lock
    state = chosen.root / ".layerkit"
    with checkout_lock(state, purpose, lambda holder: say(f"waiting for {holder} to finish ...")):
        project = chosen.project()  # only now: whoever held the lock may have changed the layers
        if finish_update(project):
            say("an earlier `inv update --security` had been interrupted while it was put in place: finished now")
            project = chosen.project()  # requirements may be among what was put in place
        if finish_locks(project):
            say("an earlier command had been interrupted while it put its locks in place: finished now")
            project = chosen.project()
        if finish_swap(project):
            say("an earlier build had been interrupted while it was put in place: finished now")
        clear_work(project)
        yield project


@contextmanager
def _scratch(project: Project) -> Iterator[Path]:
    folder = project.state / "work" / secrets.token_hex(8)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_dates(target: Target, allow_blocked: bool) -> None:
    from layerkit.runtimes import check_dates

    for warning in check_dates(target, datetime.now(UTC).date(), allow_blocked=allow_blocked):
        say(f"warning: {warning}")


# ---- new ----


@task(
    iterable=["requirement"],
    help={
        "layer": "the new layer's name (letters, digits, '-', '_')",
        "requirement": "a requirement as in requirements.txt, such as requests==2.32.4; may be repeated",
        "json": JSON,
    },
)
def new(
    ctx: Context, layer: str | None = None, requirement: Sequence[str] | None = None, json: bool = False
) -> Outcome:
    """Make a layer: its folder, requirements.txt, and its resource in template.yaml."""
    from layerkit.creating import create_layer
    from layerkit.files import checkout_lock

    chosen = settings(ctx)
    if layer is None:
        raise ConfigurationError("--layer is missing: a new layer needs a name.", "For example: inv new --layer web")
    with checkout_lock(chosen.root / ".layerkit", "inv new", lambda holder: say(f"waiting for {holder} ...")):
        created = create_layer(chosen.root, layer, requirement or (), chosen.default_target)
    document = {"schema": 1, "layer": layer, "folder": f"layers/{layer}", "template": created.template}

    def show() -> None:
        if created.folder:
            print(f"{created.folder}/requirements.txt made, and a resource for it in {created.template}.")
        else:
            print(f"layers/{layer} was there already; its resource is in {created.template} now.")
        print(f"Next: inv build --layer {layer}")

    return Outcome(document, show)


# ---- lock ----


@task(
    iterable=["layer", "package"],
    help={
        "layer": "a layer whose lock may change; may be repeated (default: all layers)",
        "runtime": "lock for this runtime (default: the default target and every target that has locks)",
        "architecture": "lock for this architecture (default: as for --runtime)",
        "upgrade": "raise everything to the newest versions that the requirements allow",
        "package": "raise this distribution only; may be repeated",
        "check": "change nothing; exit with 3 when a lock is missing or not current",
        "allow_blocked_runtime": BLOCKED,
        "json": JSON,
    },
)
def lock(
    ctx: Context,
    layer: Sequence[str] | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    upgrade: bool = False,
    package: Sequence[str] | None = None,
    check: bool = False,
    allow_blocked_runtime: bool = False,
    json: bool = False,
) -> Outcome:
    """Work out one version of everything for the layers, and write each layer's lock."""
    from layerkit.locking import locked_targets, stale

    chosen = settings(ctx, runtime=runtime, architecture=architecture)
    if check and (upgrade or package):
        raise ConfigurationError("--check changes nothing, so it can't go with --upgrade or --package.")
    if check:
        project = chosen.project()
        targets = (chosen.target,) if runtime or architecture else locked_targets(project)
        names = _of_any_target(project, targets, layer or ())
        reasons = [
            {"layer": name, "target": str(target), "reason": reason}
            for target in targets
            for stack in project.layers.stacks(names)
            for name, reason in stale(project, project.layers.stack(stack, target), target).items()
            if name in names
        ]

        def show_check() -> None:
            for entry in reasons:
                print(f"{entry['layer']} ({entry['target']}): {entry['reason']}")
            print("Run `inv lock` to bring the locks up to date." if reasons else "All locks are current.")

        return Outcome({"schema": 1, "current": not reasons, "stale": reasons}, show_check, 3 if reasons else 0)

    with changing(chosen, "inv lock") as project:
        targets = (chosen.target,) if runtime or architecture else locked_targets(project)
        if not _of_any_target(project, targets, layer or ()):
            raise ConfigurationError("there is no layer to lock.", "Make one: inv new --layer NAME")
        for target in targets:
            _check_dates(target, allow_blocked_runtime or target != chosen.target)
        changes = _lock_all(project, targets, layer or (), upgrade, package or ())
    document = {"schema": 1, "locks": [_change_document(change) for change in changes]}
    return Outcome(document, lambda: _show_changes(changes))


def _of_any_target(project: Project, targets: Sequence[Target], named: Sequence[str]) -> tuple[str, ...]:
    """The layers chosen; ConfigurationError for one that was named and is for none of ``targets``."""
    names = project.selected(named)
    for name in names if named else ():
        reasons = [project.layers.why_not(name, target) for target in targets]
        if all(reasons):
            raise ConfigurationError(f"{name} is not for {' or '.join(map(str, targets))}: {reasons[0]}.")
    return names


def _lock_all(
    project: Project,
    targets: Sequence[Target],
    layers: Sequence[str] = (),
    upgrade: bool = False,
    packages: Sequence[str] = (),
    follow: bool = False,
) -> tuple[LockChange, ...]:
    from layerkit.installer import Uv
    from layerkit.locking import lock as lock_layers

    with _scratch(project) as scratch:
        return lock_layers(
            project,
            targets,
            layers=layers,
            follow=follow,
            upgrade=upgrade,
            packages=packages,
            uv=Uv(project.root),
            scratch=scratch,
            tell=say,
        )


def _change_document(change: LockChange) -> dict[str, Any]:
    return {
        "layer": change.layer,
        "target": str(change.target),
        "written": change.written,
        "reason": change.reason,
        "versions": {name: {"before": old, "after": new} for name, (old, new) in change.versions.items()},
    }


def _show_changes(changes: Sequence[LockChange]) -> None:
    from layerkit.locking import describe_versions

    for change in changes:
        if change.versions:
            what = describe_versions(change.versions)
        elif change.written:
            what = "no version changed; the lock records the new requirements"
        else:
            what = "unchanged"
        print(f"{change.layer} ({change.target}): {what}")


# ---- build ----


@task(
    iterable=["layer"],
    help={
        "layer": "a layer to build, with what it depends on; may be repeated (default: all layers)",
        "runtime": RUNTIME,
        "architecture": ARCHITECTURE,
        "jobs": "how much to do side by side (default: one for each processor)",
        "skip_validation": "let the layers in whatever their size and form (not recommended)",
        "require_verified": "end with exit code 4 when a check could not run",
        "skip_optimization": "leave the trees as the wheels made them, without bytecode",
        "clean": "build again even what is up to date",
        "locked": "refuse when a lock is missing or not current, instead of locking first (for CI)",
        "allow_blocked_runtime": BLOCKED,
        "verbose": "say more on the way",
        "json": JSON,
    },
)
def build(
    ctx: Context,
    layer: Sequence[str] | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    jobs: int = 0,
    skip_validation: bool = False,
    require_verified: bool = False,
    skip_optimization: bool = False,
    clean: bool = False,
    locked: bool = False,
    allow_blocked_runtime: bool = False,
    verbose: bool = False,
    json: bool = False,
) -> Outcome:
    """Build layers from their locks: layers/<name>/python, and a zip with its manifest in dist/."""
    from layerkit.building import Action, plan_build
    from layerkit.building import build as build_layers
    from layerkit.installer import Uv

    from .output import progress

    chosen = settings(ctx, runtime=runtime, architecture=architecture, jobs=jobs)
    if skip_validation and require_verified:
        raise ConfigurationError("--skip-validation and --require-verified exclude each other.")
    _check_dates(chosen.target, allow_blocked_runtime)
    means = None if skip_validation else _means(chosen)
    with changing(chosen, "inv build") as project:
        names = for_target(project, chosen.target, layer or ())
        lock_first(project, chosen.target, names, locked)
        optimizer = None if skip_optimization else chosen.optimizer(chosen.target)
        plans = plan_build(project, chosen.target, names, optimizer=optimizer, force=clean)
        if verbose:
            for plan in plans:
                say(f"{plan.layer.name}: {plan.action.value}{f' ({plan.reason})' if plan.reason else ''}")
        if any(plan.action is Action.BUILD for plan in plans):
            with progress(verbose) as tell:
                built = build_layers(
                    project,
                    plans,
                    uv=Uv(project.root),
                    jobs=chosen.jobs,
                    means=means,
                    optimizer=optimizer,
                    tell=tell,
                )
        else:
            built = build_layers(project, plans, uv=Uv(project.root), jobs=chosen.jobs, means=means)
    not_verified = skip_validation or any(result.report.skipped for result in built)
    return Outcome(
        _build_document(chosen.target, built, skip_validation),
        lambda: _show_built(chosen.target, built, skip_validation),
        4 if require_verified and not_verified else 0,
    )


def _means(chosen: Settings) -> Means:
    """What the build validates with; an interpreter that this machine lacks is asked for once, where uv can get it."""
    from layerkit.interpreters import Unavailable, architecture_here, install_interpreter

    means = chosen.means(chosen.target)
    native = sys.platform == "linux" and chosen.target.architecture == architecture_here()
    if isinstance(means.interpreter, Unavailable) and native:
        version = chosen.target.python_version
        say(f"there is no Python {version} on this machine: trying `uv python install {version}` ...")
        why_not = install_interpreter(version)
        if why_not:
            say(f"  it can't be had: {why_not}")
        else:
            means = chosen.means(chosen.target)
    return means


def for_target(project: Project, target: Target, named: Sequence[str]) -> tuple[str, ...]:
    """The layers to build; those not named and not for ``target`` are left out, and that is said."""
    names = []
    for name in project.selected(named):
        why_not = project.layers.why_not(name, target)
        if not why_not:
            names.append(name)
        elif named:
            raise ConfigurationError(f"{name} is not for {target}: {why_not}.")
        else:
            say(f"{name} is left out: not for {target} ({why_not})")
    if not names:
        raise ConfigurationError("there is no layer to build.", "Make one: inv new --layer NAME")
    return tuple(names)


def lock_first(project: Project, target: Target, names: Sequence[str], locked: bool) -> None:
    from layerkit.locking import stale

    reasons: dict[str, str] = {}
    for stack in project.layers.stacks(names):
        reasons.update(stale(project, project.layers.stack(stack, target), target))
    if not reasons:
        return
    shown = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    if locked:
        raise CheckFailed(
            f"the locks for {target} are not current ({shown}).", "Run `inv lock` and commit what it writes."
        )
    say(f"locking first ({shown})")
    for change in _lock_all(project, [target], list(reasons), follow=True):
        if change.written:
            say(f"  {project.relative(project.lock_path(change.layer, target))} written")


def _not_verified(built: Sequence[Built], skip_validation: bool) -> list[str]:
    """Why the result can't be called verified, each reason once; empty when it can."""
    if skip_validation:
        return ["validation was skipped"]
    return list(dict.fromkeys(skipped.reason for result in built for skipped in result.report.skipped))


def _build_document(target: Target, built: Sequence[Built], skip_validation: bool) -> dict[str, Any]:
    from layerkit.manifests import manifest_document

    return {
        "schema": 1,
        "target": str(target),
        "verified": not _not_verified(built, skip_validation),
        "not_verified": _not_verified(built, skip_validation),
        "layers": [
            {
                "layer": result.plan.layer.name,
                "action": result.plan.action.value,
                "reason": result.plan.reason,
                "seconds": round(result.seconds, 3),
                "limit_mb": result.plan.layer.max_size_mb,
                "limit_reason": result.plan.layer.limit_reason,
                "findings": [
                    {"check": found.check, "severity": found.severity.value, "message": found.message}
                    for found in result.report.findings
                ],
                "manifest": manifest_document(result.manifest),
            }
            for result in built
        ],
    }


def _show_built(target: Target, built: Sequence[Built], skip_validation: bool) -> None:
    from layerkit.building import Action

    from .output import findings, size, table

    outcome = {Action.BUILD: "built", Action.RELABEL: "up to date, relabelled", Action.NOTHING: "up to date"}
    rows = []
    for result in built:
        manifest = result.manifest
        limit = f"{result.plan.layer.max_size_mb} MiB{' *' if result.plan.layer.limit_reason else ''}"
        rows.append(
            (
                result.plan.layer.name,
                outcome[result.plan.action],
                size(manifest.tree.size),
                limit,
                size(manifest.zip.size),
                str(len(manifest.distributions)),
                f"{result.seconds:.1f} s" if result.seconds else "",
                manifest.zip.sha256[:12],
            )
        )
    columns = ("Layer", "Result", "Unzipped", "Limit", "Zip", "Packages", "Time", "SHA-256")
    table(f"Layers for {target}", columns, rows, right=("Unzipped", "Limit", "Zip", "Packages", "Time"))
    for result in built:
        if result.plan.layer.limit_reason:
            print(f"* {result.plan.layer.name}: {result.plan.layer.limit_reason}")
        for note in result.manifest.notes:
            print(f"note: {result.plan.layer.name}: {note}")
        for note in result.manifest.optimized.notes if result.manifest.optimized else ():
            print(f"note: {result.plan.layer.name}: {note}")
    findings([found for result in built for found in result.report.findings])
    _show_total(built)
    reasons = _not_verified(built, skip_validation)
    if reasons:
        print(f"not verified: {'; '.join(reasons)}")
    else:
        print(f"Verified for {target}: every check of `inv validate --list-checks` that is about layers has passed.")


def _show_total(built: Sequence[Built]) -> None:
    """What a function with all of these layers would take; that they can't all be attached is worth knowing here."""
    from layerkit.runtimes import limits

    from .output import size

    total = sum(result.manifest.tree.size for result in built)
    allowed = limits()["function_unzipped"]
    if len(built) > 1:
        verdict = f"within the {size(allowed)} that Lambda allows a function with its layers"
        if total > allowed:
            verdict = f"over the {size(allowed)} that Lambda allows: no function can attach all of them"
        print(f"Together {size(total)} unzipped ({total:,} bytes), {verdict}.")
