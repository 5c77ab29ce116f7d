"""A software bill of materials for one layer: CycloneDX, from the tree as it is built.

The same build gives the same text: there is no time in it, and its serial number is made from its content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from packaging.requirements import Requirement as ParsedRequirement

from layerkit import __version__
from layerkit.errors import CheckFailed
from layerkit.licences import Licence, licence_of
from layerkit.metadata import Described, applies, described, required_name, unmet
from layerkit.model import Layer, Manifest, Requirement, Target, normalized
from layerkit.trees import installed

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

_SERIALS = UUID("4c7a2f0e-1f62-5f0b-9d3e-6f1c9d0b7a51")
"""The namespace of the serial numbers: any UUID does, as long as it stays."""


def sbom(layer: Layer, manifest: Manifest, tree: Path, licences: Iterable[Licence] | None = None) -> str:
    """The CycloneDX 1.6 document (JSON) of a layer that was built as ``manifest`` says and lies in ``tree``.

    One component a distribution, with the hash of the wheel that was installed (from the manifest, where that has the
    same version), and who needs whom on the target, as far as both are in the layer. ``licences`` are those of the
    distributions where they are known already; None: as METADATA has them.
    """
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    distributions = installed(tree)
    known = {entry.name: entry for entry in (map(licence_of, distributions) if licences is None else licences)}
    hashes = {(entry.name, entry.version): entry.hashes for entry in manifest.distributions}
    left_out = manifest.optimized.left_out if manifest.optimized else {}
    missing = {entry.name for entry in manifest.distributions} - set(left_out) - {entry.name for entry in distributions}
    if missing:
        raise CheckFailed(
            f"the tree of {layer.name} has no metadata of {', '.join(sorted(missing))}, which was built into it, so "
            "that not all would be in the bill of materials.",
            f"Build it again: inv build --clean --layer {layer.name}",
        )
    components: dict[str, Component] = {}
    for distribution in distributions:
        name, version = distribution.name, distribution.version
        purl = PackageURL("pypi", name=name, version=version)
        components[name] = Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=str(purl),
            purl=purl,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in hashes.get((name, version), ())],
            licenses=_licenses(known.get(name)),
        )
    whole = Component(
        type=ComponentType.LIBRARY,
        name=layer.name,
        version=manifest.inputs,
        bom_ref=f"layer:{layer.name}",
        description=layer.description or None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=manifest.zip.sha256)],
        properties=[
            Property(name="layerkit:runtime", value=manifest.target.runtime),
            Property(name="layerkit:architecture", value=manifest.target.architecture),
            *(
                Property(name=f"layerkit:depends-on:{other}", value=identity)
                for other, identity in manifest.depends_on.items()
            ),
            *(Property(name=f"layerkit:left-out:{name}", value=version) for name, version in left_out.items()),
        ],
    )

    bom = Bom(components=components.values())
    bom.metadata.component = whole
    bom.metadata.tools.components.add(
        Component(type=ComponentType.APPLICATION, name="layerkit", version=__version__, bom_ref="layerkit")
    )
    needs = _needs(layer, {entry.name: described(entry) for entry in distributions}, manifest.target)
    bom.register_dependency(whole, [components[name] for name in needs[""]])
    for name, component in components.items():
        bom.register_dependency(component, [components[other] for other in needs[name]])
    return _settled(JsonV1Dot6(bom).output_as_string())


def _licenses(licence: Licence | None) -> list[License]:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement, LicenseExpression
    from cyclonedx.spdx import is_supported_id

    declared = LicenseAcknowledgement.DECLARED
    if licence is None or not (licence.expression or licence.given):
        return []
    if not licence.expression:
        return [DisjunctiveLicense(name=licence.given, acknowledgement=declared)]
    if is_supported_id(licence.expression):
        return [DisjunctiveLicense(id=licence.expression, acknowledgement=declared)]
    return [LicenseExpression(licence.expression, acknowledgement=declared)]


def _needs(layer: Layer, distributions: Mapping[str, Described], target: Target) -> dict[str, set[str]]:
    """By distribution, the others that it needs on ``target`` and that are there; of the layer itself by ``""``.

    An extra counts where something that is there asks for it.
    """
    needs: dict[str, set[str]] = {"": set(), **{name: set() for name in distributions}}
    extras: dict[str, set[str]] = {name: set() for name in distributions}
    roots = [requirement.text for requirement in layer.requirements if applies(requirement, target)]
    pending = [("", text) for text in roots]
    pending += [(name, text) for name in distributions for text in _requires(distributions[name], "", target)]
    while pending:
        by, text = pending.pop()
        parsed = ParsedRequirement(text)
        name = normalized(parsed.name)
        if name not in distributions:  # another layer carries it, or the runtime
            continue
        if name != by:
            needs[by].add(name)
        for extra in parsed.extras - extras[name]:
            extras[name].add(extra)
            pending += [(name, more) for more in _requires(distributions[name], extra, target)]
    return needs


def _requires(distribution: Described, extra: str, target: Target) -> list[str]:
    """What a distribution requires on ``target``, with an extra of its own: what it lacks where nothing else is."""
    alone = {distribution.name: distribution}
    asked = [Requirement(distribution.name, f"{distribution.name}[{extra}]", "")] if extra else []
    return [entry.requirement for entry in unmet(asked, alone, target, by="") if required_name(entry.requirement)]


def _settled(text: str) -> str:
    """The document without the time it was made at, and with a serial number that is made from the rest."""
    document = json.loads(text)
    document["metadata"].pop("timestamp")
    document.pop("serialNumber")
    content = sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["serialNumber"] = uuid5(_SERIALS, content).urn
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
