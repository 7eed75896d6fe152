"""Which keys there are: what is known of each but its bits, in pages and by filters, for whoever runs the node."""

from uuid import UUID

import msgspec

from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import Association, KeyId
from qkdnode.lifecycle.states import ENDED, LETTERS, Stage, state_of
from qkdnode.vault import bundles
from qkdnode.vault.records import (
    KEYS_PER_BUNDLE,
    Bundle,
    KnownAssociation,
    unpack_batch,
)
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

MAX_KEYS = 256
DELIVERED_HERE = (Stage.DELIVERED, Stage.SUSPENDED, Stage.DEACTIVATED)
SCANNED_BUNDLES = 256  # by one request at most, so that no filter holds up the vault


class ListKeys(Request, frozen=True):
    """Keys by rising number, after `after`, that pass every filter given. Answer: ListedKeys.

    A page may be short or empty though more follow: only so many Bundles are looked at. Of keys of one Bundle that took
    a step at different times the last one's time is given; the log has each. Damaged keys are not listed.
    """

    after: int = 0
    limit: int = MAX_KEYS
    local: str | None = None
    remote: str | None = None
    link: str | None = None
    state: str | None = None
    service: str | None = None  # of either application, such as a SPIFFE id


class ShowKey(Request, frozen=True):
    """One key. Answer: ListedKey. VaultError if the vault does not know it, or has set it aside."""

    key_id: KeyId


class ListedKey(msgspec.Struct, frozen=True):
    """What is known of a key but its bits; times are wall clock."""

    number: int
    key_id: KeyId
    state: str  # its stage at this node
    kmip_state: str
    association: Association
    link: str
    key_class: str
    policy: int  # the version that it was cut under; 0: the built-in one
    size_bits: int
    batch: str
    half: str
    offset_bits: int
    allocated_ns: int
    ready_ns: int | None
    delivered_ns: int | None
    delivered_remote_ns: int | None
    ended_ns: int | None


class ListedKeys(msgspec.Struct, frozen=True):
    """A page, and the `after` of the next; None: no key follows."""

    keys: tuple[ListedKey, ...]
    next: int | None


def list_keys(store: Store, request: ListKeys) -> ListedKeys:
    """ListKeys."""
    if request.state is not None and request.state not in set(Stage):
        raise LocalProtocolError(f"{request.state!r} is no stage of a key: one of {', '.join(Stage)}")
    limit = max(1, min(request.limit, MAX_KEYS))
    letters = [LETTERS[stage] for stage in Stage if request.state in (None, stage) and stage != Stage.DAMAGED]
    conditions, values = ["number >= ?"], list[int | str]([request.after // KEYS_PER_BUNDLE])
    if request.link is not None:
        conditions.append("link = ?")
        values.append(request.link)
    if (request.local, request.remote, request.service) != (None, None, None):
        numbers = [
            known.number
            for known in store.find_sound(KnownAssociation, "true")
            if request.local in (None, known.local)
            and request.remote in (None, known.remote)
            and request.service in (None, *known.services)
        ]
        conditions.append(f"association IN ({', '.join('?' * len(numbers))})")
        values.extend(numbers)
    where = f"{' AND '.join(conditions)} ORDER BY number LIMIT ?"
    rows = store.find_sound(Bundle, where, *values, SCANNED_BUNDLES)
    found: list[ListedKey] = []
    for bundle in rows:
        for place, letter in enumerate(bundle.states):
            number = _number(bundle, place)
            if number > request.after and letter in letters:
                found.append(listed(store, bundle, place))
                if len(found) == limit:
                    return ListedKeys(tuple(found), number)
    reached = _number(rows[-1], KEYS_PER_BUNDLE - 1) if len(rows) == SCANNED_BUNDLES else None
    return ListedKeys(tuple(found), reached)


def show_key(store: Store, request: ShowKey) -> ListedKey:
    """ShowKey."""
    for chosen in bundles.choose(store, [request.key_id.bytes]):
        return listed(store, chosen.bundle, chosen.places[0])
    raise VaultError(f"the vault holds no key {request.key_id}, or has set it aside as damaged")


def _number(bundle: Bundle, place: int) -> int:
    return bundle.number * KEYS_PER_BUNDLE + place + 1


def listed(store: Store, bundle: Bundle, place: int) -> ListedKey:
    """What is known of one key of a verified Bundle."""
    key_id = UUID(bytes=bundle.key_id(place))
    known = store.get_association(bundle.association)
    if known is None:
        raise VaultError(f"key {key_id} belongs to an association that the vault has not got")
    stage, far = bundle.stage(place), bool(bundle.far[place])
    return ListedKey(
        number=_number(bundle, place),
        key_id=key_id,
        state=stage.value,
        kmip_state=state_of(stage, far).value,
        association=known.association,
        link=bundle.link,
        key_class=bundle.class_,
        policy=bundle.policy,
        size_bits=bundle.size_bits,
        batch=str(unpack_batch(bundle.batch)),
        half=bundle.half,
        offset_bits=bundle.offset_bits + place * bundle.size_bits,
        allocated_ns=bundle.allocated_ns,
        ready_ns=bundle.ready_ns,
        delivered_ns=bundle.delivered_ns if stage in DELIVERED_HERE else None,
        delivered_remote_ns=bundle.delivered_remote_ns if far else None,
        ended_ns=bundle.ended_ns if stage in ENDED else None,
    )


HANDLERS = {ListKeys: list_keys, ShowKey: show_key}
