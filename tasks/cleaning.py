"""clean: what was built goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from invoke.context import Context

from .building import JSON
from .settings import settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.cleaning import CleanPlan


@task(
    iterable=["layer"],
    help={
        "layer": "a layer whose builds go, for all targets; may be repeated (default: all layers)",
        "all": "also what belongs to no layer: builds of layers that are gone, half-made builds, reports",
        "dry_run": "only say what would be removed (Invoke's own -R means the same)",
        "json": JSON,
    },
)
def clean(
    ctx: Context,
    layer: Sequence[str] | None = None,
    all: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> Outcome:
    """Remove what was built: trees, zips, manifests, results of checks; never requirements, locks, code or history."""
    from layerkit.cleaning import apply_clean, plan_clean
    from layerkit.files import checkout_lock

    root = settings(ctx).root
    only_say = dry_run or bool(ctx.config.run.dry)
    plan = plan_clean(root, layer or (), everything=all)
    # Where there is nothing to remove, nothing is written either, not even the lock.
    if plan.steps and not only_say:
        with checkout_lock(root / ".layerkit", "inv clean", lambda holder: say(f"waiting for {holder} to finish ...")):
            plan = plan_clean(root, layer or (), everything=all)
            apply_clean(plan)
    steps = [{"path": step.path, "files": step.files, "size": step.size} for step in plan.steps]
    document = {"schema": 1, "dry_run": only_say, "steps": steps, "files": plan.files, "size": plan.size}
    return Outcome(document, lambda: _show(plan, "would be removed" if only_say else "removed"))


def _show(plan: CleanPlan, what: str) -> None:
    from .output import size

    if not plan.steps:
        print("nothing to remove")
        return
    width = max(len(step.path) for step in plan.steps)
    for step in plan.steps:
        print(f"{step.path:{width}}  {size(step.size):>10}")
    print(f"{what}: {plan.files:,} {'file' if plan.files == 1 else 'files'}, {size(plan.size)}")
