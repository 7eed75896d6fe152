"""What is wrong with a policy document, all of it, each with its place: before anybody approves it."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum
from itertools import combinations

import msgspec

from qkdnode.errors import PolicyError
from qkdnode.lifecycle.policy.decision import RESERVED_NAMES, Case, concerns, standing
from qkdnode.lifecycle.policy.document import (
    Application,
    Document,
    Effect,
    KeyClass,
    Rule,
    split_label,
)
from qkdnode.lifecycle.policy.space import ANYBODY, Group, Sizes, Space

OTP = "OTP"


class Kind(StrEnum):
    """What sort of fault."""

    TWICE = "twice"
    UNKNOWN = "unknown"
    LABEL = "label"
    WINDOW = "window"
    LIMIT = "limit"
    CONTRADICTION = "contradiction"
    SHADOWED = "shadowed"
    SIZE = "size"
    ALGORITHM = "algorithm"


class Finding(msgspec.Struct, frozen=True):
    """One fault. An error keeps the document from being applied; the others are for the author to look at."""

    place: str
    kind: Kind
    error: bool
    text: str

    def __str__(self) -> str:
        return f"{'error' if self.error else 'warning'}: {self.place}: {self.text} [{self.kind}]"


def check(
    document: Document,
    algorithms: Collection[str],
    disallowed: Collection[str] = (),
    deprecated: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Every finding, in the order of the document. `algorithms` are the ids that the node knows, and the others those
    of them that its registry disallows, or deprecates, today."""
    found = [*_names(document), *_labels(document)]
    for its in document.classes:
        found += _class(its, algorithms)
        found += _standing_of_algorithms(its, disallowed, deprecated)
    found += _windows(document)
    for rule in document.rules:
        found += _rule(document, rule)
    if not any(finding.error and finding.kind in (Kind.TWICE, Kind.LABEL) for finding in found):
        found += _cases(document)
    return tuple(found)


# --- names and labels ------------------------------------------------------------------------------------------------


def _names(document: Document) -> Iterator[Finding]:
    lists: tuple[tuple[str, Iterable[str]], ...] = (
        ("levels", document.levels),
        ("compartments", document.compartments),
        ("class", (its.name for its in document.classes)),
        ("application", (its.name for its in document.applications)),
        ("rule", (its.name for its in document.rules)),
    )
    for what, names in lists:
        for name, count in Counter(names).items():
            if count > 1:
                yield Finding(f"{what} {name}", Kind.TWICE, True, f"it is there {count} times")
    for rule in document.rules:
        if rule.name in RESERVED_NAMES:
            yield Finding(f"rule {rule.name}", Kind.TWICE, True, "the name is that of a built-in rule: take another")
    if not document.classes:
        yield Finding("document", Kind.LIMIT, True, "it has no class, so no key can ever be made")


def _labels(document: Document) -> Iterator[Finding]:
    labels = [(f"class {its.name}: label", its.label) for its in document.classes]
    labels += [(f"application {its.name}: clearance", its.clearance) for its in document.applications]
    for rule in document.rules:
        for field in ("cleared_for", "not_cleared_for"):
            if (label := getattr(rule, field)) is not None:
                labels.append((f"rule {rule.name}: {field}", label))
    for place, label in labels:
        level, compartments = split_label(label)
        if level not in document.levels:
            yield Finding(place, Kind.LABEL, True, f"level {level!r} is not among `levels`")
        for name in sorted(compartments - set(document.compartments)):
            yield Finding(place, Kind.LABEL, True, f"compartment {name!r} is not among `compartments`")


# --- classes ---------------------------------------------------------------------------------------------------------


def _class(its: KeyClass, algorithms: Collection[str]) -> Iterator[Finding]:
    def limit(field: str, text: str, *, error: bool = True) -> Finding:
        return Finding(f"class {its.name}: {field}", Kind.LIMIT, error, text)

    for name in its.algorithms or ():
        if name not in algorithms:
            yield Finding(f"class {its.name}: algorithms", Kind.UNKNOWN, True, f"there is no algorithm {name!r} here")
    for field, listed in (("algorithms", its.algorithms or ()), ("sizes_bits", its.sizes_bits or ())):
        for value, count in Counter[object](listed).items():
            if count > 1:
                yield Finding(f"class {its.name}: {field}", Kind.TWICE, True, f"{value} is there {count} times")
    window = _window(its)
    if window is not None and window[0] >= window[1]:
        yield Finding(f"class {its.name}: not_after", Kind.WINDOW, True, "it is not after `not_before`: never valid")
    elif window is not None:
        length_s = (window[1] - window[0]) // 10**9
        for field in ("max_age_at_release_s", "lifetime_s"):
            value = getattr(its, field)
            if value is not None and its.not_before is not None and value > length_s:
                yield limit(field, f"{value} s are never reached in a window of {length_s} s", error=False)
    if OTP in (its.algorithms or ()):
        if its.use_limit is not None and its.use_limit > 1:
            yield limit("use_limit", f"{its.use_limit} uses of a one-time pad: each may be used once")
        largest = max(its.sizes_bits or (65536,)) // 8
        if its.byte_limit is not None and its.byte_limit > largest:
            yield limit("byte_limit", f"{its.byte_limit} bytes are never reached: its longest pad has {largest}")
    if its.byte_limit is not None and its.sizes_bits is not None:
        long = [size for size in its.sizes_bits if size > 8 * its.byte_limit]
        if long:
            shown, all_ = ", ".join(map(str, long)), len(long) == len(its.sizes_bits)
            yield limit("byte_limit", f"keys of {shown} bits are longer than {its.byte_limit} bytes", error=all_)
    if its.retain_metadata_s is not None and its.retain_metadata_s < its.retain_key_s:
        yield limit("retain_metadata_s", "the record of a key would end before the key: it must be kept as long")


def _standing_of_algorithms(
    its: KeyClass, disallowed: Collection[str], deprecated: Collection[str]
) -> Iterator[Finding]:
    place, listed = f"class {its.name}: algorithms", its.algorithms or ()
    gone = [name for name in listed if name in disallowed]
    if gone:
        error, shown = len(gone) == len(listed), ", ".join(gone)
        text = f"{shown} {'are all' if error else 'is among them and'} disallowed today"
        yield Finding(place, Kind.ALGORITHM, error, f"{text}: no key is cut for it" if error else text)
    for name in listed:
        if name in deprecated:
            yield Finding(place, Kind.ALGORITHM, False, f"{name} is deprecated: plan its replacement")


def _window(its: KeyClass) -> tuple[int, int] | None:
    if its.not_before is None and its.not_after is None:
        return None
    return its.not_before or 0, 2**63 if its.not_after is None else its.not_after


def _windows(document: Document) -> Iterator[Finding]:
    """Classes that were meant to follow one another, and do not: in the overlap the first of the document is taken."""
    for one, other in combinations(document.classes, 2):
        first, second = _window(one), _window(other)
        if first is None or second is None or (one.purpose, one.label) != (other.purpose, other.label):
            continue
        sizes = None if one.sizes_bits is None or other.sizes_bits is None else {*one.sizes_bits} & {*other.sizes_bits}
        if sizes != set() and max(first[0], second[0]) < min(first[1], second[1]):
            text = f"its window overlaps with that of class {one.name!r}, which is before it and so is taken"
            yield Finding(f"class {other.name}: not_before", Kind.WINDOW, False, text)


# --- rules -----------------------------------------------------------------------------------------------------------


def _rule(document: Document, rule: Rule) -> Iterator[Finding]:
    if rule.min_bits is not None and rule.max_bits is not None and rule.min_bits > rule.max_bits:
        text = f"{rule.max_bits} is below `min_bits`: it is about nothing"
        yield Finding(f"rule {rule.name}: max_bits", Kind.LIMIT, True, text)
    for name in rule.classes or ():
        if document.key_class(name) is None:
            yield Finding(f"rule {rule.name}: classes", Kind.UNKNOWN, True, f"there is no class {name!r}")
    purposes = {its.purpose for its in document.classes}
    for purpose in rule.purposes or ():
        if purpose not in purposes:
            yield Finding(f"rule {rule.name}: purposes", Kind.UNKNOWN, True, f"no class is for {purpose.value!r}")


class _Tally:
    """What became of each rule over all cases; rules are bits."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.forbids = sum(1 << i for i, rule in enumerate(rules) if rule.effect is Effect.FORBID)
        self.concerned = self.decided = self.met = 0
        self.beaten_by: dict[int, int] = dict.fromkeys(range(len(rules)), 0)

    def take(self, about: int) -> int | None:
        """Count a case that these rules are about; the rule that permits it, if one does."""
        self.concerned |= about
        decisive = about & self.forbids or about
        winner = decisive & -decisive
        for i in _bits(about & ~self.decided & ~winner):
            self.beaten_by[i] |= winner
        self.decided |= winner
        return None if winner & self.forbids else winner.bit_length() - 1


def _cases(document: Document) -> Iterator[Finding]:
    """Rules that never decide, permissions that are never met, applications and classes that nothing is for."""
    try:
        space = Space([document])
    except PolicyError as error:
        yield Finding("document", Kind.SIZE, True, str(error))
        return
    rules = document.rules
    tally = _Tally(rules)
    about_application = {its.first: _about(document, application=its) for its in space.applications}
    about_remote = {its.first: _about(document, remote=its) for its in space.remotes}
    about_link = {its.first: _about(document, link=its) for its in space.links}
    about_sizes = {its: _about(document, sizes=its) for its in space.sizes}
    granted: dict[str, set[str]] = {}  # application -> classes
    for application, remote, link, sizes in space:
        about = (
            about_application[application.first]
            & about_remote[remote.first]
            & about_link[link.first]
            & about_sizes[sizes]
        )
        permit = tally.take(about) if about else None
        if permit is None or (tally.met >> permit & 1 and sizes.key_class in granted.get(application.first, ())):
            continue
        if standing(document, _case(application.first, remote.first, link.first, sizes)).allowed:
            tally.met |= 1 << permit
            granted.setdefault(application.first, set()).add(sizes.key_class)
    for i, rule in enumerate(rules):
        yield from _verdict(rules, i, rule, tally)
    reached = {name for classes in granted.values() for name in classes}
    for its in document.classes:
        if its.name not in reached:
            yield Finding(f"class {its.name}", Kind.SHADOWED, False, "no rule permits anybody a key of it")
    groups = {name: group.first for group in space.applications for name in group.names}
    for application_table in document.applications:
        had = granted.get(groups[application_table.name], set())
        yield from _application(document, application_table, had)


def _verdict(rules: tuple[Rule, ...], i: int, rule: Rule, tally: _Tally) -> Iterator[Finding]:
    place = f"rule {rule.name}"
    if not tally.concerned >> i & 1:
        yield Finding(place, Kind.SHADOWED, False, "it is about no case: sizes, classes and clearances leave none")
    elif not tally.decided >> i & 1:
        beaten = tally.beaten_by[i]
        names = ", ".join(rules[j].name for j in _bits(beaten))
        if rule.effect is Effect.PERMIT and beaten & tally.forbids == beaten:
            text = f"all that it permits is forbidden by {names}"
            yield Finding(place, Kind.CONTRADICTION, True, text)
        else:
            yield Finding(place, Kind.SHADOWED, False, f"it never decides: {names} always come before it")
    elif rule.effect is Effect.PERMIT and not tally.met >> i & 1:
        text = "nobody can have what it permits: no clearance dominates the labels, or no size is of the classes"
        yield Finding(place, Kind.CONTRADICTION, True, text)


def _application(document: Document, its: Application, classes: set[str]) -> Iterator[Finding]:
    place = f"application {its.name}"
    if not classes:
        reserves = its.reserve_bits > 0
        text = "no rule permits it any key" + (", and yet it has a reserve" if reserves else "")
        yield Finding(place, Kind.LIMIT, reserves, text)
        return
    smallest = min(min(document.key_class(name).sizes_bits or (8,)) for name in classes)  # type: ignore[union-attr]
    if its.burst_bits is not None and its.bits_per_s is None:
        yield Finding(f"{place}: burst_bits", Kind.LIMIT, True, "a burst needs `bits_per_s`")
    burst = its.burst_bits or its.bits_per_s
    if burst is not None and burst < smallest:
        text = f"{burst} bits at once are less than one key of {smallest} bits: it can never have one"
        yield Finding(f"{place}: {'burst_bits' if its.burst_bits else 'bits_per_s'}", Kind.LIMIT, True, text)


def _about(
    document: Document,
    *,
    application: Group | None = None,
    remote: Group | None = None,
    link: Group | None = None,
    sizes: Sizes | None = None,
) -> int:
    """The rules that fit in these fields, whatever the others are; a bit for each."""
    found = 0
    terms = document.key_class(sizes.key_class) if sizes is not None else None
    for i, rule in enumerate(document.rules):
        part = msgspec.structs.replace(
            rule,
            applications=rule.applications if application is not None else None,
            cleared_for=rule.cleared_for if application is not None else None,
            not_cleared_for=rule.not_cleared_for if application is not None else None,
            remotes=rule.remotes if remote is not None else None,
            links=rule.links if link is not None else None,
            classes=rule.classes if sizes is not None else None,
            purposes=rule.purposes if sizes is not None else None,
            min_bits=rule.min_bits if sizes is not None else None,
            max_bits=rule.max_bits if sizes is not None else None,
        )
        name = application.first if application is not None else ANYBODY
        case = _case(
            name, remote.first if remote is not None else ANYBODY, link.first if link is not None else ANYBODY,
            sizes or Sizes("", 8, 8),
        )  # fmt: skip
        if concerns(document, part, case, terms or document.classes[0], document.clearance(name)):
            found |= 1 << i
    return found


def _case(application: str, remote: str, link: str, sizes: Sizes) -> Case:
    return Case(application, remote, link, sizes.key_class, sizes.low)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
