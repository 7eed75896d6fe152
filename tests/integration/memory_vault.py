"""A vault in memory that answers what the supply of keys asks, with the rules of the real one."""

import os
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from qkdnode.errors import VaultError
from qkdnode.ids import Association, KeyId
from qkdnode.lifecycle.rotation import Phase
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.decoys import Suspects, WhichDecoys
from qkdnode.vault.endings import Ended, EndedKeys, EndedNoted, HadBefore
from qkdnode.vault.fetches import FetchedKeys, FetchKeys
from qkdnode.vault.requests import ApplicationOutbox, Delivery, KeysDelivered, OpenedKeys, OpenKeys, Request
from qkdnode.vault.rotations import GenerationAcknowledged, RotationState, ShowRotation


class MemoryVault:
    """Keys READY until delivered; a delivered key cannot be opened again."""

    def __init__(self) -> None:
        self.rows: dict[KeyId, Delivery] = {}
        self.material: dict[KeyId, bytes] = {}
        self.delivered: dict[KeyId, str] = {}
        self.opened: dict[KeyId, int] = {}
        self.decoys: set[KeyId] = set()
        self.ended: dict[int, Ended] = {}  # notices of one association
        self.revoked: set[KeyId] = set()
        self.failing: set[type[Request]] = set()
        self.phase, self.current, self.coming = Phase.STEADY, 1, 0  # of every association
        self.accepted: list[int] = []
        self._number = 0
        self._answers: dict[type[Request], Callable[[Any], Any]] = {
            ApplicationOutbox: self._outbox,
            OpenKeys: self._open,
            KeysDelivered: self._deliver,
            FetchKeys: self._fetch,
            EndedKeys: lambda request: tuple(self.ended.values()),
            EndedNoted: lambda request: sum(self.ended.pop(number, None) is not None for number in request.numbers),
            HadBefore: self._had_before,
            WhichDecoys: lambda request: Suspects(tuple(map(_name, self.decoys.intersection(request.key_ids)))),
            ShowRotation: self._rotation,
            GenerationAcknowledged: self._acknowledge,
        }

    def add(self, association: Association, count: int, size_bits: int = 256) -> list[UUID]:
        """Keys become READY for association.local."""
        ids = [uuid4() for _ in range(count)]
        for key_id in ids:
            self._number += 1
            self.rows[key_id] = Delivery(self._number, key_id, association, size_bits)
            self.material[key_id] = os.urandom(size_bits // 8)
        return ids

    def _rotation(self, request: ShowRotation) -> RotationState:
        its = (self.current, max(self.current, self.coming), self.coming, self.phase, Phase.STEADY)
        return RotationState(request.association, *its, "", "", 0, 0, 0, 0, 0, 0, "", 0, 0)

    def _acknowledge(self, request: GenerationAcknowledged) -> RotationState:
        if self.phase is Phase.OFFERED and request.number == self.coming:
            self.accepted.append(request.number)
            self.phase = Phase.ACKNOWLEDGED
        return self._rotation(ShowRotation(association=request.association))

    def ask(self, request: Request) -> Awaitable[Any]:
        """What the supply is given as `ask`."""
        return self._ask(request)

    async def _ask(self, request: Request) -> Any:
        if type(request) in self.failing:
            raise VaultError("the disk is full")
        return self._answers[type(request)](request)

    def _outbox(self, request: ApplicationOutbox) -> tuple[Delivery, ...]:
        found = []
        for row in self.rows.values():
            wanted = (request.association or row.association, request.size_bits or row.size_bits)
            mine = row.association.local == request.application and wanted == (row.association, row.size_bits)
            if mine and row.number > request.after:
                found.append(row)
                if len(found) == request.limit:
                    break
        return tuple(found)

    def _open(self, request: OpenKeys) -> OpenedKeys:
        rows = [row for key_id in request.key_ids if (row := self.rows.get(key_id)) is not None]
        if not rows or any(row.association.local != request.application for row in rows):
            raise VaultError(f"none of {len(request.key_ids)} keys is READY for {request.application}")
        ids = tuple(row.key_id for row in rows)
        for key_id in ids:
            self.opened[key_id] = self.opened.get(key_id, 0) + 1
        material = SecretBuffer.copy_of(b"".join(self.material[key_id] for key_id in ids))
        return OpenedKeys(ids, rows[0].size_bits, material)

    def _fetch(self, request: FetchKeys) -> FetchedKeys:
        wanted = (request.association, request.size_bits)
        rows = [row for key_id in request.key_ids if (row := self.rows.get(key_id)) is not None]
        rows = [row for row in rows if (row.association, row.size_bits) == wanted and request.release]
        refused = tuple(key_id for key_id in request.key_ids if key_id not in {row.key_id for row in rows})
        names = tuple(map(_name, refused))
        suspects = tuple(map(_name, self.decoys.intersection(refused)))
        if not rows:
            return FetchedKeys(None, (), refused, names, suspects)
        opened = self._open(OpenKeys(key_ids=tuple(row.key_id for row in rows), application=request.association.local))
        return FetchedKeys(opened, tuple(rows), refused, names, suspects)

    def revoke(self, *key_ids: KeyId) -> None:
        """Keys are out of use: those that were delivered are told of."""
        for key_id in key_ids:
            self.rows.pop(key_id, None)
            self.revoked.add(key_id)
            if key_id in self.delivered:
                self._end(key_id)

    def _had_before(self, request: HadBefore) -> int:
        found = self.revoked.intersection(request.key_ids) - set(self.delivered)
        for key_id in found:
            self._end(key_id)
        return len(found)

    def _end(self, key_id: KeyId) -> None:
        self._number += 1
        self.ended[self._number] = Ended(self._number, (key_id.bytes,), "compromised", "key-compromise")

    def _deliver(self, request: KeysDelivered) -> int:
        new = 0
        for key_id in request.key_ids:
            row = self.rows.pop(key_id, None)
            if row is not None:
                assert row.association.local == request.application
                self.delivered[key_id] = request.application
                new += 1
        return new


def _name(key_id: KeyId) -> str:
    return f"name of {key_id}"
