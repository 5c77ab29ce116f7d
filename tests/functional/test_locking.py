"""Locking with the real uv, against an index on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layerkit.errors import ConfigurationError, ExternalError
from layerkit.files import checkout_lock
from layerkit.locking import finish_locks, stale
from layerkit.model import Target
from tests.support.checkouts import REPOSITORY, TARGET, Checkout
from tests.support.index import Index, serve
from tests.support.wheels import make_sdist, make_wheel

DEPENDS_ON_CORE = 'depends_on = ["core"]\n'
ARM = Target("python3.13", "arm64")


@pytest.fixture
def science(index: Index, checkout: Checkout) -> Checkout:
    """core carries num and date; ml needs num through learn and depends on core; aws needs date as well."""
    for version in ("1.0", "1.5", "2.0"):
        make_wheel(index.folder, "num", version)
        make_wheel(index.folder, "date", version)
    make_wheel(index.folder, "learn", "1.0", requires=["num>=1.5", "jobs"])
    make_wheel(index.folder, "jobs", "1.0")
    make_wheel(index.folder, "cloud", "1.0", requires=["date<2"])
    checkout.layer("core", "num\ndate\n")
    checkout.layer("ml", "learn\n", DEPENDS_ON_CORE)
    checkout.layer("aws", "cloud\n")
    return checkout


def test_one_version_of_everything_and_nothing_twice(science: Checkout) -> None:
    science.lock()
    assert science.versions("core") == {"num": "2.0", "date": "1.5"}
    assert science.versions("ml") == {"learn": "1.0", "jobs": "1.0"}
    assert science.versions("aws") == {"cloud": "1.0", "date": "1.5"}
    text = science.project.lock_path("ml", TARGET).read_text()
    assert "# provided by core: num\n" in text
    assert text.count("--hash=sha256:") == 2


def test_locking_again_writes_nothing(science: Checkout) -> None:
    science.lock()
    before = science.snapshot()
    changes = science.lock()
    assert not any(change.written or change.versions for change in changes.values())
    assert science.snapshot() == before


def test_new_versions_come_in_only_when_asked_for(science: Checkout, index: Index) -> None:
    science.lock()
    for name in ("num", "learn", "jobs"):
        make_wheel(index.folder, name, "2.5", requires=["num", "jobs"] if name == "learn" else [])
    science.layer("aws", "cloud\nsix-like\n")
    make_wheel(index.folder, "six-like", "1.0")
    changes = science.lock()
    assert {name: dict(change.versions) for name, change in changes.items()} == {
        "core": {},
        "ml": {},
        "aws": {"six-like": (None, "1.0")},
    }
    assert not changes["core"].written
    assert dict(science.lock(packages=["Learn"])["ml"].versions) == {"learn": ("1.0", "2.5")}
    assert dict(science.lock(upgrade=True)["ml"].versions) == {"jobs": ("1.0", "2.5")}
    assert science.versions("core")["num"] == "2.5"


def test_a_new_file_for_a_locked_version_changes_no_lock(science: Checkout, index: Index) -> None:
    science.lock()
    before = science.snapshot()
    make_wheel(index.folder, "num", "2.0", tag="cp313-cp313-manylinux_2_17_x86_64")
    science.layer("aws", "cloud\n# a comment\n")
    science.lock()
    assert science.project.lock_path("core", TARGET).read_bytes() == before["layers/core/locks/python3.13-x86_64.txt"]


def test_layer_limits_what_may_change(science: Checkout, index: Index) -> None:
    science.lock()
    for name in ("num", "date", "jobs"):
        make_wheel(index.folder, name, "1.9")
        make_wheel(index.folder, name, "3.0")
    changes = science.lock(layers=["core"], upgrade=True)
    assert dict(changes["core"].versions) == {"num": ("2.0", "3.0")}, "date is in aws as well, which may not change"
    assert set(changes) == {"core"}
    assert science.versions("ml")["jobs"] == "1.0"


def test_what_the_pin_of_another_layer_holds_is_said(science: Checkout, index: Index) -> None:
    science.lock()
    make_wheel(index.folder, "date", "1.9")
    before = science.snapshot()
    with pytest.raises(
        ConfigurationError, match=r"--package date .*: it stays at 1\.5, since aws carries it"
    ) as caught:
        science.lock(layers=["core"], packages=["date"])
    assert "Add --layer aws" in caught.value.hint
    assert science.snapshot() == before
    told: list[str] = []
    science.lock(layers=["core"], upgrade=True, tell=told.append)
    assert any("not raised, since layers not named with --layer carry them too: date" in text for text in told)
    science.lock(layers=["core", "aws"], packages=["date"])
    assert science.versions("core")["date"] == science.versions("aws")["date"] == "1.9"


def test_layer_does_not_limit_what_is_checked(science: Checkout) -> None:
    science.lock()
    science.layer("core", "date\n")
    before = science.snapshot()
    with pytest.raises(ConfigurationError, match=r"ml .* would have to change too: num 2\.0 added") as caught:
        science.lock(layers=["core"])
    assert "--layer ml" in caught.value.hint
    assert science.snapshot() == before
    science.lock()
    assert science.versions("ml") == {"learn": "1.0", "jobs": "1.0", "num": "2.0"}


def test_pins_of_other_layers_are_kept_and_that_is_said(science: Checkout) -> None:
    science.lock()
    science.layer("core", "num\ndate==1.0\n")
    with pytest.raises(ConfigurationError) as caught:
        science.lock(layers=["core"])
    assert "Layers not named with --layer keep their versions" in caught.value.hint
    science.lock()
    assert science.versions("aws")["date"] == science.versions("core")["date"] == "1.0"


def test_locking_one_layer_first_locks_what_it_depends_on(science: Checkout) -> None:
    assert set(science.lock(layers=["ml"])) == {"core", "ml"}


def test_a_conflict_names_both_layers_and_both_lines(science: Checkout) -> None:
    science.layer("core", "# we need the new one\nnum>=2\n")
    science.layer("aws", "num<1.5  # for now\n")
    with pytest.raises(ConfigurationError) as caught:
        science.lock()
    assert "core asks for num>=2 (layers/core/requirements.txt:2)" in caught.value.message
    assert "aws asks for num<1.5 (layers/aws/requirements.txt:1)" in caught.value.message
    assert "layerkit-layer" not in str(caught.value)
    assert not list((science.root / "layers").rglob("locks"))


def test_a_conflict_through_a_dependency_names_the_layers(science: Checkout) -> None:
    science.layer("core", "num==1.0\n")
    with pytest.raises(ConfigurationError) as caught:
        science.lock()
    assert "core asks for num==1.0 (layers/core/requirements.txt:1)" in caught.value.message
    assert "ml asks for learn (layers/ml/requirements.txt:1)" in caught.value.message


def test_another_stack_is_resolved_on_its_own(science: Checkout) -> None:
    science.layer("old", "num==1.0\n", 'stack = "legacy"\n')
    science.lock()
    assert science.versions("old") == {"num": "1.0"}
    assert science.versions("core")["num"] == "2.0"


def test_a_package_of_one_stack_is_raised_there_alone(science: Checkout, index: Index) -> None:
    science.layer("old", "num==1.0\n", 'stack = "legacy"\n')
    science.lock()
    make_wheel(index.folder, "jobs", "1.1")
    changes = science.lock(packages=["jobs"])
    assert {name: dict(change.versions) for name, change in changes.items() if change.versions} == {
        "ml": {"jobs": ("1.0", "1.1")}
    }
    with pytest.raises(ConfigurationError, match="no layer of the stacks default and legacy has strange"):
        science.lock(packages=["strange"])
    with pytest.raises(ConfigurationError, match="no layer of the stack legacy has jobs"):
        science.lock(layers=["old"], packages=["jobs"])


def test_a_layer_called_like_a_distribution(science: Checkout, index: Index) -> None:
    science.layer("num", "num\nlearn\n")
    science.lock()
    assert science.versions("num") == {"num": "2.0", "learn": "1.0", "jobs": "1.0"}


def test_each_target_gets_its_own_wheel_and_starts_from_the_versions_there_are(science: Checkout, index: Index) -> None:
    for tag in ("manylinux_2_17_x86_64", "manylinux_2_17_aarch64"):
        make_wheel(index.folder, "native", "1.0", tag=f"cp313-cp313-{tag}", files={"native.py": tag})
    science.layer("core", "num\ndate\nnative\n")
    science.lock()
    make_wheel(index.folder, "jobs", "9.0")
    science.lock(ARM)
    assert science.versions("ml", ARM) == science.versions("ml")
    one, other = (science.project.lock_path("core", target).read_text() for target in (TARGET, ARM))
    assert re.findall(r"native==1.0 \\\n.*", one) != re.findall(r"native==1.0 \\\n.*", other)


def test_markers_are_those_of_the_target(science: Checkout, index: Index) -> None:
    science.layer(
        "core", "num; python_version<'3.13'\ndate; platform_machine=='aarch64'\njobs; sys_platform=='linux'\n"
    )
    science.layer("ml", "jobs\n")
    science.layer("aws", "jobs\n")
    science.lock()
    science.lock(ARM)
    assert science.versions("core") == {"jobs": "1.0"}
    assert science.versions("core", ARM) == {"jobs": "1.0", "date": "2.0"}


def test_the_full_python_version_is_what_uv_takes_it_to_be(science: Checkout) -> None:
    science.layer("core", "date<1.5; python_full_version=='3.13.0'\nnum\n")
    science.lock()
    assert science.versions("core")["date"] == "1.0"
    raised = [science.project.lock_path(name, TARGET) for name in ("core", "aws")]
    for path in raised:
        path.write_text(path.read_text().replace("date==1.0", "date==1.5"))
    assert list(stale(science.project, science.project.layers.stack("default", TARGET), TARGET)) == ["core"]


# ---- all or nothing ----


def test_a_merge_that_no_longer_agrees_is_noticed_and_mended(science: Checkout, index: Index) -> None:
    """One branch asks for an older num in ml, where only ml's lock records it; the other raises num in core."""
    science.lock()
    ml = science.layer("ml", "learn\nnum<3\n")
    assert {name for name, change in science.lock().items() if change.written} == {"ml"}
    kept = {path: path.read_bytes() for path in (ml / "requirements.txt", science.project.lock_path("ml", TARGET))}
    science.layer("ml", "learn\n")
    make_wheel(index.folder, "num", "3.0")
    assert science.lock(packages=["num"])["core"].written
    for path, content in kept.items():
        path.write_bytes(content)
    done = science.inv("lock", "--check")
    assert done.returncode == 3
    assert "ml (python3.13-x86_64): layers/ml/requirements.txt:2 asks for num<3, but core carries 3.0" in done.stdout
    assert science.inv("build", "--locked").returncode == 3
    assert science.inv("build").returncode == 0
    assert science.versions("core")["num"] == "2.0"
    assert science.inv("lock", "--check").returncode == 0


def test_nothing_is_written_when_one_target_fails(science: Checkout, index: Index) -> None:
    make_wheel(index.folder, "native", "1.0", tag="cp313-cp313-manylinux_2_17_x86_64")
    science.inv("lock", "--architecture", "arm64")
    science.inv("lock")
    science.layer("core", "num\ndate\nnative\n")
    before = science.snapshot()
    done = science.inv("lock")
    assert done.returncode == 2
    assert "native==1.0 has no wheel for python3.13-arm64" in done.stderr
    assert science.snapshot() == before


def test_a_target_without_locks_starts_from_what_the_same_run_found(science: Checkout, index: Index) -> None:
    science.lock()
    make_wheel(index.folder, "jobs", "3.0", tag="cp313-cp313-manylinux_2_17_aarch64", files={"jobs.py": ""})
    science.lock(ARM)
    assert science.versions("ml", ARM)["jobs"] == "1.0"
    shutil.rmtree(science.project.lock_path("ml", ARM).parent)
    assert science.inv("lock").returncode == 0
    assert science.versions("ml", ARM)["jobs"] == science.versions("ml")["jobs"] == "1.0"


KILLED = """
import os, sys
from pathlib import Path
from layerkit.installer import Uv
from layerkit.locking import lock
from layerkit.model import Target
from layerkit.project import load_project
target = Target("python3.13", "x86_64")
project = load_project(Path(sys.argv[1]), target)
left = int(sys.argv[2])
armed = False
def dying(event, arguments):
    global left, armed
    armed = armed or "new" in Path(str(arguments[0] if arguments else "")).parts
    if armed and event in ("open", "os.rename", "os.rmdir"):
        left -= 1
        if left == 0:
            os._exit(9)
sys.addaudithook(dying)
lock(project, [target], upgrade=True, uv=Uv(project.root), scratch=project.state / "work" / "x")
"""


def test_a_kill_at_any_step_leaves_the_old_locks_or_the_new_ones(science: Checkout, index: Index) -> None:
    """Half of the new locks may be in place then, but that is known, and the next command brings the rest."""
    science.lock()
    for name in ("num", "jobs"):
        make_wheel(index.folder, name, "3.0")
    kept = science.root.with_name("kept")
    os.rename(science.root, kept)
    outcomes = set()
    for step in range(1, 60):
        shutil.copytree(kept, science.root)
        command = [sys.executable, "-c", KILLED, str(science.root), str(step)]
        code = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True).returncode
        assert code in (0, 9)
        project = science.project
        found = (science.versions("core")["num"], science.versions("ml")["jobs"])
        half = len({version.split(".")[0] for version in found} & {"3"}) == 1 and found != ("3.0", "3.0")
        reasons = stale(project, project.layers.stack("default", TARGET), TARGET)
        assert bool(reasons) >= half, "half of the set must not count as current"
        finished = finish_locks(project)
        found = (science.versions("core")["num"], science.versions("ml")["jobs"])
        assert found in (("2.0", "1.0"), ("3.0", "3.0"))
        assert stale(project, project.layers.stack("default", TARGET), TARGET) == {}
        outcomes.add((code, half, finished, found == ("3.0", "3.0")))
        shutil.rmtree(science.root)
        if code == 0:
            break
    assert (9, False, False, False) in outcomes
    assert (9, True, True, True) in outcomes
    assert (0, False, False, True) in outcomes


def test_an_interrupted_lock_is_finished_by_the_next_command(science: Checkout) -> None:
    science.lock()
    path = science.project.lock_path("core", TARGET)
    waiting = science.root / ".layerkit" / "new-locks" / "layers%2Fcore%2Flocks%2Fpython3.13-x86_64.txt"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(path.read_bytes())
    path.unlink()
    done = science.inv("lock", "--check")
    assert done.returncode == 3
    assert "core (python3.13-x86_64): `inv lock` was interrupted while it put its new lock in place" in done.stdout
    assert waiting.exists()
    done = science.inv("build")
    assert done.returncode == 0
    assert "interrupted while it put its locks in place: finished now" in done.stderr
    assert "locking first" not in done.stderr
    assert path.exists()
    assert not waiting.parent.exists()


# ---- wheels and sources ----


def test_a_distribution_without_a_wheel_for_the_target(science: Checkout, index: Index) -> None:
    make_wheel(index.folder, "native", "1.0", tag="cp313-cp313-manylinux_2_17_x86_64")
    make_wheel(index.folder, "native", "2.0", tag="cp313-cp313-win_amd64")
    science.layer("core", "native==2.0\n")
    with pytest.raises(ConfigurationError) as caught:
        science.lock()
    assert "native==2.0 has no wheel for python3.13-x86_64" in caught.value.message
    assert "layers/core/requirements.txt:1" in caught.value.message
    assert "native==1.0" in caught.value.hint


def test_a_glibc_newer_than_the_runtimes_does_not_count(science: Checkout, index: Index) -> None:
    make_wheel(index.folder, "native", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    science.layer("core", "native\n")
    with pytest.raises(ConfigurationError, match=r"native==1\.0 has no wheel for python3.11-x86_64"):
        science.lock(Target("python3.11", "x86_64"))


SETUP = "from setuptools import setup\nsetup(name='plain', version='1.0', py_modules=['plain'])\n"


def test_a_source_distribution_needs_leave(science: Checkout, index: Index) -> None:
    make_sdist(index.folder, "plain", "1.0", {"setup.py": SETUP, "plain.py": "X = 1\n"})
    science.layer("core", "plain\n")
    with pytest.raises(ConfigurationError, match=r"plain==1\.0 has no wheel") as caught:
        science.lock()
    assert 'allow_sdist = ["plain"]' in caught.value.hint


def test_a_name_that_no_index_has(science: Checkout) -> None:
    science.layer("core", "numm\n")
    with pytest.raises(
        ConfigurationError, match=r"no index .* has a distribution called numm, asked for by numm"
    ) as caught:
        science.lock()
    assert "layers/core/requirements.txt:1" in caught.value.message


def test_a_version_that_does_not_exist(science: Checkout) -> None:
    science.layer("core", "num==99\n")
    with pytest.raises(ConfigurationError, match=r"core asks for num==99 \(layers/core/requirements.txt:1\)"):
        science.lock()


def test_a_package_to_upgrade_that_nobody_has(science: Checkout) -> None:
    with pytest.raises(ConfigurationError, match="--package: no layer of the stack default has strange"):
        science.lock(packages=["strange"])


# ---- indexes ----


def test_credentials_of_a_private_index_go_nowhere(
    science: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(index.folder, credentials="me:hunter22") as private:
        monkeypatch.setenv("UV_DEFAULT_INDEX", private.url)
        science.lock()
        assert private.asked
        for content in science.snapshot().values():
            assert b"hunter22" not in content
            assert b"127.0.0.1" not in content
        science.layer("core", "num==99\n")
        done = science.inv("lock")
        monkeypatch.setenv("UV_DEFAULT_INDEX", private.url.replace("hunter22", "hunter23"))
        science.layer("core", "elsewhere\n")
        refused = science.inv("lock", "--json")
    assert done.returncode == 2
    assert refused.returncode in (2, 4)
    for text in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert "hunter2" not in text


def test_an_index_that_does_not_answer(science: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ExternalError, match="the package index could not be asked"):
        science.lock()


def test_the_checkouts_own_uv_configuration_counts(
    science: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.delenv("UV_NO_CONFIG")
    (science.root / "uv.toml").write_text(f'[[index]]\nurl = "{index.url}"\ndefault = true\n')
    science.lock()
    assert science.versions("core") == {"num": "2.0", "date": "1.5"}


# ---- the task ----


def test_the_task_locks_every_target_that_has_locks(science: Checkout) -> None:
    assert science.inv("lock", "--architecture", "arm64").returncode == 0
    document = science.inv_json("lock")
    assert {entry["target"] for entry in document["locks"]} == {"python3.13-x86_64", "python3.13-arm64"}


def test_check_changes_nothing_and_exits_with_3(science: Checkout) -> None:
    before = science.snapshot()
    done = science.inv("lock", "--check")
    assert (done.returncode, done.stdout.count("no lock yet")) == (3, 3)
    assert science.snapshot() == before
    science.lock()
    assert science.inv("lock", "--check").returncode == 0
    science.layer("core", "num\ndate\njobs\n")
    document = json.loads(science.inv("lock", "--check", "--json").stdout)
    assert document["stale"] == [
        {"layer": "core", "target": "python3.13-x86_64", "reason": "its requirements have changed"}
    ]
    assert science.inv("lock", "--check", "--layer", "ml").returncode == 0


def test_a_layer_that_is_for_none_of_the_targets(science: Checkout) -> None:
    science.layer("aws", "cloud\n", 'architectures = ["x86_64"]\n')
    for words in (["lock"], ["lock", "--check"]):
        done = science.inv(*words, "--layer", "aws", "--architecture", "arm64")
        assert done.returncode == 2
        assert "aws is not for python3.13-arm64: layers/aws/layer.toml lists architectures x86_64" in done.stderr
    science.lock(ARM)
    done = science.inv("lock", "--layer", "aws")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("aws (python3.13-x86_64): ")


def test_nothing_to_lock(checkout: Checkout) -> None:
    done = checkout.inv("lock")
    assert (done.returncode, "there is no layer to lock" in done.stderr) == (2, True)


def test_a_file_called_like_a_lock_for_no_target_is_an_error(science: Checkout) -> None:
    science.lock()
    path = science.project.lock_path("core", TARGET)
    shutil.copy(path, path.with_name("python3.13-x86_64-old.txt"))
    for words in (["lock"], ["lock", "--check"]):
        done = science.inv(*words)
        assert done.returncode == 2
        assert "layers/core/locks/python3.13-x86_64-old.txt: 'x86_64-old' is not an architecture" in done.stderr


def test_the_layers_are_read_once_the_lock_is_held(science: Checkout) -> None:
    """Whoever held it may have changed them."""
    science.lock()
    with checkout_lock(science.root / ".layerkit", "the first", print):
        environment = {**os.environ, **science.environment}
        second = subprocess.Popen(science.command("lock"), env=environment, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "waiting for the first" in second.stderr.readline()
        science.layer("core", "num<2\ndate\n")
    _, rest = second.communicate(timeout=60)
    assert second.returncode == 0, rest
    assert science.versions("core")["num"] == "1.5"


def test_where_there_are_no_layers_nothing_is_made(checkout: Checkout) -> None:
    (checkout.root / "layers").rmdir()
    for words in (["lock"], ["build"]):
        done = checkout.inv(*words)
        assert done.returncode == 2
        assert "layers does not exist" in done.stderr
        assert "inv new --layer NAME" in done.stderr
    assert list(checkout.root.iterdir()) == []


# ---- locking first ----


def test_a_build_locks_no_other_stack_and_nothing_that_is_current(science: Checkout, index: Index) -> None:
    science.layer("old", "num==1.0\n", 'stack = "legacy"\n')
    science.lock(layers=["core", "ml", "aws"])
    make_wheel(index.folder, "six-like", "1.0")
    science.layer("core", "num\ndate\nsix-like\n")
    done = science.inv("build", "--layer", "core")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" written") == 1
    assert science.versions("core") == {"num": "2.0", "date": "1.5", "six-like": "1.0"}
    assert not science.project.lock_path("old", TARGET).exists()


def test_a_build_locks_what_has_to_move_along(science: Checkout) -> None:
    science.layer("core", "num\ndate<1.5\n")
    science.layer("aws", "date\n")
    science.lock()
    assert science.versions("aws") == {"date": "1.0"}
    science.layer("core", "num\ndate>=1.5\n")
    done = science.inv("build", "--layer", "core")
    assert done.returncode == 0, done.stderr
    assert "other layers have to change as well" in done.stderr
    assert "layers/aws/locks/python3.13-x86_64.txt written" in done.stderr
    assert science.versions("aws") == {"date": "2.0"}
    science.layer("core", "date\n")
    assert science.inv("build", "--layer", "core").returncode == 0
    assert science.versions("ml") == {"jobs": "1.0", "learn": "1.0", "num": "2.0"}


def test_check_asks_no_index(science: Checkout, index: Index) -> None:
    science.lock()
    index.asked.clear()
    assert science.inv("lock", "--check").returncode == 0
    assert index.asked == []


def test_a_failed_lock_leaves_no_trace(make_checkout: Callable[[str], Checkout], tmp_path: Path) -> None:
    checkout = make_checkout("other")
    checkout.layer("core", "nowhere\n")
    before = checkout.snapshot()
    assert checkout.inv("lock").returncode == 2
    assert checkout.snapshot() == before
    assert list((checkout.root / ".layerkit" / "work").iterdir()) == []
