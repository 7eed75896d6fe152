#ifndef QMP_BYTES_H
#define QMP_BYTES_H
#include <stdint.h>

/* Little-endian stores at any alignment, on any machine. */
static inline void qmp_put16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static inline void qmp_put32(uint8_t *at, uint32_t value)
{
    qmp_put16(at, (uint16_t)value);
    qmp_put16(at + 2, (uint16_t)(value >> 16));
}

static inline void qmp_put64(uint8_t *at, uint64_t value)
{
    qmp_put32(at, (uint32_t)value);
    qmp_put32(at + 4, (uint32_t)(value >> 32));
}
#endif
