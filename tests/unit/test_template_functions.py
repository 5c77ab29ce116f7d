"""What the template's functions are: values as SAM and CloudFormation would see them, and no template too odd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.model import Function, Target
from layerkit.template import declared_functions, layer_names

ROOT = Path(__file__).parents[2]

BEFORE = """\
Parameters:
  Python: {Type: String, Default: "3.13"}
  Stored: {Type: "AWS::SSM::Parameter::Value<String>", Default: /python/runtime}
  Open: {Type: String}
Resources:
  Core: {Type: AWS::Serverless::LayerVersion, Properties: {LayerName: core}}
  Named: {Type: AWS::Serverless::LayerVersion, Properties: {ContentUri: x}}
  Plain: {Type: AWS::Lambda::LayerVersion, Properties: {LayerName: !Sub "py${Python}"}}
  Staged: {Type: AWS::Serverless::LayerVersion, Properties: {LayerName: !Sub "core-${AWS::StackName}"}}
  Unnamed: {Type: AWS::Lambda::LayerVersion, Properties: {Content: {}}}
"""


def functions(properties: str, before: str = BEFORE, kind: str = "AWS::Serverless::Function") -> tuple[Function, ...]:
    """What is declared where one function has ``properties``, written as YAML's flow style."""
    return declared_functions(f"{before}  Fn: {{Type: {kind}, Properties: {{{properties}}}}}\n", "template.yaml")


def only(properties: str, before: str = BEFORE, kind: str = "AWS::Serverless::Function") -> Function:
    (found,) = functions(properties, before, kind)
    return found


NEEDED = "Runtime: python3.13, Handler: app.main"


def test_this_checkouts_functions() -> None:
    found = declared_functions((ROOT / "template.yaml").read_text(encoding="utf-8"), "template.yaml")
    target = Target("python3.13", "x86_64")
    assert [(one.logical_id, one.folder, one.handler, one.target, one.layers, one.other_layers) for one in found] == [
        (
            "DataValidationFunction",
            "functions/data_validation",
            "app.lambda_handler",
            target,
            ("core-data-science", "aws-utilities"),
            (),
        ),
        (
            "EnhancedFeatureEngineeringFunction",
            "functions/enhanced_feature_engineering",
            "app.lambda_handler",
            target,
            ("core-data-science", "ml-libraries"),
            (),
        ),
    ]


def test_all_that_one_may_say() -> None:
    found = only(
        "FunctionName: checks, CodeUri: ./src/checks/, Handler: app.main, Runtime: python3.12, "
        "Architectures: [arm64], Layers: [!Ref Core]"
    )
    assert found == Function(
        name="checks",
        logical_id="Fn",
        folder="src/checks",
        handler="app.main",
        target=Target("python3.12", "arm64"),
        layers=("core",),
    )


def test_what_is_left_unsaid() -> None:
    found = only(NEEDED)
    assert found == Function("Fn", "Fn", "", "app.main", Target("python3.13", "x86_64"), ())


@pytest.mark.parametrize(
    ("entry", "layer"),
    [
        ("!Ref Core", "core"),
        ("{Ref: Core}", "core"),
        ("!GetAtt Plain.LayerVersionArn", "py3.13"),
        ("{'Fn::GetAtt': [Plain, LayerVersionArn]}", "py3.13"),
        ("{'Fn::GetAtt': Plain.LayerVersionArn}", "py3.13"),
        ("!GetAtt [Plain, LayerVersionArn]", "py3.13"),
        ("!Sub '${Core}'", "core"),
        ("{'Fn::Sub': '${Plain.LayerVersionArn}'}", "py3.13"),
        ("!Ref Named", "Named"),
    ],
)
def test_references_to_the_templates_own_layers(entry: str, layer: str) -> None:
    found = only(f"{NEEDED}, Layers: [{entry}]")
    assert (found.layers, found.other_layers) == ((layer,), ())


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("'arn:aws:lambda:eu-west-1:1:layer:core:3'", "arn:aws:lambda:eu-west-1:1:layer:core:3"),
        ("!Ref Open", "!Ref Open"),
        ("!Ref Python", "!Ref Python"),
        ("!Ref Fn", "!Ref Fn"),
        ("!Ref Staged", "!Ref Staged"),
        ("!Ref Unnamed", "!Ref Unnamed"),
        ("!Sub '${Core}:1'", "!Sub ${Core}:1"),
        ("!Sub ['${A}', {A: b}]", "!Sub ['${A}', {A: b}]"),
        ("!ImportValue core", "!ImportValue core"),
        ("!If [IsProd, !Ref Core, !Ref 'AWS::NoValue']", "!If [IsProd, !Ref 'Core', !Ref 'AWS::NoValue']"),
        ("{'Fn::If': [IsProd, a, b]}", "{'Fn::If': [IsProd, a, b]}"),
        ("{[a]: b}", "{? [a] : b}"),
        ('"a\\nb"', "a b"),
        ("[a, b]", "[a, b]"),
    ],
)
def test_other_layers_are_given_as_text(entry: str, text: str) -> None:
    found = only(f"{NEEDED}, Layers: [{entry}]")
    assert (found.layers, found.other_layers) == ((), (text,))


@pytest.mark.parametrize("entry", ["!Ref AWS::NoValue", "null", "~"])
def test_entries_that_say_nothing(entry: str) -> None:
    found = only(f"{NEEDED}, Layers: [{entry}, !Ref Core]")
    assert (found.layers, found.other_layers) == (("core",), ())


def test_layers_that_are_no_list() -> None:
    assert only(f"{NEEDED}, Layers: !Ref Open").other_layers == ("!Ref Open",)
    assert only(f"{NEEDED}, Layers: !Ref Core").layers == ("core",)
    assert only(f"{NEEDED}, Layers: !If [A, [b], [c]]").other_layers == ("!If [A, [b], [c]]",)
    assert only(f"{NEEDED}, Layers: null").layers == ()


def test_the_order_of_layers_stays() -> None:
    found = only(f"{NEEDED}, Layers: [!Ref Plain, x, !Ref Core, y, !Ref Plain]")
    assert (found.layers, found.other_layers) == (("py3.13", "core", "py3.13"), ("x", "y"))


GLOBALS = """\
Globals:
  Function:
    Runtime: python3.12
    Handler: shared.main
    CodeUri: shared/
    Architectures: [arm64]
    Layers: [!Ref Core]
"""


def test_globals_stand_for_what_a_function_does_not_say() -> None:
    found = only("Timeout: 3", GLOBALS + BEFORE)
    assert found == Function("Fn", "Fn", "shared", "shared.main", Target("python3.12", "arm64"), ("core",))


def test_a_function_goes_before_globals_but_layers_are_added() -> None:
    found = only(f"{NEEDED}, CodeUri: own, Architectures: [x86_64], Layers: [!Ref Plain]", GLOBALS + BEFORE)
    assert found == Function("Fn", "Fn", "own", "app.main", Target("python3.13", "x86_64"), ("core", "py3.13"))


def test_layers_that_are_no_list_replace_those_of_globals() -> None:
    found = only("Layers: !If [A, [b], [c]]", GLOBALS + BEFORE)
    assert (found.layers, found.other_layers) == ((), ("!If [A, [b], [c]]",))
    assert only("Layers: null", GLOBALS + BEFORE).layers == ()


def test_a_function_can_ignore_globals() -> None:
    before = f"{GLOBALS}{BEFORE}  Some: {{Type: AWS::Serverless::Function, IgnoreGlobals: [Layers, CodeUri]}}\n"
    (some,) = declared_functions(before, "t")
    assert some == Function("Some", "Some", "", "shared.main", Target("python3.12", "arm64"), ())
    before = f"{GLOBALS}{BEFORE}  All: {{Type: AWS::Serverless::Function, IgnoreGlobals: '*'}}\n"
    with pytest.raises(ConfigurationError, match="the function All has no Runtime"):
        declared_functions(before, "t")
    with_layers = f"{GLOBALS}{BEFORE}  F:\n    Type: AWS::Serverless::Function\n    IgnoreGlobals: [Layers]\n"
    (found,) = declared_functions(f"{with_layers}    Properties: {{Layers: [a]}}\n", "t")
    assert (found.layers, found.other_layers) == ((), ("a",))


def test_globals_are_not_for_cloudformations_own_functions() -> None:
    with pytest.raises(ConfigurationError, match="has no Runtime"):
        functions("Handler: app.main", GLOBALS + BEFORE, "AWS::Lambda::Function")
    found = only(f"{NEEDED}, Code: src", GLOBALS + BEFORE, "AWS::Lambda::Function")
    assert found == Function("Fn", "Fn", "src", "app.main", Target("python3.13", "x86_64"), ())


@pytest.mark.parametrize(
    "properties",
    [
        "Runtime: nodejs22.x, Handler: a.b",
        "Runtime: provided.al2023, Handler: bootstrap",
        "Runtime: java21",
        "PackageType: Image",
        "PackageType: Image, ImageUri: x, Runtime: null",
        "ImageUri: !Ref Open",
    ],
)
def test_other_languages_and_images_are_left_out(properties: str) -> None:
    assert functions(properties) == ()


def test_an_image_of_cloudformations_own_kind_is_left_out() -> None:
    assert functions("Code: {ImageUri: x}", kind="AWS::Lambda::Function") == ()


@pytest.mark.parametrize(
    ("code", "folder"),
    [
        ("CodeUri: s3://bucket/key", ""),
        ("CodeUri: {Bucket: b, Key: k}", ""),
        ("CodeUri: dist/fn.zip", ""),
        ("CodeUri: !Ref Open", ""),
        ("CodeUri: !Sub 'src/${Python}'", "src/3.13"),
        ("CodeUri: ''", ""),
        ("CodeUri: null", ""),
        ("CodeUri: .", "."),
        ("CodeUri: a/b/../c//", "a/c"),
        ("InlineCode: 'def main(): ...', CodeUri: a", ""),
    ],
)
def test_folders(code: str, folder: str) -> None:
    assert only(f"{NEEDED}, {code}").folder == folder


@pytest.mark.parametrize(
    ("value", "runtime"),
    [
        ("!Sub 'python${Python}'", "python3.13"),
        ("{'Fn::Sub': 'python${Python}'}", "python3.13"),
        ("!Ref Open", "!Ref Open"),
        ("!Ref Stored", "!Ref Stored"),
        ("!Sub 'python${Open}'", "!Sub python${Open}"),
        ("!Sub 'python${!Python}'", "!Sub python${!Python}"),
        ("!FindInMap [a, b, c]", "!FindInMap [a, b, c]"),
        ("{'Fn::FindInMap': [a, b, c]}", "{'Fn::FindInMap': [a, b, c]}"),
    ],
)
def test_values_that_only_cloudformation_knows_stay_text(value: str, runtime: str) -> None:
    assert only(f"Runtime: {value}, Handler: app.main").target == Target(runtime, "x86_64")
    assert only(f"{NEEDED}, Architectures: [{value}]").target == Target("python3.13", runtime)
    assert only(f"Runtime: python3.13, Handler: {value}").handler == runtime
    assert only(f"{NEEDED}, FunctionName: {value}").name in {runtime, "Fn"}


def test_parameters_stand_for_their_defaults() -> None:
    before = "Parameters:\n  R: {Type: String, Default: python3.11}\n  N: {Default: null}\nResources:\n"
    assert only("Runtime: !Ref R, Handler: a.b", before).target.runtime == "python3.11"
    assert only("Runtime: {Ref: R}, Handler: a.b", before).target.runtime == "python3.11"
    assert only("Runtime: !Ref N, Handler: a.b", before).target.runtime == "!Ref N"
    assert functions("Runtime: !Ref R, Handler: a.b", before.replace("python3.11", "nodejs22.x")) == ()


def test_architectures_that_are_no_list() -> None:
    assert only(f"{NEEDED}, Architectures: []").target.architecture == "x86_64"
    assert only(f"{NEEDED}, Architectures: !If [A, [b], [c]]").target.architecture == "!If [A, [b], [c]]"


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("Handler: a.b", "template.yaml:11: the function Fn has no Runtime."),
        ("Handler: a.b, Runtime: !Ref AWS::NoValue", "template.yaml:11: the function Fn has no Runtime."),
        ("Runtime: python3.13", "template.yaml:11: the function Fn has no Handler."),
        (
            f"{NEEDED}, Architectures: [arm64, x86_64]",
            "template.yaml:11: the function Fn has more than one architecture: arm64, x86_64.",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(properties: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        functions(properties)
    assert caught.value.message == message
    assert caught.value.hint


def test_merge_keys_and_anchors() -> None:
    template = """\
Common: &common {Runtime: python3.12, Handler: app.main, MemorySize: 1}
Other: &other {Handler: other.main, CodeUri: src}
Resources:
  One: {Type: AWS::Serverless::Function, Properties: {<<: *common, Runtime: python3.13}}
  Two: {Type: AWS::Serverless::Function, Properties: {<<: [*common, *other]}}
  Circle:
    Type: AWS::Serverless::Function
    Properties: &me {<<: *me, Runtime: python3.11, Handler: a.b, Layers: &l [*l]}
"""
    one, two, circle = declared_functions(template, "t")
    assert (one.target.runtime, one.handler) == ("python3.13", "app.main")
    assert (two.target.runtime, two.handler, two.folder) == ("python3.12", "app.main", "src")
    assert (circle.target.runtime, circle.other_layers) == ("python3.11", ("&id001 [*id001]",))


def test_json_is_a_template_too() -> None:
    resource = {
        "Type": "AWS::Lambda::Function",
        "Properties": {"Runtime": "python3.13", "Handler": "a.b", "Layers": [{"Ref": "L"}], "Code": {"S3Bucket": "b"}},
    }
    layer = {"Type": "AWS::Lambda::LayerVersion", "Properties": {"LayerName": "web"}}
    (found,) = declared_functions(json.dumps({"Resources": {"F": resource, "L": layer}}, indent=2), "t")
    assert (found.layers, found.folder) == (("web",), "")


def test_names_of_layers() -> None:
    assert layer_names(BEFORE, "t") == {"core": "Core", "Named": "Named", "py3.13": "Plain"}


@pytest.mark.parametrize("text", ["a: " + "[" * 5000 + "]" * 5000, 'a: "\\U00110000"', 'a: "\\UFFFFFFFF"'])
def test_what_pyyaml_stumbles_over(text: str) -> None:
    with pytest.raises(ConfigurationError, match="t: it can't be read as YAML"):
        declared_functions(text, "t")


# Names that the reader looks for, in places where it does and does not expect them.
SCALARS = st.sampled_from(
    ["null", "a", "Core", "F", "P", "AWS::NoValue", "python3.13", "'*'", "'${Core}'", "'${P}'", "'${'", "s3://a", "1"]
) | st.sampled_from(
    ["", "AWS::Serverless::Function", "AWS::Lambda::Function", "AWS::Serverless::LayerVersion", "Image", '"a\\nb"']
)
TAGS = st.sampled_from(["", "", "", "", "!Ref ", "!Sub ", "!GetAtt ", "!If ", "!Odd%20one ", "!!str "])
KEYS = st.sampled_from(
    ["Type", "Properties", "Runtime", "Handler", "Layers", "Architectures", "CodeUri", "Code", "ImageUri", "LayerName"]
) | st.sampled_from(
    ["Ref", "'Fn::Sub'", "'Fn::GetAtt'", "IgnoreGlobals", "Function", "P", "Default", "<<", "[a]", "{a: b}", "!Ref k"]
)


def tagged(plain: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(str.__add__, TAGS, plain)


def mappings(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(KEYS, values), max_size=5)
    return pairs.map(lambda found: "{" + ", ".join(f"{key}: {value}" for key, value in found) + "}")


VALUES = st.recursive(
    tagged(SCALARS) | st.just("!Ref Core"),
    lambda inner: tagged(mappings(inner) | st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]")),
    max_leaves=12,
)
KINDS = st.sampled_from(["AWS::Serverless::Function", "AWS::Lambda::Function"])
# What most functions have comes first, so that the reader gets beyond it.
PROPERTIES = st.tuples(
    st.sampled_from(["Runtime: python3.13", "Runtime: !Ref P", "Runtime: null"]) | VALUES.map("Runtime: {}".format),
    VALUES.map("Handler: {}".format),
    st.lists(VALUES, max_size=3).map(lambda found: f"Layers: [{', '.join(found)}]") | VALUES.map("Layers: {}".format),
    VALUES.map("Architectures: {}".format),
    VALUES.map("CodeUri: {}".format),
    VALUES.map("FunctionName: {}".format),
    st.tuples(KEYS, VALUES).map(": ".join),
).map(lambda found: f"{{{', '.join(found)}}}")


@given(PROPERTIES, VALUES, KINDS, PROPERTIES, VALUES, VALUES)
def test_no_template_is_too_odd(
    shared: str, parameter: str, kind: str, properties: str, ignored: str, layer: str
) -> None:
    template = (
        f"Globals: {{Function: {shared}}}\nParameters: {{P: {{Default: python3.12}}, Q: {parameter}}}\nResources:\n"
        f"  F: {{Type: {kind}, Properties: {properties}, IgnoreGlobals: {ignored}}}\n  G: {layer}\n"
        f"  Core: {{Type: AWS::Serverless::LayerVersion, Properties: {{LayerName: core}}}}\n"
    )
    try:
        found = declared_functions(template, "t")
    except ConfigurationError as error:
        assert error.message.startswith("t:")
        return
    for function in found:
        assert function.logical_id in {"F", "G"}
        assert "\n" not in "".join(function.other_layers)


@given(st.text(alphabet="aF:{}[]!&*<>|-?#'\"\\Ux0 \n\t%,", max_size=60))
def test_no_text_is_too_odd(text: str) -> None:
    for template in (text, f"Resources:\n  F:\n    Type: AWS::Lambda::Function\n    Properties: {text}"):
        try:
            declared_functions(template, "t")
        except ConfigurationError as error:
            assert error.message.startswith("t:")
