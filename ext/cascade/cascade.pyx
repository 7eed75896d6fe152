"""Cascade: both roles of interactive information reconciliation, up to 64 Frames at once."""

import math

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from qkdnode.errors import LocalProtocolError, RemoteProtocolError
from qkdnode.native.secret import WorkingBuffer

cdef extern from "cascade_role.h" nogil:
    int QKN_CASCADE_FRAMES, QKN_CASCADE_PASSES, QKN_CASCADE_ROUNDS, QKN_CASCADE_MIN_LOG2, QKN_CASCADE_MAX_LOG2
    int QKN_CASCADE_GOES_ON, QKN_CASCADE_FINISHED, QKN_CASCADE_LENGTH, QKN_CASCADE_PADDING
    int QKN_CASCADE_CONTRADICTION, QKN_CASCADE_TOO_LONG
    struct qkn_cascade_shape:
        unsigned frames
        unsigned frame_log2
        unsigned passes
        uint8_t exponents[8]
    struct qkn_cascade:
        pass
    size_t qkn_cascade_bytes(const qkn_cascade_shape *shape)
    int qkn_cascade_open(void *memory, size_t bytes, const qkn_cascade_shape *shape, const uint8_t *seed,
                         const uint8_t *key, size_t key_bytes)
    int qkn_cascade_advance(qkn_cascade *cascade, const uint8_t *received, size_t bytes)
    const uint8_t *qkn_cascade_message(const qkn_cascade *cascade, size_t *bytes)
    uint64_t qkn_cascade_parities(const qkn_cascade *cascade)
    unsigned qkn_cascade_rounds(const qkn_cascade *cascade)
    uint32_t qkn_cascade_frame_errors(const qkn_cascade *cascade, unsigned frame)
    void qkn_cascade_key(const qkn_cascade *cascade, int correct, uint8_t *out)
    void qkn_cascade_error_mask(const qkn_cascade *cascade, uint8_t *out)


KERNELS = ("portable",)
PROFILES = ("lan", "wan", "tight")

# Exponents of the block sizes of each pass by QBER, for the smallest Frames that a table serves. Found by search over
# measured runs: lan balances disclosure and rounds, wan saves rounds at f <= 1.06, tight saves disclosure.
cdef dict SMALL = {
    10: {0.002: (8, 9), 0.005: (7, 8, 9), 0.01: (6, 8, 9), 0.03: (5, 7, 8, 9), 0.05: (4, 6, 8, 9), 0.08: (3, 6, 8, 9)},
    11: {
        0.002: (9, 10, 11), 0.005: (8, 9, 11), 0.01: (7, 8, 10, 11), 0.03: (5, 7, 10, 11), 0.05: (4, 7, 10, 11),
        0.08: (3, 7, 10, 11),
    },
}
cdef dict LARGE = {
    "lan": {
        0.002: (9, 10, 11), 0.005: (8, 9, 11), 0.01: (6, 9, 11), 0.02: (5, 8, 11), 0.03: (5, 7, 12, 12),
        0.05: (4, 7, 11), 0.08: (3, 7, 12, 12),
    },
    "wan": {
        0.002: (9, 10, 11), 0.005: (8, 9, 11), 0.01: (6, 8, 11, 12), 0.02: (5, 7, 10, 12), 0.03: (5, 6, 11, 12),
        0.05: (4, 6, 10, 12), 0.08: (3, 7, 10, 12),
    },
    "tight": {
        0.002: (9, 10, 12, 12), 0.005: (8, 9, 12, 12), 0.01: (7, 9, 12, 12), 0.02: (6, 8, 12, 12),
        0.03: (5, 8, 12, 12), 0.05: (4, 8, 12, 12), 0.08: (3, 8, 12, 12),
    },
}
cdef int LARGE_FROM_LOG2 = 13


cdef object frame_log2(object frame_bits):
    """The exponent of a permitted Frame size."""
    exponent = frame_bits.bit_length() - 1
    if frame_bits <= 0 or frame_bits != 1 << exponent or not QKN_CASCADE_MIN_LOG2 <= exponent <= QKN_CASCADE_MAX_LOG2:
        raise ValueError(
            f"a Frame of {frame_bits} bits: it has a power of two from "
            f"{1 << QKN_CASCADE_MIN_LOG2} to {1 << QKN_CASCADE_MAX_LOG2}"
        )
    return exponent


def schedule(qber: float, frame_bits: int, profile: str) -> tuple[int, ...]:
    """Block-size exponents of each pass: the table's row whose QBER is nearest in ratio."""
    if not 0 <= qber <= 0.25:
        raise ValueError(f"QBER {qber} is not in [0, 0.25]")
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: choose from {', '.join(PROFILES)}")
    exponent = frame_log2(frame_bits)
    if exponent >= LARGE_FROM_LOG2:
        rows = LARGE[profile]
    else:
        rows = SMALL[min(exponent, max(SMALL))]
    nearest = min(rows, key=lambda row: abs(math.log(max(qber, min(rows)) / row)))
    return rows[nearest]


cdef dict REMOTE_FAULTS = {
    QKN_CASCADE_LENGTH: "the peer's parities are not as many as were asked for in this round",
    QKN_CASCADE_PADDING: "the peer's message has bits set after its last parity",
    QKN_CASCADE_CONTRADICTION: "the peer's parities contradict each other",
    QKN_CASCADE_TOO_LONG: (
        f"no agreement within {QKN_CASCADE_ROUNDS} rounds: the keys may differ far more than the schedule is for"
    ),
}


@cython.final
cdef class Cascade:
    """One role's half of the reconciliation of one Block: 1 to 64 Frames of frame_bits bits each.

    Both roles send their message of a round at once: `step(None)` makes the first, each further `step` takes the
    peer's message of the round and makes the next, or returns None when both keys agree under 32 confirming parities.
    That is not verification. `seed` is public, 32 bytes, and the same at both ends. `key` is frame-major and copied.
    After a RemoteProtocolError every further call raises it again.
    """

    cdef object memory
    cdef Py_buffer lease
    cdef qkn_cascade *state
    cdef bint is_leased, is_working, is_started, corrects
    cdef str fault
    cdef unsigned frames
    cdef size_t key_bytes
    cdef readonly bint finished
    cdef readonly unsigned rounds
    cdef readonly uint64_t own_bits, corrected

    def __cinit__(self, *, bint corrects, int frames, int frame_bits, object schedule, object seed, object key):
        cdef qkn_cascade_shape shape
        cdef Py_buffer seed_view, key_view
        cdef int status
        exponents = tuple(schedule)
        shape.frame_log2 = frame_log2(frame_bits)
        if not 1 <= frames <= QKN_CASCADE_FRAMES:
            raise ValueError(f"{frames} Frames: a Block has 1 to {QKN_CASCADE_FRAMES}")
        if not 1 <= len(exponents) <= QKN_CASCADE_PASSES:
            raise ValueError(f"a schedule of {len(exponents)} passes: it has 1 to {QKN_CASCADE_PASSES}")
        for p, exponent in enumerate(exponents):
            if not 1 <= exponent <= shape.frame_log2:
                raise ValueError(f"blocks of 2^{exponent} bits in a Frame of {frame_bits}")
            shape.exponents[<int>p] = exponent
        shape.frames = frames
        shape.passes = len(exponents)
        self.corrects = corrects
        self.frames = frames
        self.key_bytes = <size_t>frames * <size_t>frame_bits // 8
        PyObject_GetBuffer(seed, &seed_view, PyBUF_SIMPLE)
        try:
            if seed_view.len != 32:
                raise ValueError(f"a seed of {seed_view.len} bytes: it has 32")
            PyObject_GetBuffer(key, &key_view, PyBUF_SIMPLE)
            try:
                if <size_t>key_view.len != self.key_bytes:
                    raise ValueError(
                        f"a key of {key_view.len} bytes: {frames} Frames of {frame_bits} bits have {self.key_bytes}"
                    )
                self.memory = WorkingBuffer(qkn_cascade_bytes(&shape))
                PyObject_GetBuffer(self.memory, &self.lease, PyBUF_WRITABLE)
                self.is_leased = True
                with nogil:
                    status = qkn_cascade_open(self.lease.buf, <size_t>self.lease.len, &shape,
                                              <const uint8_t *>seed_view.buf, <const uint8_t *>key_view.buf,
                                              <size_t>key_view.len)
                if status != QKN_CASCADE_GOES_ON:
                    raise AssertionError("the kernel refuses a shape that was checked")
                self.state = <qkn_cascade *>self.lease.buf
                self.own_bits = qkn_cascade_parities(self.state)
                self.rounds = qkn_cascade_rounds(self.state)
            finally:
                PyBuffer_Release(&key_view)
        finally:
            PyBuffer_Release(&seed_view)

    def __dealloc__(self):
        if self.is_leased:
            PyBuffer_Release(&self.lease)

    cdef object message(self):
        cdef size_t size
        cdef const uint8_t *parities = qkn_cascade_message(self.state, &size)
        return PyBytes_FromStringAndSize(<const char *>parities, <Py_ssize_t>size)

    cdef object demand_usable(self):
        if self.state == NULL:
            raise LocalProtocolError("this Cascade was closed")
        if self.is_working:
            raise LocalProtocolError("this Cascade is at work in another thread")
        if self.fault is not None:
            raise RemoteProtocolError(self.fault)

    cdef object demand_finished(self):
        self.demand_usable()
        if not self.finished:
            raise LocalProtocolError("this Cascade has not finished: its key is not reconciled")

    cdef object blame_peer(self, str fault):
        self.fault = f"Cascade, round {self.rounds}: {fault}; this Block is lost"
        raise RemoteProtocolError(self.fault)

    def step(self, object received) -> bytes | None:
        """Take the peer's message of this round (None before the first) and return our next, or None at the end."""
        cdef Py_buffer view
        cdef int status
        self.demand_usable()
        if received is None:
            if self.is_started:
                raise LocalProtocolError("this Cascade has begun and waits for the peer's message")
            self.is_started = True
            return self.message()
        if not self.is_started:
            raise LocalProtocolError("a Cascade begins with step(None)")
        if self.finished:
            self.blame_peer("the peer goes on after the end")
        PyObject_GetBuffer(received, &view, PyBUF_SIMPLE)
        self.is_working = True
        try:
            with nogil:
                status = qkn_cascade_advance(self.state, <const uint8_t *>view.buf, <size_t>view.len)
        finally:
            self.is_working = False
            PyBuffer_Release(&view)
        if status < 0:
            self.blame_peer(REMOTE_FAULTS[status])
        self.own_bits = qkn_cascade_parities(self.state)
        self.rounds = qkn_cascade_rounds(self.state)
        if status == QKN_CASCADE_FINISHED:
            self.corrected = sum(self.frame_errors())
            self.finished = True
            return None
        return self.message()

    @property
    def peer_bits(self) -> int:
        """Parity bits that the peer disclosed: as many as this role, query by query."""
        return self.own_bits

    def frame_errors(self) -> list[int]:
        """Errors found so far in each Frame."""
        cdef unsigned f
        self.demand_usable()
        return [qkn_cascade_frame_errors(self.state, f) for f in range(self.frames)]

    def result_into(self, object out) -> None:
        """Write the reconciled key: corrected at the role that corrects, as it was at the other."""
        cdef Py_buffer view
        self.demand_finished()
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        try:
            self.demand_size(view.len)
            qkn_cascade_key(self.state, self.corrects, <uint8_t *>view.buf)
        finally:
            PyBuffer_Release(&view)

    def error_mask_into(self, object out) -> None:
        """Write ones where the two keys differed; both roles know it."""
        cdef Py_buffer view
        self.demand_finished()
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        try:
            self.demand_size(view.len)
            qkn_cascade_error_mask(self.state, <uint8_t *>view.buf)
        finally:
            PyBuffer_Release(&view)

    cdef object demand_size(self, Py_ssize_t size):
        if <size_t>size != self.key_bytes:
            raise ValueError(f"a buffer of {size} bytes for a key of {self.key_bytes}")

    def close(self) -> None:
        """Wipe and give back the state; every later call but this raises LocalProtocolError."""
        if self.state == NULL:
            return
        if self.is_working:
            raise LocalProtocolError("this Cascade is at work in another thread")
        self.state = NULL
        self.is_leased = False
        PyBuffer_Release(&self.lease)
        self.memory.release()

    def __reduce__(self):
        raise TypeError("a Cascade holds key material and is not pickled or copied")
