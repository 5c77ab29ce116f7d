"""Fixtures, and the rule for tests that need more than this machine may have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support.checkouts import Checkout
from tests.support.index import Index, serve

# A shared machine may stop for a second in any example; what is too slow shows in the suite's whole time.
hypothesis_settings.register_profile("layerkit", deadline=None, max_examples=50)
hypothesis_settings.load_profile("layerkit")


@cache
def _pypi_answers() -> str:
    """Empty when PyPI can be reached through uv as this user has it set up; else why not."""
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "compile", "--no-cache", "--quiet", "--no-python-downloads", "-"]
    try:
        done = subprocess.run(command, input="six==1.17.0", capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "PyPI did not answer within 30 s"
    return "" if done.returncode == 0 else "PyPI can't be reached"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what this machine can't run, and say so; with CI=true nothing is left out."""
    if os.environ.get("CI") == "true":
        return
    for item in items:
        if item.get_closest_marker("online") and _pypi_answers():
            item.add_marker(pytest.mark.skip(reason=f"not run: {_pypi_answers()}"))


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Caches of the tests' own, shared by all of them."""
    folder = tmp_path_factory.mktemp("caches")
    return {"UV_CACHE_DIR": str(folder / "uv"), "LAYERKIT_CACHE_DIR": str(folder / "layerkit")}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An empty index on loopback; put wheels into its folder."""
    (tmp_path / "index").mkdir()
    with serve(tmp_path / "index") as served:
        yield served


@pytest.fixture
def make_checkout(
    tmp_path: Path, caches: dict[str, str], monkeypatch: pytest.MonkeyPatch, index: Index
) -> Callable[[str], Checkout]:
    """Checkouts by name, whose uv knows the loopback index alone."""
    for name in [name for name in os.environ if name.startswith(("UV_", "INVOKE_", "LAYERKIT_"))]:
        monkeypatch.delenv(name)
    environment = {**caches, "UV_DEFAULT_INDEX": index.url, "UV_NO_CONFIG": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def make(name: str) -> Checkout:
        root = tmp_path / name
        (root / "layers").mkdir(parents=True)
        return Checkout(root, {"LAYERKIT_ROOT": str(root)})

    return make


@pytest.fixture
def checkout(make_checkout: Callable[[str], Checkout]) -> Checkout:
    """A checkout without layers, in a folder with a space in its name."""
    return make_checkout("a checkout")
