"""The SAM template: which layers and functions it declares, and putting in one resource for a layer.

A resource goes in as text, so that comments and everything else stay as they are. Reading stops at YAML's nodes: they
know their lines, and CloudFormation's tags (``!Ref`` and the like) need no objects.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

import yaml

from layerkit.errors import ConfigurationError
from layerkit.model import Function, Target

_EMPTY = """\
AWSTemplateFormatVersion: "2010-09-09"
Transform: AWS::Serverless-2016-10-31
Description: Lambda layers built by layerkit

Resources:
"""

_SERVERLESS_FUNCTION = "AWS::Serverless::Function"
_EXAMPLES = {"Runtime": "python3.13", "Handler": "app.lambda_handler"}
_NULL = "tag:yaml.org,2002:null"
_PARAMETER = re.compile(r"\$\{([^}]*)\}")
"""A name in the text of ``!Sub``. CloudFormation leaves one that begins with ``!`` alone; it is never known here."""


def layer_names(template: str, where: str) -> dict[str, str]:
    """The layers that a template declares: LayerName -> logical ID. ConfigurationError when it can't be read."""
    root = _compose(template, where)
    return {name: key for key, name in _layers(root, _resources(root, where)[1]).items()}


def declared_functions(template: str, where: str) -> tuple[Function, ...]:
    """The Python functions that a template declares, in its order.

    A property is the function's own, else that of ``Globals``, as SAM merges them; Layers are those of Globals and
    then its own. A parameter stands for its Default. Where only CloudFormation knows the value (``!If``, an import,
    a parameter without Default), Runtime, Architectures and Handler are given as their text, so the target is one that
    nothing can be checked for. ``layers`` has what refers to a layer resource of this template, ``other_layers`` the
    text of all else. ``folder`` is empty when the code is not a folder: inline, a zip, in S3.

    Left out are functions of other languages and container images, which attach no layers.

    Raises ConfigurationError, with the line, when the template can't be read, or a function has no Runtime, no
    Handler, or more than one architecture.
    """
    root = _compose(template, where)
    resources = _resources(root, where)[1]
    layers = _layers(root, resources)
    defaults = _defaults(root)
    found = []
    for key, resource in resources:
        kind = _plain(_child(resource, "Type"), {})
        if kind in (_SERVERLESS_FUNCTION, "AWS::Lambda::Function"):
            line = f"{where}:{resource.start_mark.line + 1}"
            function = _function(key, _Properties(root, resource), defaults, layers, line)
            if function:
                found.append(function)
    return tuple(found)


def add_layer(template: str, name: str, target: Target, content_uri: str, where: str) -> str:
    """``template`` with a resource for the layer ``name`` after its last one; an empty template becomes a whole one.

    RetentionPolicy is Retain: Delete would remove the versions that a rollback needs. Raises ConfigurationError when
    the template can't be read or its Resources are not a block that can be added to.
    """
    template = template or _EMPTY
    newline = "\r\n" if "\r\n" in template else "\n"
    node, resources = _resources(_compose(template, where), where)
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
    after = [key for key, _ in _resources(_compose(result, where), where)[1]]
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


class _Properties:
    """The properties of one function: its own, and those of Globals where it has none."""

    def __init__(self, root: yaml.Node | None, resource: yaml.Node) -> None:
        self._own = _child(resource, "Properties")
        # SAM's Globals are for SAM's own resources. IgnoreGlobals is "*" or a list of properties.
        self.of_sam = _plain(_child(resource, "Type"), {}) == _SERVERLESS_FUNCTION
        self._shared = _child(_child(root, "Globals"), "Function") if self.of_sam else None
        self._ignored = {_plain(node, {}) for node in _entries(_child(resource, "IgnoreGlobals"))}

    def __getitem__(self, name: str) -> yaml.Node | None:
        """The value; None when there is none. A null of the function's own takes away that of Globals."""
        own = _child(self._own, name)
        return _given(self.shared(name) if own is None else own)

    def shared(self, name: str) -> yaml.Node | None:
        """The value in Globals, if it is for this function."""
        return None if self._ignored & {"*", name} else _given(_child(self._shared, name))

    def layers(self) -> list[yaml.Node]:
        """What is in Layers: SAM adds one list to the other, and takes the function's own when either is no list."""
        own, shared = self["Layers"], self.shared("Layers")
        both = own is not shared and _is_list(own) and _is_list(shared)
        return [*(_entries(shared) if both else ()), *_entries(own)]


def _function(
    key: str, properties: _Properties, defaults: Mapping[str, str], layers: Mapping[str, str], line: str
) -> Function | None:
    """One function; None for one that is not Python or is an image. ``line`` is where it stands."""
    code = properties["CodeUri" if properties.of_sam else "Code"]
    if _plain(properties["PackageType"], defaults) == "Image" or properties["ImageUri"] or _child(code, "ImageUri"):
        return None
    needed = {}
    for name in ("Runtime", "Handler"):
        node = properties[name]
        if node is None:
            raise ConfigurationError(
                f"{line}: the function {key} has no {name}.", f"Add one, such as {_EXAMPLES[name]}."
            )
        plain = _plain(node, defaults)
        if name == "Runtime" and plain is not None and not plain.startswith("python"):
            return None
        needed[name] = _text(node) if plain is None else plain
    architectures = list(_entries(properties["Architectures"]))
    if len(architectures) > 1:
        shown = ", ".join(map(_text, architectures))
        raise ConfigurationError(f"{line}: the function {key} has more than one architecture: {shown}.", "Choose one.")
    # What Lambda takes when none is given.
    architecture = "x86_64"
    for node in architectures:
        architecture = _plain(node, defaults) or _text(node)
    attached = [(_referred(node, layers), _text(node)) for node in properties.layers()]
    return Function(
        name=_plain(properties["FunctionName"], defaults) or key,
        logical_id=key,
        folder="" if properties["InlineCode"] else _folder(_plain(code, defaults) or ""),
        handler=needed["Handler"],
        target=Target(needed["Runtime"], architecture),
        layers=tuple(name for name, _ in attached if name),
        other_layers=tuple(text for name, text in attached if not name),
    )


def _folder(uri: str) -> str:
    if not uri or "://" in uri or uri.endswith(".zip"):
        return ""
    return posixpath.normpath(uri)


def _layers(root: yaml.Node | None, resources: list[tuple[str, yaml.Node]]) -> dict[str, str]:
    """The layer resources: logical ID -> LayerName; without those whose name only CloudFormation knows."""
    defaults = _defaults(root)
    found = {}
    for key, resource in resources:
        kind = _plain(_child(resource, "Type"), {}) or ""
        if kind.endswith("::LayerVersion"):
            given = _child(_child(resource, "Properties"), "LayerName")
            # SAM names a layer after its resource.
            name = key if given is None and kind.startswith("AWS::Serverless::") else _plain(given, defaults)
            if name:
                found[key] = name
    return found


def _referred(node: yaml.Node, layers: Mapping[str, str]) -> str:
    """The LayerName of the layer resource that ``node`` refers to; empty when it is not one of ``layers``."""
    function, argument = _call(node)
    if function == "Sub":
        whole = _PARAMETER.fullmatch(argument)
        argument = whole[1] if whole else ""
    elif function not in ("Ref", "GetAtt"):
        return ""
    return layers.get(argument.split(".")[0], "")


def _defaults(root: yaml.Node | None) -> dict[str, str]:
    """The parameters that have a Default which is their value: that of an SSM parameter is where the value lies."""
    found = {}
    for name, parameter in _pairs(_child(root, "Parameters")):
        default = _plain(_child(parameter, "Default"), {})
        if default is not None and not (_plain(_child(parameter, "Type"), {}) or "").startswith("AWS::SSM::"):
            found[name] = default
    return found


def _plain(node: yaml.Node | None, defaults: Mapping[str, str]) -> str | None:
    """The text that a value stands for, parameters replaced by ``defaults``; None when it can't be known here."""
    if node is None or node.tag == _NULL:
        return None
    function, argument = _call(node)
    if function == "Ref":
        return defaults.get(argument)
    if function == "Sub":
        if not argument or not defaults.keys() >= set(_PARAMETER.findall(argument)):
            return None
        return _PARAMETER.sub(lambda match: defaults[match[1]], argument)
    return node.value if isinstance(node, yaml.ScalarNode) and not function else None


def _call(node: yaml.Node) -> tuple[str, str]:
    """An intrinsic function in its short or long form, and its argument: ``("Ref", "CoreLayer")``.

    The name is empty for a plain value; the argument is empty when it is no text (``!GetAtt``'s list counts as one).
    """
    argument = node
    if node.tag.startswith("!"):
        name = node.tag[1:]
    elif isinstance(node, yaml.MappingNode) and len(node.value) == 1:
        key, argument = node.value[0]
        name = key.value.removeprefix("Fn::") if isinstance(key, yaml.ScalarNode) else "?"
    else:
        return "", ""
    if name == "GetAtt" and isinstance(argument, yaml.SequenceNode):
        return name, ".".join(part.value for part in argument.value if isinstance(part, yaml.ScalarNode))
    return name, argument.value if isinstance(argument, yaml.ScalarNode) else ""


def _text(node: yaml.Node) -> str:
    """``node`` for a person, on one line: ``!If [IsProd, arn:..., !Ref Other]``."""
    if isinstance(node, yaml.ScalarNode):
        text = f"{node.tag} {node.value}" if node.tag.startswith("!") else node.value
    else:
        if isinstance(node, yaml.CollectionNode):
            node.flow_style = True
        text = yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=2**31)
    return " ".join(text.split())


def _given(node: yaml.Node | None) -> yaml.Node | None:
    """``node`` unless it says that there is nothing: null, or ``!Ref AWS::NoValue``."""
    nothing = node is None or node.tag == _NULL or _call(node) == ("Ref", "AWS::NoValue")
    return None if nothing else node


def _is_list(node: yaml.Node | None) -> bool:
    # `!If [a, b, c]` is a sequence as well, but not a list of values.
    return isinstance(node, yaml.SequenceNode) and not node.tag.startswith("!")


def _entries(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """The values of a list, or the one value that stands where a list may; without those that are nothing."""
    if node is not None:
        yield from filter(_given, node.value if _is_list(node) else [node])


def _compose(template: str, where: str) -> yaml.Node | None:
    try:
        return yaml.compose(template, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigurationError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}.") from error
    except (RecursionError, ValueError, OverflowError) as error:
        # PyYAML recurses into each level, and lets an escape beyond Unicode through to chr().
        raise ConfigurationError(f"{where}: it can't be read as YAML: {error}.") from error


def _resources(root: yaml.Node | None, where: str) -> tuple[yaml.Node | None, list[tuple[str, yaml.Node]]]:
    node = _child(root, "Resources")
    if not isinstance(node, yaml.MappingNode):
        if not isinstance(root, yaml.MappingNode) or node is None or node.value:
            raise ConfigurationError(f"{where}: it has no Resources section.", "Is it a CloudFormation template?")
        return node, []
    return node, list(_pairs(node))


def _pairs(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """The value of ``key`` in a mapping, its own or one that YAML's ``<<`` merges in; None when there is none."""
    pending, seen = [node], set()
    while pending:
        mapping = pending.pop(0)
        if not isinstance(mapping, yaml.MappingNode) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        merged: list[yaml.Node | None] = []
        for name, value in mapping.value:
            if isinstance(name, yaml.ScalarNode) and name.value == key:
                found: yaml.Node = value
                return found
            if name.tag == "tag:yaml.org,2002:merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        pending[:0] = merged
    return None
