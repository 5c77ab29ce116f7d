"""Locking with the real uv, against an index on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from layerkit.errors import ConfigurationError, ExternalError
from layerkit.model import Target
from tests.support.checkouts import TARGET, Checkout
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
    with pytest.raises(ConfigurationError, match="--package: no layer of this stack has strange"):
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
