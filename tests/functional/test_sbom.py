"""The bill of materials of layers that the real uv installed: valid by CycloneDX's schema, complete, and repeatable."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from layerkit.errors import CheckFailed
from layerkit.licences import Licence
from layerkit.model import Manifest, Optimized
from layerkit.sbom import sbom
from tests.support.checkouts import HERE, Checkout
from tests.support.index import Index
from tests.support.wheels import make_wheel


@pytest.fixture
def wheels(index: Index) -> dict[str, Path]:
    """Wheels that need each other, with markers, extras, and a circle."""
    requires = {
        "top": ["Middle_Part[fast]>=1", "windows-only; sys_platform == 'win32'", "base"],
        "middle-part": ["base", "quick; extra == 'fast'", "never; extra == 'slow'", "quick[turbo]; extra == 'fast'"],
        "quick": ["top", "turbo; extra == 'turbo'"],
        "turbo": [],
        "base": [],
        "never": [],
    }
    return {name: make_wheel(index.folder, name, "1.5", requires=lines) for name, lines in requires.items()}


@pytest.fixture
def built(checkout: Checkout, wheels: dict[str, Path]) -> Checkout:
    checkout.layer("core", "base\n", 'description = "What all need"\n')
    requirements = "top\nnever; python_version < '3'\n"
    checkout.layer("web", requirements, 'depends_on = ["core"]\n', code={"ours.py": "WHO = 'us'\n"})
    checkout.lock(HERE)
    checkout.build(target=HERE)
    return checkout


def manifest_of(checkout: Checkout, name: str) -> Manifest:
    from layerkit.manifests import read_manifest

    manifest = read_manifest(checkout.project.manifest_path(name, HERE))
    assert manifest
    return manifest


def text_of(checkout: Checkout, name: str, licences: list[Licence] | None = None) -> str:
    project = checkout.project
    return sbom(project.layers[name], manifest_of(checkout, name), project.tree_path(name, HERE), licences)


def document_of(checkout: Checkout, name: str, licences: list[Licence] | None = None) -> dict[str, Any]:
    document = json.loads(text_of(checkout, name, licences))
    assert isinstance(document, dict)
    return document


def problem(text: str) -> str:
    """What CycloneDX's own validator says against a document; empty when it is valid."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return str(error.data.message) if error else ""


def licensed(checkout: Checkout, name: str, distribution: str, *headers: str) -> None:
    """Put a licence into the METADATA of an installed distribution."""
    tree = checkout.project.tree_path(name, HERE)
    (path,) = tree.glob(f"{distribution}-*.dist-info/METADATA")
    path.write_text(path.read_text().rstrip("\n") + "\n" + "\n".join(headers) + "\n")


@pytest.mark.parametrize("name", ["core", "web"])
def test_it_is_valid_by_the_schema(built: Checkout, name: str) -> None:
    text = text_of(built, name)
    assert problem(text) == ""
    # The validator is one that says no.
    assert problem(text.replace('"library"', '"surprise"'))
    assert problem(text.replace('"SHA-256"', '"SHA-255"'))


def test_one_component_a_distribution_with_what_was_installed(built: Checkout, wheels: dict[str, Path]) -> None:
    components = document_of(built, "web")["components"]
    assert [(entry["name"], entry["version"], entry["purl"], entry["hashes"]) for entry in components] == [
        (name, "1.5", f"pkg:pypi/{name}@1.5", [{"alg": "SHA-256", "content": digest(wheels[name])}])
        for name in ("middle-part", "quick", "top", "turbo")
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_layer_is_what_it_is_about(built: Checkout) -> None:
    manifest = manifest_of(built, "web")
    whole = document_of(built, "web")["metadata"]["component"]
    assert (whole["name"], whole["version"]) == ("web", manifest.inputs)
    zipped = built.root / manifest.zip.path
    assert whole["hashes"] == [{"alg": "SHA-256", "content": digest(zipped)}]
    assert {entry["name"]: entry["value"] for entry in whole["properties"]} == {
        "layerkit:architecture": HERE.architecture,
        "layerkit:depends-on:core": manifest_of(built, "core").inputs,
        "layerkit:runtime": HERE.runtime,
    }
    assert document_of(built, "core")["metadata"]["component"]["description"] == "What all need"


def test_who_needs_whom(built: Checkout) -> None:
    """Markers hold or not on the target, extras count where they are asked for, a circle is no way without end."""
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in document_of(built, "web")["dependencies"]}
    assert needs == {
        "layer:web": ["pkg:pypi/top@1.5"],
        "pkg:pypi/middle-part@1.5": ["pkg:pypi/quick@1.5"],  # base is in the layer below
        "pkg:pypi/quick@1.5": ["pkg:pypi/top@1.5", "pkg:pypi/turbo@1.5"],
        "pkg:pypi/top@1.5": ["pkg:pypi/middle-part@1.5"],
        "pkg:pypi/turbo@1.5": [],
    }


def test_an_extra_that_nobody_asks_for_counts_for_nothing(checkout: Checkout, wheels: dict[str, Path]) -> None:
    checkout.layer("web", "middle-part\nturbo\nnever\n")
    checkout.lock(HERE)
    checkout.build(target=HERE)
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in document_of(checkout, "web")["dependencies"]}
    assert needs["pkg:pypi/middle-part@1.5"] == ["pkg:pypi/base@1.5"]
    assert needs["layer:web"] == ["pkg:pypi/middle-part@1.5", "pkg:pypi/never@1.5", "pkg:pypi/turbo@1.5"]


def test_a_requirement_that_can_not_be_read_is_passed_over(built: Checkout) -> None:
    licensed(built, "web", "turbo", "Requires-Dist: top (broken")
    document = document_of(built, "web")
    assert {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}["pkg:pypi/turbo@1.5"] == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["License-Expression: MIT"], [{"license": {"id": "MIT", "acknowledgement": "declared"}}]),
        (
            ["License: Apache-2.0 OR MIT"],
            [{"expression": "Apache-2.0 OR MIT", "acknowledgement": "declared"}],
        ),
        (
            ["License-Expression: LicenseRef-Ours"],
            [{"expression": "LicenseRef-Ours", "acknowledgement": "declared"}],
        ),
        (["License: Dual License"], [{"license": {"name": "Dual License", "acknowledgement": "declared"}}]),
        ([], None),
    ],
)
def test_licences(built: Checkout, headers: list[str], expected: Any) -> None:
    licensed(built, "core", "base", *headers)
    text = text_of(built, "core")
    assert problem(text) == ""
    (component,) = json.loads(text)["components"]
    assert component.get("licenses") == expected


def test_licences_that_are_known_already(built: Checkout) -> None:
    (component,) = document_of(built, "core", [Licence("base", "1.5", "Apache-2.0", "said by the team")])["components"]
    assert component["licenses"][0]["license"]["id"] == "Apache-2.0"
    (component,) = document_of(built, "core", [])["components"]
    assert "licenses" not in component


def test_the_same_build_gives_the_same_text(
    built: Checkout, make_checkout: Callable[[str], Checkout], wheels: dict[str, Path]
) -> None:
    text = text_of(built, "core")
    assert text_of(built, "core") == text
    elsewhere = make_checkout("another place")
    elsewhere.layer("core", "base\n", 'description = "What all need"\n')
    elsewhere.lock(HERE)
    elsewhere.build(target=HERE)
    assert text_of(elsewhere, "core") == text
    assert str(built.root) not in text
    assert "timestamp" not in text


def test_another_content_has_another_serial_number(built: Checkout) -> None:
    before = document_of(built, "core")["serialNumber"]
    assert UUID(before.removeprefix("urn:uuid:")).version == 5
    assert document_of(built, "web")["serialNumber"] != before
    licensed(built, "core", "base", "License-Expression: MIT")
    assert document_of(built, "core")["serialNumber"] != before


def test_a_distribution_that_is_not_the_one_that_was_installed_has_no_hash(built: Checkout) -> None:
    tree = built.project.tree_path("core", HERE)
    (tree / "base-1.5.dist-info").rename(tree / "base-9.9.dist-info")
    (component,) = document_of(built, "core")["components"]
    assert (component["version"], "hashes" in component) == ("9.9", False)


def test_a_distribution_without_metadata_is_not_left_out_in_silence(built: Checkout) -> None:
    tree = built.project.tree_path("web", HERE)
    for name in ("quick", "turbo"):
        shutil.rmtree(tree / f"{name}-1.5.dist-info")
    with pytest.raises(CheckFailed, match="the tree of web has no metadata of quick, turbo, which was built into it"):
        text_of(built, "web")
    done = built.inv("sbom", "--runtime", HERE.runtime, "--architecture", HERE.architecture)
    assert (done.returncode, "inv build --clean --layer web" in done.stderr) == (3, True), done.stderr
    assert not (built.root / "reports").exists()
    # What an optimization took as a whole is said of the layer, and is not missing.
    manifest = replace(manifest_of(built, "web"), optimized=Optimized(left_out={"quick": "1.5", "turbo": "1.5"}))
    document = json.loads(sbom(built.project.layers["web"], manifest, tree))
    assert {entry["name"] for entry in document["components"]} == {"middle-part", "top"}


def test_a_layer_of_own_code_alone(checkout: Checkout) -> None:
    checkout.layer("ours", "", code={"ours.py": ""})
    checkout.lock(HERE)
    checkout.build(target=HERE)
    text = text_of(checkout, "ours")
    assert problem(text) == ""
    document = json.loads(text)
    assert document.get("components", []) == []
    assert document["dependencies"] == [{"ref": "layer:ours"}]
