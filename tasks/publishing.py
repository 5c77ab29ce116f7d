"""publish, usage: layer versions on AWS, and who uses them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import ConfigurationError, Incomplete

from .building import ARCHITECTURE, JSON, LAYER, RUNTIME, changing, for_target
from .settings import Settings, settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.aws import Aws
    from layerkit.environments import Environment
    from layerkit.project import Project
    from layerkit.publishing import Published, PublishPlan, Step
    from layerkit.releasing import Release
    from layerkit.usage import Usage, User

ENVIRONMENT = "the account and regions, as layerkit.environments in invoke.yaml names them"
REGION = "one of the environment's regions; may be repeated (default: all of them)"
_AT_ONCE = 16
"""How many layers and regions are asked about or published at once: what is waited for is AWS, not this machine."""


def environment_named(ctx: Context, name: str | None) -> Environment:
    """The environment that ``--environment`` names."""
    from layerkit.environments import chosen_environment, parse_environments

    return chosen_environment(parse_environments(ctx.config.layerkit.environments), name)


def connected(environment: Environment) -> Aws:
    """What reaches an environment, with its account checked."""
    from layerkit.aws import Aws, check_account

    aws = Aws(environment)
    check_account(aws)
    return aws


def confirm(question: str, yes: bool) -> None:
    """Go on with ``--yes``, or with a person's word; ConfigurationError otherwise."""
    if yes:
        return
    hint = "Nothing was changed. With --yes it is done without a question."
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is nobody to ask.", hint)
    print(f"{question} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigurationError("it was not confirmed.", hint)


# ---- publish ----


@task(
    iterable=["layer", "region"],
    help={
        "layer": LAYER,
        "environment": ENVIRONMENT,
        "region": REGION,
        "runtime": RUNTIME,
        "architecture": ARCHITECTURE,
        "dry_run": "ask AWS what is there, say what would be done, and change nothing",
        "allow_unverified": "publish what could not be checked on this machine",
        "yes": "don't ask: for a protected environment, and for versions that everybody may use",
        "json": JSON,
    },
)
def publish(
    ctx: Context,
    layer: Sequence[str] | None = None,
    environment: str | None = None,
    region: Sequence[str] | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    dry_run: bool = False,
    allow_unverified: bool = False,
    yes: bool = False,
    json: bool = False,
) -> Outcome:
    """Publish the built and validated layers as layer versions, unless the same content is there already."""
    from layerkit.publishing import Journal, plan_publish, read_arns

    chosen = settings(ctx, runtime=runtime, architecture=architecture)
    dry_run = dry_run or bool(ctx.config.run.dry)
    with changing(chosen, "inv publish") as project:
        names = for_target(project, chosen.target, layer or ())
        to = environment_named(ctx, environment)
        regions = to.selected(region or ())
        read_arns(project.root, to)  # what is wrong with the file is said before anything is published
        wanted = _releases(chosen, project, names, to, allow_unverified)
        aws = connected(to)
        journal = Journal(project.state / "publishing" / f"{to.name}.json")
        plan = plan_publish(aws, wanted, regions, journal, jobs=_AT_ONCE)
        if dry_run:
            return Outcome(_document(plan, (), dry_run), lambda: _show_plan(plan))
        _confirm_plan(plan, yes)
        published = _publish(aws, plan, journal, project)
    for one in published:
        if one.error:
            say(f"not done: {one.step.name}: {one.error.message}")
    code = _exit_code(plan, published)
    return Outcome(_document(plan, published, dry_run), lambda: _show_published(plan, published), code)


def _releases(
    chosen: Settings, project: Project, names: Sequence[str], environment: Environment, allow_unverified: bool
) -> tuple[Release, ...]:
    from layerkit.releasing import releases
    from layerkit.standing import standings

    standing = standings(project, {}, chosen.target, chosen.optimizer(chosen.target))
    return releases(project, standing, names, environment.licence, allow_unverified=allow_unverified)


def _confirm_plan(plan: PublishPlan, yes: bool) -> None:
    environment = plan.environment
    reasons = []
    if environment.protected and plan.changes:
        reasons.append(f"{environment.name} is protected ({_count(plan)}).")
    if plan.public:
        names = ", ".join(step.name for step in plan.public)
        reasons.append(f"Everybody would be allowed to use what is published of {names}, as the version before is.")
    if reasons:
        for step in plan.steps:
            say(_planned(step))
        confirm(" ".join(reasons), yes)


def _publish(aws: Aws, plan: PublishPlan, journal: Any, project: Project) -> tuple[Published, ...]:
    from layerkit.publishing import publish as publish_all
    from layerkit.publishing import write_arns

    done: list[Published] = []

    def tell(one: Published) -> None:
        done.append(one)
        if one.arn and one.step.changes:
            say(f"{one.step.name}: {_became(one)}")

    try:
        published = publish_all(aws, plan, journal, jobs=_AT_ONCE, tell=tell)
    except BaseException:
        made = [one for one in done if one.arn]
        write_arns(project.root, plan.environment, made)
        say(f"interrupted: {len(made)} of {len(plan.steps)} are there; the same command does what is missing.")
        raise
    write_arns(project.root, plan.environment, published)
    return published


def _exit_code(plan: PublishPlan, published: Sequence[Published]) -> int:
    """5 where not all was done; the first failure itself, as an error, where nothing was."""
    failed = [one for one in published if one.error]
    if not failed:
        return 0
    first = failed[0].error
    assert first is not None
    if not any(one.arn for one in failed) and len(failed) == sum(step.changes for step in plan.steps):
        raise type(first)(f"nothing was published: {failed[0].step.name}: {first.message}", first.hint)
    say(f"{len(failed)} of {len(published)} were not published, or not as a whole. {first.hint}".rstrip())
    say("The same command does what is missing.")
    return Incomplete.exit_code


def _count(plan: PublishPlan) -> str:
    from layerkit.publishing import Action

    number = sum(step.action is Action.PUBLISH for step in plan.steps)
    return f"{number} of {len(plan.steps)} to be published"


def _planned(step: Step) -> str:
    from layerkit.publishing import Action

    if step.action is Action.PUBLISH:
        what = [f"a new version, after {step.newest}" if step.newest else "the first version"]
        what += [f"through the bucket {step.bucket}"] if step.bucket else []
    else:
        assert step.version is not None
        what = [f"already there as version {step.version.number}"]
    what += [f"allows {permission}" for permission in step.permissions]
    what += [f"SSM parameter {step.parameter}"] if step.parameter else []
    return f"{step.name}: {'; '.join(what)}"


def _show_plan(plan: PublishPlan) -> None:
    for step in plan.steps:
        print(_planned(step))
    _notes(plan)
    print(f"{_count(plan)}. Nothing was changed (--dry-run).")


def _became(one: Published) -> str:
    from layerkit.publishing import Action

    if one.step.action is Action.PRESENT:
        return f"already there as version {one.version}"
    if not one.version:
        return "not published"
    return f"version {one.version}{' (the answer was lost, and it was there)' if one.recovered else ''}"


def _show_published(plan: PublishPlan, published: Sequence[Published]) -> None:
    from .output import size, table

    rows = [
        (one.step.release.layer, one.step.region, _became(one), size(one.step.release.size), one.arn)
        for one in published
    ]
    title = f"{plan.environment.name} ({plan.environment.account})"
    table(title, ("Layer", "Region", "Result", "Zip", "ARN"), rows, right=("Zip",))
    _notes(plan)


def _notes(plan: PublishPlan) -> None:
    for step in plan.steps:
        for note in step.notes:
            print(f"note: {step.name}: {note}")


def _document(plan: PublishPlan, published: Sequence[Published], dry_run: bool) -> dict[str, Any]:
    from layerkit.publishing import Published

    done = published or [
        Published(step, step.version.arn if step.version else "", step.version.number if step.version else 0)
        for step in plan.steps
    ]
    return {
        "schema": 1,
        "environment": plan.environment.name,
        "account": plan.environment.account,
        "dry_run": dry_run,
        "versions": [
            {
                "layer": one.step.release.layer,
                "target": str(one.step.release.target),
                "region": one.step.region,
                "action": one.step.action.value,
                "version": one.version or None,
                "arn": one.arn or None,
                "recovered": one.recovered,
                "sha256": one.step.release.sha256,
                "size": one.step.release.size,
                "description": one.step.release.description,
                "bucket": one.step.bucket or None,
                "permissions": [
                    {
                        "statement": permission.statement,
                        "principal": permission.principal,
                        "organization": permission.organization or None,
                    }
                    for permission in one.step.permissions
                ],
                "parameter": one.step.parameter or None,
                "notes": list(one.step.notes),
                "error": one.error.message if one.error else None,
            }
            for one in done
        ],
    }


# ---- usage ----


@task(
    iterable=["layer", "region"],
    help={"layer": LAYER, "environment": ENVIRONMENT, "region": REGION, "json": JSON},
)
def usage(
    ctx: Context,
    layer: Sequence[str] | None = None,
    environment: str | None = None,
    region: Sequence[str] | None = None,
    json: bool = False,
) -> Outcome:
    """Show which functions, published versions and aliases use which layer version, and what nobody uses."""
    from layerkit.usage import find_usage

    project = settings(ctx).project()
    names = project.selected(layer or ())
    of = environment_named(ctx, environment)
    regions = of.selected(region or ())
    found = find_usage(connected(of), names, regions, jobs=_AT_ONCE)
    today = datetime.now(UTC).date()
    document = {
        "schema": 1,
        "environment": of.name,
        "account": of.account,
        "versions": [
            {
                "layer": one.layer,
                "region": one.region,
                "version": version.number,
                "arn": version.arn,
                "created": version.created,
                "description": version.description,
                "runtimes": list(version.runtimes),
                "architectures": list(version.architectures),
                "used_by": [
                    {"function": user.function, "version": user.version, "aliases": list(user.aliases)}
                    for user in found.users_of(one.layer, one.region, version.number)
                ],
            }
            for one in found.layers
            for version in one.versions
        ],
        "functions": [_user_document(user, today) for user in found.users],
        "not_known": [
            {"what": one.check, "region": one.subject, "reason": one.reason, "hint": one.hint} for one in found.skipped
        ],
    }
    return Outcome(document, lambda: _show_usage(of, found, today), 4 if found.skipped else 0)


def _user_document(user: User, today: date) -> dict[str, Any]:
    return {
        "function": user.function,
        "region": user.region,
        "arn": user.arn,
        "version": user.version,
        "aliases": list(user.aliases),
        "runtime": user.runtime,
        "architecture": user.architecture,
        "layers": [
            {"layer": one.layer, "version": one.number, "newest": one.newest or None, "behind": one.is_behind}
            for one in user.layers
        ],
        "behind": user.is_behind,
        "runtime_ends": user.runtime_ends(today),
        "deprecated": user.deprecated.isoformat() if user.deprecated else None,
        "block_update": user.block_update.isoformat() if user.block_update else None,
        "stack": user.stack or None,
    }


def _show_usage(environment: Environment, found: Usage, today: date) -> None:
    from .output import skips, table

    rows = [
        (
            one.layer,
            one.region,
            str(version.number),
            version.created[:10],
            ", ".join(map(_called, found.users_of(one.layer, one.region, version.number))) or "nobody",
        )
        for one in found.layers
        for version in one.versions
    ]
    if rows:
        title = f"Layer versions in {environment.name} ({environment.account})"
        table(title, ("Layer", "Region", "Version", "Published", "Used by"), rows, right=("Version",))
    for one in found.layers:
        if not one.versions:
            print(f"{one.layer} is not published in {one.region}.")
    for user in found.users:
        _show_user(user, today)
    skips(found.skipped)


def _show_user(user: User, today: date) -> None:
    name = f"{_called(user)} in {user.region}"
    behind = [f"{one.layer} {one.number} -> {one.newest}" for one in user.layers if one.is_behind]
    if user.serves and behind:
        print(f"behind: {name}: {', '.join(behind)}")
    if user.serves and user.runtime_ends(today):
        if user.deprecated is None:
            print(f"runtime: {name}: {user.runtime or 'an image'} is not a Python runtime that AWS lists")
        else:
            word = "deprecated since" if user.deprecated <= today else "deprecated from"
            print(f"runtime: {name}: {user.runtime} is {word} {user.deprecated}; no updates from {user.block_update}")
    if user.stack and user.version == "$LATEST":
        print(
            f"owner: {name}: the CloudFormation stack {user.stack}: its next deployment puts back the layers of its "
            "template"
        )


def _called(user: User) -> str:
    aliases = f" ({', '.join(user.aliases)})" if user.aliases else ""
    return f"{user.function}{'' if user.version == '$LATEST' else ':' + user.version}{aliases}"
