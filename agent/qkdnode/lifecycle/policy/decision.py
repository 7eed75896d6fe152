"""The decision of a policy on one case: default deny, a rule that forbids wins, and then the terms of the class.

Every decision carries the name of the rule that made it. The names of the terms below are reserved: no rule of a
document may have them.
"""

import hashlib
from collections.abc import Collection, Iterable

import msgspec

from qkdnode.lifecycle.policy.document import SECOND_NS, Document, Effect, KeyClass, Rule, Secrecy

DEFAULT_DENY = "default-deny"
UNKNOWN_CLASS = "unknown-class"
LABEL = "label-dominance"
SIZE = "size-of-class"
SECRECY = "secrecy-of-path"
LENGTH = "byte-limit"
ALGORITHMS = "algorithms-disallowed"
WINDOW = "validity-window"
AGE = "age-at-release"
REACH = "peer-unreachable"
RATE, OUTSTANDING, SHARE, RESERVE = "quota-rate", "quota-outstanding", "quota-stock-share", "reserve-of-others"
RESERVED_NAMES = frozenset(
    {
        DEFAULT_DENY,
        UNKNOWN_CLASS,
        LABEL,
        SIZE,
        SECRECY,
        LENGTH,
        ALGORITHMS,
        WINDOW,
        AGE,
        REACH,
        RATE,
        OUTSTANDING,
        SHARE,
        RESERVE,
    }
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: an application here wants a key of a class and size, shared with a remote one over a link.

    `age_ns` is that of a key which is to be released now; None: it is not about a release.
    """

    application: str
    remote: str
    link: str
    key_class: str
    size_bits: int
    now_ns: int
    secrecy: Secrecy = Secrecy.ITS  # of the path
    age_ns: int | None = None
    peer_reachable: bool = True


class Decision(msgspec.Struct, frozen=True):
    """Whether, by which rule, why, and the terms of the class, if the document knows it."""

    allowed: bool
    rule: str
    reason: str
    terms: KeyClass | None


class Case(msgspec.Struct, frozen=True):
    """What of a case does not change with time: who asks, for which class and size, over which path."""

    application: str
    remote: str
    link: str
    key_class: str
    size_bits: int
    secrecy: Secrecy = Secrecy.ITS


def decide(document: Document, facts: Facts) -> Decision:
    """The decision on one case."""
    case = Case(
        facts.application, facts.remote, facts.link, facts.key_class, facts.size_bits, facts.secrecy
    )  # fmt: skip
    return due(standing(document, case), now_ns=facts.now_ns, age_ns=facts.age_ns, peer_reachable=facts.peer_reachable)


def standing(document: Document, case: Case) -> Decision:
    """The decision as far as it does not change with time; `due` gives the rest."""
    terms = document.key_class(case.key_class)
    if terms is None:
        return Decision(False, UNKNOWN_CLASS, f"the policy knows no class {case.key_class!r}", None)
    clearance = document.clearance(case.application)
    about = [rule for rule in document.rules if concerns(document, rule, case, terms, clearance)]
    for effect in (Effect.FORBID, Effect.PERMIT):
        for rule in about:
            if rule.effect is not effect:
                continue
            if effect is Effect.FORBID:
                return Decision(False, rule.name, rule.reason or f"rule {rule.name} forbids it", terms)
            broken = _broken(document, terms, clearance, case)
            if broken is not None:
                return Decision(False, *broken, terms)
            return Decision(True, rule.name, rule.reason or f"rule {rule.name} permits it", terms)
    return Decision(False, DEFAULT_DENY, f"no rule permits class {terms.name!r} of {case.size_bits} bits there", terms)


def due(decision: Decision, *, now_ns: int, age_ns: int | None = None, peer_reachable: bool = True) -> Decision:
    """A standing decision at a moment: what is allowed may not be yet, or not be any more."""
    terms = decision.terms
    if not decision.allowed or terms is None:
        return decision
    broken = _untimely(terms, now_ns, age_ns, peer_reachable)
    return decision if broken is None else Decision(False, *broken, terms)


def cut_for(decision: Decision, disallowed: Collection[str]) -> Decision:
    """A decision at an allocation: no key is cut for algorithms all of which the registry disallows today."""
    terms = decision.terms
    if not decision.allowed or terms is None or terms.algorithms is None or not set(terms.algorithms) <= {*disallowed}:
        return decision
    listed = ", ".join(terms.algorithms)
    return Decision(False, ALGORITHMS, f"all algorithms of class {terms.name!r} are disallowed: {listed}", terms)


def first_allowed(decisions: Iterable[Decision], otherwise: str) -> Decision:
    """The first that allows; if none does, the first that anything but the default makes, else one of `otherwise`."""
    refused: Decision | None = None
    for decision in decisions:
        if decision.allowed:
            return decision
        if refused is None and decision.rule != DEFAULT_DENY:
            refused = decision
    return refused or Decision(False, DEFAULT_DENY, otherwise, None)


def choose(
    document: Document,
    *,
    application: str,
    remote: str,
    link: str,
    size_bits: int,
    now_ns: int,
    secrecy: Secrecy = Secrecy.ITS,
) -> Decision:
    """The decision for whoever names no class: the first class in the document's order of which they may have keys now.

    If there is none, why not: by the first class on which anything but the default decides.
    """
    cases = (Case(application, remote, link, its.name, size_bits, secrecy) for its in document.classes)
    return first_allowed(
        (due(standing(document, case), now_ns=now_ns) for case in cases),
        nothing_permits(application, remote, link, size_bits),
    )


def nothing_permits(application: str, remote: str, link: str, size_bits: int) -> str:
    """Why somebody gets nothing by default."""
    return f"no rule permits {application!r} keys of {size_bits} bits with {remote!r} over {link!r}"


def concerns(document: Document, rule: Rule, case: Case, terms: KeyClass, clearance: str) -> bool:
    """Whether a rule is about a case."""
    return (
        (rule.applications is None or case.application in rule.applications)
        and (rule.remotes is None or case.remote in rule.remotes)
        and (rule.links is None or case.link in rule.links)
        and (rule.classes is None or terms.name in rule.classes)
        and (rule.purposes is None or terms.purpose in rule.purposes)
        and (rule.min_bits is None or case.size_bits >= rule.min_bits)
        and (rule.max_bits is None or case.size_bits <= rule.max_bits)
        and (rule.cleared_for is None or document.dominates(clearance, rule.cleared_for))
        and (rule.not_cleared_for is None or not document.dominates(clearance, rule.not_cleared_for))
    )


def terms_digest(terms: KeyClass) -> bytes:
    """32 bytes that stand for all terms of a class: equal at both ends, or no key of it is made."""
    text = msgspec.json.encode(msgspec.to_builtins(terms), order="sorted")
    return hashlib.sha256(b"qkdnode class terms/1\0" + text).digest()


def document_digest(data: bytes) -> bytes:
    """32 bytes that stand for the very bytes of a document: what people approve."""
    return hashlib.sha256(b"qkdnode policy document/1\0" + data).digest()


def _broken(document: Document, terms: KeyClass, clearance: str, case: Case) -> tuple[str, str] | None:
    """The first standing term of the class that a permitted case does not meet."""
    if not document.dominates(clearance, terms.label):
        return LABEL, f"clearance {clearance} of {case.application!r} does not dominate the label {terms.label}"
    if terms.sizes_bits is not None and case.size_bits not in terms.sizes_bits:
        return SIZE, f"class {terms.name!r} has no keys of {case.size_bits} bits"
    if terms.byte_limit is not None and case.size_bits > 8 * terms.byte_limit:
        return LENGTH, f"a key of {case.size_bits} bits is longer than what class {terms.name!r} lets it protect"
    if terms.secrecy is Secrecy.ITS and case.secrecy is not Secrecy.ITS:
        return SECRECY, f"class {terms.name!r} wants an `its` path, this one is {case.secrecy}"
    return None


def _untimely(terms: KeyClass, now_ns: int, age_ns: int | None, peer_reachable: bool) -> tuple[str, str] | None:
    if terms.not_before is not None and now_ns < terms.not_before:
        return WINDOW, f"class {terms.name!r} is not valid yet"
    if terms.not_after is not None and now_ns >= terms.not_after:
        return WINDOW, f"class {terms.name!r} is not valid any more"
    limit_s = terms.max_age_at_release_s
    if age_ns is not None and limit_s is not None and age_ns > limit_s * SECOND_NS:
        return AGE, f"the key is {age_ns // SECOND_NS} s old, class {terms.name!r} allows {limit_s} s"
    if not peer_reachable and not terms.release_when_peer_unreachable:
        return REACH, f"the neighbour cannot be reached, and class {terms.name!r} waits for it"
    return None
