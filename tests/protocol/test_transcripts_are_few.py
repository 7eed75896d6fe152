"""Only an authenticated list begins a transcript: what carries no tag cannot make an end hold memory."""

from session_pair import opened_pair

from qkdnode.wire import codec
from qkdnode.wire.messages import BatchAbandoned


def test_untagged_messages_for_batches_that_were_never_listed_begin_no_transcripts() -> None:
    alice, bob = opened_pair()
    for counter in range(2, 200):
        message = BatchAbandoned(1000 + counter, "")
        header = codec.Header(
            alice.session._ours,
            alice.session._theirs,
            codec.kind_of(message).code,
            alice.role,
            counter,
            bob.session.session,
        )
        bob.take(codec.join(header.pack(), codec.encode_body(message)))
    assert len(bob.accepted) == 198
    assert not bob.session._transcripts
