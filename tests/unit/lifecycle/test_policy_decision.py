"""Decisions, in full: every case of many documents against a reference that is slow and obvious."""

import itertools
import random
from typing import Any

import msgspec
import pytest
from policies import good
from policy_reference import reference

from qkdnode.lifecycle.policy import decision as rules
from qkdnode.lifecycle.policy.decision import Facts, choose, decide
from qkdnode.lifecycle.policy.document import (
    FORMAT,
    Application,
    Document,
    Effect,
    KeyClass,
    Purpose,
    Rule,
    Secrecy,
)
from qkdnode.lifecycle.policy.space import ANYBODY, Space

S = 10**9
NOW = 1_780_000_000 * S
LABELS = ("low", "low:x", "high", "high:x", "high:x,y")


def some_rule(source: random.Random, number: int) -> Rule:
    def maybe(values: Any) -> Any:
        return source.choice((None, None, *values))

    return Rule(
        name=f"r{number}",
        effect=source.choice((Effect.PERMIT, Effect.PERMIT, Effect.FORBID)),
        applications=maybe((("a",), ("b",), ("a", "b"))),
        remotes=maybe((("r",), ("s",))),
        links=maybe((("l",),)),
        classes=maybe((("one",), ("two",), ("one", "two"))),
        purposes=maybe(((Purpose.SESSION,), (Purpose.AUTHENTICATION, Purpose.SIGNATURE_SEED))),
        min_bits=maybe((128, 256)),
        max_bits=maybe((256, 512)),
        cleared_for=maybe(LABELS),
        not_cleared_for=maybe(LABELS),
    )


def some_class(source: random.Random, name: str) -> KeyClass:
    return KeyClass(
        name=name,
        label=source.choice(LABELS[:4]),
        purpose=source.choice(list(Purpose)),
        sizes_bits=source.choice((None, (128,), (128, 256))),
        secrecy=source.choice(list(Secrecy)),
        not_before=source.choice((None, NOW)),
        not_after=source.choice((None, NOW + S)),
        max_age_at_release_s=source.choice((None, 5)),
        release_when_peer_unreachable=source.choice((True, False)),
    )


def some_document(seed: int) -> Document:
    source = random.Random(seed)
    return Document(
        format=FORMAT,
        levels=("low", "high"),
        compartments=("x", "y"),
        classes=(some_class(source, "one"), some_class(source, "two")),
        applications=(Application(name="a", clearance=source.choice(LABELS)),),
        rules=tuple(some_rule(source, number) for number in range(source.randrange(6))),
    )


STANDING = tuple(itertools.product("ab", "rs", "lm", ("one", "two", "three"), (128, 256, 512), list(Secrecy)))
TIMELY = tuple(itertools.product((NOW - 1, NOW, NOW + S - 1, NOW + S), (None, 0, 5 * S, 5 * S + 1), (True, False)))


def test_every_case_of_many_documents_is_decided_as_the_reference_does() -> None:
    verdicts = set()
    for seed in range(60):
        document = some_document(seed)
        for i, (application, remote, link, key_class, size, secrecy) in enumerate(STANDING):
            # Times are independent of the rest: all of them in turn, so that each meets each over the documents.
            for now, age, reachable in TIMELY[(i + seed) % 4 :: 4]:
                facts = Facts(
                    application=application, remote=remote, link=link, key_class=key_class, size_bits=size,
                    now_ns=now, secrecy=secrecy, age_ns=age, peer_reachable=reachable,
                )  # fmt: skip
                found = decide(document, facts)
                assert (found.allowed, found.rule) == reference(document, facts), (seed, facts)
                assert found.reason
                assert (found.terms is None) == (found.rule == rules.UNKNOWN_CLASS)
                verdicts.add(found.rule)
    assert {
        rules.DEFAULT_DENY, rules.UNKNOWN_CLASS, rules.LABEL, rules.SIZE, rules.SECRECY, rules.WINDOW, rules.AGE,
        rules.REACH,
    } <= verdicts  # fmt: skip


def test_who_names_no_class_gets_the_first_that_they_may_have() -> None:
    for seed in range(60):
        document = some_document(seed)
        for application, remote, link, size in itertools.product("ab", "rs", "lm", (128, 256, 512)):
            asked: dict[str, Any] = {
                "application": application, "remote": remote, "link": link, "size_bits": size, "now_ns": NOW,
            }  # fmt: skip
            found = choose(document, **asked)
            each = [decide(document, Facts(key_class=its.name, **asked)) for its in document.classes]
            allowed = [its for its in each if its.allowed]
            assert found.allowed == bool(allowed)
            if allowed:
                assert found == allowed[0]
            else:
                assert found.rule in {its.rule for its in each}
                assert (found.rule == rules.DEFAULT_DENY) == all(its.rule == rules.DEFAULT_DENY for its in each)


def test_the_cases_that_documents_tell_apart_stand_for_all_names() -> None:
    for seed in range(40):
        document = some_document(seed)
        space = Space([document])
        groups = (space.applications, space.remotes, space.links)
        for names, its in zip(("ab", "rs", "lm"), groups, strict=True):
            held = [name for group in its for name in group.names]
            assert len(held) == len(set(held))
            assert ANYBODY in held
            assert {name for name in names if name not in held} <= {"b", "r", "s", "l", "m"}  # those nobody names
        for application, remote, link, sizes in space:
            verdicts = {
                (found.allowed, found.rule)
                for a in application.names
                for r in remote.names
                for k in link.names
                for size in {sizes.low, sizes.high}
                for found in [
                    decide(
                        document,
                        Facts(application=a, remote=r, link=k, key_class=sizes.key_class, size_bits=size, now_ns=NOW),
                    )
                ]
            }
            assert len(verdicts) == 1


def test_no_rule_means_no_key() -> None:
    document = msgspec.structs.replace(good(), rules=())
    found = choose(document, application="payroll", remote="x", link="l", size_bits=256, now_ns=NOW)
    assert (found.allowed, found.rule) == (False, rules.DEFAULT_DENY)


@pytest.mark.parametrize(
    ("higher", "lower", "holds"),
    [
        ("secret:red,blue", "secret:red", True),
        ("secret:red", "secret:red,blue", False),
        ("secret", "open:red", False),
        ("open:red", "secret", False),
        ("secret", "secret", True),
        ("unknown", "open", False),
        ("secret", "unknown", False),
    ],
)
def test_a_label_dominates_by_level_and_by_all_compartments(higher: str, lower: str, holds: bool) -> None:
    assert good().dominates(higher, lower) is holds
