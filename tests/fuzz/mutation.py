"""Mutations of inputs: of bytes, and of what a format means, so that a mutation gets behind the first check.

A mutator takes the run's random numbers and an input and gives another input. It never fails: what it cannot take apart
it mutates as bytes.
"""

import json
import random
import re
import struct
import tomllib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

Mutator = Callable[[random.Random, bytes], bytes]

BOUNDS = tuple(
    sorted(
        {
            sign * (1 << bits) + step
            for bits in (0, 7, 8, 15, 16, 31, 32, 53, 63, 64)
            for sign in (1, -1)
            for step in (-1, 0, 1)
        }
    )
)
LENGTHS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 300, 1025, 5000)
DEPTHS = (50, 1500, 3000)
TEXTS = (
    "",
    "\0",
    "\n",
    "a\n",
    "a\n\n",
    " ",
    "..",
    "node-a",
    "\u00e9",
    "\u2014",
    "\ufeff",
    "'\"\\",
    "e\u0301",
    "\U0001f511",
    "%s{}",
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))


# --- bytes  ---


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def set_byte(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x20, rng.randrange(256)))]) + data[at + 1 :]


def set_integer(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return set_byte(rng, data)
    at = rng.randrange(len(data) - size + 1)
    order = rng.choice(("little", "big"))
    value = (
        rng.choice(BOUNDS)
        if rng.random() < 0.5
        else int.from_bytes(data[at : at + size], order) + rng.choice((-2, -1, 1, 2))
    )
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + 1 + int(rng.expovariate(1 / 8)))


def delete(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 8, 40)) + data[end:]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 1, 2, 4, 16))) + data[at:]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def append_line_end(rng: random.Random, data: bytes) -> bytes:
    at = rng.choice((len(data), rng.randrange(len(data) + 1)))
    return data[:at] + rng.choice((b"\n", b"\r\n", b"\0", b" ", b"\xc2\x85", b"\xff")) + data[at:]


_BYTE_LEVEL: tuple[Mutator, ...] = (flip_bit, set_byte, set_integer, delete, repeat, insert, cut, append_line_end)


def as_bytes(rng: random.Random, data: bytes) -> bytes:
    """One or a few changes that know nothing of the format."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_BYTE_LEVEL)(rng, data) if data else rng.randbytes(rng.choice((1, 8)))
    return data


# --- values of MessagePack, JSON and TOML  ---


def other_value(rng: random.Random, value: Any) -> Any:
    """A value to stand where `value` stood: its kind at a bound, another kind, or another size."""
    if rng.random() < 0.2:
        return rng.choice((None, True, 0, -1, 1.5, "", "text", b"", b"\0" * 16, [], {}, [[]], rng.choice(BOUNDS)))
    match value:
        case bool():
            return not value
        case int():
            if rng.random() < 0.5:
                return rng.choice((value + 1, value + 1, max(0, value - 1), value * 2, -value))
            return rng.choice((*BOUNDS, float(value) if abs(value) < 2**60 else 0))
        case float():
            return rng.choice((*FLOATS, value * 2, -value, int(value) if abs(value) < 1e15 else 0))
        case str():
            return rng.choice(
                (*TEXTS, value + rng.choice(TEXTS), value[1:], value.upper(), value * 40, "a" * rng.choice(LENGTHS))
            )
        case bytes():
            sized = rng.randbytes(rng.choice((*LENGTHS, len(value) + 1, max(0, len(value) - 1))))
            return rng.choice((as_bytes(rng, value), sized, value + b"\0", bytes(len(value))))
        case list():
            return _other_list(rng, value)
        case dict():
            return _other_map(rng, value)
    return rng.choice((0, "", b"", False))


def _other_list(rng: random.Random, value: list[Any]) -> list[Any]:
    some = rng.choice(value) if value else 0
    return rng.choice((value[:-1], value[1:], [*value, some], value[::-1], [some] * rng.choice(LENGTHS[:12]), []))


def _other_map(rng: random.Random, value: dict[Any, Any]) -> dict[Any, Any]:
    items = list(value.items())
    if not items:
        return {"x": 0}
    at = rng.randrange(len(items))
    name = rng.choice(
        ("x", "", items[at][0] if not isinstance(items[at][0], str) else items[at][0] + "\n", "kind", "type")
    )
    return rng.choice(
        (
            dict(items[:at] + items[at + 1 :]),
            {**value, name: items[at][1]},
            dict(items[::-1]),
            {name: 0} | value,
            {nested_name(rng): nested(rng, rng.choice(DEPTHS))} | value,
        )
    )


def nested_name(rng: random.Random) -> str:
    return rng.choice(("a", "x", "details", "kind"))


class Nested(msgspec.Struct, frozen=True):
    """Arrays in arrays, written out by the encoders below: Python's own would not go so deep."""

    depth: int


def nested(rng: random.Random, depth: int) -> Any:
    return Nested(depth)


def mutated_tree(rng: random.Random, tree: Any) -> Any:
    """The tree with one of its nodes changed."""
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        return [*tree[:at], mutated_tree(rng, tree[at]), *tree[at + 1 :]]
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        name = rng.choice(list(tree))
        return {**tree, name: mutated_tree(rng, tree[name])}
    return Nested(rng.choice(DEPTHS)) if rng.random() < 0.02 else other_value(rng, tree)


# --- MessagePack  ---


def pack(value: Any, rng: random.Random | None = None) -> bytes:
    """MessagePack; with random numbers, now and then a longer form than the shortest, or a length that lies."""
    odd = rng is not None and rng.random() < 0.03
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return _pack_int(value, odd)
        case float():
            return struct.pack(">Bf", 0xCA, value) if odd and abs(value) < 1e38 else struct.pack(">Bd", 0xCB, value)
        case str():
            return _pack_sized(value.encode("utf-8", "surrogatepass"), (0xA0, 32, 0xD9, 0xDA, 0xDB), odd, rng)
        case bytes():
            return _pack_sized(value, (None, 0, 0xC4, 0xC5, 0xC6), odd, rng)
        case Nested(depth=depth):
            return b"\x91" * depth + b"\x00"
        case list() | tuple():
            return _head(len(value), (0x90, 16, None, 0xDC, 0xDD), odd, rng) + b"".join(
                pack(part, rng) for part in value
            )
        case dict():
            parts = b"".join(pack(name, rng) + pack(part, rng) for name, part in value.items())
            return _head(len(value), (0x80, 16, None, 0xDE, 0xDF), odd, rng) + parts
    return b"\xc0"


_INTEGERS = (
    (0xCC, ">BB", 0, 2**8),
    (0xCD, ">BH", 0, 2**16),
    (0xCE, ">BI", 0, 2**32),
    (0xCF, ">BQ", 0, 2**64),
    (0xD0, ">Bb", -(2**7), 0),
    (0xD1, ">Bh", -(2**15), 0),
    (0xD2, ">Bi", -(2**31), 0),
    (0xD3, ">Bq", -(2**63), 0),
)


def _pack_int(value: int, odd: bool) -> bytes:
    if not odd and -32 <= value < 128:
        return struct.pack(">b" if value < 0 else ">B", value)
    fitting = [(code, form) for code, form, low, high in _INTEGERS if low <= value < high]
    if not fitting:
        return b"\xcf" + b"\xff" * 8
    code, form = fitting[-1 if odd else 0]
    return struct.pack(form, code, value)


def _head(
    count: int, forms: tuple[int | None, int, int | None, int, int], odd: bool, rng: random.Random | None
) -> bytes:
    fix, below, one, two, four = forms
    if odd and rng is not None and rng.random() < 0.5:
        count = rng.choice((count + 1, max(0, count - 1), 2**16 - 1, 2**31, 2**32 - 1))
        odd = False
    if not odd and fix is not None and count < below:
        return bytes([fix | count])
    if not odd and one is not None and count < 256:
        return struct.pack(">BB", one, count)
    if not odd and count < 65536:
        return struct.pack(">BH", two, count)
    return struct.pack(">BI", four, count)


def _pack_sized(
    data: bytes, forms: tuple[int | None, int, int | None, int, int], odd: bool, rng: random.Random | None
) -> bytes:
    return _head(len(data), forms, odd, rng) + data


def as_msgpack(rng: random.Random, data: bytes) -> bytes:
    """A field, a type, a length or the spelling of a MessagePack value."""
    try:
        tree = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return as_bytes(rng, data)
    try:
        return pack(mutated_tree(rng, tree) if rng.random() < 0.9 else tree, rng)
    except RecursionError:  # a tree that is already deep
        return as_bytes(rng, data)


# --- JSON  ---


def dump(rng: random.Random, value: Any) -> str:
    """JSON, now and then in another spelling of the same, or of what Python's encoder would not write."""
    odd = rng.random() < 0.02
    match value:
        case Nested(depth=depth):
            return rng.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth))
        case dict():
            parts = [f"{dump(rng, str(name))}:{dump(rng, part)}" for name, part in value.items()]
            if odd and parts:
                parts.append(rng.choice(parts))
            return "{" + (", " if odd else ",").join(parts) + "}"
        case list():
            return "[" + (" ,\t" if odd else ",").join(dump(rng, part) for part in value) + "]"
        case str():
            if odd:
                return rng.choice(
                    ('"\\ud800"', '"\\u0000"', '"' + "".join(f"\\u{ord(c) & 0xFFFF:04x}" for c in value) + '"')
                )
            return json.dumps(value, ensure_ascii=rng.random() < 0.05)
        case bool() | None:
            return json.dumps(value)
        case int() if odd:
            return rng.choice(
                ("1" * 25, "1" * 5000, f"{value}.0", f"{value}e0", f"0{value}", f"+{value}", "-0", "1e400")
            )
        case bytes():
            return json.dumps(value.hex())
    return json.dumps(value)


def as_json(rng: random.Random, data: bytes) -> bytes:
    """A member, a type or the spelling of a JSON text."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return as_bytes(rng, data)
    try:
        return dump(rng, mutated_tree(rng, tree) if rng.random() < 0.9 else tree).encode("utf-8", "surrogatepass")
    except RecursionError:
        return as_bytes(rng, data)


def as_json_lines(rng: random.Random, data: bytes) -> bytes:
    """One line of JSON mutated, or lines moved, repeated, dropped."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return as_bytes(rng, data)
    at = rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines[at] = as_json(rng, lines[at].rstrip(b"\n")) + b"\n"
    else:
        lines = moved(rng, lines)
    return b"".join(lines)


def moved(rng: random.Random, parts: Sequence[bytes]) -> list[bytes]:
    """The parts with one dropped, repeated, exchanged or cut."""
    parts = list(parts)
    at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    match rng.randrange(4):
        case 0:
            del parts[at]
        case 1:
            parts.insert(other, parts[at])
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            parts = parts[: at + 1]
    return parts


# --- TOML  ---

TOML_VALUES = (
    "nan",
    "inf",
    "-inf",
    "0",
    "-1",
    "1e400",
    "1e-400",
    "9223372036854775807",
    "9223372036854775808",
    "1" * 30,
    "1" * 5000,
    "0x" + "f" * 40,
    "true",
    '""',
    '"a\\n"',
    '"a\\u0000"',
    "'''\n'''",
    "[]",
    "[[]]",
    "{}",
    "{a={b={}}}",
    "[1,2,3,4]",
    "[0.5, 0.15]",
    "[nan, 0.1]",
    "[0.5, inf]",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "[" * 2000,
    "[" * 2000 + "]" * 2000,
    "{a=" * 1500,
    '"tcp://[::1]:5"',
    '"ipc://x"',
    '"lim2014/1"',
    "0.0",
    "1.0",
    "0.1e1",
    "5e-324",
    "[0.5, 0.3, 0.1]",
    "[0.2, 0.3, 0.5]",
)
_ASSIGNMENT = re.compile(r"(\s*[\w.\"-]+\s*=\s*)(.*)", re.DOTALL)


def as_toml(rng: random.Random, data: bytes) -> bytes:
    """A value of another kind or at a bound, a key renamed, or lines moved."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    if not lines:
        return as_bytes(rng, data)
    at = rng.randrange(len(lines))
    match = _ASSIGNMENT.fullmatch(lines[at])
    choice = rng.random()
    if match and choice < 0.7:
        lines[at] = match[1] + _other_toml(rng, match[2].strip()) + "\n"
    elif match and choice < 0.8:
        lines[at] = rng.choice(("x", "", '"', "a.b.", "seed.")) + lines[at]
    else:
        return b"".join(moved(rng, [line.encode() for line in lines]))
    return "".join(lines).encode("utf-8", "replace")


def _other_toml(rng: random.Random, text: str) -> str:
    if rng.random() < 0.6:
        return rng.choice(TOML_VALUES)
    try:
        value = tomllib.loads("v = " + text)["v"]
    except (ValueError, RecursionError):
        return rng.choice(TOML_VALUES)
    other = other_value(rng, value)
    if isinstance(other, float):
        return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(json.dumps(other), json.dumps(other))
    return json.dumps(other) if isinstance(other, (str, int, list)) and other != b"" else rng.choice(TOML_VALUES)


# --- packets of the device protocol  ---

PACKET_BYTES = 512
_PACKET = struct.Struct("<HBBHHIQ")


def sealed_packet(packet: bytes) -> bytes:
    """The packet with its CRC put right."""
    body = packet[:508].ljust(508, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


def as_packets(rng: random.Random, data: bytes) -> bytes:
    """A stream behind one byte that sizes its reads: a field or record of a packet, CRC put right, or packets moved."""
    reads, stream = data[:1] or b"\0", data[1:]
    if rng.random() < 0.1:
        reads = rng.randbytes(1)
    packets = [stream[i : i + PACKET_BYTES] for i in range(0, len(stream), PACKET_BYTES)]
    if not packets:
        return reads + as_bytes(rng, stream)
    at = rng.randrange(len(packets))
    choice = rng.random()
    if choice < 0.15:
        packets[at] = as_bytes(rng, packets[at])
    elif choice < 0.4:
        packets = moved(rng, packets)
    elif len(packets[at]) == PACKET_BYTES:
        packets[at] = sealed_packet(_other_packet(rng, packets[at]))
    if rng.random() < 0.3:
        packets = _renumbered(packets)
    return reads + b"".join(packets)


def _other_packet(rng: random.Random, packet: bytes) -> bytes:
    magic, version, kind, session, count, sequence, base = _PACKET.unpack_from(packet)
    records = packet[_PACKET.size : 508]
    match rng.randrange(7):
        case 0:
            kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 31, 32, 255))
        case 1:
            count = rng.choice((0, 1, 2, 60, 61, 62, 63, 128, 65535))
        case 2:
            sequence = (sequence + rng.choice((1, 2, 255, 256, 257, 2**31 - 1, 2**31, -1))) % 2**32
        case 3:
            base = rng.choice(
                (
                    0,
                    1,
                    2**53,
                    2**54 - 1,
                    2**54,
                    2**63 - 1,
                    2**63,
                    2**64 - 976,
                    2**64 - 1,
                    base + 1,
                    base + 976,
                    max(0, base - 976),
                )
            )
        case 4:
            session = rng.choice((0, 1, session + 1, 65535)) % 65536
        case 5:
            version = rng.choice((0, 2, 255))
        case _:
            word = 8 * rng.randrange(61)
            value = (
                rng.choice((0, 2**64 - 1, 2**63, 1 << 10, rng.getrandbits(64)))
                if rng.random() < 0.7
                else base << 10 | 1
            )
            records = records[:word] + struct.pack("<Q", value % 2**64) + records[word + 8 :]
    return _PACKET.pack(magic, version, kind, session, count, sequence, base % 2**64) + records


def _renumbered(packets: list[bytes]) -> list[bytes]:
    """The whole packets numbered in the order in which they stand."""
    numbered = []
    for sequence, packet in enumerate(packets):
        if len(packet) == PACKET_BYTES:
            packet = sealed_packet(packet[:8] + struct.pack("<I", sequence) + packet[12:])
        numbered.append(packet)
    return numbered


# --- frames between nodes  ---

HEADER_BYTES = 32


def framed(trailer_of: Callable[[int], int], kinds: Sequence[int]) -> Mutator:
    """A mutator of frames: header fields, the MessagePack body between header and trailer, or the trailer.

    `trailer_of(kind)` is the size of a kind's trailer in bytes.
    """

    def as_frame(rng: random.Random, data: bytes) -> bytes:
        if len(data) < HEADER_BYTES:
            return as_bytes(rng, data)
        header, trailer = data[:HEADER_BYTES], trailer_of(data[17])
        end = max(HEADER_BYTES, len(data) - trailer)
        choice = rng.random()
        if choice < 0.15:
            at = rng.choice((16, 17, 18, 19))
            value = rng.choice(kinds) if at == 17 else rng.choice((0, 1, 2, 255))
            header = header[:at] + bytes([value]) + header[at + 1 :]
        elif choice < 0.25:
            header = set_integer(rng, header)
        elif choice < 0.35:
            return data[:end] + as_bytes(rng, data[end:] or b"\0")
        else:
            return header + as_msgpack(rng, data[HEADER_BYTES:end]) + data[end:]
        return header + data[HEADER_BYTES:]

    return as_frame


def behind(prefix: int, mutate: Mutator) -> Mutator:
    """A mutator of inputs that carry `prefix` bytes of instructions for the harness before what is parsed."""

    def both(rng: random.Random, data: bytes) -> bytes:
        head, rest = data[:prefix].ljust(prefix, b"\0"), data[prefix:]
        if rng.random() < 0.15:
            head = as_bytes(rng, head)[:prefix].ljust(prefix, b"\0")
        return head + mutate(rng, rest)

    return both
