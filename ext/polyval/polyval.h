#ifndef QKN_POLYVAL_H
#define QKN_POLYVAL_H
#include <stddef.h>
#include <stdint.h>

/* POLYVAL (RFC 8452 section 3): S_j = dot(S_{j-1} + X_j, H), dot(a, b) = a b x^-128 mod x^128+x^127+x^126+x^121+1.
 * A field element is two words, coefficient of x^0 in bit 0 of the first: RFC 8452's bytes, read little-endian. */

#define QKN_POLYVAL_BLOCK 16
#define QKN_POLYVAL_POWERS 8

struct qkn_polyval {
    uint64_t powers[QKN_POLYVAL_POWERS][2]; /* H, dot(H, H), ...: blocks absorbed per reduction */
    uint64_t sum[2];
};

enum qkn_polyval_kernel { QKN_POLYVAL_PORTABLE, QKN_POLYVAL_CLMUL, QKN_POLYVAL_KERNELS };

/* enum qkn_kernel_state of a kernel; the functions below return -1 for one that does not run here, else 0. */
int qkn_polyval_state(int kernel);

/* Empty sum under `key`. */
int qkn_polyval_start(int kernel, const uint8_t key[QKN_POLYVAL_BLOCK], struct qkn_polyval *out);
/* Absorb `bytes` of data, the last block filled up with zeros. */
int qkn_polyval_absorb(int kernel, const uint8_t *data, size_t bytes, struct qkn_polyval *out);
/* As if the `blocks` blocks that made `later` had been absorbed next. `blocks` is public. */
int qkn_polyval_append(int kernel, const uint64_t later[2], uint64_t blocks, struct qkn_polyval *out);
#endif
