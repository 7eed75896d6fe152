"""Which topics of events a subscriber may have: default deny, and every decision names its rule.

A pattern is the name of a topic (`alarm`, `keys.a-b`), a family (`link.*`: every topic that begins with `link.`), or
`*` for all. A family does not hold the topic of its own name. The topic `decoys` must be named: no `*` covers it.
"""

from collections.abc import Iterable, Mapping

import msgspec

from qkdnode.ids import CONFIDENTIAL

ALL = "*"
FAMILY = ".*"


class TopicDecision(msgspec.Struct, frozen=True):
    """Whether, and by which rule."""

    allowed: bool
    rule: str


def covers(rule: str, pattern: str) -> bool:
    """Whether every topic that `pattern` stands for belongs to `rule` too."""
    if pattern == CONFIDENTIAL:
        return rule == pattern
    if rule == ALL:
        return True
    if rule.endswith(FAMILY):
        return pattern.startswith(rule[:-1]) and pattern != rule[:-1]
    return pattern == rule


def any_covers(rules: Iterable[str], pattern: str) -> bool:
    """Whether one of the rules covers the pattern alone."""
    return any(covers(rule, pattern) for rule in rules)


class TopicRules:
    """What the configuration gives each subscriber."""

    def __init__(self, topics: Mapping[str, Iterable[str]]) -> None:
        self._topics = {name: tuple(patterns) for name, patterns in topics.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Every subscriber that has rules."""
        return tuple(self._topics)

    def decide(self, name: str, pattern: str) -> TopicDecision:
        """The decision on all topics that `pattern` stands for, for the subscriber of that name."""
        for rule in self._topics.get(name, ()):
            if covers(rule, pattern):
                return TopicDecision(True, f"subscriber {name}: topics {rule}")
        return TopicDecision(False, f"subscriber {name}: nothing allows {pattern}")

    def may_have(self, name: str, topic: str) -> bool:
        """Whether the subscriber may have events of a topic."""
        return any_covers(self._topics.get(name, ()), topic)
