/* POLYVAL in portable C: the definition that the other kernels equal bit for bit. */
#include <string.h>

#include "carryless.h"
#include "isa.h"
#include "kernels.h"

/* r mod the POLYVAL polynomial times x^-128: clears the low words by adding multiples of it. */
static void reduce(uint64_t r[4], uint64_t out[2])
{
    for (int i = 0; i < 2; i++) {
        uint64_t w = r[i];
        r[i + 1] ^= w << 63 ^ w << 62 ^ w << 57;
        r[i + 2] ^= w ^ w >> 1 ^ w >> 2 ^ w >> 7;
    }
    out[0] = r[2];
    out[1] = r[3];
}

void qkn_polyval_dot_portable(const uint64_t a[2], const uint64_t b[2], uint64_t out[2])
{
    uint64_t low[2], high[2], middle[2];
    qkn_carryless_multiply(a[0], b[0], &low[0], &low[1]);
    qkn_carryless_multiply(a[1], b[1], &high[0], &high[1]);
    qkn_carryless_multiply(a[0] ^ a[1], b[0] ^ b[1], &middle[0], &middle[1]);
    for (int i = 0; i < 2; i++)
        middle[i] ^= low[i] ^ high[i];
    uint64_t product[4] = {low[0], low[1] ^ middle[0], high[0] ^ middle[1], high[1]};
    reduce(product, out);
}

void qkn_polyval_blocks_portable(const uint8_t *data, size_t blocks, struct qkn_polyval *out)
{
    for (; blocks; blocks--, data += QKN_POLYVAL_BLOCK) {
        uint64_t block[2];
        memcpy(block, data, sizeof block);
        block[0] ^= out->sum[0];
        block[1] ^= out->sum[1];
        qkn_polyval_dot_portable(block, out->powers[0], out->sum);
    }
}
