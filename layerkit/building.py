"""Building: from locks to trees and zips, beside what is live, and in at once.

A build is a pure function of its *inputs*: the lock, the layer's own code, the target, the recipe and the tools. Their
digest, the input identity, tells whether there is anything to do. Everything is made in ``.layerkit/work``; when all
layers are done, one rename of the whole to ``.layerkit/swap`` decides, and moving the parts to their places can be
finished by any later command. The manifest goes in last: it names the tree and the zip by their hashes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from layerkit import trees
from layerkit.archiving import CompressedFiles, Source, compressor_name, tree_digest, write_zip
from layerkit.builds import TREE, BuiltLayer, is_noted, note_tree, record_verdict, was_seen
from layerkit.comparing import Comparison, Timed, import_seconds
from layerkit.errors import CheckFailed, ConfigurationError, Incomplete
from layerkit.files import cache_folder, put_in_place, remove, sync_folder, write_whole
from layerkit.installer import Uv, uv_version
from layerkit.interpreters import Interpreter
from layerkit.locking import read_lock
from layerkit.manifests import read_manifest, render_manifest
from layerkit.model import Artifact, Layer, Layers, Lock, Manifest, Optimized, OwnCode, Report, Severity, Target, Tree
from layerkit.optimizing import Optimizer, Subject, optimize
from layerkit.processes import end_all, uninterrupted
from layerkit.project import Project
from layerkit.validating import Means, validate_layers

RECIPE = 2
"""Raised whenever the same inputs would give other bytes than before."""


_T = TypeVar("_T")


class Action(Enum):
    """What a build has to do for a layer."""

    BUILD = "build"
    RELABEL = "relabel"
    """Only the identities of the layers it depends on have changed: the manifest says the new ones."""
    NOTHING = "up to date"


@dataclass(frozen=True)
class LayerPlan:
    """What there is to do for one layer, and why."""

    layer: Layer
    lock: Lock
    inputs: str
    own_code: str
    """Digest of the layer's own code."""
    depends_on: dict[str, str]
    action: Action
    reason: str
    current: Manifest | None
    """The last build's manifest, where there is one that counts."""


@dataclass(frozen=True)
class Progress:
    """How far a layer is: the phase's name, and bytes done of bytes in all where it is known (else 0 of 0)."""

    layer: str
    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Built:
    """The outcome for one layer: ``seconds`` is wall time, ``from_cache`` files were not compressed again."""

    plan: LayerPlan
    manifest: Manifest
    report: Report = field(default_factory=Report)
    seconds: float = 0.0
    from_cache: int = 0
    comparison: Comparison | None = None


def tools() -> dict[str, str]:
    """Everything of ours that the bytes of a build depend on, by name."""
    return {"recipe": str(RECIPE), "uv": uv_version(), "compressor": compressor_name()}


def kinship(project: Project, name: str, target: Target) -> str:
    """What a layer has in common with itself on another architecture, where it gets the same distributions.

    SHA-256 (hex) over the names and versions in the locks, own code and options, of it and of the layers below.
    """
    parts = []
    for other in project.layers.with_dependencies([name]):
        layer, lock = project.layers[other], read_lock(project, other, target)
        parts.append(
            [
                [str(package) for package in lock.packages] if lock else None,
                trees.own_code_digest(project.own_code(other)),
                asdict(layer.optimization),
                list(layer.imports),
            ]
        )
    return sha256(json.dumps([target.runtime, parts], sort_keys=True).encode()).hexdigest()


def input_identity(project: Project, layer: Layer, lock: Lock, own_code: str, optimizer: Optimizer | None) -> str:
    """SHA-256 (hex) over all inputs of a layer's build. Nothing of other layers is among them.

    ``optimizer`` is None where the layer is left as its wheels made it.
    """
    inputs = {
        "layer": layer.name,
        "target": str(lock.target),
        "depends_on": sorted(layer.depends_on),
        "packages": [[package.name, package.version, package.sdist, *package.hashes] for package in lock.packages],
        "own_code": own_code,
        "tools": tools(),
        "optimization": optimizer.identity(layer, lambda: kinship(project, layer.name, lock.target))
        if optimizer
        else None,
    }
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


# ---- plan ----


def plan_build(
    project: Project,
    target: Target,
    names: Sequence[str],
    *,
    optimizer: Optimizer | None = None,
    force: bool = False,
) -> tuple[LayerPlan, ...]:
    """What there is to do so that ``names`` and what they depend on are built; with ``force``, all of ``names``.

    ``optimizer`` is what they are optimized with; None: they are not.

    Reads manifests, locks and own code, never a tree. Raises ConfigurationError for a layer without a lock.
    """
    identities: dict[str, str] = {}
    plans = []
    for name in project.layers.with_dependencies(names):
        layer = project.layers[name]
        lock = read_lock(project, name, target)
        if lock is None:
            raise ConfigurationError(f"{name} has no lock for {target}.", "Run `inv lock`.")
        own_code = trees.own_code_digest(project.own_code(name))
        identities[name] = input_identity(project, layer, lock, own_code, optimizer)
        needed = {other: identities[other] for other in project.layers.dependencies(name)}
        manifest = read_manifest(project.manifest_path(name, target))
        reason = _why_build(project, target, manifest, name, identities[name])
        if force and name in names:
            reason = reason or "asked for"
        action = Action.BUILD if reason else Action.NOTHING
        if not reason and manifest and dict(manifest.depends_on) != needed:
            action, reason = Action.RELABEL, "a layer it depends on has changed"
        plans.append(LayerPlan(layer, lock, identities[name], own_code, needed, action, reason, manifest))
    return tuple(plans)


def _why_build(project: Project, target: Target, manifest: Manifest | None, name: str, inputs: str) -> str:
    if manifest is None:
        return "not built yet"
    if manifest.inputs != inputs:
        return "its inputs have changed"
    archive = project.zip_path(name, target)
    if not archive.is_file() or archive.stat().st_size != manifest.zip.size:
        return "its zip is gone or is another"
    tree = project.tree_path(name, target)
    if manifest.tree.path != project.relative(tree) or not tree.is_dir():
        return "its tree is gone"
    if not is_noted(project, tree, manifest.tree.sha256):
        return "its tree is not the one that was built"
    return ""


# ---- apply ----


def build(
    project: Project,
    plans: Sequence[LayerPlan],
    *,
    uv: Uv,
    jobs: int,
    means: Means | None,
    optimizer: Optimizer | None = None,
    let_in: bool = True,
    compare: bool = False,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Built, ...]:
    """Carry out ``plans`` and swap all results in at once; the caller holds the checkout's lock.

    Without ``let_in`` everything is done but the swap, so that nothing is changed. With ``compare`` each layer that is
    built is also zipped as its wheels have it, and its imports are timed in both forms.

    ``optimizer`` is the one that the plans were made with. Before the swap all of them are validated with ``means``
    (None: they are not). Raises CheckFailed, with the findings in its message, when that finds an error, and whatever
    the installer raises; then nothing is swapped in. Layers with an error stay in ``.layerkit/failed``, to look at.
    """
    work = project.state / "work" / secrets.token_hex(8)
    staged = work / "staged"
    staged.mkdir(parents=True)
    try:
        built = _build_all(project, plans, work, uv, jobs, optimizer, compare, tell)
        if means:
            built = _validated(project, built, staged, means, tell)
        if not let_in:
            return built
        if any(staged.iterdir()):
            for result in built:
                if result.plan.action is not Action.NOTHING:
                    folder = staged / result.plan.layer.name
                    folder.mkdir(exist_ok=True)
                    if (folder / TREE).is_dir():
                        # The name tells it from the old tree, which takes its place when the two are exchanged.
                        os.rename(folder / TREE, folder / f"tree.{(folder / TREE).stat().st_ino}")
                    write_whole(folder / "manifest.json", render_manifest(result.manifest))
            with uninterrupted():
                os.rename(staged, project.state / "swap")
                sync_folder(project.state)
                finish_swap(project)
        if means and means.complete:
            for result in built:
                record_verdict(project, _live(project, result), result.report, _now())
        return built
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _live(project: Project, result: Built) -> BuiltLayer:
    name, target = result.plan.layer.name, result.plan.lock.target
    return BuiltLayer(
        result.plan.layer, result.manifest, project.tree_path(name, target), project.zip_path(name, target)
    )


def _build_all(
    project: Project,
    plans: Sequence[LayerPlan],
    work: Path,
    uv: Uv,
    jobs: int,
    optimizer: Optimizer | None,
    compare: bool,
    tell: Callable[[Progress], None],
) -> tuple[Built, ...]:
    """Layers side by side: while one is being compressed the next is being installed.

    They are optimized one after the other, since each needs those below it as they will be, and uses all processors.
    """
    cache: CompressedFiles | None = None
    if any(plan.action is Action.BUILD for plan in plans):
        cache = CompressedFiles(cache_folder())
    compressing = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="compress")
    layering = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="layer")

    making = _Making(project, {plan.layer.name: plan for plan in plans}, work, uv, compressing, cache, compare, tell)

    def one(plan: LayerPlan) -> Built:
        if plan.action is Action.BUILD:
            return making.zip(plan, making.install(plan))
        assert plan.current is not None  # only a layer with a manifest needs no build
        if plan.action is Action.RELABEL:
            (work / "staged" / plan.layer.name).mkdir()
            return Built(plan, replace(plan.current, depends_on=plan.depends_on))
        return Built(plan, plan.current)

    def optimized(plan: LayerPlan, installed: Future[_Installed], optimizer: Optimizer) -> Future[Built]:
        return layering.submit(making.zip, plan, making.optimize(plan, installed.result(), optimizer))

    try:
        if optimizer:
            building = [plan for plan in plans if plan.action is Action.BUILD]
            installing = {plan.layer.name: layering.submit(making.install, plan) for plan in building}
            _all_or_first_failure(list(installing.values()))
            futures = [
                optimized(plan, installing[plan.layer.name], optimizer)
                if plan in building
                else layering.submit(one, plan)
                for plan in plans
            ]
        else:
            futures = [layering.submit(one, plan) for plan in plans]
        built = tuple(_all_or_first_failure(futures))
        return tuple(making.timed(one, optimizer) for one in built) if compare and optimizer else built
    except BaseException:
        # A layer that waits for an installer or for compressed files is told so, and its thread ends.
        end_all()
        compressing.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        layering.shutdown(cancel_futures=True)
        compressing.shutdown()
        if cache:
            cache.close()


def _all_or_first_failure(futures: Sequence[Future[_T]]) -> list[_T]:
    """All results, or the first error as soon as it is there."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]


@dataclass(frozen=True)
class _Installed:
    """A tree that has been installed, and then perhaps optimized."""

    started: float
    own_code: OwnCode
    settled: Mapping[str, str]
    optimized: Optimized | None = None


@dataclass(frozen=True)
class _Making:
    """What the steps of building one layer share."""

    project: Project
    plans: Mapping[str, LayerPlan]
    work: Path
    uv: Uv
    pool: ThreadPoolExecutor
    cache: CompressedFiles | None
    compare: bool
    tell: Callable[[Progress], None]

    def staged(self, name: str) -> Path:
        return self.work / "staged" / name

    def scratch(self, name: str) -> Path:
        return self.work / "scratch" / name

    def tree(self, name: str) -> Path:
        """Where a layer's tree is now: staged, or in its place where it is not built."""
        plan = self.plans[name]
        if plan.action is Action.BUILD:
            return self.staged(name) / TREE
        return self.project.tree_path(name, plan.lock.target)

    def plain(self, name: str) -> Path:
        """Where a copy of a layer's tree is kept as its wheels have it, to compare with."""
        return self.work / "plain" / name

    def install(self, plan: LayerPlan) -> _Installed:
        started = time.monotonic()
        layer, target = plan.layer, plan.lock.target
        tree, scratch = self.tree(layer.name), self.scratch(layer.name)
        scratch.mkdir(parents=True)
        tree.mkdir(parents=True)

        self.tell(Progress(layer.name, "installing"))
        self.uv.install(plan.lock.packages, target, tree, scratch)
        settled = _settle_contested(plan.lock, self.uv, tree, scratch)
        _refuse_compiled(plan.lock, tree)
        trees.normalize(tree, target, settled)
        own = OwnCode(0, 0)
        if layer.has_own_code:
            files, size, digest = trees.add_own_code(
                self.project.own_code(layer.name), tree, f"layers/{layer.name}/src"
            )
            if digest != plan.own_code:
                raise Incomplete(
                    f"layers/{layer.name}/src was changed while the layer was built, so nothing was put in place.",
                    "Run the build again.",
                )
            own = OwnCode(files, size)
        return _Installed(started, own, settled)

    def optimize(self, plan: LayerPlan, installed: _Installed, optimizer: Optimizer) -> _Installed:
        name = plan.layer.name
        below = self.project.layers.dependencies(name)
        subject = Subject(
            plan.layer,
            self.tree(name),
            plan.inputs,
            self.project.layer_folder(name),
            kinship(self.project, name, plan.lock.target),
            tuple(self.tree(other) for other in below),
            tuple(self.plans[other].inputs for other in below),
        )
        if self.compare:
            shutil.copytree(subject.tree, self.plain(name), symlinks=True)
        optimized = optimize(
            subject,
            optimizer,
            self.scratch(name),
            self.work / "bytecode",
            lambda phase: self.tell(Progress(name, phase)),
        )
        return replace(installed, optimized=optimized)

    def zip(self, plan: LayerPlan, installed: _Installed) -> Built:
        layer, target = plan.layer, plan.lock.target
        staged, tree = self.staged(layer.name), self.tree(layer.name)
        found = trees.sources(tree, TREE)
        total = sum(source.size for source in found)
        done = 0

        def advanced(size: int) -> None:
            nonlocal done
            done += size
            self.tell(Progress(layer.name, "zipping", done, total))

        self.tell(Progress(layer.name, "zipping", 0, total))
        label = Source(f"layerkit/{layer.name}.json", 0, content=_label(plan))
        written = write_zip(staged / "layer.zip", [*found, label], pool=self.pool, cache=self.cache, advanced=advanced)

        below = {
            entry.path.removeprefix(f"{TREE}/"): entry.size for entry in written.entries if entry.path != label.path
        }
        manifest = Manifest(
            layer=layer.name,
            target=target,
            inputs=plan.inputs,
            depends_on=plan.depends_on,
            distributions=trees.distributions(tree, plan.lock.packages, below),
            own_code=installed.own_code,
            optimized=installed.optimized,
            tree=Tree(
                path=self.project.relative(self.project.tree_path(layer.name, target)),
                sha256=tree_digest(entry for entry in written.entries if entry.path != label.path),
                files=len(below),
                size=sum(below.values()),
                top=tuple(sorted(os.listdir(tree))),
            ),
            zip=Artifact(
                self.project.relative(self.project.zip_path(layer.name, target)), written.sha256, written.size
            ),
            tools=tools(),
            notes=tuple(
                f"{path} comes in several distributions; the one of {winner} stays"
                for path, winner in sorted(installed.settled.items())
            ),
            built=_now(),
        )
        self.tell(Progress(layer.name, "built", total, total))
        seconds = time.monotonic() - installed.started
        comparison = self._zipped_plain(layer.name) if self.plain(layer.name).is_dir() else None
        return Built(plan, manifest, Report(), seconds, written.from_cache, comparison)

    def _zipped_plain(self, name: str) -> Comparison:
        found = trees.sources(self.plain(name), TREE)
        archive = self.scratch(name) / "plain.zip"
        written = write_zip(archive, found, pool=self.pool, cache=self.cache, advanced=lambda size: None)
        return Comparison(sum(source.size for source in found), written.size)

    def timed(self, built: Built, optimizer: Optimizer) -> Built:
        """With the time of its imports in both forms, where it has been built and can be run."""
        name = built.plan.layer.name
        if built.comparison is None or not isinstance(optimizer.proof, Interpreter):
            return built
        self.tell(Progress(name, "timing imports"))
        below = self.project.layers.dependencies(name)
        plain = [self.plain(other) if self.plain(other).is_dir() else self.tree(other) for other in below]
        forms = [Timed(self.plain(name), plain), Timed(self.tree(name), [self.tree(other) for other in below])]
        before, after = import_seconds(built.plan.layer, forms, optimizer.proof, optimizer.target)
        return replace(built, comparison=replace(built.comparison, import_seconds=before, import_seconds_after=after))


def _label(plan: LayerPlan) -> bytes:
    """What a running function can read in ``/opt/layerkit/<layer>.json`` of what it runs with."""
    label = {
        "schema": 1,
        "layer": plan.layer.name,
        "inputs": plan.inputs,
        "target": str(plan.lock.target),
        "depends_on": sorted(plan.layer.depends_on),
    }
    return (json.dumps(label, sort_keys=True, indent=2) + "\n").encode()


def _settle_contested(lock: Lock, uv: Uv, tree: Path, scratch: Path) -> dict[str, str]:
    """Where two distributions bring one file with different contents, leave the same one on every machine.

    Path -> the distribution whose file stays.
    """
    contested = trees.contested(tree)
    for winner in sorted(set(contested.values())):
        alone = scratch / f"alone-{winner}"
        uv.install([package for package in lock.packages if package.name == winner], lock.target, alone, scratch)
        for path in sorted(path for path, owner in contested.items() if owner == winner):
            if (alone / path).is_file():
                remove(tree / path)
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(alone / path, tree / path)
    return contested


def _refuse_compiled(lock: Lock, tree: Path) -> None:
    for name, sign in trees.impure(tree, (package.name for package in lock.packages if package.sdist)).items():
        raise ConfigurationError(
            f"{name} was built from source and is not pure Python ({sign}).",
            "layerkit compiles nothing. Use a version with a wheel, or build a wheel and put it on an index of yours.",
        )


def _validated(
    project: Project, built: Sequence[Built], staged: Path, means: Means, tell: Callable[[Progress], None]
) -> tuple[Built, ...]:
    """All results with what validation says of them; CheckFailed when that is an error."""
    where = {}
    for result in built:
        name = result.plan.layer.name
        one = _live(project, result)
        if result.plan.action is Action.BUILD:
            one = replace(one, tree=staged / name / TREE, archive=staged / name / "layer.zip")
        where[name] = one
    target = built[0].plan.lock.target
    report = validate_layers(
        Layers(result.plan.layer for result in built),
        list(where),
        where,
        target,
        means,
        seen=lambda one: one.tree.is_relative_to(project.state / "work") is False and was_seen(project, one),
        tell=lambda layer, check: tell(Progress(layer, check)),
    )
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    if not errors:
        return tuple(replace(result, report=report.of(result.plan.layer.name)) for result in built)
    kept = []
    for name in dict.fromkeys(finding.subject for finding in errors):
        if (staged / name / TREE).is_dir():
            failed = project.state / "failed" / f"{name}-{target}"
            failed.parent.mkdir(exist_ok=True)
            remove(failed)
            os.rename(staged / name, failed)
            kept.append(f"What failed is in {project.relative(failed)}, for looking at.")
    lines = [f"  {finding.subject}: {finding.check}: {finding.message}" for finding in errors]
    hints = [finding.hint for finding in errors if finding.hint]
    raise CheckFailed("the build was not let in:\n" + "\n".join(lines), "\n".join(dict.fromkeys([*hints, *kept])))


# ---- the swap ----


def finish_swap(project: Project) -> bool:
    """Move what a decided build left in ``.layerkit/swap`` to its places; whether there was anything.

    Safe to call after a kill at any moment, and again: each part is moved by one rename, the manifest last.
    """
    swap = project.state / "swap"
    if not swap.is_dir():
        return False
    (project.root / "dist").mkdir(exist_ok=True)
    for folder in sorted(swap.iterdir()):
        _swap_layer(project, folder)
    sync_folder(project.root / "dist")
    # Only now, with every manifest in its place, may the decision be forgotten.
    spent = project.state / "work" / f"spent-{secrets.token_hex(8)}"
    spent.parent.mkdir(exist_ok=True)
    os.rename(swap, spent)
    shutil.rmtree(spent, ignore_errors=True)  # the next command clears what can't be removed now
    return True


def _swap_layer(project: Project, folder: Path) -> None:
    manifest_file = folder / "manifest.json"
    manifest = read_manifest(manifest_file)
    if manifest is None:  # moved already: the manifest goes last
        return
    live = project.root / manifest.tree.path
    for tree in folder.glob("tree.*"):
        if tree.stat().st_ino == int(tree.suffix.removeprefix(".")):
            live.parent.mkdir(parents=True, exist_ok=True)
            remove(folder / "old")
            put_in_place(tree, live, folder / "old")
        note_tree(project, live, manifest.tree.sha256)
    if (folder / "layer.zip").exists():
        os.replace(folder / "layer.zip", project.root / manifest.zip.path)
    os.replace(manifest_file, project.manifest_path(manifest.layer, manifest.target))


def clear_work(project: Project) -> None:
    """Remove what a killed process left half made; only for the holder of the checkout's lock."""
    shutil.rmtree(project.state / "work", ignore_errors=True)
