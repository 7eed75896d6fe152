"""A Batch's name is checked where it is decoded: a message without a tag must not reach the vault with one that no
Batch can have."""

import pytest
from session_pair import NAMES

from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import ALICE, BOB, BatchId, PadAddress, short_digest
from qkdnode.wire import codec
from qkdnode.wire.messages import BatchCommit


@pytest.mark.parametrize("batch", [BatchId(-1, 0), BatchId(0, -1), BatchId(0, 2**32), BatchId(2**63, 0)])
def test_a_commit_for_a_batch_that_cannot_be_named_is_malformed(batch: BatchId) -> None:
    commit = BatchCommit(batch, bytes(16), 512, 0)
    code = codec.kind_of(commit).code
    header = codec.Header(short_digest(NAMES[ALICE]), short_digest(NAMES[BOB]), code, ALICE, 0, 1)
    nowhere = PadAddress(BatchId(0, 0), 0)
    raw = codec.join(header.pack(), codec.encode_body(commit), codec.TagTrailer(nowhere, nowhere, bytes(16)))
    with pytest.raises(RemoteProtocolError, match="malformed BatchCommit"):
        codec.decode(raw)
