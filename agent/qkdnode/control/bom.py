"""Bills of materials in CycloneDX 1.6: of software and devices, and of cryptography. Never a key or its id.

The same inventory, time and serial number give the same bytes.
"""
# The library's classes pass through a decorator that pyright does not see through; mypy does, and checks the calls.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.crypto import (
    AlgorithmProperties,
    CryptoAssetType,
    CryptoExecutionEnvironment,
    CryptoFunction,
    CryptoMode,
    CryptoPrimitive,
    CryptoProperties,
    RelatedCryptoMaterialProperties,
    RelatedCryptoMaterialType,
)
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from qkdnode.wire.control import AlgorithmEntry, AlgorithmList, Asset

OURS = "qkdnode"
# Which assets are components of the bill of software; links, applications and people are not.
TYPES = {
    "package": ComponentType("library"),
    "native": ComponentType("library"),
    "crypto-module": ComponentType("library"),
    "platform": ComponentType.PLATFORM,
    "module": ComponentType.DEVICE,
    "qrng": ComponentType.DEVICE,
}
EXCEPTIONS = {
    ("platform", "SQLite"): ComponentType("library"),
    ("platform", "Linux"): ComponentType.OPERATING_SYSTEM,
}
DEVICES = ("module", "qrng")
NODE = "node"
_licences = LicenseFactory()


def software_bom(node: str, assets: Iterable[Asset], time: datetime, serial: UUID) -> str:
    """The SBOM of a node: packages, native modules, libraries, platform, devices with their firmware."""
    known = tuple(assets)
    root = _root(node, known)
    bom = _bom(root, time, serial)
    parts = [(asset, _component(asset)) for asset in known if asset.kind in TYPES]
    bom.components = [component for _, component in parts]
    packages = {asset.name: component for asset, component in parts if asset.kind == "package"}
    required = {name for asset in known for name in _required(asset)}
    direct = [component for asset, component in parts if asset.kind != "package" or asset.name not in required]
    bom.register_dependency(root, direct)
    for asset, component in parts:
        bom.register_dependency(component, [packages[name] for name in _required(asset) if name in packages])
    return _text(bom)


def cryptography_bom(node: str, assets: Iterable[Asset], registry: AlgorithmList, time: datetime, serial: UUID) -> str:
    """The CBOM of a node: every algorithm of its registry, the modules that compute them, how many keys there are."""
    known = tuple(assets)
    root = _root(node, known)
    bom = _bom(root, time, serial)
    algorithms = {row.id: _algorithm(row, registry.day) for row in registry.algorithms}
    modules = [_component(asset) for asset in known if asset.kind == "crypto-module"]
    keys = [_keys(f"stage/{stage}", {"stage": stage, "count": str(count)}) for stage, count in _counts(registry)]
    classes = {name: _keys(f"class/{name}", {"class": name}) for name in registry.key_classes}
    bom.components = [*algorithms.values(), *modules, *keys, *classes.values()]
    bom.register_dependency(root, [algorithms[row.id] for row in registry.algorithms if row.uses] + modules)
    for name, component in classes.items():
        allowed = [algorithms[id_] for id_ in registry.key_classes[name] if id_ in algorithms]
        bom.register_dependency(component, allowed)
    return _text(bom)


def _bom(root: Component, time: datetime, serial: UUID) -> Bom:
    return Bom(
        serial_number=serial,
        metadata=BomMetaData(component=root, timestamp=time, tools=ToolRepository(components=[_tool(root)])),
    )


def _tool(root: Component) -> Component:
    return Component(type=ComponentType.APPLICATION, name=OURS, version=root.version, bom_ref=f"tool/{OURS}")


def _root(node: str, assets: tuple[Asset, ...]) -> Component:
    own = next((asset for asset in assets if asset.kind == NODE), Asset(kind=NODE, name=node))
    return Component(
        type=ComponentType.APPLICATION,
        name=f"{OURS} of node {node}",
        version=own.version,
        bom_ref=f"{NODE}/{node}",
        properties=_answered_for(own),
    )


def _component(asset: Asset) -> Component:
    purl = asset.details.get("purl")
    return Component(
        type=EXCEPTIONS.get((asset.kind, asset.name), TYPES[asset.kind]),
        name=asset.details.get("model", asset.name) if asset.kind in DEVICES else asset.name,
        version=None if asset.kind in DEVICES else asset.version,
        bom_ref=_ref(asset),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=asset.digest)] if asset.digest and not purl else (),
        licenses=[_licences.make_from_string(asset.licence)] if asset.licence else (),
        purl=PackageURL.from_string(purl) if purl else None,
        supplier=OrganizationalEntity(name=asset.details["supplier"]) if "supplier" in asset.details else None,
        components=[_firmware(asset)] if asset.kind in DEVICES and asset.version else (),
        properties=_properties(asset),
    )


def _firmware(asset: Asset) -> Component:
    return Component(
        type=ComponentType.FIRMWARE,
        name=f"firmware of {asset.name}",
        version=asset.version,
        bom_ref=f"{_ref(asset)}/firmware",
    )


def _properties(asset: Asset) -> list[Property]:
    """Of a package's digest too: it is over its files, not of the one file that a hash of CycloneDX is about."""
    told = {"kind": asset.kind}
    told |= {
        name: asset.details[name] for name in ("link", "role", "backend", "loaded", "file") if name in asset.details
    }
    told |= {"serial": asset.name} if asset.kind in DEVICES else {}
    told |= {"files-sha256": asset.digest} if asset.digest and "purl" in asset.details else {}
    return [*_answered_for(asset), *_named(told)]


def _answered_for(asset: Asset) -> list[Property]:
    return _named({"owner": asset.owner, "classification": asset.classification})


def _named(told: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"{OURS}:{name}", value=value) for name, value in told.items()]


def _required(asset: Asset) -> list[str]:
    return asset.details.get("requires", "").split()


def _ref(asset: Asset) -> str:
    return f"{asset.kind}/{asset.name}"


def _algorithm(row: AlgorithmEntry, day: str) -> Component:
    told = {
        "status": row.status,
        "status-on": day,
        "deprecated-from": row.deprecated_from,
        "disallowed-from": row.disallowed_from,
        "replacement": row.replacement,
        "provider": row.provider,
        "security": "information-theoretic, or not by computation" if row.quantum_level is None else None,
        "for-keys": "yes" if row.for_keys else None,
        "key-bits": " ".join(map(str, row.key_bits)) or None,
    }
    properties = _named({name: value for name, value in told.items() if value})
    return Component(
        type=ComponentType.CRYPTOGRAPHIC_ASSET,
        name=row.id,
        description=row.parameters,
        bom_ref=f"algorithm/{row.id}",
        properties=[*properties, *(Property(name=f"{OURS}:use", value=use) for use in row.uses)],
        crypto_properties=CryptoProperties(
            asset_type=CryptoAssetType.ALGORITHM,
            oid=row.oid,
            algorithm_properties=AlgorithmProperties(
                primitive=CryptoPrimitive(row.primitive),
                parameter_set_identifier=_parameter_set(row.id),
                execution_environment=CryptoExecutionEnvironment.SOFTWARE_PLAIN_RAM if row.uses else None,
                mode=CryptoMode.GCM if row.id.endswith("-GCM") else None,
                crypto_functions=[CryptoFunction(function) for function in row.functions],
                classical_security_level=row.classical_bits,
                nist_quantum_security_level=row.quantum_level,
            ),
        ),
    )


def _parameter_set(id_: str) -> str | None:
    """The number in an id, such as 768 of ML-KEM-768: what CycloneDX tells variants of one algorithm by."""
    numbers = [part for part in id_.split("-") if part.isdecimal()]
    return numbers[-1] if numbers else None


def _counts(registry: AlgorithmList) -> list[tuple[str, int]]:
    return sorted((registry.keys or {}).items())


def _keys(which: str, told: Mapping[str, str]) -> Component:
    """Keys of a class of the policy, or at a stage of their life."""
    return Component(
        type=ComponentType.CRYPTOGRAPHIC_ASSET,
        name=f"keys, {which.replace('/', ' ')}",
        bom_ref=f"keys/{which}",
        properties=_named(told),
        crypto_properties=CryptoProperties(
            asset_type=CryptoAssetType.RELATED_CRYPTO_MATERIAL,
            related_crypto_material_properties=RelatedCryptoMaterialProperties(
                type=RelatedCryptoMaterialType.SECRET_KEY
            ),
        ),
    )


def _text(bom: Bom) -> str:
    made: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
