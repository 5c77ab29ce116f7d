"""optimize: what may go from the layers, tried and proven."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from .building import ARCHITECTURE, JSON, LAYER, RUNTIME, changing, for_target, lock_first
from .settings import settings
from .support import Outcome, task

if TYPE_CHECKING:
    from layerkit.building import Built
    from layerkit.model import Target
    from layerkit.project import Project


@task(
    iterable=["layer", "rule", "skip_rule"],
    help={
        "layer": LAYER,
        "rule": "also apply this rule, for this once; may be repeated (layer.toml: rules)",
        "skip_rule": "leave this rule out, for this once; may be repeated (layer.toml: skip_rules)",
        "runtime": RUNTIME,
        "architecture": ARCHITECTURE,
        "dry_run": "propose and prove, and change nothing",
        "list_rules": "list the rules: what each removes, and why that should be safe",
        "explain": "say which rule removed this file, or why it stays (a path below python/)",
        "jobs": "how much to do side by side (default: one for each processor)",
        "verbose": "name every path that stays because something needs it, and every module that never imported",
        "json": JSON,
    },
)
def optimize(
    ctx: Context,
    layer: Sequence[str] | None = None,
    rule: Sequence[str] | None = None,
    skip_rule: Sequence[str] | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    dry_run: bool = False,
    list_rules: bool = False,
    explain: str | None = None,
    jobs: int = 0,
    verbose: bool = False,
    json: bool = False,
) -> Outcome:
    """Make layers smaller and faster to import, proving that nothing which worked stops working."""
    from layerkit.building import build, plan_build
    from layerkit.installer import Uv

    from .output import progress

    if list_rules:
        return _list_rules(settings(ctx).project())
    chosen = settings(ctx, runtime=runtime, architecture=architecture, jobs=jobs)
    if explain is not None:
        return _explain(chosen.project(), chosen.target, layer or (), explain)
    optimizer = chosen.optimizer(chosen.target)
    dry_run = dry_run or bool(ctx.config.run.dry)
    with changing(chosen, "inv optimize") as checkout:
        project = _with_rules(checkout, rule or (), skip_rule or ())
        names = for_target(project, chosen.target, layer or ())
        lock_first(project, chosen.target, names, locked=dry_run)
        plans = plan_build(project, chosen.target, names, optimizer=optimizer, force=True)
        with progress(verbose) as tell:
            built = build(
                project,
                plans,
                uv=Uv(project.root),
                jobs=chosen.jobs,
                means=chosen.means(chosen.target),
                optimizer=optimizer,
                let_in=not dry_run,
                compare=True,
                tell=tell,
            )
    document = {
        "schema": 1,
        "target": str(chosen.target),
        "dry_run": dry_run,
        "layers": [_document(result) for result in built],
    }
    return Outcome(document, lambda: _show(built, dry_run, verbose))


def _with_rules(project: Project, rules: Sequence[str], skipped: Sequence[str]) -> Project:
    """The project with rules turned on and off, as the flags say, in the layers that have them.

    A flag counts more than what layer.toml says. Raises ConfigurationError for a rule that no layer has, that is both
    on and skipped, or that lacks its list in every layer.
    """
    from layerkit.model import Layers, Optimization
    from layerkit.rules import rule_names, rules_for

    all_options = [layer.optimization for layer in project.layers.values()]
    rules_for(
        Optimization(
            rules=tuple(rules),
            skip_rules=tuple(skipped),
            services=tuple(name for options in all_options for name in options.services),
            only=tuple(name for options in all_options for name in options.only),
            removes={name: modules for options in all_options for name, modules in options.removes.items()},
        )
    )
    layers = []
    for layer in project.layers.values():
        options, here = layer.optimization, rule_names(layer.optimization)
        on = [*(name for name in options.rules if name not in skipped), *(name for name in rules if name in here)]
        off = [*(name for name in options.skip_rules if name not in rules), *(name for name in skipped if name in here)]
        changed = replace(options, rules=tuple(dict.fromkeys(on)), skip_rules=tuple(dict.fromkeys(off)))
        layers.append(replace(layer, optimization=changed))
    return replace(project, layers=Layers(layers))


def _list_rules(project: Project) -> Outcome:
    from layerkit.rules import BUILT_IN

    from .output import table

    rows = [
        (rule.name, "on" if rule.default else "off", rule.removes, rule.because)
        for rule in sorted(BUILT_IN, key=lambda rule: not rule.default)
    ]
    rows.append(
        (
            "debug-symbols",
            "on",
            "debug symbols of extension modules, never under *.libs",
            "what is loaded stays byte for byte the same, and each is loaded once; needs a strip tool",
        )
    )
    rows.append(
        (
            "services",
            "off",
            "botocore's data of the services that layer.toml does not list under `services`",
            "a client of a service reads its own data only",
        )
    )
    rows.append(
        (
            "only",
            "off",
            "of the packages of the modules that layer.toml lists under `only`, all other modules",
            "what the listed ones or others load or import, and its data, stays",
        )
    )
    for layer in project.layers.values():
        for name, modules in layer.optimization.removes.items():
            default = "off" if name in layer.optimization.skip_rules else "on"
            rows.append((name, default, ", ".join(modules), f"layers/{layer.name}/layer.toml says so"))
    document = [dict(zip(("name", "default", "removes", "because"), row, strict=True)) for row in rows]
    return Outcome(
        {"schema": 1, "rules": document},
        lambda: table("Rules", ("Name", "By default", "Removes", "Why that should be safe"), rows),
    )


def _explain(project: Project, target: Target, named: Sequence[str], asked: str) -> Outcome:
    from layerkit.builds import builds
    from layerkit.errors import ConfigurationError
    from layerkit.project import below_tree
    from layerkit.rules import explain

    path = posixpath.normpath(below_tree(asked))
    if path == "." or path.startswith(".."):
        raise ConfigurationError(
            f"--explain: {asked!r} is no path in a layer.", "Give one below python/, such as numpy/testing/__init__.py."
        )
    found = []
    built = builds(project, target)
    for name in project.selected(named):
        one = built.get(name)
        if one is None:
            why = "there is no build of it"
        elif one.manifest.optimized is None:
            why = "its build was not optimized: all is as its wheels made it"
        else:
            why = explain(path, one.tree, project.layers[name].optimization.keep, one.manifest.optimized)
        found.append((name, why))
    document = {"schema": 1, "path": path, "layers": [{"layer": name, "explanation": why} for name, why in found]}
    return Outcome(document, lambda: print("\n".join(f"{name}: {path}: {why}" for name, why in found)))


def _document(built: Built) -> dict[str, Any]:
    from layerkit.manifests import manifest_document

    manifest, compared = built.manifest, built.comparison
    document = manifest_document(manifest)
    return {
        "layer": manifest.layer,
        "size": manifest.tree.size,
        "size_before": compared.size if compared else None,
        "zip_size": manifest.zip.size,
        "zip_size_before": compared.zip_size if compared else None,
        "import_seconds": compared.import_seconds_after if compared else None,
        "import_seconds_before": compared.import_seconds if compared else None,
        "optimized": document["optimized"],
    }


def _show(built: Sequence[Built], dry_run: bool, verbose: bool) -> None:
    from layerkit.rules import needed_by

    from .output import size, table

    rows = []
    for result in built:
        manifest = result.manifest
        for rule in manifest.optimized.rules if manifest.optimized else ():
            why = [needed_by(reason) for reason in sorted(set(rule.restored.values()))]
            stay = (
                [f"{len(rule.restored)} files stay: {'; '.join(why[:3])}{' ...' if len(why) > 3 else ''}"]
                if why
                else []
            )
            notes = "; ".join([*stay, *([rule.note] if rule.note else [])])
            rows.append((manifest.layer, rule.rule, str(rule.files), size(rule.size), rule.outcome, notes))
    columns = ("Layer", "Rule", "Files", "Saved", "Outcome", "Why")
    table("Optimization, a dry run" if dry_run else "Optimization", columns, rows, right=("Files", "Saved"))
    if verbose:
        for result in built:
            for rule in result.manifest.optimized.rules if result.manifest.optimized else ():
                for path, reason in rule.restored.items():
                    print(f"{result.manifest.layer}: {path} stays: {needed_by(reason)}")
    _compare(built)
    for result in built:
        done = result.manifest.optimized
        if done is None:
            continue
        name = result.manifest.layer
        if done.unverified and any(rule.outcome == "transferred" for rule in done.rules):
            print(f"{name}: nothing was proven here ({done.unverified}).")
            print("  What was decided on the other architecture for the same distributions was done (transferred).")
        elif done.unverified:
            print(f"{name}: nothing was proven ({done.unverified}); only what needs no proof was done.")
            print("  What is decided where it can be run holds here too: optimize it there, with the same results.")
        else:
            print(f"{name}: {done.modules} modules import as before.")
        for note in done.notes:
            print(f"  note: {note}")
        if done.failing:
            more = ":" if verbose else ", and nothing is proven for them (--verbose lists them)."
            print(f"  {len(done.failing)} modules do not import with everything in place either{more}")
            for module in done.failing if verbose else ():
                print(f"    import {module}: nothing is proven for it")
        for module in done.late:
            print(f"  import {module} had not ended in time with everything in place: nothing is proven for it.")
        if done.left_out:
            listed = ", ".join(f"{other} {version}" for other, version in done.left_out.items())
            print(f"  left to the runtime, whose versions are other ones: {listed}")
    if dry_run:
        print("Nothing was changed (dry run).")


def _compare(built: Sequence[Built]) -> None:
    """Before and after, a line a layer."""
    from .output import size, table

    rows = []
    for result in built:
        compared, manifest = result.comparison, result.manifest
        if compared is None or manifest.optimized is None:
            continue
        before, after = compared.import_seconds, compared.import_seconds_after
        rows.append(
            (
                manifest.layer,
                f"{size(compared.size)} -> {size(manifest.tree.size)}",
                size(manifest.optimized.bytecode_size),
                f"{size(compared.zip_size)} -> {size(manifest.zip.size)}",
                "not timed" if before is None or after is None else f"{before:.2f} s -> {after:.2f} s",
            )
        )
    if rows:
        columns = ("Layer", "Unzipped", "of it bytecode", "Zipped", "Imports")
        table("Before and after", columns, rows, right=columns[1:])
