"""The template: a resource goes in, and not a byte of the rest changes."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import ConfigurationError
from layerkit.model import Target
from layerkit.template import add_layer, layer_names, logical_id

TARGET = Target("python3.13", "x86_64")


def add(template: str, name: str = "new-layer") -> str:
    return add_layer(template, name, TARGET, f"dist/{name}-{TARGET}.zip", "template.yaml")


EXISTING = """\
# the team's template
Transform: AWS::Serverless-2016-10-31
Resources:
    # one
    Fn:   # odd spacing
        Type: AWS::Serverless::Function
        Properties: {Handler: app.main, Layers: [!Ref Other]}
    Script:
        Type: X
        Properties:
            Code: |
                line one

                # not a comment

# what comes out
Outputs:
    Arn: {Value: !GetAtt Fn.Arn}
"""


def test_a_resource_goes_in_after_the_last_and_the_rest_stays() -> None:
    result = add(EXISTING)
    before, after = EXISTING.split("\n# what comes out")
    assert result.startswith(before)
    assert result.endswith("\n# what comes out" + after)
    added = result[len(before) : -len("\n# what comes out" + after)]
    assert yaml.safe_load(added) == {
        "NewLayer": {
            "Type": "AWS::Serverless::LayerVersion",
            "Properties": {
                "LayerName": "new-layer",
                "ContentUri": "dist/new-layer-python3.13-x86_64.zip",
                "CompatibleRuntimes": ["python3.13"],
                "CompatibleArchitectures": ["x86_64"],
                "RetentionPolicy": "Retain",
            },
        }
    }
    assert layer_names(result, "template.yaml") == {"new-layer": "NewLayer"}


@pytest.mark.parametrize(
    "template",
    ["", "Resources:\n", "Resources:", "A: 1\nResources:\n\n# end\nB: 2\n", "Resources:\n  A:\n    Type: X", EXISTING],
)
def test_templates_of_every_shape(template: str) -> None:
    result = add(template)
    assert layer_names(result, "t")["new-layer"] == "NewLayer"
    twice = add(result, "other")
    assert set(layer_names(twice, "t")) == {"new-layer", "other"}


def test_windows_line_ends_stay() -> None:
    result = add(EXISTING.replace("\n", "\r\n"))
    assert "\n" not in result.replace("\r\n", "")


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("Resources: {A: {Type: X}}\n", "with braces"),
        ("Resources:\n  - a\n", "no Resources section"),
        ("Outputs: {}\n", "no Resources section"),
        ("- a\n", "no Resources section"),
        ("a: [\n", "t:2: not valid YAML"),
    ],
)
def test_templates_that_nothing_can_be_added_to(template: str, what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        add_layer(template, "x", TARGET, "dist/x.zip", "t")
    assert what in caught.value.message


COMMENTS = st.sampled_from(["", "# note\n", "\n", "  # deep\n", "\n\n# a\n# b\n"])


@given(st.lists(COMMENTS, min_size=4, max_size=4), st.booleans())
def test_comments_anywhere_stay(comments: list[str], outputs: bool) -> None:
    one, two, three, four = comments
    template = f"{one}Resources:\n{two}  A:\n    Type: X\n{three}" + (f"Outputs: {{}}\n{four}" if outputs else four)
    result = add(template)
    kept = [line for line in result.splitlines() if line in template.splitlines()]
    assert [line for line in kept if line.strip()] == [line for line in template.splitlines() if line.strip()]
    assert yaml.safe_load(result)["Resources"].keys() == {"A", "NewLayer"}


@pytest.mark.parametrize(
    ("name", "identity"),
    [("new-layer", "NewLayer"), ("ml_libraries", "MlLibrariesLayer"), ("2fast", "Layer2fastLayer"), ("--", "Layer")],
)
def test_logical_ids(name: str, identity: str) -> None:
    assert logical_id(name, set()) == identity
    assert logical_id(name, {identity}) == f"{identity}2"
    assert identity.isalnum()
