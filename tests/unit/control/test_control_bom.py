"""Bills of materials: valid CycloneDX 1.6, the same bytes for the same inventory, and no key in them."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from control_node import ASSETS, Agent
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from qkdnode.control.bom import TYPES, cryptography_bom, software_bom
from qkdnode.lifecycle.algorithms import ROWS
from qkdnode.node.software import software
from qkdnode.wire.control import AlgorithmList, Asset

TIME = datetime(2026, 2, 2, 2, 40, tzinfo=UTC)
SERIAL = UUID("01234567-89ab-4cde-8f01-23456789abcd")


def registry() -> AlgorithmList:
    coroutine = Agent().algorithms()
    try:
        coroutine.send(None)
    except StopIteration as done:
        answer: AlgorithmList = done.value
        return answer
    raise AssertionError("it waits")


def sbom(assets: tuple[Asset, ...] = ASSETS) -> Any:
    return json.loads(software_bom("alice", assets, TIME, SERIAL))


def cbom() -> Any:
    return json.loads(cryptography_bom("alice", ASSETS, registry(), TIME, SERIAL))


def component(bom: Any, ref: str) -> Any:
    (found,) = [part for part in bom["components"] if part["bom-ref"] == ref]
    return found


def properties(part: Any) -> dict[str, str]:
    return {entry["name"].removeprefix("qkdnode:"): entry["value"] for entry in part.get("properties", ())}


def errors(text: str) -> Any:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_both_bills_are_valid_by_the_schema_and_the_validator_sees_a_fault() -> None:
    for text in (
        software_bom("alice", ASSETS, TIME, SERIAL),
        software_bom("alice", (), TIME, SERIAL),
        cryptography_bom("alice", ASSETS, registry(), TIME, SERIAL),
    ):
        assert errors(text) is None
        assert errors(text.replace('"specVersion"', '"specVersions"')) is not None


def test_the_bill_of_what_runs_here_is_valid_too() -> None:
    here = software()
    text = software_bom("alice", here, TIME, SERIAL)
    assert errors(text) is None
    bom = json.loads(text)
    assert len(bom["components"]) == len(here)
    assert "package/cryptography" in {part["bom-ref"] for part in bom["components"]}


def test_the_same_inventory_time_and_serial_give_the_same_bytes_in_whatever_order_it_comes() -> None:
    first = software_bom("alice", ASSETS, TIME, SERIAL)
    assert first == software_bom("alice", ASSETS[::-1], TIME, SERIAL)
    assert first != software_bom("alice", ASSETS, TIME, UUID(int=SERIAL.int + 1))
    made = [cryptography_bom("alice", ASSETS, registry(), TIME, SERIAL) for _ in range(2)]
    assert made[0] == made[1]


def test_the_bill_of_software_has_licences_hashes_purls_and_what_requires_what() -> None:
    bom = sbom()
    assert (bom["specVersion"], bom["serialNumber"]) == ("1.6", f"urn:uuid:{SERIAL}")
    assert bom["metadata"]["timestamp"].startswith("2026-02-02T02:40:00")
    package = component(bom, "package/qkdnode")
    assert package["purl"] == "pkg:pypi/qkdnode@0.1.0"
    assert package["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert properties(package)["files-sha256"] == "cd" * 32
    assert component(bom, "package/numpy")["licenses"] == [{"expression": "BSD-3-Clause AND 0BSD"}]
    assert component(bom, "native/qkdnode.native.polyval")["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    assert depends["package/qkdnode"] == ["package/numpy"]
    assert "package/qkdnode" in depends["node/alice"]
    assert "package/numpy" not in depends["node/alice"]


def test_a_device_is_a_component_with_its_firmware_and_who_answers_for_it() -> None:
    bom = sbom()
    device = component(bom, "module/QKD-A")
    assert (device["type"], device["name"]) == ("device", "TX-9")
    (firmware,) = device["components"]
    assert (firmware["type"], firmware["version"]) == ("firmware", "1.4.2")
    assert properties(device) == {
        "owner": "optics", "classification": "restricted", "kind": "module", "serial": "QKD-A", "link": "alice-bob",
        "backend": "hardware",
    }  # fmt: skip
    assert "components" not in component(bom, "qrng/QRNG-A")  # it has not said which firmware it has


def test_links_applications_and_people_are_in_no_bill() -> None:
    for bom in (sbom(), cbom()):
        text = json.dumps(bom)
        assert "olga" not in text
        assert "app-a" not in text
        assert {part["bom-ref"].split("/")[0] for part in bom["components"]} <= {*TYPES, "algorithm", "keys"}


def test_every_algorithm_of_the_registry_is_in_the_bill_of_cryptography_with_its_properties() -> None:
    bom = cbom()
    assert {row.id for row in ROWS} == {
        part["name"] for part in bom["components"] if part["bom-ref"].startswith("algorithm/")
    }
    aes = component(bom, "algorithm/AES-256-GCM")
    assert aes["cryptoProperties"] == {
        "assetType": "algorithm",
        "oid": "2.16.840.1.101.3.4.1.46",
        "algorithmProperties": {
            "primitive": "ae", "mode": "gcm", "parameterSetIdentifier": "256",
            "cryptoFunctions": ["decrypt", "encrypt"], "executionEnvironment": "software-plain-ram",
            "classicalSecurityLevel": 256, "nistQuantumSecurityLevel": 5,
        },
    }  # fmt: skip
    x25519 = properties(component(bom, "algorithm/X25519"))
    assert (x25519["status"], x25519["disallowed-from"], x25519["replacement"]) == (
        "approved", "2036-01-01", "ML-KEM-1024",
    )  # fmt: skip
    otp = component(bom, "algorithm/OTP")["cryptoProperties"]["algorithmProperties"]
    assert "classicalSecurityLevel" not in otp
    assert "executionEnvironment" not in otp
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}["node/alice"]
    assert "algorithm/AES-256-GCM" in depends
    assert "algorithm/OTP" not in depends


def test_keys_are_only_counted_and_their_classes_named() -> None:
    bom = cbom()
    keys = {part["bom-ref"]: part for part in bom["components"] if part["bom-ref"].startswith("keys/")}
    assert {ref: properties(part) for ref, part in keys.items()} == {
        "keys/stage/delivered": {"stage": "delivered", "count": "120"},
        "keys/stage/ready": {"stage": "ready", "count": "3"},
        "keys/class/its": {"class": "its"},
        "keys/class/bulk": {"class": "bulk"},
    }
    for part in keys.values():
        assert part["cryptoProperties"] == {
            "assetType": "related-crypto-material",
            "relatedCryptoMaterialProperties": {"type": "secret-key"},
        }
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    assert depends["keys/class/bulk"] == ["algorithm/AES-256-GCM", "algorithm/OTP"]
    assert depends["keys/class/its"] == []


def test_what_is_no_licence_of_spdx_is_named_as_it_is() -> None:
    odd = Asset(kind="package", name="odd", licence="BSD License", details={"purl": "pkg:pypi/odd@1"})
    text = software_bom("alice", (odd,), TIME, SERIAL)
    assert errors(text) is None
    assert component(json.loads(text), "package/odd")["licenses"] == [{"license": {"name": "BSD License"}}]
