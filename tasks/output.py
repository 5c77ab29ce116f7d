"""What people see: tables on stdout, progress on stderr. rich obeys NO_COLOR and knows whether it is on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from threading import Lock

from layerkit.building import Progress
from layerkit.model import Finding, Severity, Skipped

from .support import say


def size(value: int) -> str:
    """Bytes in binary units, as AWS counts."""
    from humanize import naturalsize

    return naturalsize(value, binary=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on stdout; columns named in ``right`` are aligned right."""
    # Not by rich itself, which ends the process with exit code 1 when whoever read stdout has enough.
    print(table_text(title, columns, rows, right), end="")


def table_text(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A table as text: in colours and as wide as the terminal where stdout is one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))  # as it is: what others wrote may have brackets
    if not console.is_terminal:
        console = Console(width=200)  # a log has no width: there nothing is folded or cut
    with console.capture() as text:
        console.print(shown)
    return text.get()


def findings(found: Sequence[Finding]) -> None:
    """Print findings on stdout, errors first, each with what to do."""
    for finding in sorted(found, key=lambda finding: finding.severity is not Severity.ERROR):
        print(f"{finding.severity.value}: {finding.subject}: {finding.message}")
        if finding.hint:
            print(f"  {finding.hint}")


def skips(skipped: Sequence[Skipped]) -> None:
    """Print what could not be checked, each reason once with all that it holds for."""
    subjects: dict[tuple[str, str, str], list[str]] = {}
    for one in skipped:
        subjects.setdefault((one.check, one.reason, one.hint), []).append(one.subject)
    for (check, reason, hint), names in subjects.items():
        print(f"not checked: {check} of {', '.join(names)}: {reason}")
        if hint:
            print(f"  {hint}")


def age(since: str, now: datetime) -> str:
    """How long ago an ISO 8601 time was, in words."""
    from humanize import naturaltime

    return naturaltime(now - datetime.fromisoformat(since))


@contextmanager
def progress_of_checks() -> Iterator[Callable[[str, str], None]]:
    """Show which check of what is running: a spinner on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda subject, check: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking") as shown:
        yield lambda subject, check: shown.update(f"{subject}: {check}")


@contextmanager
def progress(verbose: bool) -> Iterator[Callable[[Progress], None]]:
    """Show how far each layer is: bars on a terminal, else one line for each new phase (all with ``verbose``)."""
    if not sys.stderr.isatty():
        yield _lines(verbose)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
    )
    bars = Bars(*columns, console=Console(stderr=True), transient=not verbose)
    rows: dict[str, TaskID] = {}
    width = 0

    def show(step: Progress) -> None:
        nonlocal width
        width = max(width, len(step.layer))
        if step.layer not in rows:
            rows[step.layer] = bars.add_task(step.layer, total=None)
        description = f"{step.layer:{width}} {step.phase:10}"
        bars.update(rows[step.layer], description=description, completed=step.done, total=step.total or None)

    with bars:
        yield show


def _lines(verbose: bool) -> Callable[[Progress], None]:
    shown: set[tuple[str, str]] = set()
    lock = Lock()

    def show(step: Progress) -> None:
        with lock:
            if (step.layer, step.phase) not in shown:
                shown.add((step.layer, step.phase))
                if verbose or step.phase != "zipping":
                    say(f"{step.layer}: {step.phase}")

    return show
