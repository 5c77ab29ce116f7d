"""Where a scan gets its advisories: the OSV service, the local database, or PyPI; and what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from layerkit.advisories import Advisory
from layerkit.advisorydb import Store
from layerkit.errors import ExternalError
from layerkit.osv import Service, serve

OLD = timedelta(days=7)
"""From this age on, data of advisories is called old."""

SOURCES = ("auto", "osv", "pypi", "local")


@dataclass(frozen=True)
class Source:
    """Where advisories come from, as it was settled for one scan."""

    name: str
    """``osv``, ``pypi`` or ``local``."""
    shown: str
    """What to call it: an address's host, or the local database."""
    query_url: str | None
    """Where pip-audit asks in OSV's way; None: it asks PyPI in PyPI's, or nobody where there is a problem."""
    details: Callable[[str, str], tuple[Advisory, ...]] | None = None
    """The advisories about a distribution at a version, whole; None where only pip-audit's words are to be had."""
    date: datetime | None = None
    """How old the data is; None for a service, whose data is today's."""
    notes: tuple[str, ...] = ()
    problem: str = ""
    """Why it can't be asked; empty when it can."""
    hint: str = ""
    """What to do about the problem, or when it gives no answer about a distribution."""


@contextmanager
def opened(choice: str, url: str, store: Path, now: datetime) -> Iterator[Source]:
    """The source for ``--source`` (one of SOURCES), open as long as the context.

    ``url`` is that of the OSV service, ``store`` the local database, which ``auto`` falls back on. One that can't be
    asked is a Source with a problem. ConfigurationError for an address that is none.
    """
    with ExitStack() as stack:
        yield _source(stack, choice, url, store, now)


def _source(stack: ExitStack, choice: str, url: str, store: Path, now: datetime) -> Source:
    if choice == "local":
        return _local(stack, store, now)
    if choice == "pypi":
        return _pypi(stack, store)
    service = Service(url)
    why_not = service.unreachable().rstrip(".")
    if not why_not:
        return Source("osv", service.name, service.query_url, service.advisories_of, hint=_INSTEAD)
    local = _local(stack, store, now) if choice == "auto" else None
    if local is None:
        return Source("osv", service.name, service.query_url, problem=why_not, hint=_NO_SERVICE)
    if local.problem:
        problem = f"{why_not}, and in its place: {local.problem}"
        return Source("osv", service.name, service.query_url, problem=problem, hint=local.hint)
    note = f"the local database was asked, since the service could not be: {why_not}"
    return replace(local, notes=(note, *local.notes))


_INSTEAD = "Try it again later, or use the local database: --source local (inv advisories-update makes it)."
_NO_SERVICE = "Check the network and layerkit.osv_url, or use the local database: --source auto or --source local."


def _local(stack: ExitStack, path: Path, now: datetime) -> Source:
    try:
        store = stack.enter_context(_checked(path))
    except ExternalError as error:
        problem = error.message.rstrip(".")
        return Source("local", "the local database", None, problem=problem, hint=error.hint)
    service = stack.enter_context(serve(store))
    notes = []
    if now - store.date > OLD:
        days = (now - store.date).days
        notes.append(
            f"the newest advisory of the local database is {days} days old; what was published since is not in it: "
            "inv advisories-update"
        )
    renew = "Renew it: inv advisories-update."
    return Source("local", "the local database", service.query_url, store.query, store.date, tuple(notes), hint=renew)


def _checked(path: Path) -> Store:
    store = Store.open(path)
    try:
        store.check()
    except ExternalError:
        store.close()
        raise
    return store


def _pypi(stack: ExitStack, path: Path) -> Source:
    """PyPI's own service, which gives no severities; they are the local database's, where there is one."""
    hint = "Ask another source about it: --source auto, osv or local."
    try:
        store = stack.enter_context(_checked(path))
    except ExternalError:
        note = "PyPI gives no severities; with a local database they would be known: inv advisories-update"
        return Source("pypi", "PyPI", None, notes=(note,), hint=hint)
    note = (
        f"PyPI gives no severities; those here, and what PyPI does not tell of, are from the local database of "
        f"{store.date:%Y-%m-%d}"
    )
    return Source("pypi", "PyPI", None, store.query, notes=(note,), hint=hint)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
