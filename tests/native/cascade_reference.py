"""Cascade written the obvious way: sets of positions, both keys in one place. What the kernel's messages must equal."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import xor

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

MASKS = 32
PERMUTATION, MASK_WORDS, MASK_ORDER = 1, 2, 3

Query = list[tuple[int, int]]  # (Frame, position) of the bits whose parity is asked
Search = Generator[list[Query], list[int], None]


def words(seed: bytes, topic: int, index: int) -> Iterator[int]:
    """The ChaCha20 key stream under nonce (topic, index, 0) as 32-bit words."""
    nonce = bytes(4) + topic.to_bytes(4, "little") + index.to_bytes(4, "little") + bytes(4)
    encryptor = Cipher(ChaCha20(seed, nonce), mode=None).encryptor()
    while True:
        block = encryptor.update(bytes(64))
        for at in range(0, 64, 4):
            yield int.from_bytes(block[at : at + 4], "little")


def below(stream: Iterator[int], bound: int) -> int:
    while True:
        product = next(stream) * bound
        if product % 2**32 >= 2**32 % bound:
            return product >> 32


def shuffled(count: int, stream: Iterator[int]) -> list[int]:
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = below(stream, i + 1)
        order[i], order[j] = order[j], order[i]
    return order


@dataclass
class Frame:
    """What both roles know of one Frame."""

    number: int
    exponents: Sequence[int]
    orders: list[list[int]]
    opened: int = 0
    known: dict[tuple[int, int, int], int] = field(default_factory=dict)  # (pass, low, high): difference of the keys
    errors: set[int] = field(default_factory=set)

    def query(self, p: int, low: int, high: int) -> Query:
        return [(self.number, i) for i in self.orders[p][low:high]]

    def is_odd(self, p: int, low: int, high: int) -> bool:
        return (self.known[p, low, high] + sum(i in self.errors for i in self.orders[p][low:high])) % 2 == 1

    def blocks(self, p: int) -> list[tuple[int, int]]:
        size = 1 << self.exponents[p]
        return [(low, low + size) for low in range(0, len(self.orders[p]), size)]

    def odd_blocks(self) -> tuple[int, list[tuple[int, int]]] | None:
        for p in range(self.opened):
            odd = [block for block in self.blocks(p) if self.is_odd(p, *block)]
            if odd:
                return p, odd
        return None

    def open_pass(self) -> Search:
        p, blocks = self.opened, self.blocks(self.opened)
        asked = blocks if p == 0 else blocks[:-1]
        if asked:
            for block, difference in zip(asked, (yield [self.query(p, *block) for block in asked]), strict=True):
                self.known[p, *block] = difference
        if p > 0:
            self.known[p, *blocks[-1]] = (len(self.errors) + sum(self.known[p, *block] for block in asked)) % 2
        self.opened += 1

    def narrow(self, p: int, low: int, high: int) -> tuple[int, int, int] | None:
        """The left half to ask next inside an odd interval; None after removing the error that was reached."""
        while high - low > 1:
            middle = (low + high) // 2
            if (p, low, middle) not in self.known:
                return low, middle, high
            low, high = (low, middle) if self.is_odd(p, low, middle) else (middle, high)
        assert self.orders[p][low] not in self.errors
        self.errors.add(self.orders[p][low])
        return None

    def settle(self) -> Search:
        while True:
            found = self.odd_blocks()
            if found is None:
                if self.opened == len(self.exponents):
                    return
                yield from self.open_pass()
                continue
            p, odd = found
            pending = [step for block in odd if (step := self.narrow(p, *block))]
            while pending:
                answers = yield [self.query(p, low, middle) for low, middle, _ in pending]
                for (low, middle, _), difference in zip(pending, answers, strict=True):
                    self.known[p, low, middle] = difference
                pending = [step for low, _, high in pending if (step := self.narrow(p, low, high))]


def transcripts(
    keys: tuple[list[list[int]], list[list[int]]], exponents: Sequence[int], seed: bytes
) -> tuple[list[bytes], list[bytes], list[set[int]]]:
    """Messages of both roles, round by round, and the positions found to differ in each Frame."""
    size = len(keys[0][0])
    orders = [list(range(size))]
    orders += [shuffled(size, words(seed, PERMUTATION, p)) for p in range(1, len(exponents))]
    stream = words(seed, MASK_WORDS, 0)
    masks = [next(stream) for _ in range(size)]
    stream = words(seed, MASK_ORDER, 0)
    mask_orders = [shuffled(MASKS, stream) for _ in keys[0]]
    frames = [Frame(number, exponents, orders) for number in range(len(keys[0]))]
    sent: tuple[list[bytes], list[bytes]] = [], []

    def masked(number: int, mask: int, low: int = 0, high: int = size) -> Query:
        return [(number, i) for i in range(low, high) if masks[i] >> mask_orders[number][mask] & 1]

    def exchange(queries: list[Query]) -> list[int]:
        parities = [[reduce(xor, (key[f][i] for f, i in query), 0) for query in queries] for key in keys]
        for messages, bits in zip(sent, parities, strict=True):
            number = sum(bit << i for i, bit in enumerate(bits))
            messages.append(number.to_bytes((len(bits) + 7) // 8, "little"))
        return [a ^ b for a, b in zip(*parities, strict=True)]

    def left(query: Query, difference: int) -> int:
        return (difference + sum(i in frames[f].errors for f, i in query)) % 2

    def run(searches: dict[int, Search]) -> None:
        pending = {f: next(search, None) for f, search in searches.items()}
        while any(pending.values()):
            answers = exchange([query for queries in pending.values() for query in queries or []])
            for f, queries in pending.items():
                if queries:
                    mine, answers = answers[: len(queries)], answers[len(queries) :]
                    try:
                        pending[f] = searches[f].send(mine)
                    except StopIteration:
                        pending[f] = None

    run({frame.number: frame.settle() for frame in frames})
    whole = [[bit for f in range(len(frames)) for bit in masked(f, m)] for m in range(MASKS)]
    differences = exchange(whole)
    while failing := [m for m in range(MASKS) if left(whole[m], differences[m])]:
        mask = failing[0]
        low, high = 0, len(frames)
        while high - low > 1:
            middle = (low + high) // 2
            query = [bit for f in range(low, middle) for bit in masked(f, mask)]
            low, high = (low, middle) if left(query, exchange([query])[0]) else (middle, high)
        frame = frames[low]
        low, high = 0, size
        while high - low > 1:
            middle = (low + high) // 2
            query = masked(frame.number, mask, low, middle)
            low, high = (low, middle) if left(query, exchange([query])[0]) else (middle, high)
        frame.errors.add(low)
        run({frame.number: frame.settle()})
    return *sent, [frame.errors for frame in frames]
