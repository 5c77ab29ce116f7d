"""How the layers of a checkout stand: whether sources, lock and build agree, and what validation last said.

It reads requirements, locks, manifests and verdicts, and of a tree at most what its distributions list, so it is quick;
and it goes on past a layer that
can't be read, so that it works on a broken checkout too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from layerkit import trees
from layerkit.building import input_identity
from layerkit.builds import BuiltLayer, Verdict, builds, read_verdict, record_verdict, was_seen
from layerkit.errors import ConfigurationError, LayerkitError
from layerkit.locking import read_lock, stale
from layerkit.manifests import read_manifest
from layerkit.model import Checked, Finding, Layer, Layers, Manifest, Report, Severity, Skipped, Target
from layerkit.optimizing import Optimizer
from layerkit.project import Project
from layerkit.runtimes import runtimes
from layerkit.sharing import disagreeing, whole_identity
from layerkit.validating import Means, validate_layers


class State(Enum):
    """How one layer stands for one target, the first that applies."""

    BROKEN = "broken"
    """Its files can't be read."""
    NOT_FOR_TARGET = "not for this target"
    NOT_BUILT = "not built"
    OUTDATED = "outdated"
    """There is a build, made from something else than what is there now."""
    FAILED = "failed"
    """Validation found errors."""
    NOT_VALIDATED = "not validated"
    NOT_VERIFIED = "not verified"
    """Validation found no error, but could not run all checks."""
    VALID = "valid"


@dataclass(frozen=True)
class Standing:
    """One layer for one target; ``layer`` is None where its files can't be read."""

    name: str
    target: Target
    state: State
    reason: str
    """Why it is not valid, or what to know though it is; empty when there is nothing to say."""
    layer: Layer | None = None
    lock: str = ""
    """``current``, or why it is not."""
    manifest: Manifest | None = None
    verdict: Verdict | None = None


def standings(
    project: Project, broken: Mapping[str, LayerkitError], target: Target, optimizer: Optimizer
) -> tuple[Standing, ...]:
    """Every layer of a checkout, dependencies first, then those that can't be read (``broken``, with why)."""
    found = []
    locks: dict[str, str] = {}
    for stack in project.layers.stacks(project.layers):
        members = project.layers.stack(stack, target)
        try:
            locks.update(stale(project, members, target))
        except ConfigurationError as error:
            locks.update(dict.fromkeys((layer.name for layer in members), error.message))
    why_not = {name: project.layers.why_not(name, target) for name in project.layers}
    read = {name: read_manifest(project.manifest_path(name, target)) for name, why in why_not.items() if not why}
    manifests = {name: manifest for name, manifest in read.items() if manifest}
    why_outdated = outdated(project, target, locks, manifests, optimizer)
    for name, layer in project.layers.items():
        if why_not[name]:
            found.append(Standing(name, target, State.NOT_FOR_TARGET, why_not[name], layer))
            continue
        manifest = manifests.get(name)
        verdict = read_verdict(project, manifest) if manifest else None
        state, reason = _state(layer, manifest, verdict, why_outdated.get(name, ""))
        found.append(Standing(name, target, state, reason, layer, locks.get(name, "current"), manifest, verdict))
    found += [Standing(name, target, State.BROKEN, error.message) for name, error in sorted(broken.items())]
    return tuple(found)


def _state(layer: Layer, manifest: Manifest | None, verdict: Verdict | None, why_outdated: str) -> tuple[State, str]:
    if manifest is None:
        return State.NOT_BUILT, f"inv build --layer {layer.name}"
    if why_outdated:
        return State.OUTDATED, why_outdated
    if verdict is None:
        return State.NOT_VALIDATED, "inv validate"
    if verdict.errors:
        return State.FAILED, f"{verdict.errors} {'errors' if verdict.errors > 1 else 'error'}: inv validate"
    if verdict.not_verified:
        return State.NOT_VERIFIED, "; ".join(verdict.not_verified)
    warnings = f"{verdict.warnings} {'warnings' if verdict.warnings > 1 else 'warning'}" if verdict.warnings else ""
    return State.VALID, warnings


def outdated(
    project: Project, target: Target, locks: Mapping[str, str], manifests: Mapping[str, Manifest], optimizer: Optimizer
) -> dict[str, str]:
    """The builds that are not what would be built now, by layer, and why.

    ``locks`` says why a lock is not current, by layer; ``manifests`` are those of all builds of whole stacks.
    """
    found = {}
    for name, manifest in manifests.items():
        why = f"lock: {locks[name]}" if name in locks else _outdated(project, target, manifest, optimizer)
        if why:
            found[name] = why
    current = {name: manifest for name, manifest in manifests.items() if name not in found}
    return {**found, **disagreeing(project, target, current)}


def _outdated(project: Project, target: Target, manifest: Manifest, optimizer: Optimizer) -> str:
    layer = project.layers[manifest.layer]
    locked = read_lock(project, layer.name, target)
    own_code = trees.own_code_digest(project.own_code(layer.name))
    used = optimizer if manifest.optimized else None  # a build that left optimization out stays current without it
    if locked is None:
        return "its inputs have changed since"
    inputs = input_identity(project, layer, locked, own_code, used)
    if manifest.inputs != whole_identity(inputs, manifest.optimized):
        return "its inputs have changed since"
    archive = project.zip_path(layer.name, target)
    if not archive.is_file() or archive.stat().st_size != manifest.zip.size:
        return "its zip is gone or is another"
    if not (project.root / manifest.tree.path).is_dir():
        return "its tree is gone"
    return ""


def built_targets(project: Project) -> tuple[Target, ...]:
    """The targets other than the default one that some layer has a manifest for, where Lambda still has them."""
    pattern = re.compile(r"(?P<layer>.+)-(?P<runtime>python3\.\d+)-(?P<architecture>x86_64|arm64)\.json")
    found = set()
    for path in (project.root / "dist").glob("*.json"):
        match = pattern.fullmatch(path.name)
        if match and match["layer"] in project.layers and match["runtime"] in runtimes():
            found.add(Target(match["runtime"], match["architecture"]))
    return tuple(sorted(found - {project.default_target}))


# ---- the graph ----


def mermaid(layers: Layers) -> str:
    """The layers as a Mermaid graph: an arrow from a layer to each that depends on it, as the guide draws it."""
    lines = ["graph TD"]
    identifiers = {name: f"L{number}" for number, name in enumerate(layers)}
    lines += [f'    {identifiers[name]}["{name}"]' for name in layers]
    for name, layer in layers.items():
        lines += [f"    {identifiers[needed]} --> {identifiers[name]}" for needed in layer.depends_on]
    return "\n".join(lines) + "\n"


def tree_of(layers: Layers) -> str:
    """The layers as an indented tree: each below what it depends on; one with several appears below each."""

    def lines(name: str, prefix: str) -> list[str]:
        above = [other for other, layer in layers.items() if name in layer.depends_on]
        found = []
        for number, other in enumerate(above):
            last = number == len(above) - 1
            found.append(f"{prefix}{'└── ' if last else '├── '}{other}")
            found += lines(other, prefix + ("    " if last else "│   "))
        return found

    found = []
    for name, layer in layers.items():
        if not layer.depends_on:
            found += [name, *lines(name, "")]
    return "\n".join(found) + "\n"


# ---- validating what lies there ----


def validate_checkout(
    project: Project,
    names: Sequence[str],
    target: Target,
    means: Means,
    optimizer: Optimizer,
    *,
    tell: Callable[[str, str], None] = lambda layer, check: None,
) -> Report:
    """Every layer check on the builds of ``names`` as they lie in the checkout; what was found is noted for status."""
    built = builds(project, target)
    checked = []
    if means.runs("build"):
        locks: dict[str, str] = {}
        for stack in project.layers.stacks(names):
            locks.update(stale(project, project.layers.stack(stack, target), target))
        stacks = project.layers.stacks(names)
        manifests = {name: one.manifest for name, one in built.items() if one.layer.stack in stacks}
        why = outdated(project, target, locks, manifests, optimizer)
        checked = [_build(name, target, built.get(name), why.get(name, "")) for name in names]
    else:
        checked = [_not_there(name, target) for name in names if name not in built]
    report = validate_layers(
        project.layers, names, built, target, means, seen=lambda one: was_seen(project, one), tell=tell
    )
    whole = Report((*checked, *report.checked))
    if means.complete:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for name in names:
            if name in built:
                record_verdict(project, built[name], whole, now)
    return whole


def _not_there(name: str, target: Target) -> Checked:
    """What to say of a layer without a build where the check ``build`` was left out."""
    skipped = Skipped("build", name, f"there is no build for {target}", f"Build it: inv build --layer {name}")
    return Checked("build", name, skipped=(skipped,))


def _build(name: str, target: Target, one: BuiltLayer | None, why: str) -> Checked:
    """The check ``build``: an error where there is none, a warning where sources and build have gone apart."""
    manifest = one.manifest if one else None
    if manifest is None:
        message = f"there is no build for {target}, so nothing else of it could be checked"
        hint = f"Build it: inv build --layer {name}"
        return Checked("build", name, (Finding("build", Severity.ERROR, name, message, hint),))
    if why:
        message = f"the build is not what its sources say now ({why})"
        finding = Finding("build", Severity.WARNING, name, message, f"Build it again: inv build --layer {name}")
        return Checked("build", name, (finding,), detail=f"built {manifest.built}")
    return Checked("build", name, detail=f"built {manifest.built}")
