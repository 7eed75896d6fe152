"""Topics are given by rule: nothing that no rule gives, and no more of a family than it holds."""

import pytest

from qkdnode.access.topics import TopicRules, covers

RULES = TopicRules({"app": ("alarm", "link.*"), "all": ("*",), "none": ()})


@pytest.mark.parametrize(
    ("rule", "pattern", "wanted"),
    [
        ("*", "alarm", True),
        ("*", "link.*", True),
        ("*", "*", True),
        ("alarm", "alarm", True),
        ("alarm", "alarms", False),
        ("alarm", "alarm.*", False),
        ("alarm", "*", False),
        ("link.*", "link.a-b", True),
        ("link.*", "link.*", True),
        ("link.*", "link.a.*", True),
        ("link.a.*", "link.*", False),
        ("link.*", "link", False),
        ("link.*", "link.", False),
        ("link.*", "links.a", False),
        ("link.*", "*", False),
    ],
)
def test_a_rule_covers_a_pattern_if_it_has_every_topic_of_it(rule: str, pattern: str, wanted: bool) -> None:
    assert covers(rule, pattern) is wanted


@pytest.mark.parametrize(
    ("name", "pattern", "allowed", "rule"),
    [
        ("app", "alarm", True, "subscriber app: topics alarm"),
        ("app", "link.metro", True, "subscriber app: topics link.*"),
        ("app", "keys.metro", False, "subscriber app: nothing allows keys.metro"),
        ("all", "*", True, "subscriber all: topics *"),
        ("none", "alarm", False, "subscriber none: nothing allows alarm"),
        ("stranger", "alarm", False, "subscriber stranger: nothing allows alarm"),
    ],
)
def test_a_decision_names_its_rule(name: str, pattern: str, allowed: bool, rule: str) -> None:
    decision = RULES.decide(name, pattern)
    assert (decision.allowed, decision.rule) == (allowed, rule)
    assert RULES.may_have(name, pattern) is allowed
