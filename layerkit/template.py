"""The SAM template: one resource for a layer, put in as text so that comments and everything else stay as they are."""

from __future__ import annotations

import re

import yaml

from layerkit.errors import ConfigurationError
from layerkit.model import Target

_EMPTY = """\
AWSTemplateFormatVersion: "2010-09-09"
Transform: AWS::Serverless-2016-10-31
Description: Lambda layers built by layerkit

Resources:
"""


def layer_names(template: str, where: str) -> dict[str, str]:
    """The layers that a template declares: LayerName -> logical ID. ConfigurationError when it can't be read."""
    found = {}
    for key, value in _resources(template, where)[1]:
        properties = _child(value, "Properties")
        kind = _child(value, "Type")
        if isinstance(kind, yaml.ScalarNode) and kind.value.endswith("::LayerVersion"):
            name = _child(properties, "LayerName")
            if isinstance(name, yaml.ScalarNode):
                found[name.value] = key
    return found


def add_layer(template: str, name: str, target: Target, content_uri: str, where: str) -> str:
    """``template`` with a resource for the layer ``name`` after its last one; an empty template becomes a whole one.

    RetentionPolicy is Retain: Delete would remove the versions that a rollback needs. Raises ConfigurationError when
    the template can't be read or its Resources are not a block that can be added to.
    """
    template = template or _EMPTY
    newline = "\r\n" if "\r\n" in template else "\n"
    node, resources = _resources(template, where)
    lines = template.splitlines(keepends=True)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    if isinstance(node, yaml.MappingNode):
        if node.flow_style:
            raise ConfigurationError(
                f"{where}: Resources is written with braces, so nothing can be added to it line by line.",
                "Write it as an indented block.",
            )
        indent = node.start_mark.column
        at = node.end_mark.line if node.end_mark.column == 0 else len(lines)
        # Comments and blank lines before the next section belong to that one.
        while at > 0 and not re.match(rf" {{{indent}}}", lines[at - 1]):
            at -= 1
    else:
        indent = 2
        at = 1 + next(number for number, line in enumerate(lines) if re.match(r"Resources\s*:", line))
    entry = [
        f"{logical_id(name, {key for key, _ in resources})}:",
        "  Type: AWS::Serverless::LayerVersion",
        "  Properties:",
        f"    LayerName: {name}",
        f"    ContentUri: {content_uri}",
        f"    CompatibleRuntimes: [{target.runtime}]",
        f"    CompatibleArchitectures: [{target.architecture}]",
        "    RetentionPolicy: Retain",
    ]
    added = [" " * indent + line + newline for line in entry]
    if resources:
        added.insert(0, newline)
    result = "".join([*lines[:at], *added, *lines[at:]])
    before = [key for key, _ in resources]
    after = [key for key, _ in _resources(result, where)[1]]
    if after != [*before, entry[0].removesuffix(":")]:
        raise ConfigurationError(f"{where}: no place was found for a resource.", "Add one by hand, as README.md shows.")
    return result


def logical_id(name: str, taken: set[str]) -> str:
    """``new-layer`` -> ``NewLayer``, ``ml_libraries`` -> ``MlLibrariesLayer``; numbered when it is taken."""
    words = "".join(word[:1].upper() + word[1:] for word in re.split(r"[-_]+", name))
    base = words if words.endswith("Layer") else f"{words}Layer"
    if not base[0].isalpha():
        base = f"Layer{base}"
    candidate, number = base, 2
    while candidate in taken:
        candidate, number = f"{base}{number}", number + 1
    return candidate


def _resources(template: str, where: str) -> tuple[yaml.Node | None, list[tuple[str, yaml.Node]]]:
    try:
        # Composing reads the structure without making objects of CloudFormation's own tags (!Ref and the like).
        root = yaml.compose(template, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigurationError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}.") from error
    node = _child(root, "Resources")
    if not isinstance(node, yaml.MappingNode):
        if not isinstance(root, yaml.MappingNode) or node is None or node.value:
            raise ConfigurationError(f"{where}: it has no Resources section.", "Is it a CloudFormation template?")
        return node, []
    return node, [(key.value, value) for key, value in node.value]


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                found: yaml.Node = value
                return found
    return None
