"""Cleaning real files: what was built goes, everything else stays, nothing outside is touched."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import compress, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.cleaning import CleanStep, apply_clean, plan_clean
from layerkit.errors import ConfigurationError, ExternalError, Incomplete
from layerkit.files import checkout_lock
from layerkit.manifests import render_manifest
from layerkit.model import Target
from tests.support.checkouts import TARGET, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel
from tests.unit.test_manifests import MANIFEST

ARM = Target("python3.12", "arm64")


def put(root: Path, *paths: str, content: str = "content") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def put_manifest(root: Path, layer: str, *, named: str = "", tree: str = "") -> None:
    """A manifest of ``layer`` for TARGET in dist/, under its own name or as that of the layer ``named``."""
    manifest = replace(MANIFEST, layer=layer, target=TARGET)
    manifest = replace(manifest, tree=replace(manifest.tree, path=tree or f"layers/{layer}/python"))
    put(root, f"dist/{named or layer}-{TARGET}.json", content=render_manifest(manifest))


def files(root: Path) -> dict[str, str]:
    """Every file and link below a folder; links are not followed."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:
            path = Path(folder, name)
            content = f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
            found[path.relative_to(root).as_posix()] = content
    return found


def clean(root: Path, *names: str, everything: bool = False) -> tuple[str, ...]:
    plan = plan_clean(root, names, everything=everything)
    apply_clean(plan)
    return tuple(step.path for step in plan.steps)


# ---- whatever is there ----

NAMES = ("a", "a-b", "a-b-python3", "python3", "_")
TARGETS = ("python3.13-x86_64", "python3.9-arm64")
SOURCES = ("requirements.txt", "requirements.in", "layer.toml", "src/python/m.py", "locks/python3.13-x86_64.txt")
BUILT = (
    "dist/{}-{}.zip",
    "dist/{}-{}.json",
    ".layerkit/trees/{1}/{0}/python/m.py",
    ".layerkit/failed/{}-{}/python/m.py",
    ".layerkit/validated/{}-{}.json",
    ".layerkit/live/layers+{}+python.json",
    ".layerkit/live/.layerkit+trees+{1}+{0}+python.json",
)
"""What is of one layer and one target, by its place; none of the manifests in the property is a true one."""
UNRELATED = (
    *(f"layers/{name}/{file}" for name, file in product(NAMES, ("notes.md", "python3/m.py", "tests/python/m.py"))),
    "layers/python/m.py",
    "layers/.new-1/python/m.py",
    "layers/not a layer/requirements.txt",
    "layers/not a layer/python/m.py",
    "dist/a.zip",
    "dist/a-python3-x86_64.zip",
    "dist/a-python3.-x86_64.zip",
    "dist/a-python3x13-x86_64.zip",
    "dist/a-python3.13-amd64.zip",
    "dist/a-python3.13-x86_64.zip.sha256",
    "dist/a-python3.13-x86_64.tar",
    "dist/a-python3.13-x86_64",
    "dist/.a-python3.13-x86_64.zip",
    "dist/not a layer-python3.13-x86_64.zip",
    "dist/a-python3.14-arm64.zip/this is a folder",
    "dist/a-python3.14-arm64.json/this is a folder",
    ".layerkit/lock",
    ".layerkit/history.jsonl",
    ".layerkit/new-locks/layers%2Fa%2Flocks%2Fpython3.13-x86_64.txt",
    ".layerkit/history/1.json",
    ".layerkit/bench-1/a-python3.13-x86_64.zip",
    ".venv/bin/python",
    ".venvs/test-3.13/bin/python",
    "functions/a/app.py",
    "template.yaml",
    "python/m.py",
    "reports/.gitkeep",
)
STATE = (
    ".layerkit/work/1/staged/a/python/m.py",
    ".layerkit/failed/a-python3.13-x86_64.txt",
    ".layerkit/validated/a-python3.13-x86_64.json.1",
    ".layerkit/swap/a file",
    ".layerkit/live/layers+a+b+python.json",
    "reports/weekly.txt",
    "reports/old/x.json",
)
"""What only ``--all`` removes."""


def some(of: Sequence[Any]) -> st.SearchStrategy[list[Any]]:
    """Any part of ``of``, usually about half."""
    return st.lists(st.booleans(), min_size=len(of), max_size=len(of)).map(lambda chosen: list(compress(of, chosen)))


@given(
    sources=st.lists(st.sampled_from(list(product(NAMES, SOURCES))), max_size=6),
    live=some(NAMES),
    built=some(list(product(NAMES, BUILT, TARGETS))),
    others=some(UNRELATED + STATE),
    names=st.lists(st.sampled_from((*NAMES, "../a", "", "a/../a", "not a layer", "nobody")), max_size=2),
    everything=st.booleans(),
)
def test_exactly_what_was_built_is_removed(
    sources: list[tuple[str, str]],
    live: list[str],
    built: list[tuple[str, str, str]],
    others: list[str],
    names: list[str],
    everything: bool,
) -> None:
    owners = {form.format(name, target): name for name, form, target in built}
    layers = {name for name, _ in sources}
    owners |= {f"layers/{name}/python/m.py": name for name in live if name in layers}
    folders = {path.split("/")[1] for path in others if path.startswith("layers/")} | {*live} | layers
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "checkout"
        put(root, *(f"layers/{name}/{source}" for name, source in sources), *owners, *others)
        put(root, *(f"layers/{name}/python/m.py" for name in live), "../outside")
        put(root, ".gitignore", content="reports/*\n!reports/.gitkeep\n")
        before = files(root)

        known = set(NAMES) & (folders | set(owners.values()))
        if (names and everything) or not set(names) <= known:
            with pytest.raises(ConfigurationError):
                clean(root, *names, everything=everything)
            assert files(root) == before
            return
        steps = clean(root, *names, everything=everything)

        wanted = set(names) or layers
        gone = {path for path, name in owners.items() if name in wanted}
        if everything:
            of_no_use = tuple(f".layerkit/{folder}/" for folder in ("failed", "live", "trees", "validated"))
            gone |= {path for path in before if path.startswith(of_no_use)} | (set(STATE) & set(before))
        assert files(root) == {path: text for path, text in before.items() if path not in gone}
        assert (Path(made) / "outside").exists()
        manifests = [path for path in steps if path.endswith(".json")]
        assert [*steps] == sorted(manifests) + sorted(set(steps) - set(manifests))


# ---- nothing built, and a broken checkout ----


@pytest.mark.parametrize("words", [["clean"], ["clean", "--all"], ["clean", "--layer", "web"]])
def test_a_fresh_clone(checkout: Checkout, words: list[str]) -> None:
    checkout.layer("web", "six\n")
    done = checkout.inv(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to remove\n", "")
    assert files(checkout.root) == {"layers/web/requirements.txt": "six\n"}


def test_a_folder_that_has_no_layers(tmp_path: Path) -> None:
    put(tmp_path, "reports/mine.txt", "dist/theirs.zip")
    assert clean(tmp_path) == clean(tmp_path, everything=True) == ()


def test_files_where_folders_belong(tmp_path: Path) -> None:
    put(tmp_path, "layers", "dist", ".layerkit", "reports")
    assert clean(tmp_path) == clean(tmp_path, everything=True) == ()


def test_a_broken_checkout(checkout: Checkout) -> None:
    checkout.layer("web", "six ===\n", "runtimes = [")
    put(checkout.root, "layers/folder/layer.toml/this is a folder", "layers/file/src", "layers/file/python")
    (checkout.root / "layers" / "broken").mkdir()
    (checkout.root / "layers" / "broken" / "requirements.txt").symlink_to("requirements.txt")
    (checkout.root / "layers" / "round").symlink_to("round")
    kept = files(checkout.root)
    built = [
        "layers/web/python/m.py",
        "layers/broken/python/m.py",
        "layers/folder/python/m.py",
        f"dist/web-{TARGET}.zip",
    ]
    put(checkout.root, *built, ".layerkit/swap/web/python/m.py", content="half")
    put(checkout.root, f"dist/web-{TARGET}.json", ".layerkit/swap/web/manifest.json", content='{"schema": ')
    done = checkout.inv("clean")
    assert done.returncode == 0, done.stderr
    now = files(checkout.root)
    assert {path: text for path, text in now.items() if path != ".layerkit/lock"} == kept


def test_an_unknown_name_is_answered_with_the_known_ones(checkout: Checkout) -> None:
    checkout.layer("web", "six\n")
    checkout.layer("core", "six\n")
    put(checkout.root, "layers/web/python/m.py")
    done = checkout.inv("clean", "--layer", "web", "--layer", "wbe")
    assert done.returncode == 2
    assert "no layer called 'wbe'" in done.stderr
    assert "Layers here: core, web." in done.stderr
    assert (checkout.root / "layers" / "web" / "python" / "m.py").exists()


@pytest.mark.parametrize("name", ["README", ".hidden", "a b", "", ".", "../layers/web", "web/"])
def test_what_is_no_layer_is_no_name(tmp_path: Path, name: str) -> None:
    put(tmp_path, "layers/README", "layers/.hidden/python/m.py", "layers/a b/src/m.py", "layers/web/python/m.py")
    with pytest.raises(ConfigurationError, match="there is no layer called"):
        plan_clean(tmp_path, [name], everything=False)


def test_all_and_a_layer_do_not_go_together(checkout: Checkout) -> None:
    checkout.layer("web", "six\n")
    done = checkout.inv("clean", "--all", "--layer", "web")
    assert (done.returncode, "--all is for all layers" in done.stderr) == (2, True)


# ---- layers that are gone ----


def test_builds_of_layers_that_are_gone_need_a_manifest_of_ours(tmp_path: Path) -> None:
    put(tmp_path, "layers/here/requirements.txt", "layers/old/python/m.py", f"dist/old-{TARGET}.zip")
    put(tmp_path, f"dist/old-{ARM}.zip")
    put_manifest(tmp_path, "old")
    # None of these is shown to be ours: another layer's manifest, none, a broken one, one of another tree.
    put(tmp_path, f"dist/copy-{TARGET}.zip", f"dist/alone-{TARGET}.zip", f"dist/odd-{TARGET}.json")
    put(tmp_path, "layers/copy/python/m.py", "layers/vendor/python/m.py", "layers/moved/python/m.py")
    put_manifest(tmp_path, "old", named="copy", tree="layers/copy/python")
    put_manifest(tmp_path, "moved", tree=".layerkit/trees/python3.13-x86_64/moved/python")
    (tmp_path / "dist" / f"link-{TARGET}.json").symlink_to(tmp_path / "layers")
    assert clean(tmp_path) == ()
    assert clean(tmp_path, everything=True) == (
        f"dist/moved-{TARGET}.json",
        f"dist/old-{TARGET}.json",
        f"dist/old-{ARM}.zip",
        f"dist/old-{TARGET}.zip",
        "layers/old/python",
    )


def test_a_layer_that_is_gone_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, "layers/here/requirements.txt", "layers/here/python/m.py", f"dist/old-{TARGET}.zip")
    put(tmp_path, f".layerkit/trees/{ARM}/old/python/m.py", f".layerkit/trees/{ARM}/here/python/m.py")
    assert clean(tmp_path, "old") == (f".layerkit/trees/{ARM}/old", f"dist/old-{TARGET}.zip")
    assert (tmp_path / f".layerkit/trees/{ARM}/here/python/m.py").exists()


@pytest.mark.parametrize("form", BUILT)
def test_whatever_is_built_of_it_makes_a_name_known(tmp_path: Path, form: str) -> None:
    put(tmp_path, form.format("old", TARGET))
    assert len(clean(tmp_path, "old")) == 1
    assert files(tmp_path) == {}


@pytest.mark.parametrize("gitignore", [None, "# reports/ are kept\n!reports/x\n"])
def test_reports_stay_where_nothing_says_that_they_are_generated(tmp_path: Path, gitignore: str | None) -> None:
    put(tmp_path, "reports/mine.txt")
    if gitignore:
        put(tmp_path, ".gitignore", content=gitignore)
    assert clean(tmp_path, everything=True) == ()


def test_reports_that_git_keeps_stay(tmp_path: Path) -> None:
    put(tmp_path, "reports/.gitkeep", "reports/x.md", "reports/kept/x.txt", "reports/x.txt", "reports/keptx")
    put(tmp_path, ".gitignore", content="/reports/\n!reports/*.md\n!/reports/kept/\n")
    assert clean(tmp_path, everything=True) == ("reports/keptx", "reports/x.txt")


# ---- links ----


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("folder", ["layers", "layers/web", "dist", ".layerkit"])
def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, folder: str, everything: bool) -> None:
    root = tmp_path / "checkout"
    put(root, "layers/web/requirements.txt", "layers/web/python/m.py", f"dist/web-{TARGET}.zip", ".layerkit/lock")
    put(root, ".layerkit/work/x", f".layerkit/trees/{ARM}/web/python/m.py")
    (root / folder).rename(tmp_path / "outside")
    (root / folder).symlink_to(tmp_path / "outside")
    before = files(tmp_path)
    with pytest.raises(ConfigurationError, match=f"^{folder} is a link") as caught:
        plan_clean(root, (), everything=everything)
    assert "remove the link" in caught.value.hint
    assert files(tmp_path) == before


@pytest.mark.parametrize("folder", ["trees", f"trees/{ARM}", "failed", "live", "validated", "swap"])
def test_a_link_in_layerkits_own_folder(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "checkout"
    put(root, "layers/web/requirements.txt", f".layerkit/trees/{ARM}/web/python/m.py", f".layerkit/failed/web-{ARM}/m")
    put(root, f".layerkit/validated/web-{ARM}.json", ".layerkit/swap/web/manifest.json", ".layerkit/live/a.json")
    (root / ".layerkit" / folder).rename(tmp_path / "outside")
    (root / ".layerkit" / folder).symlink_to(tmp_path / "outside")
    outside = files(tmp_path / "outside")
    with pytest.raises(ConfigurationError, match=rf"^\.layerkit/{folder} is a link"):
        plan_clean(root, (), everything=False)
    clean(root, everything=True)  # the link itself goes then
    assert not os.path.lexists(root / ".layerkit" / folder)
    assert files(tmp_path / "outside") == outside


def test_links_that_stand_for_what_was_built_are_unlinked(tmp_path: Path) -> None:
    root, outside = tmp_path / "checkout", tmp_path / "outside"
    put(root, "layers/web/requirements.txt", "layers/core/src/m.py", "layers/core/python/m.py", "layers/lost/src/m.py")
    (root / "layers" / "lost" / "python").symlink_to("nowhere")
    put(outside, "python/m.py", "python/n.py", "web.zip", "report.txt")
    (root / "layers" / "web" / "python").symlink_to(outside / "python")
    (root / "layers" / "core" / "python" / "out").symlink_to(outside)
    (root / "dist").mkdir()
    (root / "dist" / f"web-{TARGET}.zip").symlink_to(outside / "web.zip")
    (root / "dist" / f"web-{TARGET}.json").symlink_to("nowhere")
    before = files(outside)
    plan = plan_clean(root, (), everything=False)
    assert {step.path: step.files for step in plan.steps} == {
        f"dist/web-{TARGET}.json": 1,
        f"dist/web-{TARGET}.zip": 1,
        "layers/core/python": 2,
        "layers/lost/python": 1,
        "layers/web/python": 1,
    }
    apply_clean(plan)
    assert sorted(files(root)) == ["layers/core/src/m.py", "layers/lost/src/m.py", "layers/web/requirements.txt"]
    assert files(outside) == before


def test_a_layer_that_is_a_link_to_another_takes_nothing_of_it(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    put(root, "layers/web/requirements.txt", "layers/web/python/m.py", "layers/web/src/python/m.py")
    (root / "layers" / "alias").symlink_to("web")
    (root / "layers" / "code").symlink_to("web/src")
    (tmp_path / "the way there").symlink_to("checkout")
    before = files(root)
    assert clean(tmp_path / "the way there", "alias", "code") == ()
    assert files(root) == before
    assert clean(root) == ("layers/web/python",)


# ---- what it frees, and what can't be removed ----


def test_a_step_counts_files_and_bytes_without_following_links(tmp_path: Path) -> None:
    put(tmp_path, "layers/web/requirements.txt", "layers/web/python/m.py", "layers/web/python/deep/n.py")
    (tmp_path / "layers" / "web" / "python" / "up").symlink_to("..")
    plan = plan_clean(tmp_path, (), everything=False)
    assert plan.steps == (CleanStep("layers/web/python", 3, len("content") * 2 + len("..")),)
    assert (plan.files, plan.size) == (3, 16)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may remove everything, so it becomes somebody else for a while."""
    nobody, before = 65534, os.geteuid()
    if before != 0:
        yield
        return
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(before)


def test_what_cannot_be_removed_is_named_and_the_rest_goes() -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        put(root, "layers/web/requirements.txt", "layers/web/python/m.py", "layers/app/src/m.py", "layers/app/python/x")
        put(root, f"dist/web-{TARGET}.zip", f"dist/web-{TARGET}.json")
        for folder in (".", "layers", "layers/web", "layers/app", "layers/app/python", "dist"):
            (root / folder).chmod(0o777)
        closed = root / "layers" / "web" / "python"
        closed.chmod(0o555)
        with without_privileges(), pytest.raises(Incomplete) as caught:
            apply_clean(plan_clean(root, (), everything=False))
        closed.chmod(0o755)
        heading, failure = caught.value.message.splitlines()
        assert heading == "not everything could be removed:"
        # How much of the path is known depends on the Python.
        assert failure.removeprefix("  ") in (
            "m.py in layers/web/python: Permission denied",
            "layers/web/python/m.py: Permission denied",
            "layers/web/python: Permission denied",
        )
        assert "chmod u+w" in caught.value.hint
        assert sorted(files(root)) == ["layers/app/src/m.py", "layers/web/python/m.py", "layers/web/requirements.txt"]


def test_what_cannot_be_read() -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        root.chmod(0o755)
        put(root, "layers/web/requirements.txt", "layers/web/python/m.py", f"dist/web-{TARGET}.zip")
        (root / "layers" / "web" / "python").chmod(0o444)
        with without_privileges():
            plan = plan_clean(root, (), everything=False)
        assert [step for step in plan.steps if step.path.startswith("layers")] == [CleanStep("layers/web/python", 0, 0)]
        (root / "dist").chmod(0o000)
        with (
            without_privileges(),
            pytest.raises(ExternalError, match="dist can't be read: Permission denied") as caught,
        ):
            plan_clean(root, (), everything=False)
        assert caught.value.hint == "Try: chmod u+rx dist"
        for folder in ("layers/web/python", "dist"):
            (root / folder).chmod(0o755)


# ---- the task ----


@pytest.fixture
def built(index: Index, checkout: Checkout) -> Checkout:
    """web and core, built by the real tools for the default target and another."""
    for name in ("web-lib", "core-lib"):
        make_wheel(index.folder, name, "1.0")
        checkout.layer(name.removesuffix("-lib"), f"{name}\n")
    for words in ([], ["--runtime", ARM.runtime, "--architecture", ARM.architecture]):
        done = checkout.inv("build", *words)
        assert done.returncode == 0, done.stderr
    return checkout


WEB = {
    f".layerkit/live/.layerkit+trees+{ARM}+web+python.json",
    ".layerkit/live/layers+web+python.json",
    f".layerkit/trees/{ARM}/web",
    f"dist/web-{ARM}.json",
    f"dist/web-{ARM}.zip",
    f"dist/web-{TARGET}.json",
    f"dist/web-{TARGET}.zip",
    "layers/web/python",
}


def test_a_build_can_be_cleaned_and_made_again(built: Checkout) -> None:
    zips = {path: path.read_bytes() for path in (built.root / "dist").glob("*.zip")}
    document = built.inv_json("clean", "--layer", "web")
    steps = {step["path"]: step for step in document["steps"]}
    assert {path for path in steps if "validated" not in path} == WEB  # validated where this machine can
    assert document["dry_run"] is False
    assert document["files"] == sum(step["files"] for step in steps.values()) > len(WEB)
    assert document["size"] == sum(step["size"] for step in steps.values()) > 0
    assert not any((built.root / path).exists() for path in WEB)
    assert (built.root / "layers" / "core" / "python" / "core_lib.py").exists()
    assert (built.root / "layers" / "web" / "locks" / f"{TARGET}.txt").exists()
    rebuilt = {entry["layer"]: entry["action"] for entry in built.inv_json("build", "--locked")["layers"]}
    assert rebuilt == {"core": "up to date", "web": "build"}
    assert all(path.read_bytes() == content for path, content in zips.items() if path.exists())


@pytest.mark.parametrize("words", [["clean", "--dry-run"], ["-R", "clean"], ["--dry", "clean"]])
def test_a_dry_run_changes_nothing_and_waits_for_nobody(checkout: Checkout, words: list[str]) -> None:
    checkout.layer("web", "six\n")
    put(checkout.root, "layers/web/python/m.py", f"dist/web-{TARGET}.zip")
    with checkout_lock(checkout.root / ".layerkit", "somebody", lambda who: None):
        before = files(checkout.root)
        done = checkout.inv(*words)
        assert done.returncode == 0, done.stderr
        assert files(checkout.root) == before
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"dist/web-{TARGET}.zip", "layers/web/python"]
    assert lines[0].endswith("7 Bytes")
    assert lines[-1] == "would be removed: 2 files, 14 Bytes"


def test_it_waits_for_whoever_changes_the_checkout(checkout: Checkout) -> None:
    checkout.layer("web", "six\n")
    put(checkout.root, "layers/web/python/m.py")
    environment = {**os.environ, **checkout.environment}
    with checkout_lock(checkout.root / ".layerkit", "the other", lambda who: None):
        process = subprocess.Popen(
            checkout.command("clean", "--json"),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for the other (process ")
        put(checkout.root, f"dist/web-{TARGET}.zip")  # what it removes is worked out once it may
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [step["path"] for step in json.loads(out)["steps"]] == [f"dist/web-{TARGET}.zip", "layers/web/python"]
    assert not (checkout.root / "layers" / "web" / "python").exists()


def test_a_link_for_layerkits_own_folder_is_not_even_locked_through(tmp_path: Path, checkout: Checkout) -> None:
    checkout.layer("web", "six\n")
    (tmp_path / "outside").mkdir()
    (checkout.root / ".layerkit").symlink_to(tmp_path / "outside")
    done = checkout.inv("clean")
    assert (done.returncode, ".layerkit is a link to" in done.stderr) == (2, True)
    assert list((tmp_path / "outside").iterdir()) == []
