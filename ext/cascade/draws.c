/* ChaCha20 as a stream of public draws, four blocks at a time in vector lanes. */
#include "draws.h"

#include <string.h>

typedef uint32_t lanes __attribute__((vector_size(16)));

#define ROTATE(x, by) (((x) << (by)) | ((x) >> (32 - (by))))
#define QUARTER(a, b, c, d)           \
    do {                              \
        a += b, d ^= a, d = ROTATE(d, 16); \
        c += d, b ^= c, b = ROTATE(b, 12); \
        a += b, d ^= a, d = ROTATE(d, 8);  \
        c += d, b ^= c, b = ROTATE(b, 7);  \
    } while (0)

void qkn_draws_open(struct qkn_draws *draws, const uint8_t seed[32], uint32_t topic, uint32_t index)
{
    static const uint32_t constants[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    memcpy(draws->state, constants, sizeof constants);
    memcpy(draws->state + 4, seed, 32);
    draws->state[12] = 0;
    draws->state[13] = topic;
    draws->state[14] = index;
    draws->state[15] = 0;
    draws->used = 64;
}

static void refill(struct qkn_draws *draws)
{
    lanes start[16], x[16];
    for (unsigned i = 0; i < 16; i++)
        start[i] = (lanes){0} + draws->state[i];
    start[12] += (lanes){0, 1, 2, 3};
    memcpy(x, start, sizeof x);
    for (unsigned round = 0; round < 10; round++) {
        QUARTER(x[0], x[4], x[8], x[12]);
        QUARTER(x[1], x[5], x[9], x[13]);
        QUARTER(x[2], x[6], x[10], x[14]);
        QUARTER(x[3], x[7], x[11], x[15]);
        QUARTER(x[0], x[5], x[10], x[15]);
        QUARTER(x[1], x[6], x[11], x[12]);
        QUARTER(x[2], x[7], x[8], x[13]);
        QUARTER(x[3], x[4], x[9], x[14]);
    }
    for (unsigned i = 0; i < 16; i++) {
        x[i] += start[i];
        for (unsigned lane = 0; lane < 4; lane++)
            draws->words[16 * lane + i] = x[i][lane];
    }
    draws->state[12] += 4;
    draws->used = 0;
}

uint32_t qkn_draws_word(struct qkn_draws *draws)
{
    if (draws->used == 64)
        refill(draws);
    return draws->words[draws->used++];
}

uint32_t qkn_draws_below(struct qkn_draws *draws, uint32_t bound)
{
    uint64_t product = (uint64_t)qkn_draws_word(draws) * bound;
    if ((uint32_t)product < bound) {
        uint32_t threshold = (0u - bound) % bound;
        while ((uint32_t)product < threshold)
            product = (uint64_t)qkn_draws_word(draws) * bound;
    }
    return (uint32_t)(product >> 32);
}
