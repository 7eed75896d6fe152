"""What a neighbour tells of its holdings: hashes of buckets, and pages that are judged against a real vault."""

import tempfile
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from approving import policy
from key_life import BATCH, LINK, End, View, allocation

from fuzz.engine import Violation
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import BOB
from qkdnode.lifecycle.holdings import pack_entries, pack_stretch, path_of, unpack_entries, unpack_stretch
from qkdnode.lifecycle.states import Stage
from qkdnode.vault import requests as ask
from qkdnode.vault.doubts import CompareHeld
from qkdnode.vault.holdings import HeldIn
from qkdnode.wire.messages import Holdings, Stretch, StretchHeld

BUCKET, PAGE = range(2)  # what the body behind the first byte is
STRETCH = Stretch(BATCH, "alice", 0)
_KINDS: dict[int, type[Any]] = {BUCKET: Holdings, PAGE: StretchHeld}
_encode = msgspec.msgpack.encode

DOCUMENT = policy("", name="qkd", purpose="session")
_kept: list[tempfile.TemporaryDirectory[str]] = []  # it goes with this process


@cache
def bob() -> tuple[End, View]:
    """A vault with one key that is ready, put back before each input."""
    place = tempfile.TemporaryDirectory(prefix="qkdnode-fuzz-")
    _kept.append(place)
    directory = Path(place.name)
    (directory / "credential").write_bytes(bytes(range(32)))
    end = End(BOB, directory, DOCUMENT)
    if end._call(ask.AcceptAllocation(link=LINK, allocate=allocation(DOCUMENT))) != "accepted":
        raise Violation("the vault of this target takes no key")
    return end, end._look()


def held() -> StretchHeld:
    """What the vault holds itself."""
    end, view = bob()
    end._put_back(view)
    page: StretchHeld = end._call(HeldIn(link=LINK, stretch=STRETCH, from_bits=0))
    return page


def holdings_seeds() -> list[bytes]:
    """Its own page, one of a neighbour without the key, one of another stage, and a bucket."""
    page, name = held(), pack_stretch(STRETCH)
    ended = [msgspec.structs.replace(row, states=b"z", far=b"\1") for row in page.bundles]
    pages = [page, msgspec.structs.replace(page, bundles=()), msgspec.structs.replace(page, bundles=tuple(ended))]
    bucket = Holdings(1, path_of(STRETCH), bytes(32), b"", pack_entries([(name, b"h" * 32)]), False)
    return [bytes([PAGE]) + _encode(one) for one in pages] + [bytes([BUCKET]) + _encode(bucket)]


def take_holdings(data: bytes) -> Iterable[Hashable]:
    """A bucket is what it was when it is written again; no page gives a key out, or destroys it at first sight."""
    kind = data[0] % 2 if data else BUCKET
    try:
        message = msgspec.msgpack.decode(data[1:], type=_KINDS[kind])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(str(error)) from None
    if isinstance(message, Holdings):
        entries = unpack_entries(message.stretches, message.path)
        if pack_entries(entries) != message.stretches:
            raise Violation("a bucket is another one once it is written")
        for name, _ in entries:
            if pack_stretch(unpack_stretch(name)) != name:
                raise Violation("a stretch has another name once it is written")
        return ("bucket", len(entries))
    end, view = bob()
    end._put_back(view)
    compared = end._call(CompareHeld(link=LINK, held=message, since=2**62))
    then = end._look()
    if then.stage not in (Stage.READY, Stage.QUARANTINED) or not then.sealed or then.stock != view.stock:
        raise Violation(f"a key that was ready is {then.stage} at first sight, or stock is gone")
    if then.stage is Stage.QUARANTINED and (then.offered or then.opens):
        raise Violation("a key in doubt is given out")
    return ("page", then.stage, tuple(sorted(compared.found)), tuple(sorted(compared.repaired)))
