"""doctor: what this machine and this checkout have to work with."""

from __future__ import annotations

from datetime import UTC, datetime

from invoke.context import Context

from .building import JSON
from .settings import settings
from .support import Outcome, task


@task(help={"json": JSON})
def doctor(ctx: Context, json: bool = False) -> Outcome:
    """Show interpreters, tools, caches, credentials and the checkout's state; exit with 3 on a problem."""
    from layerkit.diagnosing import Condition, diagnose
    from layerkit.project import load_what_loads

    from .output import table

    chosen = settings(ctx)
    project, broken = load_what_loads(chosen.root, chosen.default_target)
    found = diagnose(
        project, broken, chosen.interpreters, chosen.optimizer(chosen.default_target), datetime.now(UTC).date()
    )
    document = {
        "schema": 1,
        "diagnoses": [
            {
                "topic": one.topic,
                "name": one.name,
                "condition": one.condition.value,
                "detail": one.detail,
                "advice": one.advice,
            }
            for one in found
        ],
    }
    marks = {Condition.THERE: "✓", Condition.MISSING: "-", Condition.PROBLEM: "✗"}

    def show() -> None:
        for topic in dict.fromkeys(one.topic for one in found):
            rows = [
                (f"{marks[one.condition]} {one.name}", one.detail, one.advice) for one in found if one.topic == topic
            ]
            table(topic.capitalize(), ("Name", "Condition", "To know"), rows)
        problems = [one for one in found if one.condition is Condition.PROBLEM]
        print(f"{len(problems)} to mend (✗)." if problems else "Nothing to mend.")

    problem = any(one.condition is Condition.PROBLEM for one in found)
    return Outcome(document, show, 3 if problem else 0)
