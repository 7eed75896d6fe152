"""The algorithm registry: complete against the source, tightened and never loosened, and pure in its day."""

import ast
import inspect
from pathlib import Path

import pytest

from qkdnode.errors import ConfigError
from qkdnode.lifecycle.algorithms import (
    ALGORITHMS,
    ROWS,
    Need,
    Status,
    Tightening,
    findings,
    status_of,
    tightened,
    usable_by_applications,
)
from qkdnode.vault import root

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCE = REPOSITORY / "agent/qkdnode"
LIBRARIES = ("hashlib", "hmac", "secrets", "random", "ssl", "hashes")
# Names that the walk finds and that protect nothing by themselves.
NO_ALGORITHMS = {
    "native.secret": "locked memory, comparison in constant time",
    "native.packets": "CRC-32 against faults of a cable",
    "native.stub": "emulated devices",
    "compare_digest": "comparison in constant time",
    "hashlib.file_digest": "a loop; the hash that it is given counts",
    "backend": "tells the version of OpenSSL",
    "ssl.OPENSSL_VERSION": "a text",
    "hashes": "a module; what is taken of it counts",
}
FAR = "9999-12-31"


def primitives(tree: ast.AST) -> set[str]:
    """The names by which a module gets at cryptography: of libraries, of the native core, of the kernel."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)):
                base = module.split(".")
                if module.startswith("cryptography.hazmat") or base[0] in LIBRARIES or base[0].startswith("Crypto"):
                    found |= {alias.name for alias in node.names}
                if base[:2] == ["qkdnode", "native"]:
                    found |= {f"native.{name}" for name in (base[2:3] or [alias.name for alias in node.names])}
            case ast.Import():
                # What is imported whole is found where it is used; nacl and the like are not, and count at once.
                found |= {
                    alias.name for alias in node.names if alias.name.split(".")[0] in ("nacl", "Crypto", "Cryptodome")
                }
                found |= {alias.name for alias in node.names if alias.name.startswith(("cryptography.", "qkdnode.nat"))}
            case ast.Attribute(value=ast.Name(id=library), attr=name):
                if library in LIBRARIES:
                    found.add(f"{library}.{name}")
                if library == "os" and name in ("urandom", "getrandom"):
                    found.add(f"os.{name}")
                if library == "zmq" and name.lower().startswith("curve"):
                    found.add("zmq.CURVE")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="hashlib")), args=arguments):
                found |= {f"hashlib.{its.value}" for its in arguments if isinstance(getattr(its, "value", None), str)}
            case ast.Constant(value="/dev/urandom" | "/dev/random" as path):
                found.add(path)
    return {name for name in found if name not in NO_ALGORITHMS}


def used_by_the_source() -> set[str]:
    found = set()
    for path in SOURCE.rglob("*.py"):
        package = path.relative_to(SOURCE).with_suffix("").parts[0]
        found |= {f"{package}:{name}" for name in primitives(ast.parse(path.read_text()))}
    return found


def test_everything_that_the_source_uses_is_in_the_registry_and_nothing_else() -> None:
    listed = {code for row in ROWS for use in row.uses for code in use.code}
    used = used_by_the_source()
    assert len(used) > 30
    assert used - listed == set(), "uses that no row of lifecycle/algorithms.py names"
    assert listed - used == set(), "rows of lifecycle/algorithms.py that the source has no use for"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from cryptography.hazmat.primitives.ciphers.algorithms import TripleDES", "TripleDES"),
        ("import hashlib\nhashlib.md5(b'')", "hashlib.md5"),
        ("from hashlib import md5", "md5"),
        ("import hashlib\nhashlib.file_digest(f, 'md5')", "hashlib.md5"),
        ("from qkdnode.native import sha1", "native.sha1"),
        ("from qkdnode.native.sha1 import Sha1", "native.sha1"),
        ("import qkdnode.native.sha1", "qkdnode.native.sha1"),
        ("import random\nrandom.random()", "random.random"),
        ("open('/dev/random')", "/dev/random"),
        ("import nacl.secret", "nacl.secret"),
    ],
)
def test_the_walk_finds_a_new_primitive(line: str, name: str) -> None:
    assert primitives(ast.parse(line)) == {name}


def test_every_kernel_of_the_native_core_is_in_the_registry_or_no_algorithm() -> None:
    kernels = {path.name for path in (REPOSITORY / "ext").iterdir() if path.is_dir()} - {"common"}
    named = {code.partition("native.")[2] for row in ROWS for use in row.uses for code in use.code}
    assert kernels <= named | {name.removeprefix("native.") for name in NO_ALGORITHMS}


def test_parameters_of_key_derivation_are_those_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(root.PassphraseFile).parameters.items()
    }
    argon2id = f"{defaults['memory_kib'] // 1024} MiB, {defaults['iterations']} passes, {defaults['lanes']} lanes"
    assert ALGORITHMS["Argon2id"].parameters.startswith(argon2id)
    monkeypatch.setattr(root, "Scrypt", dict)
    scrypt = root._scrypt(root.RootParameters(root.SCRYPT, bytes(16), 0, 1, defaults["memory_kib"]))
    assert ALGORITHMS["scrypt"].parameters.startswith("N {n}, r {r}, p {p}".format(**scrypt))


def test_ids_are_bare_keys_of_toml_and_rows_are_consistent() -> None:
    assert len(ALGORITHMS) == len(ROWS)
    for row in ROWS:
        assert row.id.replace("-", "").replace(".", "").isalnum()
        assert row.id.isascii()
        assert row.uses or row.for_keys
        assert row.functions
        assert row.replacement is None or row.replacement in ALGORITHMS
        if row.deprecated_from and row.disallowed_from:
            assert row.deprecated_from <= row.disallowed_from


def test_applications_may_use_what_policies_name() -> None:
    assert {"OTP", "AES-256-GCM", "ChaCha20-Poly1305", "HMAC-SHA-256", "ML-DSA-44", "Ed25519"} <= set(
        usable_by_applications()
    )
    assert "X25519" not in usable_by_applications()


def test_a_status_follows_the_day_and_never_goes_back() -> None:
    days = ["2000-01-01", "2030-12-31", "2031-01-01", "2035-12-31", "2036-01-01", FAR]
    wanted = [Status.APPROVED] * 2 + [Status.DEPRECATED] * 2 + [Status.DISALLOWED] * 2
    assert [status_of("X25519", day) for day in days] == wanted
    assert status_of("AES-256-GCM", FAR) is Status.APPROVED
    with pytest.raises(KeyError):
        status_of("ROT-13", FAR)
    for wrong in ("2036-1-1", "", "2036-01-01T00:00", "tomorrow", "2036-13-01"):
        with pytest.raises(ValueError, match="no day"):
            status_of("X25519", wrong)


def test_a_configuration_moves_dates_earlier_and_sets_a_status() -> None:
    registry = tightened(
        {
            "X25519": Tightening(disallowed_from="2029-06-01", replacement="ML-KEM-768"),
            "AES-256-GCM": Tightening(status=Status.DEPRECATED),
            "OTP": Tightening(disallowed_from="2027-01-01"),
            "Ed25519": Tightening(status=Status.DISALLOWED),
        }
    )
    assert status_of("X25519", "2029-05-31", registry) is Status.APPROVED
    assert status_of("X25519", "2029-06-01", registry) is Status.DISALLOWED  # also before it would be deprecated
    assert registry["X25519"].replacement == "ML-KEM-768"
    assert status_of("AES-256-GCM", "2000-01-01", registry) is Status.DEPRECATED
    assert status_of("OTP", "2027-01-01", registry) is Status.DISALLOWED
    assert status_of("Ed25519", "2000-01-01", registry) is Status.DISALLOWED
    assert status_of("X25519", "2029-06-01") is Status.APPROVED  # the built-in table is as it was


@pytest.mark.parametrize(
    ("id_", "change", "complaint"),
    [
        ("X25519", Tightening(disallowed_from="2036-01-02"), "later than 2036-01-01"),
        ("X25519", Tightening(deprecated_from="2031-01-02"), "later than 2031-01-01"),
        ("X25519", Tightening(deprecated_from="2030-01-02", disallowed_from="2030-01-01"), "is after 2030-01-01"),
        ("X25519", Tightening(deprecated_from="soon"), "is no day"),
        ("AES-256", Tightening(), "did you mean AES-256-"),
        ("\x1b[31m" * 40, Tightening(), "registry has not"),
        ("X25519", Tightening(replacement="X448"), "the registry has no 'X448'"),
        ("X25519", Tightening(replacement="X25519"), "X25519 -> X25519 replaces nothing"),
        ("ML-KEM-1024", Tightening(replacement="X25519"), "ML-KEM-1024 -> X25519 -> ML-KEM-1024 replaces nothing"),
    ],
)
def test_what_is_unknown_or_loosens_is_refused_and_named(id_: str, change: Tightening, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        tightened({id_: change})
    assert complaint in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_a_status_that_was_tightened_is_not_loosened_by_a_second_file() -> None:
    strict = tightened({"OTP": Tightening(status=Status.DISALLOWED)})
    with pytest.raises(ConfigError, match="cannot make it deprecated again"):
        tightened({"OTP": Tightening(status=Status.DEPRECATED)}, strict)


def test_only_what_a_node_needs_is_found() -> None:
    registry = tightened(
        {
            "X25519": Tightening(status=Status.DISALLOWED),
            "scrypt": Tightening(status=Status.DISALLOWED),
            "OTP": Tightening(status=Status.DISALLOWED),
            "OS-CSPRNG": Tightening(status=Status.DEPRECATED),
        }
    )
    disallowed, deprecated = findings((), "2026-11-27", registry)
    assert disallowed == ()
    assert [finding.id for finding in deprecated] == ["OS-CSPRNG"]
    assert deprecated[0].uses == ("salts, nonces and names of runs",)
    disallowed, _ = findings((Need.SUPPLY, Need.SCRYPT), "2026-11-27", registry)
    assert [finding.id for finding in disallowed] == ["scrypt", "X25519"]
    assert str(disallowed[1]) == "X25519 (sessions with applications) is disallowed; its replacement is ML-KEM-1024"


def test_a_deprecated_algorithm_is_named_with_its_last_day() -> None:
    _, deprecated = findings((Need.LINK,), "2031-01-01")
    (curve,) = [finding for finding in deprecated if finding.id == "CurveZMQ"]
    assert (
        str(curve)
        == "CurveZMQ (the classical channel) is deprecated, disallowed from 2036-01-01; no replacement is named"
    )
    assert findings(tuple(Need), "2026-11-27") == ((), ())
