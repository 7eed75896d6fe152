"""The session between an application and its node: agreed once, then every message sealed under its keys.

X25519 and ML-KEM-768 agree, Ed25519 signatures of both static identities authenticate, HKDF-SHA384 derives one
AES-256-GCM key per direction. A break of either agreement alone, or of CURVE around it, reveals no key.
"""

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qkdnode.access.identities import ApplicationIdentity, NodeIdentity
from qkdnode.channel.identity import OwnIdentity, signature_is_valid
from qkdnode.errors import AuthenticationError, LocalProtocolError, RemoteProtocolError
from qkdnode.native.secret import SecretBuffer, wipe
from qkdnode.wire.supply import (
    TAG_BYTES,
    VERSION,
    Accept,
    Body,
    Open,
    Sealed,
    accept_transcript,
    associated_data,
    encode,
    nonce_of,
    open_transcript,
)

MAX_MESSAGES = 2**32
LIFETIME_S = 24 * 3600.0
KEY_BYTES = 32

DrawInto = Callable[[memoryview], None]


def draw_from_system(buffer: memoryview) -> None:
    """Fill a buffer from the operating system's generator: for applications, which have no QRNG."""
    buffer[:] = os.urandom(len(buffer))


class Session:
    """One end's keys of an agreed session: seals what it sends, opens what it receives, each sequence number once.

    Opening demands rising sequence numbers and changes nothing unless the tag verifies; gaps are allowed, for a message
    that is lost is sent anew under a new number. Used up after 2**32 messages of one direction or 24 hours.
    """

    def __init__(self, identifier: bytes, sending: SecretBuffer, receiving: SecretBuffer, now_s: float) -> None:
        self.identifier = identifier
        self._sending, self._receiving = sending, receiving
        self._began_s = now_s
        self._sent = 0
        self._received = 0

    def is_used_up(self, now_s: float) -> bool:
        """Whether it is time for a new session."""
        return max(self._sent, self._received) >= MAX_MESSAGES or now_s - self._began_s >= LIFETIME_S

    def seal(self, body: Body, material: SecretBuffer | None = None) -> bytes:
        """A frame with `body` in the clear and `material` encrypted, under the next sequence number."""
        if self._sent >= MAX_MESSAGES:
            raise LocalProtocolError("the session has sent 2**32 messages: open a new one")
        self._sent += 1
        text = encode(body)
        sealed = bytearray((len(material) if material is not None else 0) + TAG_BYTES)
        AESGCM(memoryview(self._sending)).encrypt_into(
            nonce_of(self._sent),
            memoryview(material) if material is not None else b"",
            associated_data(self.identifier, self._sent, text),
            sealed,
        )
        return encode(Sealed(self.identifier, self._sent, text, bytes(sealed)))

    def open(self, message: Sealed) -> tuple[bytes, SecretBuffer | None]:
        """The verified body and the key sealed beside it, now the caller's.

        AuthenticationError if the tag does not verify; RemoteProtocolError if the number was used or passed over.
        """
        if message.session != self.identifier or not self._received < message.sequence <= MAX_MESSAGES:
            raise RemoteProtocolError(f"supply message {message.sequence} is repeated, late or of another session")
        size = len(message.sealed) - TAG_BYTES
        material = SecretBuffer(size) if size else None
        try:
            AESGCM(memoryview(self._receiving)).decrypt_into(
                nonce_of(message.sequence),
                message.sealed,
                associated_data(self.identifier, message.sequence, message.body),
                memoryview(material) if material is not None else bytearray(),
            )
        except InvalidTag:
            if material is not None:
                material.release()
            raise AuthenticationError(f"the tag of supply message {message.sequence} does not verify") from None
        self._received = message.sequence
        return message.body, material

    def release(self) -> None:
        """Wipe the keys."""
        self._sending.release()
        self._receiving.release()


class Opening:
    """An application's half of the agreement: `message` goes to the node, `finish` takes the answer."""

    def __init__(self, application: OwnIdentity, node: NodeIdentity, draw_into: DrawInto = draw_from_system) -> None:
        self._node = node
        self._x25519 = _draw_x25519(draw_into)
        self._mlkem = MLKEM768PrivateKey.generate()
        unsigned = Open(
            VERSION,
            application.name,
            self._x25519.public_key().public_bytes_raw(),
            self._mlkem.public_key().public_bytes_raw(),
            _draw_nonce(32, draw_into),
            bytes(64),
        )
        self._transcript = open_transcript(node.name, node.ed25519, application.public.ed25519, unsigned)
        signature = application.sign(self._transcript)
        self.message = Open(VERSION, unsigned.application, unsigned.x25519, unsigned.mlkem, unsigned.nonce, signature)

    def finish(self, answer: Accept, now_s: float) -> Session:
        """The session; AuthenticationError if the node did not sign this answer to this Open."""
        transcript = accept_transcript(self._transcript, self.message.signature, answer)
        if not signature_is_valid(self._node, answer.signature, transcript):
            raise AuthenticationError(f"the answer to the opening is not signed by node {self._node.name}")
        try:
            classical = bytearray(self._x25519.exchange(X25519PublicKey.from_public_bytes(answer.x25519)))
        except ValueError:
            raise RemoteProtocolError("the node's X25519 key is of low order") from None
        from_node, to_node = _derive(classical, bytearray(self._mlkem.decapsulate(answer.ciphertext)), transcript)
        return Session(answer.session, to_node, from_node, now_s)


def accept(
    message: Open, node: OwnIdentity, application: ApplicationIdentity, draw_into: DrawInto, now_s: float
) -> tuple[Accept, Session]:
    """A node's half of the agreement: the answer to an Open, and the session.

    AuthenticationError if `application` did not sign it for this node.
    """
    public = node.public
    if message.version != VERSION:
        raise RemoteProtocolError(f"supply protocol version {message.version}; this node speaks {VERSION}")
    transcript = open_transcript(public.name, public.ed25519, application.ed25519, message)
    if message.application != application.name or not signature_is_valid(application, message.signature, transcript):
        raise AuthenticationError(f"the opening is not signed by {application.name} for node {public.name}")
    private = _draw_x25519(draw_into)
    try:
        classical = bytearray(private.exchange(X25519PublicKey.from_public_bytes(message.x25519)))
        shared, ciphertext = MLKEM768PublicKey.from_public_bytes(message.mlkem).encapsulate()
    except ValueError:
        raise RemoteProtocolError(f"{application.name} sent an X25519 or ML-KEM key that is not one") from None
    unsigned = Accept(
        _draw_nonce(8, draw_into),
        private.public_key().public_bytes_raw(),
        ciphertext,
        _draw_nonce(32, draw_into),
        bytes(64),
    )
    whole = accept_transcript(transcript, message.signature, unsigned)
    answer = Accept(unsigned.session, unsigned.x25519, ciphertext, unsigned.nonce, node.sign(whole))
    to_application, from_application = _derive(classical, bytearray(shared), whole)
    return answer, Session(answer.session, to_application, from_application, now_s)


def _derive(classical: bytearray, quantum_safe: bytearray, transcript: bytes) -> tuple[SecretBuffer, SecretBuffer]:
    """The keys node to application and application to node; wipes both secrets."""
    joined = bytearray()
    for secret in (classical, quantum_safe):
        joined += len(secret).to_bytes(4, "big")
        joined += secret
    both = SecretBuffer(2 * KEY_BYTES)
    try:
        HKDF(hashes.SHA384(), 2 * KEY_BYTES, None, transcript).derive_into(joined, memoryview(both))
        with memoryview(both) as view:
            return SecretBuffer.copy_of(view[:KEY_BYTES]), SecretBuffer.copy_of(view[KEY_BYTES:])
    finally:
        both.release()
        for secret in (classical, quantum_safe, joined):
            wipe(secret)


def _draw_x25519(draw_into: DrawInto) -> X25519PrivateKey:
    with SecretBuffer(32) as seed:
        with memoryview(seed) as view:
            draw_into(view)
        return X25519PrivateKey.from_private_bytes(memoryview(seed))


def _draw_nonce(size: int, draw_into: DrawInto) -> bytes:
    nonce = bytearray(size)
    with memoryview(nonce) as view:
        draw_into(view)
    return bytes(nonce)
