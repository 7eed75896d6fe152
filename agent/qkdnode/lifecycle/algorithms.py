"""The algorithm registry: one table of every cryptographic algorithm that the node uses, or lets a key be used for.

An id is the standard's own name, its parts joined by '-', with each parameter that changes what it protects:
`AES-256-GCM`, `HMAC-SHA-256`, `ML-KEM-768`. It is made of letters, digits and '-', so that it is a bare key of TOML,
and never gets another meaning. Days are UTC, as text: 2036-01-01.

`code` names what stands for an algorithm in the source, by package: `vault:AESGCM`. A test walks the source, and fails
on what no row has.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum

import msgspec

from qkdnode.errors import ConfigError

_DAY = re.compile(r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])\Z")


class Status(StrEnum):
    """Whether an algorithm may be used, after SP 800-131A."""

    APPROVED = "approved"
    DEPRECATED = "deprecated"  # still used, with an alarm: replace it
    DISALLOWED = "disallowed"  # a node that needs it does not start


class Primitive(StrEnum):
    """What kind of algorithm, under the names of CycloneDX 1.6."""

    AE = "ae"
    BLOCK_CIPHER = "block-cipher"
    STREAM_CIPHER = "stream-cipher"
    HASH = "hash"
    MAC = "mac"
    KDF = "kdf"
    KEM = "kem"
    KEY_AGREE = "key-agree"
    SIGNATURE = "signature"
    DRBG = "drbg"
    OTHER = "other"


class Provider(StrEnum):
    """Whose code computes it."""

    OPENSSL = "cryptography (OpenSSL)"
    PYTHON = "Python (hashlib)"
    LIBZMQ = "libzmq (CURVE)"
    KERNEL = "Linux (getrandom)"
    NATIVE = "qkdnode.native"
    NODE = "qkdnode"
    APPLICATION = "the application"


class Need(StrEnum):
    """When a node needs an algorithm."""

    ALWAYS = "always"
    LINK = "link"  # it has links
    SUPPLY = "supply"  # it has applications
    EVENTS = "events"  # it publishes events
    CONTROL = "control"  # operators reach it
    ARGON2ID = "argon2id"  # the vault's root key is of a passphrase
    SCRYPT = "scrypt"  # the same, where there was no Argon2id when the vault was made
    CREDENTIAL = "credential"  # the vault's root key is of a systemd credential
    REWRAPPED = "rewrapped"  # keys that wrap the vault's data keys are of it, by an operator's order
    COMMAND = "command"  # only for commands of people, which the agent does without


class Use(msgspec.Struct, frozen=True):
    """What the node does with an algorithm, and where in the source."""

    what: str
    need: Need
    code: tuple[str, ...]


class Algorithm(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Security levels are None where the algorithm does not rest on computation."""

    id: str
    primitive: Primitive
    parameters: str
    provider: Provider
    functions: tuple[str, ...]  # of CycloneDX
    uses: tuple[Use, ...] = ()  # by the node
    for_keys: bool = False  # applications may use keys for it
    key_bits: tuple[int, ...] = ()  # that such a key may have; empty: any
    classical_bits: int | None = None
    quantum_level: int | None = None  # NIST's category, 0: none
    oid: str | None = None
    status: Status = Status.APPROVED
    deprecated_from: str | None = None
    disallowed_from: str | None = None
    replacement: str | None = None


class Tightening(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's configuration says of one algorithm; what is left out stays."""

    status: Status | None = None
    deprecated_from: str | None = None
    disallowed_from: str | None = None
    replacement: str | None = None


class Finding(msgspec.Struct, frozen=True):
    """An algorithm that a node needs, and that is approved no more."""

    id: str
    status: Status
    uses: tuple[str, ...]
    replacement: str | None
    disallowed_from: str | None

    def __str__(self) -> str:
        until = f", disallowed from {self.disallowed_from}" if self.status is Status.DEPRECATED else ""
        until = until if self.disallowed_from else ""
        instead = f"its replacement is {self.replacement}" if self.replacement else "no replacement is named"
        return f"{self.id} ({'; '.join(self.uses)}) is {self.status}{until}; {instead}"


# NIST IR 8547 disallows elliptic curves after 2035. It names no day of deprecation: five years ahead is ours.
_CURVES_DEPRECATED, _CURVES_DISALLOWED = "2031-01-01", "2036-01-01"
_OPEN = ("encrypt", "decrypt")

ROWS: tuple[Algorithm, ...] = (
    # --- of key agreement and authentication on the link -------------------------------------------------------------
    Algorithm(
        id="BB84-Decoy",
        primitive=Primitive.KEY_AGREE,
        parameters="biased bases; finite keys by rusca2018/1 (one decoy) or lim2014/1 (two decoys)",
        provider=Provider.NODE,
        functions=("keygen",),
        uses=(Use("keys of a link", Need.LINK, ("distill:native.sifting",)),),
    ),
    Algorithm(
        id="Toeplitz-Hash",
        primitive=Primitive.OTHER,
        parameters="universal hash over GF(2), modified or plain; seed as long as the input",
        provider=Provider.NATIVE,
        functions=("keyderive",),
        uses=(
            Use("privacy amplification", Need.LINK, ("distill:native.toeplitz",)),
            Use("extraction of random numbers", Need.ALWAYS, ("node:native.toeplitz",)),
            Use("bench", Need.COMMAND, ("cli:native.toeplitz",)),
        ),
    ),
    Algorithm(
        id="Wegman-Carter-POLYVAL-128",
        primitive=Primitive.MAC,
        parameters="polynomial hash over GF(2^128) (RFC 8452), tag of 128 bits under a pad used once",
        provider=Provider.NATIVE,
        functions=("tag", "verify"),
        uses=(
            Use("authentication of the classical channel", Need.LINK, ("authentication:native.polyval",)),
            Use("verification of corrected Blocks", Need.LINK, ("distill:native.polyval",)),
        ),
    ),
    Algorithm(
        id="ChaCha20",
        primitive=Primitive.STREAM_CIPHER,
        parameters="256-bit public seed; no secret rests on it",
        provider=Provider.NATIVE,
        functions=("generate",),
        uses=(
            Use("public permutations of reconciliation", Need.LINK, ("distill:native.cascade",)),
            Use("bench", Need.COMMAND, ("cli:native.cascade",)),
        ),
        classical_bits=256,
        quantum_level=5,
    ),
    # --- of the node --------------------------------------------------------------------------------------------------
    Algorithm(
        id="AES-256-GCM",
        primitive=Primitive.AE,
        parameters="96-bit nonce, 128-bit tag",
        provider=Provider.OPENSSL,
        functions=_OPEN,
        uses=(
            Use("keys, stock and pads at rest", Need.ALWAYS, ("vault:AESGCM",)),
            Use("keys on the way to an application", Need.SUPPLY, ("channel:AESGCM",)),
        ),
        for_keys=True,
        key_bits=(256,),
        classical_bits=256,
        quantum_level=5,
        oid="2.16.840.1.101.3.4.1.46",
    ),
    Algorithm(
        id="HMAC-SHA-256",
        primitive=Primitive.MAC,
        parameters="256-bit key, tag of 256 bits",
        provider=Provider.OPENSSL,
        functions=("tag", "verify"),
        uses=(
            Use("MACs of the vault's rows, pseudonyms in the audit log", Need.ALWAYS, ("vault:HMAC",)),
            Use("messages from vault to vault", Need.LINK, ("authentication:hashlib.sha256",)),
        ),
        for_keys=True,
        key_bits=(256, 512),
        classical_bits=256,
        quantum_level=5,
        oid="1.2.840.113549.2.9",
    ),
    Algorithm(
        id="SHA-256",
        primitive=Primitive.HASH,
        parameters="256 bits",
        provider=Provider.PYTHON,
        functions=("digest",),
        uses=(
            Use(
                "tree of the audit log, bindings of keys, names in transcripts, digests of policies",
                Need.ALWAYS,
                (
                    "audit:hashlib.sha256", "ids:hashlib.sha256", "lifecycle:hashlib.sha256", "vault:hashlib.sha256",
                    "vault:SHA256",
                ),
            ),
            Use("fingerprints of identities in the audit log", Need.ALWAYS, ("access:hashlib.sha256",)),
            Use("digests of loaded software", Need.ALWAYS, ("node:hashlib.sha256",)),
            Use("comparison of keys for a display", Need.COMMAND, ("cli:hashlib.sha256",)),
        ),
        classical_bits=128,
        quantum_level=2,
        oid="2.16.840.1.101.3.4.2.1",
    ),
    Algorithm(
        id="SHA-384",
        primitive=Primitive.HASH,
        parameters="384 bits",
        provider=Provider.OPENSSL,
        functions=("digest",),
        uses=(Use("transcripts of sessions with applications", Need.SUPPLY, ("wire:hashlib.sha384",)),),
        classical_bits=192,
        quantum_level=4,
        oid="2.16.840.1.101.3.4.2.2",
    ),
    Algorithm(
        id="HKDF-SHA-256",
        primitive=Primitive.KDF,
        parameters="256-bit salt and output",
        provider=Provider.OPENSSL,
        functions=("keyderive",),
        uses=(Use("the vault's root key from a credential", Need.CREDENTIAL, ("vault:HKDF",)),),
        for_keys=True,
        key_bits=(256, 512),
        classical_bits=256,
        quantum_level=5,
        oid="1.2.840.113549.1.9.16.3.28",
    ),
    Algorithm(
        id="HKDF-SHA-384",
        primitive=Primitive.KDF,
        parameters="salted by the transcript, output of 512 bits",
        provider=Provider.OPENSSL,
        functions=("keyderive",),
        uses=(
            Use("session keys with an application", Need.SUPPLY, ("channel:HKDF", "channel:hashes.SHA384")),
        ),
        for_keys=True,
        key_bits=(256, 384, 512),
        classical_bits=256,
        quantum_level=5,
        oid="1.2.840.113549.1.9.16.3.29",
    ),
    Algorithm(
        id="Argon2id",
        primitive=Primitive.KDF,
        parameters="64 MiB, 3 passes, 4 lanes; 256-bit output",
        provider=Provider.OPENSSL,
        functions=("keyderive",),
        uses=(Use("the vault's root key from a passphrase", Need.ARGON2ID, ("vault:Argon2id",)),),
    ),
    Algorithm(
        id="scrypt",
        primitive=Primitive.KDF,
        parameters="N 65536, r 8, p 1; 256-bit output",
        provider=Provider.OPENSSL,
        functions=("keyderive",),
        uses=(Use("the vault's root key from a passphrase, without Argon2id", Need.SCRYPT, ("vault:Scrypt",)),),
        oid="1.3.6.1.4.1.11591.4.11",
        replacement="Argon2id",
    ),
    Algorithm(
        id="Ed25519",
        primitive=Primitive.SIGNATURE,
        parameters="RFC 8032",
        provider=Provider.OPENSSL,
        functions=("sign", "verify"),
        uses=(
            Use("checkpoints of the audit log", Need.ALWAYS, ("audit:Ed25519PublicKey",)),
            Use("approvals of policies", Need.ALWAYS, ("vault:Ed25519PublicKey",)),
            Use(
                "identities of nodes, applications and operators",
                Need.ALWAYS,
                ("channel:Ed25519PrivateKey", "channel:Ed25519PublicKey"),
            ),
        ),
        for_keys=True,
        key_bits=(256,),
        classical_bits=128,
        quantum_level=0,
        oid="1.3.101.112",
        replacement="ML-DSA-65",
        deprecated_from=_CURVES_DEPRECATED,
        disallowed_from=_CURVES_DISALLOWED,
    ),
    Algorithm(
        id="X25519",
        primitive=Primitive.KEY_AGREE,
        parameters="RFC 7748; together with ML-KEM-768",
        provider=Provider.OPENSSL,
        functions=("keyderive",),
        uses=(Use("sessions with applications", Need.SUPPLY, ("channel:X25519PrivateKey", "channel:X25519PublicKey")),),
        classical_bits=128,
        quantum_level=0,
        oid="1.3.101.110",
        replacement="ML-KEM-1024",
        deprecated_from=_CURVES_DEPRECATED,
        disallowed_from=_CURVES_DISALLOWED,
    ),
    Algorithm(
        id="ML-KEM-768",
        primitive=Primitive.KEM,
        parameters="FIPS 203; together with X25519",
        provider=Provider.OPENSSL,
        functions=("encapsulate", "decapsulate"),
        uses=(
            Use("sessions with applications", Need.SUPPLY, ("channel:MLKEM768PrivateKey", "channel:MLKEM768PublicKey")),
        ),
        for_keys=True,
        key_bits=(512,),
        classical_bits=192,
        quantum_level=3,
        oid="2.16.840.1.101.3.4.4.2",
    ),
    Algorithm(
        id="CurveZMQ",
        primitive=Primitive.AE,
        parameters="Curve25519, XSalsa20, Poly1305; access control, which no claim of secrecy rests on",
        provider=Provider.LIBZMQ,
        functions=("keyderive", *_OPEN),
        uses=(
            Use("the classical channel", Need.LINK, ("channel:zmq.CURVE",)),
            Use("connections of applications", Need.SUPPLY, ("channel:zmq.CURVE",)),
            Use("connections of subscribers", Need.EVENTS, ("channel:zmq.CURVE",)),
        ),
        classical_bits=128,
        quantum_level=0,
        deprecated_from=_CURVES_DEPRECATED,
        disallowed_from=_CURVES_DISALLOWED,
    ),
    Algorithm(
        id="QRNG-XOR-OS",
        primitive=Primitive.DRBG,
        parameters="health-tested QRNG bytes through Toeplitz-Hash, each mixed with a byte of the operating system",
        provider=Provider.NODE,
        functions=("generate",),
        uses=(Use("every random number that a key rests on", Need.ALWAYS, ("device:os.urandom",)),),
    ),
    Algorithm(
        id="OS-CSPRNG",
        primitive=Primitive.DRBG,
        parameters="getrandom",
        provider=Provider.KERNEL,
        functions=("generate",),
        uses=(
            Use("salts, nonces and names of runs", Need.ALWAYS, ("vault:os.urandom", "channel:os.urandom")),
            Use("challenges to operators", Need.CONTROL, ("control:os.urandom",)),
            Use("names of runs of the event feed", Need.EVENTS, ("supply:os.urandom",)),
            Use(
                "identities and pair keys that people provision",
                Need.COMMAND,
                ("node:os.urandom", "node:/dev/urandom", "channel:/dev/urandom"),
            ),
            Use(
                "demonstration and bench",
                Need.COMMAND,
                ("cli:os.urandom", "cli:secrets.randbits", "cli:secrets.token_hex", "cli:secrets.token_urlsafe"),
            ),
        ),
        classical_bits=256,
        quantum_level=5,
    ),
    # --- only of applications -----------------------------------------------------------------------------------------
    Algorithm(
        id="OTP",
        primitive=Primitive.STREAM_CIPHER,
        parameters="one-time pad: each bit of key once",
        provider=Provider.APPLICATION,
        functions=_OPEN,
        for_keys=True,
    ),
    Algorithm(
        id="AES-128-GCM",
        primitive=Primitive.AE,
        parameters="96-bit nonce, 128-bit tag",
        provider=Provider.APPLICATION,
        functions=_OPEN,
        for_keys=True,
        key_bits=(128,),
        classical_bits=128,
        quantum_level=1,
        oid="2.16.840.1.101.3.4.1.6",
        replacement="AES-256-GCM",
    ),
    Algorithm(
        id="AES-256-CMAC",
        primitive=Primitive.MAC,
        parameters="SP 800-38B; also as the CAK of MACsec",
        provider=Provider.APPLICATION,
        functions=("tag", "verify"),
        for_keys=True,
        key_bits=(256,),
        classical_bits=256,
        quantum_level=5,
    ),
    Algorithm(
        id="AES-256-KWP",
        primitive=Primitive.BLOCK_CIPHER,
        parameters="key wrap with padding, SP 800-38F",
        provider=Provider.APPLICATION,
        functions=_OPEN,
        for_keys=True,
        key_bits=(256,),
        classical_bits=256,
        quantum_level=5,
        oid="2.16.840.1.101.3.4.1.48",
    ),
    Algorithm(
        id="ChaCha20-Poly1305",
        primitive=Primitive.AE,
        parameters="RFC 8439",
        provider=Provider.OPENSSL,
        functions=_OPEN,
        uses=(Use("wrapping of data keys at rest", Need.REWRAPPED, ("vault:ChaCha20Poly1305",)),),
        for_keys=True,
        key_bits=(256,),
        classical_bits=256,
        quantum_level=5,
        oid="1.2.840.113549.1.9.16.3.18",
    ),
    Algorithm(
        id="HMAC-SHA-384",
        primitive=Primitive.MAC,
        parameters="tag of 384 bits",
        provider=Provider.APPLICATION,
        functions=("tag", "verify"),
        for_keys=True,
        key_bits=(256, 384, 512),
        classical_bits=256,
        quantum_level=5,
        oid="1.2.840.113549.2.10",
    ),
    Algorithm(
        id="HMAC-SHA-512",
        primitive=Primitive.MAC,
        parameters="tag of 512 bits",
        provider=Provider.APPLICATION,
        functions=("tag", "verify"),
        for_keys=True,
        key_bits=(256, 512),
        classical_bits=256,
        quantum_level=5,
        oid="1.2.840.113549.2.11",
    ),
    Algorithm(
        id="IKEv2-PPK",
        primitive=Primitive.KDF,
        parameters="RFC 8784: a key mixed into IKEv2, for IPsec",
        provider=Provider.APPLICATION,
        functions=("keyderive",),
        for_keys=True,
        key_bits=(256, 384, 512),
        classical_bits=256,
        quantum_level=5,
    ),
    Algorithm(
        id="TLS-1.3-PSK",
        primitive=Primitive.KDF,
        parameters="RFC 8446: an external pre-shared key",
        provider=Provider.APPLICATION,
        functions=("keyderive",),
        for_keys=True,
        key_bits=(256, 384, 512),
        classical_bits=256,
        quantum_level=5,
    ),
    Algorithm(
        id="ML-DSA-44",
        primitive=Primitive.SIGNATURE,
        parameters="FIPS 204, from a seed of 256 bits",
        provider=Provider.OPENSSL,
        functions=("keygen", "sign", "verify"),
        uses=(
            Use("checkpoints of the audit log, beside Ed25519", Need.ALWAYS, ("audit:MLDSA44PublicKey",)),
            Use("identities of nodes, for checkpoints", Need.ALWAYS, ("channel:MLDSA44PrivateKey",)),
        ),
        for_keys=True,
        key_bits=(256,),
        classical_bits=128,
        quantum_level=2,
        oid="2.16.840.1.101.3.4.3.17",
    ),
    Algorithm(
        id="ML-DSA-65",
        primitive=Primitive.SIGNATURE,
        parameters="FIPS 204, from a seed of 256 bits",
        provider=Provider.APPLICATION,
        functions=("keygen", "sign", "verify"),
        for_keys=True,
        key_bits=(256,),
        classical_bits=192,
        quantum_level=3,
        oid="2.16.840.1.101.3.4.3.18",
    ),
    Algorithm(
        id="ML-DSA-87",
        primitive=Primitive.SIGNATURE,
        parameters="FIPS 204, from a seed of 256 bits",
        provider=Provider.APPLICATION,
        functions=("keygen", "sign", "verify"),
        for_keys=True,
        key_bits=(256,),
        classical_bits=256,
        quantum_level=5,
        oid="2.16.840.1.101.3.4.3.19",
    ),
    Algorithm(
        id="ML-KEM-1024",
        primitive=Primitive.KEM,
        parameters="FIPS 203, from a seed of 512 bits",
        provider=Provider.APPLICATION,
        functions=("keygen", "encapsulate", "decapsulate"),
        for_keys=True,
        key_bits=(512,),
        classical_bits=256,
        quantum_level=5,
        oid="2.16.840.1.101.3.4.4.3",
    ),
)  # fmt: skip
ALGORITHMS: Mapping[str, Algorithm] = {row.id: row for row in ROWS}
_RANK = {status: rank for rank, status in enumerate(Status)}


def status_of(id_: str, day: str, registry: Mapping[str, Algorithm] = ALGORITHMS) -> Status:
    """The status of an algorithm on a day. KeyError for an id that there is not, ValueError for no day."""
    if not is_day(day):
        raise ValueError(f"{day!r} is no day such as 2036-01-01")
    row = registry[id_]
    if row.status is Status.DISALLOWED or _has_come(row.disallowed_from, day):
        return Status.DISALLOWED
    if row.status is Status.DEPRECATED or _has_come(row.deprecated_from, day):
        return Status.DEPRECATED
    return Status.APPROVED


def usable_by_applications(registry: Mapping[str, Algorithm] = ALGORITHMS) -> tuple[str, ...]:
    """The ids that a key may be let for, whatever their status: ask `status_of` on the day."""
    return tuple(sorted(row.id for row in registry.values() if row.for_keys))


def uses_of(row: Algorithm, needs: Collection[Need]) -> tuple[str, ...]:
    """What a node that has these needs uses an algorithm for."""
    return tuple(use.what for use in row.uses if use.need is Need.ALWAYS or use.need in needs)


def findings(
    needs: Collection[Need], day: str, registry: Mapping[str, Algorithm] = ALGORITHMS
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """What a node that has these needs uses and is disallowed on a day, and what is deprecated."""
    found: dict[Status, list[Finding]] = {status: [] for status in Status}
    for row in registry.values():
        uses = uses_of(row, needs)
        if uses:
            status = status_of(row.id, day, registry)
            found[status].append(Finding(row.id, status, uses, row.replacement, row.disallowed_from))
    return tuple(found[Status.DISALLOWED]), tuple(found[Status.DEPRECATED])


def tightened(
    changes: Mapping[str, Tightening], registry: Mapping[str, Algorithm] = ALGORITHMS
) -> Mapping[str, Algorithm]:
    """The registry with what a configuration says. ConfigError if that is unknown, or looser than the registry."""
    fresh = dict(registry)
    for id_, change in changes.items():
        if id_ not in registry:
            close = get_close_matches(id_, registry, n=3)
            meant = f"did you mean {' or '.join(close)}?" if close else "see `qkdnode inventory algorithms`"
            raise ConfigError(f"`algorithms` names {_shown(id_)}, which the registry has not: {meant}")
        fresh[id_] = _tightened(registry[id_], change)
    _demand_replacements(fresh, changes)
    return fresh


def is_day(text: str) -> bool:
    """Whether a text is a day as this table writes it."""
    return _DAY.match(text) is not None


def _has_come(since: str | None, day: str) -> bool:
    return since is not None and since <= day


def _tightened(row: Algorithm, change: Tightening) -> Algorithm:
    where = f"`algorithms.{row.id}"
    if change.status is not None and _RANK[change.status] < _RANK[row.status]:
        raise ConfigError(f"{where}.status`: it is {row.status}; a configuration cannot make it {change.status} again")
    dates: dict[str, str | None] = {}
    for name in ("deprecated_from", "disallowed_from"):
        here, wanted = getattr(row, name), getattr(change, name)
        if wanted is not None and not is_day(wanted):
            raise ConfigError(f"{where}.{name}`: {_shown(wanted)} is no day such as 2036-01-01")
        if wanted is not None and here is not None and wanted > here:
            raise ConfigError(
                f"{where}.{name}`: {wanted} is later than {here}; a configuration can only move it earlier"
            )
        dates[name] = wanted or here
    deprecated, disallowed = dates["deprecated_from"], dates["disallowed_from"]
    if deprecated is not None and disallowed is not None and deprecated > disallowed:
        if change.deprecated_from is not None:
            raise ConfigError(
                f"{where}.deprecated_from`: {deprecated} is after {disallowed}, from when on it is disallowed"
            )
        dates["deprecated_from"] = disallowed
    return msgspec.structs.replace(
        row, status=change.status or row.status, replacement=change.replacement or row.replacement, **dates
    )


def _demand_replacements(registry: Mapping[str, Algorithm], changed: Iterable[str]) -> None:
    for id_ in changed:
        seen, at = [id_], registry[id_].replacement
        while at is not None:
            if at not in registry:
                raise ConfigError(f"`algorithms.{id_}.replacement`: the registry has no {_shown(at)}")
            if at in seen:
                raise ConfigError(f"`algorithms.{id_}.replacement`: {' -> '.join([*seen, at])} replaces nothing")
            seen.append(at)
            at = registry[at].replacement


def _shown(text: str) -> str:
    return repr(text[:60])
