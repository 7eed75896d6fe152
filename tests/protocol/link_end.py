"""A link's driver over a session that is open, with the little of a vault, a channel and a log that it then needs."""

from typing import Any

import structlog
from session_pair import NAMES, PARAMETERS, SessionEnd
from signing import PUBLIC

from qkdnode.distill.settings import Settings
from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.link.driver import Authentication, Link, Surroundings
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.wire.messages import Hello, Mark


class LinkEnd:
    """A Link that has taken over an opened SessionEnd; what it sends, alarms and journals is kept."""

    def __init__(self, end: SessionEnd, peer_pending: tuple[BatchId, ...] = ()) -> None:
        self.end = end
        self.sent: list[bytes] = []
        self.alarms: list[str] = []
        self.cleared: list[str] = []
        self.seen: list[Mark] = []
        self.answers: dict[BatchId, bytes] = {}
        self.link = Link(
            name="a-b",
            node=NAMES[end.role],
            peer=NAMES[BOB if end.role == ALICE else ALICE],
            role=end.role,
            settings=Settings(agreed=PARAMETERS),
            authentication=Authentication(0, 0),
            devices=(),
            channel=self,
            lanes=None,  # type: ignore[arg-type]
            around=Surroundings(
                ask=self.ask,
                draw=SecretBuffer,
                alarm=lambda code, subject, detail: self.alarms.append(code),
                clear=lambda code, subject: self.cleared.append(code),
                record=lambda kind, subject, details: None,
                notify_supply=lambda application: None,
                monotonic_ns=lambda: 0,
                log=structlog.get_logger().bind(),
            ),
            software="test",
            peer_log_key=PUBLIC,
        )
        self.link.pool, self.link.session = end.pool, end.session
        end.pool.grant(end.reserve(16))
        self.peer_pending = peer_pending

    def open(self) -> None:
        """Make the machine (call in the loop)."""
        hello = self.end.session._peer_hello
        assert isinstance(hello, Hello)
        said = Hello(hello.parameters, hello.vault_key, self.peer_pending, hello.software)
        self.link._opened(self.end.session.session, said)

    connected = True

    async def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    async def receive(self) -> bytes:
        raise AssertionError("tests hand frames over themselves")

    async def ask(self, request: Any) -> Any:
        match request:
            case ask.FindAnswer(batch=batch):
                return self.answers.get(batch)
            case ask.StoreAbandoned(batch=batch, answer=answer):
                self.answers[batch] = answer
            case ask.StoreReady(record=record, key=key, answer=answer):
                key.release()
                self.answers[record.batch] = answer
                return ask.SettledBatch(None)
            case ask.NoteSeen(marks=marks):
                self.seen.extend(marks)
            case ask.PadsLeft():
                return 1000
        return None
