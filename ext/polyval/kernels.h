#ifndef QKN_POLYVAL_KERNELS_H
#define QKN_POLYVAL_KERNELS_H
#include "polyval.h"

/* out = dot(a, b); a, b and out may be the same. */
typedef void qkn_polyval_dot(const uint64_t a[2], const uint64_t b[2], uint64_t out[2]);
/* Absorb whole blocks. */
typedef void qkn_polyval_blocks(const uint8_t *data, size_t blocks, struct qkn_polyval *out);

qkn_polyval_dot qkn_polyval_dot_portable, qkn_polyval_dot_clmul;
qkn_polyval_blocks qkn_polyval_blocks_portable, qkn_polyval_blocks_clmul;
#endif
