"""The policy in force, as the node needs it beside the vault: for subscriptions, and to have a new one applied."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from qkdnode.access.approvals import Person
from qkdnode.control.conversation import Operator
from qkdnode.errors import VaultError
from qkdnode.ids import Association
from qkdnode.lifecycle.algorithms import usable_by_applications
from qkdnode.lifecycle.policy.builtin import VERSION
from qkdnode.lifecycle.policy.decision import choose
from qkdnode.vault.requests import ApplyPolicy, CurrentPolicy, InForce, PolicyVersion
from qkdnode.watch.alarms import AlarmCode
from qkdnode.wire.control import PolicyApply

ALGORITHMS = usable_by_applications()  # what a class may allow


def people_of(operators: Iterable[Operator]) -> tuple[Person, ...]:
    """Who may approve, as the checks of approvals know them."""
    return tuple(Person(its.name, its.identity.ed25519, tuple(sorted(its.roles))) for its in operators)


class NodePolicy:
    """What the vault says is in force. The vault decides by itself on every key; this is for who is not there yet.

    `now_ns` is trusted time.
    """

    def __init__(
        self,
        *,
        ask: Callable[[Any], Awaitable[Any]],
        alarm: Callable[[str, str, str], None],
        now_ns: Callable[[], int],
        log: Any,
    ) -> None:
        self._ask, self._alarm, self._now_ns, self._log = ask, alarm, now_ns, log
        self._in_force: InForce | None = None

    async def read(self) -> None:
        """At the start. A chain that is damaged keeps the node from giving keys, not from showing why."""
        try:
            in_force: InForce = await self._ask(CurrentPolicy())
        except VaultError as error:
            self._alarm(AlarmCode.VAULT_DAMAGED, "policy", str(error))
        else:
            self._in_force = in_force
            self._log.info("policy in force", version=in_force.number)

    def refusal(self, association: Association, size_bits: int) -> str | None:
        """Why an application may not subscribe to keys of a configured association; None if it may.

        Version 0 says what the configuration says.
        """
        if self._in_force is None:
            return "the policy in the vault is damaged: no key is given"
        if self._in_force.number == VERSION:
            return None
        decision = choose(
            self._in_force.document,
            application=association.local,
            remote=association.remote,
            link=association.source,
            size_bits=size_bits,
            now_ns=self._now_ns(),
        )
        return None if decision.allowed else f"{decision.reason} [rule {decision.rule}]"

    @property
    def has_classes_that_do_not_wait(self) -> bool:
        """Whether keys of any class are released while the neighbour cannot be reached; the vault knows of which."""
        return self._in_force is not None and any(
            its.release_when_peer_unreachable for its in self._in_force.document.classes
        )

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of keys in force, with the algorithms that each is for; none: any."""
        if self._in_force is None:
            return {}
        return {its.name: its.algorithms or () for its in self._in_force.document.classes}

    async def apply(self, request: PolicyApply, operators: Iterable[Operator], by: str) -> PolicyVersion:
        """Have a document applied that people have approved; in force when this returns."""
        version: PolicyVersion = await self._ask(
            ApplyPolicy(
                document=request.document,
                repeats=request.repeats,
                approvals=request.approvals,
                people=people_of(operators),
                algorithms=ALGORITHMS,
                by=by,
            )
        )
        self._in_force = version.policy
        self._log.info("policy applied", version=version.policy.number, by=by)
        return version
