"""Which public keys may connect: all others are refused."""

from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from qkdnode.access.identities import PublicIdentity
from qkdnode.errors import ConfigError

Known = TypeVar("Known", bound=PublicIdentity)


class Decision(msgspec.Struct, Generic[Known], frozen=True):
    """Whether a key may connect, as whom, and why."""

    identity: Known | None
    reason: str

    @property
    def allowed(self) -> bool:
        """Whether the key belongs to somebody."""
        return self.identity is not None


class AllowList(Generic[Known]):
    """CURVE keys and whose they are. Default deny; neither a key nor a name stands for two identities."""

    def __init__(self, identities: Iterable[Known] = ()) -> None:
        self._by_key: dict[str, Known] = {}
        self._by_name: dict[str, Known] = {}
        for identity in identities:
            for taken, entry in ((self._by_key, identity.curve), (self._by_name, identity.name)):
                if entry in taken:
                    raise ConfigError(
                        f"{identity.name} and {taken[entry].name} share a name or a CURVE key: "
                        "provision one of them again under a name of its own"
                    )
            self._by_key[identity.curve] = identity
            self._by_name[identity.name] = identity

    def __len__(self) -> int:
        return len(self._by_key)

    def decide(self, curve: str) -> Decision[Known]:
        """The decision on a CURVE public key in Z85."""
        identity = self._by_key.get(curve)
        if identity is None:
            return Decision(None, f"the CURVE key {curve} is not on the list of {len(self)} allowed keys")
        return Decision(identity, f"the key of {identity.name}")

    def named(self, name: str) -> Known | None:
        """The identity of that name."""
        return self._by_name.get(name)
