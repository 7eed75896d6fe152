"""What the policy in force allows: which class an association's keys are of, how many there may be, which go out now.

Every decision is made in the vault's thread, in the request that acts on it: a policy that is applied counts from the
next request on. Times are trusted time (qkdnode.lifecycle.clockguard), as those of the timers that end keys.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from qkdnode.audit.events import AccessEvent, Detail
from qkdnode.errors import PolicyDeniedError, VaultError
from qkdnode.ids import Association, binding_digest
from qkdnode.lifecycle.policy import quotas
from qkdnode.lifecycle.policy.decision import (
    Case,
    Decision,
    cut_for,
    due,
    first_allowed,
    nothing_permits,
    standing,
    terms_digest,
)
from qkdnode.lifecycle.policy.document import SECOND_NS, Application, KeyClass
from qkdnode.lifecycle.policy.quotas import Allowance, Held, Room
from qkdnode.vault import decoys, generations, policies, stock
from qkdnode.vault.bundles import Chosen
from qkdnode.vault.records import HELD, Bundle, KnownAssociation, Link
from qkdnode.vault.requests import Entitle, Entitlement, ExplainPolicy, Explanation
from qkdnode.vault.store import Aftermath, Store
from qkdnode.wire.messages import Allocate

MOST_DECISIONS, MOST_TOLD = 4096, 4096
NO_DIGEST = b""
_services = msgspec.json.Decoder(tuple[str, ...])


class Allotment(msgspec.Struct, frozen=True):
    """What the keys of an association are cut as: of a class, under a policy, bound to all that both ends agree on."""

    key_class: str
    policy: int
    terms: bytes
    binding: bytes

    @property
    def agreed(self) -> bytes:
        """32 bytes that must be equal at both ends."""
        return hashlib.sha256(b"qkdnode allotment/1\0" + self.terms + self.binding).digest()


# --- allocation ------------------------------------------------------------------------------------------------------


def entitle(store: Store, request: Entitle) -> Entitlement:
    """Entitle."""
    policy = policies.in_force(store)
    known = known_association(store, request.association)
    if known is None:
        decision = first_allowed((), "the configuration names no such association")
    else:
        decision = _chosen(store, known, request.size_bits)
    if known is None or not decision.allowed or decision.terms is None:
        return Entitlement(
            False, decision.rule, decision.reason, policy.number, "", NO_DIGEST, NO_DIGEST, 0, 0, decision.rule
        )
    allotment, left = _allotment(store, known, decision.terms), _room(store, known, request.size_bits)
    due_decoys = decoys.due(store, known, decision.terms)
    return Entitlement(
        True,
        decision.rule,
        decision.reason,
        policy.number,
        allotment.key_class,
        allotment.terms,
        allotment.binding,
        _outstanding(store, known, decision.terms),
        left.keys,
        left.rule,
        due_decoys.missing,
        bool(due_decoys.old),
        generations.to_cut(store, known.number)[0],
    )


def decoys_due(store: Store, association: KnownAssociation, size_bits: int) -> tuple[Allotment, decoys.Due]:
    """What decoys are cut as, and which are to be cut or ended now. PolicyDeniedError if no key may be made."""
    decision = _chosen(store, association, size_bits)
    if not decision.allowed or decision.terms is None:
        raise PolicyDeniedError(decision.rule, decision.reason)
    return _allotment(store, association, decision.terms), decoys.due(store, association, decision.terms)


def allot(store: Store, association: KnownAssociation, count: int, size_bits: int) -> Allotment:
    """What `count` new keys are cut as. PolicyDeniedError if there may not be so many, or none at all."""
    decision = _chosen(store, association, size_bits)
    if not decision.allowed or decision.terms is None:
        raise PolicyDeniedError(decision.rule, decision.reason)
    left = _room(store, association, size_bits)
    if count > left.keys:
        raise PolicyDeniedError(
            left.rule, f"{count} keys of {size_bits} bits for {association.local!r}: there is room for {left.keys}"
        )
    return _allotment(store, association, decision.terms)


def book(store: Store, association: KnownAssociation, bits: int) -> None:
    """So many bits were allocated: they count against the application's rate."""
    allowance = store.policy.allowances.get(association.local)
    if allowance is not None:
        allowance.take(bits)


def known_association(store: Store, wanted: Association) -> KnownAssociation | None:
    """The association of that name, verified once in this run."""
    rows: list[Any] = store.connection.execute(
        "SELECT number FROM associations WHERE local = ? AND remote = ? AND source = ?",
        (wanted.local, wanted.remote, wanted.source),
    ).fetchall()
    known = store.get_association(rows[0][0]) if rows else None
    return None if known is None or known.association != wanted else known


def demand_association(store: Store, wanted: Association) -> KnownAssociation:
    """As known_association. VaultError if the vault does not know it."""
    known = known_association(store, wanted)
    if known is None:
        raise VaultError(f"association {wanted} is unknown to the vault: is it configured?")
    return known


def accept(store: Store, association: KnownAssociation, allocate: Allocate) -> Allotment | str:
    """What keys that the neighbour has cut are here; or why the policies of both ends do not let them be."""
    decision = _decision(store, association, allocate.key_class, allocate.size_bits)
    decision = cut_for(due(decision, now_ns=store.trusted_ns), store.disallowed)
    if not decision.allowed or decision.terms is None:
        return f"policy: {decision.reason} [rule {decision.rule}]"
    allotment = _allotment(store, association, decision.terms)
    if allotment.agreed != allocate.agreed:
        return f"policy: the terms of class {allocate.key_class!r}, or the services, differ at both ends"
    return allotment


def explain(store: Store, request: ExplainPolicy) -> Explanation:
    """ExplainPolicy."""
    policy, wanted = policies.in_force(store), request.association
    names = [its.name for its in policy.document.classes] if request.key_class is None else [request.key_class]
    decisions = (
        cut_for(
            due(
                standing(policy.document, Case(wanted.local, wanted.remote, wanted.source, name, request.size_bits)),
                now_ns=store.trusted_ns,
            ),
            store.disallowed,
        )
        for name in names
    )
    if request.key_class is None:
        why = nothing_permits(wanted.local, wanted.remote, wanted.source, request.size_bits)
        decision = first_allowed(decisions, why)
    else:
        decision = next(decisions)
    known = store.scalar(
        "SELECT count(*) FROM associations WHERE local = ? AND remote = ? AND source = ?",
        wanted.local,
        wanted.remote,
        wanted.source,
    )
    return Explanation(
        policy.number,
        decision,
        policy.document.clearance(wanted.local),
        policy.document.application(wanted.local),
        bool(known),
    )


# --- release ---------------------------------------------------------------------------------------------------------


class Withheld(msgspec.Struct, frozen=True):
    """Keys that may not go out now, and why."""

    chosen: Chosen
    decision: Decision


def releasable(store: Store, chosen: Sequence[Chosen], *, peer_reachable: bool = True) -> list[Chosen]:
    """Which of these keys may go out now. PolicyDeniedError, journalled, if none of them.

    Keys that are withheld stay what they are. They are counted at each attempt, and journalled once in a run.
    """
    decisions = [(one, _at_release(store, one.bundle, peer_reachable)) for one in chosen]
    released = [one for one, decision in decisions if decision.allowed]
    withheld = [Withheld(one, decision) for one, decision in decisions if not decision.allowed]
    if withheld and not released:
        decision = withheld[0].decision
        raise Aftermath(PolicyDeniedError(decision.rule, decision.reason), partial(_note, withheld=withheld))
    if withheld:
        _note(store, withheld)
    return released


def is_released(store: Store, bundle: Bundle, places: list[int]) -> bool:
    """Whether keys of a Bundle may go out, but for the peer; if not, they are counted and journalled as withheld."""
    decision = _at_release(store, bundle, peer_reachable=True)
    if not decision.allowed:
        _note(store, [Withheld(Chosen(bundle, places), decision)])
    return decision.allowed


def would_release(store: Store, bundle: Bundle, *, peer_reachable: bool) -> bool:
    """Whether keys of a Bundle may go out; nothing is counted or journalled."""
    return _at_release(store, bundle, peer_reachable).allowed


def _at_release(store: Store, bundle: Bundle, peer_reachable: bool) -> Decision:
    association = store.get_association(bundle.association)
    if association is None:
        return first_allowed((), "the association of the key is unknown")
    decision = _decision(store, association, bundle.class_, bundle.size_bits)
    cut_ns = bundle.waits_ns if bundle.held_ns is None else bundle.held_ns
    age_ns = None if cut_ns is None else max(0, store.trusted_ns - cut_ns)
    return due(decision, now_ns=store.trusted_ns, age_ns=age_ns, peer_reachable=peer_reachable)


def _note(store: Store, withheld: Sequence[Withheld]) -> None:
    told = store.policy.told
    fresh = [its for its in withheld if (its.chosen.bundle.number, its.decision.rule) not in told]
    if fresh and store.reading:  # the request is done again, where it can be journalled
        raise Aftermath(PolicyDeniedError(fresh[0].decision.rule, "not journalled yet"), lambda store: None)
    for its in withheld:
        store.policy.withheld[its.decision.rule] += len(its.chosen.places)
    for its in fresh:
        one, decision = its.chosen, its.decision
        told[one.bundle.number, decision.rule] = None
        details: dict[str, Detail] = {
            "rule": decision.rule,
            "policy": policies.in_force(store).number,
            "class": one.bundle.class_,
            "keys": len(one.places),
            **store.who,
        }
        subject = f"application/{store.sealing.pseudonym(one.bundle.application.encode())}"
        keys = store.sealing.pseudonyms(one.ids())
        store.journal.record(AccessEvent, "access", "key.withheld", subject, details, "refused", keys)
    for old in list(told)[: max(0, len(told) - MOST_TOLD)]:
        del told[old]


# --- parts -----------------------------------------------------------------------------------------------------------


def _chosen(store: Store, association: KnownAssociation, size_bits: int) -> Decision:
    """The first class of the policy that the association may have now."""
    classes = policies.in_force(store).document.classes
    return first_allowed(
        (
            cut_for(due(_decision(store, association, its.name, size_bits), now_ns=store.trusted_ns), store.disallowed)
            for its in classes
        ),
        nothing_permits(association.local, association.remote, association.link, size_bits),
    )


def _decision(store: Store, association: KnownAssociation, key_class: str, size_bits: int) -> Decision:
    """The standing decision of the policy in force, made once."""
    document, known = policies.in_force(store).document, store.policy.decisions
    case = Case(association.local, association.remote, association.link, key_class, size_bits)
    found = known.get(case)
    if found is None:
        if len(known) >= MOST_DECISIONS:
            known.clear()
        found = known[case] = standing(document, case)
    return found


def _allotment(store: Store, association: KnownAssociation, terms: KeyClass) -> Allotment:
    binding = binding_digest(
        nodes=(association.node_local, association.node_remote),
        applications=(association.local, association.remote),
        source=association.source,
        services=(_services.decode(association.services_local), _services.decode(association.services_remote)),
        purpose=str(terms.purpose),
    )
    return Allotment(terms.name, policies.in_force(store).number, terms_digest(terms), binding)


def _outstanding(store: Store, association: KnownAssociation, terms: KeyClass) -> int:
    """Keys that are still to be delivered, but not those too old to be released: they would be waited for in vain."""
    oldest = 0 if terms.max_age_at_release_s is None else store.trusted_ns - terms.max_age_at_release_s * SECOND_NS
    return int(
        store.scalar(
            "SELECT coalesce(sum(outstanding), 0) FROM bundles WHERE association = ? AND outstanding "
            f"AND state = '{HELD}' AND key_generation = ? AND held_ns IS NULL "
            f"AND NOT (class = ? AND coalesce(waits_ns, ?) < ?) {decoys.left_out(store)}",
            association.number,
            generations.to_cut(store, association.number)[0],
            terms.name,
            oldest,
            oldest,
        )
    )


def _room(store: Store, association: KnownAssociation, size_bits: int) -> Room:
    """What quotas of the application and reserves of others leave. Nothing is read where there are none."""
    document = policies.in_force(store).document
    its = document.application(association.local)
    others = [one for one in document.applications if one.reserve_bits and one.name != association.local]
    limited = its is not None and (its.outstanding_keys is not None or its.stock_share is not None)
    keys = bits = stock_bits = reserved = 0
    if limited:
        keys, bits = _held(store, association)
    if others or (its is not None and its.stock_share is not None):
        stock_bits = _stock(store, association)
        reserved = sum(one.reserve_bits for one in others if _may_have(store, one.name, association.link))
    return quotas.room(its, Held(keys, bits, stock_bits, reserved), size_bits, _allowance(store, its))


def _allowance(store: Store, its: Application | None) -> int | None:
    if its is None or its.bits_per_s is None:
        return None
    known = store.policy.allowances.setdefault(its.name, Allowance(store.trusted_ns))
    return known.available(store.trusted_ns, its.bits_per_s, its.burst_bits or its.bits_per_s)


def _held(store: Store, association: KnownAssociation) -> tuple[int, int]:
    """Keys and bits that this end has allocated for the application over the link, and that are still outstanding."""
    ((keys, bits),) = store.connection.execute(
        "SELECT coalesce(sum(outstanding), 0), coalesce(sum(outstanding * size_bits), 0) FROM bundles "
        "WHERE association IN (SELECT number FROM associations WHERE local = ? AND link = ?) AND outstanding "
        f"AND state = '{HELD}' {decoys.left_out(store)}",
        (association.local, association.link),
    )
    return int(keys), int(bits)


def _stock(store: Store, association: KnownAssociation) -> int:
    link = store.get(Link, association.link)
    return 0 if link is None else stock.usable_bits(store, link.link, link.role)


def _may_have(store: Store, application: str, link: str) -> bool:
    statement = "SELECT count(*) FROM associations WHERE local = ? AND link = ?"
    return bool(store.scalar(statement, application, link))


HANDLERS = {Entitle: entitle, ExplainPolicy: explain}
