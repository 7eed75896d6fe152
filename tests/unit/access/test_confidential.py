"""What only who answers for the keys is told."""

import pytest

from qkdnode.access.confidential import CONFIDENTIAL_ALARMS, may_know
from qkdnode.access.rules import Role
from qkdnode.access.topics import TopicRules, covers
from qkdnode.ids import CONFIDENTIAL
from qkdnode.watch.alarms import CONFIDENTIAL as CONFIDENTIAL_CODES
from qkdnode.wire.events import pattern_of, subscription, topic_frame


def test_the_alarms_that_are_kept_back_are_those_of_the_table() -> None:
    assert {str(code) for code in CONFIDENTIAL_CODES} == CONFIDENTIAL_ALARMS


@pytest.mark.parametrize("role", list(Role), ids=str)
def test_one_role_may_know(role: Role) -> None:
    assert may_know(frozenset({role})) == (role is Role.SECURITY_OFFICER)


def test_nobody_has_the_topic_who_does_not_name_it() -> None:
    rules = TopicRules({"all": ("*",), "family": ("decoys.*", "d*"), "named": ("alarm", "decoys")})
    assert [rules.may_have(name, CONFIDENTIAL) for name in ("all", "family", "named")] == [False, False, True]
    assert rules.decide("named", CONFIDENTIAL).allowed
    assert not rules.decide("all", CONFIDENTIAL).allowed
    assert covers("*", "*")
    assert covers("*", "decoys.a")


def test_its_pages_do_not_begin_as_those_of_all_topics_do() -> None:
    assert not topic_frame(CONFIDENTIAL).startswith(subscription("*"))
    assert pattern_of(subscription(CONFIDENTIAL)) == CONFIDENTIAL
    assert pattern_of(b"-") is None
    assert pattern_of(b"-alarm\0") is None
    assert pattern_of(b"+decoys\0") is None
