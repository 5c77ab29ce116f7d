"""Layers that nobody tuned anything for: one to a package, built and optimized with the rules as they are by default.

Whether a module that imported still does is not taken from the build: every module of the tree as the wheels have it
and of the optimized one is imported once more, by a program that shares nothing with the optimizer. What is printed is
a Markdown document: ``inv bench packages > docs/packages.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layerkit.interpreters import find_interpreter
from layerkit.probing import lambda_environment

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = "3.13"
"""The Python version of the default target."""

PACKAGES: dict[str, str] = {
    "pyarrow": "pyarrow==26.0.1",
    "cryptography": "cryptography==50.0.2 cffi==2.1.1 pycparser==3.12",
    "lxml": "lxml==6.1.3",
    "pillow": "pillow==13.0.0",
    "statsmodels": (
        "statsmodels==0.15.0 formulaic==1.2.2 interface-meta==2.0.1 narwhals==2.29.0 numpy==2.5.5 "
        "packaging==26.3 pandas==3.1.1 patsy==1.0.3 python-dateutil==4.0.0 scipy==1.18.1 "
        "typing-extensions==4.16.0 tzdata==2026.6 wrapt==2.5.2"
    ),
    "sympy": "sympy==1.14.0 mpmath==1.3.0",
    "matplotlib": (
        "matplotlib==3.11.2 contourpy==1.4.0 cycler==0.12.1 fonttools==4.68.0 kiwisolver==1.5.1 "
        "numpy==2.5.5 packaging==26.3 pillow==13.0.0 pyparsing==3.3.3 python-dateutil==4.0.0 "
        "tzdata==2026.6"
    ),
    "pydantic": (
        "pydantic==2.14.4 annotated-types==0.8.0 pydantic-core==2.50.5 typing-extensions==4.16.0 "
        "typing-inspection==0.4.5"
    ),
    "fastapi": (
        "fastapi==0.165.0 annotated-doc==0.0.7 annotated-types==0.8.0 anyio==4.16.0 idna==3.20 "
        "opentelemetry-api==1.45.2 pydantic==2.14.4 pydantic-core==2.50.5 starlette==1.10.0 "
        "typing-extensions==4.16.0 typing-inspection==0.4.5"
    ),
    "SQLAlchemy": "SQLAlchemy==2.1.9 typing-extensions==4.16.0",
    "shapely": "shapely==2.2.0 numpy==2.5.5",
    "aiohttp": (
        "aiohttp==3.14.5 aiohappyeyeballs==2.7.1 aiosignal==1.4.0 attrs==26.1.0 frozenlist==1.8.0 "
        "idna==3.20 multidict==7.2.1 propcache==0.5.4 yarl==1.25.1"
    ),
    "psycopg[binary]": "psycopg[binary]==3.3.9",
    "openpyxl": "openpyxl==3.1.5 et-xmlfile==2.0.0",
    "opencv-python-headless": "opencv-python-headless==5.0.0.93 numpy==2.5.5",
}
"""Each package with everything that it needs, pinned, so that the table can be had again."""

_LARGE = 'max_size_mb = {}\nlimit_reason = "its wheels are larger than the usual limit"\n'
SETTINGS = {
    "opencv-python-headless": _LARGE.format(220),
    "pyarrow": _LARGE.format(220),
    "statsmodels": _LARGE.format(250),
    # By itself psycopg_binary does not import: it wants psycopg to have been imported before.
    "psycopg[binary]": 'imports = ["psycopg"]\n',
}
"""The layer.toml of those that can't be built without one."""


# ---- which modules import ----

# Runs in the target's interpreter: imports each module in a process of its own, forked from the one that has imported
# the package it is in. Its report says what came of each: a digest of the public names, or an error.
SWEEP = """
import hashlib, importlib, json, os, signal, site, sys
with open(sys.argv[1]) as file:
    request = json.load(file)
report = os.open(request["report"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
if request["prefix"]:
    sys.pycache_prefix, sys.dont_write_bytecode = request["prefix"], False
sys.argv[1:] = []
sys.path.insert(0, request["tree"])
site.setquit(), site.setcopyright(), site.sethelper()
site.addsitedir(request["tree"])
below = {}
for name in sorted(request["modules"]):
    package = name.rpartition(".")[0]
    while package and package not in below:
        package = package.rpartition(".")[0]
    below.setdefault(package, []).append(name)
    below[name] = []

def say(name, result, value):
    os.write(report, (json.dumps([name, result, value]) + "\\n").encode())

def lost(name, package):
    for module in below[name]:
        say(module, "error", "its package " + package + " does not import")
        lost(module, package)

def visit(name):
    process = os.fork()
    if process:
        os.waitpid(process, 0)
        return
    own = os.getpid()
    signal.alarm(request["seconds"])
    try:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None)
        names = [word for word in dir(module) if word[:1] != "_"] if names is None else map(str, names)
        found = "names", hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()
    except BaseException as error:
        found = "error", (type(error).__name__ + ": " + str(error))[:300]
    signal.alarm(0)
    if os.getpid() != own:
        os._exit(0)
    say(name, *found)
    if found[0] == "names":
        for module in below[name]:
            visit(module)
    else:
        lost(name, name)
    os._exit(0)

for name in below.get("", []):
    visit(name)
"""


@dataclass(frozen=True)
class Swept:
    """What came of importing modules: a digest of the public names of each that imports, an error for the others."""

    names: Mapping[str, str]
    errors: Mapping[str, str]

    def lost(self, after: Swept) -> dict[str, str]:
        """The modules that import here and no longer do afterwards, each with why."""
        return {name: after.errors[name] for name in sorted(self.names) if name in after.errors}

    def renamed(self, after: Swept) -> list[str]:
        """The modules that import both times, with other public names."""
        return sorted(name for name, digest in self.names.items() if after.names.get(name, digest) != digest)


NOT_SWEPT = Swept({}, {})

_MODULE = re.compile(rf"([^.]+)\.(py|so|abi3\.so|cpython-{VERSION.replace('.', '')}-[^.]+\.so)")


def modules_outside_tests(tree: Path) -> list[str]:
    """The modules of a tree by dotted name: all that an import statement can name outside of folders of tests."""
    found = set()
    for file in tree.rglob("*"):
        *folders, name = file.relative_to(tree).parts
        match = _MODULE.fullmatch(name)
        if not match or match[1] in ("__main__", "conftest") or folders[:1] == ["bin"]:
            continue
        dotted = folders if match[1] == "__init__" else [*folders, match[1]]
        if all(word.isidentifier() for word in dotted) and not {"test", "tests"}.intersection(folders):
            found.add(".".join(dotted))
    return sorted(found - {""})


def sweep(python: Path, tree: Path, modules: Sequence[str], scratch: Path, *, prefix: bool = False) -> Swept:
    """Import each module of ``tree`` in a process of its own; ``scratch`` is a folder that is not there yet.

    With ``prefix`` bytecode is written beside the tree, which makes it quicker where a tree has none. A module of
    which nothing was heard (its process crashed, or its time was up) is tried a second time by itself.
    """
    found: dict[str, tuple[str, str]] = {}
    scratch.mkdir(parents=True)

    def ask(names: Sequence[str], number: int) -> None:
        home = scratch / str(number)
        home.mkdir()
        request = {
            "tree": str(tree),
            "report": str(home / "report"),
            "modules": list(names),
            "prefix": str(scratch / "bytecode") if prefix else "",
            "seconds": 120,
        }
        (home / "request").write_text(json.dumps(request))
        subprocess.run(
            [python, "-I", "-S", "-B", "-c", SWEEP, home / "request"],
            cwd=home,
            env=lambda_environment(str(home)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=3600,
            check=False,
        )
        for line in (home / "report").read_text().splitlines():
            name, result, value = json.loads(line)
            found[name] = (result, value)

    ask(modules, 0)
    for number, name in enumerate([name for name in modules if name not in found]):
        ask([name], number + 1)
    errors = {name: found[name][1] if name in found else "its process ended" for name in modules}
    names = {name: value for name, (result, value) in found.items() if result == "names"}
    return Swept(names, {name: error for name, error in errors.items() if name not in names})


# ---- one package ----


@dataclass
class Row:
    """What was found out about one package; sizes are bytes, ``seconds`` those of the whole optimized build."""

    package: str
    plain: dict[str, Any] = field(default_factory=dict)
    """The manifest of the build as the wheels have it."""
    optimized: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    before: Swept = NOT_SWEPT
    after: Swept = NOT_SWEPT
    findings: list[str] = field(default_factory=list)
    """What validation said and let pass."""
    problems: list[str] = field(default_factory=list)
    """What must not be: a build that failed, a module that was lost."""


def measure(package: str, folder: Path, python: Path) -> Row:
    """Build a layer with ``package`` twice in the new folder ``folder``, and import all that it has both times."""
    row = Row(package)
    name = package.partition("[")[0].lower()
    layer = folder / "project" / "layers" / name
    layer.mkdir(parents=True)
    (layer / "requirements.txt").write_text("\n".join(PACKAGES[package].split()) + "\n")
    if package in SETTINGS:
        (layer / "layer.toml").write_text(SETTINGS[package])
    shutil.copy(ROOT / "invoke.yaml", folder / "project")

    plain = _build(folder, "--skip-validation", "--skip-optimization")
    if "error" in plain:
        row.problems.append(f"the build as the wheels have it failed: {plain['error']['message']}")
        return row
    row.plain = plain["layers"][0]["manifest"]
    os.rename(layer / "python", folder / "plain")
    shutil.rmtree(folder / "cache")

    started = time.perf_counter()
    optimized = _build(folder)
    row.seconds = time.perf_counter() - started
    if "error" in optimized:
        row.problems.append(f"the build failed: {optimized['error']['message']}")
        optimized = _build(folder, "--skip-validation")
        if "error" in optimized:
            row.problems.append(f"without validation it failed too: {optimized['error']['message']}")
            return row
    row.optimized = optimized["layers"][0]["manifest"]
    row.findings = [f"{found['check']}: {found['message']}" for found in optimized["layers"][0]["findings"]]
    row.findings += [f"{name} had not ended its import in time" for name in row.optimized["optimized"]["late"]]

    modules = modules_outside_tests(folder / "plain")
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        before = pool.submit(sweep, python, folder / "plain", modules, folder / "before", prefix=True)
        after = pool.submit(sweep, python, layer / "python", modules, folder / "after")
        row.before, row.after = before.result(), after.result()
    row.problems += [f"{name} no longer imports: {why}" for name, why in row.before.lost(row.after).items()]
    row.problems += [f"{name} has other public names" for name in row.before.renamed(row.after)]
    return row


def _build(folder: Path, *options: str) -> dict[str, Any]:
    """What ``inv build --json`` prints; nothing is cached but the wheels, unless in ``folder`` already."""
    environment = {
        **os.environ,
        "LAYERKIT_ROOT": str(folder / "project"),
        "LAYERKIT_CACHE_DIR": str(folder / "cache"),
    }
    command = [str(ROOT / "scripts" / "inv"), "build", "--json", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}") from None
    assert isinstance(document, dict)
    return document


# ---- the document ----

COLUMNS = (
    *("package", "as its wheels have it", "optimized", "of it bytecode", "without bytecode", "zipped"),
    *("modules before", "modules after", "seconds", "what stays of the proposals, and for which import"),
)


TEXT = """\
# Layers that nobody tuned for

A layer to a package, each with what the package needs. Four have a `layer.toml`: opencv-python-headless, pyarrow and
statsmodels for another limit than the usual one, and psycopg for `imports`, since psycopg_binary does not import before
psycopg has been. Nothing else is set. They are built for python{VERSION}-x86_64 with the rules that are on by default.
Printed on {date} by `inv bench packages`, with CPython {python} as the target's own and uv {uv}, on {processors}
processors. `tests/bench/bench_packages.py` has the versions of all that a layer carries.

Sizes are bytes. *Modules* are those outside of folders of tests. Each was imported in a process of its own, in the tree
as the wheels have it and in the optimized one, apart from what the build itself had proven; those that did not import
before need something that the package does not require. *Seconds* are those of `inv build` with validation, where
nothing but the wheels was cached.
"""


def document(rows: Sequence[Row]) -> str:
    done = next((row.optimized["optimized"]["interpreter"] for row in rows if row.optimized), VERSION)
    text = TEXT.format(
        VERSION=VERSION,
        date=datetime.now(UTC).date(),
        python=done.split()[0],
        uv=version("uv"),
        processors=os.cpu_count(),
    )
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" + "--:|" * (len(COLUMNS) - 2) + "---|", *map(line, rows)]
    problems = [f"- {row.package}: {problem}" for row in rows for problem in row.problems]
    if not problems:
        problems = ["Every layer was let in. No module was lost, and none has other public names than before."]
    findings = [f"- {row.package}: {finding}" for row in rows for finding in row.findings]
    if findings:
        findings = ["", "Validation let pass, and said:", "", *findings]
    return "\n".join([text, *table, "", *problems, *findings]) + "\n"


def line(row: Row) -> str:
    asked = f"{row.package} {PACKAGES[row.package].split()[0].partition('==')[2]}"
    cells = [asked, *["?"] * (len(COLUMNS) - 1)]
    if row.plain:
        cells[1] = f"{row.plain['tree']['size']:,}"
    if row.optimized:
        before, after = row.plain["tree"]["size"], row.optimized["tree"]["size"]
        done = row.optimized["optimized"]
        cells[2:] = [
            f"{after:,}",
            f"{done['bytecode_size']:,}",
            f"{100 * (after - done['bytecode_size'] - before) / before:+.0f}%",
            f"{row.optimized['zip']['size']:,}",
            f"{len(row.before.names):,} of {len(row.before.names) + len(row.before.errors):,}",
            f"{len(row.after.names):,}",
            f"{row.seconds:.1f}",
            "; ".join(narrowed(rule) for rule in done["rules"] if rule["restored"]),
        ]
    return "| " + " | ".join(cells) + " |"


def narrowed(rule: Mapping[str, Any]) -> str:
    needed = sorted(set(rule["restored"].values()))
    more = f" and {len(needed) - 3} more" if len(needed) > 3 else ""
    files = len(rule["restored"])
    return f"{rule['rule']} ({rule['outcome']}): {files} files, {', '.join(f'`{name}`' for name in needed[:3])}{more}"


def target_python() -> Path:
    """The target's interpreter; SystemExit where this machine has none."""
    found = find_interpreter(VERSION)
    if not found:
        raise SystemExit(f"there is no Python {VERSION} on this machine, so there is nothing to import with.")
    return found.path


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", choices=list(PACKAGES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    python = target_python()
    (ROOT / ".layerkit").mkdir(exist_ok=True)
    rows = []
    for package in options.only or PACKAGES:
        with tempfile.TemporaryDirectory(dir=ROOT / ".layerkit", prefix="bench-") as folder:
            rows.append(measure(package, Path(folder), python))
        note(f"{package}: {'; '.join(rows[-1].problems) or 'done'}")
    print(document(rows), end="")
    if options.json:
        found = [
            {
                "package": row.package,
                "versions": {entry["name"]: entry["version"] for entry in row.plain.get("distributions", ())},
                "size_before": row.plain["tree"]["size"] if row.plain else None,
                "size": row.optimized["tree"]["size"] if row.optimized else None,
                "zip_size": row.optimized["zip"]["size"] if row.optimized else None,
                "optimized": row.optimized.get("optimized"),
                "modules_before": sorted(row.before.names),
                "fail_before": dict(row.before.errors),
                "modules_after": sorted(row.after.names),
                "seconds": row.seconds,
                "findings": row.findings,
                "problems": row.problems,
            }
            for row in rows
        ]
        options.json.write_text(json.dumps({"schema": 1, "packages": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
