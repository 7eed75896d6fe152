"""Search for any 16 bytes of a known key, in any of the forms in which a program may have left them.

A run of 16 bytes covers one aligned word of 8 bytes wholly, wherever it lies: all words of a place are looked up among
the 8-byte windows of the forms, and what is found there is compared as far as it goes.
"""

import base64
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

PIECE_BYTES = 16
WORD = np.dtype("<u8")
_FILTER_BITS = 24
_MIX = np.uint64(0x9E3779B97F4A7C15)
MAX_HITS = 8  # of one place
CHUNK = 1 << 24

# A form of a key, and how many of its bytes are 16 of the key.
FORMS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "raw": (bytes, PIECE_BYTES),
    "hexadecimal": (lambda key: key.hex().encode(), 2 * PIECE_BYTES),
    "HEXADECIMAL": (lambda key: key.hex().upper().encode(), 2 * PIECE_BYTES),
    "base64": (base64.b64encode, 21),
    "base64 of all but 1": (lambda key: base64.b64encode(key[1:]), 21),
    "base64 of all but 2": (lambda key: base64.b64encode(key[2:]), 21),
    "repr": (lambda key: repr(key).encode()[2:-1], 3 * PIECE_BYTES // 2),
}


class Hit(msgspec.Struct, frozen=True):
    """16 bytes or more of a key where they must not be."""

    place: str
    key: str
    form: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.place}: {self.size} bytes ({self.form}) of {self.key} at {self.offset:#x}"


class Scanner:
    """Looks for keys: name -> bytes."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._texts: list[tuple[str, str, bytes, int]] = []
        self._windows: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for name, key in keys.items():
            for form, (shape, least) in FORMS.items():
                text = shape(key)
                number = len(self._texts)
                self._texts.append((name, form, text, least))
                for at in range(len(text) - WORD.itemsize + 1):
                    self._windows[int.from_bytes(text[at : at + 8], "little")].append((number, at))
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._filter[_slot(np.array(list(self._windows), WORD))] = True

    def search(self, place: str, data: bytes, base: int = 0) -> list[Hit]:
        """What is found in a place, at most 8 times."""
        words = np.frombuffer(data, WORD, len(data) // WORD.itemsize)
        hits: list[Hit] = []
        end = -1
        for index in np.flatnonzero(self._filter[_slot(words)]):
            at = int(index) * WORD.itemsize
            if at < end:
                continue
            for number, offset in self._windows.get(int(words[index]), ()):
                name, form, text, least = self._texts[number]
                start, stop = _extent(data, at, text, offset)
                if stop - start >= least:
                    hits.append(Hit(place, name, form, base + start, stop - start))
                    end = stop
                    break
            if len(hits) == MAX_HITS:
                break
        return hits

    def search_files(self, kind: str, paths: list[Path]) -> list[Hit]:
        """What is found in files."""
        return [hit for path in paths for hit in self.search(f"{kind} {path.name}", path.read_bytes())]

    def search_process(self, name: str, pid: int) -> tuple[list[Hit], int, int]:
        """What is found in a process that stands still or waits; bytes read, and bytes of locked memory left out."""
        hits: list[Hit] = []
        read = locked = 0
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for start, end, label, is_locked in writable(pid):
                if is_locked:
                    locked += end - start
                    continue
                for at in range(start, end, CHUNK):
                    try:
                        memory.seek(at)
                        data = memory.read(min(CHUNK + 64, end - at))
                    except OSError:
                        continue  # pages that this kernel shows to nobody
                    read += len(data)
                    hits += self.search(f"heap of {name} ({label})", data, at)
        return hits, read, locked


def _slot(words: np.ndarray) -> np.ndarray:
    return (words * _MIX) >> np.uint64(64 - _FILTER_BITS)


def _extent(data: bytes, at: int, text: bytes, offset: int) -> tuple[int, int]:
    """How far data around `at` and text around `offset` are the same."""
    start = stop = 0
    while start < min(at, offset) and data[at - start - 1] == text[offset - start - 1]:
        start += 1
    while at + stop < len(data) and offset + stop < len(text) and data[at + stop] == text[offset + stop]:
        stop += 1
    return at - start, at + stop


_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+\s*(.*)")


def writable(pid: int) -> Iterator[tuple[int, int, str, bool]]:
    """Writable mappings of a process: start, end, what it is, and whether it is locked memory for secrets."""
    start = end = 0
    label, rights = "", ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := _MAPPING.fullmatch(line):
            start, end = int(found[1], 16), int(found[2], 16)
            rights, label = found[3], found[4] or "anonymous"
        elif line.startswith("VmFlags:") and "w" in rights and label not in ("[vvar]", "[vsyscall]"):
            flags = set(line.split()[1:])
            # memfd_secret is a file of its own; its substitute is locked and left out of dumps.
            yield start, end, label, "secretmem" in label or {"lo", "dd"} <= flags
