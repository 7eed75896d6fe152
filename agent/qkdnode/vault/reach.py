"""What compromises reach: asked before a key is cut, agreed to, told of or released."""

from typing import Any

from qkdnode.vault.records import Bundle, Scope
from qkdnode.vault.store import Store

_SPARED = 16


def scope_of_batch(store: Store, link: str, batch: bytes) -> Scope | None:
    """The scope that reaches all that a Batch gives, for whatever application."""
    return scope_of(store, link, batch)


def scope_of(store: Store, link: str, batch: bytes, *applications: str) -> Scope | None:
    """The scope that reaches what a Batch gives to two applications; None if they may have it."""
    return next((scope for scope in store.every(Scope) if _meets(scope, link, batch, applications)), None)


def scope_of_bundle(store: Store, bundle: Bundle) -> Scope | None:
    """The scope that reaches the keys of a Bundle; None if they may be released."""
    if not store.every(Scope):
        return None
    return scope_of(store, bundle.link, bundle.batch, *_applications(store, bundle))


def is_reached(store: Store, bundle: Bundle, scope: Scope) -> bool:
    """Whether this scope reaches the keys of a Bundle."""
    return _meets(scope, bundle.link, bundle.batch, _applications(store, bundle))


def _meets(scope: Scope, link: str, batch: bytes, applications: tuple[str, ...]) -> bool:
    within = scope.link == link and scope.first <= batch <= scope.last
    return within and (not scope.application or scope.application in applications)


def _applications(store: Store, bundle: Bundle) -> tuple[str, ...]:
    """Both, or the one here where the association is no longer to be had."""
    association = store.get_association(bundle.association)
    return (bundle.application,) if association is None else (bundle.application, association.remote)


def passed_over(store: Store) -> tuple[str, tuple[Any, ...]]:
    """A condition in SQL that leaves out Bundles which scopes of all applications reach, and its values.

    It only spares reading what the check of each verified row leaves out: rows that are yet to be moved may be many.
    """
    reaching = [scope for scope in store.every(Scope) if scope.moving and not scope.application][:_SPARED]
    spans = [value for scope in reaching for value in (scope.link, scope.first, scope.last)]
    return "AND NOT (link = ? AND batch BETWEEN ? AND ?) " * len(reaching), tuple(spans)
