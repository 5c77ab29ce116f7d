"""The checkout's own three layers, from PyPI: they agree, and are what the README says."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

from layerkit.interpreters import find_interpreter
from layerkit.locking import locked_targets, parse_lock, stale
from layerkit.project import load_project
from tests.support.checkouts import REPOSITORY, TARGET, Checkout


def test_the_committed_locks_are_current_for_every_target() -> None:
    project = load_project(REPOSITORY, TARGET)
    targets = locked_targets(project)
    assert {str(target) for target in targets} == {
        f"{runtime}-{architecture}" for runtime in ("python3.12", "python3.13") for architecture in ("x86_64", "arm64")
    }
    for target in targets:
        assert stale(project, project.layers.stack("default", target), target) == {}


def test_no_lock_names_an_address() -> None:
    for path in (REPOSITORY / "layers").glob("*/locks/*.txt"):
        assert "://" not in path.read_text()


def test_one_version_of_everything_in_each_target() -> None:
    versions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in (REPOSITORY / "layers").glob("*/locks/*.txt"):
        for package in parse_lock(path.read_text(), path.name).packages:
            versions[path.stem, package.name].add(package.version)
    assert len(versions) > 40
    assert all(len(found) == 1 for found in versions.values())
    ml = parse_lock((REPOSITORY / "layers" / "ml-libraries" / "locks" / f"{TARGET}.txt").read_text(), "ml")
    assert "numpy" not in [package.name for package in ml.packages]
    assert ml.provided["numpy"] == "core-data-science"


@pytest.mark.online
def test_the_three_layers_build_and_import_together(tmp_path: Path, caches: dict[str, str]) -> None:
    shutil.copytree(REPOSITORY / "layers", tmp_path / "layers", ignore=shutil.ignore_patterns("python"))
    checkout = Checkout(tmp_path, {"LAYERKIT_ROOT": str(tmp_path), "LAYERKIT_CACHE_DIR": caches["LAYERKIT_CACHE_DIR"]})
    document = checkout.inv_json("build", "--locked")
    sizes = {entry["layer"]: entry["manifest"]["tree"]["size"] for entry in document["layers"]}
    assert 220_000_000 < sum(sizes.values()) < 300_000_000
    for entry in document["layers"]:
        with zipfile.ZipFile(tmp_path / entry["manifest"]["zip"]["path"]) as archive:
            assert archive.testzip() is None
            archive.extractall(tmp_path / "opt")
    interpreter = find_interpreter("3.13")
    if interpreter is None:
        pytest.skip("not run: there is no Python 3.13 on this machine to import the layers with")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pandas, sklearn.linear_model, scipy, boto3; print('ok')"
    command = [str(interpreter.path), "-I", "-B", "-c", code, str(tmp_path / "opt" / "python")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr
