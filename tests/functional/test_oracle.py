"""What the trace of an import shows, and what the oracle does with modules that do as they please."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from layerkit.errors import CheckFailed
from layerkit.interpreters import Interpreter
from layerkit.model import RUNTIME_BOTO3
from layerkit.oracle import Oracle, modules_in
from tests.support.checkouts import HERE, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel

WAYS = {
    "open": "open(HERE + '/tests/data.txt').read()",
    "exists": "assert os.path.exists(HERE + '/tests/data.txt')",
    "the_folder_exists": "assert os.path.isdir(HERE + '/tests')",
    "stat": "os.stat(HERE + '/tests/data.txt')",
    "posix_stat": "import posix; posix.stat(HERE + '/tests/data.txt')",
    "stat_in_folder": "d = os.open(HERE, os.O_RDONLY); os.stat('tests/data.txt', dir_fd=d)",
    "open_in_folder": "d = os.open(HERE, os.O_RDONLY); os.open('tests/data.txt', os.O_RDONLY, dir_fd=d)",
    "statvfs": "os.statvfs(HERE + '/tests/data.txt')",
    "access": "assert os.access(HERE + '/tests/data.txt', os.R_OK)",
    "chdir": "os.chdir(HERE + '/tests')",
    "listdir": "assert 'tests' in os.listdir(HERE)",
    "listdir_of_descriptor": "assert 'tests' in os.listdir(os.open(HERE, os.O_RDONLY))",
    "listdir_below": "assert 'data.txt' in os.listdir(HERE + '/tests')",
    "scandir": "assert 'tests' in [entry.name for entry in os.scandir(HERE)]",
    "walk": "assert any('tests' in folders for _, folders, _ in os.walk(HERE))",
    "fwalk": "assert any('tests' in folders for _, folders, _, _ in os.fwalk(HERE))",
    "glob": "import glob; assert glob.glob(HERE + '/*/data.txt')",
    "iter_modules": "import pkgutil; assert 'tests' in [m.name for m in pkgutil.iter_modules([HERE])]",
    "find_spec": "import importlib.util; assert importlib.util.find_spec('thing.tests')",
    "optional_find_spec": "import importlib.util as u\nif u.find_spec('thing.tests'): FOUND = 1",
    "path_finder": "import importlib.machinery as m; assert m.PathFinder.find_spec('tests', [HERE])",
    "import_module": "import importlib; importlib.import_module('thing.tests.test_it')",
    "resources": "import importlib.resources as r; assert (r.files('thing') / 'tests' / 'data.txt').read_text()",
    "get_data": "import pkgutil; assert pkgutil.get_data('thing', 'tests/data.txt')",
    "pathlib": "import pathlib; assert pathlib.Path(HERE, 'tests', 'data.txt').is_file()",
    "relative": "os.chdir(HERE); open('tests/data.txt').close()",
    "optional": "try:\n    import thing.tests.test_it as found\nexcept ImportError:\n    NOT_THERE = True",
    "names": "globals().update({name.split('.')[0]: 1 for name in os.listdir(HERE)})",
    "sqlite": "import sqlite3; sqlite3.connect('file:' + HERE + '/tests/data.txt?mode=ro', uri=True).close()",
    "subprocess": "import subprocess; subprocess.run(['/bin/cat', HERE + '/tests/data.txt'], check=True)",
    "fork": (
        "pid = os.fork()\nif pid == 0: os._exit(0 if os.path.exists(HERE + '/tests/data.txt') else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0"
    ),
    "c_code": "import ctypes; assert ctypes.CDLL(None).access((HERE + '/tests/data.txt').encode(), 4) == 0",
}
TESTS = {"thing/tests/__init__.py": "", "thing/tests/test_it.py": "import thing\n", "thing/tests/data.txt": "data"}


def plain_and_optimized(checkout: Checkout, index: Index, files: dict[str, str], aside: Path) -> tuple[Path, Path]:
    """The tree of a layer with one distribution ``thing``, as its wheel has it and optimized."""
    make_wheel(index.folder, "thing", "1.0", files=dict(files))
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    tree = checkout.project.tree_path("web", HERE)
    plain = tree.rename(aside)
    checkout.build(target=HERE, optimizer=checkout.optimizer())
    return plain, tree


@pytest.mark.parametrize("way", sorted(WAYS))
def test_no_way_to_a_file_that_goes_is_missed(checkout: Checkout, index: Index, way: str, tmp_path: Path) -> None:
    """Each in a tree of its own, so that what one finds restores nothing for another; held against a full sweep."""
    body = f"import os\nHERE = os.path.dirname(os.path.abspath(__file__))\n{WAYS[way]}\n"
    files = {"thing/__init__.py": "", "thing/way.py": body, **TESTS}
    plain, tree = plain_and_optimized(checkout, index, files, tmp_path / "plain")
    proof = checkout.optimizer().proof
    assert isinstance(proof, Interpreter)
    oracle = Oracle(proof, HERE, 2)
    outside = {name for name, path in modules_in(files).items() if "/tests/" not in path}
    before = oracle.sweep(plain, [], outside, tmp_path)
    after = oracle.sweep(tree, [], outside, tmp_path)
    assert {name for name in outside if not before[name].ok} == set()
    assert {name for name in outside if not after[name].same_as(before[name])} == set()


def test_a_folder_without_init_that_is_imported_stays(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    files = {"thing/__init__.py": "import thing.tests\n", "thing/tests/data.txt": "", "thing/tests/helper.py": ""}
    _, tree = plain_and_optimized(checkout, index, files, tmp_path / "plain")
    assert (tree / "thing" / "tests").is_dir()


def test_what_a_pth_file_touches_stays(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    files = {"thing.pth": "import thing.tests.test_it\n", "thing/__init__.py": "", **TESTS}
    _, tree = plain_and_optimized(checkout, index, files, tmp_path / "plain")
    assert (tree / "thing" / "tests" / "test_it.py").is_file()


def test_giving_up_keeps_what_was_touched_too(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    """A module whose names are never the same: then nothing of what it touches may go."""
    body = "import os, secrets\nopen(os.path.dirname(__file__) + '/tests/data.txt').close()\n"
    body += "globals()['N' + secrets.token_hex(8)] = 1\n"
    files = {"thing/__init__.py": "", "thing/odd.py": body, **TESTS}
    _, tree = plain_and_optimized(checkout, index, files, tmp_path / "plain")
    assert (tree / "thing" / "tests" / "data.txt").is_file()


def test_what_an_import_writes_into_the_layer_is_not_part_of_it(
    checkout: Checkout, index: Index, tmp_path: Path
) -> None:
    body = "import os\nopen(os.path.dirname(__file__) + '/cache.txt', 'w').write(str(os.getpid()))\n"
    plain, tree = plain_and_optimized(checkout, index, {"thing/__init__.py": body, **TESTS}, tmp_path / "plain")
    assert not (tree / "thing" / "cache.txt").exists()
    assert not (plain / "thing" / "cache.txt").exists()


def test_an_import_that_changes_the_layers_files_proves_nothing(checkout: Checkout, index: Index) -> None:
    body = "import os\nopen(os.path.dirname(__file__) + '/state.txt', 'a').write('more')\n"
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": body, "thing/state.txt": "", **TESTS})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    with pytest.raises(CheckFailed, match=r"changes its own files, which are read-only on Lambda: thing/state\.txt"):
        checkout.build(target=HERE, optimizer=checkout.optimizer())
    assert not (checkout.root / "dist").exists()


def test_a_package_that_hangs_costs_its_time_once(checkout: Checkout, index: Index) -> None:
    files = {f"thing/slow/m{number}.py": "" for number in range(30)}
    files |= {
        "thing/slow/__init__.py": "import threading; threading.Event().wait()\n",
        "thing/__init__.py": "",
        **TESTS,
    }
    make_wheel(index.folder, "thing", "1.0", files=files)
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    started = time.monotonic()
    optimizer = replace(checkout.optimizer(), seconds=1.0)
    built = checkout.build(target=HERE, optimizer=optimizer)["web"].manifest.optimized
    assert built is not None
    assert built.late == ("thing.slow",)
    assert time.monotonic() - started < 30  # one by one they would take a second each, and again
    assert (checkout.project.tree_path("web", HERE) / "thing" / "tests" / "data.txt").is_file()  # nothing is proven


def test_a_module_that_ignores_the_alarm_is_ended(checkout: Checkout, index: Index) -> None:
    body = "import signal, threading\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
    body += "while True:\n    threading.Event().wait(0.1)\n"
    make_wheel(index.folder, "thing", "1.0", files={"thing/__init__.py": "", "thing/deaf.py": body, **TESTS})
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=replace(checkout.optimizer(), seconds=0.5))["web"].manifest.optimized
    assert built is not None
    assert built.late == ("thing.deaf",)


# ---- layers on top of one another ----

HELPERS = {"thing/__init__.py": "", "thing/tests/__init__.py": "", "thing/tests/helpers.py": "def help_me(): pass\n"}


def stacked(checkout: Checkout, index: Index, user: dict[str, str], settings: str = "") -> None:
    make_wheel(index.folder, "thing", "1.0", files=dict(HELPERS))
    make_wheel(index.folder, "user", "1.0", files=dict(user), requires=["thing"])
    checkout.layer("core", "thing\n", settings)
    checkout.layer("web", "user\n", 'depends_on = ["core"]\n')
    checkout.lock(HERE)


def test_what_a_layer_on_top_needs_of_one_below_is_asked_for(checkout: Checkout, index: Index) -> None:
    stacked(checkout, index, {"user/__init__.py": "", "user/testing.py": "from thing.tests.helpers import help_me\n"})
    with pytest.raises(
        CheckFailed, match=r"web: import user\.testing needs what optimization left out of core"
    ) as error:
        checkout.build(target=HERE, optimizer=checkout.optimizer())
    assert 'keep = ["thing/tests/__init__.py"' in error.value.hint
    assert "layers/core/layer.toml" in error.value.hint
    assert not (checkout.root / "dist").exists()
    stacked(
        checkout,
        index,
        {"user/__init__.py": "", "user/testing.py": "from thing.tests.helpers import help_me\n"},
        'keep = ["thing/tests/__init__.py", "thing/tests/helpers.py"]\n',
    )
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())
    assert built["web"].manifest.optimized is not None
    assert built["web"].manifest.optimized.modules == 2


def test_it_is_asked_for_as_well_when_only_the_layer_on_top_is_built(checkout: Checkout, index: Index) -> None:
    stacked(checkout, index, {"user/__init__.py": ""})
    checkout.build(target=HERE, optimizer=checkout.optimizer())
    make_wheel(
        index.folder, "user", "2.0", files={"user/__init__.py": "import thing.tests.helpers\n"}, requires=["thing"]
    )
    checkout.layer("web", "user==2.0\n", 'depends_on = ["core"]\n')
    checkout.lock(HERE)
    with pytest.raises(CheckFailed, match=r"web: import user needs what optimization left out of core"):
        checkout.build(["web"], target=HERE, optimizer=checkout.optimizer())


def test_who_asks_whether_it_is_there_and_does_without_changes_nothing(checkout: Checkout, index: Index) -> None:
    optional = "try:\n    import thing.tests.helpers as _helpers\nexcept ImportError:\n    _helpers = None\n"
    stacked(checkout, index, {"user/__init__.py": optional})
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())
    assert built["web"].manifest.optimized is not None
    assert not (checkout.project.tree_path("core", HERE) / "thing" / "tests").exists()


def test_what_is_left_to_the_runtime_stands_in_for_it_in_proofs(checkout: Checkout, index: Index) -> None:
    for name in RUNTIME_BOTO3:
        make_wheel(index.folder, name, "1.0", files={f"{name}/__init__.py": ""})
    user = {"user/__init__.py": "import boto3\nfrom user.tests import needed\n", "user/tests/__init__.py": ""}
    user |= {"user/tests/needed.py": "", "user/tests/other.py": ""}
    make_wheel(index.folder, "user", "1.0", files=dict(user))
    checkout.layer("sdk", "\n".join(RUNTIME_BOTO3), 'rules = ["runtime-boto3"]\n')
    checkout.layer("web", "user\n", 'depends_on = ["sdk"]\n')
    checkout.lock(HERE)
    built = checkout.build(target=HERE, optimizer=checkout.optimizer())["web"].manifest.optimized
    assert built is not None
    assert (built.modules, built.failing) == (1, ())
    tree = checkout.project.tree_path("web", HERE)
    assert {path.name for path in (tree / "user" / "tests").glob("*.py")} == {"__init__.py", "needed.py"}
