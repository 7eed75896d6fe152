"""Who may do what at a node's control socket: roles, actions, and the table of rules that decides.

Data only, with the semantics of Cedar: what no rule permits is refused, a rule that forbids wins over all that permit,
and every decision carries the name of the rule that made it.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Role(StrEnum):
    """What an operator is trusted with."""

    OPERATOR = "operator"  # runs the links
    SECURITY_OFFICER = "security-officer"  # answers for the keys
    AUDITOR = "auditor"  # reads and verifies, changes nothing
    MAINTAINER = "maintainer"  # keeps the agent and its configuration


class Action(StrEnum):
    """What can be asked for at the control socket."""

    STATUS_READ = "status.read"
    LINKS_READ = "links.read"
    DEVICES_READ = "devices.read"
    ALARMS_READ = "alarms.read"
    ALARMS_ACKNOWLEDGE = "alarms.acknowledge"
    KEYS_READ = "keys.read"
    KEYS_REVOKE = "keys.revoke"
    KEYS_KEEP = "keys.keep"
    DECOYS_READ = "decoys.read"
    DECOYS_RENEW = "decoys.renew"
    KEYS_ROTATE = "keys.rotate"
    KEYS_REHEARSE = "keys.rehearse"
    LINK_PAUSE = "link.pause"
    LINK_RESUME = "link.resume"
    NODE_SHUTDOWN = "node.shutdown"
    CONFIG_RELOAD = "config.reload"
    AUDIT_EXPORT = "audit.export"
    POLICY_READ = "policy.read"
    POLICY_APPLY = "policy.apply"
    INVENTORY_READ = "inventory.read"
    INVENTORY_RECONCILE = "inventory.reconcile"
    CLOCK_CONFIRM = "clock.confirm"


READS = frozenset(
    {
        Action.STATUS_READ,
        Action.LINKS_READ,
        Action.DEVICES_READ,
        Action.ALARMS_READ,
        Action.KEYS_READ,
        Action.KEYS_REHEARSE,
        Action.DECOYS_READ,
        Action.AUDIT_EXPORT,
        Action.POLICY_READ,
        Action.INVENTORY_READ,
    }
)  # nothing is changed by them

STOPS = frozenset({Action.NODE_SHUTDOWN})  # done even while they cannot be journalled: they end what could go wrong


class Effect(StrEnum):
    """What a rule does with the requests that it is about."""

    PERMIT = "permit"
    FORBID = "forbid"


class Rule(msgspec.Struct, frozen=True):
    """A row of the table: it is about an action asked for by somebody who has one of its roles."""

    name: str
    effect: Effect
    actions: frozenset[Action]
    roles: frozenset[Role]
    reason: str


class Decision(msgspec.Struct, frozen=True):
    """Whether a request is let, which rule says so, and why."""

    allowed: bool
    rule: str
    reason: str


EVERYBODY = frozenset(Role)
DEFAULT_DENY = "default-deny"
RULES: tuple[Rule, ...] = (
    Rule(
        "everybody-sees-state",
        Effect.PERMIT,
        frozenset({Action.STATUS_READ, Action.LINKS_READ, Action.DEVICES_READ, Action.ALARMS_READ}),
        EVERYBODY,
        "the state of node, links, devices and alarms is shown to every role",
    ),
    Rule(
        "keys-are-accounted-for",
        Effect.PERMIT,
        frozenset({Action.KEYS_READ}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER, Role.AUDITOR}),
        "who runs, secures or audits the node sees which keys there are, never their bits",
    ),
    Rule(
        "assets-are-accounted-for",
        Effect.PERMIT,
        frozenset({Action.INVENTORY_READ}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER, Role.AUDITOR}),
        "who runs, secures or audits the node sees what it consists of",
    ),
    Rule(
        "both-ends-are-compared",
        Effect.PERMIT,
        frozenset({Action.INVENTORY_RECONCILE}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER, Role.MAINTAINER}),
        "who runs, secures or keeps the node may have both ends compared; what is repaired goes by rule",
    ),
    Rule(
        "alarms-are-answered",
        Effect.PERMIT,
        frozenset({Action.ALARMS_ACKNOWLEDGE}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER}),
        "an alarm is acknowledged by who is on duty or answers for the keys",
    ),
    Rule(
        "keys-are-taken-out-of-use",
        Effect.PERMIT,
        frozenset({Action.KEYS_REVOKE}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER}),
        "a suspect key is stopped by who is on duty or answers for the keys, and by one person alone",
    ),
    Rule(
        "keys-are-rotated",
        Effect.PERMIT,
        frozenset({Action.KEYS_ROTATE}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER}),
        "keys go over to their next generation by the word of who is on duty or answers for them",
    ),
    Rule(
        "rotations-are-rehearsed",
        Effect.PERMIT,
        frozenset({Action.KEYS_REHEARSE}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER}),
        "who may rotate keys sees what a rehearsal needs: counts of keys, of stock, and of what applications took",
    ),
    Rule(
        "what-is-kept-is-looked-after",
        Effect.PERMIT,
        frozenset({Action.KEYS_KEEP}),
        frozenset({Role.SECURITY_OFFICER, Role.MAINTAINER}),
        "stored keys are checked and wrapped anew by who answers for them or keeps the agent",
    ),
    Rule(
        "decoys-are-known-to-one-role",
        Effect.PERMIT,
        frozenset({Action.DECOYS_READ, Action.DECOYS_RENEW}),
        frozenset({Role.SECURITY_OFFICER}),
        "who answers for the keys knows of decoys, and nobody else: they would be no use",
    ),
    Rule(
        "links-are-run",
        Effect.PERMIT,
        frozenset({Action.LINK_PAUSE, Action.LINK_RESUME}),
        frozenset({Role.OPERATOR}),
        "the operator runs the links",
    ),
    Rule(
        "a-suspect-link-is-stopped",
        Effect.PERMIT,
        frozenset({Action.LINK_PAUSE}),
        frozenset({Role.SECURITY_OFFICER}),
        "the security officer may stop a link, not start it again",
    ),
    Rule(
        "the-node-is-stopped",
        Effect.PERMIT,
        frozenset({Action.NODE_SHUTDOWN}),
        frozenset({Role.OPERATOR, Role.MAINTAINER}),
        "the node is stopped by who runs or maintains it",
    ),
    Rule(
        "configuration-is-maintained",
        Effect.PERMIT,
        frozenset({Action.CONFIG_RELOAD}),
        frozenset({Role.MAINTAINER}),
        "the maintainer keeps the configuration",
    ),
    Rule(
        "the-log-is-examined",
        Effect.PERMIT,
        frozenset({Action.AUDIT_EXPORT}),
        frozenset({Role.AUDITOR, Role.SECURITY_OFFICER}),
        "the audit log is examined by auditor and security officer",
    ),
    Rule(
        "everybody-knows-the-policy",
        Effect.PERMIT,
        frozenset({Action.POLICY_READ}),
        EVERYBODY,
        "what keys are for, and who approved it, is shown to every role",
    ),
    Rule(
        "approved-policy-is-applied",
        Effect.PERMIT,
        frozenset({Action.POLICY_APPLY}),
        frozenset({Role.OPERATOR, Role.SECURITY_OFFICER, Role.MAINTAINER}),
        "who may approve may hand in what two people of different roles have approved",
    ),
    Rule(
        "the-clock-is-vouched-for",
        Effect.PERMIT,
        frozenset({Action.CLOCK_CONFIRM}),
        frozenset({Role.SECURITY_OFFICER, Role.MAINTAINER}),
        "that the wall clock is right is said by who answers for the keys or keeps the machine",
    ),
    Rule(
        "auditors-change-nothing",
        Effect.FORBID,
        frozenset(Action) - READS,
        frozenset({Role.AUDITOR}),
        "who audits the node may not act on it, whatever other roles they have",
    ),
)


def decide(roles: Iterable[Role], action: Action, rules: tuple[Rule, ...] = RULES) -> Decision:
    """The decision on an action that somebody with these roles asks for."""
    held = frozenset(roles)
    about = [rule for rule in rules if action in rule.actions and rule.roles & held]
    for effect in (Effect.FORBID, Effect.PERMIT):
        for rule in about:
            if rule.effect is effect:
                return Decision(effect is Effect.PERMIT, rule.name, rule.reason)
    shown = ", ".join(sorted(held)) or "none"
    return Decision(False, DEFAULT_DENY, f"no rule lets the roles {shown} ask for {action}")
