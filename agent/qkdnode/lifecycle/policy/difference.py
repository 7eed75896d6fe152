"""What changes if one policy takes the place of another: what becomes allowed, what denied, what shorter or longer."""

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from qkdnode.lifecycle.policy.decision import Case, Decision, standing
from qkdnode.lifecycle.policy.document import Application, Document, KeyClass
from qkdnode.lifecycle.policy.space import Group, Sizes, Space


class Kind(StrEnum):
    """What sort of change."""

    ALLOWED = "allowed"
    DENIED = "denied"
    SHORTER = "shorter"  # a limit, or what is kept: less than before
    LONGER = "longer"
    CHANGED = "changed"


class Change(msgspec.Struct, frozen=True):
    """One change: about what, and before and after. For a case these are the rules that decide."""

    kind: Kind
    about: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}: {self.before} -> {self.after}"


# Limits of a class: no value means no limit. Those of a quota likewise.
_CLASS_LIMITS = (
    "not_after", "lifetime_s", "max_age_at_release_s", "use_limit", "byte_limit", "retain_metadata_s",
)  # fmt: skip
_APPLICATION_LIMITS = ("bits_per_s", "burst_bits", "stock_share", "outstanding_keys")
_CLASS_TERMS = (
    "label", "purpose", "algorithms", "secrecy", "legal_hold", "release_when_peer_unreachable", "custodian",
    "decoys", "rotate_without_acknowledgement", "rotation",
)  # fmt: skip


def difference(before: Document, after: Document) -> tuple[Change, ...]:
    """Every change. PolicyError if both together have more cases than can be looked at."""
    return (*_cases(before, after), *_classes(before, after), *_applications(before, after))


def _cases(before: Document, after: Document) -> Iterator[Change]:
    found: dict[tuple[Kind, Group, Group, Group, str, str, str], list[Sizes]] = {}
    for application, remote, link, sizes in Space([before, after]):
        case = Case(application.first, remote.first, link.first, sizes.key_class, sizes.low)
        was, is_ = standing(before, case), standing(after, case)
        if was.allowed != is_.allowed:
            kind = Kind.ALLOWED if is_.allowed else Kind.DENIED
            key = (kind, application, remote, link, sizes.key_class, _shown(was), _shown(is_))
            found.setdefault(key, []).append(sizes)
    for (kind, application, remote, link, key_class, was_shown, is_shown), listed in found.items():
        about = f"class {key_class} of {_sizes(listed)} bits for {application} with {remote} over {link}"
        yield Change(kind, about, was_shown, is_shown)


def _classes(before: Document, after: Document) -> Iterator[Change]:
    for new in after.classes:
        old = before.key_class(new.name)
        if old is not None and old != new:
            yield from _limits(f"class {new.name}", old, new, _CLASS_LIMITS)
            yield from _spans(f"class {new.name}", old, new)
            for field in _CLASS_TERMS:
                was, is_ = getattr(old, field), getattr(new, field)
                if was != is_:
                    yield Change(Kind.CHANGED, f"class {new.name}: {field}", _text(was), _text(is_))


def _applications(before: Document, after: Document) -> Iterator[Change]:
    names = dict.fromkeys([*(its.name for its in before.applications), *(its.name for its in after.applications)])
    for name in names:
        old = before.application(name) or Application(name=name, clearance=before.clearance(name))
        new = after.application(name) or Application(name=name, clearance=after.clearance(name))
        yield from _limits(f"application {name}", old, new, _APPLICATION_LIMITS)
        if old.reserve_bits != new.reserve_bits:
            kind = Kind.LONGER if new.reserve_bits > old.reserve_bits else Kind.SHORTER
            yield Change(kind, f"application {name}: reserve_bits", str(old.reserve_bits), str(new.reserve_bits))
        if old.clearance != new.clearance:
            yield Change(Kind.CHANGED, f"application {name}: clearance", old.clearance, new.clearance)


def _limits(
    about: str, old: KeyClass | Application, new: KeyClass | Application, fields: tuple[str, ...]
) -> Iterator[Change]:
    for field in fields:
        was, is_ = getattr(old, field), getattr(new, field)
        if was != is_:
            longer = is_ is None or (was is not None and is_ > was)
            yield Change(Kind.LONGER if longer else Kind.SHORTER, f"{about}: {field}", _text(was), _text(is_))


def _spans(about: str, old: KeyClass, new: KeyClass) -> Iterator[Change]:
    """A window that begins later is shorter; a key that is kept longer is longer."""
    if old.not_before != new.not_before:
        longer = (new.not_before or 0) < (old.not_before or 0)
        kind = Kind.LONGER if longer else Kind.SHORTER
        yield Change(kind, f"{about}: not_before", _text(old.not_before), _text(new.not_before))
    if old.retain_key_s != new.retain_key_s:
        kind = Kind.LONGER if new.retain_key_s > old.retain_key_s else Kind.SHORTER
        yield Change(kind, f"{about}: retain_key_s", str(old.retain_key_s), str(new.retain_key_s))


def _shown(decision: Decision) -> str:
    return f"{'allowed' if decision.allowed else 'denied'} by {decision.rule}"


def _sizes(listed: list[Sizes]) -> str:
    merged: list[tuple[int, int]] = []
    for sizes in listed:
        if merged and merged[-1][1] + 8 == sizes.low:
            merged[-1] = (merged[-1][0], sizes.high)
        else:
            merged.append((sizes.low, sizes.high))
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in merged)


def _text(value: object) -> str:
    if value is None:
        return "no limit"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{name}: {its}" for name, its in msgspec.to_builtins(value).items()) or "as by default"
    return str(value)
