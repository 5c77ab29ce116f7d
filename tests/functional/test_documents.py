"""docs/json.md on what test_json.py's tables leave out: entries of lists, other forms of a task, errors, the words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from layerkit.building import Action
from layerkit.diagnosing import Condition
from layerkit.standing import State
from tasks.namespace import ns
from tests.support.calls import Caller, Said
from tests.support.checkouts import HERE, REPOSITORY, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel

TEXT = (REPOSITORY / "docs" / "json.md").read_text()
FOR_HERE: dict[str, Any] = {"runtime": HERE.runtime, "architecture": HERE.architecture}


def section(title: str) -> str:
    (found,) = [part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if part.startswith(f"{title}\n")]
    return found


def row(title: str, key: str) -> set[str]:
    """What is marked as code in the description of a key."""
    (description,) = re.findall(rf"^\| `{re.escape(key)}` \| (.*) \|$", section(title), re.MULTILINE)
    return code(description)


def code(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def names(document: Any) -> set[str]:
    """Every key anywhere in a document."""
    if isinstance(document, list):
        return {name for entry in document for name in names(entry)}
    if isinstance(document, dict):
        return set(document) | {name for value in document.values() for name in names(value)}
    return set()


@pytest.fixture
def call(
    checkout: Checkout, index: Index, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Caller:
    """Tasks on a checkout of which there is something to say: a warning, and a function that can't be tried."""
    make_wheel(index.folder, "thing", "1.0")
    checkout.layer("web", "thing\n", 'max_size_mb = 1\nlimit_reason = "small"\n', code={"large.txt": "x" * 1_000_000})
    layer = {"Type": "AWS::Serverless::LayerVersion", "Properties": {"LayerName": "web"}}
    properties = {
        "CodeUri": "functions/fn/",
        "Handler": "app.lambda_handler",
        "Runtime": HERE.runtime,
        "Architectures": [HERE.architecture],
        "Layers": [{"Ref": "Web"}],
    }
    function = {"Type": "AWS::Serverless::Function", "Properties": properties}
    (checkout.root / "template.yaml").write_text(json.dumps({"Resources": {"Web": layer, "Fn": function}}))
    return Caller(checkout.root, capfd, monkeypatch)


def build(call: Caller) -> dict[str, Any]:
    said = call("build", json=True, skip_optimization=True, **FOR_HERE)
    assert said.code == 0, said.err
    return said.document


def test_every_task_with_json_has_its_section() -> None:
    tasks = {name for name, task in dict(ns.tasks).items() if "json" in [arg.name for arg in task.get_arguments()]}
    assert tasks == set(re.findall(r"^## (.+)$", TEXT, re.MULTILINE))


def test_what_a_finding_of_a_build_has(call: Caller) -> None:
    (layer,) = build(call)["layers"]
    assert layer["findings"][0]["message"].endswith("close to its limit of 1 MiB")
    assert names(layer["findings"]) == row("build", "layers.findings")


def test_what_findings_and_skipped_checks_have(call: Caller) -> None:
    build(call)
    checks = call("validate", json=True, **FOR_HERE).document["checks"]
    findings = [found for check in checks for found in check["findings"]]
    skipped = [found for check in checks for found in check["skipped"]]
    assert names(findings) == row("validate", "checks.findings") - {"error", "warning"}
    assert names(skipped) == row("validate", "checks.skipped")
    assert {check["result"] for check in checks} == {"passed", "warning", "not checked"}
    assert row("validate", "checks.result") == {"passed", "warning", "failed", "not checked"}


def test_what_a_changed_version_has(call: Caller) -> None:
    (lock,) = call("lock", json=True, **FOR_HERE).document["locks"]
    assert lock["versions"] == {"thing": {"before": None, "after": "1.0"}}
    assert names(lock["versions"]["thing"]) == row("lock", "locks.versions")


OTHER_FORMS: dict[tuple[str, str], Callable[[Caller], Said]] = {
    ("lock", "--check"): lambda call: call("lock", json=True, check=True),
    ("validate", "--list-checks"): lambda call: call("validate", json=True, list_checks=True),
    ("optimize", "--list-rules"): lambda call: call("optimize", json=True, list_rules=True),
    ("optimize", "--explain"): lambda call: call("optimize", json=True, explain="thing.py", **FOR_HERE),
}


@pytest.mark.parametrize(("title", "flag"), OTHER_FORMS)
def test_another_form_of_a_task_is_described_with_its_flag(call: Caller, title: str, flag: str) -> None:
    document = OTHER_FORMS[title, flag](call).document
    assert document["schema"] == 1
    text = " ".join(section(title).split())
    start = text.index(f"With `{flag}`: ")
    end = text.find(" With `", start + 1)
    said = code(text[start:end] if end > 0 else text[start:]) - {flag}
    assert names(document) - {"schema"} <= said
    assert said - names(document) <= {"layer", "function"}  # values that are described as well


def test_what_a_new_layer_has(call: Caller) -> None:
    (call.root / "template.yaml").unlink()  # to that one, in braces, nothing is added
    document = call("new", json=True, layer="more").document
    assert names(document) == set(re.findall(r"^\| `(.+?)` \|", section("new"), re.MULTILINE))


def test_what_an_error_has(call: Caller) -> None:
    said = call("build", json=True, layer=["nobody"])
    assert said.code == said.document["error"]["exit_code"] == 2
    (line,) = [line for line in TEXT.splitlines() if line.startswith("An error is a document too: ")]
    assert names(said.document) == code(line)


def test_the_words_are_those_of_the_program() -> None:
    assert row("status", "layers.state") == {state.value for state in State}
    assert row("build", "layers.action") == {action.value for action in Action}
    assert row("doctor", "diagnoses.condition") == {condition.value for condition in Condition}
