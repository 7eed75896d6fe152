/* Toeplitz tiles in portable C: the definition that the other kernels equal bit for bit. */
#include "carryless.h"
#include "isa.h"
#include "kernels.h"

#define LEAF_WORDS 1

static inline void leaf(const uint64_t s[2], const uint64_t x[1], uint64_t y[1])
{
    uint64_t low, high, unused;
    qkn_carryless_multiply(s[1], x[0], &low, &unused);
    qkn_carryless_multiply(s[0], x[0], &unused, &high);
    y[0] = low ^ high;
}

#include "split.h"

void qkn_toeplitz_tile_portable(size_t side, const uint64_t *s, const uint64_t *x, uint64_t *y, uint64_t *scratch)
{
    split(side, s, x, y, scratch);
}
