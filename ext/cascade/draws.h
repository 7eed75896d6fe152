#ifndef QKN_DRAWS_H
#define QKN_DRAWS_H
#include <stdint.h>

/* Public choices that both ends expand from one seed: the ChaCha20 key stream (RFC 8439, 32-bit counter from 0) under
 * the nonce (topic, index, 0), read as little-endian 32-bit words. */
struct qkn_draws {
    uint32_t state[16];
    uint32_t words[64];
    unsigned used;
};

void qkn_draws_open(struct qkn_draws *draws, const uint8_t seed[32], uint32_t topic, uint32_t index);
uint32_t qkn_draws_word(struct qkn_draws *draws);
/* Uniform in [0, bound), bound >= 1: Lemire's multiplication with rejection (arXiv:1805.10941). */
uint32_t qkn_draws_below(struct qkn_draws *draws, uint32_t bound);
#endif
