"""Typed names: what identifies a node, a link, an application, a Batch, a pad and a key."""

import hashlib
import json
from typing import Annotated, NewType
from uuid import UUID

import msgspec

NodeName = NewType("NodeName", str)
LinkName = NewType("LinkName", str)
ApplicationName = NewType("ApplicationName", str)
KeyId = UUID

# Which end of a link: the transmitter's agent is Alice, the receiver's is Bob.
ALICE = "alice"
BOB = "bob"
ROLES = (ALICE, BOB)

# The topic of leaves that only who answers for the keys may have: no family and no `*` covers it.
CONFIDENTIAL = "decoys"


def other_role(role: str) -> str:
    """The role at the far end of the link."""
    return BOB if role == ALICE else ALICE


class BatchId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A Batch of one link: the session (both ends' counters) and the number in it; (0, 0) is the provisioned key."""

    session: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    number: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]

    def __str__(self) -> str:
        return f"{self.session:016x}-{self.number:08x}"


PROVISIONED = BatchId(0, 0)
GREETING_KEY = BatchId(0, 1)  # the part of the provisioned key that no tag takes: it authenticates Greetings


class PadAddress(msgspec.Struct, frozen=True, array_like=True, order=True):
    """128 bits of authentication key in the sender's half: the segment (one Batch's refill) and the index in it."""

    segment: BatchId
    index: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Association(msgspec.Struct, frozen=True):
    """The pair of applications that a key is for, as this node sees it, and where the key comes from."""

    local: str
    remote: str
    source: str

    def mirrored(self) -> "Association":
        """The same association as the node at the other end sees it."""
        return Association(self.remote, self.local, self.source)

    def __str__(self) -> str:
        return f"{self.local}<->{self.remote} over {self.source}"


def short_digest(name: str) -> bytes:
    """8 bytes that stand for a node's name in a message header."""
    return hashlib.sha256(b"qkdnode name\0" + name.encode()).digest()[:8]


def binding_digest(
    *,
    nodes: tuple[str, str],
    applications: tuple[str, str],
    source: str,
    services: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
    purpose: str,
) -> bytes:
    """32 bytes that bind a key to nodes, applications, their services, source and purpose; equal at both ends.

    `applications[i]` is served by `nodes[i]` and known as `services[i]`: names of certificates (SAN), SPIFFE ids. The
    ends are put in the order of the node names, and services in theirs.
    """
    ends = sorted(zip(nodes, applications, map(sorted, services), strict=True))
    canonical = {"ends": ends, "source": source, "purpose": purpose}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"qkdnode binding/2\0" + text.encode()).digest()
