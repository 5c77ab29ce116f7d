"""validate, status: do the layers work on Lambda, and how do they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import ConfigurationError, LayerkitError

from .building import ARCHITECTURE, JSON, LAYER, RUNTIME, for_target
from .settings import Settings, settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.model import Checked, Function, Report, Target
    from layerkit.project import Project
    from layerkit.standing import Standing
    from layerkit.validating import Means

TARGETS = ("layers", "functions")


# ---- validate ----


@task(
    iterable=["layer", "only", "skip"],
    help={
        "layer": LAYER,
        "target": "layers or functions (default: both; functions are those of template.yaml, with --runtime or "
        "--architecture those for that target)",
        "runtime": RUNTIME,
        "architecture": ARCHITECTURE,
        "only": "run this check only; may be repeated (names: --list-checks)",
        "skip": "leave this check out; may be repeated",
        "list_checks": "list the checks and what each finds",
        "jobs": "how much to do side by side (default: one for each processor)",
        "verbose": "show each check with what it looked at and how long it took",
        "json": JSON,
    },
)
def validate(
    ctx: Context,
    layer: Sequence[str] | None = None,
    target: str | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    list_checks: bool = False,
    jobs: int = 0,
    verbose: bool = False,
    json: bool = False,
) -> Outcome:
    """Check that what is built works on Lambda: sizes, contents, agreement, imports, functions."""
    from layerkit.validating import check_names

    if list_checks:
        return _list_checks()
    chosen = settings(ctx, runtime=runtime, architecture=architecture, jobs=jobs)
    if target is not None and target not in TARGETS:
        raise ConfigurationError(f"--target: {target!r} is neither layers nor functions.")
    check_names(only or (), "--only")  # also where nothing is there to check
    check_names(skip or (), "--skip")

    @cache
    def means_for(of: Target) -> Means:
        return chosen.means(of, only=only or (), skip=skip or ())

    project = chosen.project()
    only_target = chosen.target if runtime or architecture else None
    report = _checked(chosen, project, layer or (), target, only_target, means_for)
    left_out = [] if means_for(chosen.target).complete else _left_out(only or (), skip or ())
    document = {
        "schema": 1,
        "target": str(chosen.target),
        "valid": not (report.failed or report.skipped or left_out),
        "left_out": left_out,
        **report_document(report),
    }
    return Outcome(document, lambda: show_report(report, verbose, left_out), exit_code(report))


def _left_out(only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The checks that the flags leave out, by name."""
    from layerkit.validating import CHECKS

    return [check.name for check in CHECKS if check.name in skip or (only and check.name not in only)]


def _list_checks() -> Outcome:
    from layerkit.validating import CHECKS

    from .output import table

    rows = [(check.name, check.about, check.finds) for check in CHECKS]
    document = [{"name": check.name, "about": check.about, "finds": check.finds} for check in CHECKS]
    return Outcome({"schema": 1, "checks": document}, lambda: table("Checks", ("Name", "Of a", "Finds whether"), rows))


def _checked(
    chosen: Settings,
    project: Project,
    named: Sequence[str],
    kind: str | None,
    only_target: Target | None,
    means_for: Callable[[Target], Means],
) -> Report:
    from layerkit.functions import validate_functions
    from layerkit.model import Report
    from layerkit.standing import validate_checkout

    from .output import progress_of_checks

    names = for_target(project, chosen.target, named)
    with progress_of_checks() as tell:
        checked: tuple[Checked, ...] = ()
        if kind != "functions":
            checked += validate_checkout(
                project,
                names,
                chosen.target,
                means_for(chosen.target),
                chosen.optimizer(chosen.target),
                tell=tell,
            ).checked
        if kind != "layers":
            functions = [
                function
                for function in _functions(project, names if named else None)
                if only_target in (None, function.target)
            ]
            checked += validate_functions(project, functions, means_for, tell=tell).checked
    return Report(checked)


def _functions(project: Project, attaching: Sequence[str] | None) -> tuple[Function, ...]:
    """The functions of the template, those that attach one of the layers where these are named."""
    from layerkit.template import declared_functions

    template = project.root / "template.yaml"
    if not template.is_file():
        return ()
    functions = declared_functions(template.read_text(encoding="utf-8"), template.name)
    return tuple(
        function for function in functions if attaching is None or not set(attaching).isdisjoint(function.layers)
    )


def exit_code(report: Report) -> int:
    """The contract's: what could not be checked goes before what was found."""
    return 4 if report.skipped else 3 if report.failed else 0


def report_document(report: Report) -> dict[str, Any]:
    """A report as JSON has it."""
    return {
        "checks": [
            {
                "check": checked.check,
                "subject": checked.subject,
                "result": result_of(checked),
                "detail": checked.detail,
                "seconds": round(checked.seconds, 3),
                "recorded": checked.recorded,
                "findings": [
                    {"severity": found.severity.value, "message": found.message, "hint": found.hint}
                    for found in checked.findings
                ],
                "skipped": [{"reason": skipped.reason, "hint": skipped.hint} for skipped in checked.skipped],
            }
            for checked in report.checked
        ],
    }


def result_of(checked: Checked) -> str:
    """``failed``, ``not checked``, ``warning`` or ``passed``."""
    if checked.failed:
        return "failed"
    if checked.skipped:
        return "not checked"
    return "warning" if checked.findings else "passed"


def show_report(report: Report, verbose: bool, left_out: Sequence[str]) -> None:
    """A line for each layer and function, or with ``verbose`` for each check; then what was found."""
    from .output import findings, skips, table

    if verbose:
        rows: list[tuple[str, ...]] = [
            (
                checked.subject,
                checked.check,
                _marked(result_of(checked)),
                checked.detail,
                f"{checked.seconds:.2f} s{' (recorded)' if checked.recorded else ''}",
            )
            for checked in report.checked
        ]
        table("Checks", ("Subject", "Check", "Result", "Looked at", "Time"), rows, right=("Time",))
    else:
        rows = []
        for subject in dict.fromkeys(checked.subject for checked in report.checked):
            own = report.of(subject).checked
            results = [result_of(checked) for checked in own]
            passed = sum(result in ("passed", "warning") for result in results)
            size = next((checked.detail for checked in own if checked.check in ("size", "function-size")), "")
            worst = next((one for one in ("failed", "not checked", "warning") if one in results), "passed")
            rows.append((subject, f"{passed} of {len(own)} passed", size, _marked(worst)))
        table("Validation", ("Layer or function", "Checks", "Unzipped", "Result"), rows, right=("Unzipped",))
    findings(report.findings)
    skips(report.skipped)
    if not report.checked:
        print("There was nothing to check.")
    elif not report.failed and not report.skipped and left_out:
        print(f"What was checked is in order; left out: {', '.join(left_out)}.")
    elif not report.failed and not report.skipped:
        print("Everything that was checked is valid.")


def _marked(result: str) -> str:
    marks = {"passed": "✓ passed", "warning": "✓ warning", "failed": "✗ failed", "not checked": "? not checked"}
    return marks[result]


# ---- status ----


@task(
    iterable=["layer"],
    help={
        "layer": LAYER,
        "runtime": "show this runtime only (default: the default target, and every other that something is built for)",
        "architecture": "show this architecture only",
        "graph": "draw how the layers depend on each other, as a tree and as Mermaid",
        "json": JSON,
    },
)
def status(
    ctx: Context,
    layer: Sequence[str] | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    graph: bool = False,
    json: bool = False,
) -> Outcome:
    """Show each layer: built or not, its size, and whether sources, lock and build agree."""
    from layerkit.project import load_what_loads
    from layerkit.standing import built_targets, mermaid, standings, tree_of

    chosen = settings(ctx, runtime=runtime, architecture=architecture)
    project, broken = load_what_loads(chosen.root, chosen.default_target)
    targets = (chosen.target,) if runtime or architecture else (chosen.target, *built_targets(project))
    known = [name for name in layer or () if name not in broken]
    if known:
        project.selected(known)
    found = [
        standing
        for target in targets
        for standing in standings(project, broken, target, chosen.optimizer(target))
        if not layer or standing.name in layer
    ]
    document: dict[str, Any] = {"schema": 1, "layers": [_standing_document(standing) for standing in found]}
    if graph:
        document["mermaid"] = mermaid(project.layers)

    def show() -> None:
        _show_standings(found)
        if graph:
            print(f"\n{tree_of(project.layers)}\n{mermaid(project.layers)}", end="")

    _say_half_made(project)
    return Outcome(document, show, _worst(broken))


def _worst(broken: Mapping[str, LayerkitError]) -> int:
    return max((error.exit_code for error in broken.values()), default=0)


def _say_half_made(project: Project) -> None:
    if any((project.state / name).is_dir() for name in ("swap", "update")):
        say(
            "a build or update was interrupted while it was put in place: "
            "the next `inv build` or `inv lock` finishes it"
        )


def _standing_document(standing: Standing) -> dict[str, Any]:
    manifest, layer = standing.manifest, standing.layer
    return {
        "layer": standing.name,
        "target": str(standing.target),
        "state": standing.state.value,
        "reason": standing.reason,
        "lock": standing.lock,
        "limit_mb": layer.max_size_mb if layer else None,
        "limit_reason": layer.limit_reason if layer else "",
        "built": manifest.built if manifest else None,
        "size": manifest.tree.size if manifest else None,
        "zip_size": manifest.zip.size if manifest else None,
        "zip_sha256": manifest.zip.sha256 if manifest else None,
        "distributions": len(manifest.distributions) if manifest else None,
        "validated": standing.verdict.at if standing.verdict else None,
        "not_verified": list(standing.verdict.not_verified) if standing.verdict else [],
    }


def _show_standings(found: Sequence[Standing]) -> None:
    from layerkit.standing import State

    from .output import age, size, table

    marks = {State.VALID: "✓ Valid", State.FAILED: "✗ Failed", State.BROKEN: "✗ Broken"}
    rows = []
    now = datetime.now(UTC)
    for standing in found:
        manifest, layer = standing.manifest, standing.layer
        state = marks.get(standing.state, standing.state.value.capitalize())
        rows.append(
            (
                standing.name,
                str(standing.target),
                age(manifest.built, now) if manifest else "no",
                size(manifest.tree.size) if manifest else "",
                f"{layer.max_size_mb} MiB{' *' if layer.limit_reason else ''}" if layer else "",
                size(manifest.zip.size) if manifest else "",
                str(len(manifest.distributions)) if manifest else "",
                f"{state} ({standing.reason})" if standing.reason else state,
            )
        )
    columns = ("Layer", "Target", "Built", "Size", "Limit", "Zip", "Packages", "Status")
    table("Lambda layer status", columns, rows, right=("Size", "Limit", "Zip", "Packages"))
    if not found:
        print("There are no layers yet. Make one: inv new --layer NAME")
    for name, layer in {standing.name: standing.layer for standing in found}.items():
        if layer and layer.limit_reason:
            print(f"* {name}: {layer.limit_reason}")
