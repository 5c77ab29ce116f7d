"""Functions with their layers: how many, how large, and what they answer. The layers are laid out by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerkit.functions import validate_functions
from layerkit.manifests import render_manifest
from layerkit.model import Checked, Report, Severity, Target
from layerkit.probing import Bounds
from layerkit.results import digest_of
from layerkit.runtimes import limits
from layerkit.template import declared_functions
from tests.support.checkouts import FOREIGN, HERE, VERSION, Checkout
from tests.unit.test_manifests import MANIFEST

ALLOWED = 262_144_000
ANSWER = "def lambda_handler(event, context):\n    return event\n"
ARN = "arn:aws:lambda:us-east-1:123456789012:layer:theirs:7"


@pytest.fixture
def site(checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A checkout whose results are its own, and whose program runs functions in this very Python."""
    monkeypatch.setenv("LAYERKIT_CACHE_DIR", str(tmp_path / "cache"))
    settings = {"layerkit": {"interpreters": {VERSION: sys.executable}}}
    (checkout.root / "invoke.yaml").write_text(json.dumps(settings))
    return checkout


def lay_out(
    checkout: Checkout,
    name: str,
    files: Mapping[str, str] | None = None,
    *,
    settings: str = "",
    size: int = 1000,
    target: Target = HERE,
) -> None:
    """A layer and what a build of it would have left, as far as functions are concerned."""
    checkout.layer(name, "", settings)
    project = checkout.project
    tree, archive = project.tree_path(name, target), project.zip_path(name, target)
    write(tree, {"nothing.txt": "", **(files or {})})
    write(archive.parent, {archive.name: ""})
    manifest = replace(
        MANIFEST,
        layer=name,
        target=target,
        tree=replace(MANIFEST.tree, path=project.relative(tree), sha256=digest_of(files), size=size),
    )
    project.manifest_path(name, target).write_text(render_manifest(manifest))


def write(folder: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def function(
    checkout: Checkout,
    *layers: str,
    name: str = "fn",
    code: str | None = ANSWER,
    event: Any = 1,
    expected: Any = 1,
    other_layers: Sequence[Any] = (),
    **properties: Any,
) -> None:
    """Add a function to the template, with its code, its event and the answer to that; None: there is no such file."""
    path = checkout.root / "template.yaml"
    template = json.loads(path.read_text()) if path.exists() else {"Resources": {}}
    for layer in layers:
        resource = {"Type": "AWS::Serverless::LayerVersion", "Properties": {"LayerName": layer}}
        template["Resources"][f"{layer}Layer"] = resource
    template["Resources"][f"{name}Function"] = {
        "Type": "AWS::Serverless::Function",
        "Properties": {
            "FunctionName": name,
            "CodeUri": f"functions/{name}/",
            "Handler": "app.lambda_handler",
            "Runtime": HERE.runtime,
            "Architectures": [HERE.architecture],
            "Layers": [*({"Ref": f"{layer}Layer"} for layer in layers), *other_layers],
            **properties,
        },
    }
    path.write_text(json.dumps(template))
    texts = {"app.py": code, "event.json": as_json(event), "expected.json": as_json(expected)}
    write(checkout.root / "functions" / name, {file: text for file, text in texts.items() if text is not None})


def as_json(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def validate(checkout: Checkout, **options: Any) -> Report:
    functions = declared_functions((checkout.root / "template.yaml").read_text(), "template.yaml")
    return validate_functions(checkout.project, functions, lambda target: checkout.means(target, **options))


def one(report: Report, check: str, name: str = "fn") -> Checked:
    (found,) = [checked for checked in report.checked if (checked.check, checked.subject) == (check, name)]
    return found


def messages(report: Report, severity: Severity = Severity.ERROR) -> list[str]:
    return [finding.message for finding in report.findings if finding.severity is severity]


def reasons(report: Report) -> list[tuple[str, str]]:
    return [(skipped.check, skipped.reason) for skipped in report.skipped]


EVENT = frozenset({"function-event"})
SIZE = frozenset({"function-size"})
LAYERS = frozenset({"function-layers"})


def test_a_sound_function_passes_every_check(site: Checkout) -> None:
    lay_out(site, "base", {"base.py": "VALUE = 5\n"})
    code = "import base\ndef lambda_handler(event, context):\n    return [base.VALUE, event]\n"
    function(site, "base", code=code, event={"a": 1}, expected=[5, {"a": 1}])
    report = validate(site)
    assert (report.findings, report.skipped) == ((), ())
    assert [checked.check for checked in report.checked] == ["function-layers", "function-size", "function-event"]
    assert one(report, "function-layers").detail == "1 of 5: base"
    assert one(report, "function-event").detail == "functions/fn/event.json"


def test_a_function_without_layers_is_one_too(site: Checkout) -> None:
    site.layer("unused", "")
    function(site)
    report = validate(site)
    assert (report.findings, report.skipped) == ((), ())
    assert one(report, "function-layers").detail == "0 of 5: none"


# ---- which layers ----


def test_more_layers_than_lambda_allows(site: Checkout) -> None:
    names = ["l1", "l2", "l3", "l4", "l5", "l6"]
    for name in names:
        lay_out(site, name)
    function(site, *names[:5], name="five")
    function(site, *names, name="six")
    function(site, *names[:4], name="others", other_layers=[ARN, {"Ref": "Parameter"}])
    report = validate(site, only=LAYERS)
    assert [(finding.subject, finding.message) for finding in report.findings] == [
        ("six", "it attaches 6 layers; Lambda allows 5"),
        ("others", "it attaches 6 layers; Lambda allows 5"),
    ]


def test_a_layer_that_is_attached_twice(site: Checkout) -> None:
    lay_out(site, "base")
    function(site, "base", "base", other_layers=[ARN, ARN])
    assert messages(validate(site, only=LAYERS)) == [
        f"it attaches {ARN} more than once",
        "it attaches base more than once",
    ]


def test_a_layer_without_what_it_depends_on(site: Checkout) -> None:
    lay_out(site, "base")
    lay_out(site, "middle", settings='depends_on = ["base"]\n')
    lay_out(site, "top", settings='depends_on = ["middle"]\n')
    function(site, "base", "middle", "top", name="whole")
    function(site, "base", "top", name="without")
    (finding,) = validate(site, only=LAYERS).findings
    assert finding.subject == "without"
    assert finding.message == "it attaches top without middle, which that needs"
    assert finding.hint == "Add middle to the function's Layers, before top."


def test_layers_of_two_stacks(site: Checkout) -> None:
    lay_out(site, "base")
    lay_out(site, "else", settings='stack = "other"\n')
    function(site, "base", "else")
    (message,) = messages(validate(site, only=LAYERS))
    assert message == "its layers are of the stacks default and other, which are not resolved together"


def test_a_layer_that_is_not_for_the_functions_target(site: Checkout) -> None:
    lay_out(site, "base", settings='runtimes = ["python3.9"]\n')
    function(site, "base")
    (message,) = messages(validate(site, only=LAYERS))
    assert message == f"base is not for {HERE}: layers/base/layer.toml lists runtimes python3.9"


def test_a_layer_of_the_template_that_the_checkout_has_not(site: Checkout) -> None:
    lay_out(site, "base")
    function(site, "gone")
    report = validate(site)
    assert messages(report) == ["it attaches gone, which is no layer of this checkout"]
    assert reasons(report) == [("function-size", "gone is not built"), ("function-event", "gone is not built")]


def test_a_layer_of_somebody_else_is_nothing_to_vouch_for(site: Checkout) -> None:
    lay_out(site, "base")
    function(site, "base", other_layers=[ARN])
    report = validate(site)
    assert report.findings == ()
    assert reasons(report) == [
        ("function-size", f"the size of {ARN} is not known here"),
        ("function-event", f"what {ARN} holds is not known here"),
    ]


def test_a_layer_that_is_not_built(site: Checkout) -> None:
    site.layer("base", "")
    function(site, "base")
    assert reasons(validate(site)) == [("function-size", "base is not built"), ("function-event", "base is not built")]


# ---- size ----


def test_the_limit_is_the_one_of_aws() -> None:
    assert limits()["function_unzipped"] == ALLOWED


@pytest.mark.parametrize(
    ("over", "severity"),
    [(1, Severity.ERROR), (0, Severity.WARNING), (-25_000_000, Severity.WARNING), (-27_000_000, None)],
)
def test_all_layers_and_the_code_count_together(site: Checkout, over: int, severity: Severity | None) -> None:
    code = sum(len(text) for text in (ANSWER, "1", "1"))
    lay_out(site, "base", size=200_000_000)
    lay_out(site, "more", size=ALLOWED - 200_000_000 - code + over)
    function(site, "base", "more")
    report = validate(site, only=SIZE)
    assert [finding.severity for finding in report.findings] == ([severity] if severity else [])
    total = f"{ALLOWED + over:,} bytes: base 190.7, more "
    assert all(total in finding.message for finding in report.findings)
    assert report.failed is (over == 1)


def test_the_functions_own_code_counts(site: Checkout) -> None:
    site.layer("unused", "")
    function(site)
    with (site.root / "functions" / "fn" / "model.bin").open("wb") as file:
        file.truncate(ALLOWED)  # it has that size, and takes no room
    (message,) = messages(validate(site, only=SIZE))
    assert "its own code 250.0" in message
    assert message.endswith("Lambda allows 250 MiB (262,144,000 bytes)")


# ---- the event ----


@pytest.mark.parametrize(
    ("answer", "expected", "where"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, ""),
        (2, 3, "it is 2, not 3"),
        ({"statusCode": 500}, {"statusCode": 200}, "/statusCode is 500, not 200"),
        ({"body": {"rows": [1, 2, 4]}}, {"body": {"rows": [1, 2, 3]}}, "/body/rows/2 is 4, not 3"),
        ({"rows": [1, 2]}, {"rows": [1]}, "/rows has 2 entries, not 1"),
        ([1], [], "the answer has 1 entries, not 0"),
        ({"a": 1, "more": 2}, {"a": 1}, "/more is not expected"),
        ({}, {"a": None}, "/a is missing"),
        ({"a": "1"}, {"a": 1}, '/a is "1", not 1'),
        ({"a": True}, {"a": 1}, "/a is true, not 1"),
        ({"a": 0}, {"a": False}, "/a is 0, not false"),
        ({"a": 1.0}, {"a": 1}, ""),
        ({"a": []}, {"a": {}}, "/a is [], not {}"),
        ("x" * 1000, "y", f'it is "{"x" * 199}, not "y"'),
    ],
)
def test_an_answer_is_compared_and_the_first_difference_said(
    site: Checkout, answer: Any, expected: Any, where: str
) -> None:
    site.layer("unused", "")
    function(site, event=json.dumps(answer), expected=json.dumps(expected))
    said = f"its answer is not that of functions/fn/expected.json: {where}"
    assert messages(validate(site, only=EVENT)) == ([said] if where else [])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck (app.py:2)"),
        ("return object()", "TypeError: Object of type object is not JSON serializable"),
        ("import sys; sys.exit(3)", "SystemExit: 3 (app.py:2)"),
        (
            "import os; print('so long', flush=True); os._exit(3)",
            "it ended its process with exit code 3; it last said: so long",
        ),
        ("import os; os.kill(os.getpid(), 9)", "it was ended by signal 9"),
        ("return bytearray(1 << 40)", "MemoryError"),
    ],
)
def test_a_handler_that_does_not_answer(site: Checkout, code: str, message: str) -> None:
    site.layer("unused", "")
    function(site, code=f"def lambda_handler(event, context):\n    {code}\n")
    (found,) = messages(validate(site, only=EVENT))
    assert found.startswith(f"functions/fn/event.json: {message}")


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("app.nothing", "AttributeError: module 'app' has no attribute 'nothing'"),
        ("other.lambda_handler", "ModuleNotFoundError: No module named 'other'"),
        ("app", "ValueError: Empty module name"),
    ],
)
def test_a_handler_that_is_not_there(site: Checkout, handler: str, message: str) -> None:
    site.layer("unused", "")
    function(site, Handler=handler)
    (found,) = messages(validate(site, only=EVENT))
    assert found == f"functions/fn/event.json: {message}"


def test_a_handler_in_a_folder_below(site: Checkout) -> None:
    site.layer("unused", "")
    function(site, Handler="below/main.go")
    write(site.root / "functions" / "fn", {"below/main.py": "def go(event, context): return event\n"})
    assert messages(validate(site)) == []


def test_a_module_that_no_attached_layer_has(site: Checkout) -> None:
    lay_out(site, "base", {"base.py": ""})
    lay_out(site, "other", {"wanted.py": ""})
    function(site, "base", code="import base\nimport wanted\n")
    (finding,) = validate(site).findings
    assert finding.message == "functions/fn/event.json: ModuleNotFoundError: No module named 'wanted' (app.py:2)"
    assert finding.hint == "No layer that it attaches has wanted: attach one that does, or add it to a layer."


def test_files_that_are_no_json(site: Checkout) -> None:
    site.layer("unused", "")
    function(site, name="event", event="{", expected=1)
    function(site, name="expected", event=1, expected="{")
    event, expected = messages(validate(site, only=EVENT))
    assert event.startswith("functions/event/event.json: JSONDecodeError: ")
    assert expected.startswith("functions/expected/expected.json is not JSON: ")


@pytest.mark.parametrize("file", ["event.json", "expected.json"])
def test_a_function_without_something_to_try_it_with(site: Checkout, file: str) -> None:
    site.layer("unused", "")
    function(site)
    (site.root / "functions" / "fn" / file).unlink()
    report = validate(site)
    assert report.findings == ()
    assert reasons(report) == [("function-event", f"there is no functions/fn/{file} to try it with")]


@pytest.mark.parametrize("code", [{"CodeUri": "functions/gone/"}, {"InlineCode": "x"}, {"CodeUri": "s3://bucket/key"}])
def test_a_function_whose_code_is_elsewhere(site: Checkout, code: dict[str, str]) -> None:
    site.layer("unused", "")
    function(site, **code)
    assert ("function-event", "its code is not in this checkout") in reasons(validate(site))


def test_a_foreign_function_is_not_tried(site: Checkout) -> None:
    lay_out(site, "base", target=FOREIGN)
    function(site, "base", Architectures=[FOREIGN.architecture])
    (skipped,) = validate(site).skipped
    assert skipped.check == "function-event"
    assert f"nothing built for {FOREIGN.architecture} can be run" in skipped.reason


def test_a_runtime_that_only_cloudformation_knows(site: Checkout) -> None:
    lay_out(site, "base")
    function(site, "base", Runtime={"Fn::If": ["IsNew", "python3.13", "python3.12"]})
    report = validate(site)
    assert report.findings == ()
    ((check, reason),) = reasons(report)
    assert (check, reason.startswith("its runtime and architecture are not known here")) == ("function-layers", True)
    assert site.inv("validate", "--target", "functions").returncode == 4


# ---- as on Lambda ----


def test_of_two_layers_the_later_one_counts_and_the_functions_own_code_before_both(site: Checkout) -> None:
    lay_out(site, "first", {"who.py": "NAME = 'first'\n", "own.py": "NAME = 'layer'\n", "only.py": "NAME = 'first'\n"})
    lay_out(site, "second", {"who.py": "NAME = 'second'\n", "own.py": "NAME = 'layer'\n"})
    code = "import who, own, only\ndef lambda_handler(event, context):\n    return [who.NAME, own.NAME, only.NAME]\n"
    function(site, "first", "second", code=code, expected=["second", "function", "first"])
    write(site.root / "functions" / "fn", {"own.py": "NAME = 'function'\n"})
    assert messages(validate(site)) == []


def test_a_layers_site_packages_are_on_the_path(site: Checkout) -> None:
    lay_out(site, "base", {f"lib/{HERE.runtime}/site-packages/deep.py": "NAME = 'deep'\n"})
    function(
        site, "base", code="import deep\ndef lambda_handler(event, context): return deep.NAME\n", expected='"deep"'
    )
    assert messages(validate(site)) == []


def test_what_a_handler_sees(
    site: Checkout, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    site.layer("unused", "")
    code = (
        "import os, sys\n"
        "print('loading'); print('loudly', file=sys.stderr)\n"
        "def lambda_handler(event, context):\n"
        "    print('called')\n"
        "    assert 0 < context.get_remaining_time_in_millis() <= 30_000\n"
        "    assert context.aws_request_id and context.log_stream_name and context.memory_limit_in_mb\n"
        "    assert context.invoked_function_arn.endswith(':function:' + context.function_name)\n"
        "    hidden = [name for name in os.environ if 'SECRET' in name or name.startswith('PYTHON')]\n"
        "    return [context.function_name, os.environ['AWS_REGION'], hidden, sys.flags.dont_write_bytecode]\n"
    )
    function(site, code=code, expected=["fn", "us-east-1", [], 1])
    assert messages(validate(site)) == []
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert not list(site.root.rglob("__pycache__"))


# ---- what is known from before ----


def test_the_second_time_nothing_is_called(site: Checkout, tmp_path: Path) -> None:
    site.layer("unused", "")
    called = tmp_path / "called"
    code = f"def lambda_handler(event, context):\n    open({str(called)!r}, 'a').write('x')\n    return event\n"
    function(site, code=code)
    assert [one(validate(site), "function-event").recorded for _ in range(3)] == [False, True, True]
    assert called.read_text() == "x"


def test_a_wrong_answer_is_known_as_well(site: Checkout) -> None:
    site.layer("unused", "")
    function(site, expected=2)
    first, second = validate(site), validate(site)
    assert messages(first) == messages(second) != []
    assert (one(first, "function-event").recorded, one(second, "function-event").recorded) == (False, True)


CHANGES: dict[str, Callable[[Checkout], None]] = {
    "its code": lambda site: function(site, "base", code=ANSWER + "\n"),
    "the event": lambda site: function(site, "base", event=2),
    "the answer": lambda site: function(site, "base", expected=2),
    "the handler": lambda site: function(site, "base", Handler="other.lambda_handler"),
    "its name": lambda site: function(site, "base", FunctionName="renamed"),
    "a layer": lambda site: lay_out(site, "base", {"base.py": "x = 2\n"}),
    "the order": lambda site: function(site, "more", "base"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_it_is_called_again_when_anything_has_changed(site: Checkout, what: str) -> None:
    lay_out(site, "base", {"base.py": "x = 1\n"})
    lay_out(site, "more", {"more.py": "x = 1\n"})
    function(site, *(["base", "more"] if what == "the order" else ["base"]))
    write(site.root / "functions" / "fn", {"other.py": ANSWER})
    validate(site)
    CHANGES[what](site)
    (again,) = validate(site, only=EVENT).checked
    assert not again.recorded


def test_a_call_whose_time_was_up_is_not_remembered(site: Checkout) -> None:
    site.layer("unused", "")
    function(site, code="import threading\ndef lambda_handler(event, context): threading.Event().wait()\n")
    for _ in range(2):
        checked = one(validate(site, bounds=Bounds(seconds=0.3)), "function-event")
        (finding,) = checked.findings
        assert finding.message == "functions/fn/event.json: it had not ended after 0.3 s"
        assert not checked.recorded


# ---- inv validate ----


def test_the_exit_codes(site: Checkout) -> None:
    lay_out(site, "base")
    words = ["validate", "--target", "functions"]
    function(site, "base", name="good")
    done = site.inv(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "good" in done.stdout
    assert "Everything that was checked is valid." in done.stdout
    function(site, "base", name="bad", expected=2)
    done = site.inv(*words)
    assert done.returncode == 3
    assert "error: bad: its answer is not that of functions/bad/expected.json: it is 1, not 2" in done.stdout
    function(site, "base", name="untried", event=None)
    done = site.inv(*words)
    assert done.returncode == 4  # that it is not known goes before what is known
    assert "error: bad: " in done.stdout
    assert "not checked: function-event of untried: there is no functions/untried/event.json" in done.stdout
    assert site.inv(*words, "--skip", "function-event").returncode == 0


def test_layers_named_limit_the_functions_to_those_that_attach_them(site: Checkout) -> None:
    for name in ("base", "other"):
        lay_out(site, name)
    function(site, "base", name="one")
    function(site, "other", name="two", expected=2)
    function(site, "base", "other", name="both", expected=3)

    def subjects(*words: str) -> set[str]:
        document = site.inv_json("validate", "--target", "functions", "--only", "function-layers", *words)
        return {check["subject"] for check in document["checks"]}

    assert subjects() == {"one", "two", "both"}
    assert subjects("--layer", "base") == {"one", "both"}
    assert subjects("--layer", "other") == {"two", "both"}


def test_functions_are_checked_along_with_layers_unless_only_these_are_asked_for(site: Checkout) -> None:
    lay_out(site, "base")
    function(site, "base", name="bad", expected=2)
    words = ["validate", "--runtime", HERE.runtime, "--architecture", HERE.architecture, "--only", "size"]
    both = site.inv_json(*words, "--only", "function-event")
    assert [(check["check"], check["subject"]) for check in both["checks"]] == [
        ("size", "base"),
        ("function-event", "bad"),
    ]
    layers = site.inv_json(*words, "--only", "function-event", "--target", "layers")
    assert [check["subject"] for check in layers["checks"]] == ["base"]


def test_what_a_handler_prints_is_not_in_the_document(site: Checkout) -> None:
    site.layer("unused", "")
    function(site, code="import os\nos.write(1, b'{')\nprint('{')\n" + ANSWER)
    document = site.inv_json("validate", "--target", "functions")
    assert document["valid"] is True


def test_without_a_template_there_are_no_functions(site: Checkout) -> None:
    site.layer("unused", "")
    done = site.inv("validate", "--target", "functions")
    assert (done.returncode, "There was nothing to check." in done.stdout) == (0, True)


def test_a_template_that_can_not_be_read(site: Checkout) -> None:
    site.layer("unused", "")
    (site.root / "template.yaml").write_text("Resources: [\n")
    done = site.inv("validate", "--target", "functions")
    assert (done.returncode, done.stdout) == (2, "")
    assert "template.yaml:2: not valid YAML" in done.stderr


def test_what_the_runtime_brings_is_not_checked_here_and_no_finding(site: Checkout) -> None:
    lay_out(site, "base", {"base.py": ""})
    code = "import boto3\ndef lambda_handler(event, context):\n    return event\n"
    function(site, "base", code=code)
    report = validate(site, only=EVENT)
    assert messages(report) == []
    reason = "it imports boto3, which is the runtime's own: no layer that it attaches carries it"
    assert reasons(report) == [("function-event", reason)]
