"""Packets of QKD modules and QRNGs: framing, sequence and unpacking of one device's stream, without I/O."""

from qkdnode.errors import LocalProtocolError

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "packets_scan.h" nogil:
    int QKN_PACKET_BYTES, QKN_PACKET_RECORDS, QKN_PACKET_PAYLOAD, QKN_PACKET_SLOTS
    int QKN_PACKET_TAGS, QKN_PACKET_CHOICES, QKN_PACKET_RAW, QKN_PACKET_CONDITIONED, QKN_PACKET_SYNC, QKN_PACKET_GAP
    int QKN_GAP_LOST, QKN_GAP_REPORTED, QKN_GAP_REGRESSED, QKN_GAP_CONFLICT
    int QKN_PIECES_PER_PACKET
    struct qkn_piece:
        uint32_t type, reason, count, offset
        uint64_t start, end
    struct qkn_scan_counters:
        uint64_t packets, crc_errors, skipped_bytes, stale_session, sequence_gaps, duplicates, late, conflicts
        uint64_t regressions, malformed, unknown, reported_gaps, missed_tags
    struct qkn_scanner:
        uint32_t types
        uint16_t session
        size_t tail_bytes
        qkn_scan_counters counters
    struct qkn_scan_areas:
        uint8_t *payload
        uint8_t *patterns
        uint64_t *times
        qkn_piece *pieces
        size_t payload_bytes, tags, piece_count
    void qkn_scanner_expect(qkn_scanner *scanner, uint16_t session)
    int qkn_scanner_feed(qkn_scanner *scanner, const uint8_t *data, size_t size, qkn_scan_areas *areas)

PACKET_BYTES = QKN_PACKET_BYTES
SLOTS_PER_PACKET = QKN_PACKET_SLOTS
TAGS_PER_PACKET = QKN_PACKET_RECORDS
PAYLOAD_BYTES = QKN_PACKET_PAYLOAD
PIECES_PER_PACKET = QKN_PIECES_PER_PACKET
PIECE_BYTES = sizeof(qkn_piece)

TAGS = QKN_PACKET_TAGS
CHOICES = QKN_PACKET_CHOICES
RAW = QKN_PACKET_RAW
CONDITIONED = QKN_PACKET_CONDITIONED
SYNC = QKN_PACKET_SYNC
GAP = QKN_PACKET_GAP

GAP_LOST = QKN_GAP_LOST
GAP_REPORTED = QKN_GAP_REPORTED
GAP_REGRESSED = QKN_GAP_REGRESSED
GAP_CONFLICT = QKN_GAP_CONFLICT


cdef class _Area:
    """A leased view of a caller's buffer; empty for None."""

    cdef Py_buffer view
    cdef bint leased

    def __cinit__(self, object buffer, int flags):
        self.leased = False
        self.view.buf = NULL
        self.view.len = 0
        if buffer is not None:
            PyObject_GetBuffer(buffer, &self.view, flags)
            self.leased = True

    def __dealloc__(self):
        if self.leased:
            PyBuffer_Release(&self.view)


@cython.final
cdef class PacketScanner:
    """Parser of one device's stream of 512-byte packets; carries its partial packet, session and sequence along.

    `types` has bit t set for each packet type that the stream may carry. A feed writes pieces (32 bytes each: u32 type,
    reason, count, offset; u64 start, end) in stream order, into areas that the caller gives and wipes:

        TAGS                 start = index of the first tag in `times` (u64, 1/256 ns) and `patterns` (u8); count tags
        CHOICES              start = first slot; count slots; nibbles at `offset` of `payload`
        RAW, CONDITIONED     start = byte offset in the device's stream; count bytes at `offset` of `payload`
        SYNC                 start = index of the pulse; end = its time
        GAP                  start, end = what is missing, in slots, time or bytes; reason = GAP_*. An empty range is a
                             break at which nothing is missing

    A packet that is damaged, out of sequence, of another session or not allowed never yields data.
    """

    cdef qkn_scanner scanner
    cdef bint expecting

    def __cinit__(self, uint32_t types):
        self.scanner.types = types
        self.expecting = False

    def __dealloc__(self):
        qkn_scanner_expect(&self.scanner, 0)

    def expect(self, session: int) -> None:
        """Forget the stream and expect this session from its first packet on; the counters stay."""
        if not 0 < session < 1 << 16:
            raise ValueError(f"{session} is no session number")
        qkn_scanner_expect(&self.scanner, session)
        self.expecting = True

    def feed(
        self, object data, object pieces, *, object payload=None, object times=None, object patterns=None
    ) -> int:
        """Take a stretch of stream of any length; the number of pieces. ValueError where an area is too small."""
        if not self.expecting:
            raise LocalProtocolError("the session must be known before packets are taken: call expect()")
        cdef _Area source = _Area(data, PyBUF_SIMPLE)
        cdef _Area piece_area = _Area(pieces, PyBUF_WRITABLE)
        cdef _Area payload_area = _Area(payload, PyBUF_WRITABLE)
        cdef _Area time_area = _Area(times, PyBUF_WRITABLE)
        cdef _Area pattern_area = _Area(patterns, PyBUF_WRITABLE)
        cdef qkn_scan_areas areas
        cdef int status
        areas.pieces = <qkn_piece *>piece_area.view.buf
        areas.piece_count = <size_t>piece_area.view.len // sizeof(qkn_piece)
        areas.payload = <uint8_t *>payload_area.view.buf
        areas.payload_bytes = <size_t>payload_area.view.len
        areas.times = <uint64_t *>time_area.view.buf
        areas.patterns = <uint8_t *>pattern_area.view.buf
        areas.tags = min(<size_t>time_area.view.len // sizeof(uint64_t), <size_t>pattern_area.view.len)
        if <size_t>areas.pieces % sizeof(uint64_t) or <size_t>areas.times % sizeof(uint64_t):
            raise ValueError("pieces and times must be aligned to 8 bytes")
        with nogil:
            status = qkn_scanner_feed(
                &self.scanner, <const uint8_t *>source.view.buf, <size_t>source.view.len, &areas
            )
        if status != 0:
            raise ValueError(f"the areas are too small for what {source.view.len} bytes may hold")
        return areas.piece_count

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished packet carried to the next feed."""
        return self.scanner.tail_bytes

    @property
    def counters(self) -> dict[str, int]:
        """What was met since the scanner was made, by the names of `qkn_scan_counters`."""
        return self.scanner.counters
