"""What compromises reach: asked before a key is cut, agreed to, told of or released."""

from qkdnode.vault.records import Bundle, Scope
from qkdnode.vault.store import Store


def scope_of_batch(store: Store, link: str, batch: bytes) -> Scope | None:
    """The scope that reaches all that a Batch gives, for whatever application."""
    return scope_of(store, link, batch)


def scope_of(store: Store, link: str, batch: bytes, *applications: str) -> Scope | None:
    """The scope that reaches what a Batch gives to two applications; None if they may have it."""
    for scope in store.every(Scope):
        if scope.holds_batch(link, batch) and (not scope.application or scope.application in applications):
            return scope
    return None


def scope_of_bundle(store: Store, bundle: Bundle) -> Scope | None:
    """The scope that reaches the keys of a Bundle; None if they may be released."""
    if not store.every(Scope):
        return None
    association = store.get_association(bundle.association)
    far = () if association is None else (association.remote,)
    return scope_of(store, bundle.link, bundle.batch, bundle.application, *far)
