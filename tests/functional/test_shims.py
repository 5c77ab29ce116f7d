"""The guide's scripts: their words become tasks, whose exit codes they keep."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.namespace import ns
from tests.support.checkouts import REPOSITORY

RECORDER = """#!/bin/sh
# Stands in for scripts/inv: lists $TASKS, and says with what words it was called.
[ "$*" = --list ] && { printf 'Subcommands:\\n\\n'; for task in $TASKS; do echo "  $task   Is there."; done; exit 0; }
printf '%s\\n' "$@"
exit "${ANSWER:-0}"
"""
ALL = "build clean lock optimize report status validate"


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The scripts in a folder with a space in its name, with a recorder as their ``inv``."""
    folder = tmp_path / "a clone" / "scripts"
    folder.mkdir(parents=True)
    for path in (REPOSITORY / "scripts").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "inv").write_text(RECORDER)
    return folder


def call(
    scripts: Path, name: str, *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    interpreter = [sys.executable] if name.endswith(".py") else []
    return subprocess.run(
        [*interpreter, str(scripts / name), *words],
        cwd=cwd,
        env={**os.environ, "TASKS": ALL, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What is typed, and the task that it has to become: the words of the guide first.
CALLS = [
    ("manage-layers.sh status", "status"),
    ("manage-layers.sh build all", "build"),
    ("manage-layers.sh build core-data-science", "build --layer=core-data-science"),
    ("manage-layers.sh optimize all", "optimize"),
    ("manage-layers.sh validate all", "validate"),
    ("manage-layers.sh report all", "report"),
    ("manage-layers.sh clean all", "clean"),
    ("manage-layers.sh clean core-data-science", "clean --layer=core-data-science"),
    ("manage-layers.sh validate", "validate"),
    ("manage-layers.sh build 'a b; $(c) *'", "build '--layer=a b; $(c) *'"),
    ("manage-layers.sh clean ''", "clean --layer="),
    ("layer-utils.py optimize --layer core-data-science", "optimize --layer=core-data-science"),
    ("layer-utils.py optimize --layer core --verbose", "optimize --layer=core --verbose"),
    ("layer-utils.py validate --layer core", "validate --layer=core"),
    ("layer-utils.py validate --verbose --layer 'a b'", "validate '--layer=a b' --verbose"),
    ("size-validation.py validate --target layers", "validate --target=layers --only=size"),
    ("size-validation.py validate --target functions", "validate --target=functions --only=function-size"),
    ("size-validation.py report --format text", "report --format=text"),
    ("size-validation.py report --format json", "report --format=json"),
    ("size-validation.py report", "report --format=text"),
    ("build.sh --layers-only", "build"),
    ("build.sh --layers-only --verbose", "build --verbose"),
    ("build.sh --layers-only --skip-validation", "build --skip-validation"),
    ("build.sh --verbose --skip-validation", "build --verbose --skip-validation"),
    ("build.sh", "build"),
]


@pytest.mark.parametrize(("typed", "task"), CALLS)
def test_words_become_a_task(scripts: Path, tmp_path: Path, typed: str, task: str) -> None:
    name, *words = shlex.split(typed)
    done = call(scripts, name, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == shlex.split(task)


def test_the_tasks_that_there_are_know_these_flags() -> None:
    checked = set()
    for _, task in CALLS:
        name, *flags = shlex.split(task)
        if name in ns.tasks:
            known = {spelling for argument in ns.tasks[name].get_arguments() for spelling in argument.names}
            assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= known, task
            checked.add(name)
    assert {"build", "clean"} <= checked


@pytest.mark.parametrize("code", [2, 3, 4, 5, 130])
@pytest.mark.parametrize(
    "typed",
    ["manage-layers.sh build all", "layer-utils.py validate --layer a", "build.sh", "size-validation.py report"],
)
def test_exit_codes_are_the_tasks(scripts: Path, typed: str, code: int) -> None:
    assert call(scripts, *shlex.split(typed), ANSWER=str(code)).returncode == code


@pytest.mark.parametrize(
    ("typed", "task"),
    [
        ("manage-layers.sh report all", "report"),
        ("layer-utils.py optimize --layer a", "optimize"),
        ("size-validation.py report", "report"),
        ("build.sh", "build"),
    ],
)
def test_a_task_that_is_not_there_yet(scripts: Path, typed: str, task: str) -> None:
    name, *words = shlex.split(typed)
    done = call(scripts, name, *words, TASKS=f"my-{task} {task}s lock")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{name}: there is no task '{task}' yet.",
        "The tasks that there are: scripts/inv --list",
    ]


def test_an_inv_that_cannot_even_list_is_heard(scripts: Path) -> None:
    (scripts / "inv").write_text("#!/bin/sh\necho 'layerkit: no Python 3.11' >&2\nexit 4\n")
    done = call(scripts, "build.sh")
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "layerkit: no Python 3.11\n")


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ("manage-layers.sh", "a verb is missing"),
        ("manage-layers.sh destroy all", "'destroy' is not a verb"),
        ("manage-layers.sh ''", "'' is not a verb"),
        ("manage-layers.sh lock", "'lock' is not a verb"),
        ("manage-layers.sh build a b", "'b' is too much"),
        ("manage-layers.sh clean --all", "'--all' is neither all nor the name of a layer"),
        ("layer-utils.py", "VERB"),
        ("layer-utils.py shrink --layer a", "invalid choice: 'shrink'"),
        ("layer-utils.py optimize", "--layer"),
        ("layer-utils.py optimize --layer", "expected one argument"),
        ("layer-utils.py optimize --lay a", "--layer"),
        ("layer-utils.py validate --layer a b", "unrecognized arguments: b"),
        ("size-validation.py", "VERB"),
        ("size-validation.py validate", "--target"),
        ("size-validation.py validate --target zips", "invalid choice: 'zips'"),
        ("size-validation.py report --format xml", "invalid choice: 'xml'"),
        ("build.sh core", "'core' is not a flag"),
        ("build.sh --layers-only --verbos", "'--verbos' is not a flag"),
    ],
)
def test_wrong_words_are_answered_with_the_usage(scripts: Path, typed: str, what: str) -> None:
    name, *words = shlex.split(typed)
    done = call(scripts, name, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
    assert f"usage: {name} " in done.stderr.lower()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("manage-layers.sh --help", ["status", "build", "optimize", "validate", "report", "clean"]),
        ("manage-layers.sh build --help", ["status", "clean"]),
        ("manage-layers.sh -h", ["status", "clean"]),
        ("layer-utils.py --help", ["optimize", "validate"]),
        ("layer-utils.py optimize --help", ["--layer", "--verbose"]),
        ("size-validation.py --help", ["validate", "report"]),
        ("size-validation.py validate --help", ["layers,functions"]),
        ("build.sh --layers-only --help", ["--layers-only", "--verbose", "--skip-validation"]),
    ],
)
def test_help(scripts: Path, typed: str, words: list[str]) -> None:
    name, *rest = shlex.split(typed)
    done = call(scripts, name, *rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {name} " in done.stdout.lower()
    assert all(word in done.stdout for word in words)


# ---- with the real inv ----


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with the real scripts and tasks, whose .venv is set up already: it is this Python."""
    root = tmp_path / "another clone"
    for folder in ("scripts", "tasks", "layerkit"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "tasks.py", root)
    (root / "requirements").mkdir()
    (root / "requirements" / "run.txt").write_text("# nothing\n")
    (root / ".venv" / "bin").mkdir(parents=True)
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -B "$@"\n')
    python.chmod(0o755)
    shutil.copy(root / "requirements" / "run.txt", root / ".venv" / "layerkit-requirements.txt")
    (root / "layers" / "web" / "python").mkdir(parents=True)
    (root / "layers" / "web" / "requirements.txt").write_text("six\n")
    (root / "layers" / "web" / "python" / "m.py").write_text("")
    return root


def test_a_real_task_runs_from_any_folder(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("INVOKE_", "LAYERKIT_"))]:
        monkeypatch.delenv(name)
    wrong = call(clone / "scripts", "manage-layers.sh", "clean", "wbe", cwd=tmp_path)
    assert (wrong.returncode, "no layer called 'wbe'" in wrong.stderr) == (2, True)
    done = call(clone / "scripts", "manage-layers.sh", "clean", "web", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "removed: 1 file, 0 Bytes"
    assert not (clone / "layers" / "web" / "python").exists()
    assert (clone / "layers" / "web" / "requirements.txt").exists()


def test_a_real_list_of_tasks_is_understood(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERKIT_ROOT", raising=False)
    (clone / "tasks" / "namespace.py").write_text(
        "from invoke.collection import Collection\n\nfrom .cleaning import clean\nfrom .settings import DEFAULTS\n\n"
        'ns = Collection(clean)\nns.configure({"layerkit": DEFAULTS})\n'
    )
    missing = call(clone / "scripts", "build.sh")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("build.sh: there is no task 'build' yet.\n")
    assert call(clone / "scripts", "manage-layers.sh", "clean").returncode == 0


# ---- the chapter on troubleshooting, which says what to type ----

CHAPTER = (REPOSITORY / "docs" / "troubleshooting.md").read_text()


def test_its_commands_are_tasks_with_these_flags() -> None:
    commands = re.findall(r"`inv ([a-z-]+)([^`]*)`", CHAPTER)
    assert {"doctor", "status", "validate", "clean", "lock", "build"} <= {name for name, _ in commands}
    for name, rest in commands:
        known = {f"--{spelling}" for argument in ns.tasks[name].get_arguments() for spelling in argument.names}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"inv {name}{rest}"


def test_its_symptoms_are_what_is_printed() -> None:
    sources = [*(REPOSITORY / "layerkit").glob("*.py"), *(REPOSITORY / "tasks").glob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    written = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    blocks = "".join(re.findall(r"```text\n(.*?)```", CHAPTER, re.DOTALL))
    # Between what differs, a message is made of pieces; those of a few words may come from anywhere.
    pieces = [piece.split() for piece in re.split(r"<[^>]*>|[:;()\[\]\n]", blocks) if "ModuleNotFound" not in piece]
    begins = {" ".join(words[:4]) for words in pieces if len(words) > 3}
    assert len(begins) > 10
    assert {begin for begin in begins if not any(begin in one for one in written)} == set()
