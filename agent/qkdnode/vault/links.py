"""Links to neighbours: registration, opening after a start, sessions, provisioning."""

from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import ROLES
from qkdnode.vault import batches, doubts, segments
from qkdnode.vault.records import Link
from qkdnode.vault.requests import (
    Admission,
    AdmitPeer,
    LinkState,
    NextSession,
    OpenLink,
    ProvisionLink,
    StateLink,
)
from qkdnode.vault.segments import GREETING_PADS, OURS, PAD_BYTES, THEIRS
from qkdnode.vault.store import Store
from qkdnode.wire.messages import Greeting, PadSpan, Statement


def open_link(store: Store, request: OpenLink) -> LinkState:
    """OpenLink."""
    link = _registered(store, request.link, request.role, request.peer)
    if link.start != store.start:
        link = store.change(link, "link.opened", {"session": link.session_counter}, start=store.start)
    return LinkState(
        pair=link.pair,
        session_counter=link.session_counter,
        start=store.start,
        greeting_key=segments.greeting_key(store, link.link),
        segments=segments.states(store, link.link),
        unsettled=batches.pending(store, link.link),
    )


def state_link(store: Store, request: StateLink) -> Statement:
    """StateLink."""
    link = batches.known_link(store, request.link)
    return Statement(
        heard_start=link.heard_start,
        heard=link.heard,
        newest=batches.newest_ready(store, link),
        sending=segments.sending_marks(store, link.link),
        seen=segments.seen_marks(store, link.link),
    )


def admit_peer(store: Store, request: AdmitPeer) -> Admission:
    """AdmitPeer."""
    link, greeting = batches.known_link(store, request.link), request.greeting
    refused = _older_copy(store, link, greeting)
    if refused:
        store.alarm("link.refused", link.link, "refused", reason=refused)
        if refused.startswith(OURS):
            doubts.doubt_all(store, link, doubts.OLDER_COPY)
        return Admission((), refused)
    if (link.heard_start, link.heard) != (greeting.start, greeting.counter):
        store.change(
            link, "link.admitted", {"session": greeting.counter}, heard_start=greeting.start, heard=greeting.counter
        )
    granted: tuple[PadSpan, ...] = ()
    if greeting.wanted:
        granted = segments.grant(store, link.link, greeting.wanted, greeting.statement.sending, contiguous=True)
    return Admission(granted, "")


def _older_copy(store: Store, link: Link, greeting: Greeting) -> str:
    """Which end's vault must be an older copy, and how that shows; empty if neither."""
    stated = greeting.statement
    if stated.heard > link.session_counter:
        known = f"the peer has heard session {stated.heard} of this end"
        return f"{OURS}: {known}, whose last one here is {link.session_counter}"
    if stated.heard and stated.heard == link.session_counter and stated.heard_start != store.start:
        return f"{OURS}: the peer has heard session {stated.heard} of another run of this end"
    same = greeting.start == link.heard_start
    if greeting.counter < link.heard or (greeting.counter == link.heard and not same):
        return f"{THEIRS}: it begins session {greeting.counter}, after session {link.heard} was heard of it"
    if stated.newest.session and batches.state_of(store, link.link, stated.newest) is None:
        return f"{OURS}: the peer is READY with Batch {stated.newest}, which this vault does not know"
    return segments.older_copy(store, link.link, stated.sending, stated.seen)


def next_session(store: Store, request: NextSession) -> int:
    """NextSession."""
    link = batches.known_link(store, request.link)
    batches.destroy_spent(store, link.link, ())
    counter = link.session_counter + 1
    store.change(link, "link.session", {"session": counter}, session_counter=counter)
    return counter


def provision_link(store: Store, request: ProvisionLink) -> None:
    """ProvisionLink."""
    size = len(request.material)
    if size % (2 * PAD_BYTES) or size <= 2 * GREETING_PADS * PAD_BYTES:
        raise LocalProtocolError(
            f"{size} bytes of authentication key are not two halves of whole pads, more than {GREETING_PADS} in each"
        )
    link = _registered(store, request.link, request.role, request.peer)
    batches.quarantine_unsettled(store, link.link)
    if link.pair:
        doubts.doubt_all(store, link, doubts.UNHEARD)
    segments.destroy_all(store, link.link)
    with memoryview(request.material) as material:
        pads = segments.provision(store, link.link, material)
    store.change(
        link,
        "link.provisioned",
        {"pads": pads},
        start=store.start,
        pair=request.pair,
        provisioned=link.session_counter,
        heard_start=b"",
        heard=0,
    )


def _registered(store: Store, name: str, role: str, peer: str) -> Link:
    if role not in ROLES:
        raise LocalProtocolError(f"{role!r} is no role at a link: one of {', '.join(ROLES)}")
    link = store.get(Link, name)
    if link is None:
        return store.create(Link(name, role, peer, 0, b"", b"", 0, b"", 0), "link.registered", role=role, peer=peer)
    if (link.role, link.peer) != (role, peer):
        raise VaultError(
            f"link {name!r} is {link.role} to {link.peer!r} in the vault, but {role} to {peer!r} was asked for: "
            "correct the configuration, or give the link another name"
        )
    return link


HANDLERS = {
    OpenLink: open_link,
    NextSession: next_session,
    StateLink: state_link,
    AdmitPeer: admit_peer,
    ProvisionLink: provision_link,
}
