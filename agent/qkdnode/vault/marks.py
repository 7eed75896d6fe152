"""What tells a decoy from a key: to this vault at rest, and to the neighbour's when both cut the same bits.

At rest each Bundle has a mark, 16 bytes under the vault's own key: without that key the two kinds look alike. On the
way the mark of a decoy is made with its bits, which both ends hold and nobody is ever given; that of a key is 16 bytes
that say nothing, as its bits must not be disclosed by as much as a digest.
"""

from hmac import compare_digest

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.records import Bundle
from qkdnode.vault.store import Store

MARK_BYTES = 16
_ON_THE_WAY = b"qkdnode decoy/1\0"
_SHA256 = SHA256()


def mark_of(store: Store, number: int, *, decoy: bool) -> bytes:
    """The mark of the Bundle of a number, at rest."""
    return store.sealing.mac("mark", number, decoy)[:MARK_BYTES]


def is_decoy(store: Store, bundle: Bundle) -> bool:
    """Whether the keys of a verified Bundle are decoys."""
    return marks_decoy(store, bundle.number, bundle.mark)


def marks_decoy(store: Store, number: int, mark: bytes) -> bool:
    """Whether a mark is that of decoys."""
    return compare_digest(mark, mark_of(store, number, decoy=True))


def mark_on_the_way(store: Store, number: int, key_ids: bytes, material: SecretBuffer, *, decoy: bool) -> bytes:
    """What an Allocate carries."""
    if decoy:
        return _by_bits(key_ids, material)
    return store.sealing.mac("mark on the way", number)[:MARK_BYTES]


def came_as_decoy(mark: bytes, key_ids: bytes, material: SecretBuffer) -> bool:
    """Whether an Allocate is about decoys; asked of every one, with the bits that were cut for it."""
    return compare_digest(mark, _by_bits(key_ids, material))


def _by_bits(key_ids: bytes, material: SecretBuffer) -> bytes:
    digest = HMAC(memoryview(material), _SHA256)
    digest.update(_ON_THE_WAY + key_ids)
    return digest.finalize()[:MARK_BYTES]
