"""POLYVAL, the polynomial hash over GF(2^128) of RFC 8452 section 3."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport getenv

from qkdnode.errors import LocalProtocolError
from qkdnode.native.kernel import State, chosen, runnable
from qkdnode.native.secret import SecretBuffer, equal

cdef extern from "polyval.h" nogil:
    enum: QKN_POLYVAL_BLOCK
    int QKN_POLYVAL_PORTABLE, QKN_POLYVAL_CLMUL
    struct qkn_polyval:
        uint64_t powers[8][2]
        uint64_t sum[2]
    int qkn_polyval_state(int kernel)
    int qkn_polyval_start(int kernel, const uint8_t *key, qkn_polyval *out)
    int qkn_polyval_absorb(int kernel, const uint8_t *data, size_t size, qkn_polyval *out)
    int qkn_polyval_append(int kernel, const uint64_t *later, uint64_t blocks, qkn_polyval *out)

cdef dict NUMBERS = {"clmul": QKN_POLYVAL_CLMUL, "portable": QKN_POLYVAL_PORTABLE}
cdef dict STATES = {name: State(qkn_polyval_state(number)) for name, number in NUMBERS.items()}
KERNELS = runnable(STATES)

# Below this the GIL costs more to give up than the hash takes.
cdef Py_ssize_t LARGE = 8192


cdef str NOT_RUNNING = "the chosen kernel of polyval does not run"


cdef str kernel_here():
    cdef const char *demand = getenv(b"QKDNODE_KERNEL")
    return chosen("polyval", STATES, None if demand == NULL else (<bytes>demand).decode("utf-8", "replace"))


@cython.final
cdef class Polyval:
    """Running POLYVAL under one key; key and accumulator live in locked memory."""

    cdef Py_buffer memory
    cdef qkn_polyval *state
    cdef readonly str kernel
    cdef int number
    cdef uint64_t count
    cdef bint busy

    def __cinit__(self, object key):
        cdef Py_buffer view
        self.kernel = kernel_here()
        self.number = NUMBERS[self.kernel]
        PyObject_GetBuffer(SecretBuffer(sizeof(qkn_polyval)), &self.memory, PyBUF_WRITABLE)
        self.state = <qkn_polyval *>self.memory.buf
        PyObject_GetBuffer(key, &view, PyBUF_SIMPLE)
        try:
            if view.len != QKN_POLYVAL_BLOCK:
                raise ValueError(f"a POLYVAL key has {QKN_POLYVAL_BLOCK} bytes, not {view.len}")
            if qkn_polyval_start(self.number, <const uint8_t *>view.buf, self.state) != 0:
                raise RuntimeError(NOT_RUNNING)
        finally:
            PyBuffer_Release(&view)

    def __dealloc__(self):
        PyBuffer_Release(&self.memory)

    cdef qkn_polyval *idle(self) except NULL:
        if self.state == NULL:
            raise ValueError("this Polyval was closed")
        if self.busy:
            raise LocalProtocolError("this Polyval is absorbing in another thread: wait for it")
        return self.state

    def update(self, object data) -> None:
        """Absorb `data`, filled up with zeros to whole 16-byte blocks at each call."""
        cdef qkn_polyval *state = self.idle()
        cdef Py_buffer view
        cdef int status
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len < LARGE:
                status = qkn_polyval_absorb(self.number, <const uint8_t *>view.buf, <size_t>view.len, state)
            else:
                self.busy = True
                with nogil:
                    status = qkn_polyval_absorb(self.number, <const uint8_t *>view.buf, <size_t>view.len, state)
                self.busy = False
            if status != 0:
                raise RuntimeError(NOT_RUNNING)
            self.count += <uint64_t>((view.len + QKN_POLYVAL_BLOCK - 1) // QKN_POLYVAL_BLOCK)
        finally:
            PyBuffer_Release(&view)

    @property
    def blocks(self) -> int:
        """Blocks absorbed, which bounds the forgery probability: blocks / 2^128."""
        return self.count

    cdef object key_view(self):
        return memoryview(<object>self.memory.obj)[:QKN_POLYVAL_BLOCK]

    def append(self, Polyval other not None) -> None:
        """As if the blocks of `other` had been absorbed next. ValueError if the keys differ."""
        cdef qkn_polyval *state = self.idle()
        cdef qkn_polyval *later = other.idle()
        if not equal(self.key_view(), other.key_view()):
            raise ValueError("two Polyvals are joined only under one key")
        if qkn_polyval_append(self.number, later.sum, other.count, state) != 0:
            raise RuntimeError(NOT_RUNNING)
        self.count += other.count

    def copy(self) -> Polyval:
        """A second running hash that goes on from here on its own."""
        cdef qkn_polyval *state = self.idle()
        cdef Polyval twin = Polyval(self.key_view())
        twin.state[0] = state[0]
        twin.count = self.count
        return twin

    def masked(self, object pad) -> bytes:
        """The accumulator xor a 16-byte pad that is used once: the tag of a hash whose key is secret."""
        cdef qkn_polyval *state = self.idle()
        cdef Py_buffer view
        cdef uint8_t tag[QKN_POLYVAL_BLOCK]
        cdef int i
        PyObject_GetBuffer(pad, &view, PyBUF_SIMPLE)
        try:
            if view.len != QKN_POLYVAL_BLOCK:
                raise ValueError(f"a pad has {QKN_POLYVAL_BLOCK} bytes, not {view.len}")
            for i in range(QKN_POLYVAL_BLOCK):
                tag[i] = (<const uint8_t *>state.sum)[i] ^ (<const uint8_t *>view.buf)[i]
        finally:
            PyBuffer_Release(&view)
        return tag[:QKN_POLYVAL_BLOCK]

    def digest(self) -> bytes:
        """The bare accumulator: only where the key is public, as in verification. It reveals a secret key."""
        cdef qkn_polyval *state = self.idle()
        return (<const char *>state.sum)[:QKN_POLYVAL_BLOCK]

    def close(self) -> None:
        """Wipe key and accumulator. Harmless when repeated."""
        if self.state == NULL:
            return
        self.idle()
        self.state = NULL
        PyBuffer_Release(&self.memory)

    def __reduce__(self):
        raise TypeError("a Polyval is not pickled: it holds a key")


def polyval(object key, object data) -> bytes:
    """POLYVAL of `data` under a public key, in one call."""
    cdef Polyval running = Polyval(key)
    running.update(data)
    return running.digest()
