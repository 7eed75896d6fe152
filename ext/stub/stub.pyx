"""The C device core of firmware_stubs/ with its emulated optics, one object per device."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock,
    WAIT_LOCK,
)
from libc.errno cimport EPIPE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, getenv, malloc
from libc.string cimport memcpy, memset

from qkdnode.errors import KernelError

cdef extern from "ports/host.h" nogil:
    int QKN_CHOICE_LIMITS, QKN_INTENSITIES, QKN_PATTERNS, QMP_BLOCK_BYTES, QMP_ALARM_BYTES, QMP_STALL
    int QMP_TRANSFER_ENDED, QMP_TRANSFER_STALLED
    int QMP_FAULT_STALL, QMP_FAULT_NAK, QMP_FAULT_CRC, QMP_FAULT_GAP, QMP_FAULT_DROP, QMP_FAULT_TRUNCATE
    int QMP_FAULT_EMPTY, QMP_FAULT_DUPLICATE, QMP_FAULT_REORDER, QMP_FAULT_SESSION, QMP_FAULT_TYPE, QMP_FAULT_TAMPER
    int QMP_FAULT_BLINDING

    struct qkn_optics_kernel:
        const char *name
    const qkn_optics_kernel **qkn_optics_kernels
    int qkn_optics_kernel_runs(const qkn_optics_kernel *kernel)

    struct qkn_optics:
        uint64_t seed
        uint32_t choice_limits[5]
        uint64_t signal_limits[3]
        uint64_t click_limits[3]
        uint64_t dark_limits[16]
        uint64_t dark_only_limits[16]
        uint64_t receiver_z_limit
        uint32_t misaligned_limit
        uint64_t intercept_limit
        uint64_t eavesdropper_z_limit
        uint64_t sync_interval_slots
        uint64_t dead_slots
        uint32_t slot_units
        uint64_t clock_offset

    struct qkn_entropy:
        uint64_t seed
        uint32_t one_limit
        uint64_t stuck_after

    struct qmp_device:
        pass
    struct qkn_host:
        qmp_device device
    struct qkn_host_plan:
        char serial[16]
        uint64_t epoch_ns
        uint64_t rate_hz
        uint64_t capacity
        uint8_t intensities
        uint8_t config[64]

    void qkn_host_create_tx(const qkn_host_plan *plan, const qkn_optics *optics, const qkn_optics_kernel *kernel,
                            qkn_host *host)
    void qkn_host_create_rx(const qkn_host_plan *plan, const qkn_optics *optics, const qkn_optics_kernel *kernel,
                            qkn_host *host)
    void qkn_host_create_qrng(const qkn_host_plan *plan, const qkn_entropy *entropy, const qkn_optics_kernel *kernel,
                              qkn_host *host)
    int qkn_host_bulk_in(qkn_host *host, uint64_t now_ns, uint32_t size, uint8_t *out, uint32_t *filled)
    int qkn_host_control(qkn_host *host, uint64_t now_ns, uint8_t type, uint8_t request, uint16_t value,
                         uint16_t index, uint16_t length, uint8_t *data)
    void qmp_device_boot(qmp_device *device)
    void qmp_device_reset(qmp_device *device)
    int qmp_interrupt(qmp_device *device, uint8_t *out)
    void qmp_stream_clear_halt(qmp_device *device)
    int qmp_fault_inject(qmp_device *device, int kind)

cdef enum:
    MAX_CONTROL = 4096
    SERIAL_BYTES = 16

FAULTS = {
    "stall": QMP_FAULT_STALL, "nak": QMP_FAULT_NAK, "crc": QMP_FAULT_CRC, "gap": QMP_FAULT_GAP,
    "drop": QMP_FAULT_DROP, "truncate": QMP_FAULT_TRUNCATE, "empty": QMP_FAULT_EMPTY,
    "duplicate": QMP_FAULT_DUPLICATE, "reorder": QMP_FAULT_REORDER, "session": QMP_FAULT_SESSION,
    "type": QMP_FAULT_TYPE, "tamper": QMP_FAULT_TAMPER,
    "blinding": QMP_FAULT_BLINDING,
}


cdef const qkn_optics_kernel *kernel_named(str name) except NULL:
    cdef int i = 0
    while qkn_optics_kernels[i] != NULL:
        if (<bytes>qkn_optics_kernels[i].name).decode() == name:
            if not qkn_optics_kernel_runs(qkn_optics_kernels[i]):
                raise KernelError(f"QKDNODE_KERNEL: this CPU cannot run the optics kernel {name}")
            return qkn_optics_kernels[i]
        i += 1
    raise KernelError(f"QKDNODE_KERNEL: the optics kernel {name} is not built for this machine")


def kernels() -> tuple[str, ...]:
    """The optics kernels that run here, the default first."""
    cdef int i = 0
    cdef list names = []
    while qkn_optics_kernels[i] != NULL:
        if qkn_optics_kernel_runs(qkn_optics_kernels[i]):
            names.append((<bytes>qkn_optics_kernels[i].name).decode())
        i += 1
    return tuple(names)


cdef str demanded_kernel():
    """The first name in QKDNODE_KERNEL that is one of ours, or the default when it is not set."""
    cdef const char *demand = getenv("QKDNODE_KERNEL")
    if demand == NULL or demand[0] == 0:
        return kernels()[0]
    cdef str names = (<bytes>demand).decode()
    for name in names.split(","):
        if name.strip() in ("portable", "avx2", "avx512"):
            return name.strip()
    raise KernelError(f"QKDNODE_KERNEL={names} names no optics kernel; known are portable, avx2, avx512")


@cython.final
cdef class Optics:
    """One quantum channel as integer limits; firmware_stubs/optics/optics.h says what each means."""

    cdef qkn_optics values

    def __cinit__(
        self, *, seed, choice_limits, signal_limits, click_limits, dark_limits, dark_only_limits, receiver_z_limit,
        misaligned_limit, intercept_limit, eavesdropper_z_limit, sync_interval_slots, dead_slots, slot_units,
        clock_offset,
    ):
        cdef int i
        lengths = tuple(map(len, (choice_limits, signal_limits, click_limits, dark_limits, dark_only_limits)))
        if lengths != (QKN_CHOICE_LIMITS, QKN_INTENSITIES, QKN_INTENSITIES, QKN_PATTERNS, QKN_PATTERNS):
            raise ValueError(f"limits of lengths {lengths}")
        if sync_interval_slots < 1:
            raise ValueError("a sync interval has at least one slot")
        self.values.seed = seed
        for i in range(QKN_CHOICE_LIMITS):
            self.values.choice_limits[i] = choice_limits[i]
        for i in range(QKN_INTENSITIES):
            self.values.signal_limits[i] = signal_limits[i]
            self.values.click_limits[i] = click_limits[i]
        for i in range(QKN_PATTERNS):
            self.values.dark_limits[i] = dark_limits[i]
            self.values.dark_only_limits[i] = dark_only_limits[i]
        self.values.receiver_z_limit = receiver_z_limit
        self.values.misaligned_limit = misaligned_limit
        self.values.intercept_limit = intercept_limit
        self.values.eavesdropper_z_limit = eavesdropper_z_limit
        self.values.sync_interval_slots = sync_interval_slots
        self.values.dead_slots = dead_slots
        self.values.slot_units = slot_units
        self.values.clock_offset = clock_offset & 0xFFFF_FFFF_FFFF_FFFF


@cython.final
cdef class Entropy:
    """A raw random stream: P(bit = 1) = one_limit / 65536, one repeated byte from stuck_after on."""

    cdef qkn_entropy values

    def __cinit__(self, *, seed, one_limit, stuck_after=None):
        if not 0 <= one_limit <= 65536:
            raise ValueError(f"one_limit {one_limit} is not in 0..65536")
        memset(&self.values, 0, sizeof(qkn_entropy))
        self.values.seed = seed
        self.values.one_limit = one_limit
        self.values.stuck_after = 0xFFFF_FFFF_FFFF_FFFF if stuck_after is None else stuck_after


@cython.final
cdef class Device:
    """One emulated device; every call is told the wall-clock time.

    Calls from several threads take turns, without the GIL. A halted endpoint and a stalled request are
    BrokenPipeErrors (EPIPE), as the kernel would say.
    """

    cdef qkn_host *host
    cdef PyThread_type_lock lock
    cdef readonly str kernel

    def __cinit__(
        self, str personality, str serial, world, *, epoch_ns, rate_hz, capacity, int intensities, bytes config,
    ):
        cdef qkn_host_plan plan
        cdef const qkn_optics_kernel *kernel
        cdef bytes name = serial.encode("ascii")
        if not 1 <= len(name) <= SERIAL_BYTES:
            raise ValueError(f"the serial {serial!r} does not have 1 to 16 characters")
        if len(config) != QMP_BLOCK_BYTES:
            raise ValueError(f"a configuration of {len(config)} bytes")
        if rate_hz < 1 or capacity < 1:
            raise ValueError("a device has a rate and a capacity")
        memset(&plan, 0, sizeof(plan))
        memcpy(plan.serial, PyBytes_AS_STRING(name), len(name))
        memcpy(plan.config, PyBytes_AS_STRING(config), sizeof(plan.config))
        plan.epoch_ns = epoch_ns
        plan.rate_hz = rate_hz
        plan.capacity = capacity
        plan.intensities = <uint8_t>intensities
        self.kernel = demanded_kernel()
        kernel = kernel_named(self.kernel)
        self.lock = PyThread_allocate_lock()
        self.host = <qkn_host *>malloc(sizeof(qkn_host))
        if self.host == NULL or self.lock == NULL:
            raise MemoryError("no memory for an emulated device")
        if personality == "tx":
            qkn_host_create_tx(&plan, &(<Optics?>world).values, kernel, self.host)
        elif personality == "rx":
            qkn_host_create_rx(&plan, &(<Optics?>world).values, kernel, self.host)
        elif personality == "qrng":
            qkn_host_create_qrng(&plan, &(<Entropy?>world).values, kernel, self.host)
        else:
            raise ValueError(f"no personality {personality!r}: tx, rx or qrng")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)
        free(self.host)

    cdef int transfer(self, uint64_t now, uint8_t *out, Py_ssize_t size, uint32_t *filled) except -1:
        cdef int status
        if size > 0x7FFF_FFFF:
            raise ValueError(f"a transfer of {size} bytes")
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            status = qkn_host_bulk_in(self.host, now, <uint32_t>size, out, filled)
            PyThread_release_lock(self.lock)
        if status == QMP_TRANSFER_STALLED:
            raise BrokenPipeError(EPIPE, "the bulk endpoint is halted")
        return status

    def bulk_in(self, uint64_t now_ns, Py_ssize_t size) -> bytes:
        """What the bulk endpoint sends into a buffer of `size` bytes; empty when it NAKs."""
        cdef uint32_t filled = 0
        cdef bytes out = PyBytes_FromStringAndSize(NULL, max(size, 0))
        self.transfer(now_ns, <uint8_t *>PyBytes_AS_STRING(out), max(size, 0), &filled)
        return out[:filled]

    def bulk_in_into(self, uint64_t now_ns, object buffer) -> tuple[int, bool]:
        """Fill a writable buffer with whole packets: bytes written, and whether a short packet ended the transfer."""
        cdef Py_buffer view
        cdef uint32_t filled = 0
        cdef int status
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            status = self.transfer(now_ns, <uint8_t *>view.buf, view.len, &filled)
        finally:
            PyBuffer_Release(&view)
        return filled, status == QMP_TRANSFER_ENDED

    cdef int request(self, uint64_t now, uint8_t kind, uint8_t request, uint16_t value, uint16_t index,
                     uint16_t length, uint8_t *data) except -1:
        cdef int status
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            status = qkn_host_control(self.host, now, kind, request, value, index, length, data)
            PyThread_release_lock(self.lock)
        if status == QMP_STALL:
            raise BrokenPipeError(EPIPE, f"the device stalls request {request:#04x}")
        return status

    def control_in(
        self, uint64_t now_ns, uint8_t request_type, uint8_t request, uint16_t value, uint16_t index, uint16_t length
    ) -> bytes:
        """The answer to an EP0 IN request."""
        cdef uint8_t data[MAX_CONTROL]
        cdef int count = self.request(now_ns, request_type, request, value, index, length, data)
        return data[:count]

    def control_out(
        self, uint64_t now_ns, uint8_t request_type, uint8_t request, uint16_t value, uint16_t index, object payload
    ) -> int:
        """Send an EP0 OUT request; bytes taken."""
        cdef bytes content = bytes(payload)
        if len(content) > MAX_CONTROL:
            raise BrokenPipeError(EPIPE, "a control request carries at most 4096 bytes")
        return self.request(now_ns, request_type, request, value, index, <uint16_t>len(content),
                            <uint8_t *>PyBytes_AS_STRING(content))

    def interrupt_in(self) -> bytes:
        """The next newly latched alarm of the interrupt endpoint; empty when it NAKs."""
        cdef uint8_t data[8]
        cdef int count
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            count = qmp_interrupt(&self.host.device, data)
            PyThread_release_lock(self.lock)
        return data[:count]

    def clear_halt(self) -> None:
        """The host clears the halt of the bulk endpoint."""
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            qmp_stream_clear_halt(&self.host.device)
            PyThread_release_lock(self.lock)

    def reset(self) -> None:
        """USB bus reset: the stream stops; what is latched stays."""
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            qmp_device_reset(&self.host.device)
            PyThread_release_lock(self.lock)

    def power_cycle(self) -> None:
        """Lose all but the boot count and the session counter."""
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            qmp_device_boot(&self.host.device)
            PyThread_release_lock(self.lock)

    def inject(self, str fault) -> None:
        """Spoil the stream once, at its next packet; the faults are listed in firmware_stubs/core/faults.h."""
        cdef int status, kind
        if fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}: {', '.join(FAULTS)}")
        kind = FAULTS[fault]
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            status = qmp_fault_inject(&self.host.device, kind)
            PyThread_release_lock(self.lock)
        if status != 0:
            raise ValueError(f"{fault}: no stream is running")
