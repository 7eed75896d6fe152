"""What only who answers for the keys is told, so that who asks for a decoy does not learn that it was one."""

from qkdnode.access.rules import Action, Role, decide

CONFIDENTIAL_ALARMS = frozenset({"DECOY"})


def may_know(roles: frozenset[Role]) -> bool:
    """Whether somebody with these roles is told of decoys."""
    return decide(roles, Action.DECOYS_READ).allowed
