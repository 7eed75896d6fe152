"""Links to neighbours: registration, opening after a start, sessions, provisioning."""

from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import PROVISIONED, ROLES
from qkdnode.vault import batches, segments
from qkdnode.vault.records import Link
from qkdnode.vault.requests import LinkState, NextSession, OpenLink, ProvisionLink
from qkdnode.vault.segments import PAD_BYTES
from qkdnode.vault.store import Store


def open_link(store: Store, request: OpenLink) -> LinkState:
    """OpenLink."""
    link = _registered(store, request.link, request.role, request.peer)
    if link.start != store.start:
        segments.skip_unseen(store, link.link)
        link = store.change(link, "link.opened", {"session": link.session_counter}, start=store.start)
    return LinkState(
        pair=link.pair,
        session_counter=link.session_counter,
        segments=segments.states(store, link.link),
        unsettled=batches.pending(store, link.link),
    )


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
    if size % (2 * PAD_BYTES):
        raise LocalProtocolError(f"{size} bytes of authentication key are not two halves of whole pads")
    link = _registered(store, request.link, request.role, request.peer)
    batches.quarantine_unsettled(store, link.link)
    segments.destroy_all(store, link.link)
    with memoryview(request.material) as material:
        segments.install(store, link.link, PROVISIONED, material, usable=True)
    store.change(link, "link.provisioned", {"pads": size // (2 * PAD_BYTES)}, start=store.start, pair=request.pair)


def _registered(store: Store, name: str, role: str, peer: str) -> Link:
    if role not in ROLES:
        raise LocalProtocolError(f"{role!r} is no role at a link: one of {', '.join(ROLES)}")
    link = store.get(Link, name)
    if link is None:
        return store.create(Link(name, role, peer, 0, b"", b""), "link.registered", role=role, peer=peer)
    if (link.role, link.peer) != (role, peer):
        raise VaultError(
            f"link {name!r} is {link.role} to {link.peer!r} in the vault, but {role} to {peer!r} was asked for: "
            "correct the configuration, or give the link another name"
        )
    return link


HANDLERS = {OpenLink: open_link, NextSession: next_session, ProvisionLink: provision_link}
