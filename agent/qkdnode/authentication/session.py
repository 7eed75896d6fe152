"""One session between the two ends of a link: greeting, hello, and the sealing and opening of every frame.

Sans-IO. `table` is the whole protocol; the driver runs the effects and feeds what they yield back.
"""

from enum import Enum

import msgspec

from qkdnode.authentication.pool import AuthKeyPool
from qkdnode.authentication.tags import VaultMac, tag_message
from qkdnode.authentication.transcript import Transcript
from qkdnode.errors import AuthenticationError, LocalProtocolError, RemoteProtocolError
from qkdnode.ids import ALICE, BOB, BatchId, PadAddress, other_role, short_digest
from qkdnode.native.secret import SecretBuffer, equal
from qkdnode.wire import codec
from qkdnode.wire.messages import (
    BatchAnswer,
    BatchClaim,
    BatchCommit,
    Greeting,
    Hello,
    Message,
    PadSpan,
    Parameters,
    Protection,
    SiftList,
    Statement,
)

HELLO_PADS = 4  # hash key, two for the vault key, the Hello's own tag
STATED_PENDING = 256  # how many Batches a Hello can state; the others follow in later sessions
STATED_REASON = 256  # characters of a refusal
RENEW_AFTER_MESSAGES = 2**20


class State(Enum):
    """Where the session stands."""

    IDLE = "no greeting sent"
    GREETING = "greeting sent, the peer's answer awaited"
    ADMITTED = "the peer's answer believed and journalled, its grant of pads awaited"
    RESERVING = "pads granted, those of our Hello being reserved"
    HELLO = "our Hello sent, the peer's awaited"
    OPEN = "both Hellos verified"


class Send(msgspec.Struct, frozen=True):
    """Effect: hand these bytes to the channel."""

    raw: bytes


class DrawCounter(msgspec.Struct, frozen=True):
    """Effect: draw the next session counter from the vault, then call `counter_drawn`."""

    asked: Greeting | None = None  # which greeting of the peer it is to answer


class Greet(msgspec.Struct, frozen=True):
    """Effect: have the vault state what it holds, give it to `greeting`, and send what that returns."""

    counter: int
    answer_start: bytes = b""
    answer_to: int = 0
    admitted: bool = False
    refused: str = ""
    granted: tuple[PadSpan, ...] = ()


class Admit(msgspec.Struct, frozen=True):
    """Effect: have the vault compare, journal and grant, then call `admitted` with what it said."""

    greeting: Greeting


class ReservePads(msgspec.Struct, frozen=True):
    """Effect: reserve `count` consecutive pads, then call `pads_reserved`."""

    count: int


class Opened(msgspec.Struct, frozen=True):
    """Effect: the session is open; `peer` is what the other end said."""

    session: int
    peer: Hello


class Reset(msgspec.Struct, frozen=True):
    """Effect: the peer began anew: everything in flight of the old session is dropped."""

    reason: str


class Doubted(msgspec.Struct, frozen=True):
    """Effect: something that anybody may have sent is wrong: a person should know, and nothing else happens."""

    code: str
    reason: str


class Failed(msgspec.Struct, frozen=True):
    """Effect: no session on what the peer has authentically said: an operator must act."""

    code: str
    reason: str


Effect = Send | DrawCounter | Greet | Admit | ReservePads | Opened | Reset | Doubted | Failed
SETTLING = (BatchClaim, BatchCommit, BatchAnswer)


class Session:
    """The authenticated session with one peer.

    Received frames pass `opened` in order: names, direction, session and counter first, then tag or MAC. A repeated or
    reflected frame is refused with RemoteProtocolError and changes nothing; a gap in the counters, likewise, and the
    caller begins anew; a failed tag raises AuthenticationError.
    """

    def __init__(
        self,
        *,
        node: str,
        peer: str,
        role: str,
        link: str,
        pair: bytes,
        start: bytes,
        greeting_key: SecretBuffer,
        parameters: Parameters,
        pool: AuthKeyPool,
        software: str,
    ) -> None:
        self.state = State.IDLE
        self.session = 0
        self.tagged = 0
        self._node, self._peer, self._role, self._link = node, peer, role, link
        self._pair, self._start, self._parameters, self._pool, self._software = pair, start, parameters, pool, software
        with memoryview(greeting_key) as keys:
            self._greeting_macs = {ALICE: VaultMac(keys[:32]), BOB: VaultMac(keys[32:])}
        greeting_key.release()
        self._ours, self._theirs = short_digest(node), short_digest(peer)
        self._unsettled: tuple[BatchId, ...] = ()
        self._offer = 0  # a counter drawn, and not yet one of a session
        self._counter = self._peer_counter = 0
        self._peer_start = b""
        self._send_next = self._receive_next = 0
        self._hash_keys: dict[str, PadAddress] = {}
        self._hash_key_material: dict[str, SecretBuffer] = {}
        self._macs: dict[str, VaultMac] = {}
        self._transcripts: dict[int, Transcript] = {}
        self._finished: set[int] = set()
        self._peer_hello: Hello | None = None

    # --- opening ---------------------------------------------------------------------------------------------------

    def begin(self, unsettled: tuple[BatchId, ...]) -> list[Effect]:
        """Start anew from this end, or again after a loss."""
        self._unsettled = unsettled
        self.end()
        if self._offer:
            self.state = State.GREETING
            return [Greet(self._offer)]
        return [DrawCounter()]

    def counter_drawn(self, effect: DrawCounter, counter: int) -> list[Effect]:
        """The vault's next session counter: greet with it."""
        self._offer = counter
        if self.state is State.IDLE:
            self.state = State.GREETING
        asked = effect.asked
        return [Greet(counter) if asked is None else Greet(counter, asked.start, asked.counter)]

    def greeting(self, effect: Greet, statement: Statement) -> bytes:
        """The frame of a Greeting."""
        greeting = Greeting(
            node=self._node,
            link=self._link,
            pair=self._pair,
            start=self._start,
            counter=effect.counter,
            answer_start=effect.answer_start,
            answer_to=effect.answer_to,
            admitted=effect.admitted,
            refused=effect.refused,
            statement=statement,
            wanted=self._pool.lacks(HELLO_PADS, effect.answer_start),
            granted=effect.granted,
        )
        header = codec.Header(self._ours, self._theirs, codec.kind_of(greeting).code, self._role, 0, 0).pack()
        body = codec.encode_body(greeting)
        return codec.join(header, body, mac=self._greeting_macs[self._role].digest(header, body))

    def greeted(self, frame: codec.Frame, unsettled: tuple[BatchId, ...] = ()) -> list[Effect]:
        """A Greeting of the peer: one that answers this end's own is believed, any other may only be answered."""
        greeting = frame.message
        assert isinstance(greeting, Greeting)
        doubt = self._doubt(frame, greeting)
        if doubt:
            return [Doubted("AUTH_FAILED", doubt)]
        self._unsettled = unsettled
        answers = greeting.answer_to if greeting.answer_start == self._start else 0
        if answers and answers == self._offer:
            return self._refused(greeting) if greeting.refused else [Admit(greeting)]
        if answers and answers == self._counter and self.state is State.ADMITTED:
            return self._granted(greeting)
        if greeting.answer_to or greeting.answer_start:
            raise RemoteProtocolError(f"greeting that answers session counter {greeting.answer_to}, not the next one")
        if greeting.start == self._peer_start and greeting.counter <= self._peer_counter:
            raise RemoteProtocolError(f"greeting with session counter {greeting.counter} again")
        # It may be a recording: what runs goes on until the peer has answered.
        return [Greet(self._offer, greeting.start, greeting.counter)] if self._offer else [DrawCounter(greeting)]

    def admitted(self, greeting: Greeting, granted: tuple[PadSpan, ...], refused: str) -> list[Effect]:
        """The vault has compared what the peer says, and journalled it unless it refused."""
        if greeting.answer_to != self._offer:
            return []
        answer = Greet(self._offer, greeting.start, greeting.counter, not refused, refused[:STATED_REASON], granted)
        running = self.state not in (State.IDLE, State.GREETING)
        self._forget()
        self._offer = 0
        if refused:
            self.state = State.IDLE
            return [answer, Failed("AUTH_FAILED", f"link {self._link!r}: {refused}; provision the pair anew")]
        self._counter, self._peer_counter, self._peer_start = answer.counter, greeting.counter, greeting.start
        alice, bob = (self._counter, self._peer_counter) if self._role == ALICE else (self._peer_counter, self._counter)
        self.session = alice << 32 | bob
        self._pool.admit(greeting.start)
        self._send_next = self._receive_next = 1
        self.state = State.ADMITTED
        effects: list[Effect] = [Reset("the peer began a new session")] if running else []
        return [*effects, answer, *self._granted(greeting)]

    def _granted(self, greeting: Greeting) -> list[Effect]:
        """The peer has admitted this end: the pads of our Hello may be taken."""
        if (greeting.start, greeting.counter) != (self._peer_start, self._peer_counter):
            raise RemoteProtocolError(f"greeting {greeting.counter} after {self._peer_counter} was admitted")
        if greeting.refused:
            return self._refused(greeting)
        if not greeting.admitted:
            return []
        self._pool.allow(greeting.granted)
        self.state = State.RESERVING
        left_over = self._pool.take_run(HELLO_PADS)
        return self.pads_reserved(left_over) if left_over else [ReservePads(HELLO_PADS)]

    def _refused(self, greeting: Greeting) -> list[Effect]:
        """The peer has compared what this end says, and begins no session."""
        self.end()
        self._offer = 0
        reason = f"link {self._link!r}: {self._peer!r} says: {greeting.refused}; provision the pair anew"
        return [Failed("AUTH_FAILED", reason)]

    def _doubt(self, frame: codec.Frame, greeting: Greeting) -> str | None:
        """Why a Greeting is not the peer's, as far as this end can tell."""
        if greeting.node != self._peer or greeting.link != self._link or greeting.counter <= 0:
            raise RemoteProtocolError(
                f"greeting {greeting.counter} from node {greeting.node!r} for link {greeting.link!r}; "
                f"this is link {self._link!r} and its peer is {self._peer!r}"
            )
        if greeting.pair != self._pair:
            return (
                f"link {self._link!r}: {self._peer!r} was provisioned from another pair file than this node; "
                "bring both files of one `provision pair` to both nodes"
            )
        mac = self._greeting_macs[other_role(self._role)].digest(frame.header.pack(), frame.body)
        if frame.mac is None or not equal(mac, frame.mac):
            return f"link {self._link!r}: a Greeting that is not from {self._peer!r} was dropped"
        return None

    def pads_reserved(self, addresses: tuple[PadAddress, ...]) -> list[Effect]:
        """Four consecutive pads of one segment, granted by the vault: say Hello."""
        if self.state is not State.RESERVING:
            return []
        self._set_hash_key(self._role, addresses[0])
        self._set_mac(self._role, addresses[1])
        hello = Hello(self._parameters, addresses[1], self._unsettled[:STATED_PENDING], self._software)
        self.state = State.HELLO
        return [Send(self._tagged(hello, addresses[3])), *self._open_when_both_said_hello()]

    def hello(self, frame: codec.Frame) -> list[Effect]:
        """The peer's Hello, whose tag `opened` has verified."""
        hello = frame.message
        assert isinstance(hello, Hello)
        difference = self._difference(hello.parameters)
        if difference:
            self._forget()
            self.state = State.IDLE
            return [Failed("CONFIG", difference)]
        self._set_mac(other_role(self._role), hello.vault_key)
        self._peer_hello = hello
        return self._open_when_both_said_hello()

    def _open_when_both_said_hello(self) -> list[Effect]:
        if self._peer_hello is None or self.state is not State.HELLO:
            return []
        self.state = State.OPEN
        return [Opened(self.session, self._peer_hello)]

    def _difference(self, theirs: Parameters) -> str | None:
        for field in msgspec.structs.fields(Parameters):
            ours_value, theirs_value = getattr(self._parameters, field.name), getattr(theirs, field.name)
            if ours_value != theirs_value:
                return (
                    f"link {self._link!r}: `{field.name}` is {ours_value!r} here and {theirs_value!r} at "
                    f"{self._peer!r}; make both configurations equal"
                )
        return None

    # --- frames ----------------------------------------------------------------------------------------------------

    def seal(self, message: Message) -> bytes:
        """The frame of an outgoing message, with what protects it. Tagged kinds take a granted pad."""
        kind = codec.kind_of(message)
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"{type(message).__name__} before the session is open")
        if kind.protection in (Protection.TAG, Protection.SETTLING):
            return self._tagged(message, self._pool.take())
        header, body = self._header(kind.code).pack(), codec.encode_body(message)
        if kind.protection is Protection.VAULT:
            return codec.join(header, body, mac=self._macs[self._role].digest(header, body))
        self._transcribe(self._role, message, header, body)
        return codec.join(header, body)

    def addressed(self, frame: codec.Frame) -> None:
        """Check names and direction: a frame for others, or one of ours reflected, is refused."""
        header = frame.header
        if header.role == self._role:
            raise RemoteProtocolError(f"{_name(frame)} of our own direction: a reflection")
        if header.sender != self._theirs or header.receiver != self._ours:
            raise RemoteProtocolError(f"{_name(frame)} between other nodes")

    def opened(self, frame: codec.Frame) -> None:
        """Authenticate a frame of the running session, in order. Greetings and repeated commits take other ways."""
        header = frame.header
        if self.state not in (State.HELLO, State.OPEN, State.RESERVING) or header.session != self.session:
            raise RemoteProtocolError(f"{_name(frame)} of session {header.session:016x}, which is not open")
        if isinstance(frame.message, SETTLING):
            # Journalled before it is sent, so it may overtake or be overtaken: its Batch and state guard its order.
            if self.state is not State.OPEN or header.counter != frame.message.batch.number:
                raise RemoteProtocolError(f"{_name(frame)} with counter {header.counter} out of turn")
            if header.counter in self._finished and isinstance(frame.message, BatchClaim):
                raise RemoteProtocolError(f"{_name(frame)} of Batch {frame.message.batch}, which is over here")
            self._check_tag(frame)
            return
        if header.counter != self._receive_next:
            what = "repeated" if header.counter < self._receive_next else "after a gap"
            raise RemoteProtocolError(
                f"{_name(frame)} {what}: counter {header.counter} instead of {self._receive_next}"
            )
        if isinstance(frame.message, Hello) != (self._peer_hello is None):
            raise RemoteProtocolError(f"{_name(frame)} while the session is {self.state.name}")
        if frame.kind.protection is Protection.VAULT:
            self._check_mac(frame)
        elif frame.trailer is not None:
            self._check_tag(frame)
        self._receive_next += 1
        if frame.kind.protection is not Protection.VAULT and not isinstance(frame.message, Hello):
            self._transcribe(header.role, frame.message, header.pack(), frame.body)

    def is_gap(self, frame: codec.Frame) -> bool:
        """Whether messages before this one were lost, so that the session must begin anew."""
        return frame.header.session == self.session and frame.header.counter > self._receive_next

    def verifies(self, frame: codec.Frame) -> bool:
        """Whether the tag of an answer is right, of whatever session and however often it comes; it moves no mark."""
        assert frame.trailer is not None
        try:
            return equal(self._tag_of(frame, frame.trailer.hash_key), frame.trailer.tag)
        except AuthenticationError:
            return False

    def forget_batch(self, number: int) -> None:
        """Wipe the transcript of a Batch that is settled or dropped."""
        self._finished.add(number)
        transcript = self._transcripts.pop(number, None)
        if transcript is not None:
            transcript.close()

    @property
    def needs_renewal(self) -> bool:
        """Whether the hash key has served its messages: begin a new session."""
        return self.tagged >= RENEW_AFTER_MESSAGES

    def end(self) -> None:
        """Wipe every key of the session; another may begin."""
        self._forget()
        self.state = State.IDLE

    def close(self) -> None:
        """Wipe every key for good."""
        self.end()
        for mac in self._greeting_macs.values():
            mac.close()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _header(self, kind: int) -> codec.Header:
        header = codec.Header(self._ours, self._theirs, kind, self._role, self._send_next, self.session)
        self._send_next += 1
        return header

    def _tagged(self, message: Message, pad: PadAddress) -> bytes:
        kind = codec.kind_of(message)
        if isinstance(message, SETTLING):
            number = message.batch.number
            header = codec.Header(self._ours, self._theirs, kind.code, self._role, number, self.session).pack()
        else:
            header = self._header(kind.code).pack()
        body = codec.encode_body(message)
        hash_key = self._hash_keys[self._role]
        addresses = codec.pack_address(hash_key) + codec.pack_address(pad)
        with memoryview(self._hash_key_material[self._role]) as key, self._pool.material(pad, self._role) as mask:
            tag = tag_message(
                key,
                mask,
                header=header,
                body=body,
                addresses=addresses,
                transcript=self._transcript_for(message, kind.protection),
                tagger=self._role,
            )
        self.tagged += 1
        if kind.protection is Protection.TAG and not isinstance(message, Hello):
            self._transcribe(self._role, message, header, body)
        return codec.join(header, body, codec.TagTrailer(hash_key, pad, tag))

    def _tag_of(self, frame: codec.Frame, hash_key: PadAddress) -> bytes:
        assert frame.trailer is not None
        sender = frame.header.role
        with (
            self._pool.material(hash_key, sender) as key,
            self._pool.material(frame.trailer.pad, sender) as mask,
        ):
            return tag_message(
                key,
                mask,
                header=frame.header.pack(),
                body=frame.body,
                addresses=frame.trailer.addresses(),
                transcript=self._transcript_for(frame.message, frame.kind.protection),
                tagger=sender,
            )

    def _check_tag(self, frame: codec.Frame) -> None:
        trailer, sender = frame.trailer, frame.header.role
        assert trailer is not None
        first = isinstance(frame.message, Hello)
        expected = _hello_addresses(trailer.pad, frame.message) if first else self._hash_keys.get(sender)
        if trailer.hash_key != expected:
            raise AuthenticationError(f"{_name(frame)} under another hash key than this session's")
        if not isinstance(frame.message, SETTLING) and not self._pool.is_fresh(trailer.pad):
            raise AuthenticationError(f"{_name(frame)} under a pad that was seen before or is not held: a replay")
        if not equal(self._tag_of(frame, trailer.hash_key), trailer.tag):
            raise AuthenticationError(f"the tag of {_name(frame)} from {self._peer!r} does not verify")
        self._pool.accept(trailer.pad)
        if first:
            self._set_hash_key(sender, trailer.hash_key)

    def _check_mac(self, frame: codec.Frame) -> None:
        mac = self._macs.get(frame.header.role)
        if mac is None or frame.mac is None or not equal(mac.digest(frame.header.pack(), frame.body), frame.mac):
            raise AuthenticationError(f"the MAC of {_name(frame)} from {self._peer!r} does not verify")

    def _transcript_for(self, message: Message, protection: Protection) -> Transcript | None:
        if protection is not Protection.SETTLING or isinstance(message, BatchAnswer):
            return None
        assert isinstance(message, (BatchClaim, BatchCommit))
        transcript = self._transcripts.get(message.batch.number)
        if transcript is None or message.batch.session != self.session:
            raise AuthenticationError(f"no transcript of Batch {message.batch} is held")
        return transcript

    def _transcribe(self, sender: str, message: Message, header: bytes, body: bytes) -> None:
        number: int = message.batch  # type: ignore[attr-defined]
        transcript = self._transcripts.get(number)
        if transcript is None:
            # A Batch begins with a list, which is tagged: nothing else makes an end hold memory for it.
            if number in self._finished or not isinstance(message, SiftList):
                return
            with (
                memoryview(self._hash_key_material[self._role]) as ours,
                memoryview(self._hash_key_material[other_role(self._role)]) as theirs,
            ):
                transcript = Transcript({self._role: ours, other_role(self._role): theirs})
            self._transcripts[number] = transcript
        transcript.add(sender, header, body)

    def _set_hash_key(self, sender: str, address: PadAddress) -> None:
        with self._pool.material(address, sender) as view:
            material = SecretBuffer.copy_of(view)
        if sender in self._hash_key_material:
            self._hash_key_material[sender].release()
        self._hash_key_material[sender] = material
        self._hash_keys[sender] = address

    def _set_mac(self, sender: str, address: PadAddress) -> None:
        with self._pool.material(address, sender, 2) as view:
            self._macs[sender] = VaultMac(view)

    def _forget(self) -> None:
        for number in list(self._transcripts):
            self.forget_batch(number)
        for mac in self._macs.values():
            mac.close()
        for material in self._hash_key_material.values():
            material.release()
        self._macs.clear()
        self._hash_key_material.clear()
        self._hash_keys.clear()
        self._finished.clear()
        self._peer_hello = None
        self._counter = self._peer_counter = self.session = self.tagged = 0
        self._peer_start = b""


def _hello_addresses(pad: PadAddress, message: Message) -> PadAddress | None:
    """The hash key that a Hello's own pad implies: the four pads of a Hello are consecutive."""
    first = PadAddress(pad.segment, pad.index - HELLO_PADS + 1)
    vault_key = PadAddress(pad.segment, first.index + 1)
    return first if isinstance(message, Hello) and message.vault_key == vault_key else None


def _name(frame: codec.Frame) -> str:
    return type(frame.message).__name__
