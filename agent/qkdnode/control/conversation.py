"""The agent's end of one control connection: sans-IO, frames' bodies come in, proven requests or refusals go out."""

from collections.abc import Iterable, Iterator

import msgspec

from qkdnode.access.identities import OperatorIdentity
from qkdnode.access.rules import Role
from qkdnode.channel.operator import operator_signed
from qkdnode.errors import AuthenticationError, ConfigError, RemoteProtocolError
from qkdnode.wire.control import VERSION, AnyRequest, Challenge, decode_request, decode_signed, signing_input


class Operator(msgspec.Struct, frozen=True):
    """Somebody who may ask, and in which roles."""

    identity: OperatorIdentity
    roles: frozenset[Role]

    @property
    def name(self) -> str:
        """The name that the identity proves."""
        return self.identity.name


class Operators:
    """Who is known at this node. Neither a name nor a key stands for two."""

    def __init__(self, known: Iterable[Operator] = ()) -> None:
        self._by_name: dict[str, Operator] = {}
        self.replace(known)

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Operator]:
        return iter(self._by_name.values())

    def named(self, name: str) -> Operator | None:
        """The operator of that name."""
        return self._by_name.get(name)

    def replace(self, known: Iterable[Operator]) -> None:
        """Know these and no others, from the next request on. ConfigError if two share a name or a key."""
        by_name: dict[str, Operator] = {}
        by_key: dict[str, Operator] = {}
        for operator in known:
            other = by_name.get(operator.name) or by_key.get(operator.identity.ed25519)
            if other is not None:
                raise ConfigError(
                    f"operators {operator.name} and {other.name} share a name or a key: provision one of them anew"
                )
            by_name[operator.name] = by_key[operator.identity.ed25519] = operator
        self._by_name = by_name


class Asked(msgspec.Struct, frozen=True):
    """A request that its operator has signed for this connection, once."""

    counter: int
    operator: Operator
    request: AnyRequest


class Unknown(msgspec.Struct, frozen=True):
    """A signed request that this agent does not know, or cannot read."""

    counter: int
    operator: Operator
    reason: str


class Conversation:
    """Proves every frame of one connection: who signed it, for this connection, in its turn."""

    def __init__(self, challenge: Challenge, uid: int, operators: Operators) -> None:
        self.challenge = challenge
        self._uid, self._operators = uid, operators
        self._counter = 0

    def receive(self, body: bytes) -> Asked | Unknown:
        """What a frame asks. After an error the connection is to be closed: nothing that follows can be trusted.

        RemoteProtocolError: the frame is malformed or of another version. AuthenticationError: it is not proven.
        """
        signed = decode_signed(body)
        if signed.version != VERSION:
            raise RemoteProtocolError(f"control protocol version {signed.version}; this agent speaks {VERSION}")
        if signed.counter != self._counter + 1:
            raise AuthenticationError(
                f"request number {signed.counter} where {self._counter + 1} must be: repeated, or another was lost"
            )
        operator = self._operators.named(signed.operator)
        if operator is None:
            raise AuthenticationError(f"no operator {signed.operator!r} is configured at {self.challenge.node}")
        message = signing_input(self.challenge, signed.operator, self._uid, signed.counter, signed.request)
        if not operator_signed(operator.identity, signed.signature, message):
            raise AuthenticationError(
                f"the signature is not that of operator {signed.operator!r} for this connection: wrong identity "
                "file, or a request that was made for another connection"
            )
        self._counter = signed.counter
        try:
            return Asked(signed.counter, operator, decode_request(signed.request))
        except RemoteProtocolError as error:
            return Unknown(signed.counter, operator, str(error))
