#ifndef QMP_SOURCE_H
#define QMP_SOURCE_H
#include <stdint.h>

struct qmp_tag {
    uint64_t time;    /* 1/256 ns on this device's clock, full 64 bits */
    uint32_t pattern; /* bit 0 Z0, 1 Z1, 2 X0, 3 X1 */
};

struct qmp_environment {
    int32_t temperature_mc;
    int32_t bias_mv;
    int32_t photocurrent_na;
};

/* What a port puts below the core: a gateware FIFO on a board, the emulated optics on a host. Positions are slots,
 * for a QRNG bytes of its stream. A port fills in what its personality reads and leaves the rest NULL. */
struct qmp_source {
    void *context;
    /* The nibbles of QMP_SLOTS_PER_PACKET slots from `first`, a multiple of that number. */
    void (*choices)(void *context, uint64_t first, uint8_t *out);
    /* At most `room` tags of slots [from, to) in order; returns how many. All tags of slots below *reached are then
     * delivered. */
    uint32_t (*tags)(void *context, uint64_t from, uint64_t to, uint32_t room, struct qmp_tag *out,
                     uint64_t *reached);
    /* Raw bytes [first, first + size) of the random stream. */
    void (*bytes)(void *context, uint64_t first, uint32_t size, uint8_t *out);
    void (*environment)(void *context, struct qmp_environment *out);
};
#endif
