#ifndef QKN_SIFTING_H
#define QKN_SIFTING_H
#include <stddef.h>
#include <stdint.h>

/* Sifting of one Window. Bit strings are packed LSB first; intensities are 2-bit fields, likewise.
 * Branches depend on slots, bases and clicks being there, never on the value of a bit. */

enum {
    QKN_SIFT_OK = 0,
    QKN_SIFT_TRUNCATED = -1,   /* the list ends inside a distance, or before its last event */
    QKN_SIFT_TRAILING = -2,    /* bytes or bits beyond the last event */
    QKN_SIFT_OUTSIDE = -3,     /* a slot at or beyond the end of the Window */
    QKN_SIFT_INTENSITY = -4,   /* an intensity that the link has not got */
    QKN_SIFT_ORDER = -5,       /* detections not in rising order of slots */
    QKN_SIFT_COINS = -6,       /* fewer random bits than double clicks */
};

struct qkn_sift_listing {
    size_t events, slot_bytes;
    uint32_t double_clicks, crossed_clicks, dead_clicks;
    uint32_t single_clicks[2], single_ones[2]; /* by basis: listed clicks of one detector, and those of its 1 */
};

/* Detections -> what Bob announces (slots as LEB128 distances less one, bases) and keeps (bits).
 * patterns: bit 0 Z0, 1 Z1, 2 X0, 3 X1. Buffers: slot_list 5 n bytes, bases and bits (n + 7) / 8 zeroed bytes. */
int qkn_sift_list(const uint32_t *slots, const uint8_t *patterns, size_t n, uint32_t dead_slots, const uint8_t *coins,
                  size_t coin_bits, uint8_t *slot_list, uint8_t *bases, uint8_t *bits, struct qkn_sift_listing *out);

struct qkn_sift_answer {
    size_t matched, z, x, ones; /* ones: among the z key bits */
    uint64_t n_z[4], n_x[4];
};

/* Bob's list and Alice's choices (a nibble per slot: basis, bit, intensity << 2) -> her answer and her key bits.
 * matched (events + 7) / 8, intensities (2 events + 7) / 8, x_bits, z_bits (events + 7) / 8, z_intensities
 * (2 events + 7) / 8 bytes, all zeroed. */
int qkn_sift_answer(const uint8_t *slot_list, size_t slot_bytes, const uint8_t *bases, size_t events,
                    const uint8_t *choices, uint32_t window_slots, unsigned intensity_count, uint8_t *matched,
                    uint8_t *intensities, uint8_t *x_bits, uint8_t *z_bits, uint8_t *z_intensities,
                    struct qkn_sift_answer *out);

struct qkn_sift_outcome {
    size_t matched, z, x, ones; /* ones: among the z key bits */
    uint64_t n_z[4], n_x[4], m_x[4];
};

/* Alice's answer applied to Bob's own bits. matched_count events are matched, x_count of them in X: what the lengths
 * of the answer's fields must be is checked by the caller with qkn_sift_count. */
int qkn_sift_apply(const uint8_t *bits, const uint8_t *bases, size_t events, const uint8_t *matched,
                   const uint8_t *intensities, const uint8_t *x_bits, unsigned intensity_count, uint8_t *z_bits,
                   uint8_t *z_intensities, struct qkn_sift_outcome *out);

/* Matched events, and those of them in X; QKN_SIFT_TRAILING if padding bits are set. */
int qkn_sift_count(const uint8_t *bases, const uint8_t *matched, size_t events, size_t *matched_count, size_t *x_count);

/* dst[dst_bit ...] = src[src_bit ... src_bit + bits); the bits of dst beyond are kept. */
void qkn_bits_copy(uint8_t *dst, size_t dst_bit, const uint8_t *src, size_t src_bit, size_t bits);

/* counts[k] += set bits of mask whose 2-bit intensity is k. */
void qkn_bits_count_by_intensity(const uint8_t *mask, const uint8_t *intensities, size_t bits, uint64_t counts[4]);
#endif
