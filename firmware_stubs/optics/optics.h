#ifndef QKN_OPTICS_H
#define QKN_OPTICS_H
#include <stdint.h>

#include "core/packet.h"
#include "core/source.h"
#include "optics/kernel.h"

/* One quantum channel with its transmitter, eavesdropper and detectors, in integers: probability p of a draw is the
 * limit round(p * 2^n), reached by that share of n-bit uniforms. Both ends of a link are given the same values. */
enum { QKN_INTENSITIES = 3, QKN_PATTERNS = 16, QKN_DETECTORS = 4 };

struct qkn_optics {
    uint64_t seed;
    uint32_t choice_limits[QKN_CHOICE_LIMITS]; /* of 31 bits, see kernel.h */
    /* Per intensity, of 40 bits: the pulse is detected; anything clicks at all, dark counts included. */
    uint64_t signal_limits[QKN_INTENSITIES];
    uint64_t click_limits[QKN_INTENSITIES];
    /* Of 32 bits, cumulative over the 16 sets of detectors with a dark count: unconditionally, and given at least one. */
    uint64_t dark_limits[QKN_PATTERNS];
    uint64_t dark_only_limits[QKN_PATTERNS];
    uint64_t receiver_z_limit;  /* 32 bits: Bob measures in Z */
    uint32_t misaligned_limit;  /* 31 bits: a signal photon takes the wrong detector of the right basis */
    uint64_t intercept_limit;   /* 32 bits: Eve measures and resends this slot */
    uint64_t eavesdropper_z_limit; /* 32 bits: she measures in Z */
    uint64_t sync_interval_slots;
    uint64_t dead_slots; /* a detector that clicked in slot s stays dark up to slot s + dead_slots */
    uint32_t slot_units; /* slot length in 1/256 ns */
    uint64_t clock_offset; /* receiver minus transmitter clock in 1/256 ns, modulo 2^64 */
};

enum { QKN_TX_CHUNK_GROUPS = 61, QKN_TX_CHUNK = QKN_TX_CHUNK_GROUPS * QKN_CHOICE_GROUP }; /* four packets */

struct qkn_transmitter {
    const struct qkn_optics *optics;
    const struct qkn_optics_kernel *kernel;
    uint64_t chunk; /* 1 + index of what `choices` holds */
    uint8_t choices[QKN_TX_CHUNK / 2];
};

/* qmp_source.choices; the context is a struct qkn_transmitter. */
void qkn_transmitter_choices(void *context, uint64_t first, uint8_t *out);

enum { QKN_RX_CHUNK = 1024 };

struct qkn_receiver {
    const struct qkn_optics *optics;
    const struct qkn_optics_kernel *kernel;
    uint64_t chunk; /* 1 + index of what `slots` and `patterns` hold */
    uint64_t interval_end;
    uint64_t alive_from[QKN_DETECTORS];
    uint32_t count, at;
    uint16_t slots[QKN_RX_CHUNK];
    uint8_t patterns[QKN_RX_CHUNK];
    /* Work space of one chunk. */
    uint8_t choices[QKN_RX_CHUNK / 2];
    uint32_t uniforms[QKN_RX_CHUNK / 4];
    uint16_t candidates[QKN_RX_CHUNK];
    uint32_t detection[4][QKN_RX_CHUNK];
    uint32_t eavesdrop[4][QKN_RX_CHUNK];
};

/* qmp_source.tags; the context is a struct qkn_receiver. */
uint32_t qkn_receiver_tags(void *context, uint64_t from, uint64_t to, uint32_t room, struct qmp_tag *out,
                           uint64_t *reached);

enum { QKN_ENTROPY_CHUNK = 256, QKN_ENTROPY_PLANES = 16 };
#define QKN_NEVER UINT64_MAX

struct qkn_entropy {
    uint64_t seed;
    uint32_t one_limit;   /* of 16 bits: a bit is 1; 65536 for always */
    uint64_t stuck_after; /* bytes; QKN_NEVER */
    const struct qkn_optics_kernel *kernel;
    uint64_t chunk; /* 1 + index of what `bytes` holds */
    uint32_t words[QKN_ENTROPY_CHUNK / 4];
};

/* qmp_source.bytes; the context is a struct qkn_entropy. */
void qkn_entropy_bytes(void *context, uint64_t first, uint32_t size, uint8_t *out);
#endif
