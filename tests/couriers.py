"""What offline rotations need of two real vaults: files written, approved and imported, keys compared."""

from collections.abc import Sequence
from typing import Any

from approving import HOUR_NS, KEYS, PEOPLE

from qkdnode.access.approvals import approve, encode_approval
from qkdnode.lifecycle.rotation import Phase
from qkdnode.vault.couriers import ExportBundle, Exported, ImportBundle, Imported, guarded_request
from qkdnode.vault.rotations import GenerationAcknowledged, ShowRotation


def written(end: Any, **changes: Any) -> Exported:
    """A file of an end."""
    exported: Exported = end.call(ExportBundle(**{"association": end.association, "by": "olga", "keys": 3, **changes}))
    return exported


def signed(end: Any, file: bytes, by: Sequence[str] = tuple(KEYS)) -> tuple[bytes, ...]:
    """What people sign for a file."""
    request = guarded_request(file)
    return tuple(encode_approval(approve(request, name, end.now_ns + HOUR_NS, KEYS[name].sign)) for name in by)


def imported(end: Any, file: bytes, approvals: Sequence[bytes] | None = None, **changes: Any) -> Imported:
    """A file at an end, as both approve."""
    files = signed(end, file) if approvals is None else tuple(approvals)
    asked = {"file": file, "approvals": files, "people": PEOPLE, "by": "olga", **changes}
    done: Imported = end.call(ImportBundle(**asked))
    return done


def accept_offered(end: Any) -> None:
    """The application here is ready as soon as it is asked."""
    state = end.call(ShowRotation(association=end.association))
    if state.phase is Phase.OFFERED:
        end.call(GenerationAcknowledged(association=end.association, number=state.number))
