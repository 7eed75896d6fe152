"""Sifting of one Window and the bit queue that Frames are cut from."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from qkdnode.errors import LocalProtocolError, RemoteProtocolError
from qkdnode.native.secret import WorkingBuffer

cdef extern from "sifting.h" nogil:
    int QKN_SIFT_OK, QKN_SIFT_TRUNCATED, QKN_SIFT_TRAILING, QKN_SIFT_OUTSIDE, QKN_SIFT_INTENSITY, QKN_SIFT_ORDER
    int QKN_SIFT_COINS
    struct qkn_sift_listing:
        size_t events, slot_bytes
        uint32_t double_clicks, crossed_clicks, dead_clicks
        uint32_t *single_clicks
        uint32_t *single_ones
    struct qkn_sift_answer_t "qkn_sift_answer":
        size_t matched, z, x, ones
        uint64_t *n_z
        uint64_t *n_x
    struct qkn_sift_outcome:
        size_t matched, z, x, ones
        uint64_t *n_z
        uint64_t *n_x
        uint64_t *m_x
    int qkn_sift_list(const uint32_t *, const uint8_t *, size_t, uint32_t, const uint8_t *, size_t, uint8_t *,
                      uint8_t *, uint8_t *, qkn_sift_listing *)
    int qkn_sift_answer(const uint8_t *, size_t, const uint8_t *, size_t, const uint8_t *, uint32_t, unsigned,
                        uint8_t *, uint8_t *, uint8_t *, uint8_t *, uint8_t *, qkn_sift_answer_t *)
    int qkn_sift_apply(const uint8_t *, const uint8_t *, size_t, const uint8_t *, const uint8_t *, const uint8_t *,
                       unsigned, uint8_t *, uint8_t *, qkn_sift_outcome *)
    int qkn_sift_count(const uint8_t *, const uint8_t *, size_t, size_t *, size_t *)
    void qkn_bits_copy(uint8_t *, size_t, const uint8_t *, size_t, size_t)
    void qkn_bits_count_by_intensity(const uint8_t *, const uint8_t *, size_t, uint64_t *)

cdef dict FAULTS = {
    QKN_SIFT_TRUNCATED: "the list of slots is truncated",
    QKN_SIFT_TRAILING: "bits or bytes follow the last event",
    QKN_SIFT_OUTSIDE: "a slot lies outside the Window",
    QKN_SIFT_INTENSITY: "an intensity is not one of the link's",
    QKN_SIFT_ORDER: "detections are not in rising order of slots",
    QKN_SIFT_COINS: "there are more double clicks than random bits for them",
}


cdef class _Borrowed:
    """A buffer held for the length of one call."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, object source, int flags=PyBUF_SIMPLE):
        PyObject_GetBuffer(source, &self.view, flags)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef uint8_t *data(self) noexcept:
        return <uint8_t *>self.view.buf

    cdef Py_ssize_t size(self) noexcept:
        return self.view.len


cdef size_t bytes_for(size_t bits) noexcept:
    return (bits + 7) // 8


cdef tuple by_intensity(const uint64_t *counts, unsigned intensities):
    return tuple([counts[i] for i in range(intensities)])


@cython.final
cdef class Listing:
    """What Bob makes of the detections in one Window: public lists, and his bits.

    detectors: listed clicks of Z0, Z1, X0, X1 alone. Like his bits they are no one else's to know.
    """

    cdef readonly size_t events
    cdef readonly bytes slots
    cdef readonly bytes bases
    cdef readonly object bits
    cdef readonly uint32_t double_clicks
    cdef readonly uint32_t crossed_clicks
    cdef readonly uint32_t dead_clicks
    cdef readonly tuple detectors


def list_detections(object slots, object patterns, object coins, uint32_t dead_slots) -> Listing:
    """Bob's list of one Window.

    slots: uint32, rising, relative to the Window; patterns: uint8, bits Z0 Z1 X0 X1; coins: random bits, one per
    double click within a basis. Clicks within `dead_slots` after another click, and across bases, are left out.
    """
    cdef _Borrowed s = _Borrowed(slots), p = _Borrowed(patterns), c = _Borrowed(coins)
    cdef size_t n = <size_t>p.size()
    cdef qkn_sift_listing result
    cdef int status
    if s.size() != <Py_ssize_t>(4 * n):
        raise ValueError("slots and patterns differ in length")
    slot_list, bases, bits = bytearray(5 * n + 1), bytearray(bytes_for(n) + 1), WorkingBuffer(bytes_for(n) + 1)
    cdef _Borrowed sl = _Borrowed(slot_list, PyBUF_WRITABLE), ba = _Borrowed(bases, PyBUF_WRITABLE)
    cdef _Borrowed bi = _Borrowed(bits, PyBUF_WRITABLE)
    with nogil:
        status = qkn_sift_list(<const uint32_t *>s.view.buf, <const uint8_t *>p.view.buf, n, dead_slots,
                               <const uint8_t *>c.view.buf, 8 * <size_t>c.view.len, <uint8_t *>sl.view.buf,
                               <uint8_t *>ba.view.buf, <uint8_t *>bi.view.buf, &result)
    if status != QKN_SIFT_OK:
        raise LocalProtocolError(f"sifting: {FAULTS[status]}")
    cdef Listing listing = Listing.__new__(Listing)
    listing.events = result.events
    listing.slots = sl.data()[:result.slot_bytes]
    listing.bases = ba.data()[:bytes_for(result.events)]
    listing.bits = bits
    listing.double_clicks = result.double_clicks
    listing.crossed_clicks = result.crossed_clicks
    listing.dead_clicks = result.dead_clicks
    listing.detectors = (result.single_clicks[0] - result.single_ones[0], result.single_ones[0],
                         result.single_clicks[1] - result.single_ones[1], result.single_ones[1])
    return listing


@cython.final
cdef class Sifted:
    """The sifted key bits of one Window, with their intensities and the counts per intensity; `ones` of the bits are 1."""

    cdef readonly size_t bits
    cdef readonly object z_bits
    cdef readonly object z_intensities
    cdef readonly size_t ones
    cdef readonly tuple n_z
    cdef readonly tuple n_x
    cdef readonly tuple m_x


@cython.final
cdef class Answer:
    """Alice's answer to one list, and her sifted bits."""

    cdef readonly bytes matched
    cdef readonly bytes intensities
    cdef readonly bytes x_bits
    cdef readonly Sifted sifted


def answer_list(object slots, object bases, size_t events, object choices, uint32_t window_slots,
                unsigned intensities) -> Answer:
    """Alice's answer to Bob's list of one Window.

    choices: a nibble per slot of the Window (bit 0 basis, bit 1 value, bits 2-3 intensity). RemoteProtocolError if
    the list is malformed.
    """
    cdef _Borrowed sl = _Borrowed(slots), ba = _Borrowed(bases), ch = _Borrowed(choices)
    cdef qkn_sift_answer_t result
    cdef int status
    if ch.size() < <Py_ssize_t>((<size_t>window_slots + 1) // 2):
        raise ValueError("choices do not cover the Window")
    if not 1 <= intensities <= 4:
        raise ValueError("a link has one to four intensities")
    if events > window_slots or ba.size() != <Py_ssize_t>bytes_for(events):
        raise RemoteProtocolError("sifting: bases and events of the list differ in length")
    matched, answered, x_bits = bytearray(bytes_for(events) + 1), bytearray(bytes_for(2 * events) + 1), bytearray(bytes_for(events) + 1)
    z_bits, z_intensities = WorkingBuffer(bytes_for(events) + 1), bytearray(bytes_for(2 * events) + 1)
    cdef _Borrowed m = _Borrowed(matched, PyBUF_WRITABLE), a = _Borrowed(answered, PyBUF_WRITABLE)
    cdef _Borrowed x = _Borrowed(x_bits, PyBUF_WRITABLE), z = _Borrowed(z_bits, PyBUF_WRITABLE)
    cdef _Borrowed zi = _Borrowed(z_intensities, PyBUF_WRITABLE)
    with nogil:
        status = qkn_sift_answer(<const uint8_t *>sl.view.buf, <size_t>sl.view.len, <const uint8_t *>ba.view.buf, events,
                                 <const uint8_t *>ch.view.buf, window_slots, intensities, <uint8_t *>m.view.buf,
                                 <uint8_t *>a.view.buf, <uint8_t *>x.view.buf, <uint8_t *>z.view.buf,
                                 <uint8_t *>zi.view.buf, &result)
    if status == QKN_SIFT_INTENSITY:
        raise LocalProtocolError(f"sifting: {FAULTS[status]}")
    if status != QKN_SIFT_OK:
        raise RemoteProtocolError(f"sifting: {FAULTS[status]}")
    cdef Sifted sifted = Sifted.__new__(Sifted)
    sifted.bits = result.z
    sifted.ones = result.ones
    sifted.z_bits = z_bits
    sifted.z_intensities = zi.data()[:bytes_for(2 * result.z)]
    sifted.n_z = by_intensity(result.n_z, intensities)
    sifted.n_x = by_intensity(result.n_x, intensities)
    sifted.m_x = (0,) * intensities
    cdef Answer answer = Answer.__new__(Answer)
    answer.matched = m.data()[:bytes_for(events)]
    answer.intensities = a.data()[:bytes_for(2 * result.matched)]
    answer.x_bits = x.data()[:bytes_for(result.x)]
    answer.sifted = sifted
    return answer


def apply_answer(Listing listing, object matched, object intensities, object x_bits, unsigned intensity_count) -> Sifted:
    """Bob's sifted bits after Alice's answer; m_x are the errors in X. RemoteProtocolError if it does not fit the list."""
    cdef _Borrowed bi = _Borrowed(listing.bits), ba = _Borrowed(listing.bases), m = _Borrowed(matched)
    cdef _Borrowed a = _Borrowed(intensities), x = _Borrowed(x_bits)
    cdef size_t events = listing.events, matched_count = 0, x_count = 0
    cdef qkn_sift_outcome result
    cdef int status
    if not 1 <= intensity_count <= 4:
        raise ValueError("a link has one to four intensities")
    if m.size() != <Py_ssize_t>bytes_for(events):
        raise RemoteProtocolError("sifting: the answer's matches and the list differ in length")
    status = qkn_sift_count(<const uint8_t *>ba.view.buf, <const uint8_t *>m.view.buf, events, &matched_count, &x_count)
    if status != QKN_SIFT_OK:
        raise RemoteProtocolError(f"sifting: {FAULTS[status]}")
    if a.size() != <Py_ssize_t>bytes_for(2 * matched_count) or x.size() != <Py_ssize_t>bytes_for(x_count):
        raise RemoteProtocolError("sifting: the answer's intensities or X bits do not fit its matches")
    z_bits, z_intensities = WorkingBuffer(bytes_for(matched_count) + 1), bytearray(bytes_for(2 * matched_count) + 1)
    cdef _Borrowed z = _Borrowed(z_bits, PyBUF_WRITABLE), zi = _Borrowed(z_intensities, PyBUF_WRITABLE)
    with nogil:
        status = qkn_sift_apply(<const uint8_t *>bi.view.buf, <const uint8_t *>ba.view.buf, events,
                                <const uint8_t *>m.view.buf, <const uint8_t *>a.view.buf, <const uint8_t *>x.view.buf,
                                intensity_count, <uint8_t *>z.view.buf, <uint8_t *>zi.view.buf, &result)
    if status != QKN_SIFT_OK:
        raise RemoteProtocolError(f"sifting: {FAULTS[status]}")
    cdef Sifted sifted = Sifted.__new__(Sifted)
    sifted.bits = result.z
    sifted.ones = result.ones
    sifted.z_bits = z_bits
    sifted.z_intensities = zi.data()[:bytes_for(2 * result.z)]
    sifted.n_z = by_intensity(result.n_z, intensity_count)
    sifted.n_x = by_intensity(result.n_x, intensity_count)
    sifted.m_x = by_intensity(result.m_x, intensity_count)
    return sifted


def copy_bits(object target, size_t target_bit, object source, size_t source_bit, size_t bits) -> None:
    """target[target_bit ...] = source[source_bit ... source_bit + bits); other bits of target are kept."""
    cdef _Borrowed t = _Borrowed(target, PyBUF_WRITABLE), s = _Borrowed(source)
    if target_bit + bits > 8 * <size_t>t.size() or source_bit + bits > 8 * <size_t>s.size():
        raise ValueError("bits beyond the end of a buffer")
    with nogil:
        qkn_bits_copy(<uint8_t *>t.view.buf, target_bit, <const uint8_t *>s.view.buf, source_bit, bits)


def count_by_intensity(object mask, object intensities, size_t bits, unsigned intensity_count) -> tuple:
    """How many set bits of mask fall on each intensity (2-bit fields)."""
    cdef _Borrowed m = _Borrowed(mask), a = _Borrowed(intensities)
    cdef uint64_t counts[4]
    if bits > 8 * <size_t>m.size() or 2 * bits > 8 * <size_t>a.size():
        raise ValueError("bits beyond the end of a buffer")
    counts[0] = counts[1] = counts[2] = counts[3] = 0
    qkn_bits_count_by_intensity(<const uint8_t *>m.view.buf, <const uint8_t *>a.view.buf, bits, counts)
    return by_intensity(counts, intensity_count)
