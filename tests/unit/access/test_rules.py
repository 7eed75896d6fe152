"""The table of rules, read out in full: every role, every action, and which rule decides."""

import itertools
from typing import get_args, get_type_hints

import pytest

from qkdnode.access.rules import DEFAULT_DENY, READS, RULES, Action, Effect, Role, Rule, decide
from qkdnode.config import OperatorSection
from qkdnode.control.desk import ACTIONS, HANDLERS
from qkdnode.wire.control import ANSWERS, REQUESTS

OP, SO, AU, MA = Role.OPERATOR, Role.SECURITY_OFFICER, Role.AUDITOR, Role.MAINTAINER
SEEN, COUNTED = "everybody-sees-state", "keys-are-accounted-for"
HANDS_OFF = "auditors-change-nothing"

# The decision for somebody with exactly this role: the rule that lets them, or that refuses them.
TABLE: dict[Action, dict[Role, tuple[bool, str]]] = {
    Action.STATUS_READ: dict.fromkeys(Role, (True, SEEN)),
    Action.LINKS_READ: dict.fromkeys(Role, (True, SEEN)),
    Action.DEVICES_READ: dict.fromkeys(Role, (True, SEEN)),
    Action.ALARMS_READ: dict.fromkeys(Role, (True, SEEN)),
    Action.ALARMS_ACKNOWLEDGE: {
        OP: (True, "alarms-are-answered"),
        SO: (True, "alarms-are-answered"),
        AU: (False, HANDS_OFF),
        MA: (False, DEFAULT_DENY),
    },
    Action.KEYS_READ: {OP: (True, COUNTED), SO: (True, COUNTED), AU: (True, COUNTED), MA: (False, DEFAULT_DENY)},
    Action.KEYS_REVOKE: {
        OP: (True, "keys-are-taken-out-of-use"),
        SO: (True, "keys-are-taken-out-of-use"),
        AU: (False, HANDS_OFF),
        MA: (False, DEFAULT_DENY),
    },
    Action.KEYS_ROTATE: {
        OP: (True, "keys-are-rotated"),
        SO: (True, "keys-are-rotated"),
        AU: (False, HANDS_OFF),
        MA: (False, DEFAULT_DENY),
    },
    Action.KEYS_REHEARSE: {
        OP: (True, "rotations-are-rehearsed"),
        SO: (True, "rotations-are-rehearsed"),
        AU: (False, DEFAULT_DENY),
        MA: (False, DEFAULT_DENY),
    },
    Action.KEYS_KEEP: {
        OP: (False, DEFAULT_DENY),
        SO: (True, "what-is-kept-is-looked-after"),
        AU: (False, HANDS_OFF),
        MA: (True, "what-is-kept-is-looked-after"),
    },
    Action.DECOYS_READ: {
        OP: (False, DEFAULT_DENY),
        SO: (True, "decoys-are-known-to-one-role"),
        AU: (False, DEFAULT_DENY),
        MA: (False, DEFAULT_DENY),
    },
    Action.DECOYS_RENEW: {
        OP: (False, DEFAULT_DENY),
        SO: (True, "decoys-are-known-to-one-role"),
        AU: (False, HANDS_OFF),
        MA: (False, DEFAULT_DENY),
    },
    Action.LINK_PAUSE: {
        OP: (True, "links-are-run"),
        SO: (True, "a-suspect-link-is-stopped"),
        AU: (False, HANDS_OFF),
        MA: (False, DEFAULT_DENY),
    },
    Action.LINK_RESUME: {
        OP: (True, "links-are-run"),
        SO: (False, DEFAULT_DENY),
        AU: (False, HANDS_OFF),
        MA: (False, DEFAULT_DENY),
    },
    Action.NODE_SHUTDOWN: {
        OP: (True, "the-node-is-stopped"),
        SO: (False, DEFAULT_DENY),
        AU: (False, HANDS_OFF),
        MA: (True, "the-node-is-stopped"),
    },
    Action.CONFIG_RELOAD: {
        OP: (False, DEFAULT_DENY),
        SO: (False, DEFAULT_DENY),
        AU: (False, HANDS_OFF),
        MA: (True, "configuration-is-maintained"),
    },
    Action.POLICY_READ: dict.fromkeys(Role, (True, "everybody-knows-the-policy")),
    Action.POLICY_APPLY: {
        OP: (True, "approved-policy-is-applied"),
        SO: (True, "approved-policy-is-applied"),
        AU: (False, HANDS_OFF),
        MA: (True, "approved-policy-is-applied"),
    },
    Action.INVENTORY_READ: {
        OP: (True, "assets-are-accounted-for"),
        SO: (True, "assets-are-accounted-for"),
        AU: (True, "assets-are-accounted-for"),
        MA: (False, DEFAULT_DENY),
    },
    Action.INVENTORY_RECONCILE: {
        OP: (True, "both-ends-are-compared"),
        SO: (True, "both-ends-are-compared"),
        AU: (False, HANDS_OFF),
        MA: (True, "both-ends-are-compared"),
    },
    Action.CLOCK_CONFIRM: {
        OP: (False, DEFAULT_DENY),
        SO: (True, "the-clock-is-vouched-for"),
        AU: (False, HANDS_OFF),
        MA: (True, "the-clock-is-vouched-for"),
    },
    Action.AUDIT_EXPORT: {
        OP: (False, DEFAULT_DENY),
        SO: (True, "the-log-is-examined"),
        AU: (True, "the-log-is-examined"),
        MA: (False, DEFAULT_DENY),
    },
}


@pytest.mark.parametrize("action", list(Action), ids=str)
@pytest.mark.parametrize("role", list(Role), ids=str)
def test_each_role_may_do_what_the_table_says_and_no_more(role: Role, action: Action) -> None:
    decision = decide({role}, action)
    assert (decision.allowed, decision.rule) == TABLE[action][role]
    assert decision.reason


@pytest.mark.parametrize("action", list(Action), ids=str)
def test_several_roles_may_what_one_of_them_may_unless_one_is_the_auditor_s(action: Action) -> None:
    for count in range(len(Role) + 1):
        for roles in itertools.combinations(Role, count):
            allowed = any(TABLE[action][role][0] for role in roles)
            if AU in roles and action not in READS:
                allowed = False
            assert decide(roles, action).allowed is allowed


def test_nobody_may_do_anything_without_a_role_and_nothing_is_let_without_a_rule() -> None:
    for action in Action:
        assert decide((), action).rule == DEFAULT_DENY
        assert not decide(Role, action, rules=()).allowed


def test_forbid_wins_wherever_it_stands_in_the_table() -> None:
    permit = Rule("yes", Effect.PERMIT, frozenset(Action), frozenset(Role), "")
    forbid = Rule("no", Effect.FORBID, frozenset({Action.LINK_PAUSE}), frozenset({OP}), "")
    for rules in ((permit, forbid), (forbid, permit)):
        assert decide({OP}, Action.LINK_PAUSE, rules).rule == "no"
        assert decide({OP}, Action.LINK_RESUME, rules).rule == "yes"


def test_rules_have_names_of_their_own_that_fit_an_answer_and_none_is_without_effect() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 31 and name != DEFAULT_DENY for name in names)
    deciding = {decide({role}, action).rule for role in Role for action in Action}
    assert set(names) <= deciding


def test_every_request_has_an_action_a_handler_and_an_answer_and_every_action_a_request() -> None:
    assert set(REQUESTS) == set(ACTIONS) == set(HANDLERS) == set(ANSWERS)
    assert set(ACTIONS.values()) == set(Action)


def test_the_configuration_knows_the_same_roles() -> None:
    annotated = get_type_hints(OperatorSection, include_extras=False)["roles"]
    assert set(get_args(get_args(annotated)[0])) == {role.value for role in Role}
