"""Environments made by the real uv from a loopback index: once, whole or not at all, whoever else makes them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerkit.errors import ExternalError
from layerkit.processes import run, run_contained
from layerkit.virtualenvs import environment, module_command, requirements_of, tool_environment
from tests.support.index import Index, serve
from tests.support.wheels import make_wheel

ROOT = Path(__file__).parents[2]
SAYS = "import os, sys\nprint('tool', VERSION, os.path.exists('shadowed'))\n"

# What another process runs to make an environment: its arguments are the requirements and the folder to run in.
MAKING = (
    "import sys; from pathlib import Path; from layerkit.virtualenvs import environment\n"
    "print(environment('tool', Path(sys.argv[1]), Path(sys.argv[2]), print))\n"
)


class Held(list[str]):
    """An index's list of what was asked for that holds back answers: files wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()
        self.open = threading.Event()

    def append(self, path: str) -> None:
        super().append(path)
        if path.startswith("/files/"):
            self.waiting.set()
            self.open.wait(60)

    @property
    def files(self) -> int:
        return len([path for path in self if path.startswith("/files/") and path.endswith(".whl")])


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index) -> None:
    """A user with empty caches, whose uv knows the loopback index alone."""
    for name in [name for name in os.environ if name.startswith(("UV_", "LAYERKIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(tmp_path / "a cache"))


def pinned(index: Index, version: str = "1.0", *, digest: str = "") -> Path:
    """Requirements that pin ``tool`` at a version that the index then has."""
    wheel = make_wheel(index.folder, "tool", version, files={"tool.py": f"VERSION = {version!r}\n{SAYS}"})
    path = index.folder.parent / f"tool-{version}-{len(digest)}.txt"
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    path.write_text(f"tool=={version} \\\n    --hash=sha256:{digest}\n")
    return path


def made() -> list[str]:
    """What lies in the folder of each environment in the cache."""
    folders = sorted((Path(os.environ["LAYERKIT_CACHE_DIR"]) / "environments").iterdir())
    return [name for folder in folders for name in sorted(os.listdir(folder))]


def said_by(python: Path, where: Path) -> str:
    return run(module_command(python, "tool"), cwd=where, env=tool_environment(where / "home")).stdout


def test_it_is_made_once(index: Index, tmp_path: Path) -> None:
    told: list[str] = []
    requirements = pinned(index)
    python = environment("tool", requirements, tmp_path, told.append)
    assert said_by(python, tmp_path) == "tool 1.0 False\n"
    assert told == ["making the environment of tool (only when its requirements have changed) ..."]
    asked = len(index.asked)
    assert environment("tool", requirements, tmp_path, told.append) == python
    assert (len(index.asked), len(told)) == (asked, 1)
    assert made() == ["environment", "lock"]


def test_it_holds_what_is_pinned_and_bytecode_for_that(index: Index, tmp_path: Path) -> None:
    python = environment("tool", pinned(index), tmp_path, lambda text: None)
    (site,) = python.parents[1].glob("lib/python3.*/site-packages")
    names = {path.name.split("-")[0] for path in site.glob("*.dist-info")}
    assert names == {"tool"}
    assert list(site.glob("__pycache__/tool.*.pyc"))


def test_other_requirements_are_another_environment(index: Index, tmp_path: Path) -> None:
    old = environment("tool", pinned(index), tmp_path, lambda text: None)
    new = environment("tool", pinned(index, "2.0"), tmp_path, lambda text: None)
    assert said_by(old, tmp_path) == "tool 1.0 False\n"
    assert said_by(new, tmp_path) == "tool 2.0 False\n"


def test_what_is_in_uvs_cache_needs_no_index(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = pinned(index)
    environment("tool", requirements, tmp_path, lambda text: None)
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(tmp_path / "another"))
    asked = len(index.asked)
    assert said_by(environment("tool", requirements, tmp_path, lambda text: None), tmp_path) == "tool 1.0 False\n"
    assert len(index.asked) == asked


def test_without_an_index_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    with serve(tmp_path / "gone", credentials="me:hunter22") as gone:
        requirements = pinned(gone)
        monkeypatch.setenv("UV_DEFAULT_INDEX", gone.url)
    with pytest.raises(ExternalError) as caught:
        environment("tool", requirements, tmp_path, lambda text: None)
    assert caught.value.message.startswith("the environment of tool can't be made:\n")
    assert "hunter22" not in str(caught.value)
    assert "check the network" in caught.value.hint
    assert made() == ["lock"]


def test_a_file_with_another_hash_is_not_installed(index: Index, tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="Hash mismatch"):
        environment("tool", pinned(index, digest="0" * 64), tmp_path, lambda text: None)
    assert made() == ["lock"]


def test_one_without_a_hash_is_not_installed(index: Index, tmp_path: Path) -> None:
    requirements = pinned(index)
    requirements.write_text("tool==1.0\n")
    with pytest.raises(ExternalError, match="--require-hashes"):
        environment("tool", requirements, tmp_path, lambda text: None)
    assert index.asked == []


def test_one_whose_python_is_gone_is_made_anew(index: Index, tmp_path: Path) -> None:
    requirements = pinned(index)
    python = environment("tool", requirements, tmp_path, lambda text: None)
    python.unlink()
    python.symlink_to(tmp_path / "no such python")
    assert environment("tool", requirements, tmp_path, lambda text: None) == python
    assert said_by(python, tmp_path) == "tool 1.0 False\n"


def test_half_of_one_is_never_used(index: Index, tmp_path: Path) -> None:
    """Killed while uv waits for a file; uv itself goes on, and writes to where nobody looks."""
    index.asked = held = Held()
    requirements = pinned(index)
    making = subprocess.Popen([sys.executable, "-c", MAKING, requirements, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    assert held.waiting.wait(60)
    (folder,) = (Path(os.environ["LAYERKIT_CACHE_DIR"]) / "environments").iterdir()
    assert list(folder.glob("making-*/environment/bin/python"))
    making.send_signal(signal.SIGKILL)
    making.communicate()
    assert not (folder / "environment").exists()
    held.open.set()
    python = environment("tool", requirements, tmp_path, lambda text: None)
    assert said_by(python, tmp_path) == "tool 1.0 False\n"
    assert "environment" in made()


def test_two_that_need_it_at_once(index: Index, tmp_path: Path) -> None:
    index.asked = held = Held()
    requirements = pinned(index)
    making = subprocess.Popen(
        [sys.executable, "-c", MAKING, requirements, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert held.waiting.wait(60)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        held.open.set()

    with ThreadPoolExecutor(max_workers=1) as pool:
        python = pool.submit(environment, "tool", requirements, tmp_path, tell).result(timeout=60)
    assert making.communicate()[0].splitlines()[-1] == str(python)
    (text,) = told
    assert f"making the environment of tool (process {making.pid}, since " in text
    assert held.files == 1
    assert said_by(python, tmp_path) == "tool 1.0 False\n"


# ---- what is run in there ----


@pytest.fixture
def tool(index: Index, tmp_path: Path) -> Path:
    return environment("tool", pinned(index), tmp_path, lambda text: None)


def test_nothing_of_the_folder_is_run(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text("open('shadowed', 'w')\n")
    (tmp_path / "os.py").write_text("open('shadowed', 'w')\n")
    assert said_by(tool, tmp_path) == "tool 1.0 False\n"


def test_nothing_of_the_users_gets_in(tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_AUDIT_OUTPUT", "PYTHONPATH", "SAFETY_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "not for everybody")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    given = tool_environment(tmp_path / "scratch")
    assert "not for everybody" not in given.values()
    assert given["https_proxy"] == "http://proxy.example:3128"
    assert given["NO_PROXY"] == given["no_proxy"] == "inside.example,127.0.0.1,localhost"
    assert Path(given["HOME"]).is_dir()
    done = run_contained([tool, "-c", "import sys; print(sys.path)"], cwd=tmp_path, env=given, seconds=60)
    assert "not for everybody" not in done.output


# ---- the requirements ----


@pytest.mark.parametrize(("name", "program"), [("audit", "pip-audit"), ("safety", "safety")])
def test_the_requirements_pin_everything_and_name_no_address(name: str, program: str) -> None:
    text = requirements_of(name).read_text()
    entries = text.replace("\\\n", " ").splitlines()
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
    assert [entry for entry in entries if entry.startswith(f"{program}==")]
    assert "://" not in text
