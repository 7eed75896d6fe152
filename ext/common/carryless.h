#ifndef QKN_CARRYLESS_H
#define QKN_CARRYLESS_H
#include <stdint.h>

/* Carry-less products by integer multiplication with holes: one bit in four is kept, so that up to 15 addends meet
 * in a column before a carry reaches the next. No table, no branch; needs a multiplier of constant time, as x86-64 and
 * aarch64 have. `b` gives its top four bits to plain shifts, or 16 addends would meet in the middle column. */
#define QKN_HOLES 0x1111111111111111u
#define QKN_HOLES_60 (QKN_HOLES >> 4)

typedef unsigned __int128 qkn_u128;

static inline void qkn_carryless_multiply(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high)
{
    uint64_t x[4], y[4];
    for (int i = 0; i < 4; i++) {
        x[i] = a & QKN_HOLES << i;
        y[i] = b & QKN_HOLES_60 << i;
    }
    qkn_u128 product = 0;
    for (int i = 0; i < 4; i++) {
        qkn_u128 column = 0;
        for (int j = 0; j < 4; j++)
            column ^= (qkn_u128)x[j] * y[(i - j) & 3];
        product |= column & ((qkn_u128)(QKN_HOLES << i) << 64 | QKN_HOLES << i);
    }
    for (int i = 0; i < 4; i++)
        product ^= ((qkn_u128)a << (60 + i)) & -(qkn_u128)(b >> (60 + i) & 1u);
    *low = (uint64_t)product;
    *high = (uint64_t)(product >> 64);
}
#endif
