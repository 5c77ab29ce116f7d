"""Raising versions with the real uv, against an index on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context
from invoke.exceptions import Exit
from packaging.specifiers import SpecifierSet

from layerkit.advisories import Advisory, applies, parse_advisory
from layerkit.auditing import Audited, Pin, Reported, carried_by
from layerkit.building import build, plan_build
from layerkit.builds import builds, read_verdict
from layerkit.drafts import finish_update
from layerkit.errors import CheckFailed, ConfigurationError, ExternalError, Incomplete
from layerkit.installer import Uv
from layerkit.locking import finish_locks, stale
from layerkit.model import Exemption, Skipped, Target
from layerkit.project import Project
from layerkit.scanning import Scanner
from layerkit.sources import Source
from layerkit.updating import (
    NoRaise,
    Outdated,
    Raise,
    Secured,
    Updated,
    Vulnerable,
    flags_for,
    outdated,
    smallest_raise,
    update,
)
from layerkit.updating import update_security as secure
from tasks.settings import DEFAULTS, Settings, settings
from tasks.updating import outdated as outdated_task
from tasks.updating import secure as secure_task
from tasks.updating import secure_by_scan
from tasks.updating import update as update_task
from tests.support.checkouts import HERE, REPOSITORY, TARGET, VERSION, Checkout
from tests.support.index import Index
from tests.support.osv import Document, document
from tests.support.wheels import make_sdist, make_wheel

ARM = Target("python3.13", "arm64")
DEPENDS_ON_CORE = 'depends_on = ["core"]\n'


@pytest.fixture
def stack(index: Index, checkout: Checkout) -> Checkout:
    """core pins num and date; ml has learn, which wants num below 3, and through it jobs; aws asks for a range."""
    for version in ("1.0", "1.5", "2.0", "2.1", "3.0"):
        make_wheel(index.folder, "num", version)
    for version in ("1.0", "1.1", "2.0"):
        make_wheel(index.folder, "date", version)
        make_wheel(index.folder, "jobs", version)
    make_wheel(index.folder, "learn", "1.0", requires=["num<2", "jobs<2"])
    make_wheel(index.folder, "learn", "1.1", requires=["num<2.1", "jobs"])
    make_wheel(index.folder, "learn", "1.2", requires=["num>=1.5,<3", "jobs"])
    checkout.layer("core", "# what most need\nnum==1.0  # the old one\n\ndate == 1.0\n")
    checkout.layer("ml", "learn==1.0\n", DEPENDS_ON_CORE)
    checkout.layer("aws", "date>=1.0,<2\n")
    checkout.lock()
    return checkout


def raise_pins(checkout: Checkout, *targets: Target, **options: Any) -> Updated:
    return update(checkout.project, targets or (TARGET,), uv=Uv(checkout.root), **options)


def find_outdated(checkout: Checkout, **options: Any) -> dict[tuple[str, str], Outdated]:
    found = outdated(checkout.project, options.pop("target", TARGET), uv=Uv(checkout.root), **options)
    return {(one.layer, one.name): one for one in found}


def text(checkout: Checkout, name: str) -> str:
    return (checkout.root / "layers" / name / "requirements.txt").read_bytes().decode()


def is_current(checkout: Checkout, target: Target = TARGET) -> bool:
    project = checkout.project
    return all(not stale(project, project.layers.stack(stack, target), target) for stack in ("default", "other"))


def no_work_is_left(checkout: Checkout) -> bool:
    return not list((checkout.root / ".layerkit").glob("work/*"))


# ---- outdated ----


def test_what_resolves_with_the_stack_and_what_is_newest(stack: Checkout, index: Index) -> None:
    make_wheel(index.folder, "num", "4.0rc1")
    make_wheel(index.folder, "num", "5.0", tag="cp313-cp313-win_amd64")
    make_wheel(index.folder, "num", "6.0", tag="cp312-cp312-manylinux_2_17_x86_64")
    before = stack.snapshot()
    found = find_outdated(stack)
    shown = {key: (one.locked, one.resolves, one.newest) for key, one in found.items()}
    assert shown == {
        ("core", "num"): ("1.0", "2.1", "3.0"),
        ("core", "date"): ("1.0", "1.1", "2.0"),
        ("ml", "learn"): ("1.0", "1.2", "1.2"),
        ("ml", "jobs"): ("1.1", "2.0", "2.0"),
        ("aws", "date"): ("1.0", "1.1", "2.0"),
    }
    assert {one.fixes for one in found.values()} == {None}
    assert stack.snapshot() == before
    assert no_work_is_left(stack)


def test_which_advisories_the_newest_that_resolves_is_free_of(stack: Checkout) -> None:
    about = {"A-1": ("num", "<2"), "A-2": ("num", "<3"), "A-3": ("date", "<1"), "A-4": ("jobs", "<1.5")}

    def advisories(name: str, version: str) -> list[str]:
        return [one for one, (what, range_) in about.items() if what == name and version in SpecifierSet(range_)]

    found = find_outdated(stack, layers=["ml", "core"], advisories=advisories)
    assert {key: one.fixes for key, one in found.items()} == {
        ("core", "num"): ("A-1",),
        ("core", "date"): (),
        ("ml", "learn"): (),
        ("ml", "jobs"): ("A-4",),
    }


def test_what_a_layer_would_no_longer_need(stack: Checkout, index: Index) -> None:
    make_wheel(index.folder, "learn", "1.3", requires=["num<3"])
    jobs = find_outdated(stack)["ml", "jobs"]
    assert (jobs.locked, jobs.resolves, jobs.newest) == ("1.1", None, "2.0")


def test_a_distribution_that_comes_as_source_is_asked_for_as_source(stack: Checkout, index: Index) -> None:
    for version in ("1.0", "1.1"):
        metadata = f"Metadata-Version: 2.2\nName: plain\nVersion: {version}\n"
        make_sdist(index.folder, "plain", version, {"PKG-INFO": metadata, "pyproject.toml": ""})
    stack.layer("aws", "plain==1.0\n", 'allow_sdist = ["plain"]\n')
    stack.lock()
    plain = find_outdated(stack, layers=["aws"])["aws", "plain"]
    assert (plain.locked, plain.resolves, plain.newest) == ("1.0", "1.1", "1.1")


def test_outdated_is_about_the_target_that_is_asked_for(stack: Checkout, index: Index) -> None:
    make_wheel(index.folder, "num", "2.0.5", tag="cp313-cp313-manylinux_2_17_aarch64")
    stack.lock(ARM)
    (index.folder / "num-2.1-py3-none-any.whl").unlink()
    assert find_outdated(stack, target=ARM)["core", "num"].resolves == "2.0.5"
    assert find_outdated(stack)["core", "num"].resolves == "2.0"


def test_a_lock_that_is_not_current_is_told(stack: Checkout) -> None:
    stack.layer("aws", "date<2\n")
    told: list[str] = []
    assert find_outdated(stack, layers=["aws"], tell=told.append)["aws", "date"].locked == "1.0"
    assert "aws: its lock is not current (its requirements have changed): `inv lock` brings it up to date" in told


# ---- update ----


def test_pins_go_up_in_place_and_the_locks_with_them(stack: Checkout) -> None:
    done = raise_pins(stack)
    assert text(stack, "core") == "# what most need\nnum==2.1  # the old one\n\ndate == 1.1\n"
    assert text(stack, "ml") == "learn==1.2\n"
    assert text(stack, "aws") == "date>=1.0,<2\n"
    assert stack.versions("core") == {"num": "2.1", "date": "1.1"}
    assert stack.versions("ml") == {"learn": "1.2", "jobs": "2.0"}
    assert is_current(stack)
    shown = {(change.file, change.line): (change.before, change.after, change.layers) for change in done.lines}
    assert shown == {
        ("layers/core/requirements.txt", 2): ("num==1.0", "num==2.1", ("core",)),
        ("layers/core/requirements.txt", 4): ("date==1.0", "date==1.1", ("core",)),
        ("layers/ml/requirements.txt", 1): ("learn==1.0", "learn==1.2", ("ml",)),
    }
    assert {change.layer: dict(change.versions) for change in done.locks} == {
        "aws": {"date": ("1.0", "1.1")},
        "core": {"date": ("1.0", "1.1"), "num": ("1.0", "2.1")},
        "ml": {"jobs": ("1.1", "2.0"), "learn": ("1.0", "1.2")},
    }
    assert all(change.written for change in done.locks)
    assert not any(change.resolves != change.locked for change in find_outdated(stack).values())
    before = stack.snapshot()
    again = raise_pins(stack)
    assert (again.lines, any(change.written for change in again.locks)) == ((), False)
    assert stack.snapshot() == before
    assert stack.inv("lock", "--check").returncode == 0


def test_a_dry_run_says_the_same_and_changes_nothing(stack: Checkout) -> None:
    before = stack.snapshot()
    tried = raise_pins(stack, dry_run=True)
    assert stack.snapshot() == before
    assert not any(change.written for change in tried.locks)
    done = raise_pins(stack)
    assert done.lines == tried.lines
    assert [change.versions for change in done.locks] == [change.versions for change in tried.locks]


def test_line_endings_a_mark_at_the_start_and_continued_lines_stay(stack: Checkout) -> None:
    path = stack.root / "layers" / "core" / "requirements.txt"
    path.write_bytes("\ufeff# one\r\nnum\\\r\n  ==1.0 ; python_version > '3'\r\ndate==1.0".encode())
    raise_pins(stack)
    assert path.read_bytes() == "\ufeff# one\r\nnum\\\r\n  ==2.1 ; python_version > '3'\r\ndate==1.1".encode()
    assert is_current(stack)


def test_only_the_package_that_is_named_goes_up(stack: Checkout) -> None:
    done = raise_pins(stack, packages=["Date"])
    assert [change.after for change in done.lines] == ["date==1.1"]
    assert stack.versions("core") == {"num": "1.0", "date": "1.1"}
    assert stack.versions("ml") == {"learn": "1.0", "jobs": "1.1"}
    assert stack.versions("aws") == {"date": "1.1"}


def test_a_package_that_is_not_pinned_changes_the_lock_alone(stack: Checkout, index: Index) -> None:
    make_wheel(index.folder, "jobs", "1.2")
    before = text(stack, "ml")
    done = raise_pins(stack, packages=["jobs"])
    assert (done.lines, text(stack, "ml")) == ((), before)
    assert stack.versions("ml")["jobs"] == "1.2"


def test_a_package_is_raised_no_further_than_the_other_pins_let_it(stack: Checkout) -> None:
    raise_pins(stack, packages=["num"])
    assert stack.versions("core")["num"] == "1.5"
    assert text(stack, "ml") == "learn==1.0\n"


def test_with_layer_the_pins_of_others_stay(stack: Checkout) -> None:
    told: list[str] = []
    done = raise_pins(stack, layers=["ml"], tell=told.append)
    assert [change.after for change in done.lines] == ["learn==1.1"], "1.2 needs num 1.5, and core pins 1.0"
    assert stack.versions("core") == {"num": "1.0", "date": "1.0"}
    assert {change.layer for change in done.locks} == {"ml"}
    assert any(
        "not raised, since layers not named with --layer pin them: date (layers/core/requirements.txt:4), num" in line
        for line in told
    )
    assert is_current(stack)


def test_what_a_layer_that_is_not_named_pins_is_refused(stack: Checkout) -> None:
    stack.layer("ml", "learn==1.0\nnum==1.0\n")
    stack.lock()
    before = stack.snapshot()
    with pytest.raises(ConfigurationError) as caught:
        raise_pins(stack, layers=["core"], packages=["num"])
    assert caught.value.message == (
        "--package num: layers/ml/requirements.txt:2 pins it (num==1.0) for ml, not named with --layer."
    )
    assert caught.value.hint == "Add --layer ml, or leave --layer out."
    with pytest.raises(ConfigurationError, match=r"--package date .*: it stays at 1\.0, since aws carries it"):
        raise_pins(stack, layers=["core"], packages=["date"])
    assert stack.snapshot() == before


def test_a_file_that_several_layers_include_is_raised_once(stack: Checkout) -> None:
    (stack.root / "common.txt").write_text("num==1.0\n")
    (stack.root / "layers" / "core" / "requirements.txt").write_text("-r ../../common.txt\n")
    (stack.root / "layers" / "aws" / "requirements.txt").write_text("-r ../../common.txt\ndate==1.0\n")
    stack.lock()
    told: list[str] = []
    assert raise_pins(stack, layers=["core"], tell=told.append).lines == ()
    assert told[0].startswith("not raised, since layers not named with --layer pin them: ")
    assert told[0].endswith("learn (layers/ml/requirements.txt:1), num (common.txt:1)")
    (change,) = [change for change in raise_pins(stack).lines if change.file == "common.txt"]
    assert (change.after, change.layers) == ("num==2.1", ("aws", "core"))
    assert (stack.root / "common.txt").read_text() == "num==2.1\n"
    assert is_current(stack)


def test_the_file_that_people_edit_is_changed(stack: Checkout) -> None:
    folder = stack.root / "layers" / "core"
    (folder / "requirements.in").write_text("num==1.0\n")
    raise_pins(stack)
    assert (folder / "requirements.in").read_text() == "num==2.1\n"
    assert "num==1.0" in text(stack, "core")


def test_a_linked_file_is_changed_where_it_lies(stack: Checkout, tmp_path: Path) -> None:
    path = stack.root / "layers" / "core" / "requirements.txt"
    (stack.root / "shared.txt").write_text("num==1.0\n")
    path.unlink()
    path.symlink_to("../../shared.txt")
    raise_pins(stack)
    assert path.is_symlink()
    assert (stack.root / "shared.txt").read_text() == "num==2.1\n"
    path.unlink()
    (tmp_path / "outside.txt").write_text("num==1.0\n")
    path.symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ConfigurationError, match="a link that leads out of the checkout"):
        raise_pins(stack)
    assert (tmp_path / "outside.txt").read_text() == "num==1.0\n"


def test_one_pin_goes_to_the_highest_version_that_all_targets_have(stack: Checkout, index: Index) -> None:
    stack.lock(ARM)
    make_wheel(index.folder, "num", "2.2", tag="cp313-cp313-manylinux_2_17_x86_64")
    make_wheel(index.folder, "num", "2.3", tag="cp313-cp313-manylinux_2_17_aarch64")
    raise_pins(stack, TARGET, ARM)
    assert "num==2.1  #" in text(stack, "core")
    assert stack.versions("core")["num"] == stack.versions("core", ARM)["num"] == "2.1"
    assert is_current(stack)
    assert is_current(stack, ARM)


def test_pins_for_different_targets_go_up_each_for_itself(stack: Checkout, index: Index) -> None:
    stack.layer("aws", "date==1.0; platform_machine=='aarch64'\ndate==1.1; platform_machine!='aarch64'\n")
    stack.layer("core", "num==1.0\n")
    stack.lock()
    stack.lock(ARM)
    (index.folder / "date-2.0-py3-none-any.whl").unlink()
    make_wheel(index.folder, "date", "1.7", tag="cp313-cp313-manylinux_2_17_x86_64")
    make_wheel(index.folder, "date", "1.8", tag="cp313-cp313-manylinux_2_17_aarch64")
    raise_pins(stack, TARGET, ARM)
    assert text(stack, "aws") == "date==1.8; platform_machine=='aarch64'\ndate==1.7; platform_machine!='aarch64'\n"


def test_stacks_go_up_each_for_itself(stack: Checkout) -> None:
    stack.layer("old", "num==1.0\n", 'stack = "other"\n')
    stack.lock()
    raise_pins(stack)
    assert (text(stack, "old"), stack.versions("core")["num"]) == ("num==3.0\n", "2.1")


def test_the_checkouts_own_uv_configuration_counts(
    stack: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.delenv("UV_NO_CONFIG")
    (stack.root / "uv.toml").write_text(f'[[index]]\nurl = "{index.url}"\ndefault = true\n')
    raise_pins(stack, packages=["date"])
    assert stack.versions("core")["date"] == "1.1"


def test_an_edit_meanwhile_is_not_lost(stack: Checkout) -> None:
    before = stack.snapshot()
    path = stack.root / "layers" / "ml" / "requirements.txt"

    def edit(message: str) -> None:
        path.write_text("learn==1.0\njobs\n")

    with pytest.raises(Incomplete, match=r"layers/ml/requirements\.txt was changed while"):
        raise_pins(stack, tell=edit)
    assert stack.snapshot() == {**before, "layers/ml/requirements.txt": b"learn==1.0\njobs\n"}


KILLED = """
import os, sys
from pathlib import Path
from layerkit.building import build, plan_build
from layerkit.installer import Uv
from layerkit.model import Target
from layerkit.project import load_project
from layerkit.updating import Vulnerable, update, update_security
project = load_project(Path(sys.argv[1]), Target("python3.13", "x86_64"))
target = Target(sys.argv[3], sys.argv[4])
left = None
def next_step():
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return int(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)
def dying(event, arguments):
    global left
    if event not in ("open", "os.rename", "os.rmdir", "os.remove", "os.mkdir"):
        return
    if left is None and {"files", "update"} & set(Path(str(arguments[0])).parts[-3:]):
        left = 0
        left = next_step()
    elif left:
        left -= 1
        if left == 0:
            os._exit(9)
sys.addaudithook(dying)
def rebuild(draft):
    build(draft, plan_build(draft, target, list(draft.layers)), uv=Uv(draft.root), jobs=1, means=None)
if sys.argv[2] == "update":
    update(project, [target], uv=Uv(project.root))
else:
    found = [Vulnerable("core", "num", "1.0", ("A-1",), ("2.0",), lambda version: version < "2.0")]
    update_security(project, [target], found, uv=Uv(project.root), rebuild=rebuild, scan=lambda draft: [])
"""


class Killed:
    """An update that has worked all out; it is let in again and again, to die at the step that it is told."""

    def __init__(self, checkout: Checkout, what: str, target: Target) -> None:
        self.root = checkout.root
        command = [sys.executable, "-c", KILLED, str(self.root), what, target.runtime, target.architecture]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.kept = self.root.with_name("kept")
        os.rename(self.root, self.kept)

    def steps(self, stride: int) -> Iterator[int]:
        """Exit codes, with the checkout as each left it."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            for step in range(1, 1000, stride):
                subprocess.run(["rm", "-rf", "--", str(self.root)], check=True)
                subprocess.run(["cp", "-a", "--", str(self.kept), str(self.root)], check=True)
                print(step, file=self.process.stdin, flush=True)
                code = int(self.process.stdout.readline())
                assert code in (0, 9)
                yield code
                if code == 0:
                    break
        finally:
            self.process.communicate()


def test_a_kill_at_any_step_leaves_requirements_and_locks_that_go_together(stack: Checkout) -> None:
    old = stack.snapshot()
    outcomes = set()
    seen = []
    for code in Killed(stack, "update", TARGET).steps(stride=1):
        half = stack.snapshot() != old
        waiting = (stack.root / ".layerkit" / "new-locks").is_dir() and any(
            (stack.root / ".layerkit" / "new-locks").iterdir()
        )
        assert not (half and waiting and is_current(stack)), "half of it must not count as current"
        finished = finish_locks(stack.project)
        assert is_current(stack)
        outcomes.add((code, half, finished, stack.snapshot() == old))
        seen.append(stack.snapshot())
    new = seen[-1]
    assert new != old
    assert all(snapshot in (old, new) for snapshot in seen)
    assert {(9, False, False, True), (9, True, True, False), (0, True, False, False)} <= outcomes


def test_an_interrupted_update_is_finished_by_the_next_command(stack: Checkout) -> None:
    for _ in Killed(stack, "update", TARGET).steps(stride=1):
        if stack.versions("core")["num"] == "2.1" and "num==1.0" in text(stack, "core"):
            break
    assert stack.inv("lock", "--check").returncode == 3
    done = stack.inv("build", "--skip-optimization", "--skip-validation")
    assert done.returncode == 0, done.stderr
    assert "interrupted while it put its locks in place: finished now" in done.stderr
    assert "locking first" not in done.stderr
    assert "num==2.1" in text(stack, "core")


# ---- the smallest raise ----


def weak(layer: str, name: str, version: str, affected: str, *fixed: str, ids: Sequence[str] = ("A-1",)) -> Vulnerable:
    """A finding: ``affected`` is the range of versions that its advisories are about."""
    return Vulnerable(layer, name, version, tuple(ids), fixed, lambda found: found in SpecifierSet(affected))


def smallest(checkout: Checkout, *found: Vulnerable, targets: Sequence[Target] = (TARGET,), **options: Any) -> Any:
    before = checkout.snapshot()
    result = smallest_raise(checkout.project, targets, found, uv=Uv(checkout.root), **options)
    assert checkout.snapshot() == before
    assert no_work_is_left(checkout)
    return result


def test_the_first_version_that_fixes_and_not_the_newest(stack: Checkout) -> None:
    found = smallest(stack, weak("core", "num", "1.0", "<1.5", "1.5", "3.0"))
    assert isinstance(found, Raise)
    assert (found.before, found.after) == ("1.0", "1.5")
    assert [(change.before, change.after) for change in found.lines] == [("num==1.0", "num==1.5")]
    assert {change.layer: dict(change.versions) for change in found.locks if change.versions} == {
        "core": {"num": ("1.0", "1.5")}
    }


def test_a_fixed_version_that_nobody_has_is_passed_over(stack: Checkout) -> None:
    assert smallest(stack, weak("core", "num", "1.0", "<1.3", "1.3")).after == "1.5"


def test_a_fix_that_is_a_pre_release_means_the_release(stack: Checkout, index: Index) -> None:
    make_wheel(index.folder, "num", "1.5rc1")
    assert smallest(stack, weak("core", "num", "1.0", "<1.5rc1", "1.5rc1")).after == "1.5"


def test_a_lock_that_is_free_already_needs_no_raise(stack: Checkout) -> None:
    found = smallest(stack, weak("core", "num", "0.9", "<1", "1.0"))
    assert (found.before, found.after, found.lines) == ("0.9", "1.0", ())
    assert not any(change.versions for change in found.locks)


def test_another_advisory_on_the_fixed_version_is_passed_over(stack: Checkout) -> None:
    stack.layer("ml", "learn\n")
    stack.lock()
    found = smallest(
        stack, weak("core", "num", "1.0", "<1.5", "1.5"), weak("core", "num", "1.0", ">=1.5,<2.1", "2.1", ids=["A-2"])
    )
    assert (found.after, found.advisories) == ("2.1", ("A-1", "A-2"))


def test_other_pins_that_have_to_move_go_no_further_than_they_must(stack: Checkout) -> None:
    found = smallest(stack, weak("core", "num", "1.0", "<2", "2.0"))
    assert {change.after for change in found.lines} == {"num==2.0", "learn==1.1"}
    versions = {change.layer: dict(change.versions) for change in found.locks if change.versions}
    assert versions == {"core": {"num": ("1.0", "2.0")}, "ml": {"learn": ("1.0", "1.1")}}


def test_where_no_version_resolves_the_resolver_says_why(stack: Checkout) -> None:
    found = smallest(stack, weak("core", "num", "1.0", "<3", "3.0"))
    assert isinstance(found, NoRaise)
    assert "core asks for num>=3.0 (layers/core/requirements.txt:2)" in found.reason
    assert "ml asks for learn>=1.0 (layers/ml/requirements.txt:1)" in found.reason
    assert "layerkit-layer" not in found.reason


def test_nothing_that_a_layer_asks_for_goes_back(stack: Checkout, index: Index) -> None:
    """The oldest learn would go with any num; that is no raise."""
    make_wheel(index.folder, "learn", "0.1")
    stack.layer("ml", "learn\n")
    stack.lock(upgrade=True)
    found = smallest(stack, weak("core", "num", "1.0", "<3", "3.0"))
    assert isinstance(found, NoRaise)


def test_what_comes_through_another_gets_a_line_with_the_reason(stack: Checkout) -> None:
    stack.layer("ml", "learn==1.1\njobs==1.0\n")
    stack.lock()
    stack.layer("ml", "learn==1.1")
    stack.lock()
    assert stack.versions("ml")["jobs"] == "1.0"
    found = smallest(stack, weak("ml", "jobs", "1.0", "<1.1", "1.1", ids=["A-1", "A-0"]))
    (change,) = found.lines
    assert (change.file, change.line, change.before, change.after) == (
        "layers/ml/requirements.txt",
        2,
        "",
        "jobs>=1.1",
    )


def test_a_layer_that_only_includes_gets_the_line_in_its_own_file(built: Checkout, index: Index) -> None:
    make_wheel(index.folder, "jobs", "1.2")
    (built.root / "common.txt").write_text("learn==1.0\n")
    path = built.root / "layers" / "ml" / "requirements.txt"
    path.write_bytes(b"# all of it\r\n-r ../../common.txt")
    built.lock(HERE)
    built.build(target=HERE)
    Fixing(built, {"A-1": ("jobs", "<1.2", ("1.2",))})()
    assert path.read_bytes() == b"# all of it\r\n-r ../../common.txt\r\njobs>=1.2  # raised for A-1\r\n"
    assert is_current(built, HERE)


def test_a_range_that_allows_the_fixed_version_stays(stack: Checkout) -> None:
    stack.layer("core", "num==1.0\n")
    stack.lock()
    found = smallest(stack, weak("aws", "date", "1.0", "<1.1", "1.1"))
    assert (found.after, found.lines) == ("1.1", ())
    assert {change.layer: dict(change.versions) for change in found.locks if change.versions} == {
        "aws": {"date": ("1.0", "1.1")}
    }


def test_a_line_that_leaves_the_fixed_version_out_is_named(stack: Checkout) -> None:
    found = smallest(stack, weak("core", "date", "1.0", "<2", "2.0"))
    assert isinstance(found, NoRaise)
    assert found.reason == "layers/aws/requirements.txt:1 asks for date<2,>=1.0, and 2.0 is the first that fixes it"


def test_the_pin_of_a_layer_that_is_not_named_holds(stack: Checkout) -> None:
    found = smallest(stack, weak("aws", "date", "1.0", "<1.1", "1.1"), layers=["aws"])
    assert found.reason == "layers/core/requirements.txt:4 asks for date==1.0, and 1.1 is the first that fixes it"
    assert found.hint == "Add --layer core, or leave --layer out."


@pytest.mark.parametrize("fixed", [(), ("not a version",), ("1.5",)])
def test_where_all_versions_are_affected_there_is_no_raise(stack: Checkout, fixed: tuple[str, ...]) -> None:
    found = smallest(stack, weak("core", "num", "1.0", ">0", *fixed))
    assert (found.reason, found.version) == ("no version is known that fixes it", "1.0")


def test_a_fix_that_is_known_only_by_the_last_version_affected(stack: Checkout) -> None:
    assert smallest(stack, weak("core", "num", "1.0", "<=1.5")).after == "2.0"


def test_a_raise_has_to_do_for_all_targets(stack: Checkout, index: Index) -> None:
    stack.lock(ARM)
    make_wheel(index.folder, "num", "1.1", tag="cp313-cp313-manylinux_2_17_x86_64")
    make_wheel(index.folder, "num", "1.2", tag="cp313-cp313-manylinux_2_17_aarch64")
    found = smallest(stack, weak("core", "num", "1.0", "<1.1", "1.1"), targets=[TARGET, ARM])
    assert found.after == "1.5"
    assert {change.target for change in found.locks if change.versions} == {TARGET, ARM}


# ---- fixing all, or nothing ----


@dataclass
class Fixing:
    """A security update of a checkout whose scan is a list of what advisories are about."""

    checkout: Checkout
    about: Mapping[str, tuple[str, str, tuple[str, ...]]]
    """By advisory: the distribution, the versions affected, those that fix it."""
    also: Callable[[Project], None] = lambda project: None
    scanned: int = 0

    def replace(self, advisory: str, name: str, affected: str) -> None:
        self.about = {**self.about, advisory: (name, affected, ())}

    def scan(self, project: Project) -> list[Vulnerable]:
        """As a scan does it: from the trees that are there."""
        self.scanned += 1
        found = []
        for name in project.layers:
            for path in sorted((project.tree_path(name, HERE)).glob("*.dist-info")):
                distribution, version = path.name.removesuffix(".dist-info").split("-")
                for advisory, (about, affected, fixed) in self.about.items():
                    if about == distribution and version in SpecifierSet(affected):
                        found.append(weak(name, about, version, affected, *fixed, ids=[advisory]))
        return found

    def rebuild(self, project: Project) -> None:
        plans = plan_build(project, HERE, list(project.layers))
        build(project, plans, uv=Uv(project.root), jobs=2, means=self.checkout.means())
        self.also(project)

    def __call__(self, **options: Any) -> Secured:
        project = self.checkout.project
        found = self.scan(project)
        return secure(project, [HERE], found, uv=Uv(project.root), rebuild=self.rebuild, scan=self.scan, **options)


@pytest.fixture
def built(stack: Checkout) -> Checkout:
    """The stack, built for the target that this Python can run."""
    if HERE != TARGET:
        stack.lock(HERE)
        for name in ("core", "ml", "aws"):
            stack.project.lock_path(name, TARGET).unlink()
    stack.build(target=HERE, means=stack.means())
    return stack


ALL = {
    "A-1": ("num", "<1.5", ("1.5",)),
    "A-2": ("date", "<1.1", ("1.1",)),
    "A-3": ("jobs", "<2.0", ("2.0",)),
}


def test_requirements_locks_and_builds_change_together(built: Checkout) -> None:
    before = {name: one.manifest for name, one in builds(built.project, HERE).items()}
    done = Fixing(built, ALL)()
    assert [(one.name, one.before, one.after) for one in done.raises] == [
        ("date", "1.0", "1.1"),
        ("num", "1.0", "1.5"),
        ("jobs", "1.1", "2.0"),
    ]
    assert (done.not_fixed, done.left) == ((), ())
    assert text(built, "core") == "# what most need\nnum==1.5  # the old one\n\ndate == 1.1\n"
    assert text(built, "ml") == "learn==1.1\njobs>=2.0  # raised for A-3\n", "learn 1.0 wants jobs below 2"
    assert text(built, "aws") == "date>=1.0,<2\n"
    assert is_current(built, HERE)
    after = builds(built.project, HERE)
    for name, one in after.items():
        assert one.manifest != before[name]
        assert {found.name: found.version for found in one.manifest.distributions} == built.versions(name, HERE)
        assert not one.tree.is_symlink()
        assert not one.archive.is_symlink()
        verdict = read_verdict(built.project, one.manifest)
        assert verdict is not None
        assert (verdict.errors, verdict.whole) == (0, True)
    report = built.validate()
    assert not report.findings
    assert set(built.build(target=HERE)) == {"core", "ml", "aws"}
    assert {name: one.manifest for name, one in builds(built.project, HERE).items()} == {
        name: one.manifest for name, one in after.items()
    }, "there was nothing left to build"
    assert no_work_is_left(built)
    assert not (built.root / ".layerkit" / "update").exists()


def test_a_layer_that_nothing_is_wrong_with_keeps_its_files(built: Checkout) -> None:
    def inodes() -> dict[str, tuple[int, int]]:
        return {
            name: (one.tree.stat().st_ino, one.archive.stat().st_ino)
            for name, one in builds(built.project, HERE).items()
        }

    before = inodes()
    Fixing(built, {"A-1": ("num", "<1.5", ("1.5",))})()
    assert {name for name, found in inodes().items() if found != before[name]} == {"core"}
    after = builds(built.project, HERE)
    assert after["ml"].manifest.depends_on == {"core": after["core"].manifest.inputs}


def test_what_no_raise_fixes_is_told_and_the_rest_is_fixed(built: Checkout) -> None:
    about = {**ALL, "B-1": ("num", ">0", ()), "B-2": ("learn", ">0", ())}
    done = Fixing(built, about)()
    assert {(one.name, one.advisories, one.reason) for one in done.not_fixed} == {
        ("learn", ("B-2",), "no version is known that fixes it"),
        ("num", ("B-1",), "no version is known that fixes it"),
    }
    assert built.versions("core", HERE) == {"num": "1.5", "date": "1.1"}
    assert {(one.name, one.advisories) for one in done.left} == {("num", ("B-1",)), ("learn", ("B-2",))}


def test_what_has_no_fix_does_not_hold_up_what_has_one(built: Checkout) -> None:
    """All about one distribution: two that 1.5 fixes, one that nothing does, one whose fix does not resolve."""
    about = {
        "A-1": ("num", "<1.5", ("1.5",)),
        "A-2": ("num", "<1.2", ("1.2",)),
        "B-1": ("num", ">0", ()),
        "C-1": ("num", "<3", ("3.0",)),
    }
    done = Fixing(built, about)()
    assert [(one.before, one.after, one.advisories) for one in done.raises] == [("1.0", "1.5", ("A-1", "A-2"))]
    reasons = {one.advisories: one.reason for one in done.not_fixed}
    assert reasons.keys() == {("B-1",), ("C-1",)}
    assert reasons["B-1",] == "no version is known that fixes it"
    assert reasons["C-1",].startswith("together with A-1, A-2: the layers can't have one version of everything")
    assert {advisory for one in done.left for advisory in one.advisories} == {"B-1", "C-1"}
    assert "num==1.5  # the old one" in text(built, "core")


def test_fixes_that_do_not_go_together(built: Checkout) -> None:
    """What fixes the one has the other, so the nearer is taken and the other is told."""
    about = {"A-1": ("num", "!=1.5", ("1.5",)), "A-2": ("num", "<2", ("2.0",))}
    done = Fixing(built, about)()
    assert [(one.after, one.advisories) for one in done.raises] == [("1.5", ("A-1",))]
    (left,) = done.not_fixed
    assert (left.advisories, left.reason) == (
        ("A-2",),
        "together with A-1: no version is known that fixes it",
    )


def test_a_fix_that_brings_something_else_is_passed_over(stack: Checkout) -> None:
    brings = SpecifierSet(">=1.5,<2.0")
    found = Vulnerable("core", "num", "1.0", ("A-1",), ("1.5",), lambda version: version < "1.5", brings.contains)
    assert smallest(stack, found).after == "2.0"
    worse = Vulnerable("core", "num", "1.0", ("A-1",), ("1.5",), lambda version: version < "1.5", lambda version: True)
    assert smallest(stack, worse).reason == "1.5 fixes it, and there is something else against it and all newer ones"


def test_one_raise_may_take_another_along(built: Checkout, index: Index) -> None:
    make_wheel(index.folder, "learn", "1.3", requires=["jobs>=2", "num<3"])
    done = Fixing(built, {"A-1": ("learn", "<1.3", ("1.3",)), "A-2": ("jobs", "<1.5", ("1.5",))})()
    assert [(one.name, one.before, one.after) for one in done.raises] == [
        ("learn", "1.0", "1.3"),
        ("jobs", "1.1", "2.0"),
    ]
    assert text(built, "ml") == "learn==1.3\n"


@pytest.mark.parametrize("what", ["still there", "new one", "build fails", "scan fails", "edited"])
def test_when_it_does_not_work_out_nothing_has_changed(built: Checkout, index: Index, what: str) -> None:
    before = built.snapshot()
    fixing = Fixing(built, ALL)
    expected: type[Exception] = CheckFailed
    if what == "still there":
        fixing.also = lambda project: fixing.replace("A-1", "num", "<2")
    elif what == "new one":
        fixing.also = lambda project: fixing.replace("A-9", "num", "==1.5")
    elif what == "build fails":
        make_wheel(index.folder, "num", "1.5", files={"num.py": "raise ImportError('broken')\n"})
    elif what == "scan fails":
        expected = ExternalError

        def fail(project: Project) -> None:
            raise ExternalError("the service did not answer.")

        fixing.also = fail
    else:
        expected = Incomplete
        before["layers/aws/requirements.txt"] += b"# a comment\n"

        def edit(project: Project) -> None:
            (built.root / "layers" / "aws" / "requirements.txt").write_text("date>=1.0,<2\n# a comment\n")

        fixing.also = edit
    with pytest.raises(expected) as caught:
        fixing()
    assert built.snapshot() == before
    assert no_work_is_left(built)
    if what in ("still there", "new one"):
        assert f"core: num 1.5: {'A-1' if what == 'still there' else 'A-9'}" in str(caught.value)
    if what == "build fails":
        assert (built.root / ".layerkit" / "failed" / f"core-{HERE}" / "python" / "num.py").is_file()


def test_a_dry_run_of_a_security_update_builds_and_scans_nothing(built: Checkout) -> None:
    before = built.snapshot()
    fixing = Fixing(built, ALL)
    fixing.also = lambda project: pytest.fail("built")
    done = fixing(dry_run=True)
    assert (len(done.raises), len(done.lines), fixing.scanned) == (3, 4, 1)
    assert built.snapshot() == before


def test_locks_that_are_not_current_are_no_ground_to_stand_on(built: Checkout) -> None:
    built.layer("core", "num==1.0\ndate\n")
    with pytest.raises(CheckFailed, match=r"the lock of core .* is not current \(its requirements have changed\)"):
        Fixing(built, ALL)()


def test_nothing_found_is_nothing_to_do(built: Checkout) -> None:
    fixing = Fixing(built, {})
    done = fixing()
    assert (done.raises, done.not_fixed, done.lines, done.left) == ((), (), (), ())
    assert not any(change.written for change in done.locks)
    assert fixing.scanned == 1


def test_a_kill_at_any_step_leaves_the_old_whole_or_the_new_one(built: Checkout) -> None:
    old = built.snapshot()
    outcomes = set()
    for code in Killed(built, "security", HERE).steps(stride=3):
        half = built.snapshot() != old
        finished = finish_update(built.project)
        assert is_current(built, HERE)
        is_new = "num==2.0" in text(built, "core")
        assert is_new or built.snapshot() == old
        for name, one in builds(built.project, HERE).items():
            versions = built.versions(name, HERE)
            assert {found.name: found.version for found in one.manifest.distributions} == versions
            assert {path.name for path in one.tree.glob("*.dist-info")} == {
                f"{name}-{version}.dist-info" for name, version in versions.items()
            }
            assert one.archive.stat().st_size == one.manifest.zip.size
        assert not {"update", "swap", "new-locks"} & set(os.listdir(built.root / ".layerkit"))
        outcomes.add((code, half, finished, is_new))
    assert {(9, False, False, False), (9, False, True, True), (9, True, True, True), (0, True, False, True)} <= outcomes


def test_an_interrupted_security_update_is_finished_by_the_next_command(built: Checkout) -> None:
    for _ in Killed(built, "security", HERE).steps(stride=1):
        if (built.root / ".layerkit" / "update").is_dir():
            break
    done = built.inv("lock", "--runtime", HERE.runtime, "--architecture", HERE.architecture)
    assert done.returncode == 0, done.stderr
    assert "interrupted while it was put in place: finished now" in done.stderr
    assert "num==2.0" in text(built, "core")
    assert is_current(built, HERE)
    (num,) = [one for one in builds(built.project, HERE)["core"].manifest.distributions if one.name == "num"]
    assert num.version == "2.0"


# ---- the tasks ----


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


@pytest.fixture
def call(stack: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Calls a task of this module on the stack."""
    monkeypatch.setenv("LAYERKIT_ROOT", str(stack.root))

    def said(task: Callable[..., Any], **flags: Any) -> Said:
        capfd.readouterr()
        code, message = 0, ""
        try:
            # Nobody answers there: no test may ask the real service.
            task(Context(Config(overrides={"layerkit": {**DEFAULTS, "osv_url": "http://127.0.0.1:1"}})), **flags)
        except Exit as stop:
            code, message = stop.code, stop.message or ""
        sys.stdout.flush()
        printed = capfd.readouterr()
        return Said(code, printed.out, printed.err + message)

    return said


def test_outdated_as_a_document_and_as_a_table(
    call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(tmp_path / "without a database"))
    said = call(outdated_task, source="local", json=True)
    assert said.code == 0
    assert said.document["target"] == str(TARGET)
    assert {
        "layer": "core",
        "name": "num",
        "locked": "1.0",
        "resolves": "2.1",
        "newest": "3.0",
        "outdated": True,
        "fixes": None,
    } in said.document["distributions"]
    said = call(outdated_task, layer=["ml"], source="local")
    assert said.code == 0
    assert [line.split() for line in said.out.splitlines() if line.split()[:1] == ["ml"]] == [
        ["ml", "jobs", "1.1", "2.0", "2.0"],
        ["ml", "learn", "1.0", "1.2", "1.2"],
    ]
    assert said.out.splitlines()[-1] == "2 of 2 are not the newest; `inv update` would change 2."


def test_update_as_a_document_and_in_words(stack: Checkout, call: Callable[..., Said]) -> None:
    before = stack.snapshot()
    said = call(update_task, dry_run=True)
    assert said.code == 0
    assert "layers/core/requirements.txt:2: num==1.0 -> num==2.1\n" in said.out
    assert "ml (python3.13-x86_64): jobs 1.1 -> 2.0, learn 1.0 -> 1.2\n" in said.out
    assert said.out.endswith("Nothing was changed (--dry-run).\n")
    assert stack.snapshot() == before
    document = call(update_task, json=True, package=["num"]).document
    assert document["lines"] == [
        {
            "file": "layers/core/requirements.txt",
            "line": 2,
            "before": "num==1.0",
            "after": "num==1.5",
            "layers": ["core"],
        }
    ]
    assert {lock["layer"]: lock["versions"] for lock in document["locks"]}["core"] == {
        "num": {"before": "1.0", "after": "1.5"}
    }
    assert call(update_task, package=["num"]).out.startswith("Nothing to raise: ")


WRONG: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "unknown package": (
        {"package": ["strange"]},
        2,
        "--package: no layer of the stack default has strange.",
        "A new distribution goes into",
    ),
    "unknown layer": ({"layer": ["web"]}, 2, "--layer: there is no layer called 'web'.", "Layers here: aws, core, ml."),
    "no lock": ({}, 2, "ml has no lock for python3.13-x86_64.", "Run `inv lock`."),
    "no index": ({}, 4, "the package index could not be asked:", "Check the network"),
    "conflict": ({}, 2, "the layers can't have one version of everything", "Loosen one of these requirements"),
    "no layers": ({}, 2, "there is no layer to update.", "inv new --layer NAME"),
}


@pytest.mark.parametrize(
    ("task", "wrong"),
    [(update_task, wrong) for wrong in WRONG]
    + [(outdated_task, wrong) for wrong in WRONG if wrong != "unknown package"],
)
def test_wrong_inputs_give_one_clear_line_and_change_nothing(
    stack: Checkout, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, task: Callable[..., Any], wrong: str
) -> None:
    flags, code, message, hint = WRONG[wrong]
    if wrong == "no lock":
        stack.project.lock_path("ml", TARGET).unlink()
    elif wrong == "no index":
        monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    elif wrong == "conflict":
        stack.layer("aws", "date<1\n")
    elif wrong == "no layers":
        for name in ("core", "ml", "aws"):
            shutil.rmtree(stack.root / "layers" / name)
    before = stack.snapshot()
    said = call(task, json=True, **flags)
    assert said.code == code, said
    error = said.document["error"]
    assert error["message"].startswith(message)
    assert hint in error["hint"]
    assert "Traceback" not in said.err
    assert stack.snapshot() == before
    assert no_work_is_left(stack)


def test_a_layer_that_is_not_for_the_target(stack: Checkout, call: Callable[..., Said]) -> None:
    stack.layer("aws", "date>=1.0,<2\n", 'architectures = ["arm64"]\n')
    for task in (outdated_task, update_task):
        said = call(task, layer=["aws"])
        assert said.code == 2
        assert "aws is not for python3.13-x86_64: layers/aws/layer.toml lists architectures arm64" in said.err
        assert call(task).code == 0


def test_a_security_update_as_a_task_builds_and_validates(
    built: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERKIT_ROOT", str(built.root))
    values = {**DEFAULTS, "runtime": HERE.runtime, "architecture": HERE.architecture}
    values["interpreters"] = {VERSION: sys.executable}
    chosen: Settings = settings(Context(Config(overrides={"layerkit": values})))
    fixing = Fixing(built, {**ALL, "B-2": ("learn", ">0", ())})
    project = chosen.project()
    optimizer = chosen.optimizer(HERE)
    plans = plan_build(project, HERE, list(project.layers), optimizer=optimizer)
    build(project, plans, uv=Uv(project.root), jobs=2, means=None, optimizer=optimizer)
    outcome = secure_task(chosen, project, fixing.scan(project), fixing.scan)
    assert outcome.exit_code == 3
    document = json.loads(json.dumps(outcome.document))
    assert [one["after"] for one in document["raises"]] == ["1.1", "1.5", "2.0"]
    assert [one["name"] for one in document["not_fixed"]] == ["learn"]
    assert [one["advisories"] for one in document["left"]] == [["B-2"]]
    capfd.readouterr()
    outcome.show()
    shown = capfd.readouterr().out
    assert "jobs 1.1 -> 2.0: A-3\n" in shown
    assert "layers/ml/requirements.txt:2: jobs>=2.0 added\n" in shown
    assert "not fixed: learn 1.0 (B-2): no version is known that fixes it\n" in shown
    states = {one["layer"]: one["state"] for one in built_status(built)}
    assert states == {"core": "valid", "ml": "valid", "aws": "valid"}


def built_status(checkout: Checkout) -> list[dict[str, Any]]:
    environment = {"INVOKE_LAYERKIT_RUNTIME": HERE.runtime, "INVOKE_LAYERKIT_ARCHITECTURE": HERE.architecture}
    done = checkout.inv("status", "--json", env=environment)
    layers = json.loads(done.stdout)["layers"]
    assert isinstance(layers, list)
    return layers


# ---- held against all that a scan looks at ----

OLD = datetime(2026, 1, 2, tzinfo=UTC)
FIXED = document("PYSEC-1", "num", {"introduced": "0"}, {"fixed": "1.5"}, aliases=["CVE-1"])
NO_FIX = document("PYSEC-2", "num", {"introduced": "0"})
GPL = {"extra": "GPL-3.0-only"}
ON_THE_FIX = document("PYSEC-3", "num", {"introduced": "1.5"}, {"fixed": "2.0"}, aliases=["CVE-3"])


def with_this(*documents: Document, **options: Any) -> Scanner:
    """A scan of advisories that are at hand; what pip-audit does is to look them up."""
    advisories = [parse_advisory(one) for one in documents]

    def known(name: str, version: str) -> tuple[Advisory, ...]:
        return tuple(one for one in advisories if applies(one, name, version))

    def audit(trees: Mapping[Path, Iterable[Pin]]) -> dict[Path, tuple[Audited, ...]]:
        return {
            tree: tuple(
                Audited(*pin, tuple(Reported(one.id, one.aliases) for one in known(*pin)), reason)
                for pin, reason in sorted(carried_by(tree, expected).items())
            )
            for tree, expected in trees.items()
        }

    source = Source("local", "the local database", None, known, OLD, ("it is old",))
    return Scanner(source, options.pop("audit", audit), options.pop("screen", None), **options)


@pytest.fixture
def chosen(built: Checkout, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings for the stack as it is built here, which a security update would build again."""
    monkeypatch.setenv("LAYERKIT_ROOT", str(built.root))
    values = {**DEFAULTS, "runtime": HERE.runtime, "architecture": HERE.architecture}
    values["interpreters"] = {VERSION: sys.executable}
    found = settings(Context(Config(overrides={"layerkit": values})))
    build_again(found)
    return found


def build_again(chosen: Settings) -> None:
    project = chosen.project()
    optimizer = chosen.optimizer(HERE)
    plans = plan_build(project, HERE, list(project.layers), optimizer=optimizer)
    build(project, plans, uv=Uv(project.root), jobs=2, means=None, optimizer=optimizer)


def test_each_advisory_by_its_own_fix_with_where_it_is_from(
    chosen: Settings, built: Checkout, capfd: pytest.CaptureFixture[str]
) -> None:
    done = secure_by_scan(chosen, chosen.project(), with_this(FIXED, NO_FIX), dry_run=True)
    assert done.exit_code == 3
    document = json.loads(json.dumps(done.document))
    assert [(one["after"], one["advisories"]) for one in document["raises"]] == [("1.5", ["PYSEC-1"])]
    assert [one["advisories"] for one in document["not_fixed"]] == [["PYSEC-2"]]
    assert (document["source"], document["date"]) == ("the local database", "2026-01-02T00:00:00+00:00")
    assert document["notes"] == ["it is old"]
    capfd.readouterr()
    done.show()
    shown = capfd.readouterr().out
    assert "num 1.0 -> 1.5: PYSEC-1\n" in shown
    assert "not fixed: num 1.0 (PYSEC-2): no version is known that fixes it\n" in shown
    assert "warning: it is old\n" in shown
    assert "the local database (newest advisory: 2026-01-02)" in shown


@pytest.mark.parametrize(
    ("exemption", "after"),
    [
        (None, "2.0"),
        (Exemption("cve-3", "not used", date.max, "here"), "1.5"),
        (Exemption("CVE-3", "not used", date.max, "here", "core"), "1.5"),
        (Exemption("CVE-3", "not used", date.max, "here", "aws"), "2.0"),
        (Exemption("CVE-3", "not used", date(2020, 1, 1), "here"), "2.0"),
    ],
)
def test_an_exception_counts_for_a_fix_as_it_does_for_a_scan(
    chosen: Settings, built: Checkout, exemption: Exemption | None, after: str
) -> None:
    exemptions = (exemption,) if exemption else ()
    done = secure_by_scan(chosen, chosen.project(), with_this(FIXED, ON_THE_FIX, exemptions=exemptions), dry_run=True)
    assert [one["after"] for one in done.document["raises"]] == [after]


@pytest.mark.parametrize("what", ["suspicious", "licence"])
def test_a_new_build_that_brings_something_else_is_refused(
    chosen: Settings, built: Checkout, index: Index, what: str
) -> None:
    if what == "suspicious":
        make_wheel(index.folder, "num", "1.5", files={"num.py": "", "num.env": "TOKEN=x\n"})
        said = "layers/core/python/num.env: an environment file"
    else:
        make_wheel(index.folder, "num", "1.5", requires=["extra"])
        make_wheel(index.folder, "extra", "1.0")
        said = "core: extra 1.0 is under GPL-3.0-only, which licences_deny bans"
    before = built.snapshot()
    with pytest.raises(CheckFailed) as caught:
        secure_by_scan(chosen, chosen.project(), with_this(FIXED, deny=("GPL-*",), known_licences=GPL))
    assert caught.value.message.startswith("nothing was changed: the new builds have what the ones before had not,")
    assert said in caught.value.message
    assert built.snapshot() == before


def test_what_was_there_before_is_no_reason_to_stay_vulnerable(
    chosen: Settings, built: Checkout, index: Index, capfd: pytest.CaptureFixture[str]
) -> None:
    """A banned licence and a suspicious file that the old build has as well, and licences that can't be told."""
    for version in ("1.0", "1.5"):
        make_wheel(index.folder, "num", version, files={"num.py": "", "num.env": "TOKEN=x\n"})
    shutil.rmtree(built.root / "layers" / "core" / "locks")
    built.lock(HERE)
    build_again(chosen)
    capfd.readouterr()
    scanner = with_this(FIXED, deny=("GPL-*",), known_licences=GPL | {"num": "GPL-3.0-only"})
    done = secure_by_scan(chosen, chosen.project(), scanner)
    assert [one["after"] for one in done.document["raises"]] == ["1.5"]
    assert done.exit_code == 0
    assert "num==1.5" in text(built, "core")
    assert "warning" not in capfd.readouterr().err, "no licence is newly not known"


def test_what_safety_could_not_say_names_the_flag(chosen: Settings, built: Checkout) -> None:
    screen = lambda pins: Skipped("safety", "", "its service can't be reached", "Try again.")  # noqa: E731
    with pytest.raises(ExternalError, match="not everything could be scanned") as caught:
        secure_by_scan(chosen, chosen.project(), with_this(FIXED, screen=screen))
    assert "--skip-safety" in caught.value.hint


def test_nothing_that_counts_is_said_so(chosen: Settings, built: Checkout, capfd: pytest.CaptureFixture[str]) -> None:
    done = secure_by_scan(chosen, chosen.project(), with_this())
    done.show()
    shown = capfd.readouterr().out
    assert shown.startswith("Nothing was found that counts, so there is nothing to fix.\n")
    assert "inv outdated" not in shown


def test_hints_are_for_the_target(stack: Checkout) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_outdated(stack, target=ARM)
    assert caught.value.hint == "Run `inv lock --architecture arm64`."
    assert flags_for(Target("python3.12", "arm64"), TARGET) == " --runtime python3.12 --architecture arm64"
    assert flags_for(TARGET, TARGET) == ""
