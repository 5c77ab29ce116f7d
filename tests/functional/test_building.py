"""Building with the real uv: what comes out, that it is always the same, and what a failure leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from layerkit.building import Action, build, finish_swap, plan_build
from layerkit.errors import CheckFailed, ConfigurationError, ExternalError, Incomplete
from layerkit.installer import Uv
from layerkit.model import Severity, Target
from tests.support.checkouts import REPOSITORY, TARGET, Checkout
from tests.support.index import Index
from tests.support.wheels import make_sdist, make_wheel

ARM = Target("python3.13", "arm64")


def fill(index: Index) -> None:
    make_wheel(
        index.folder, "num", "1.0", files={"num/__init__.py": "N = 1\n" * 5000, "num/data.bin": os.urandom(9000)}
    )
    make_wheel(index.folder, "num", "2.0")
    make_wheel(
        index.folder,
        "learn",
        "1.0",
        requires=["num"],
        scripts={"learn": "learn:main"},
        data_scripts={"learn.py": "#!python\nimport learn\n"},
    )
    make_wheel(index.folder, "cloud", "1.0")


def layers(checkout: Checkout) -> None:
    checkout.layer("core", "num<2\n")
    checkout.layer("ml", "learn\n", 'depends_on = ["core"]\n')
    checkout.layer("aws", "cloud\n", code={"ours/__init__.py": "WHO = 'us'\n"})


@pytest.fixture
def stack(index: Index, checkout: Checkout) -> Checkout:
    """core, ml (which depends on it) and aws (with code of its own), locked."""
    fill(index)
    layers(checkout)
    checkout.lock()
    return checkout


def zips(checkout: Checkout) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (checkout.root / "dist").glob("*.zip")}


def test_what_a_build_leaves(stack: Checkout) -> None:
    stack.build()
    with zipfile.ZipFile(stack.root / "dist" / "ml-python3.13-x86_64.zip") as archive:
        names = archive.namelist()
        label = json.loads(archive.read("layerkit/ml.json"))
        script = archive.read("python/bin/learn.py")
    assert names == [
        "layerkit/ml.json",
        "python/bin/learn.py",
        "python/learn-1.0.dist-info/INSTALLER",
        "python/learn-1.0.dist-info/METADATA",
        "python/learn-1.0.dist-info/RECORD",
        "python/learn-1.0.dist-info/REQUESTED",
        "python/learn-1.0.dist-info/WHEEL",
        "python/learn-1.0.dist-info/entry_points.txt",
        "python/learn.py",
    ]
    assert script == b"#!/var/lang/bin/python3.13\nimport learn\n"
    manifest = json.loads((stack.root / "dist" / "ml-python3.13-x86_64.json").read_text())
    core = json.loads((stack.root / "dist" / "core-python3.13-x86_64.json").read_text())
    assert label["inputs"] == manifest["inputs"]
    assert label["depends_on"] == ["core"]
    assert manifest["depends_on"] == {"core": core["inputs"]}
    assert manifest["zip"]["sha256"] == zips(stack)["ml-python3.13-x86_64.zip"]
    on_disk = [path for path in (stack.root / "layers" / "ml" / "python").rglob("*") if path.is_file()]
    assert manifest["tree"]["files"] == len(on_disk)
    assert manifest["tree"]["size"] == sum(path.stat().st_size for path in on_disk)
    aws = json.loads((stack.root / "dist" / "aws-python3.13-x86_64.json").read_text())
    assert aws["own_code"] == {"files": 1, "size": len("WHO = 'us'\n")}
    assert (stack.root / "layers" / "aws" / "python" / "ours" / "__init__.py").exists()


IN_ANY_PLACE = """
import os, sys
os.umask(int(sys.argv[1], 8))
from layerkit.building import build, plan_build
from layerkit.installer import Uv
from layerkit.model import Target
from layerkit.project import load_project
from pathlib import Path
target = Target("python3.13", "x86_64")
project = load_project(Path(sys.argv[2]), target)
plans = plan_build(project, target, list(project.layers))
build(project, plans, uv=Uv(project.root), jobs=int(sys.argv[3]), means=None)
"""


def test_the_same_bytes_whatever_the_place(stack: Checkout, make_checkout: Callable[[str], Checkout]) -> None:
    found = []
    for number, (umask, zone, jobs) in enumerate(
        [("022", "UTC", "1"), ("077", "Asia/Kolkata", "4"), ("000", "EST", "2")]
    ):
        clone = make_checkout(f"clone {'far ' * number}away")
        layers(clone)
        for name in clone.project.layers:
            lock = clone.project.lock_path(name, TARGET)
            lock.parent.mkdir()
            lock.write_bytes(stack.project.lock_path(name, TARGET).read_bytes())
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": str(number)}
        environment["LAYERKIT_CACHE_DIR"] = str(clone.root / "cache")
        command = [sys.executable, "-c", IN_ANY_PLACE, umask, str(clone.root), jobs]
        subprocess.run(command, env=environment, cwd=REPOSITORY, check=True)
        found.append(zips(clone))
    assert len(found[0]) == 3
    assert found[0] == found[1] == found[2]


def test_the_tree_of_another_default_target_is_not_taken_for_this_ones(stack: Checkout) -> None:
    """Both targets have their tree in layers/<name>/python while they are the default."""
    other = {"INVOKE_LAYERKIT_RUNTIME": "python3.12"}
    actions = []
    for environment in ({}, other, {}):
        done = stack.inv("build", "--json", "--skip-validation", "--skip-optimization", env=environment)
        actions.append({layer["layer"]: layer["action"] for layer in json.loads(done.stdout)["layers"]})
    # ml has a script that names its runtime; the others' trees are the same for both.
    assert actions[2] == {"core": "up to date", "ml": "build", "aws": "up to date"}
    script = stack.project.tree_path("ml", TARGET) / "bin" / "learn.py"
    assert script.read_text().startswith("#!/var/lang/bin/python3.13")
    assert {result.plan.action for result in stack.build().values()} == {Action.NOTHING}


def test_importing_from_a_tree_is_no_change_of_it(stack: Checkout) -> None:
    stack.build()
    cache = stack.project.tree_path("core", TARGET) / "__pycache__"
    cache.mkdir()
    (cache / "num.cpython-311.pyc").write_text("")
    assert {result.plan.action for result in stack.build().values()} == {Action.NOTHING}


def test_own_code_that_changes_during_the_build_is_noticed(stack: Checkout) -> None:
    stack.layer("aws", "cloud\n", code={"own.py": "A = 1\n"})
    project = stack.project
    plans = plan_build(project, TARGET, ["aws"])
    stack.layer("aws", "cloud\n", code={"own.py": "A = 2\n"})
    with pytest.raises(Incomplete, match="layers/aws/src was changed while the layer was built"):
        build(project, plans, uv=Uv(project.root), jobs=1, means=None)
    assert not (stack.root / "dist").exists()


def test_nothing_changed_touches_nothing(stack: Checkout) -> None:
    stack.build()

    def state() -> dict[Path, tuple[int, int]]:
        found = [path for path in stack.root.rglob("*") if ".layerkit" not in path.parts]
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}

    before = state()
    results = stack.build()
    assert {name: result.plan.action for name, result in results.items()} == dict.fromkeys(results, Action.NOTHING)
    assert state() == before


def test_one_layer_changed_costs_that_layer_alone(stack: Checkout) -> None:
    stack.build()
    before = zips(stack)
    stack.layer("core", "num>=2\n")
    stack.lock()
    results = stack.build()
    assert {name: result.plan.action for name, result in results.items()} == {
        "core": Action.BUILD,
        "ml": Action.RELABEL,
        "aws": Action.NOTHING,
    }
    changed = {name for name, digest in zips(stack).items() if before[name] != digest}
    assert changed == {"core-python3.13-x86_64.zip"}
    manifests = {
        name: json.loads((stack.root / "dist" / f"{name}-python3.13-x86_64.json").read_text())
        for name in ("core", "ml")
    }
    assert manifests["ml"]["depends_on"] == {"core": manifests["core"]["inputs"]}
    assert stack.build()["ml"].plan.action is Action.NOTHING


def test_own_code_is_an_input(stack: Checkout) -> None:
    stack.build()
    stack.layer("aws", "cloud\n", code={"ours/__init__.py": "WHO = 'you'\n"})
    results = stack.build()
    assert results["aws"].plan.action is Action.BUILD
    assert results["core"].plan.action is Action.NOTHING


def test_a_layer_brings_what_it_depends_on(stack: Checkout) -> None:
    assert set(stack.build(["ml"])) == {"core", "ml"}
    assert stack.build(["ml"], force=True)["core"].plan.action is Action.NOTHING


@pytest.mark.parametrize("damage", ["zip", "tree", "part of the tree", "manifest"])
def test_what_was_removed_is_built_again(stack: Checkout, damage: str) -> None:
    stack.build()
    before = zips(stack)
    core = stack.root / "layers" / "core" / "python"
    victims = {
        "zip": stack.root / "dist" / "core-python3.13-x86_64.zip",
        "tree": core,
        "part of the tree": core / "num",
        "manifest": stack.root / "dist" / "core-python3.13-x86_64.json",
    }
    victim = victims[damage]
    victim.rename(stack.root / "gone")
    assert stack.build()["core"].plan.action is Action.BUILD
    assert victim.exists()
    assert zips(stack) == before


def test_no_file_shares_an_inode_with_a_cache(stack: Checkout) -> None:
    stack.build()
    files = [path for path in stack.root.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert all(path.stat().st_nlink == 1 for path in files)


def test_a_tree_is_readable_by_others_whatever_the_umask(stack: Checkout) -> None:
    old = os.umask(0o077)
    try:
        stack.build()
    finally:
        os.umask(old)
    with zipfile.ZipFile(stack.root / "dist" / "aws-python3.13-x86_64.zip") as archive:
        assert all(info.external_attr >> 16 & 0o444 == 0o444 for info in archive.infolist())


def test_another_target_has_its_own_tree_and_zip(stack: Checkout) -> None:
    stack.lock(ARM)
    stack.build()
    stack.build(target=ARM)
    assert (stack.root / ".layerkit" / "trees" / "python3.13-arm64" / "core" / "python" / "num").is_dir()
    assert (stack.root / "layers" / "core" / "python" / "num").is_dir()
    assert len(zips(stack)) == 6
    assert stack.build()["core"].plan.action is Action.NOTHING
    assert stack.build(target=ARM)["core"].plan.action is Action.NOTHING


# ---- wheels that make trouble ----


def test_a_file_in_two_distributions_is_the_same_one_everywhere(index: Index, checkout: Checkout) -> None:
    make_wheel(index.folder, "alpha", "1.0", files={"ns/__init__.py": "WHO = 'alpha'\n" * 400, "ns/a.py": ""})
    make_wheel(index.folder, "beta", "1.0", files={"ns/__init__.py": "WHO = 'beta'\n", "ns/b.py": ""})
    checkout.layer("core", "alpha\nbeta\n")
    checkout.lock()
    digests = set()
    for _ in range(3):
        result = checkout.build(force=True)["core"]
        digests.add(result.manifest.zip.sha256)
        assert (checkout.root / "layers/core/python/ns/__init__.py").read_text() == "WHO = 'beta'\n"
    assert len(digests) == 1
    assert result.manifest.notes == ("ns/__init__.py comes in several distributions; the one of beta stays",)


def test_a_changed_file_on_the_index_is_refused(stack: Checkout, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(stack.root / "uv-cache"))
    make_wheel(index.folder, "num", "1.0", files={"num/__init__.py": "import evil\n"})
    with pytest.raises(ExternalError, match="does not have the hash that the lock asks for"):
        stack.build()
    assert not (stack.root / "dist").exists()


SETUP = "from setuptools import setup\nsetup(name='plain', version='1.0', py_modules=['plain']{more})\n"


@pytest.mark.online
def test_a_pure_source_distribution_is_built_the_same_everywhere(
    index: Index, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its build backend comes from PyPI, pinned with hashes."""
    make_sdist(index.folder, "plain", "1.0", {"setup.py": SETUP.format(more=""), "plain.py": "X = 1\n"})
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("UV_INDEX", index.url)
    checkout.layer("core", "plain==1.0\n", 'allow_sdist = ["plain"]\n')
    checkout.lock()
    assert "# built from source: plain\n" in checkout.project.lock_path("core", TARGET).read_text()
    digests = set()
    for number in range(2):
        monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(checkout.root / f"cache-{number}"))
        digests.add(checkout.build(force=True)["core"].manifest.zip.sha256)
    assert len(digests) == 1
    assert (checkout.root / "layers/core/python/plain.py").read_text() == "X = 1\n"


@pytest.mark.online
def test_a_source_distribution_that_compiles_is_refused(
    index: Index, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ", ext_modules=[__import__('setuptools').Extension('fast', ['fast.c'])]"
    make_sdist(index.folder, "plain", "1.0", {"setup.py": SETUP.format(more=more), "plain.py": "", "fast.c": ""})
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("UV_INDEX", index.url)
    checkout.layer("core", "plain==1.0\n", 'allow_sdist = ["plain"]\n')
    checkout.lock()
    with pytest.raises(ConfigurationError, match=r"plain==1.0 can't be built as a pure-Python distribution"):
        checkout.build()
    assert not (checkout.root / "dist").exists()


# ---- checks ----


def test_a_layer_over_its_limit_is_not_let_in(stack: Checkout) -> None:
    stack.build()
    before = stack.snapshot()
    stack.layer("aws", "cloud\n", 'max_size_mb = 1\nlimit_reason = "small"\n', {"big.bin": "x" * 1_100_000})
    with pytest.raises(CheckFailed, match=r"aws: size: 1\.0 MiB unzipped; its limit is 1 MiB"):
        stack.build(means=stack.means(TARGET, only=frozenset({"size"})))
    after = stack.snapshot()
    assert {path for path in after if path not in before or after[path] != before[path]} == {
        "layers/aws/layer.toml",
        "layers/aws/src/big.bin",
    }
    assert stack.build()["aws"].plan.action is Action.BUILD


def test_a_layer_close_to_its_limit_is_let_in_with_a_warning(stack: Checkout) -> None:
    stack.layer("aws", "cloud\n", 'max_size_mb = 1\nlimit_reason = "small"\n', {"big.bin": "x" * 1_000_000})
    (finding,) = stack.build(means=stack.means(TARGET, only=frozenset({"size"})))["aws"].report.findings
    assert (finding.severity, finding.check) == (Severity.WARNING, "size")


# ---- failure and interruption ----


def test_a_failed_layer_keeps_all_of_them_out(stack: Checkout) -> None:
    stack.build()
    before = stack.snapshot()
    stack.layer("core", "num>=2\n")
    stack.lock()
    stack.layer("aws", "cloud\n", code={"cloud.py": "mine"})
    with pytest.raises(ConfigurationError, match=r"layers/aws/src/cloud.py would replace"):
        stack.build()
    after = stack.snapshot()
    assert {path: after[path] for path in before if "locks" not in path and "requirements" not in path} == {
        path: content for path, content in before.items() if "locks" not in path and "requirements" not in path
    }
    assert list((stack.root / ".layerkit" / "work").iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from layerkit.building import build, plan_build
from layerkit.installer import Uv
from layerkit.model import Target
from layerkit.project import load_project
target = Target("python3.13", "x86_64")
def attempt(root, left):
    project = load_project(Path(root), target)
    plans = plan_build(project, target, list(project.layers), force=True)
    uv = Uv(project.root)
    def dying(event, arguments):
        nonlocal left
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            left -= 1
            if left == 0:
                os._exit(9)
    sys.addaudithook(dying)
    build(project, plans, uv=uv, jobs=1, means=None)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            attempt(sys.argv[1], int(line))
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """A process that builds in children of its own, each killed at a step; one start serves for all of them."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-c", KILLED, str(root)]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, step: int) -> int:
        assert self.process.stdin
        assert self.process.stdout
        print(step, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *details: object) -> None:
        self.process.communicate()


def test_a_kill_at_any_step_leaves_a_build_that_can_be_used(stack: Checkout) -> None:
    """Every rename, removal and new folder is a place to die at; the old build stays, or the new one gets in whole."""
    stack.build()
    old = zips(stack)
    stack.layer("core", "num>=2\n")
    stack.layer("aws", "cloud\n", code={"ours/__init__.py": "WHO = 'new'\n"})
    stack.lock()
    kept = stack.root.with_name("kept")
    os.rename(stack.root, kept)
    outcomes = set()
    with Killer(stack.root) as kill:
        for step in range(1, 400):
            subprocess.run(["cp", "-r", "--", kept, stack.root], check=True)
            code = kill(step)
            assert code in (0, 9)
            assert all((stack.root / "layers" / name / "python").is_dir() for name in ("core", "ml", "aws"))
            decided = finish_swap(stack.project)
            found = zips(stack)
            manifests = {path.name: json.loads(path.read_text()) for path in (stack.root / "dist").glob("*.json")}
            for manifest in manifests.values():
                assert found[Path(manifest["zip"]["path"]).name] == manifest["zip"]["sha256"]
                tree = stack.root / manifest["tree"]["path"]
                files = [path for path in tree.rglob("*") if path.is_file()]
                assert sum(path.stat().st_size for path in files) == manifest["tree"]["size"]
            assert not (stack.root / ".layerkit" / "swap").exists()
            new = found["core-python3.13-x86_64.zip"] != old["core-python3.13-x86_64.zip"]
            assert new == (found["aws-python3.13-x86_64.zip"] != old["aws-python3.13-x86_64.zip"])
            outcomes.add((code, decided, new))
            subprocess.run(["rm", "-rf", "--", stack.root], check=True)
            if code == 0:
                break
    assert outcomes == {(9, False, False), (9, True, True), (9, False, True), (0, False, True)}


def test_a_half_made_swap_is_finished_by_the_next_command(stack: Checkout) -> None:
    stack.build()
    before = zips(stack)
    stack.layer("core", "num>=2\n")
    stack.lock()
    with Killer(stack.root) as kill:
        for step in range(30, 400):
            kill(step)
            if (stack.root / ".layerkit" / "swap").is_dir():
                break
    done = stack.inv("build", "--skip-optimization")
    assert done.returncode == 0
    assert "had been interrupted while it was put in place: finished now" in done.stderr
    assert zips(stack) != before
    assert stack.build()["core"].plan.action is Action.NOTHING


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_cleanly(stack: Checkout, index: Index, number: signal.Signals, code: int) -> None:
    stack.build()
    before = stack.snapshot()
    command = stack.command("build", "--clean", "--verbose")
    environment = {**os.environ, **stack.environment}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "installing" in line:
                process.send_signal(number)
                break
        _, rest = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in rest
    assert rest.rstrip().endswith("layerkit: interrupted; nothing half-made is in place.")
    assert {path: content for path, content in stack.snapshot().items() if not path.endswith(".json")} == {
        path: content for path, content in before.items() if not path.endswith(".json")
    }
    assert list((stack.root / ".layerkit" / "work").iterdir()) == []
    assert stack.inv("build").returncode == 0


def test_two_builds_at_once_end_in_one_whole_build(stack: Checkout) -> None:
    command = stack.command("build", "--clean", "--skip-optimization")
    environment = {**os.environ, **stack.environment}
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    texts = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert any("waiting for inv build (process " in text for text in texts)
    assert stack.build()["core"].plan.action is Action.NOTHING


# ---- the task ----


def test_the_task_locks_first_and_says_so(index: Index, checkout: Checkout) -> None:
    fill(index)
    layers(checkout)
    refused = checkout.inv("build", "--locked")
    assert refused.returncode == 3
    assert "core: no lock yet" in refused.stderr
    assert not (checkout.root / "dist").exists()
    done = checkout.inv("build")
    assert done.returncode == 0
    assert "locking first (" in done.stderr
    assert done.stdout.count(" built ") == 3
    again = checkout.inv("build", "--locked")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("up to date") == 3


def test_json_is_one_document(stack: Checkout) -> None:
    document = stack.inv_json("build")
    assert document["schema"] == 1
    assert {layer["layer"]: layer["action"] for layer in document["layers"]} == {
        "aws": "build",
        "core": "build",
        "ml": "build",
    }
    assert document["layers"][0]["manifest"]["zip"]["sha256"] in zips(stack).values()


def test_a_blocked_runtime_needs_the_flag(stack: Checkout) -> None:
    refused = stack.inv("build", "--runtime", "python3.9")
    assert refused.returncode == 2
    assert "AWS has refused new functions with this runtime since" in refused.stderr
    let = stack.inv("build", "--runtime", "python3.9", "--allow-blocked-runtime")
    assert let.returncode == 0
    assert "warning: python3.9: AWS has refused" in let.stderr


def test_a_layer_that_is_not_for_the_target(stack: Checkout) -> None:
    stack.layer("aws", "cloud\n", 'architectures = ["x86_64"]\n')
    done = stack.inv("build", "--architecture", "arm64")
    assert done.returncode == 0
    assert "aws is left out: not for python3.13-arm64" in done.stderr
    assert stack.inv("build", "--architecture", "arm64", "--layer", "aws").returncode == 2
    stack.layer("core", "num<2\n", 'architectures = ["x86_64"]\n')
    refused = stack.inv("build", "--architecture", "arm64", "--layer", "ml")
    assert refused.returncode == 2
    assert "ml is not for python3.13-arm64: it depends on core" in refused.stderr


def test_building_needs_no_index_once_the_cache_has_everything(stack: Checkout, index: Index) -> None:
    stack.build()
    index.asked.clear()
    done = stack.inv("build", "--clean")
    assert done.returncode == 0
    assert index.asked == []


def test_no_layers_at_all(checkout: Checkout) -> None:
    done = checkout.inv("build")
    assert done.returncode == 2
    assert "there is no layer to build" in done.stderr
    assert "inv new --layer NAME" in done.stderr
