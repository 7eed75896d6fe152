#ifndef QKN_HOST_PORT_H
#define QKN_HOST_PORT_H
#include <stdint.h>

#include "core/device.h"
#include "optics/optics.h"

/* The device core on a host: emulated optics below, wall-clock time handed in. Position = (now - epoch) * rate: slots of
 * a QKD module, bytes of a QRNG. Not thread-safe; the caller owns the memory and keeps it where it is. */
struct qkn_host {
    struct qmp_device device;
    struct qmp_source source;
    struct qkn_optics optics;
    union {
        struct qkn_transmitter transmitter;
        struct qkn_receiver receiver;
        struct qkn_entropy entropy;
    } below;
    uint64_t epoch_ns;
    uint64_t rate_hz;
};

struct qkn_host_plan {
    char serial[16];
    uint64_t epoch_ns;
    uint64_t rate_hz;  /* slots or bytes per second */
    uint64_t capacity; /* slots or bytes that wait unread */
    uint8_t intensities;
    uint8_t config[QMP_BLOCK_BYTES];
};

void qkn_host_create_tx(const struct qkn_host_plan *plan, const struct qkn_optics *optics,
                        const struct qkn_optics_kernel *kernel, struct qkn_host *host);
void qkn_host_create_rx(const struct qkn_host_plan *plan, const struct qkn_optics *optics,
                        const struct qkn_optics_kernel *kernel, struct qkn_host *host);
void qkn_host_create_qrng(const struct qkn_host_plan *plan, const struct qkn_entropy *entropy,
                          const struct qkn_optics_kernel *kernel, struct qkn_host *host);

/* As the functions of core/device.h, at wall-clock time now_ns. */
int qkn_host_bulk_in(struct qkn_host *host, uint64_t now_ns, uint32_t size, uint8_t *out, uint32_t *filled);
int qkn_host_control(struct qkn_host *host, uint64_t now_ns, uint8_t type, uint8_t request, uint16_t value,
                     uint16_t index, uint16_t length, uint8_t *data);
#endif
