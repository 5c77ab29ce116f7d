"""Building: from locks to trees and zips, beside what is live, and in at once.

A build is a pure function of its *inputs*: the lock, the layer's own code, the target, the recipe and the tools. Their
digest, the input identity, tells whether there is anything to do. What layers agree on, where they carry the same
distributions, is in the manifest and in the identity as well. Everything is made in ``.layerkit/work``; when all
layers are done, one rename of the whole to ``.layerkit/swap`` decides, and moving the parts to their places can be
finished by any later command. The manifest goes in last: it names the tree and the zip by their hashes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
from layerkit.deciding import Lost
from layerkit.errors import CheckFailed, ConfigurationError, Incomplete
from layerkit.files import cache_folder, put_in_place, remove, sync_folder, write_whole
from layerkit.installer import Uv, uv_version
from layerkit.interpreters import Interpreter
from layerkit.locking import read_lock
from layerkit.manifests import read_manifest, render_manifest
from layerkit.metadata import top_level_modules
from layerkit.model import (
    SYMBOLS,
    Artifact,
    Layer,
    Layers,
    Lock,
    Manifest,
    Optimized,
    OwnCode,
    Report,
    Severity,
    Target,
    Tree,
    is_stub,
)
from layerkit.optimizing import Decided, Optimizer, Subject, decide
from layerkit.processes import end_all, uninterrupted
from layerkit.project import Project
from layerkit.results import digest_of
from layerkit.sharing import (
    Agreed,
    agree_in_stacks,
    agreed_in_place,
    disagreeing,
    disagreements,
    own_in_place,
    sharers_of,
    whole_identity,
)
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
    """The input identity of the layer on its own."""
    own_code: str
    """Digest of the layer's own code."""
    depends_on: dict[str, str]
    """The input identities of the layers that it depends on, as far as they are known."""
    action: Action
    reason: str
    current: Manifest | None
    """The last build's manifest, where there is one that counts."""

    @property
    def builds(self) -> bool:
        return self.action is Action.BUILD


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
    """SHA-256 (hex) over all inputs of a layer's build on its own. Nothing of other layers is among them.

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
    wanted = project.layers.with_dependencies(names)
    for name in wanted:
        if read_lock(project, name, target) is None:
            raise ConfigurationError(f"{name} has no lock for {target}.", "Run `inv lock`.")
    plans = _plans(project, target, wanted, optimizer, names if force else ())
    if optimizer:
        known = {**_elsewhere(project, target, plans, optimizer), **plans}
        current = {name: plan.current for name, plan in known.items() if plan.current and not plan.builds}
        apart = disagreeing(project, target, current)
        plans = {
            name: replace(plan, action=Action.BUILD, reason=apart[name]) if name in apart else plan
            for name, plan in plans.items()
        }
    return tuple(plans.values())


def _plans(
    project: Project, target: Target, names: Sequence[str], optimizer: Optimizer | None, forced: Collection[str]
) -> dict[str, LayerPlan]:
    """What there is to do for ``names``, dependencies first, each as if it were alone in its stack."""
    identities: dict[str, str] = {}
    plans = {}
    for name in names:
        layer = project.layers[name]
        lock = read_lock(project, name, target)
        assert lock is not None  # asked by who calls
        own_code = trees.own_code_digest(project.own_code(name))
        inputs = input_identity(project, layer, lock, own_code, optimizer)
        manifest = read_manifest(project.manifest_path(name, target))
        identities[name] = whole_identity(inputs, manifest.optimized if manifest else None)
        needed = {other: identities[other] for other in project.layers.dependencies(name)}
        reason = _why_build(project, target, manifest, name, identities[name])
        if name in forced:
            reason = reason or "asked for"
        action = Action.BUILD if reason else Action.NOTHING
        if not reason and manifest and dict(manifest.depends_on) != needed:
            action, reason = Action.RELABEL, _RELABELLED
        plans[name] = LayerPlan(layer, lock, inputs, own_code, needed, action, reason, manifest)
    return plans


_RELABELLED = "a layer it depends on has changed"


def _elsewhere(project: Project, target: Target, plans: Collection[str], optimizer: Optimizer) -> dict[str, LayerPlan]:
    """The plans of layers that are none of ``plans`` but share a distribution in one of their stacks, and of what these
    depend on."""
    sharers = sharers_of(project, target, plans)
    if sharers <= set(plans):
        return {}
    names = [
        name
        for name in project.layers.with_dependencies(sharers)
        if all(read_lock(project, other, target) for other in project.layers.with_dependencies([name]))
    ]
    found = _plans(project, target, names, optimizer, ())
    return {name: plan for name, plan in found.items() if name not in plans}


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
    """Layers side by side: while one is being compressed the next is being installed."""
    target = plans[0].lock.target
    cache: CompressedFiles | None = None
    if any(plan.builds for plan in plans):
        cache = CompressedFiles(cache_folder())
    compressing = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="compress")
    layering = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="layer")

    making = _Making(
        project, target, {plan.layer.name: plan for plan in plans}, work, uv, compressing, cache, compare, tell
    )
    try:
        futures: dict[str, Future[Built]] = {}
        building = [plan for plan in plans if plan.builds]
        if optimizer and building:
            futures = _optimized(making, building, optimizer, layering)
        else:
            futures = {plan.layer.name: layering.submit(making.make, plan) for plan in building}
        built = dict(zip(futures, _all_or_first_failure(list(futures.values())), strict=True))
        results = making.labelled(built)
        return tuple(making.timed(one, optimizer) for one in results) if compare and optimizer else results
    except BaseException:  # Ctrl-C too: cleaned up here, and raised again
        # A layer that waits for an installer or for compressed files is told so, and its thread ends.
        end_all()
        compressing.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        layering.shutdown(cancel_futures=True)
        compressing.shutdown()
        if cache:
            cache.close()


def _optimized(
    making: _Making, plans: Sequence[LayerPlan], optimizer: Optimizer, layering: ThreadPoolExecutor
) -> dict[str, Future[Built]]:
    """Install, optimize and zip ``plans``, and layers in place that have to agree with them on something else now.

    Layers are optimized one after the other, since each needs those below it, and uses all processors. Those that
    share a distribution are finished when all have decided. What is put back then in a layer was not there while those
    above it decided: it takes nothing from them that they had.
    """
    project, target = making.project, making.target
    sharers = sharers_of(project, target, making.plans)
    elsewhere = _elsewhere(project, target, making.plans, optimizer)
    # Who would have to be built on layers that are not what they should be has no say until these are built.
    in_place = {
        name: plan.current
        for name, plan in {**elsewhere, **making.plans}.items()
        if name in sharers and not plan.builds and plan.current and plan.current.optimized
        if not any(one.builds for other in project.layers.dependencies(name) if (one := elsewhere.get(other)))
    }
    owns = {name: own_in_place(project, manifest) for name, manifest in in_place.items()}
    before = {name: agreed_in_place(manifest) for name, manifest in in_place.items()}
    decided: dict[str, tuple[_Installed, Decided]] = {}
    futures: dict[str, Future[Built]] = {}
    losses: dict[str, _Loss] = {}

    def finish(name: str, agreed: Agreed) -> None:
        installed, decision = decided[name]
        done = replace(installed, optimized=decision.finish(agreed))
        futures[name] = layering.submit(making.zip, making.plans[name], done)

    agreed: dict[str, Agreed] = {}
    pending = list(plans)
    while pending:
        installing = {plan.layer.name: layering.submit(making.install, plan) for plan in pending}
        _all_or_first_failure(list(installing.values()))
        for plan in pending:
            name = plan.layer.name
            decided[name] = (installing[name].result(), making.decide(plan, optimizer, losses))
            losses[name] = making.loss(name, decided[name][1])
            owns[name] = decided[name][1].own
            if name not in sharers:
                finish(name, agree_in_stacks(project, {name: owns[name]})[name])
        agreed = agree_in_stacks(project, owns)
        left = {name: one for name, one in before.items() if name not in decided}
        pending = [
            making.join(name, why, elsewhere)
            for name, why in disagreements(project, target, owns, left, agreed).items()
        ]
    for name in decided:
        if name in sharers:
            finish(name, agreed[name])
    return futures


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
class _Loss:
    """What optimization took from a layer: paths, and distributions as a whole."""

    paths: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Making:
    """What the steps of building one layer share."""

    project: Project
    target: Target
    plans: dict[str, LayerPlan]
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
        if plan.builds:
            return self.staged(name) / TREE
        return self.project.tree_path(name, plan.lock.target)

    def plain(self, name: str) -> Path:
        """Where a copy of a layer's tree is kept as its wheels have it, to compare with."""
        return self.work / "plain" / name

    def install(self, plan: LayerPlan) -> _Installed:
        started = time.monotonic()
        layer = plan.layer
        tree, scratch = self.tree(layer.name), self.scratch(layer.name)
        scratch.mkdir(parents=True)
        tree.mkdir(parents=True)

        self.tell(Progress(layer.name, "installing"))
        settled = self._install_locked(plan.lock, tree, scratch)
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

    def _install_locked(self, lock: Lock, tree: Path, scratch: Path) -> dict[str, str]:
        """Install what a lock has; which contested files are whose."""
        self.uv.install(lock.packages, lock.target, tree, scratch)
        settled = _settle_contested(lock, self.uv, tree, scratch)
        _refuse_compiled(lock, tree)
        trees.normalize(tree, lock.target, settled)
        return settled

    def as_installed(self, name: str) -> Path:
        """A layer's tree as its wheels have it, own code and all; made where it is not at hand."""
        tree = self.plain(name)
        if not tree.is_dir():
            scratch = self.scratch(f"{name}-as-installed")
            scratch.mkdir(parents=True)
            tree.mkdir(parents=True)
            self._install_locked(self.plans[name].lock, tree, scratch)
            if self.plans[name].layer.has_own_code:
                trees.add_own_code(self.project.own_code(name), tree, f"layers/{name}/src")
        return tree

    def loss(self, name: str, decided: Decided | None = None) -> _Loss:
        """What a layer has lost: by its decision in this run, else as its manifest says."""
        if decided:
            there = {found.name for found in trees.installed(self.tree(name))}
            return _Loss(tuple(sorted(decided.gone)), tuple(sorted(decided.before.keys() - there)))
        current = self.plans[name].current
        done = current.optimized if current else None
        if done is None:
            return _Loss()
        gone = sorted(path for rule in done.rules if rule.rule != SYMBOLS for path in rule.removed)
        return _Loss(tuple(gone), tuple(sorted(done.left_out)))

    def _runtimes_own(self, name: str, left_out: Collection[str]) -> Path:
        """What a layer left to the runtime, at the locked versions: it stands for the runtime's own in proofs."""
        tree = self.work / "runtime" / name
        if not tree.is_dir():
            lock = self.plans[name].lock
            scratch = self.scratch(f"{name}-runtime")
            scratch.mkdir(parents=True)
            tree.mkdir(parents=True)
            packages = [package for package in lock.packages if package.name in left_out]
            self.uv.install(packages, lock.target, tree, scratch)
        return tree

    def make(self, plan: LayerPlan) -> Built:
        """Install and zip a layer as its wheels have it."""
        return self.zip(plan, self.install(plan))

    def join(self, name: str, why: str, elsewhere: Mapping[str, LayerPlan]) -> LayerPlan:
        """Take a layer that lies in its place into the run, to be built, with those that it depends on."""
        for other in (*self.project.layers.dependencies(name), name):
            if other not in self.plans:
                self.plans[other] = elsewhere[other]
        self.plans[name] = replace(self.plans[name], action=Action.BUILD, reason=why)
        return self.plans[name]

    def decide(self, plan: LayerPlan, optimizer: Optimizer, losses: Mapping[str, _Loss]) -> Decided:
        name = plan.layer.name
        below = self.project.layers.dependencies(name)
        lost = {other: losses.get(other) or self.loss(other) for other in below}
        runtime = [self._runtimes_own(other, loss.left_out) for other, loss in lost.items() if loss.left_out]
        paths = {
            str(self.tree(other) / path): (other, path)
            for other, loss in lost.items()
            for path in loss.paths
            if not _is_of(path, loss.left_out)
        }
        subject = Subject(
            plan.layer,
            self.tree(name),
            plan.inputs,
            self.project.layer_folder(name),
            kinship(self.project, name, self.target),
            (*runtime, *(self.tree(other) for other in below)),
            tuple(digest_of(self.plans[other].inputs, lost[other].paths) for other in below),
            Lost(paths, lambda: (*runtime, *(self.as_installed(other) for other in below))),
        )
        if self.compare and not self.plain(name).is_dir():
            shutil.copytree(subject.tree, self.plain(name), symlinks=True)
        return decide(
            subject,
            optimizer,
            self.scratch(name),
            self.work / "bytecode",
            lambda phase: self.tell(Progress(name, phase)),
        )

    def labelled(self, built: Mapping[str, Built]) -> tuple[Built, ...]:
        """The outcome for every layer, with the identities of those it depends on, which are known now."""
        plans = [self.plans[name] for name in self.project.layers if name in self.plans]
        identities = {name: one.manifest.inputs for name, one in built.items()}
        identities |= {plan.layer.name: plan.current.inputs for plan in plans if plan.current and not plan.builds}
        results = []
        for plan in plans:
            name = plan.layer.name
            needed = {other: identities[other] for other in self.project.layers.dependencies(name)}
            if name in built:
                results.append(replace(built[name], manifest=replace(built[name].manifest, depends_on=needed)))
                continue
            assert plan.current is not None  # only a layer with a manifest needs no build
            manifest = replace(plan.current, depends_on=needed)
            changed = dict(plan.current.depends_on) != needed
            if changed:
                self.staged(name).mkdir()
            action, reason = (Action.RELABEL, _RELABELLED) if changed else (Action.NOTHING, "")
            results.append(Built(replace(plan, action=action, reason=reason), manifest))
        return tuple(results)

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
        inputs = whole_identity(plan.inputs, installed.optimized)
        label = Source(f"layerkit/{layer.name}.json", 0, content=_label(plan, inputs))
        written = write_zip(staged / "layer.zip", [*found, label], pool=self.pool, cache=self.cache, advanced=advanced)

        below = {
            entry.path.removeprefix(f"{TREE}/"): entry.size for entry in written.entries if entry.path != label.path
        }
        manifest = Manifest(
            layer=layer.name,
            target=target,
            inputs=inputs,
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
        comparison = self._zipped_plain(layer.name) if self.compare and self.plain(layer.name).is_dir() else None
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
        # What stands for a module that went, or went to the runtime with all its package, has no time to compare.
        stubs = built.manifest.optimized.stubs if built.manifest.optimized else {}
        modules = [module for module in top_level_modules(self.tree(name)) if not is_stub(module, stubs)]
        layer = replace(built.plan.layer, imports=built.plan.layer.imports or tuple(modules))
        if not layer.imports:
            return built
        before, after = import_seconds(layer, forms, optimizer.proof, optimizer.target)
        return replace(built, comparison=replace(built.comparison, import_seconds=before, import_seconds_after=after))


def _is_of(path: str, distributions: Collection[str]) -> bool:
    """Whether a path belongs to one of the distributions that went as a whole; their modules are called as they are."""
    top = path.partition("/")[0]
    return top in distributions or (bool(distributions) and top.endswith(".dist-info"))


def _label(plan: LayerPlan, inputs: str) -> bytes:
    """What a running function can read in ``/opt/layerkit/<layer>.json`` of what it runs with."""
    label = {
        "schema": 1,
        "layer": plan.layer.name,
        "inputs": inputs,
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
        if result.plan.builds:
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
