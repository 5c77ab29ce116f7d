"""test, lint, bench: for whoever changes this project. Each has an environment of its own, made when first needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from invoke.context import Context

from layerkit.errors import ConfigurationError, ExternalError

from .settings import find_root
from .support import Outcome, say, task

VERSIONS = ("3.11", "3.12", "3.13")
"""The Python versions that the suite runs on."""


def _environment(root: Path, name: str, python: Path) -> Path:
    """The interpreter of the environment ``name``, made or refreshed from ``requirements/<name>.txt``."""
    from uv import find_uv_bin

    from layerkit.files import checkout_lock, write_whole
    from layerkit.processes import run, without_secrets

    requirements = root / "requirements" / f"{name}.txt"
    version = run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], cwd=root).stdout.strip()
    folder = root / ".venvs" / f"{name}-{version}"
    stamp = folder / "layerkit-requirements.txt"
    with checkout_lock(folder.parent, f"setting up {name}", lambda holder: say(f"waiting for {holder} ...")):
        if stamp.exists() and stamp.read_bytes() == requirements.read_bytes():
            return folder / "bin" / "python"
        say(f"setting up .venvs/{folder.name} ...")
        uv = find_uv_bin()
        for command in (
            ["venv", "--quiet", "--clear", "--no-project", "--python", str(python), str(folder)],
            ["pip", "sync", "--quiet", "--require-hashes", "--python", str(folder / "bin" / "python"), requirements],
        ):
            done = run([uv, *command], cwd=root)
            if done.code != 0:
                explanation = without_secrets(done.stderr).strip()
                raise ExternalError(f"the environment {folder.name} can't be made:\n{explanation}")
        write_whole(stamp, requirements.read_bytes())
    return folder / "bin" / "python"


def _run(command: Sequence[str | Path], root: Path) -> int:
    """Run a program with this terminal as its own; its exit code."""
    return subprocess.run([str(word) for word in command], cwd=root, check=False).returncode


def _run_side_by_side(commands: Mapping[str, Sequence[str | Path]], root: Path) -> dict[str, int]:
    """Run several programs, one for each processor at once, with their names before each line; their exit codes."""

    def one(name: str) -> int:
        command = [str(word) for word in commands[name]]
        with subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                print(f"{name} | {line}", end="", flush=True)
        return process.returncode

    with ThreadPoolExecutor(min(len(commands), os.cpu_count() or 1)) as pool:
        return dict(zip(commands, pool.map(one, commands), strict=True))


@task(
    help={
        "python": "the Python version to test on, such as 3.12 (default: this one; with CI=true all that are found)",
        "select": "only tests whose names match (pytest's -k)",
        "path": "only the tests in this file or folder",
    }
)
def test(ctx: Context, python: str | None = None, select: str | None = None, path: str | None = None) -> Outcome:
    """Run the test suite."""
    from layerkit.interpreters import find_interpreter

    root = find_root()
    in_ci = os.environ.get("CI") == "true"
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [python] if python else list(VERSIONS) if in_ci else [own]
    found: dict[str, Path] = {}
    for version in wanted:
        other = None if version == own else find_interpreter(version)
        if version == own or other:
            found[version] = other.path if other else Path(sys.executable)
        elif python:
            raise ExternalError(f"there is no Python {version} on this machine.", "Install it, or choose another.")
    arguments = ["-k", select] if select else []
    arguments += [path] if path else []
    suites: dict[str, list[str | Path]] = {
        version: [_environment(root, "test", interpreter), "-m", "pytest", *arguments]
        for version, interpreter in found.items()
    }
    if len(suites) == 1:
        codes = {version: _run(command, root) for version, command in suites.items()}
    else:
        codes = _run_side_by_side(suites, root)
    failed = [version for version, code in codes.items() if code != 0]

    missing = [version for version in wanted if version not in found]
    document = {"schema": 1, "ran": list(found), "failed": failed, "missing": missing}

    def show() -> None:
        if missing:
            print(f"not run, since this machine has none: Python {', '.join(missing)}")
        print(f"tests: {'failed on Python ' + ', '.join(failed) if failed else 'passed on Python ' + ', '.join(found)}")

    return Outcome(document, show, 3 if failed else 0)


@task()
def lint(ctx: Context) -> Outcome:
    """Check the project with ruff and mypy."""
    root = find_root()
    python = _environment(root, "lint", Path(sys.executable))
    checks: dict[str, list[str | Path]] = {
        "ruff format": [python, "-m", "ruff", "format", "--check", "--diff", "."],
        "ruff check": [python, "-m", "ruff", "check", "."],
        "mypy": [python, "-m", "mypy"],
        # tasks.py has the module name of the folder tasks/, so it gets a run of its own
        "mypy tasks.py": [python, "-m", "mypy", "tasks.py"],
    }
    failed = [name for name, command in checks.items() if _run(command, root) != 0]
    document = {"schema": 1, "checks": list(checks), "failed": failed}
    return Outcome(
        document, lambda: print(f"lint: {'failed: ' + ', '.join(failed) if failed else 'clean'}"), 3 if failed else 0
    )


BENCHES = ("build", "optimize", "packages", "validate")


@task(
    positional=["name"],
    help={
        "name": f"what to measure: {', '.join(BENCHES)}",
        "rounds": "how many interleaved rounds (default: 7; packages are each built once)",
        "json_output": "also write the figures to this file",
    },
)
def bench(ctx: Context, name: str, rounds: int = 7, json_output: str | None = None) -> Outcome:
    """Measure this project against what it replaces: interleaved rounds, medians, ratios."""
    if name not in BENCHES:
        raise ConfigurationError(f"there is no bench called {name!r}.", f"Benches: {', '.join(BENCHES)}.")
    if rounds < 1:
        raise ConfigurationError(f"--rounds must be 1 or more, not {rounds}.")
    root = find_root()
    command = [sys.executable, "-m", f"tests.bench.bench_{name}"]
    command += [] if name == "packages" else ["--pairs", str(rounds)]
    command += ["--json", str(Path(json_output).absolute())] if json_output else []
    code = _run(command, root)
    return Outcome({"schema": 1, "exit_code": code}, lambda: None, 0 if code == 0 else 4)
