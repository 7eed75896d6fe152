"""The newest leaf about a row tells its state: so no other leaf may be about it."""

from typing import Any

import msgspec
import pytest
from vaults import LINK, Pair

from qkdnode.audit.events import AlarmEvent
from qkdnode.errors import LocalProtocolError
from qkdnode.ids import BatchId
from qkdnode.vault import core
from qkdnode.vault.records import RECORDS, RESERVED_SUBJECTS, ROW_SUBJECTS, Record, pack_batch
from qkdnode.vault.requests import Request, StateLink
from qkdnode.vault.store import Store

EXAMPLES: dict[Any, Any] = {int: 1, str: "x", bytes: pack_batch(BatchId(1, 1))}


def example(record: type[Record]) -> Record:
    values = [EXAMPLES.get(field.type, EXAMPLES[int]) for field in msgspec.structs.fields(record)]
    return record(*values)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_names_of_rows_are_reserved(record: type[Record]) -> None:
    subject = example(record).subject(lambda name: "pseudonym")
    assert subject is None or subject.startswith(ROW_SUBJECTS)
    assert set(ROW_SUBJECTS) < set(RESERVED_SUBJECTS)


class SaysTheLinkHasAnAlarm(Request, frozen=True):
    """A request as one that somebody adds."""


def test_a_leaf_that_takes_the_name_of_a_row_is_refused_and_the_row_stays(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(store: Store, request: Any) -> int:
        return store.journal.record(AlarmEvent, "vault", "something.odd", f"link/{LINK}", {})

    monkeypatch.setitem(core.HANDLERS, SaysTheLinkHasAnAlarm, handler)
    with pytest.raises(LocalProtocolError, match="which is a row of the vault"):
        pair.alice.call(SaysTheLinkHasAnAlarm())
    assert pair.alice.call(StateLink(link=LINK)) is not None
