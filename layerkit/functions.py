"""Whether the functions that the template declares work with their layers: how many, how large, and by trying.

A function is tried with the ``event.json`` beside its code, in the target's Python, with its own folder and its layers
on the path as on Lambda; what it answers has to be what ``expected.json`` says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from layerkit import trees
from layerkit.builds import BuiltLayer, builds, was_seen
from layerkit.interpreters import Unavailable
from layerkit.model import MIB, RUNTIME_BOTO3, Checked, Finding, Function, Layers, Report, Severity, Skipped, Target
from layerkit.probing import Prober
from layerkit.processes import threads
from layerkit.project import Project
from layerkit.results import digest_of
from layerkit.runtimes import limits, runtimes
from layerkit.validating import WARN_AT, Means, pairs

RECIPE = 1
"""Raised whenever a call would come out otherwise with the same content than before."""

EVENT, EXPECTED = "event.json", "expected.json"


@dataclass(frozen=True)
class _Subject:
    """A function, the builds of the layers that it attaches, and those that there are none of."""

    function: Function
    folder: Path
    layers: tuple[BuiltLayer, ...]
    not_built: tuple[str, ...]
    as_built: bool
    """Whether the trees on disk are known to be those of the manifests: then results are kept and believed."""


def validate_functions(
    project: Project,
    functions: Sequence[Function],
    means_for: Callable[[Target], Means],
    *,
    tell: Callable[[str, str], None] = lambda function, check: None,
) -> Report:
    """Run every function check on ``functions``; ``means_for`` gives what the checks for a target run with."""
    built: dict[Target, dict[str, BuiltLayer]] = {}
    runs: list[Callable[[], Checked]] = []
    jobs = 1
    for function in functions:
        target = function.target
        if target.runtime not in runtimes() or target.architecture not in runtimes()[target.runtime].platforms:
            runs.append(partial(_unknown, function))
            continue
        means = means_for(target)
        jobs = means.jobs
        if target not in built:
            built[target] = builds(project, target)
        subject = _Subject(
            function,
            project.root / function.folder,
            tuple(built[target][name] for name in function.layers if name in built[target]),
            tuple(name for name in function.layers if name not in built[target]),
            all(was_seen(project, one) for one in built[target].values() if one.layer.name in function.layers),
        )
        checks: dict[str, Callable[[], Checked]] = {
            "function-layers": partial(_layers, subject, project.layers),
            "function-size": partial(_size, subject),
            "function-event": partial(_event, subject, means),
        }
        runs += [run for check, run in checks.items() if means.runs(check)]

    def one(run: Callable[[], Checked]) -> Checked:
        started = time.monotonic()
        checked = run()
        tell(checked.subject, checked.check)
        return replace(checked, seconds=time.monotonic() - started)

    with threads(jobs) as pool:
        return Report(tuple(pool.map(one, runs)))


def _unknown(function: Function) -> Checked:
    reason = f"its runtime and architecture are not known here ({function.target})"
    skipped = Skipped("function-layers", function.name, reason, "Give both as plain values in the template.")
    return Checked("function-layers", function.name, skipped=(skipped,))


def _error(check: str, name: str, message: str, hint: str = "") -> Finding:
    return Finding(check, Severity.ERROR, name, message, hint)


def _layers(subject: _Subject, layers: Layers) -> Checked:
    function = subject.function
    check, name = "function-layers", function.name
    attached = (*function.layers, *function.other_layers)
    found = []
    allowed = limits()["layers_per_function"]
    if len(attached) > allowed:
        found.append(_error(check, name, f"it attaches {len(attached)} layers; Lambda allows {allowed}"))
    twice = sorted({layer for layer in attached if attached.count(layer) > 1})
    found += [_error(check, name, f"it attaches {layer} more than once") for layer in twice]
    own = [layer for layer in dict.fromkeys(function.layers) if layer in layers]
    found += [
        _error(check, name, f"it attaches {layer}, which is no layer of this checkout")
        for layer in dict.fromkeys(function.layers)
        if layer not in layers
    ]
    stacks = layers.stacks(own)
    if len(stacks) > 1:
        found.append(
            _error(
                check,
                name,
                f"its layers are of the stacks {' and '.join(stacks)}, which are not resolved together",
                "Attach layers of one stack.",
            )
        )
    for layer in own:
        reason = layers[layer].why_not(function.target)
        if reason:
            found.append(_error(check, name, f"{layer} is not for {function.target}: {reason}"))
        found += [
            _error(
                check,
                name,
                f"it attaches {layer} without {needed}, which that needs",
                f"Add {needed} to the function's Layers, before {layer}.",
            )
            for needed in layers[layer].depends_on
            if needed not in own
        ]
    shown = ", ".join(attached) or "none"
    return Checked(check, name, tuple(found), detail=f"{len(attached)} of {allowed}: {shown}")


def _size(subject: _Subject) -> Checked:
    function = subject.function
    check, name = "function-size", function.name
    sizes = {one.layer.name: one.manifest.tree.size for one in subject.layers}
    if function.folder:
        sizes["its own code"] = _code_size(subject.folder)
    total, allowed = sum(sizes.values()), limits()["function_unzipped"]
    parts = ", ".join(f"{part} {size / MIB:.1f}" for part, size in sizes.items())
    shown = f"{total / MIB:.1f} MiB unzipped with its layers ({total:,} bytes: {parts})"
    unknown = [*(f"{layer} is not built" for layer in subject.not_built)]
    unknown += [f"the size of {layer} is not known here" for layer in function.other_layers]
    if not function.folder:
        unknown.append("its code is not in this checkout")
    findings: list[Finding] = []
    if total > allowed:
        message = f"{shown}; Lambda allows {allowed / MIB:.0f} MiB ({allowed:,} bytes)"
        findings.append(_error(check, name, message, "Attach fewer layers, or make them smaller."))
    elif total > WARN_AT * allowed:
        findings.append(Finding(check, Severity.WARNING, name, f"{shown}, close to the {allowed / MIB:.0f} allowed"))
    skipped = (Skipped(check, name, "; ".join(unknown), "Build its layers: inv build"),) if unknown else ()
    detail = f"{total / MIB:.1f} of {allowed / MIB:.0f} MiB"
    return Checked(check, name, tuple(findings), skipped, detail=detail)


def _code_size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in trees.own_files(folder))


def _event(subject: _Subject, means: Means) -> Checked:
    function = subject.function
    check, name = "function-event", function.name
    reason, hint = _why_not(subject, means)
    if reason or isinstance(means.interpreter, Unavailable):
        return Checked(check, name, skipped=(Skipped(check, name, reason, hint),))
    hashes = [one.manifest.tree.sha256 for one in subject.layers]
    code = trees.own_code_digest(subject.folder)
    key = digest_of(RECIPE, hashes, code, name, function.handler, means.interpreter.version, asdict(means.bounds))
    known = means.results.read("events", key, pairs) if subject.as_built else None
    if known is None:
        outcome = Prober(means.interpreter, means.bounds).call(
            name,
            function.handler,
            subject.folder,
            subject.folder / EVENT,
            [one.tree for one in subject.layers],
            function.target,
        )
        missing = outcome.failure.missing.partition(".")[0] if outcome.failure else ""
        if missing in RUNTIME_BOTO3:
            reason = f"it imports {missing}, which is the runtime's own: no layer that it attaches carries it"
            skipped = Skipped(check, name, reason, "Carry it in a layer to have it tried here.")
            return Checked(check, name, skipped=(skipped,), detail=f"{function.folder}/{EVENT}")
        if outcome.failure:
            known = [[f"{function.folder}/{EVENT}: {outcome.failure.message}", _missing(outcome.failure.missing)]]
        else:
            known = _compare(subject, outcome.answer)
        if subject.as_built and not (outcome.failure and outcome.failure.unsettled):
            means.results.put("events", key, known)
        recorded = False
    else:
        recorded = True
    findings = tuple(_error(check, name, message, hint) for message, hint in known)
    return Checked(check, name, findings, detail=f"{function.folder}/{EVENT}", recorded=recorded)


def _missing(module: str) -> str:
    return f"No layer that it attaches has {module}: attach one that does, or add it to a layer." if module else ""


def _why_not(subject: _Subject, means: Means) -> tuple[str, str]:
    """Why a function can't be tried, and what to do; two empty texts when it can."""
    function = subject.function
    if not function.folder or not subject.folder.is_dir():
        return "its code is not in this checkout", "Leave it out with --skip function-event where that is meant."
    for file in (EVENT, EXPECTED):
        if not (subject.folder / file).is_file():
            return f"there is no {function.folder}/{file} to try it with", f"Add {EVENT} and the {EXPECTED} to it."
    if subject.not_built:
        return f"{', '.join(subject.not_built)} is not built", "Run `inv build`."
    if function.other_layers:
        return f"what {', '.join(function.other_layers)} holds is not known here", ""
    if isinstance(means.interpreter, Unavailable):
        return means.interpreter.reason, means.interpreter.hint
    return "", ""


def _compare(subject: _Subject, answer: Any) -> list[list[str]]:
    shown = f"{subject.function.folder}/{EXPECTED}"
    try:
        expected = json.loads((subject.folder / EXPECTED).read_text(encoding="utf-8"))
    except ValueError as error:
        return [[f"{shown} is not JSON: {error}", ""]]
    difference = _difference(expected, answer, "")
    return [[f"its answer is not that of {shown}: {difference}", ""]] if difference else []


def _difference(expected: Any, answer: Any, where: str) -> str:
    """The first place where two JSON values differ; empty when they don't."""
    if isinstance(expected, Mapping) and isinstance(answer, Mapping):
        for key in sorted(expected.keys() | answer.keys()):
            if key not in expected or key not in answer:
                return f"{where}/{key} is {'not expected' if key not in expected else 'missing'}"
            found = _difference(expected[key], answer[key], f"{where}/{key}")
            if found:
                return found
        return ""
    if isinstance(expected, list) and isinstance(answer, list):
        if len(expected) != len(answer):
            return f"{where or 'the answer'} has {len(answer)} entries, not {len(expected)}"
        pairs = enumerate(zip(expected, answer, strict=True))
        return next((d for i, (one, other) in pairs if (d := _difference(one, other, f"{where}/{i}"))), "")
    if expected == answer and isinstance(expected, bool) == isinstance(answer, bool):
        return ""
    return f"{where or 'it'} is {json.dumps(answer)[:200]}, not {json.dumps(expected)[:200]}"
