#ifndef QKN_PHILOX_H
#define QKN_PHILOX_H
#include <stdint.h>

/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC11): 128 random bits as a
 * function of a 64-bit key and a 128-bit counter. The seed of the channel is the key; the counter is
 * {index low, index high, stream, 0}, so that every draw of every kind has an address of its own. */
enum qkn_philox_stream {
    QKN_STREAM_CHOICES = 0,    /* index: slot / 4 in the order of kernel_body.h */
    QKN_STREAM_CANDIDATES = 1, /* index: slot / 16 in the order of kernel_body.h */
    QKN_STREAM_DETECTION = 2,  /* index: slot */
    QKN_STREAM_EAVESDROP = 3,  /* index: slot */
    QKN_STREAM_ENTROPY = 4,    /* index: see entropy.c */
};

#define QKN_PHILOX_M0 0xD2511F53u
#define QKN_PHILOX_M1 0xCD9E8D57u
#define QKN_PHILOX_W0 0x9E3779B9u
#define QKN_PHILOX_W1 0xBB67AE85u

#define QKN_PHILOX_ROUND(k0, k1)                                                  \
    do {                                                                          \
        uint64_t product0 = (uint64_t)QKN_PHILOX_M0 * c0;                         \
        uint64_t product1 = (uint64_t)QKN_PHILOX_M1 * c2;                         \
        uint32_t next0 = (uint32_t)(product1 >> 32) ^ c1 ^ (k0);                  \
        uint32_t next2 = (uint32_t)(product0 >> 32) ^ c3 ^ (k1);                  \
        c1 = (uint32_t)product1;                                                  \
        c3 = (uint32_t)product0;                                                  \
        c0 = next0;                                                               \
        c2 = next2;                                                               \
    } while (0)

/* Ten rounds on the variables c0..c3; a macro, so that loops around it vectorise. */
#define QKN_PHILOX(k0, k1)                                                        \
    do {                                                                          \
        QKN_PHILOX_ROUND((k0) + 0u * QKN_PHILOX_W0, (k1) + 0u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 1u * QKN_PHILOX_W0, (k1) + 1u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 2u * QKN_PHILOX_W0, (k1) + 2u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 3u * QKN_PHILOX_W0, (k1) + 3u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 4u * QKN_PHILOX_W0, (k1) + 4u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 5u * QKN_PHILOX_W0, (k1) + 5u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 6u * QKN_PHILOX_W0, (k1) + 6u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 7u * QKN_PHILOX_W0, (k1) + 7u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 8u * QKN_PHILOX_W0, (k1) + 8u * QKN_PHILOX_W1);   \
        QKN_PHILOX_ROUND((k0) + 9u * QKN_PHILOX_W0, (k1) + 9u * QKN_PHILOX_W1);   \
    } while (0)
#endif
