"""security-scan, advisories-update, sbom: what is known to be wrong with what the layers carry."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import ConfigurationError

from .building import ARCHITECTURE, JSON, LAYER, RUNTIME, for_target
from .settings import Settings, settings
from .support import Outcome, say, task

if TYPE_CHECKING:
    from layerkit.judging import Suspicion, Vulnerability
    from layerkit.model import Skipped
    from layerkit.project import Project
    from layerkit.scanning import Scan, Scanner
    from layerkit.sources import Source

FORMATS = ("text", "json", "markdown", "sarif")
LEVELS = ("low", "medium", "high", "critical", "any")


@task(
    iterable=["layer"],
    help={
        "layer": LAYER,
        "source": "where advisories come from: auto (the OSV service, else the local database), osv, pypi, or local",
        "fail_on": "what counts: low, medium, high, critical and above, or any (the default); unknown always does",
        "skip_safety": "do without safety's opinion",
        "format": "text, json, markdown or sarif",
        "output": "write it to this file: a new one below the checkout, or a former one in reports/",
        "runtime": RUNTIME,
        "architecture": ARCHITECTURE,
        "verbose": "show what was scanned, and where the time went",
        "json": JSON,
    },
)
def security_scan(
    ctx: Context,
    layer: Sequence[str] | None = None,
    source: str = "auto",
    fail_on: str = "any",
    skip_safety: bool = False,
    format: str = "text",
    output: str | None = None,
    runtime: str | None = None,
    architecture: str | None = None,
    verbose: bool = False,
    json: bool = False,
) -> Outcome:
    """Scan the built layers for known vulnerabilities, secrets and suspicious files."""
    from layerkit.sources import SOURCES

    one_of("--source", source, SOURCES)
    one_of("--fail-on", fail_on, LEVELS)
    one_of("--format", format, FORMATS)
    chosen = settings(ctx, runtime=runtime, architecture=architecture)
    to = _inside(chosen.root, output)
    found = run_scan(chosen, chosen.project(), layer or (), source=source, fail_on=fail_on, skip_safety=skip_safety)
    text = rendered(found, format, verbose)
    if to:
        from layerkit.files import write_whole

        write_whole(to, re.sub(r"\x1b\[[\d;]*m", "", text))  # colours are for the terminal
        text = f"{_headline(found)}\nWritten to {to.relative_to(chosen.root).as_posix()}.\n"
    return Outcome(scan_document(found), lambda: print(text, end=""), found.exit_code)


def one_of(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigurationError(f"{flag}: {value!r} is not one of {', '.join(known)}.")


REPORTS = "reports"
"""The folder below the checkout where files may be written over."""


def _inside(root: Path, output: str | None) -> Path | None:
    """A file below the checkout that may be written; ConfigurationError for any other place."""
    if output is None:
        return None
    path = (root / output).resolve()
    if not output or not path.is_relative_to(root) or path == root or path.is_dir():
        raise ConfigurationError(f"--output: {output!r} is not a file below the checkout.")
    top = _refuse_own(output, path.relative_to(root))
    if path.exists() and top != REPORTS:
        raise ConfigurationError(f"--output: {output!r} is there already.", f"Write it below {REPORTS}/, or elsewhere.")
    return path


def _refuse_own(output: str, path: Path) -> str:
    """The first part of ``path``, below the checkout; ConfigurationError for a folder whose files are not reports."""
    top = path.parts[0] if path.parts else ""
    if top in ("layers", "dist", ".layerkit", ".git") or top.startswith("tasks"):
        raise ConfigurationError(f"--output: {output!r} is no place for a report.", f"Write it below {REPORTS}/.")
    return top


def run_scan(
    chosen: Settings,
    project: Project,
    layers: Sequence[str] = (),
    *,
    source: str = "auto",
    fail_on: str = "any",
    skip_safety: bool = False,
) -> Scan:
    """Scan what is built in ``project``, the checkout or a draft of it, as the settings and flags say."""
    from layerkit.scanning import scan
    from layerkit.sources import now

    from .output import progress_of_checks

    names = for_target(project, chosen.target, layers)
    with (
        scanner(chosen, project, source=source, fail_on=fail_on, skip_safety=skip_safety) as with_this,
        progress_of_checks() as tell,
    ):
        return scan(project, names, chosen.target, with_this, now().date(), partial(tell, "scanning"))


@contextmanager
def scanner(chosen: Settings, project: Project, *, source: str, fail_on: str, skip_safety: bool) -> Iterator[Scanner]:
    """What a scan runs with: both programs in their environments, the source open."""
    from layerkit import auditing, safety
    from layerkit.advisories import Level
    from layerkit.advisorydb import store_path
    from layerkit.model import Skipped
    from layerkit.scanning import Scanner
    from layerkit.sources import now, opened

    started = time.monotonic()
    python = _environment(auditing.NAME, chosen.root)
    screen: Callable[..., Any] | None = None
    if not skip_safety and chosen.scan.safety != "off":
        second = _environment(safety.NAME, chosen.root)
        screen = _always(second) if isinstance(second, Skipped) else safety.Safety.of(second, os.environ).screen
    exemptions = [*chosen.scan.exemptions]
    for layer in project.layers.values():
        exemptions += layer.exemptions
    ready = time.monotonic()
    with opened(source, chosen.scan.osv_url, store_path(), now()) as asked:
        yield Scanner(
            source=asked,
            audit=python
            if isinstance(python, Skipped)
            else auditing.Auditor(python, asked.query_url, chosen.jobs).audit_trees,
            screen=screen,
            safety_optional=chosen.scan.safety == "optional",
            fail_on=None if fail_on == "any" else Level(fail_on),
            exemptions=tuple(exemptions),
            deny=chosen.scan.licences_deny,
            known_licences=chosen.scan.licences_known,
            jobs=chosen.jobs,
            seconds={
                "environments": round(ready - started, 3),
                "opening the source": round(time.monotonic() - ready, 3),
            },
        )


def _environment(name: str, root: Path) -> Path | Skipped:
    """The interpreter of a program's environment; or why there is none, which leaves the rest of a scan as it is."""
    from layerkit.errors import ExternalError
    from layerkit.model import Skipped
    from layerkit.virtualenvs import environment, requirements_of

    try:
        return environment(name, requirements_of(name), root, say)
    except ExternalError as error:
        return Skipped(name, "", " ".join(error.message.rstrip(".").split()), error.hint)


def _always(answer: Skipped) -> Callable[..., Skipped]:
    return lambda distributions: answer


# ---- as JSON ----


def scan_document(found: Scan) -> dict[str, Any]:
    """The scan for machines: docs/json.md."""
    return {
        "schema": 1,
        "target": str(found.target),
        "layers": list(found.layers),
        "source": _source_document(found.source),
        "safety": None
        if found.safety is None
        else {"date": found.safety.date, "licence": found.safety.licence, "packages": found.safety.packages},
        "distributions": [
            {
                "name": one.name,
                "version": one.version,
                "layers": list(one.layers),
                "result": one.result.value,
                "reasons": list(one.reasons),
            }
            for one in found.distributions
        ],
        "vulnerabilities": [
            {
                "id": one.id,
                "aliases": list(one.aliases),
                "name": one.name,
                "version": one.version,
                "layers": list(one.layers),
                "severity": one.level.value,
                "score": one.score,
                "fixed": one.fixed,
                "summary": one.summary,
                "url": one.url,
                "found_by": list(one.found_by),
                **_standing_document(one),
            }
            for one in found.vulnerabilities
        ],
        "suspects": [
            {
                "id": one.id,
                "layer": one.layer,
                "path": one.file,
                "line": one.suspect.line or None,
                "kind": one.suspect.kind,
                "severity": one.level.value,
                "what": one.suspect.what,
                **_standing_document(one),
            }
            for one in found.suspicions
        ],
        "licences": [
            {
                "layer": checked.subject,
                "detail": checked.detail,
                "banned": [finding.message for finding in checked.findings],
                "not_known": [skipped.reason for skipped in checked.skipped],
            }
            for checked in found.licences
        ],
        "not_scanned": [
            {
                "by": one.by,
                "what": list(one.what),
                "layers": list(one.layers),
                "reason": one.reason,
                "hint": one.hint,
            }
            for one in found.not_scanned
        ],
        "warnings": list(found.warnings),
        "seconds": dict(found.seconds),
        "exit_code": found.exit_code,
    }


def _source_document(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "asked": source.shown,
        "date": source.date.isoformat(timespec="seconds") if source.date else None,
        "problem": source.problem or None,
    }


def _standing_document(one: Vulnerability | Suspicion) -> dict[str, Any]:
    exemption = one.exemption
    return {
        "standing": one.standing.value,
        "exception": None
        if exemption is None
        else {"reason": exemption.reason, "expires": exemption.expires.isoformat(), "where": exemption.where},
    }


# ---- for people ----

_SUMMARY = 80
"""How many characters of a summary a table shows."""


def rendered(found: Scan, form: str, verbose: bool = False) -> str:
    """The scan in one of FORMATS; ``verbose``, in text: each distribution, and where the time went."""
    if form == "json":
        import json

        return json.dumps(scan_document(found), indent=2) + "\n"
    if form == "sarif":
        return _sarif(found)
    return _markdown(found) if form == "markdown" else _text(found, verbose)


def _headline(found: Scan) -> str:
    return f"Security scan of {', '.join(found.layers)} for {found.target}: {_verdict(found)}"


def _verdict(found: Scan) -> str:
    """What came of it, and whether there is something to do, in one line."""
    things = _things(found)
    if not found.is_whole:
        first = "NOT ALL COULD BE SCANNED, so nothing here is known to be clean"
        return f"{first}; to act on: {', '.join(things)}." if things else f"{first}."
    if things:
        return f"to act on: {', '.join(things)}."
    accepted = sum(one.standing.value == "exempt" for one in found.all)
    below = sum(one.standing.value == "below" for one in found.all)
    rest = [f"{accepted} accepted by exceptions"] if accepted else []
    rest += [f"{below} less severe than what counts"] if below else []
    return (
        f"nothing to act on: {_count(len(found.distributions), 'distribution')} and no known vulnerability, no "
        f"suspicious file{' but ' + ', '.join(rest) if rest else ''}."
    )


def _things(found: Scan) -> list[str]:
    """What was found and counts, in a few words each."""
    weak = [one for one in found.vulnerabilities if one.standing.counts]
    suspicious = [one for one in found.suspicions if one.standing.counts]
    things = []
    if weak:
        carrying = len({(one.name, one.version) for one in weak})
        number = len({(one.name, one.version, one.id) for one in weak})
        levels = _levels([one for _, one in {(one.name, one.version, one.id): one for one in weak}.items()])
        things.append(
            f"{carrying} of {_count(len(found.distributions), 'distribution')} with "
            f"{_count(number, 'known vulnerability', 'known vulnerabilities')} ({levels})"
        )
    if suspicious:
        things.append(f"{_count(len(suspicious), 'suspicious file')} ({_levels(suspicious)})")
    if found.banned:
        things.append(f"{_count(found.banned, 'distribution')} under a licence that is banned")
    return things


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _levels(found: Sequence[Vulnerability | Suspicion]) -> str:
    counts = Counter(one.level.value for one in found)
    words = {"unknown": "of unknown severity"}
    return ", ".join(
        f"{counts[level]} {words.get(level, level)}"
        for level in ("critical", "high", "unknown", "medium", "low")
        if counts[level]
    )


def _text(found: Scan, verbose: bool) -> str:
    counting = [one for one in found.vulnerabilities if one.standing.counts]
    rest = [one for one in found.vulnerabilities if not one.standing.counts]
    tables = [_table("Known vulnerabilities", counting)] if counting else []
    tables += [_table("Known vulnerabilities that do not count", rest)] if rest else []
    lines: list[str] = []
    for other in found.suspicions:
        at = f":{other.suspect.line}" if other.suspect.line else ""
        why = f" ({_why(other)})" if _why(other) else ""
        lines.append(f"{other.level.value}: {other.layer}: {other.file}{at}: {other.suspect.what}{why}")
    for checked in found.licences:
        for finding in checked.findings:
            lines += _with_hint(f"licence: {checked.subject}: {finding.message}", finding.hint)
        for skipped in checked.skipped:
            lines += _with_hint(f"not checked: {checked.subject}: {skipped.reason}", skipped.hint)
    for gap in found.not_scanned:
        lines += _with_hint(gap.line, gap.hint)
    lines += [f"warning: {warning}" for warning in found.warnings]
    lines += _asked(found)
    lines += _advice(found)
    if verbose:
        lines += [
            f"{one.name} {one.version} ({', '.join(one.layers)}): {'; '.join([one.result.value, *one.reasons])}"
            for one in found.distributions
        ]
        lines += [f"{what}: {seconds:.2f} s" for what, seconds in found.seconds.items()]
    return "\n".join([_shown(_headline(found)), *tables, *map(_shown, lines)]) + "\n"


def _with_hint(line: str, hint: str) -> list[str]:
    return [line, f"  {hint}"] if hint else [line]


def _table(title: str, found: Sequence[Vulnerability]) -> str:
    """A line for each vulnerability; what a distribution is called is there once."""
    from .output import table_text

    rows = []
    before: tuple[str, str, tuple[str, ...]] | None = None
    for one in found:
        about = (one.name, one.version, one.layers)
        first = (f"{one.name} {one.version}", ", ".join(one.layers)) if about != before else ("", "")
        before = about
        cells = (_severity(one), _names(one), one.fixed or "no fix known", ", ".join(one.found_by), _what(one))
        rows.append([_shown(cell) for cell in (*first, *cells)])
    columns = ("Distribution", "Layers", "Severity", "Advisory", "Fixed in", "Found by", "What")
    return table_text(title, columns, rows).rstrip("\n")


def _severity(one: Vulnerability) -> str:
    return one.level.value + (f" {one.score:.1f}" if one.score is not None else "")


def _names(one: Vulnerability) -> str:
    """Its id, and the numbers that everybody knows it by."""
    return " ".join([one.id, *[alias for alias in one.aliases if alias.startswith("CVE-")][:2]])


def _what(one: Vulnerability) -> str:
    """Why it counts all the same or does not, and what it is, cut to what a table can show."""
    why = _why(one)
    if one.standing.value == "exempt":
        return why
    summary = one.summary if len(one.summary) <= _SUMMARY else one.summary[: _SUMMARY - 1].rstrip() + "…"
    return f"{why}: {summary}" if why else summary


def _why(one: Vulnerability | Suspicion) -> str:
    exemption = one.exemption
    if exemption is None:
        return "less severe than what counts" if one.standing.value == "below" else ""
    if one.standing.counts:
        return f"no longer accepted since {exemption.expires}"
    return f"accepted until {exemption.expires}, {exemption.reason}"


def _advice(found: Scan) -> list[str]:
    counting = [one for one in found.vulnerabilities if one.standing.counts]
    lines = []
    if any(one.fixed for one in counting):
        lines.append("What to do: inv update --security raises what can be raised, or changes nothing.")
    if not all(one.fixed for one in counting):
        lines.append("What to do where no fix is known: do without the distribution, or accept it: docs/security.md.")
    if any(one.suspect.kind == "secret" and one.standing.counts for one in found.suspicions):
        lines.append("What to do about a secret: take it out, and replace it wherever it is used: it has been copied.")
    return lines


def _shown(text: str) -> str:
    """Text of others as one line that a terminal can take: a name with a line's end in it begins no line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def asked_lines(source: Source) -> list[str]:
    """Who was asked about advisories and how old that is, with what else is to be known of it, a line each.

    No line for one that could not be asked, but for its warnings.
    """
    lines = [f"warning: {note}" for note in source.notes]
    if not source.problem:
        lines.append(f"Advisories are those of {_dated(source)}.")
    return list(map(_shown, lines))


def _dated(source: Source) -> str:
    return source.shown + (f" (newest advisory: {source.date:%Y-%m-%d})" if source.date else "")


def _asked(found: Scan) -> list[str]:
    """Who was asked, in one line; none where nobody was."""
    asked = [f"pip-audit asked {_dated(found.source)}"] if found.asked else []
    if found.safety:
        licence = f"; {found.safety.licence}" if found.safety.licence else ""
        asked.append(f"safety asked its database (of {found.safety.date[:10] or 'an unknown day'}{licence})")
    return [f"Asked: {'; '.join(asked)}."] if asked else []


def _markdown(found: Scan) -> str:
    lines = [f"## Security scan for {found.target}", "", _cell(_headline(found)), ""]
    if found.vulnerabilities:
        columns = ("distribution", "layers", "severity", "advisory", "fixed in", "found by", "what")
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for one in found.vulnerabilities:
            name = _cell(_names(one))
            linked = f"[{name}]({one.url})" if re.fullmatch(r"https://[\w./~:%-]+", one.url) else name
            before = [f"{one.name} {one.version}", ", ".join(one.layers), _severity(one)]
            after = [one.fixed or "no fix known", ", ".join(one.found_by), _what(one)]
            lines.append(f"| {' | '.join([*map(_cell, before), linked, *map(_cell, after)])} |")
        lines.append("")
    points = []
    for other in found.suspicions:
        at = f":{other.suspect.line}" if other.suspect.line else ""
        why = f" ({_why(other)})" if _why(other) else ""
        points.append(f"{other.level.value}: {other.layer}: {other.file}{at}: {other.suspect.what}{why}")
    for checked in found.licences:
        points += [f"licence: {checked.subject}: {finding.message}" for finding in checked.findings]
        points += [f"not checked: {checked.subject}: {skipped.reason}" for skipped in checked.skipped]
    points += [one.line for one in found.not_scanned]
    points += [f"warning: {warning}" for warning in found.warnings]
    lines += [f"- {_cell(point)}" for point in points]
    return "\n".join([*lines, "", *map(_cell, [*_asked(found), *_advice(found)])]) + "\n"


def _cell(text: str) -> str:
    """Text of others in Markdown, as what it says and no more."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(_shown(text).split()))


def _sarif(found: Scan) -> str:
    from layerkit import __version__
    from layerkit.sarif import NotScanned, Result, render_sarif, sarif_document

    results = [
        Result(
            one.id,
            one.level.value,
            f"{one.name} {one.version} in {', '.join(one.layers)}: {one.summary or one.id}"
            + (f"; fixed in {one.fixed}" if one.fixed else "")
            + f"; found by {', '.join(one.found_by)}",
            f"layers/{layer}/locks/{found.target}.txt",
            found.lines.get((layer, one.name)),
            help_uri=one.url,
            fingerprint=f"{one.id}/{one.name}/{layer}",
            title=one.summary,
            score=one.score,
        )
        for one in found.vulnerabilities
        for layer in one.layers
        if one.standing.counts
    ]
    results += [
        Result(
            f"suspect/{other.suspect.kind}",
            other.level.value,
            f"{other.layer}: {_shown(other.suspect.what)}; found by layerkit",
            other.file,
            other.suspect.line or None,
            fingerprint=f"{other.layer}/{other.id}",
        )
        for other in found.suspicions
        if other.standing.counts
    ]
    for checked in found.licences:
        lock = f"layers/{checked.subject}/locks/{found.target}.txt"
        results += [Result("licence", "medium", finding.message, lock) for finding in checked.findings]
    missed = [NotScanned(one.line) for one in found.not_scanned]
    for checked in found.licences:
        missed += [NotScanned(f"{checked.subject}: {skipped.reason}") for skipped in checked.skipped]
    return render_sarif(sarif_document(results, missed, __version__))


# ---- advisories-update ----


@task(
    help={
        "from_": "a copy of OSV's archive for PyPI (all.zip), or a folder of its documents; else it is downloaded",
        "json": JSON,
    },
)
def advisories_update(ctx: Context, from_: str | None = None, json: bool = False) -> Outcome:
    """Bring the local database of advisories up to date, for scans without a network."""
    from layerkit.advisorydb import import_archive, store_path
    from layerkit.osv import shown_address, update

    chosen = settings(ctx)
    path = store_path()
    if from_ is None:
        say(f"downloading {shown_address(chosen.scan.advisories_url)} ...")
        edition = update(path, chosen.scan.advisories_url, waiting=say)
    else:
        archive = Path(from_).expanduser()
        if not from_ or not archive.exists():
            raise ConfigurationError(f"--from: {from_!r} does not exist.", "Name a copy of OSV's all.zip for PyPI.")
        path.parent.mkdir(parents=True, exist_ok=True)
        edition = import_archive(archive, path, waiting=say)
    document = {
        "schema": 1,
        "advisories": edition.count,
        "date": edition.date.isoformat(timespec="seconds"),
        "source": edition.source,
    }
    return Outcome(
        document,
        lambda: print(
            f"{edition.count} advisories, the newest of {edition.date:%Y-%m-%d}, are in the local database now."
        ),
    )


# ---- sbom ----


@task(
    iterable=["layer"],
    help={
        "layer": LAYER,
        "output": "the folder to write to, below the checkout (default: reports/sbom)",
        "runtime": RUNTIME,
        "architecture": ARCHITECTURE,
        "json": JSON,
    },
)
def sbom(
    ctx: Context,
    layer: Sequence[str] | None = None,
    output: str = "reports/sbom",
    runtime: str | None = None,
    architecture: str | None = None,
    json: bool = False,
) -> Outcome:
    """Write a bill of materials (CycloneDX) for each built layer: distributions, hashes, licences, who needs whom."""
    from layerkit.builds import builds
    from layerkit.errors import CheckFailed
    from layerkit.files import write_whole
    from layerkit.licences import licence_of
    from layerkit.sbom import sbom as render
    from layerkit.scanning import build_command
    from layerkit.trees import installed

    from .output import size

    chosen = settings(ctx, runtime=runtime, architecture=architecture)
    project = chosen.project()
    folder = (chosen.root / output).resolve()
    if not output or not folder.is_relative_to(chosen.root) or folder.is_file():
        raise ConfigurationError(f"--output: {output!r} is not a folder below the checkout.")
    _refuse_own(output, folder.relative_to(chosen.root))
    names = for_target(project, chosen.target, layer or ())
    built = builds(project, chosen.target)
    missing = [name for name in names if name not in built]
    if missing:
        hint = "; ".join(build_command(project, name, chosen.target) for name in missing)
        raise CheckFailed(f"{', '.join(missing)} is not built for {chosen.target}.", hint)
    texts = {}
    for name in names:
        one = built[name]
        licences = [licence_of(distribution, chosen.scan.licences_known) for distribution in installed(one.tree)]
        texts[folder / f"{name}-{chosen.target}.cdx.json"] = render(one.layer, one.manifest, one.tree, licences)
    for path, text in texts.items():
        write_whole(path, text)
    shown = {path: path.relative_to(chosen.root).as_posix() for path in texts}
    document = {"schema": 1, "target": str(chosen.target), "files": list(shown.values())}
    return Outcome(
        document, lambda: print("\n".join(f"{shown[path]} ({size(len(text))})" for path, text in texts.items()))
    )
