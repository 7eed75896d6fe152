"""Buffers for key material: locked, left out of dumps and forks, wiped on release, refused to bytes and pickle."""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno
from libc.string cimport memcpy

from qkdnode.errors import MemoryLockError

cdef extern from "secret_memory.h" nogil:
    int QKN_SECRET_MLOCK, QKN_SECRET_MEMFD
    int qkn_secret_probe()
    int qkn_secret_allocate(size_t size, void **out)
    void qkn_secret_free(void *memory, size_t size)
    int qkn_working_allocate(size_t size, void **out, int *locked)
    void qkn_working_free(void *memory, size_t size, int locked)
    void qkn_wipe(void *memory, size_t size)
    void qkn_forget_registers()
    int qkn_equal(const void *a, const void *b, size_t size)


def locked_mode() -> str | None:
    """`memfd_secret`, `mlock`, or None where key material cannot be locked and the agent must not start."""
    cdef int mode = qkn_secret_probe()
    if mode == QKN_SECRET_MEMFD:
        return "memfd_secret"
    if mode == QKN_SECRET_MLOCK:
        return "mlock"
    return None


def wipe(object buffer) -> None:
    """Zero a writable contiguous buffer in a way that the compiler may not remove."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    qkn_wipe(view.buf, <size_t>view.len)
    PyBuffer_Release(&view)


def equal(object a, object b) -> bool:
    """Whether two buffers hold the same bytes; the time taken depends on their length alone."""
    cdef Py_buffer x, y
    PyObject_GetBuffer(a, &x, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(b, &y, PyBUF_SIMPLE)
        try:
            return x.len == y.len and qkn_equal(x.buf, y.buf, <size_t>x.len) == 1
        finally:
            PyBuffer_Release(&y)
    finally:
        PyBuffer_Release(&x)


cdef class LockedBuffer:
    """What SecretBuffer and WorkingBuffer share: the buffer protocol with a lease count, and no way to bytes."""

    cdef void *memory
    cdef Py_ssize_t size
    cdef Py_ssize_t leases
    cdef bint doomed

    cdef void give_back(self) noexcept:
        pass

    def __len__(self) -> int:
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.memory == NULL or self.doomed:
            raise ValueError(f"{type(self).__name__} was released")
        PyBuffer_FillInfo(view, self, self.memory, self.size, 0, flags)
        self.leases += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.leases -= 1
        qkn_forget_registers()  # of whatever was copied through this view
        if self.doomed and self.leases == 0:
            self.give_back()
            self.memory = NULL

    @property
    def released(self) -> bool:
        """Whether the memory was wiped and given back."""
        return self.memory == NULL or self.doomed

    def release(self) -> None:
        """Wipe and give back the memory; BufferError while a view is leased. Harmless when repeated."""
        if self.memory == NULL:
            return
        if self.leases:
            raise BufferError(f"{self.leases} views of this {type(self).__name__} are in use")
        self.give_back()
        self.memory = NULL

    def discard(self) -> None:
        """Release now or, where a worker still reads it, as soon as the last view is given back."""
        if self.memory != NULL and self.leases:
            self.doomed = True
        else:
            self.release()

    def wipe(self) -> None:
        """Zero the contents and keep the memory."""
        if self.memory != NULL:
            qkn_wipe(self.memory, <size_t>self.size)

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __dealloc__(self):
        if self.memory != NULL:
            self.give_back()
            self.memory = NULL

    def __bytes__(self):
        raise TypeError(f"{type(self).__name__} does not become bytes: they could not be wiped")

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} is not pickled or copied")

    def __repr__(self) -> str:
        state = "released" if self.memory == NULL else f"{self.size} bytes"
        return f"<{type(self).__name__} {state}>"


cdef void fill(LockedBuffer buffer, object source) except *:
    cdef Py_buffer view
    PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
    try:
        if view.len != buffer.size:
            raise ValueError(f"{view.len} bytes do not fill a buffer of {buffer.size}")
        memcpy(buffer.memory, view.buf, <size_t>view.len)
    finally:
        qkn_forget_registers()
        PyBuffer_Release(&view)


@cython.final
cdef class SecretBuffer(LockedBuffer):
    """Finished keys, pads and key-encryption keys. Always locked: MemoryLockError where it cannot be."""

    def __cinit__(self, Py_ssize_t size):
        if size <= 0:
            raise ValueError("a SecretBuffer has at least one byte")
        if qkn_secret_allocate(<size_t>size, &self.memory) != 0:
            self.memory = NULL
            raise MemoryLockError(
                f"cannot lock {size} bytes for key material ({os.strerror(errno)}): "
                "raise the memory-lock limit (ulimit -l, LimitMEMLOCK=)"
            )
        self.size = size

    cdef void give_back(self) noexcept:
        qkn_secret_free(self.memory, <size_t>self.size)

    @classmethod
    def copy_of(cls, object source) -> SecretBuffer:
        """A new buffer with the bytes of `source`, which the caller wipes."""
        cdef SecretBuffer buffer = SecretBuffer(memoryview(source).nbytes)
        fill(buffer, source)
        return buffer


@cython.final
cdef class WorkingBuffer(LockedBuffer):
    """Raw, sifted and reconciled bits: never dumped or forked, wiped, locked as far as the limit allows."""

    cdef readonly bint locked

    def __cinit__(self, Py_ssize_t size):
        cdef int locked = 0
        if size <= 0:
            raise ValueError("a WorkingBuffer has at least one byte")
        if qkn_working_allocate(<size_t>size, &self.memory, &locked) != 0:
            self.memory = NULL
            raise MemoryError(f"cannot map {size} bytes ({os.strerror(errno)})")
        self.locked = locked
        self.size = size

    cdef void give_back(self) noexcept:
        qkn_working_free(self.memory, <size_t>self.size, self.locked)

    @classmethod
    def copy_of(cls, object source) -> WorkingBuffer:
        """A new buffer with the bytes of `source`, which the caller wipes."""
        cdef WorkingBuffer buffer = WorkingBuffer(memoryview(source).nbytes)
        fill(buffer, source)
        return buffer
