"""How a policy decides, slow and obvious: read out of docs/policy.md, one sentence after the other."""

from qkdnode.lifecycle.policy.decision import Facts
from qkdnode.lifecycle.policy.document import Document


def reference(document: Document, facts: Facts) -> tuple[bool, str]:
    """Whether, and by which rule."""
    known = {its.name: its for its in document.classes}
    if facts.key_class not in known:
        return False, "unknown-class"
    terms = known[facts.key_class]
    clearance = document.levels[0]
    for application in document.applications:
        if application.name == facts.application:
            clearance = application.clearance
    fitting = []
    for rule in document.rules:
        fits = True
        for wanted, its in (
            (rule.applications, facts.application), (rule.remotes, facts.remote), (rule.links, facts.link),
            (rule.classes, facts.key_class), (rule.purposes, terms.purpose),
        ):  # fmt: skip
            if wanted is not None and its not in wanted:
                fits = False
        if rule.min_bits is not None and facts.size_bits < rule.min_bits:
            fits = False
        if rule.max_bits is not None and facts.size_bits > rule.max_bits:
            fits = False
        if rule.cleared_for is not None and not dominating(document, clearance, rule.cleared_for):
            fits = False
        if rule.not_cleared_for is not None and dominating(document, clearance, rule.not_cleared_for):
            fits = False
        if fits:
            fitting.append(rule)
    forbids = [rule.name for rule in fitting if rule.effect == "forbid"]
    permits = [rule.name for rule in fitting if rule.effect == "permit"]
    if forbids:
        return False, forbids[0]
    if not permits:
        return False, "default-deny"
    if not dominating(document, clearance, terms.label):
        return False, "label-dominance"
    if terms.sizes_bits is not None and facts.size_bits not in terms.sizes_bits:
        return False, "size-of-class"
    if terms.secrecy == "its" and facts.secrecy == "computational":
        return False, "secrecy-of-path"
    if terms.not_before is not None and facts.now_ns < terms.not_before:
        return False, "validity-window"
    if terms.not_after is not None and not facts.now_ns < terms.not_after:
        return False, "validity-window"
    age_ns, most_s = facts.age_ns, terms.max_age_at_release_s
    if age_ns is not None and most_s is not None and age_ns > most_s * 1_000_000_000:
        return False, "age-at-release"
    if not facts.peer_reachable and not terms.release_when_peer_unreachable:
        return False, "peer-unreachable"
    return True, permits[0]


def dominating(document: Document, higher: str, lower: str) -> bool:
    """Whether a label dominates another."""
    ranks = {level: rank for rank, level in enumerate(document.levels)}
    level, _, rest = higher.partition(":")
    wanted, _, needed = lower.partition(":")
    if level not in ranks or wanted not in ranks:
        return False
    return ranks[level] >= ranks[wanted] and set(filter(None, needed.split(","))) <= set(filter(None, rest.split(",")))
