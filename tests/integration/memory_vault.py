"""A vault in memory that answers what the supply of keys asks, with the rules of the real one."""

import os
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from qkdnode.errors import VaultError
from qkdnode.ids import Association, KeyId
from qkdnode.lifecycle.rotation import Phase
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.requests import ApplicationOutbox, Delivery, KeysDelivered, OpenedKeys, OpenKeys, Request
from qkdnode.vault.rotations import GenerationAcknowledged, RotationState, ShowRotation


class MemoryVault:
    """Keys READY until delivered; a delivered key cannot be opened again."""

    def __init__(self) -> None:
        self.rows: dict[KeyId, Delivery] = {}
        self.material: dict[KeyId, bytes] = {}
        self.delivered: dict[KeyId, str] = {}
        self.opened: dict[KeyId, int] = {}
        self.failing: set[type[Request]] = set()
        self.phase, self.current, self.coming = Phase.STEADY, 1, 0  # of every association
        self.accepted: list[int] = []
        self._number = 0
        self._answers: dict[type[Request], Callable[[Any], Any]] = {
            ApplicationOutbox: self._outbox,
            OpenKeys: self._open,
            KeysDelivered: self._deliver,
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

    def _deliver(self, request: KeysDelivered) -> int:
        new = 0
        for key_id in request.key_ids:
            row = self.rows.pop(key_id, None)
            if row is not None:
                assert row.association.local == request.application
                self.delivered[key_id] = request.application
                new += 1
        return new
