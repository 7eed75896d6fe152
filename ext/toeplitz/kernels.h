#ifndef QKN_TOEPLITZ_KERNELS_H
#define QKN_TOEPLITZ_KERNELS_H
#include <stddef.h>
#include <stdint.h>

/* Sides of all tiles are this times a power of two. */
#define QKN_TOEPLITZ_TILE_MIN 8

/* Words of scratch for a tile of a given side: 3/2 of it at the first split, half as many at the next. */
#define QKN_TOEPLITZ_SCRATCH(side) (3 * (side))

/* A square Toeplitz tile times a vector; side in words, 2 side words of seed s, side words of x and y:
 * y_i = XOR_j s[64 side + i - j] x_j for bits i, j < 64 side. Nothing overlaps. */
typedef void qkn_toeplitz_tile(size_t side, const uint64_t *s, const uint64_t *x, uint64_t *y, uint64_t *scratch);

qkn_toeplitz_tile qkn_toeplitz_tile_portable, qkn_toeplitz_tile_clmul, qkn_toeplitz_tile_vpclmul;
#endif
