"""Making a new layer: its folder, its requirements, its resource in the template."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerkit.errors import ConfigurationError
from layerkit.files import write_whole
from layerkit.model import Target, check_layer_name
from layerkit.project import parse_requirement, refuse_second_pins
from layerkit.template import add_layer, layer_names


@dataclass(frozen=True)
class Created:
    """What was made, below the root; ``folder`` is None when it was there already."""

    folder: str | None
    template: str


def create_layer(root: Path, name: str, requirements: Sequence[str], target: Target) -> Created:
    """Make ``layers/<name>/`` with ``requirements`` and a resource in ``template.yaml``.

    A folder that lacks its resource (an interrupted call, or one made by hand) gets it. Raises ConfigurationError,
    and changes nothing, when the layer is there already, or a name, requirement or template is not right.
    """
    check_layer_name(name, "--layer")
    refuse_second_pins([parse_requirement(text, "--requirement") for text in requirements])
    folder = root / "layers" / name
    template = root / "template.yaml"
    text = _read(template)
    declared = layer_names(text, template.name) if text else {}
    exists = folder.exists()
    if exists and (name in declared or requirements):
        raise ConfigurationError(
            f"layers/{name} exists already.", f"Add requirements to layers/{name}/requirements.txt, then: inv lock"
        )
    changed = text
    if name not in declared:
        changed = add_layer(text, name, target, f"dist/{name}-{target}.zip", template.name)
    if not exists:
        _make_folder(folder, requirements)
    if changed != text:
        write_whole(template, changed.encode())
    return Created(None if exists else f"layers/{name}", template.name)


def _read(template: Path) -> str:
    try:
        return template.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{template.name}: can't be read as UTF-8 text: {error}.") from error


def _make_folder(folder: Path, requirements: Sequence[str]) -> None:
    beside = folder.with_name(f".new-{secrets.token_hex(4)}")
    beside.mkdir(parents=True)
    try:
        lines = [f"# What the layer {folder.name} carries. `inv lock` works out the versions.", *requirements]
        (beside / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
