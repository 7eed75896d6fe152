"""Privacy amplification and randomness extraction by Toeplitz matrices over GF(2)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport getenv

from qkdnode.errors import LocalProtocolError
from qkdnode.native.kernel import State, chosen, runnable
from qkdnode.native.secret import WorkingBuffer

cdef extern from "toeplitz.h" nogil:
    int QKN_TOEPLITZ_PORTABLE, QKN_TOEPLITZ_CLMUL, QKN_TOEPLITZ_VPCLMUL
    struct qkn_toeplitz:
        size_t bits_in, bits_out, seed_bits, words
    int qkn_toeplitz_state(int kernel)
    int qkn_toeplitz_plan(size_t bits_in, size_t bits_out, int modified, qkn_toeplitz *out)
    void qkn_toeplitz_load(const qkn_toeplitz *plan, const uint8_t *seed, uint64_t *workspace)
    int qkn_toeplitz_apply(
        int kernel, const qkn_toeplitz *plan, uint64_t *workspace, const uint8_t *source, uint8_t *out
    )

cdef dict NUMBERS = {
    "vpclmul": QKN_TOEPLITZ_VPCLMUL, "clmul": QKN_TOEPLITZ_CLMUL, "portable": QKN_TOEPLITZ_PORTABLE,
}
cdef dict STATES = {name: State(qkn_toeplitz_state(number)) for name, number in NUMBERS.items()}
KERNELS = runnable(STATES)
FAMILIES = ("toeplitz", "modified")


cdef str kernel_here():
    cdef const char *demand = getenv(b"QKDNODE_KERNEL")
    return chosen("toeplitz", STATES, None if demand == NULL else (<bytes>demand).decode("utf-8", "replace"))


cdef qkn_toeplitz plan_of(object bits_in, object bits_out, object family) except *:
    cdef qkn_toeplitz plan
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r} of Toeplitz matrices: choose one of {', '.join(FAMILIES)}")
    if not 1 <= bits_out <= bits_in <= 1 << 30:
        raise ValueError(f"{bits_in} bits are not hashed to {bits_out}: 1 <= bits_out <= bits_in <= 2^30")
    if qkn_toeplitz_plan(bits_in, bits_out, family == "modified", &plan) != 0:
        raise ValueError(f"{bits_in} bits cannot be hashed to {bits_out}")
    return plan


def seed_bits(bits_in: int, bits_out: int, family: str) -> int:
    """Random bits that choose one matrix: n + m - 1, or n - 1 for the modified family."""
    return plan_of(bits_in, bits_out, family).seed_bits


@cython.final
cdef class Toeplitz:
    """Exact privacy amplification / extraction of n bits to m by a Toeplitz matrix over GF(2).

    "toeplitz": y_i = XOR_j s[i - j + n - 1] x_j. "modified": y_i = x_{n-m+i} XOR_{j<n-m} s[i - j + n - m - 1] x_j
    (arXiv:1311.5322). Bit i of a string is bit i % 8 of byte i // 8. One thread at a time.
    """

    cdef Py_buffer memory
    cdef uint64_t *workspace
    cdef qkn_toeplitz plan
    cdef readonly str kernel
    cdef int number
    cdef object uses
    cdef object left
    cdef bint seeded
    cdef bint busy

    def __cinit__(self, *, bits_in: int, bits_out: int, family: str = "modified", uses: int | None = 1):
        self.plan = plan_of(bits_in, bits_out, family)
        if uses is not None and uses < 1:
            raise ValueError(f"a seed serves at least one use, not {uses}")
        self.uses = uses
        self.kernel = kernel_here()
        self.number = NUMBERS[self.kernel]
        PyObject_GetBuffer(WorkingBuffer(self.plan.words * sizeof(uint64_t)), &self.memory, PyBUF_WRITABLE)
        self.workspace = <uint64_t *>self.memory.buf

    def __dealloc__(self):
        PyBuffer_Release(&self.memory)

    cdef uint64_t *idle(self) except NULL:
        if self.workspace == NULL:
            raise ValueError("this Toeplitz was closed")
        if self.busy:
            raise LocalProtocolError("this Toeplitz is at work in another thread: give each thread its own")
        return self.workspace

    def load_seed(self, object seed) -> None:
        """Take a new matrix from at least ceil(seed_bits / 8) bytes; later bits are ignored. Starts a count of uses."""
        cdef uint64_t *workspace = self.idle()
        cdef Py_buffer view
        PyObject_GetBuffer(seed, &view, PyBUF_SIMPLE)
        try:
            if <size_t>view.len < (self.plan.seed_bits + 7) // 8:
                raise ValueError(f"{view.len} bytes are no seed of {self.plan.seed_bits} bits")
            self.busy = True
            with nogil:
                qkn_toeplitz_load(&self.plan, <const uint8_t *>view.buf, workspace)
            self.busy = False
        finally:
            PyBuffer_Release(&view)
        self.seeded = True
        self.left = self.uses

    def apply(self, object source, object out) -> None:
        """Hash `source`, ceil(n / 8) bytes, into `out`, ceil(m / 8) bytes; unused bits of its last byte become zero.

        LocalProtocolError without a seed and once the seed has served its uses.
        """
        cdef uint64_t *workspace = self.idle()
        cdef Py_buffer x, y
        cdef int status
        if not self.seeded:
            raise LocalProtocolError("load a seed before hashing")
        if self.left == 0:
            raise LocalProtocolError(f"this seed has served its {self.uses} uses: load another")
        PyObject_GetBuffer(source, &x, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(out, &y, PyBUF_WRITABLE)
            try:
                if <size_t>x.len != (self.plan.bits_in + 7) // 8 or <size_t>y.len != (self.plan.bits_out + 7) // 8:
                    raise ValueError(
                        f"{self.plan.bits_in} bits to {self.plan.bits_out} do not fit buffers of "
                        f"{x.len} and {y.len} bytes"
                    )
                if self.left is not None:
                    self.left -= 1
                self.busy = True
                with nogil:
                    status = qkn_toeplitz_apply(
                        self.number, &self.plan, workspace, <const uint8_t *>x.buf, <uint8_t *>y.buf
                    )
                self.busy = False
                if status != 0:
                    raise RuntimeError("the chosen kernel of toeplitz does not run")
            finally:
                PyBuffer_Release(&y)
        finally:
            PyBuffer_Release(&x)

    def close(self) -> None:
        """Wipe seed and workspace. Harmless when repeated."""
        if self.workspace == NULL:
            return
        self.idle()
        self.workspace = NULL
        PyBuffer_Release(&self.memory)

    def __reduce__(self):
        raise TypeError("a Toeplitz is not pickled: it holds a seed")
