"""How a checkout stands: status and doctor on fresh, sound and broken ones, and what of validate needs no build."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.model import Layer, Layers
from layerkit.standing import mermaid, tree_of
from layerkit.validating import CHECKS
from tests.support.calls import Caller, Said
from tests.support.checkouts import FOREIGN, HERE, REPOSITORY, TARGET, VERSION, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel

FOR_HERE: dict[str, Any] = {"runtime": HERE.runtime, "architecture": HERE.architecture}


@pytest.fixture
def call(checkout: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    return Caller(checkout.root, capfd, monkeypatch)


def states(said: Said) -> dict[str, tuple[str, str]]:
    """Layer -> its state and the reason."""
    return {entry["layer"]: (entry["state"], entry["reason"]) for entry in said.document["layers"]}


def built(checkout: Checkout, settings: str = "") -> Checkout:
    """One layer ``web`` of own code, built for the target that this Python can run, and not validated."""
    checkout.layer("web", "", settings, code={"web.py": "x = 1\n"})
    checkout.lock(HERE)
    checkout.build(target=HERE)
    return checkout


def status_of_web(call: Caller) -> tuple[str, str]:
    return states(call("status", json=True, **FOR_HERE))["web"]


# ---- a fresh clone ----


def test_a_fresh_clone_is_not_built_and_nothing_is_written(
    checkout: Checkout, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("core-data-science", "ml-libraries", "aws-utilities"):
        ignored = shutil.ignore_patterns("python")
        shutil.copytree(REPOSITORY / "layers" / name, checkout.root / "layers" / name, ignore=ignored)
    before = sorted(checkout.root.rglob("*"))
    said = Caller(checkout.root, capfd, monkeypatch)("status", json=True)
    assert said.code == 0
    assert [entry["layer"] for entry in said.document["layers"]] == [
        "aws-utilities",
        "core-data-science",
        "ml-libraries",
    ]
    for entry in said.document["layers"]:
        assert (entry["target"], entry["state"], entry["lock"]) == (str(TARGET), "not built", "current")
        assert entry["reason"] == f"inv build --layer {entry['layer']}"
        assert (entry["built"], entry["size"], entry["zip_size"], entry["validated"]) == (None, None, None, None)
    assert sorted(checkout.root.rglob("*")) == before


def test_a_checkout_without_layers(checkout: Checkout, call: Caller) -> None:
    said = call("status")
    assert (said.code, said.err) == (0, "")
    assert "There are no layers yet. Make one: inv new --layer NAME" in said.out
    (checkout.root / "layers").rmdir()
    assert call("status", json=True, graph=True).document == {"schema": 1, "layers": [], "mermaid": "graph TD\n"}


def test_a_layer_that_was_never_locked(checkout: Checkout, call: Caller) -> None:
    checkout.layer("web", "six\n")
    (entry,) = call("status", json=True).document["layers"]
    assert (entry["state"], entry["lock"]) == ("not built", "no lock yet")


# ---- the states of a build ----


def test_a_build_from_its_lock_to_a_verdict(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    assert status_of_web(call) == ("not validated", "inv validate")
    checkout.validate()
    assert status_of_web(call) == ("valid", "")
    (entry,) = call("status", json=True, **FOR_HERE).document["layers"]
    manifest = checkout.project.manifest_path("web", HERE)
    document = json.loads(manifest.read_text())
    assert entry["size"] == document["tree"]["size"]
    assert (entry["zip_size"], entry["zip_sha256"]) == (document["zip"]["size"], document["zip"]["sha256"])
    assert entry["built"] == document["built"] <= entry["validated"]


def test_a_build_that_validation_found_fault_with(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    tree = checkout.project.tree_path("web", HERE)
    (tree / "web.py").write_text("import nothing_there\n")
    (tree / "more.py").write_text("")
    assert checkout.validate().failed
    state, reason = status_of_web(call)
    assert (state, reason.endswith(" errors: inv validate")) == ("failed", True)


def test_a_build_that_could_not_be_tried(checkout: Checkout, call: Caller) -> None:
    checkout.layer("web", "", code={"web.py": ""})
    checkout.lock(FOREIGN)
    checkout.build(target=FOREIGN)
    checkout.validate(target=FOREIGN)
    said = call("status", json=True, runtime=FOREIGN.runtime, architecture=FOREIGN.architecture)
    (entry,) = said.document["layers"]
    assert entry["state"] == "not verified"
    assert [entry["reason"]] == entry["not_verified"]
    assert f"nothing built for {FOREIGN.architecture} can be run" in entry["reason"]


def test_some_checks_alone_are_no_verdict(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    checkout.validate(skip=frozenset({"secrets"}))
    checkout.validate(only=frozenset({"size"}))
    assert status_of_web(call) == ("not validated", "inv validate")


def spoil_zip(checkout: Checkout) -> None:
    with checkout.project.zip_path("web", HERE).open("ab") as archive:
        archive.write(b"x")


OUTDATED: dict[str, tuple[Callable[[Checkout], object], str]] = {
    "the requirements": (lambda checkout: checkout.layer("web", "six\n"), "lock: its requirements have changed"),
    "the settings": (lambda checkout: checkout.layer("web", "", 'stack = "other"\n'), "lock: "),
    "own code": (
        lambda checkout: checkout.layer("web", "", code={"web.py": "x = 2\n"}),
        "its inputs have changed since",
    ),
    "the zip": (spoil_zip, "its zip is gone or is another"),
    "no zip": (lambda checkout: checkout.project.zip_path("web", HERE).unlink(), "its zip is gone or is another"),
    "no tree": (lambda checkout: shutil.rmtree(checkout.project.tree_path("web", HERE)), "its tree is gone"),
    "no lock": (lambda checkout: checkout.project.lock_path("web", HERE).unlink(), "lock: no lock yet"),
}


@pytest.mark.parametrize("what", OUTDATED)
def test_a_build_is_outdated_when_something_has_changed(checkout: Checkout, call: Caller, what: str) -> None:
    built(checkout)
    checkout.validate()
    change, reason = OUTDATED[what]
    change(checkout)
    state, found = status_of_web(call)
    assert state == "outdated"
    assert found.startswith(reason)


@pytest.mark.parametrize("content", ["", "{", '{"schema": 1, "layer": "web"}', "\0"])
def test_a_manifest_that_is_none_is_no_build(checkout: Checkout, call: Caller, content: str) -> None:
    built(checkout)
    checkout.project.manifest_path("web", HERE).write_text(content)
    assert status_of_web(call) == ("not built", "inv build --layer web")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"errors": 0}'])
def test_a_verdict_that_is_none_is_not_believed(checkout: Checkout, call: Caller, content: str) -> None:
    built(checkout)
    checkout.validate()
    (verdict,) = (checkout.root / ".layerkit" / "validated").iterdir()
    verdict.write_text(content)
    assert status_of_web(call)[0] == "not validated"


def test_trees_are_not_read(checkout: Checkout, call: Caller) -> None:
    """That is what validation is for; that a tree is there at all is seen."""
    built(checkout)
    checkout.validate()
    tree = checkout.project.tree_path("web", HERE)
    shutil.rmtree(tree)
    tree.mkdir()
    assert status_of_web(call) == ("valid", "")
    assert checkout.validate().failed


def test_a_layer_that_is_not_for_the_target(checkout: Checkout, call: Caller) -> None:
    checkout.layer("old", "six\n", 'runtimes = ["python3.9"]\n')
    checkout.layer("top", "six\n", 'depends_on = ["old"]\n')
    because = "layers/old/layer.toml lists runtimes python3.9"
    assert states(call("status", json=True)) == {
        "old": ("not for this target", because),
        "top": ("not for this target", f"it depends on old, and {because}"),
    }


# ---- a broken checkout ----


def break_layers(checkout: Checkout) -> None:
    checkout.layer("sound", "")
    checkout.layer("toml", "", "depends_on = [")
    checkout.layer("key", "", "depend_on = []\n")
    checkout.layer("line", "six\nsix ==\n")
    checkout.layer("stranger", "", 'depends_on = ["nowhere"]\n')
    checkout.layer("above", "", 'depends_on = ["sound", "toml"]\n')
    checkout.layer("round", "", 'depends_on = ["around"]\n')
    checkout.layer("around", "", 'depends_on = ["round"]\n')
    checkout.layer("a name", "")
    checkout.layer("folder", "")
    (checkout.root / "layers" / "folder" / "layer.toml").mkdir()


REASONS = {
    "toml": "layers/toml/layer.toml: not valid TOML",
    "key": "layers/key/layer.toml: unknown key 'depend_on'",
    "line": "layers/line/requirements.txt:2: 'six ==' is not a requirement",
    "stranger": "layers/stranger/layer.toml: depends_on names 'nowhere', which is not a layer",
    "above": "layers/above/layer.toml: depends_on names 'toml', which can't be read",
    "a name": "layers/: 'a name' can't be the name of a layer",
    "folder": "layers/folder/layer.toml: can't be read: Is a directory",
}


def test_layers_that_can_not_be_read_are_named_and_the_others_shown(checkout: Checkout, call: Caller) -> None:
    break_layers(checkout)
    said = call("status", json=True)
    assert said.code == 2
    found = states(said)
    assert found.pop("sound") == ("not built", "inv build --layer sound")
    assert {state for state, _ in found.values()} == {"broken"}
    for name, reason in REASONS.items():
        assert found.pop(name)[1].startswith(reason)
    assert "depends_on closes a circle" in " ".join(reason for _, reason in found.values())
    assert found.keys() == {"round", "around"}
    table = call("status")
    assert table.code == 2
    assert table.out.count("✗ Broken") == len(REASONS) + 2


def test_a_lock_that_can_not_be_read(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    checkout.project.lock_path("web", HERE).write_text("<<<<<<< HEAD\n")
    state, reason = status_of_web(call)
    assert state == "outdated"
    assert reason.startswith(f"lock: layers/web/locks/{HERE}.txt:1: not a line that `inv lock` writes")


def test_a_swap_that_was_interrupted_is_said(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    (checkout.root / ".layerkit" / "swap").mkdir()
    said = call("status", json=True)
    assert said.code == 0
    assert said.err == (
        "a build or update was interrupted while it was put in place: the next `inv build` or `inv lock` finishes it\n"
    )
    assert said.document["layers"]
    assert (checkout.root / ".layerkit" / "swap").is_dir()  # looking changes nothing


# ---- what is shown ----


def test_every_target_that_something_is_built_for_is_shown(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    checkout.lock(FOREIGN)
    checkout.build(target=FOREIGN)
    for stray in (
        "web-python3.1-x86_64.json",
        "gone-python3.12-x86_64.json",
        "notes.json",
        "web-python3.12-x86_64.zip",
    ):
        (checkout.root / "dist" / stray).write_text("{}")
    targets = [entry["target"] for entry in call("status", json=True).document["layers"]]
    assert targets[0] == str(TARGET)
    assert sorted(targets) == sorted({str(TARGET), str(HERE), str(FOREIGN)})
    assert [entry["target"] for entry in call("status", json=True, **FOR_HERE).document["layers"]] == [str(HERE)]


def test_the_table_has_what_the_guide_shows_and_more(checkout: Checkout, call: Caller, index: Index) -> None:
    make_wheel(index.folder, "thing", "1.0")
    checkout.layer("web", "thing\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    checkout.validate()
    lines = call("status", **FOR_HERE).out.splitlines()
    assert lines[0].strip() == "Lambda layer status"
    head, row = (line for line in lines if line.lstrip().startswith(("Layer ", "web ")))
    assert head.split() == ["Layer", "Target", "Built", "Size", "Limit", "Zip", "Packages", "Status"]
    assert str(HERE) in row
    assert "100 MiB" in row
    assert "100 MiB *" not in row
    assert row.rstrip().endswith("1   ✓ Valid")


def test_a_limit_of_its_own_is_marked_with_its_reason(checkout: Checkout, call: Caller) -> None:
    built(checkout, 'max_size_mb = 180\nlimit_reason = "scipy alone has 90 MiB"\n')
    said = call("status", **FOR_HERE)
    assert "180 MiB *" in said.out
    assert "* web: scipy alone has 90 MiB\n" in said.out
    (entry,) = call("status", json=True, **FOR_HERE).document["layers"]
    assert (entry["limit_mb"], entry["limit_reason"]) == (180, "scipy alone has 90 MiB")


def test_the_graph_as_a_tree_and_as_mermaid(checkout: Checkout, call: Caller) -> None:
    checkout.layer("base", "")
    checkout.layer("left", "", 'depends_on = ["base"]\n')
    checkout.layer("right", "", 'depends_on = ["base"]\n')
    checkout.layer("top", "", 'depends_on = ["left", "right"]\n')
    checkout.layer("alone", "")
    drawn = (
        "graph TD\n"
        '    L0["alone"]\n    L1["base"]\n    L2["left"]\n    L3["right"]\n    L4["top"]\n'
        "    L1 --> L2\n    L1 --> L3\n    L2 --> L4\n    L3 --> L4\n"
    )
    tree = "alone\nbase\n├── left\n│   └── top\n└── right\n    └── top\n"
    said = call("status", graph=True)
    assert said.out.endswith(f"\n{tree}\n{drawn}")
    assert call("status", json=True, graph=True).document["mermaid"] == drawn
    assert "mermaid" not in call("status", json=True).document


GRAPHS = st.lists(st.sets(st.integers(0, 7)), max_size=8).map(
    lambda rows: Layers(
        Layer(f"l{number}", depends_on=tuple(f"l{other}" for other in sorted(row) if other < number))
        for number, row in enumerate(rows)
    )
)


@given(layers=GRAPHS)
def test_every_dependency_is_one_arrow_and_every_layer_is_in_the_tree(layers: Layers) -> None:
    drawn = mermaid(layers).splitlines()
    names = dict(line.strip().removesuffix('"]').split('["') for line in drawn if "[" in line)
    arrows = [tuple(names[end] for end in line.strip().split(" --> ")) for line in drawn if "-->" in line]
    wanted = [(needed, name) for name, layer in layers.items() for needed in layer.depends_on]
    assert sorted(arrows) == sorted(wanted)
    assert set(names.values()) == set(layers)
    rows = tree_of(layers).split("\n")
    assert {row.split(" ")[-1] for row in rows if row} == set(layers)
    roots = [row for row in rows if row and row[0] not in "├└│ "]
    assert roots == [name for name, layer in layers.items() if not layer.depends_on]


# ---- doctor ----


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Checkout) -> Path:
    """A machine with nothing on it: the user's home, empty, and a PATH without programs."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAFETY_", "PYENV_", "XDG_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "home"


def about(said: Said, topic: str, name: str) -> dict[str, Any]:
    """The one diagnosis of that name."""
    (found,) = [one for one in said.document["diagnoses"] if (one["topic"], one["name"]) == (topic, name)]
    assert isinstance(found, dict)
    return found


def problems(said: Said) -> dict[str, str]:
    """Name -> detail of everything that should be mended."""
    return {one["name"]: one["detail"] for one in said.document["diagnoses"] if one["condition"] == "problem"}


def test_a_fresh_clone_on_an_empty_machine_has_nothing_to_mend(checkout: Checkout, call: Caller, machine: Path) -> None:
    checkout.layer("web", "")
    checkout.lock()
    before = sorted(checkout.root.rglob("*"))
    said = call("doctor", json=True)
    assert (said.code, said.err, problems(said)) == (0, "", {})
    assert about(said, "checkout", "web")["detail"] == "not built (inv build --layer web)"
    assert {one["topic"] for one in said.document["diagnoses"]} == {
        *("interpreters", "tools", "caches", "checkout", "credentials")
    }
    assert sorted(checkout.root.rglob("*")) == before
    table = call("doctor")
    assert (table.code, table.out.endswith("Nothing to mend.\n")) == (0, True)


def test_a_checkout_without_layers_is_told_the_next_step(call: Caller, machine: Path) -> None:
    said = call("doctor", json=True)
    assert said.code == 0
    assert about(said, "checkout", "layers")["advice"] == "inv new --layer NAME makes one."


def test_what_is_missing_and_what_it_would_make_possible(call: Caller, machine: Path) -> None:
    said = call("doctor", json=True, settings={"interpreters": {}})
    python = about(said, "interpreters", "python3.14")
    assert (python["condition"], python["detail"]) == ("missing", "no Python 3.14")
    assert python["advice"] == (
        "With `uv python install 3.14`, layers for python3.14 can be verified by importing them."
    )
    for tool in ("git", "strip"):
        assert about(said, "tools", tool)["condition"] == "missing"
        assert about(said, "tools", tool)["advice"].startswith(f"With {tool}")
    for credential in ("AWS", "safety", "private indexes"):
        assert about(said, "credentials", credential)["condition"] == "missing"
        assert about(said, "credentials", credential)["advice"]


def test_what_is_there(call: Caller, machine: Path, tmp_path: Path) -> None:
    git = tmp_path / "bin" / "git"
    git.write_text("#!/bin/sh\necho git version 9.9\n")
    git.chmod(0o755)
    said = call("doctor", json=True)
    assert about(said, "tools", "git")["detail"] == f"git version 9.9 ({git})"
    assert about(said, "interpreters", HERE.runtime)["condition"] == "there"
    assert about(said, "caches", "layerkit")["detail"].endswith(f"({os.environ['LAYERKIT_CACHE_DIR']})")
    assert about(said, "caches", "uv")["detail"].endswith(f"({os.environ['UV_CACHE_DIR']})")


def test_the_size_of_a_cache(call: Caller, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "below").mkdir(parents=True)
    (tmp_path / "cache" / "below" / "one").write_bytes(bytes(3 << 20))
    (tmp_path / "cache" / "two").write_bytes(b"")
    assert about(call("doctor", json=True), "caches", "layerkit")["detail"].startswith("3.0 MiB in 2 files (")


def test_a_configured_interpreter_that_is_none(call: Caller, machine: Path) -> None:
    said = call("doctor", json=True, settings={"interpreters": {"3.14": "/nothing/python"}})
    assert said.code == 3
    assert problems(said) == {"python3.14": "layerkit.interpreters: '/nothing/python' is not a CPython 3.14."}


def test_credentials_are_told_by_name_and_never_shown(
    call: Caller, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKIAQWERTYUIOPASDFGH",
        "AWS_SECRET_ACCESS_KEY": "sesame-1",
        "AWS_SESSION_TOKEN": "sesame-2",
        "AWS_PROFILE": "sesame-3",
        "SAFETY_API_KEY": "sesame-4",
        "UV_INDEX_OURS_USERNAME": "sesame-5",
        "UV_INDEX_OURS_PASSWORD": "sesame-6",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    (machine / ".aws").mkdir()
    (machine / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = sesame-7\n")
    said = call("doctor", json=True)
    assert about(said, "credentials", "AWS")["detail"] == "set by AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials"
    assert about(said, "credentials", "safety")["detail"] == "set by SAFETY_API_KEY"
    indexes = about(said, "credentials", "private indexes")["detail"]
    assert indexes == "set by UV_INDEX_OURS_PASSWORD, UV_INDEX_OURS_USERNAME"
    table = call("doctor")
    for printed in (said.out, said.err, table.out, table.err):
        assert not [value for value in secrets.values() if value in printed]
        assert "sesame" not in printed


def test_empty_variables_are_no_credentials(call: Caller, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "SAFETY_API_KEY", "UV_INDEX_OURS_PASSWORD"):
        monkeypatch.setenv(name, "")
    said = call("doctor", json=True)
    assert [about(said, "credentials", name)["condition"] for name in ("AWS", "safety", "private indexes")] == [
        *["missing"] * 3
    ]


def test_a_stale_lock_is_to_be_mended(checkout: Checkout, call: Caller, machine: Path) -> None:
    checkout.layer("web", "")
    checkout.lock()
    checkout.layer("web", "six\n")
    said = call("doctor", json=True)
    assert said.code == 3
    assert problems(said) == {"web": "lock: its requirements have changed"}
    assert "`inv lock`" in about(said, "checkout", "web")["advice"]
    table = call("doctor")
    assert (table.code, table.out.endswith("1 to mend (✗).\n")) == (3, True)


def test_a_broken_checkout_is_told_all_that_is_wrong(checkout: Checkout, call: Caller, machine: Path) -> None:
    break_layers(checkout)
    (checkout.root / ".layerkit" / "swap").mkdir(parents=True)
    said = call("doctor", json=True)
    assert said.code == 3
    found = problems(said)
    assert {*REASONS, "round", "around", "sound", "swap"} == found.keys()
    for name, reason in REASONS.items():
        assert found[name].startswith(reason)
    assert found["swap"] == "a build or update was interrupted while it was put in place"
    assert about(said, "checkout", "above")["advice"] == "Mend toml first."


def test_a_build_that_was_not_let_in_is_named(checkout: Checkout, call: Caller, machine: Path) -> None:
    checkout.layer("web", "")
    checkout.lock()
    (checkout.root / ".layerkit" / "failed" / f"web-{TARGET}" / "python").mkdir(parents=True)
    said = call("doctor", json=True)
    assert said.code == 0  # it is there for looking at; the layer itself stands as before
    failed = about(said, "checkout", "failed build")
    assert failed["detail"] == f".layerkit/failed/web-{TARGET} is a build that validation did not let in"
    assert failed["advice"] == "`inv clean` removes it."


# ---- validate, as far as nothing needs to be built ----


def test_the_checks_are_listed(call: Caller) -> None:
    said = call("validate", list_checks=True, json=True)
    assert said.code == 0
    assert said.document["checks"] == [
        {"name": check.name, "about": check.about, "finds": check.finds} for check in CHECKS
    ]
    table = call("validate", list_checks=True).out
    for check in CHECKS:
        assert check.name in table
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert {check.about for check in CHECKS} == {"layer", "function"}


@pytest.mark.parametrize("flag", ["only", "skip"])
@pytest.mark.parametrize("target", [None, "layers", "functions"])
def test_a_check_that_is_none_is_an_error_wherever_it_would_be_used(
    checkout: Checkout, call: Caller, flag: str, target: str | None
) -> None:
    checkout.layer("web", "")
    flags: dict[str, Any] = {"target": target, flag: ["size", "sizes"]}
    said = call("validate", **flags)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"layerkit: --{flag}: there is no check called 'sizes'.\nChecks: build, size, zip,")


def test_a_target_that_is_none_is_an_error(checkout: Checkout, call: Caller) -> None:
    checkout.layer("web", "")
    said = call("validate", target="lambdas")
    assert (said.code, said.err) == (2, "layerkit: --target: 'lambdas' is neither layers nor functions.")


def test_only_and_skip_choose_the_checks(checkout: Checkout, call: Caller) -> None:
    built(checkout)

    def ran(**flags: Any) -> list[str]:
        return [check["check"] for check in call("validate", json=True, **FOR_HERE, **flags).document["checks"]]

    layer_checks = [check.name for check in CHECKS if check.about == "layer"]
    assert ran() == layer_checks
    assert ran(skip=["imports", "elf"]) == [name for name in layer_checks if name not in ("imports", "elf")]
    assert ran(only=["zip", "size"]) == ["size", "zip"]
    assert ran(only=["zip", "size"], skip=["zip"]) == ["size"]


def test_a_layer_named_is_the_only_one_checked(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    checkout.layer("other", "")
    said = call("validate", json=True, layer=["web"], **FOR_HERE)
    assert (said.code, {check["subject"] for check in said.document["checks"]}) == (0, {"web"})
    assert call("validate", layer=["nobody"], **FOR_HERE).code == 2


def test_a_checkout_that_is_not_built_fails_and_says_what_to_do(checkout: Checkout, call: Caller) -> None:
    checkout.layer("web", "")
    checkout.lock()
    said = call("validate")
    assert said.code == 3
    assert f"error: web: there is no build for {TARGET}, so nothing else of it could be checked" in said.out
    assert "  Build it: inv build --layer web\n" in said.out


def test_verbose_shows_each_check(checkout: Checkout, call: Caller) -> None:
    built(checkout)
    said = call("validate", verbose=True, **FOR_HERE)
    assert said.code == 0
    assert "1 modules" in said.out
    again = call("validate", verbose=True, **FOR_HERE)
    assert "s (recorded)" in again.out
    for check in CHECKS:
        assert (check.name in said.out) is (check.about == "layer")


def test_the_document_is_alone_on_stdout_though_modules_print(checkout: Checkout) -> None:
    """As a process: what is printed there by others has nothing to do with how tests capture it."""
    checkout.layer("web", "", code={"web.py": "import os, sys\nos.write(1, b'{')\nsys.stdout.write('{')\n"})
    checkout.lock(HERE)
    checkout.build(target=HERE)
    settings = {"layerkit": {"interpreters": {VERSION: sys.executable}}}
    (checkout.root / "invoke.yaml").write_text(json.dumps(settings))
    words = ["validate", "--runtime", HERE.runtime, "--architecture", HERE.architecture]
    done = checkout.inv(*words, "--json")
    assert (done.returncode, json.loads(done.stdout)["valid"]) == (0, True)
