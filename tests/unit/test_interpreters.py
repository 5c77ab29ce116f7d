"""Finding an interpreter: by what it answers, never by its name; and asking uv for one."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layerkit.errors import ConfigurationError
from layerkit.interpreters import (
    Interpreter,
    Unavailable,
    architecture_here,
    find_interpreter,
    install_interpreter,
    interpreter_for,
)
from layerkit.model import Target
from tests.support.checkouts import FOREIGN, HERE, VERSION, Checkout
from tests.support.index import Index

NOWHERE = "3.99"
"""A version that no machine has."""


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches: dict[str, str]) -> Path:
    """A user without any interpreter: nothing at home, nothing on PATH; the folder that is on PATH."""
    for name in [name for name in os.environ if name.startswith(("UV_", "XDG_", "PYENV", "LAYERKIT_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("UV_CACHE_DIR", caches["UV_CACHE_DIR"])
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    return tmp_path / "bin"


def fake(path: Path, version: str, *, name: str = "cpython", code: int = 0, release: str = "") -> Path:
    """An executable that answers as the CPython ``version`` would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = f"{name}\n{version}\n{release or version + '.1'} (main) [GCC]\n{path}\n"
    path.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(answer)}\nexit {code}\n")
    path.chmod(0o755)
    return path


def found(version: str = NOWHERE) -> Path | None:
    interpreter = find_interpreter(version)
    return interpreter.path if interpreter else None


# ---- by configuration ----


def test_this_python_is_what_it_says_it_is() -> None:
    interpreter = find_interpreter(VERSION, {VERSION: sys.executable})
    assert interpreter == Interpreter(Path(sys.executable), " ".join(sys.version.split()))
    assert interpreter.release == sys.version.split()[0]


def test_a_configured_path_goes_before_all_others(bare: Path, tmp_path: Path) -> None:
    fake(bare / f"python{NOWHERE}", NOWHERE)
    own = fake(tmp_path / "my own" / "python", NOWHERE)
    assert find_interpreter(NOWHERE, {NOWHERE: str(own)}) == Interpreter(own, f"{NOWHERE}.1 (main) [GCC]")


def test_a_configured_path_may_begin_at_home(tmp_path: Path) -> None:
    own = fake(tmp_path / "home" / "py" / "python", NOWHERE)
    interpreter = find_interpreter(NOWHERE, {NOWHERE: "~/py/python"})
    assert interpreter is not None
    assert interpreter.path == own


def test_one_for_another_version_is_not_looked_at(tmp_path: Path) -> None:
    assert find_interpreter(NOWHERE, {"3.98": str(tmp_path / "nothing")}) is None


@pytest.mark.parametrize("what", ["nothing", "another version", "not executable", "failing", "a folder"])
def test_a_wrong_configured_path_is_an_error_though_there_is_another(bare: Path, tmp_path: Path, what: str) -> None:
    fake(bare / f"python{NOWHERE}", NOWHERE)
    own = tmp_path / "own"
    if what == "another version":
        fake(own, "3.98")
    elif what == "not executable":
        fake(own, NOWHERE).chmod(0o644)
    elif what == "failing":
        fake(own, NOWHERE, code=1)
    elif what == "a folder":
        own.mkdir()
    with pytest.raises(ConfigurationError) as caught:
        find_interpreter(NOWHERE, {NOWHERE: str(own)})
    assert caught.value.message == f"layerkit.interpreters: {str(own)!r} is not a CPython {NOWHERE}."


# ---- on the machine ----


def test_where_there_is_none() -> None:
    assert find_interpreter(NOWHERE) is None


def test_one_on_the_path(bare: Path) -> None:
    assert found() is None
    own = fake(bare / f"python{NOWHERE}", NOWHERE)
    assert found() == own


@pytest.mark.parametrize(
    "make",
    [
        lambda path: fake(path, "3.98"),
        lambda path: fake(path, NOWHERE, code=127),  # as pyenv's shims of a version that is not chosen
        lambda path: fake(path, NOWHERE, name="pypy"),
        lambda path: fake(path, NOWHERE, name="cpythont"),  # without the GIL
        lambda path: fake(path, NOWHERE, name="cpythond"),
        lambda path: path.write_text("rubbish") and path.chmod(0o755),
    ],
    ids=["another version", "a shim", "PyPy", "free-threaded", "debug", "no program"],
)
def test_one_that_is_not_what_its_name_says_is_passed_over(bare: Path, make: Callable[[Path], object]) -> None:
    make(bare / f"python{NOWHERE}")
    assert found() is None


def test_a_shim_on_the_path_does_not_hide_what_pyenv_has(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(bare / f"python{NOWHERE}", NOWHERE, code=127)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    own = fake(tmp_path / "pyenv" / "versions" / f"{NOWHERE}.0" / "bin" / f"python{NOWHERE}", NOWHERE)
    assert found() == own


def test_the_newest_of_pyenvs_is_taken_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    made = {
        name: fake(tmp_path / "pyenv" / "versions" / name / "bin" / f"python{NOWHERE}", NOWHERE)
        for name in (f"{NOWHERE}.9", f"{NOWHERE}.10", f"{NOWHERE}.2", f"{NOWHERE}-dev")
    }
    assert found() == made[f"{NOWHERE}.10"]
    fake(made[f"{NOWHERE}.10"], NOWHERE, name="cpythont")  # that one takes other extension modules
    assert found() == made[f"{NOWHERE}.9"]


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("PYENV_ROOT", "home/.pyenv/versions/{0}.4"),
        ("UV_PYTHON_INSTALL_DIR", "else/cpython-{0}.4-linux-x86_64-gnu"),
        ("XDG_DATA_HOME", "else/uv/python/cpython-{0}.4-linux-x86_64-gnu"),
        ("NOTHING_SET", "home/.pyenv/versions/{0}.4"),
        ("NOTHING_SET", "home/.local/share/uv/python/cpython-{0}.4-linux-x86_64-gnu"),
    ],
)
def test_where_pyenv_and_uv_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "else"))
    own = fake(tmp_path / folder.format(NOWHERE) / "bin" / f"python{NOWHERE}", NOWHERE)
    assert found() == own


# ---- for a target ----


@pytest.mark.skipif(sys.platform != "linux", reason="not run: elsewhere nothing built for Lambda can be loaded")
def test_a_target_that_this_machine_can_run() -> None:
    interpreter = interpreter_for(HERE, {VERSION: sys.executable})
    assert isinstance(interpreter, Interpreter)
    assert interpreter.path == Path(sys.executable)


@pytest.mark.skipif(sys.platform != "linux", reason="not run: elsewhere nothing built for Lambda can be loaded")
def test_a_foreign_architecture_is_not_tried() -> None:
    """Not even where an interpreter is configured: it is this machine's."""
    answer = interpreter_for(FOREIGN, {VERSION: sys.executable})
    assert isinstance(answer, Unavailable)
    assert f"nothing built for {FOREIGN.architecture} can be run" in answer.reason
    assert architecture_here() in answer.reason


@pytest.mark.skipif(sys.platform != "linux", reason="not run: elsewhere nothing built for Lambda can be loaded")
def test_the_next_step_where_there_is_none() -> None:
    answer = interpreter_for(Target(f"python{NOWHERE}", architecture_here()), {})
    assert isinstance(answer, Unavailable)
    assert answer.reason == f"there is no Python {NOWHERE} on this machine"
    assert f"`uv python install {NOWHERE}`" in answer.hint


# ---- getting one ----

OTHER = "3.12" if VERSION != "3.12" else "3.13"
"""A version that uv knows and this test's user has not got."""


@pytest.fixture
def mirror(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A mirror that has no Python."""
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", f"http://127.0.0.1:{index.port}/mirror")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return index


def test_an_interpreter_that_can_not_be_had(mirror: Index, tmp_path: Path) -> None:
    why_not = install_interpreter(OTHER)
    assert why_not.startswith("HTTP status client error (404 Not Found) for url (http://127.0.0.1:")
    assert "\n" not in why_not
    assert [path for path in mirror.asked if path.startswith("/mirror/") and f"cpython-{OTHER}." in path]
    assert found(OTHER) is None


def test_a_version_that_uv_does_not_know(mirror: Index) -> None:
    assert NOWHERE in install_interpreter(NOWHERE)
    assert mirror.asked == []


def test_a_build_asks_for_the_interpreter_that_it_lacks(
    make_checkout: Callable[[str], Checkout], mirror: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = make_checkout("checkout")
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", f"http://me:secret@127.0.0.1:{mirror.port}/mirror")
    checkout.layer("web", "", code={"web.py": ""})
    words = ["build", "--runtime", f"python{OTHER}", "--architecture", HERE.architecture]
    done = checkout.inv(*words)
    assert done.returncode == 0, done.stderr
    assert f"trying `uv python install {OTHER}` ..." in done.stderr
    assert "it can't be had: HTTP status client error (404 Not Found)" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert f"not verified: there is no Python {OTHER} on this machine" in done.stdout
    assert [path for path in mirror.asked if path.startswith("/mirror/")]


def test_a_foreign_build_asks_for_none(
    make_checkout: Callable[[str], Checkout], mirror: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = make_checkout("checkout")
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", f"http://127.0.0.1:{mirror.port}/mirror")
    checkout.layer("web", "", code={"web.py": ""})
    done = checkout.inv("build", "--runtime", f"python{OTHER}", "--architecture", FOREIGN.architecture)
    assert done.returncode == 0, done.stderr
    assert "uv python install" not in done.stderr
    assert not [path for path in mirror.asked if path.startswith("/mirror/")]
