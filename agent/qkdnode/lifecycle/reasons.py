"""Why a key is revoked, by KMIP's Revocation Reason Codes (KMIP 2.1, section 11.49), and which step that means."""

from enum import StrEnum

from qkdnode.lifecycle.states import Stage, Step, after


class Reason(StrEnum):
    """A reason to revoke a key."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    CA_COMPROMISE = "ca-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessation-of-operation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


CODES: dict[Reason, int] = {reason: code for code, reason in enumerate(Reason, 1)}
COMPROMISES = frozenset({Reason.KEY_COMPROMISE, Reason.CA_COMPROMISE})

# What a revoked key becomes, and the step by which the other end follows.
FOLLOWED: dict[Stage, Step] = {
    Stage.DEACTIVATED: Step.DEACTIVATE,
    Stage.COMPROMISED: Step.COMPROMISE,
    Stage.DESTROYED: Step.DESTROY,
}


def revocation(reason: Reason, stage: Stage, far: bool) -> Step | None:
    """The step that revokes a key at a stage; None if it is beyond that already.

    A compromise reaches every key, also one that is destroyed. Other reasons end the use of an active key, and destroy
    one that is not active yet, as nothing is protected by it.
    """
    if reason in COMPROMISES:
        return Step.COMPROMISE if after(stage, far, Step.COMPROMISE) is not None else None
    if after(stage, far, Step.DEACTIVATE) is not None:
        return Step.DEACTIVATE
    destroys = stage in (Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED, Stage.DELIVERED)
    return Step.DESTROY if destroys else None
