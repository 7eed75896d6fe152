"""Keys as they are asked for: opened for their application only, destroyed once it has them."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from qkdnode.audit.events import AccessEvent, AlarmEvent
from qkdnode.errors import AccessDeniedError, LocalProtocolError, VaultError
from qkdnode.ids import CONFIDENTIAL, Association, KeyId
from qkdnode.lifecycle.states import PAST_DELIVERY, Stage, Step, after
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import bundles, decoys, endings, entitlements, generations, marks, outbox, reach
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.endings import HadBefore
from qkdnode.vault.records import HELD, KEYS_PER_BUNDLE, Bundle
from qkdnode.vault.requests import (
    ApplicationOutbox,
    Delivery,
    KeysDelivered,
    OpenedKeys,
    OpenKey,
    OpenKeys,
    Outstanding,
    PeerDelivered,
)
from qkdnode.vault.store import Aftermath, Store
from qkdnode.wire.messages import Delivered

MAX_NOTICE_KEYS = 1024
_PAGE = 64  # Bundles of the outbox read at once, at most

ACCEPTED = Why("neighbour", "accepted")
REFUSED = Why("neighbour", "refused")
ACKNOWLEDGED = Why("application", "acknowledged")
FAR_ACKNOWLEDGED = Why("neighbour", "acknowledged")


def make_ready(store: Store, bundle: Bundle) -> list[KeyId]:
    """Both ends hold what was allocated: it goes to the application's outbox."""
    chosen = Chosen(bundle, bundle.places(Stage.ALLOCATED))
    if not chosen.places:
        return []
    bundles.move(store, chosen, Step.ACCEPT, ACCEPTED)
    return [UUID(bytes=key_id) for key_id in chosen.ids()]


def burn(store: Store, bundle: Bundle) -> None:
    """Destroy allocated keys, which nobody received."""
    chosen = Chosen(bundle, bundle.places(Stage.ALLOCATED))
    if chosen.places:
        bundles.move(store, chosen, Step.REFUSE, REFUSED)


def application_outbox(store: Store, request: ApplicationOutbox) -> tuple[Delivery, ...]:
    """ApplicationOutbox."""
    after, place = divmod(request.after, KEYS_PER_BUNDLE)
    which: tuple[Any, ...]
    if request.association is None:
        condition, which = "application = ?", (request.application,)
    else:
        known = _association(store, request.association)
        if known is None or request.association.local != request.application:
            return ()
        condition, which = "association = ?", (known,)
        if request.size_bits is not None:
            condition, which = f"{condition} AND size_bits = ?", (known, request.size_bits)
    passed_over, spans = reach.passed_over(store)
    condition += f" {passed_over} AND delivery >= ? AND state = '{HELD}' ORDER BY delivery LIMIT ?"
    which = (*which, *spans)
    found: list[Delivery] = []
    page = 1 + request.limit // KEYS_PER_BUNDLE
    while len(found) < request.limit and (rows := store.find_sound(Bundle, condition, *which, after, page)):
        for bundle in rows:
            if reach.scope_of_bundle(store, bundle) is not None:
                continue
            found += _deliveries(store, bundle, place if bundle.delivery == after else -1)
        after, place, page = (rows[-1].delivery or 0) + 1, -1, min(2 * page, _PAGE)
    return tuple(found[: request.limit])


def open_key(store: Store, request: OpenKey) -> SecretBuffer:
    """OpenKey."""
    ((bundle, place),) = _of_application(store, (request.key_id,), request.application)
    decoys.refuse_use(store, [Chosen(bundle, [place])], f"the vault holds no usable key {request.key_id}")
    if reach.scope_of_bundle(store, bundle) is not None:
        raise VaultError(f"key {request.key_id} is compromised: it is not opened")
    stage = bundle.stage(place)
    if stage is not Stage.READY:
        raise VaultError(f"key {request.key_id} is {stage}: only a ready key is opened")
    if not generations.releasable(store, bundle, [place]):
        raise VaultError(f"key {request.key_id} is of generation {bundle.key_generation}, which is not supplied")
    return bundles.unseal(store, entitlements.releasable(store, [Chosen(bundle, [place])]))


def open_keys(store: Store, request: OpenKeys) -> OpenedKeys:
    """OpenKeys."""
    asked = request.key_ids
    if not 1 <= len(asked) <= KEYS_PER_BUNDLE:
        raise LocalProtocolError(f"{len(asked)} keys are opened at once: ask for 1 to {KEYS_PER_BUNDLE}")
    chosen = bundles.choose(store, [key_id.bytes for key_id in asked])
    _demand_application(chosen, request.application)
    ready = [Chosen(one.bundle, _at(one, Stage.READY)) for one in chosen]
    ready = [one for one in ready if one.places and not marks.is_decoy(store, one.bundle)]
    ready = [one for one in ready if reach.scope_of_bundle(store, one.bundle) is None]
    ready = generations.released(store, ready)
    if not ready:
        raise VaultError(f"of {len(asked)} keys asked for by {request.application!r} none is ready")
    ready = entitlements.releasable(store, ready, peer_reachable=request.peer_reachable)
    if len({(one.bundle.size_bits, one.bundle.key_generation) for one in ready}) > 1:
        raise LocalProtocolError("keys of different sizes or generations are not opened at once")
    known = {key_id.bytes: key_id for key_id in asked}
    ids = tuple(known[raw] for one in ready for raw in one.ids())
    first = ready[0].bundle
    return OpenedKeys(ids, first.size_bits, bundles.unseal(store, ready), first.key_generation)


def keys_delivered(store: Store, request: KeysDelivered) -> int:
    """KeysDelivered."""
    new: dict[str, list[bytes]] = {}
    leaves: dict[str, int] = {}
    chosen = bundles.choose(store, [key_id.bytes for key_id in request.key_ids])
    _demand_known(chosen, request.key_ids)
    decoys.refuse_use(store, chosen, "the vault holds no usable key of these ids")
    _demand_application(chosen, request.application)
    for one in chosen:
        fresh, other = [], []
        for place in one.places:
            stage = one.bundle.stage(place)
            if after(stage, False, Step.DELIVER) is not None:
                fresh.append(place)
            elif stage not in PAST_DELIVERY:
                other.append(place)
        if other:
            key_id = UUID(bytes=one.bundle.key_id(other[0]))
            raise LocalProtocolError(f"key {key_id} is {one.bundle.stage(other[0])}: it cannot have been delivered")
        endings.had_before(store, one.bundle, [place for place in one.places if place not in fresh])
        if fresh:
            now = Chosen(one.bundle, fresh)
            changed = bundles.move(store, now, Step.DELIVER, ACKNOWLEDGED, request.details)
            new.setdefault(changed.link, []).extend(now.ids())
            leaves[changed.link] = changed.leaf
    for link, ids in new.items():
        _tell(store, link, request.application, ids, leaves[link])
    return sum(map(len, new.values()))


def had_before(store: Store, request: HadBefore) -> int:
    """HadBefore."""
    chosen = bundles.choose(store, [key_id.bytes for key_id in request.key_ids])
    its = [one for one in chosen if one.bundle.application == request.application]
    return sum(
        endings.had_before(store, one.bundle, one.places) for one in its if not marks.is_decoy(store, one.bundle)
    )


def peer_delivered(store: Store, request: PeerDelivered) -> int:
    """PeerDelivered."""
    new = 0
    for one in bundles.choose(store, [key_id.bytes for key_id in request.key_ids]):
        bundle = one.bundle
        if bundle.link != request.link:
            continue
        if marks.is_decoy(store, bundle):
            _alarm_of_delivery(store, one)
            continue
        fresh = Chosen(
            bundle,
            [
                place
                for place in one.places
                if not bundle.far[place] and after(bundle.stage(place), False, Step.FAR_DELIVER) is not None
            ],
        )
        if not fresh.places:
            continue
        association = store.get_association(bundle.association)
        if association is None or association.remote != request.application:
            ids = fresh.ids()
            store.alarm("delivery.misdirected", f"key/{store.sealing.pseudonym(ids[0])}", "ignored", ids)
            continue
        bundles.move(store, fresh, Step.FAR_DELIVER, FAR_ACKNOWLEDGED)
        new += len(fresh.places)
    return new


def outstanding(store: Store, request: Outstanding) -> int:
    """Outstanding."""
    return store.scalar(
        "SELECT coalesce(sum(outstanding), 0) FROM bundles WHERE association = ? AND outstanding "
        f"AND state = '{HELD}' {decoys.left_out(store)}",
        _association(store, request.association),
    )


def _deliveries(store: Store, bundle: Bundle, after: int) -> list[Delivery]:
    """The waiting keys of a Bundle that may go out, in order, behind a place."""
    association = store.get_association(bundle.association)
    if association is None or bundle.delivery is None:
        return []
    first, named = bundle.delivery * KEYS_PER_BUNDLE, association.association
    places = [place for place in bundle.places(Stage.READY) if place > after]
    places = generations.releasable(store, bundle, places)
    if not places or marks.is_decoy(store, bundle) or not entitlements.is_released(store, bundle, places):
        return []
    its = (named, bundle.size_bits, bundle.key_generation)
    return [Delivery(first + place, UUID(bytes=bundle.key_id(place)), *its) for place in places]


def _alarm_of_delivery(store: Store, decoy: Chosen) -> None:
    """The neighbour says that its application has a decoy, which no node gives to anybody."""
    names = store.sealing.pseudonyms(decoy.ids())
    details: dict[str, Any] = {"link": decoy.bundle.link, "by": "neighbour"}
    subject = f"neighbour/{decoy.bundle.link}"  # not the name of a row, of which it would be the newest leaf
    store.journal.record(AlarmEvent, CONFIDENTIAL, "decoy.delivered", subject, details, "ignored", names)


def _tell(store: Store, link: str, application: str, ids: list[bytes], leaf: int) -> None:
    """Tell the neighbour of keys delivered here. A notice's number is the position of a leaf of the change."""
    pages = [ids[i : i + MAX_NOTICE_KEYS] for i in range(0, len(ids), MAX_NOTICE_KEYS)]
    for number, page in enumerate(pages, leaf - len(pages) + 1):
        outbox.post(store, link, number, Delivered(number, application, b"".join(page)))


def _at(chosen: Chosen, stage: Stage) -> list[int]:
    return [place for place in chosen.places if chosen.bundle.stage(place) is stage]


def _association(store: Store, wanted: Association) -> int | None:
    known = entitlements.known_association(store, wanted)
    return None if known is None else known.number


def _of_application(store: Store, ids: tuple[KeyId, ...], application: str) -> list[tuple[Bundle, int]]:
    chosen = bundles.choose(store, [key_id.bytes for key_id in ids])
    _demand_known(chosen, ids)
    _demand_application(chosen, application)
    return [(one.bundle, place) for one in chosen for place in one.places]


def _demand_known(chosen: list[Chosen], ids: Sequence[KeyId]) -> None:
    known = {key_id for one in chosen for key_id in one.ids()}
    for key_id in ids:
        if key_id.bytes not in known:
            raise VaultError(f"the vault holds no usable key {key_id}")


def _demand_application(chosen: list[Chosen], application: str) -> None:
    for one in chosen:
        if one.bundle.application != application:
            key_id = UUID(bytes=one.bundle.key_id(one.places[0]))
            raise Aftermath(
                AccessDeniedError(
                    f"key {key_id} is not for application {application!r}: a key has one recipient per node"
                ),
                _denial(key_id, application),
            )


def _denial(key_id: KeyId, application: str) -> Callable[[Store], None]:
    def journal(store: Store) -> None:
        subject = f"application/{store.sealing.pseudonym(application.encode())}"
        details: dict[str, Any] = {"key": store.sealing.pseudonym(key_id.bytes), **store.who}
        store.journal.record(AccessEvent, "access", "key.denied", subject, details, "refused")

    return journal


HANDLERS: dict[Any, Any] = {
    ApplicationOutbox: application_outbox,
    OpenKey: open_key,
    OpenKeys: open_keys,
    KeysDelivered: keys_delivered,
    PeerDelivered: peer_delivered,
    HadBefore: had_before,
    Outstanding: outstanding,
}
