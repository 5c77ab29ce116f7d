"""scripts/inv on a machine with python3 and PyPI alone, and the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.checkouts import REPOSITORY

pytestmark = pytest.mark.online


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this repository that git knows or would, in a folder with a space in its name."""
    to = tmp_path_factory.mktemp("a clone") / "some where"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, files):
        source = REPOSITORY / os.fsdecode(name)
        if source.exists():
            (to / os.fsdecode(name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to / os.fsdecode(name))
    return to


def inv(clone: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LAYERKIT", "INVOKE_"))}
    environment["LAYERKIT_PYTHON"] = sys.executable
    return subprocess.run(
        [str(clone / "scripts" / "inv"), *words],
        cwd=cwd or clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_sets_itself_up_once_and_works_from_anywhere(clone: Path, tmp_path: Path) -> None:
    first = inv(clone, "--list", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "setting up .venv" in first.stderr
    assert "  build " in first.stdout
    assert "setting up" not in first.stdout
    second = inv(clone, "lock", "--check", cwd=tmp_path)
    assert (second.returncode, second.stderr) == (0, ""), second.stdout


def test_the_tasks_need_nothing_of_the_tests(clone: Path) -> None:
    inv(clone, "--list")
    done = subprocess.run([clone / ".venv" / "bin" / "python", "-c", "import pytest"], capture_output=True, check=False)
    assert done.returncode == 1


def test_a_changed_requirements_file_and_an_interrupted_set_up_are_noticed(clone: Path) -> None:
    inv(clone, "--list")
    with (clone / "requirements" / "run.txt").open("a") as file:
        file.write("# changed\n")
    assert "setting up .venv" in inv(clone, "--list").stderr
    (clone / ".venv" / "layerkit-requirements.txt").unlink()
    assert "setting up .venv" in inv(clone, "--list").stderr
    assert inv(clone, "--list").stderr == ""


def test_an_old_python_is_said(clone: Path, tmp_path: Path) -> None:
    shutil.copytree(clone, tmp_path / "bare", ignore=shutil.ignore_patterns(".venv*"))
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "cmp"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        ["/bin/sh", str(tmp_path / "bare" / "scripts" / "inv"), "--list"],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "no Python 3.11 or later was found" in done.stderr


def test_the_wheel_carries_the_tasks_and_a_command(clone: Path, tmp_path: Path) -> None:
    from uv import find_uv_bin

    uv = find_uv_bin()
    subprocess.run([uv, "build", "--quiet", "--python", sys.executable, "--out-dir", tmp_path, clone], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"layerkit/tasks/program.py", "layerkit/data/runtimes.toml", "layerkit/data/build-backends.txt"} <= set(
        names
    )
    assert not [name for name in names if name.startswith(("tasks", "tests", "layers"))]
    venv = tmp_path / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", wheel], check=True)
    (tmp_path / "repo" / "layers" / "web").mkdir(parents=True)
    (tmp_path / "repo" / "layers" / "web" / "requirements.txt").write_text("six\n")
    command = [str(venv / "bin" / "layerkit"), "lock", "--check"]
    done = subprocess.run(command, cwd=tmp_path / "repo" / "layers", capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "web (python3.13-x86_64): no lock yet" in done.stdout
